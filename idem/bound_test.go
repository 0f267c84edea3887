package idem_test

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/memstore"
)

const bounding = 9 * time.Second // the lease in these tests

// watched is a store with something done before each trip.
type watched struct {
	store.Store
	before func(context.Context, *store.Batch) error
}

func (w watched) Apply(ctx context.Context, b *store.Batch) error {
	if err := w.before(ctx, b); err != nil {
		return err
	}
	return w.Store.Apply(ctx, b)
}

// prompt is one that says that its trips end in their time.
type prompt struct{ watched }

func (prompt) Bounded() bool { return true }

func boundGuard(prompts bool, lease time.Duration, before func(context.Context, *store.Batch) error) *idem.Guard {
	w := watched{memstore.New(), before}
	s := store.Store(w)
	if prompts {
		s = prompt{w}
	}
	return idem.New(idem.WithStore(s), idem.WithLease(lease)).Group("billing")
}

func does(b *store.Batch, k store.Kind) bool { return len(b.Ops) > 0 && b.Ops[0].Kind == k }

// A goroutine for a trip is spared only where whoever waits loses nothing by it.
func TestWhoMakesTheTrip(t *testing.T) {
	begin := func(ctx context.Context, g *idem.Guard) error {
		return g.BeginAll(ctx, []idem.Request{{Token: "a"}})[0].Err
	}
	commit := func(ctx context.Context, g *idem.Guard) error {
		return g.BeginAll(ctx, []idem.Request{{Token: "a"}})[0].Claim.Commit(ctx)
	}
	do := func(ctx context.Context, g *idem.Guard) error { return g.Do(ctx, "a", handled) }
	for _, tc := range []struct {
		name    string
		call    func(context.Context, *idem.Guard) error
		kind    store.Kind
		prompts bool
		forever bool // the context cannot be cancelled
		here    bool
		reason  string
	}{
		{"claim, for ever", begin, store.Begin, false, true, true, "it waits as long as the store takes"},
		{"claim", begin, store.Begin, true, false, true, "an end of the context lets it go soon"},
		{"claim, no deadlines", begin, store.Begin, false, false, false, "an end of the context could not let it go"},
		{"completion", commit, store.Commit, true, false, true, "likewise"},
		{"Do's completion", do, store.Commit, true, false, true, "likewise"},
		{"completion, no deadlines", commit, store.Commit, false, false, false, "the store may take longer than a lease"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var trips int
			var here bool // in the test's goroutine
			g := boundGuard(tc.prompts, bounding, func(_ context.Context, b *store.Batch) error {
				if does(b, tc.kind) {
					trips++
					here = strings.Contains(string(debug.Stack()), "testing.tRunner(")
				}
				return nil
			})
			ctx := t.Context()
			if tc.forever {
				ctx = context.Background()
			}
			if err := tc.call(ctx, g); err != nil {
				t.Fatal(err)
			}
			if trips != 1 || here != tc.here {
				t.Errorf("%d trips, here: %v, want %v: %s", trips, here, tc.here, tc.reason)
			}
		})
	}
}

// Whatever the store does, whoever waits is let go in time.
func TestWaitsEnd(t *testing.T) {
	hang := func(ctx context.Context, _ *store.Batch) error {
		<-ctx.Done()
		return fmt.Errorf("%w: %w", store.ErrUnavailable, ctx.Err())
	}
	deaf := func(context.Context, *store.Batch) error {
		time.Sleep(time.Hour)
		return store.ErrUnavailable
	}
	for _, tc := range []struct {
		name    string
		prompts bool
		fault   func(context.Context, *store.Batch) error
		claim   bool // waits for a claim, else for a completion
		lease   time.Duration
		cancel  time.Duration // after this
		atMost  time.Duration
		want    error
	}{
		{"claim, in a store that hangs", true, hang, true, bounding, time.Second, time.Second, context.Canceled},
		{"claim, in a store that hangs, soon", true, hang, true, bounding, time.Millisecond, 100 * time.Millisecond, context.Canceled},
		{"claim, in a store that hears nothing", false, deaf, true, bounding, time.Second, time.Second, context.Canceled},
		{"completion, in a store that hangs", true, hang, false, bounding, time.Second, bounding, context.DeadlineExceeded},
		{"completion, in a store that hears nothing", false, deaf, false, bounding, time.Second, bounding, context.DeadlineExceeded},
		{"completion, with a lease shorter than a trip", true, hang, false, 100 * time.Millisecond, time.Second, 100 * time.Millisecond, context.DeadlineExceeded},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var broken atomic.Bool
				g := boundGuard(tc.prompts, tc.lease, func(ctx context.Context, b *store.Batch) error {
					if broken.Load() {
						return tc.fault(ctx, b)
					}
					return nil
				})
				ctx, cancel := context.WithCancel(t.Context())
				broken.Store(tc.claim)
				start := time.Now()
				time.AfterFunc(tc.cancel, cancel)
				err := g.Do(ctx, "a", func(context.Context) error { broken.Store(true); return nil })
				if took := time.Since(start); err == nil || took > tc.atMost {
					t.Errorf("%v after %v, want an error within %v", err, took, tc.atMost)
				}
				if !errors.Is(err, tc.want) {
					t.Errorf("%v, want %v", err, tc.want)
				}
				time.Sleep(2 * time.Hour) // what is on its way
			})
		})
	}
}

// Who makes a trip itself is not kept for those who come meanwhile, and they do not wait
// for a slower trip beside it.
func TestNobodyTravelsForOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := boundGuard(true, bounding, func(_ context.Context, b *store.Batch) error {
			switch {
			case does(b, store.Commit):
				time.Sleep(40 * time.Millisecond)
			case strings.HasPrefix(b.Ops[0].Token, "slow"):
				time.Sleep(2 * time.Second)
			case b.Ops[0].Token == "late":
				time.Sleep(time.Second)
			}
			return nil
		})
		c := begin(t, g, "a")
		start := time.Now()
		for token, after := range map[string]time.Duration{ // beside the first trip, three more may be made
			"slow 1": 10 * time.Millisecond, "slow 2": 11 * time.Millisecond, "slow 3": 12 * time.Millisecond, "late": 20 * time.Millisecond,
		} {
			time.AfterFunc(after, func() {
				begun := g.BeginAll(t.Context(), []idem.Request{{Token: token}})[0]
				if begun.Err != nil {
					t.Errorf("%s: %v", token, begun.Err)
					return
				}
				if took := time.Since(start); token == "late" && took != 1040*time.Millisecond {
					t.Errorf("the late one was answered after %v, want a second after the first trip, which took 40 ms", took)
				}
				begun.Claim.Abandon()
			})
		}
		if err := c.Commit(t.Context()); err != nil {
			t.Error(err)
		}
		if took := time.Since(start); took != 40*time.Millisecond {
			t.Errorf("the completion took %v, its trip 40 ms", took)
		}
		time.Sleep(time.Minute)
	})
}

// A caller's own trip that takes too long is made again by somebody else, under the same
// claim id, and nobody hears of it; for one lease callers make none.
func TestSlowStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var trips []string
		claims := map[string]bool{}
		slow := true
		var mu sync.Mutex
		w := watched{memstore.New(), func(ctx context.Context, b *store.Batch) error {
			mu.Lock()
			for _, op := range b.Ops {
				trips = append(trips, map[store.Kind]string{store.Begin: "b", store.Commit: "c"}[op.Kind])
				claims[op.Claim] = true
			}
			takes := time.Duration(0)
			if slow {
				takes = 500 * time.Millisecond
			}
			mu.Unlock()
			select {
			case <-time.After(takes):
				return nil
			case <-ctx.Done():
				return fmt.Errorf("%w: %w", store.ErrUnavailable, ctx.Err())
			}
		}}
		g := idem.New(idem.WithStore(prompt{w}), idem.WithLease(bounding), idem.WithObserver(idem.ObserverFunc(func(e idem.Event) {
			if e.Kind == idem.EventStoreDown {
				t.Errorf("the store counts as away: %v", e.Err)
			}
		}))).Group("billing")
		for _, step := range []struct {
			slow   bool
			after  time.Duration
			trips  string
			reason string
		}{
			{true, 0, "bbc", "the claim is asked for again, and the store is known to be slow then"},
			{true, 0, "bc", "it is known for a lease"},
			{true, bounding + time.Second, "bbc", "and then tried again"},
			{false, bounding + time.Second, "bc", "a quick one needs no second trip"},
		} {
			time.Sleep(step.after)
			mu.Lock()
			slow, trips = step.slow, nil
			clear(claims)
			mu.Unlock()
			if err := g.Do(t.Context(), idem.NewToken(), handled); err != nil {
				t.Fatal(err)
			}
			mu.Lock()
			if got := strings.Join(trips, ""); got != step.trips || len(claims) != 1 {
				t.Errorf("trips %s with %d claim ids, want %s with one: %s", got, len(claims), step.trips, step.reason)
			}
			mu.Unlock()
		}
	})
}

// Trips share their contexts, and each has its time all the same.
func TestTripsHaveTheirTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var hangs atomic.Bool
		g := boundGuard(false, bounding, func(ctx context.Context, _ *store.Batch) error {
			const trip = bounding / 3
			if end, ok := ctx.Deadline(); !ok || time.Until(end) > trip || time.Until(end) < trip*15/16 {
				t.Errorf("a trip has %v, want %v or little less", time.Until(end), trip)
			}
			if hangs.Load() {
				part, cancel := context.WithCancel(ctx) // as drivers do
				defer cancel()
				<-part.Done()
				return fmt.Errorf("%w: %w", store.ErrUnavailable, part.Err())
			}
			return nil
		})
		for range 500 {
			if err := g.Do(t.Context(), idem.NewToken(), handled); err != nil {
				t.Fatal(err)
			}
			time.Sleep(37 * time.Millisecond)
		}
		hangs.Store(true)
		if _, err := g.Begin(t.Context(), "a"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v, want the trip's deadline", err)
		}
		hangs.Store(false)
		time.Sleep(time.Minute)
	})
}

// The end of a claim is tried under a context that outlives the caller's, and has its values.
func TestEndHasTheValuesOfItsContext(t *testing.T) {
	type key struct{}
	synctest.Test(t, func(t *testing.T) {
		g := boundGuard(false, bounding, func(context.Context, *store.Batch) error { return nil })
		ctx, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "traced"))
		tries := 0
		err := g.Do(ctx, "a", func(ctx context.Context) error {
			c, _ := idem.FromContext(ctx)
			err := c.CommitWith(ctx, func(ctx context.Context, s store.Store, b *store.Batch) error {
				if tries++; tries == 1 {
					return errBoom
				}
				if ctx.Err() != nil || ctx.Value(key{}) != "traced" {
					t.Errorf("the completion's context: %v, value %v", ctx.Err(), ctx.Value(key{}))
				}
				return s.Apply(ctx, b)
			})
			if !errors.Is(err, errBoom) {
				t.Errorf("CommitWith: %v", err)
			}
			cancel()
			return nil
		})
		if err != nil || tries != 2 {
			t.Errorf("Do: %v, after %d tries", err, tries)
		}
	})
}

// The timer of the renewals runs on when a claim ends: the next claim is renewed in time
// wherever in a tick it was made, and after a pause.
func TestRenewalsAfterOtherClaims(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const tick = bounding / 6
		var renewed atomic.Int64
		g := boundGuard(false, bounding, func(_ context.Context, b *store.Batch) error {
			if does(b, store.Renew) {
				renewed.Store(time.Now().UnixNano())
			}
			return nil
		})
		for _, after := range []time.Duration{0, tick / 3, tick - time.Millisecond, tick, tick + time.Millisecond, time.Hour} {
			if err := g.Do(t.Context(), idem.NewToken(), handled); err != nil {
				t.Fatal(err)
			}
			time.Sleep(after)
			c := begin(t, g, idem.NewToken())
			made := time.Now()
			for range 40 { // others come and go meanwhile
				if err := g.Do(t.Context(), idem.NewToken(), handled); err != nil {
					t.Fatal(err)
				}
				time.Sleep(bounding / 3 / 40)
			}
			time.Sleep(time.Millisecond)
			if renewed.Load() <= made.UnixNano() {
				t.Errorf("a claim made %v after the last one ended is not renewed within a third of its lease", after)
			}
			if err := c.Commit(t.Context()); err != nil {
				t.Error(err)
			}
		}
	})
}
