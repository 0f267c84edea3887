package consumers_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/internal/storefault"
)

// eventsOf returns the events of a kind whose error has text in it.
func (r *rig) eventsOf(k idem.EventKind, text string) (told []idem.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		if e.Kind == k && strings.Contains(fmt.Sprint(e.Err), text) {
			told = append(told, e)
		}
	}
	return told
}

// That a message waits for whoever holds its token, and goes on renewing it, is told once a
// lease.
func TestHeldElsewhereIsTold(t *testing.T) {
	for _, loop := range []bool{false, true} {
		for _, tt := range []struct {
			held time.Duration
			told int
		}{{lease / 2, 0}, {4*lease + lease/2, 4}} {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, consumers.Broker{})
				held, err := r.newGuard().Begin(t.Context(), "a")
				if err != nil {
					t.Fatal(err)
				}
				time.AfterFunc(tt.held, func() {
					if err := held.Release(context.Background()); err != nil {
						t.Error(err)
					}
				})
				if loop {
					if err := r.engine(r.guard).Handle(t.Context(), r.delivery(1, "a", fine)); err != nil {
						t.Error(err)
					}
				} else {
					r.b.publish("a")
					stop := r.start(fine)
					time.Sleep(time.Minute)
					r.mustStop(stop)
				}
				r.wantSettled("ack 1")
				told := r.eventsOf(idem.EventWaiting, "somebody else")
				if len(told) != tt.told {
					t.Fatalf("told %d times where the token is held for %v, want %d", len(told), tt.held, tt.told)
				}
				for i, e := range told {
					least := time.Duration(i+1) * lease
					if e.Token != "a" || e.Wait < least || e.Wait > least+lease/2 || !strings.Contains(e.Err.Error(), "message 1") {
						t.Errorf("%d: %+v", i, e)
					}
				}
			})
		}
	}
}

// That a handler goes on though its context has ended is told once, a lease later: its message
// is waited for, and nobody else knows why.
func TestHandlerOutlivesItsContext(t *testing.T) {
	for _, loop := range []bool{false, true} {
		for _, tt := range []struct {
			outlives time.Duration
			timeout  time.Duration // of the handler, much later
			told     int
		}{{lease / 2, 0, 0}, {10 * lease, 0, 1}, {10 * lease, time.Hour, 1}} {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, consumers.Broker{})
				var opts []consumers.Option
				if tt.timeout > 0 {
					opts = append(opts, consumers.HandlerTimeout(tt.timeout))
				}
				first := true
				h := func(ctx context.Context, _ *delivery) error {
					if !first {
						return nil
					}
					first = false
					time.Sleep(4 * lease) // that is long, and nothing to tell of
					r.store.Set(storefault.Away)
					<-ctx.Done()
					r.store.Set(storefault.None)
					time.Sleep(tt.outlives)
					return ctx.Err()
				}
				if loop {
					if err := r.engine(r.guard, opts...).Handle(t.Context(), r.delivery(1, "a", h)); err != nil {
						t.Error(err)
					}
				} else {
					r.b.publish("a")
					stop := r.start(h, opts...)
					time.Sleep(30 * lease)
					r.mustStop(stop)
				}
				r.wantSettled("ack 1")
				told := r.eventsOf(idem.EventStuck, "")
				if len(told) != tt.told {
					t.Fatalf("told %d times where the handler outlives its context by %v, want %d", len(told), tt.outlives, tt.told)
				}
				for _, e := range told {
					if e.Token != "a" || e.Wait != lease {
						t.Errorf("%+v", e)
					}
				}
			})
		}
	}
}

// That the broker does not take extensions is told once, not at each.
func TestFailedExtensionIsTold(t *testing.T) {
	for _, loop := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, consumers.Broker{ExtendEvery: time.Second})
			r.b.extErr = errBoom
			h := func(context.Context, *delivery) error { time.Sleep(time.Minute + time.Second/2); return nil }
			if loop {
				if err := r.engine(r.guard).Handle(t.Context(), r.delivery(1, "a", h)); err != nil {
					t.Error(err)
				}
			} else {
				r.b.publish("a")
				stop := r.start(h)
				time.Sleep(2 * time.Minute)
				r.mustStop(stop)
			}
			told := r.eventsOf(idem.EventSettleFailed, "boom")
			if len(told) != 1 || told[0].Token != "a" || !strings.Contains(told[0].Err.Error(), "message 1") {
				t.Errorf("told %+v, want it once", told)
			}
		})
	}
}
