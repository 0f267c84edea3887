package consumers_test

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/internal/storefault"
)

// A storm of messages that this consumer completed is acked without a trip, also while the
// store is away, and none of them is handled.
func TestNearCacheStorm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, deadLetters, idem.WithNearCache(1000, time.Hour))
		var tokens, acks []string
		for i := range 200 {
			tokens = append(tokens, fmt.Sprint("token ", i))
		}
		r.b.publish(tokens...)
		stop := r.start(fine)
		time.Sleep(time.Minute)
		r.wantHandled(tokens...)
		trips := r.store.Trips()
		r.store.Set(storefault.Away)
		r.b.publish(tokens...)
		time.Sleep(time.Minute)
		for i := range 2 * len(tokens) {
			acks = append(acks, fmt.Sprint("ack ", i+1))
		}
		got := r.b.settlements()
		slices.Sort(got)
		slices.Sort(acks)
		if !slices.Equal(got, acks) {
			t.Errorf("settlements %q", got)
		}
		if n := r.store.Trips() - trips; n != 0 {
			t.Errorf("%d trips for %d duplicates, want none", n, len(tokens))
		}
		if n := r.count(idem.EventDuplicate); n != len(tokens) {
			t.Errorf("told of %d duplicates, want %d", n, len(tokens))
		}
		r.store.Set(storefault.None)
		r.wantHandled(tokens...)
		r.mustStop(stop)
	})
}

// A dead-lettered message that is delivered again is terminated as before; moved back, it is
// handled; once that is done, its copies of either kind are duplicates.
func TestNearCacheRedrive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, deadLetters, idem.WithNearCache(1000, time.Hour))
		r.b.publish("a")
		stop := r.start(failing(1, idem.Permanent(errBoom)))
		time.Sleep(time.Minute)
		r.wantSettled("term 1")
		for range 2 {
			r.b.publish("a")
			time.Sleep(time.Minute)
		}
		r.wantSettled("term 1", "term 2", "term 3")
		r.b.moveBack(r.b.posted()[0])
		time.Sleep(time.Minute)
		r.wantHandled("a", "a")
		r.b.moveBack(r.b.posted()[0])
		r.b.publish("a")
		time.Sleep(time.Minute)
		r.wantSettled("term 1", "term 2", "term 3", "ack 4", "ack 5", "ack 6")
		r.wantHandled("a", "a")
		r.mustStop(stop)
	})
}

// Consumers that compare payloads, or that spend tokens, go on asking the store.
func TestNearCacheIsNotAsked(t *testing.T) {
	for name, tc := range map[string]struct {
		option consumers.Option
		kind   store.Kind
	}{
		"fingerprints": {consumers.Fingerprints(), store.Begin},
		"at most once": {consumers.AtMostOnce(), store.Spend},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, deadLetters, idem.WithNearCache(1000, time.Hour))
				stop := r.start(fine, tc.option)
				for range 3 {
					r.b.publish("a")
					time.Sleep(time.Minute)
				}
				if n := len(r.store.Ops(tc.kind)); n != 3 {
					t.Errorf("the store was asked %d times, want 3", n)
				}
				r.wantHandled("a")
				r.mustStop(stop)
			})
		})
	}
}
