package rules_test

import (
	"testing"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/rules"
)

// A kind that a newer guard may have is an error of that operation, which changes nothing.
func TestUnknownKind(t *testing.T) {
	x := rules.Execution{Batch: &store.Batch{}}
	for _, op := range []store.Op{{}, {Kind: store.Check + 1, Token: "t", Claim: "c"}} {
		r := rules.Record{State: store.Running, Claim: "c"}
		reply, changed := x.Do(&op, &r, nil)
		if reply.Err == nil || reply.Status != 0 || changed {
			t.Errorf("kind %d: %+v, changed is %v", op.Kind, reply, changed)
		}
	}
}
