package idem_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/memstore"
	"github.com/idemq/idemq/internal/storefault"
)

// The error of one message ends the context of its neighbours, as an errgroup does it: it is
// no answer about these. One that is the caller's own is.
func TestCauseIsNoAnswer(t *testing.T) {
	own := errors.New("the caller's own")
	for name, cause := range map[string]error{
		"duplicate":        &idem.DuplicateError{Token: "other"},
		"in progress":      &idem.InProgressError{Token: "other", RetryAfter: time.Second},
		"unknown":          fmt.Errorf("idem: token: %w", idem.ErrUnknownToken),
		"conflict":         fmt.Errorf("idem: token: %w", idem.ErrConflict),
		"lease lost":       fmt.Errorf("idem: token: %w", idem.ErrLeaseLost),
		"rolled back":      idem.ErrRolledBack,
		"unreadable":       fmt.Errorf("idem: claim token: %w", store.ErrUnreadable),
		"permanent":        idem.Permanent(errors.New("broken")),
		"later":            idem.RetryAfter(errors.New("away"), time.Second),
		"the caller's own": own,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := storefault.New(memstore.New())
				g := idem.New(idem.WithStore(s)).Group("g")
				patient := func(r *idem.Request) { r.Patient = true }
				claim, err := g.Begin(t.Context(), "held", patient)
				if err != nil {
					t.Fatal(err)
				}
				s.Set(storefault.Away)
				for what, call := range map[string]func(context.Context) error{
					"Do":     func(ctx context.Context) error { return g.Do(ctx, "do", func(context.Context) error { return nil }) },
					"Begin":  func(ctx context.Context) error { _, err := g.Begin(ctx, "begin", patient); return err },
					"Commit": claim.Commit,
				} {
					for when, wait := range map[string]time.Duration{"before": 0, "meanwhile": time.Second} {
						ctx, cancel := context.WithCancelCause(t.Context())
						timer := time.AfterFunc(wait, func() { cancel(cause) })
						if wait == 0 {
							cancel(cause)
						}
						err := call(ctx)
						timer.Stop()
						_, delays := idem.RetryDelay(err)
						for _, answer := range []error{idem.ErrDuplicate, idem.ErrInProgress, idem.ErrUnknownToken, idem.ErrConflict, idem.ErrLeaseLost, idem.ErrRolledBack, store.ErrUnreadable} {
							if errors.Is(err, answer) {
								t.Errorf("%s, ended %s: %v is taken for %v", what, when, err, answer)
							}
						}
						if idem.Done(err) || delays || idem.IsPermanent(err) {
							t.Errorf("%s, ended %s: %v", what, when, err)
						}
						if !errors.Is(err, own) && !errors.Is(err, context.Canceled) && !errors.Is(err, store.ErrUnavailable) {
							t.Errorf("%s, ended %s: %v does not say why", what, when, err)
						}
					}
				}
			})
		})
	}
}
