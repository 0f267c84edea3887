package idem_test

import (
	"context"
	"errors"
	"log/slog"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/memstore"
	"github.com/idemq/idemq/internal/storefault"
)

var errBoom = errors.New("boom")

// newGuard makes a guard on memory, with faults to inject, for one group.
func newGuard(opts ...idem.Option) (*idem.Guard, *storefault.Store) {
	s := storefault.New(memstore.New())
	opts = append([]idem.Option{idem.WithStore(s), idem.WithLease(9 * time.Second)}, opts...)
	return idem.New(opts...).Group("billing"), s
}

func inspect(t *testing.T, g *idem.Guard, token string) idem.Record {
	t.Helper()
	r, err := g.Inspect(context.Background(), token)
	if err != nil {
		t.Fatalf("Inspect: %v", err)
	}
	return r
}

func begin(t *testing.T, g *idem.Guard, token string, opts ...idem.ClaimOption) *idem.Claim {
	t.Helper()
	c, err := g.Begin(t.Context(), token, opts...)
	if err != nil {
		t.Fatalf("Begin(%q): %v", token, err)
	}
	return c
}

func TestDoHandlesOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _ := newGuard()
		runs := 0
		fn := func(ctx context.Context) error {
			runs++
			c, ok := idem.FromContext(ctx)
			if !ok || c.Token() != "a" || c.Attempt() != 1 {
				t.Errorf("FromContext: %v, %v", c, ok)
			}
			c.SetResult([]byte("receipt 7"))
			return nil
		}
		if err := g.Do(t.Context(), "a", fn); err != nil {
			t.Fatal(err)
		}
		err := g.Do(t.Context(), "a", fn)
		var dup *idem.DuplicateError
		if !errors.As(err, &dup) || !errors.Is(err, idem.ErrDuplicate) || !idem.Done(err) {
			t.Fatalf("second Do: %v, want a duplicate", err)
		}
		if dup.Attempt != 1 || string(dup.Result) != "receipt 7" || dup.At.IsZero() || dup.Dead {
			t.Errorf("duplicate: %+v", dup)
		}
		if runs != 1 {
			t.Errorf("handled %d times", runs)
		}
		if err := g.Group("shipping").Do(t.Context(), "a", func(context.Context) error { return nil }); err != nil {
			t.Errorf("another group: %v, want it to handle the message itself", err)
		}
	})
}

func TestDoEndsTheClaimByWhatTheHandlerDid(t *testing.T) {
	lost := func(g *idem.Guard, s *storefault.Store) func(context.Context) error {
		return func(ctx context.Context) error {
			s.Set(storefault.Away)
			<-ctx.Done()
			s.Set(storefault.None)
			return ctx.Err()
		}
	}
	for _, tc := range []struct {
		name   string
		fn     func(*idem.Guard, *storefault.Store) func(context.Context) error
		spent  int
		state  store.State
		reason string
	}{
		{"error", func(*idem.Guard, *storefault.Store) func(context.Context) error {
			return func(context.Context) error { return errBoom }
		}, 1, store.Released, "a handler's error spends budget"},
		{"retry after", func(*idem.Guard, *storefault.Store) func(context.Context) error {
			return func(context.Context) error { return idem.RetryAfter(errBoom, time.Second) }
		}, 0, store.Released, "not the message's fault"},
		{"lease lost", lost, 0, store.Released, "a store outage is not the message's fault"},
		{"panic", func(*idem.Guard, *storefault.Store) func(context.Context) error {
			return func(context.Context) error { panic(errBoom) }
		}, 1, store.Released, "a panic is a failure that can be told at once"},
		{"goexit", func(*idem.Guard, *storefault.Store) func(context.Context) error {
			return func(context.Context) error { runtime.Goexit(); return nil }
		}, 1, store.Released, "a test's FailNow must not hold the claim for a lease"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, s := newGuard()
				done := make(chan struct{})
				go func() {
					defer close(done)
					defer func() {
						if r := recover(); r != nil && r != errBoom {
							t.Errorf("recovered %v, want the handler's own panic", r)
						} else if tc.name == "panic" && r == nil {
							t.Error("the panic did not go on")
						}
					}()
					if err := g.Do(t.Context(), "a", tc.fn(g, s)); err == nil {
						t.Error("Do returned nil")
					}
				}()
				<-done
				r := inspect(t, g, "a")
				if r.State != tc.state || r.Spent != tc.spent || r.Attempt != 1 {
					t.Errorf("%s: record %+v", tc.reason, r)
				}
				if c := begin(t, g, "a"); c.Attempt() != 2 || c.Spent() != tc.spent {
					t.Errorf("next claim: attempt %d, spent %d", c.Attempt(), c.Spent())
				}
			})
		})
	}
}

// An inner guard's answer must not ack the outer message.
func TestHandlersDuplicateIsTheHandlers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _ := newGuard()
		inner := g.Group("inner")
		if err := inner.Do(t.Context(), "a", func(context.Context) error { return nil }); err != nil {
			t.Fatal(err)
		}
		err := g.Do(t.Context(), "a", func(ctx context.Context) error {
			return errors.Join(errBoom, inner.Do(ctx, "a", nil))
		})
		var dup *idem.DuplicateError
		if idem.Done(err) || errors.Is(err, idem.ErrDuplicate) || errors.As(err, &dup) {
			t.Errorf("%v: taken for the outer guard's own duplicate", err)
		}
		if !errors.Is(err, errBoom) {
			t.Errorf("%v: lost the handler's error", err)
		}
	})
}

func TestClaimIsRenewedUntilItEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, s := newGuard()
		other := idem.New(idem.WithStore(s), idem.WithLease(9*time.Second)).Group("billing")
		c := begin(t, g, "a")
		for range 100 {
			time.Sleep(time.Second)
			_, err := other.Begin(t.Context(), "a")
			var busy *idem.InProgressError
			if !errors.As(err, &busy) || busy.RetryAfter <= 0 || busy.RetryAfter > 9*time.Second {
				t.Fatalf("Begin elsewhere: %v, want in progress", err)
			}
			if busy.RetryAfter < 6*time.Second-time.Millisecond {
				t.Fatalf("the lease was not renewed for a third of it: %v left", busy.RetryAfter)
			}
		}
		if err := c.Context().Err(); err != nil {
			t.Fatalf("the claim's context ended: %v", err)
		}
		if err := c.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		trips := s.Trips()
		time.Sleep(time.Minute)
		if n := s.Trips() - trips; n != 0 {
			t.Errorf("%d trips after the claim had ended", n)
		}
		if err := c.Commit(t.Context()); !errors.Is(err, idem.ErrClaimEnded) {
			t.Errorf("second Commit: %v", err)
		}
		if c.Context().Err() == nil {
			t.Error("the claim's context outlives it")
		}
	})
}

func TestAllClaimsAreRenewedInOneTrip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, s := newGuard()
		reqs := make([]idem.Request, 100)
		for i := range reqs {
			reqs[i].Token = idem.NewToken()
		}
		begun := g.BeginAll(t.Context(), reqs)
		claims := make([]*idem.Claim, len(begun))
		for i, b := range begun {
			if b.Err != nil {
				t.Fatal(b.Err)
			}
			claims[i] = b.Claim
		}
		if n := s.Trips(); n != 1 {
			t.Errorf("%d trips for 100 claims", n)
		}
		time.Sleep(9*time.Second + time.Millisecond)
		if n := s.Trips() - 1; n < 3 || n > 6 {
			t.Errorf("%d trips for the renewals of one lease, want one each sixth to third", n)
		}
		before := s.Trips()
		for _, err := range g.CommitAll(t.Context(), claims) {
			if err != nil {
				t.Fatal(err)
			}
		}
		if n := s.Trips() - before; n != 1 {
			t.Errorf("%d trips for 100 commits", n)
		}
	})
}

func TestConcurrentCallsShareTrips(t *testing.T) {
	g, s := newGuard()
	s.On(func(*store.Batch) storefault.Fault { runtime.Gosched(); return storefault.None })
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			for range 50 {
				if err := g.Do(t.Context(), idem.NewToken(), func(context.Context) error { return nil }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n := s.Trips(); n > 64*50 {
		t.Errorf("%d trips for %d operations: calls do not share them", n, 2*64*50)
	}
}

// Stores keep of a done token's claim no more than six digits.
func TestClaimIDsEndInACount(t *testing.T) {
	shape := regexp.MustCompile(`^[\w-]{12}\d{7,}$`)
	seen, ends := map[string]bool{}, map[string]bool{}
	for range 8 {
		g, s := newGuard()
		s.On(func(b *store.Batch) storefault.Fault {
			id := b.Ops[0].Claim
			if !shape.MatchString(id) || seen[id] {
				t.Errorf("%q after %v", id, seen)
			}
			seen[id], ends[id[len(id)-6:]] = true, true
			return storefault.None
		})
		for range 2 {
			begin(t, g, idem.NewToken()).Abandon()
		}
	}
	if len(seen) != 16 || len(ends) < 12 {
		t.Errorf("%d claims, and %d ends of their ids: guards count from the same number", len(seen), len(ends))
	}
}

func TestLostLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, s := newGuard()
		other := idem.New(idem.WithStore(s.Store), idem.WithLease(9*time.Second)).Group("billing")
		c := begin(t, g, "a")
		s.Set(storefault.Away) // renewals are cut off
		start := time.Now()
		<-c.Context().Done()
		if cause := context.Cause(c.Context()); !errors.Is(cause, idem.ErrLeaseLost) {
			t.Errorf("cause %v, want ErrLeaseLost", cause)
		}
		if d := time.Since(start); d > 9*time.Second {
			t.Errorf("the loss was noticed after %v, later than the lease", d)
		}
		usurper := begin(t, other, "a")
		if usurper.Attempt() != 2 || usurper.Spent() != 1 {
			t.Errorf("takeover: attempt %d, spent %d, want 2 and 1", usurper.Attempt(), usurper.Spent())
		}
		s.Set(storefault.None)
		if err := c.Commit(t.Context()); !errors.Is(err, idem.ErrLeaseLost) {
			t.Errorf("the loser's commit: %v, want ErrLeaseLost", err)
		}
		if r := inspect(t, other, "a"); r.State != store.Running {
			t.Errorf("the loser changed the record: %+v", r)
		}
		if err := usurper.Commit(t.Context()); err != nil {
			t.Errorf("the winner's commit: %v", err)
		}
	})
}

func TestCommitAfterTheLeaseRanOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, s := newGuard()
		c := begin(t, g, "a")
		s.Set(storefault.Away)
		<-c.Context().Done()
		time.Sleep(time.Hour)
		s.Set(storefault.None)
		if err := c.Commit(t.Context()); err != nil {
			t.Errorf("nobody took over, the effect happened: %v", err)
		}
		if r := inspect(t, g, "a"); r.State != store.Done || r.Attempt != 1 {
			t.Errorf("record %+v", r)
		}
	})
}

// The holder checks its clock before it starts: a claim that waited longer than its
// lease is not started.
func TestStartChecksTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, s := newGuard()
		c := g.BeginAll(t.Context(), []idem.Request{{Token: "a"}})[0].Claim
		s.Set(storefault.Hang)
		time.Sleep(9 * time.Second)
		if _, err := c.Start(t.Context()); !errors.Is(err, idem.ErrLeaseLost) {
			t.Errorf("Start: %v, want ErrLeaseLost", err)
		}
		s.Set(storefault.None)
		if err := c.GiveBack(t.Context()); err != nil {
			t.Errorf("GiveBack under the own id: %v", err)
		}
		time.Sleep(time.Minute) // the hanging renewal
	})
}

func TestOneRunAtATimeInAGuard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, s := newGuard()
		c := begin(t, g, "a")
		s.Set(storefault.Away)
		<-c.Context().Done() // lost, and its handler has not returned
		s.Set(storefault.None)
		time.Sleep(time.Minute)
		trips := s.Trips()
		if _, err := g.Begin(t.Context(), "a"); !errors.Is(err, idem.ErrInProgress) {
			t.Errorf("Begin beside a stale run: %v, want ErrInProgress", err)
		}
		if _, err := g.Group("shipping").Begin(t.Context(), "a"); err != nil {
			t.Errorf("another group's claim: %v", err)
		}
		if n := s.Trips() - trips; n != 1 {
			t.Errorf("%d trips, want only the other group's", n)
		}
		_ = c.GiveBack(t.Context())
		begin(t, g, "a")
	})
}

func TestBeginsContextEndsTheClaim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, s := newGuard()
		ctx, cancel := context.WithCancel(t.Context())
		c, err := g.Begin(ctx, "a")
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		synctest.Wait()
		trips := s.Trips()
		time.Sleep(10 * time.Second)
		if n := s.Trips() - trips; n != 0 {
			t.Errorf("%d renewals after the owner's context ended", n)
		}
		if next := begin(t, g, "a"); next.Attempt() != 2 {
			t.Errorf("attempt %d after the lease ran out, want 2", next.Attempt())
		}
		if err := c.Commit(t.Context()); !errors.Is(err, idem.ErrLeaseLost) {
			t.Errorf("Commit beside the next claim: %v", err)
		}
		if _, err := g.Begin(t.Context(), "a"); !errors.Is(err, idem.ErrInProgress) {
			t.Errorf("the old claim's end let go of the next one's token: %v", err)
		}
	})
}

// The ordinary way to call it: one context for Begin and Commit, which ends in
// between.
func TestCommitAfterBeginsContextEnded(t *testing.T) {
	for _, after := range []time.Duration{time.Second, time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			g, _ := newGuard()
			ctx, cancel := context.WithCancel(t.Context())
			c, err := g.Begin(ctx, "a")
			if err != nil {
				t.Fatal(err)
			}
			cancel()
			time.Sleep(after)
			if err := c.Commit(ctx); err != nil {
				t.Errorf("after %v: Commit: %v", after, err)
			}
			if r := inspect(t, g, "a"); r.State != store.Done {
				t.Errorf("after %v: record %+v", after, r)
			}
			time.Sleep(time.Minute)
		})
	}
}

// Under a crowd, what ends and keeps claims goes before what asks for new ones: else
// effects would go unrecorded and leases would run out.
func TestCrowdBeforeASlowStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, s := newGuard()
		s.Delay(time.Second)
		var wg sync.WaitGroup
		for range 40_000 {
			wg.Go(func() {
				if err := g.Do(t.Context(), idem.NewToken(), func(ctx context.Context) error {
					time.Sleep(100 * time.Millisecond)
					return context.Cause(ctx)
				}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		time.Sleep(5 * time.Second) // renewals that were on their way
	})
}

// A lost reply spends nothing: who got no answer gives back what may have been
// claimed.
func TestFailedBeginIsGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, s := newGuard()
		s.Once(store.Begin, storefault.Swallow)
		if _, err := g.Begin(t.Context(), "a"); !errors.Is(err, store.ErrUnavailable) {
			t.Fatalf("Begin: %v", err)
		}
		time.Sleep(time.Second)
		if r := inspect(t, g, "a"); r.State != store.Released || r.Spent != 0 {
			t.Errorf("record %+v", r)
		}
	})
}

func TestRetryUnderAnEndedContextReleases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _ := newGuard()
		c := begin(t, g, "a")
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := c.Retry(ctx, false, idem.Request{}); !errors.Is(err, context.Canceled) {
			t.Fatalf("Retry: %v", err)
		}
		time.Sleep(time.Second)
		if r := inspect(t, g, "a"); r.State != store.Released || r.Spent != 0 {
			t.Errorf("record %+v, want it given back", r)
		}
		begin(t, g, "a")
	})
}

// A handler cannot end the claim that it runs under: its result would then be taken
// for that of a claim that is gone.
func TestHandlersClaimIsBorrowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _ := newGuard()
		err := g.Do(t.Context(), "a", func(ctx context.Context) error {
			c, _ := idem.FromContext(ctx)
			_, retryErr := c.Retry(ctx, true, idem.Request{})
			for _, err := range []error{c.Commit(ctx), c.Release(ctx), c.GiveBack(ctx), c.Bury(ctx), retryErr} {
				if !errors.Is(err, idem.ErrClaimBorrowed) {
					t.Errorf("a handler ended its claim: %v", err)
				}
			}
			c.Abandon()
			c.StopRenewing()
			c.SetResult([]byte("kept"))
			time.Sleep(time.Minute)
			return context.Cause(ctx)
		})
		if err != nil {
			t.Error(err)
		}
		if r := inspect(t, g, "a"); r.State != store.Done || string(r.Result) != "kept" {
			t.Errorf("record %+v", r)
		}
		own := begin(t, g, "b")
		if c, ok := idem.FromContext(own.Context()); !ok || c != own {
			t.Error("Begin's claim is its caller's")
		}
	})
}

// A driver that breaks the rules is an error, not a crash, nor a success.
func TestFaultyDriver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &faultyDriver{Store: memstore.New()}
		g := idem.New(idem.WithStore(s)).Group("billing")
		c := begin(t, g, "a")
		s.zero = true
		if err := c.Commit(t.Context()); err == nil {
			t.Error("a reply without a status was taken for success")
		}
		s.zero, s.short = false, true
		if err := c.Commit(t.Context()); err == nil {
			t.Error("no reply was taken for success")
		}
		s.short = false
		if err := c.Commit(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

type faultyDriver struct {
	store.Store
	zero, short bool
}

func (s *faultyDriver) Apply(ctx context.Context, b *store.Batch) error {
	err := s.Store.Apply(ctx, b)
	if s.zero {
		clear(b.Replies)
	}
	if s.short {
		b.Replies = nil
	}
	return err
}

func TestFailOpenStartsAfterARefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, s := newGuard()
		s.Set(storefault.Refuse)
		time.AfterFunc(5*time.Minute, func() { s.Set(storefault.Away) })
		start := time.Now()
		b := g.BeginAll(t.Context(), []idem.Request{{Token: "a", Patient: true, FailOpen: time.Minute}})[0]
		if d := time.Since(start); !errors.Is(b.Err, store.ErrUnavailable) || d < 6*time.Minute {
			t.Errorf("%v after %v: the store refused until five minutes, and was out of reach for less than one", b.Err, d)
		}
		s.Set(storefault.None)
		time.Sleep(time.Minute)
	})
}

// Shutdown strands no finished work.
func TestCommitUnderACancelledContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _ := newGuard()
		ctx, cancel := context.WithCancel(t.Context())
		err := g.Do(ctx, "a", func(context.Context) error { cancel(); return nil })
		if err != nil {
			t.Errorf("Do: %v", err)
		}
		if r := inspect(t, g, "a"); r.State != store.Done {
			t.Errorf("record %+v, want done", r)
		}
		c := begin(t, g, "b")
		if err := c.Commit(ctx); err != nil {
			t.Errorf("Commit: %v", err)
		}
	})
}

func TestDoWithTheStoreGoneAfterTheEffect(t *testing.T) {
	for _, away := range []time.Duration{5 * time.Second, time.Hour} {
		t.Run(away.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, s := newGuard()
				start := time.Now()
				time.AfterFunc(away, func() { s.Set(storefault.None) })
				err := g.Do(t.Context(), "a", func(context.Context) error { s.Set(storefault.Away); return nil })
				switch took := time.Since(start); {
				case away < 9*time.Second && err != nil:
					t.Errorf("the store was back within the lease: %v", err)
				case away > 9*time.Second && (err == nil || !strings.Contains(err.Error(), "not recorded")):
					t.Errorf("error %v, want one that says what happened", err)
				case away > 9*time.Second && took > 10*time.Second:
					t.Errorf("Do tried for %v, longer than a lease", took)
				}
				time.Sleep(2 * time.Hour) // whatever was still on its way
			})
		})
	}
}

func TestPatientBeginWaitsForTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var events []idem.EventKind
		var mu sync.Mutex
		g, s := newGuard(idem.WithObserver(idem.ObserverFunc(func(e idem.Event) {
			mu.Lock()
			defer mu.Unlock()
			if e.Kind == idem.EventStoreDown || e.Kind == idem.EventStoreUp {
				events = append(events, e.Kind)
			}
		})))
		s.Set(storefault.Away)
		const away = 10 * time.Minute
		time.AfterFunc(away, func() { s.Set(storefault.None) })
		start := time.Now()
		reqs := make([]idem.Request, 200)
		for i := range reqs {
			reqs[i] = idem.Request{Token: idem.NewToken(), Patient: true}
		}
		var wg sync.WaitGroup
		for _, r := range reqs { // 200 callers, as from as many lanes
			wg.Go(func() {
				b := g.BeginAll(t.Context(), []idem.Request{r})[0]
				if b.Err != nil {
					t.Error(b.Err)
				} else if err := b.Claim.Commit(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if d := time.Since(start) - away; d < 0 || d > 3*time.Second {
			t.Errorf("answered %v after the store came back", d)
		}
		if n := s.Trips(); n > int(away/time.Second) {
			t.Errorf("%d trips in %v: it spins", n, away)
		}
		ids := map[string]bool{}
		for _, op := range s.Ops(store.Begin) {
			ids[op.Claim] = true
		}
		if len(ids) != len(reqs) {
			t.Errorf("%d claim ids for %d requests: an id must be kept until it is answered", len(ids), len(reqs))
		}
		mu.Lock()
		defer mu.Unlock()
		if !slices.Equal(events, []idem.EventKind{idem.EventStoreDown, idem.EventStoreUp}) {
			t.Errorf("events %v, want one outage", events)
		}
	})
}

func TestFailOpenIsForAStoreOutOfReachOnly(t *testing.T) {
	for fault, opens := range map[storefault.Fault]bool{storefault.Away: true, storefault.Refuse: false} {
		synctest.Test(t, func(t *testing.T) {
			g, s := newGuard()
			s.Set(fault)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
			defer cancel()
			start := time.Now()
			b := g.BeginAll(ctx, []idem.Request{{Token: "a", Patient: true, FailOpen: time.Minute}})[0]
			took := time.Since(start)
			switch {
			case opens && (!errors.Is(b.Err, store.ErrUnavailable) || took < time.Minute || took > 63*time.Second):
				t.Errorf("out of reach: %v after %v, want ErrUnavailable after a minute", b.Err, took)
			case !opens && (!errors.Is(b.Err, context.DeadlineExceeded)):
				t.Errorf("refused: %v after %v, want to wait on", b.Err, took)
			}
			if opens { // the outage is known now
				start = time.Now()
				b = g.BeginAll(ctx, []idem.Request{{Token: "b", Patient: true, FailOpen: time.Minute}})[0]
				if !errors.Is(b.Err, store.ErrUnavailable) || time.Since(start) > time.Second {
					t.Errorf("the next one: %v after %v", b.Err, time.Since(start))
				}
			}
			s.Set(storefault.None)
			time.Sleep(time.Minute)
		})
	}
}

// The same while the trip is under way: the answer comes to nobody.
func TestAbandonedInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, s := newGuard()
		s.Delay(2 * time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := g.Begin(ctx, "a"); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("Begin: %v", err)
		}
		time.Sleep(time.Minute)
		if r := inspect(t, g, "a"); r.State != store.Released || r.Spent != 0 {
			t.Errorf("record %+v, want the claim given back", r)
		}
	})
}

// A claim made ahead is started long after, when it was renewed in between.
func TestStartAfterRenewals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _ := newGuard()
		c := g.BeginAll(t.Context(), []idem.Request{{Token: "a"}})[0].Claim
		time.Sleep(time.Minute)
		if _, err := c.Start(t.Context()); err != nil {
			t.Errorf("Start: %v", err)
		}
		if err := c.Commit(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// A caller that gives up has its claim given back, uncounted.
func TestAbandonedBeginIsGivenBack(t *testing.T) {
	for _, fault := range []storefault.Fault{storefault.Swallow, storefault.Away} {
		synctest.Test(t, func(t *testing.T) {
			g, s := newGuard()
			s.Set(fault)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			b := g.BeginAll(ctx, []idem.Request{{Token: "a", Patient: true}})[0]
			if !errors.Is(b.Err, context.DeadlineExceeded) {
				t.Fatalf("Begin: %v", b.Err)
			}
			s.Set(storefault.None)
			time.Sleep(3 * time.Second)
			r := inspect(t, g, "a")
			if r.State == store.Running || r.Spent != 0 {
				t.Errorf("record %+v: the claim nobody waits for is held", r)
			}
			begin(t, g, "a")
		})
	}
}

func TestRetryIsOneTrip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, s := newGuard()
		c := begin(t, g, "a")
		trips := s.Trips()
		next, err := c.Retry(t.Context(), true, idem.Request{})
		if err != nil {
			t.Fatal(err)
		}
		if s.Trips()-trips != 1 || next.Attempt() != 2 || next.Spent() != 1 {
			t.Errorf("%d trips, attempt %d, spent %d", s.Trips()-trips, next.Attempt(), next.Spent())
		}
		if err := c.Commit(t.Context()); !errors.Is(err, idem.ErrClaimEnded) {
			t.Errorf("the old claim's Commit: %v", err)
		}
		if err := next.Commit(t.Context()); err != nil {
			t.Error(err)
		}
		if _, err := g.Begin(t.Context(), "a"); !errors.Is(err, idem.ErrDuplicate) {
			t.Errorf("after that: %v", err)
		}
	})
}

func TestRetryGivenUpReleasesBothClaims(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, s := newGuard()
		c := begin(t, g, "a")
		s.Set(storefault.Away)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.Retry(ctx, true, idem.Request{Patient: true}); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("Retry: %v", err)
		}
		s.Set(storefault.None)
		time.Sleep(3 * time.Second)
		if r := inspect(t, g, "a"); r.State != store.Released || r.Spent != 1 {
			t.Errorf("record %+v, want released and counted once", r)
		}
	})
}

func TestOptionsAreValidatedAllAtOnce(t *testing.T) {
	g := idem.New(
		idem.WithStore(memstore.New()),
		idem.WithStore(nil),
		idem.WithLease(time.Microsecond),
		idem.WithRetention(-1),
		idem.WithPrefix(strings.Repeat("p", 256)),
		idem.WithInstance(strings.Repeat("i", 256)),
		idem.WithObserver(nil),
		idem.WithLogger(nil),
	)
	if err := idem.New(idem.WithRetention(50*365*24*time.Hour), idem.WithLease(20*365*24*time.Hour)).Err(); err == nil || !strings.Contains(err.Error(), "WithLease") {
		t.Errorf("a lease of 20 years: %v", err)
	}
	for _, long := range []time.Duration{1<<63 - 1, 200 * 365 * 24 * time.Hour} {
		if err := idem.New(idem.WithRetention(long)).Err(); err == nil {
			t.Errorf("a retention of %v is accepted", long)
		}
	}
	for _, want := range []string{"WithStore", "WithLease", "WithRetention", "WithPrefix", "WithInstance", "WithObserver", "WithLogger"} {
		if g.Err() == nil || !strings.Contains(g.Err().Error(), want) {
			t.Errorf("Err does not name %s: %v", want, g.Err())
		}
	}
	ctx := t.Context()
	_, err1 := g.Token(ctx)
	_, err2 := g.Check(ctx, "a")
	_, err3 := g.Begin(ctx, "a")
	_, err4 := g.Inspect(ctx, "a")
	_, err5 := g.Spend(ctx, "a")
	for i, err := range []error{err1, err2, err3, err4, err5, g.Forget(ctx, "a"), g.Verify(ctx), g.Issue(ctx, "a"), g.Do(ctx, "a", nil)} {
		if err == nil || err.Error() != g.Err().Error() {
			t.Errorf("call %d: %v, want Err", i, err)
		}
	}
	if err := idem.New().Err(); err != nil {
		t.Errorf("a guard without a store is valid until it is used: %v", err)
	}
}

// Begin's context ended, and its lease ends while the next claim is on its way: the token
// goes to that one, and is not free in between.
func TestRetryWhileTheLeaseLapses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, s := newGuard()
		ctx, cancel := context.WithCancel(t.Context())
		c, err := g.Begin(ctx, "a")
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		time.Sleep(8500 * time.Millisecond)
		s.Delay(time.Second)
		next, err := c.Retry(t.Context(), true, idem.Request{})
		if err != nil {
			t.Fatal(err)
		}
		s.Delay(0)
		next.StopRenewing()
		time.Sleep(10 * time.Second)
		if _, err := g.Begin(t.Context(), "a"); !errors.Is(err, idem.ErrInProgress) {
			t.Errorf("Begin beside a claim that is not ended: %v", err)
		}
		_ = next.Release(t.Context())
	})
}

// A Retry that is answered at once, because the outage is known, gives the old claim back
// all the same.
func TestRetryInAKnownOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, s := newGuard()
		c := begin(t, g, "a")
		s.Set(storefault.Away)
		go g.BeginAll(t.Context(), []idem.Request{{Token: "waits", Patient: true}})
		time.Sleep(2500 * time.Millisecond)
		if _, err := c.Retry(t.Context(), true, idem.Request{Patient: true, FailOpen: time.Second}); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("Retry: %v", err)
		}
		s.Set(storefault.None)
		time.Sleep(3 * time.Second)
		if r := inspect(t, g, "a"); r.State != store.Released || r.Spent != 1 {
			t.Errorf("record %+v, want released and counted once", r)
		}
	})
}

// What an observer panics of went on before, and goes on: the claim is not left behind, and the
// others are told.
func TestObserverPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logged strings.Builder
		before := slog.Default()
		slog.SetDefault(slog.New(slog.NewTextHandler(&logged, nil)))
		defer slog.SetDefault(before)
		told := 0
		g, s := newGuard(
			idem.WithObserver(idem.ObserverFunc(func(idem.Event) { panic("a nil map") })),
			idem.WithObserver(idem.ObserverFunc(func(idem.Event) { told++ })),
		)
		s.Once(store.Begin, storefault.Away)
		for range 2 {
			_ = g.Do(t.Context(), "a", func(context.Context) error { return nil })
		}
		if r := inspect(t, g, "a"); r.State != store.Done {
			t.Errorf("the record is %v after Do, want done", r.State)
		}
		if want := 4; told != want { // store down, store up, claimed, committed
			t.Errorf("the other observer was told of %d events, want %d", told, want)
		}
		slog.SetDefault(slog.New(nilHandler{}))
		if err := g.Do(t.Context(), "b", func(context.Context) error { return nil }); err != nil {
			t.Errorf("where the log panics, too: %v", err)
		}
		if text := logged.String(); !strings.Contains(text, "a nil map") || !strings.Contains(text, "idem.ObserverFunc") || !strings.Contains(text, "committed") {
			t.Errorf("logged %q", text)
		}
	})
}

// nilHandler panics of every record.
type nilHandler struct{ slog.Handler }

func (nilHandler) Enabled(context.Context, slog.Level) bool { return true }

func TestRedriveNumberNoStoreKeeps(t *testing.T) {
	g, s := newGuard()
	for name, ask := range map[string]func(...idem.ClaimOption) error{
		"Begin": func(o ...idem.ClaimOption) error { _, err := g.Begin(t.Context(), "a", o...); return err },
		"Spend": func(o ...idem.ClaimOption) error { _, err := g.Spend(t.Context(), "a", o...); return err },
		"Do": func(o ...idem.ClaimOption) error {
			return g.Do(t.Context(), "a", func(context.Context) error { t.Error("handled"); return nil }, o...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			err := ask(idem.WithRedrive(int(time.Now().UnixNano())))
			if err == nil || !strings.Contains(err.Error(), "redrive number") || s.Trips() > 0 {
				t.Errorf("%v, after %d trips; want an error that names the number, and none", err, s.Trips())
			}
		})
	}
}
