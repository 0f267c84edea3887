package redisstore

import (
	"testing"

	"github.com/idemq/idemq/idem/store"
)

// An empty line says that all is as usual; one that is not there says nothing.
func TestEachOperationHasALine(t *testing.T) {
	for lines, whole := range map[string]bool{"\n": true, "l\nl": true, "": false, "l": false, "l\nl\n": false} {
		ops := []store.Op{{Kind: store.Commit}, {Kind: store.Commit}}
		replies := make([]store.Reply, len(ops))
		c := &call{items: []item{{op: &ops[0], reply: &replies[0]}, {op: &ops[1], reply: &replies[1]}}}
		if _, _, err := c.unpack([]any{"1", "epoch", lines}); (err == nil) != whole {
			t.Errorf("%q for two operations: %v, %+v", lines, err, replies)
		}
	}
	if _, _, err := new(call).unpack([]any{"1", "epoch", ""}); err != nil {
		t.Errorf("no operations: %v", err)
	}
}
