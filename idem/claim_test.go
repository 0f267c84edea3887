package idem_test

import (
	"errors"
	"testing"
	"testing/synctest"

	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/memstore"
)

// A claim is ended in the store that it was made in: elsewhere its completion would be taken,
// and known to nobody who asks.
func TestCommitAllOfAnotherGuard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _ := newGuard()
		elsewhere := idem.New(idem.WithStore(memstore.New())).Group("billing")
		foreign, sister := begin(t, elsewhere, "a"), begin(t, g.Group("mail"), "b")
		errs := g.CommitAll(t.Context(), []*idem.Claim{foreign, sister})
		if errs[0] == nil || errs[1] != nil {
			t.Errorf("CommitAll: %v", errs)
		}
		if r := inspect(t, g, "a"); r.State != store.Absent {
			t.Errorf("recorded where it was not claimed: %+v", r)
		}
		if err := foreign.Commit(t.Context()); err != nil {
			t.Errorf("its own Commit: %v", err)
		}
	})
}

// Retry refuses what Begin does, and its claim has ended.
func TestRetryOfABadRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _ := newGuard()
		c := begin(t, g, "a")
		next, err := c.Retry(t.Context(), true, idem.Request{Redrive: store.MaxRedrive + 1})
		if err == nil {
			t.Fatalf("claimed with a redrive number that no store keeps: %d", next.Redrive())
		}
		if err := c.Commit(t.Context()); !errors.Is(err, idem.ErrClaimEnded) {
			t.Errorf("Commit after it: %v", err)
		}
	})
}
