package redisstore

import (
	"testing"
	"testing/synctest"
	"time"
)

// Nodes come and go under other addresses: one that left while it was silent is not kept in mind,
// unless it is being asked.
func TestSilencesAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s silences
		s.ask("gone")(unheard)
		s.ask("asked")(unheard)
		asked := s.ask("asked")
		<-time.After(time.Hour)
		s.ask("new")(unheard)
		if s.nodes["gone"] != nil || len(s.nodes) != 2 || !s.silent("asked") {
			t.Errorf("%d nodes are kept in mind: %v", len(s.nodes), s.nodes)
		}
		asked(heard)
		if len(s.nodes) != 1 || !s.silent("new") {
			t.Errorf("after an answer: %v", s.nodes)
		}
	})
}
