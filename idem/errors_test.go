package idem_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/memstore"
	"github.com/idemq/idemq/internal/storefault"
)

// What a handler returns of another token, or of another claim, is no answer about this one.
func TestHandlersErrorIsNoAnswer(t *testing.T) {
	for _, answer := range []error{
		idem.ErrDuplicate, idem.ErrInProgress, idem.ErrUnknownToken, idem.ErrUnsigned, idem.ErrConflict, idem.ErrInvalidToken,
		idem.ErrLeaseLost, idem.ErrRolledBack, idem.ErrNeedAlone, idem.ErrClaimEnded, idem.ErrClaimBorrowed,
		store.ErrUnreadable, store.ErrNewer,
	} {
		t.Run(answer.Error(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, _ := newGuard()
				err := g.Do(t.Context(), "outer", func(context.Context) error {
					return errors.Join(errBoom, fmt.Errorf("idem: token %q: %w", "inner", answer))
				})
				if errors.Is(err, answer) || idem.Done(err) {
					t.Errorf("%v is taken for an answer about its own token", err)
				}
				if !errors.Is(err, errBoom) {
					t.Errorf("%v has lost the rest", err)
				}
				if r := inspect(t, g, "outer"); r.State != store.Released || r.Spent != 1 {
					t.Errorf("the record is %+v", r)
				}
			})
		})
	}
}

// The lease of a handler around this one is lost: that is said of its token, not of this one.
func TestLeaseOfTheHandlerAround(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, s := newGuard()
		within := idem.New(idem.WithStore(memstore.New())).Group("within")
		err := g.Do(t.Context(), "around", func(ctx context.Context) error {
			s.Set(storefault.Away)
			err := within.Do(ctx, "within", func(ctx context.Context) error {
				<-ctx.Done()
				return context.Cause(ctx)
			})
			if errors.Is(err, idem.ErrLeaseLost) {
				t.Errorf("%v is taken for the lease of the token within", err)
			}
			return err
		})
		if !errors.Is(err, idem.ErrLeaseLost) {
			t.Errorf("Do around it: %v", err)
		}
		if r := inspect(t, within, "within"); r.State != store.Released || r.Spent != 0 {
			t.Errorf("the record within is %+v, want given back", r)
		}
	})
}
