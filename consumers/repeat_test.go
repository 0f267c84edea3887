package consumers_test

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/internal/storefault"
)

// handlesAndLosesTheStore is a handler of "a" that takes long enough for what stands behind
// to be claimed ahead, and returns nil while the store is away.
func (r *rig) handlesAndLosesTheStore(_ context.Context, d *delivery) error {
	if d.Header(idem.Header)[0] == "a" {
		time.Sleep(time.Second)
		r.store.Set(storefault.Away)
	}
	return nil
}

// The lane does not stand still for repeats of a message whose completion is on its way:
// they are settled with it.
func TestRepeatsHoldUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{})
		r.b.publish("a", "a", "a", "b")
		stop := r.start(r.handlesAndLosesTheStore, consumers.WorkAhead(8))
		time.Sleep(2 * time.Second)
		r.wantHandled("a", "b")
		r.wantSettled()
		r.store.Set(storefault.None)
		time.Sleep(time.Minute)
		r.wantSettled("ack 1", "ack 2", "ack 3", "ack 4")
		r.wantHandled("a", "b")
		if n := r.count(idem.EventDuplicate); n != 2 {
			t.Errorf("told of %d duplicates, want 2", n)
		}
		r.mustStop(stop)
	})
}

// Repeats of a message that is not recorded as done by the end of the drain go back with it.
func TestRepeatsGoBackUnrecorded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{})
		r.b.publish("a", "a", "a", "b")
		stop := r.start(r.handlesAndLosesTheStore, consumers.WorkAhead(8), consumers.DrainTimeout(time.Second))
		time.Sleep(2 * time.Second)
		_ = stop()
		r.wantHandled("a", "b")
		for _, s := range r.b.settlements() {
			if s == "ack 1" || s == "ack 2" || s == "ack 3" {
				t.Errorf("%s, and the completion of a is not recorded", s)
			}
		}
		r.store.Set(storefault.None)
		time.Sleep(2 * lease)
		next := r.startWith(r.newGuard(), fine)
		time.Sleep(time.Minute)
		r.mustStop(next)
		again := r.seen()
		slices.Sort(again)
		if !slices.Equal(again, []string{"a", "a", "b", "b"}) {
			t.Errorf("handled %q, want each once more", r.seen())
		}
	})
}

// Repeats of a message whose completion is refused are asked for in their turn, behind it.
func TestRepeatsOfARefusedCompletion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{})
		r.b.publish("a", "a", "a", "b")
		taken := false
		stop := r.start(func(ctx context.Context, d *delivery) error {
			if d.Header(idem.Header)[0] == "a" && !taken {
				taken = true
				_ = r.handlesAndLosesTheStore(ctx, d)
				time.Sleep(2 * lease)
				if rep := elsewhere(r, store.Op{Kind: store.Begin, Group: "billing", Token: "a", Claim: "other"}); rep[0].Status != store.Claimed {
					t.Errorf("%+v", rep)
				}
				time.AfterFunc(time.Second, func() { // the repeats are parked by then
					elsewhere(r, store.Op{Kind: store.Release, Group: "billing", Token: "a", Claim: "other"})
					elsewhere(r, store.Op{Kind: store.Begin, Group: "billing", Token: "a", Claim: "third"})
					r.store.Set(storefault.None)
				})
				time.AfterFunc(time.Second+lease/2, func() {
					elsewhere(r, store.Op{Kind: store.Commit, Group: "billing", Token: "a", Claim: "third", Attempt: 3})
				})
			}
			return nil
		}, consumers.WorkAhead(8))
		time.Sleep(time.Hour)
		r.wantHandled("a", "b")
		r.wantSettled("ack 4", "ack 1", "ack 2", "ack 3")
		r.mustStop(stop)
	})
}

// Where the broker confirms acks, those of duplicates, of repeats and of what was handled
// travel side by side.
func TestConfirmedAcksOfDuplicates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{ConfirmsAcks: true})
		r.b.ackRTT = time.Second
		for _, token := range tokens(20) {
			c, err := r.guard.Begin(t.Context(), token)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		r.b.publish(tokens(20)...)
		r.b.publish("new", "new", "new", "new", "newer")
		stop := r.start(fine, consumers.WorkAhead(32))
		time.Sleep(2500 * time.Millisecond) // a repeat's ack goes out when that of the one before is through
		if n := len(r.b.settlements()); n != 25 {
			t.Errorf("%d of 25 messages are acked after two round trips", n)
		}
		r.wantHandled("new", "newer")
		r.mustStop(stop)
	})
}

// The drain waits for the acks of duplicates that are on their way.
func TestDrainWaitsForTheAcksOfDuplicates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{ConfirmsAcks: true})
		r.b.ackRTT = time.Second
		r.b.publish("a", "a", "a")
		stop := r.start(fine)
		time.Sleep(1500 * time.Millisecond) // the repeats' acks are under way
		r.mustStop(stop)
		all := r.b.settlements()
		if slices.Sort(all); !slices.Equal(all, []string{"ack 1", "ack 2", "ack 3"}) {
			t.Errorf("settlements %q, want three acks", all)
		}
	})
}
