package consumers_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/internal/storefault"
)

// What was said of another token is no answer about the one that Handle has not settled,
// whether its context ended with it, as an errgroup's does, or its handler returned it.
func TestHandleOfAnotherTokensAnswer(t *testing.T) {
	for _, of := range []error{
		&idem.DuplicateError{Token: "other"}, fmt.Errorf("wrapped: %w", &idem.DuplicateError{Token: "other"}),
		&idem.InProgressError{Token: "other", RetryAfter: time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, consumers.Broker{})
			e := r.engine(r.guard)
			one := func(ctx context.Context, h handler) error { return e.Handle(ctx, r.delivery(1, "a", h)) }
			ended, cancel := context.WithCancelCause(t.Context())
			cancel(of)
			r.store.Set(storefault.Away)
			ends, cancel := context.WithCancelCause(t.Context())
			time.AfterFunc(time.Second, func() { cancel(of) })
			meanwhile := one(ends, fine)
			r.store.Set(storefault.None)
			time.Sleep(time.Minute)
			for when, err := range map[string]error{
				"before":         one(ended, fine),
				"meanwhile":      meanwhile,
				"by the handler": one(t.Context(), func(context.Context, *delivery) error { return idem.Permanent(of) }),
			} {
				var dup *idem.DuplicateError
				var busy *idem.InProgressError
				if err == nil || idem.Done(err) || errors.Is(err, idem.ErrInProgress) || errors.As(err, &dup) || errors.As(err, &busy) {
					t.Errorf("%s: %v is taken for an answer about this token", when, err)
				}
				if err == nil || !strings.Contains(err.Error(), of.Error()) {
					t.Errorf("%s: %v does not say why", when, err)
				}
			}
			r.wantSettled()
		})
	}
}

func TestHandleTellsTheCallersOwnCause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{})
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(errBoom)
		if err := r.engine(r.guard).Handle(ctx, r.delivery(1, "a", fine)); !errors.Is(err, errBoom) {
			t.Errorf("Handle: %v", err)
		}
	})
}

// That a message must not be passed over is not hidden by the end of Handle's context.
func TestHandleTellsTheFailureFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{})
		ctx, cancel := context.WithCancel(t.Context())
		r.store.On(func(b *store.Batch) storefault.Fault {
			if b.Ops[0].Kind == store.Release { // after the handler's failure
				cancel()
			}
			return storefault.None
		})
		failed := r.delivery(1, "a", func(context.Context, *delivery) error { return idem.Permanent(errBoom) })
		if err := r.engine(r.guard).Handle(ctx, failed); !errors.Is(err, errBoom) || !strings.Contains(err.Error(), "no dead-letter destination") {
			t.Errorf("Handle: %v", err)
		}
		r.wantSettled()
	})
}
