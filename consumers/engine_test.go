package consumers_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/internal/storefault"
)

func tokens(n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf("token-%03d", i)
	}
	return all
}

// Claims for the next messages are made while a handler works, many in a trip, and
// completions are recorded many in a trip; order stays.
func TestWorkingAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{}, idem.WithLease(time.Hour)) // no renewals in the count
		r.store.Delay(5 * time.Millisecond)
		want := tokens(1000)
		r.b.publish(want...)
		begin := time.Now()
		stop := r.start(func(context.Context, *delivery) error { time.Sleep(100 * time.Microsecond); return nil })
		for len(r.b.settlements()) < len(want) {
			time.Sleep(time.Millisecond)
		}
		took := time.Since(begin)
		r.mustStop(stop)
		r.wantHandled(want...)
		if n := r.store.Trips(); n > len(want)/4 {
			t.Errorf("%d trips for %d messages", n, len(want))
		}
		if took > 2*time.Second {
			t.Errorf("it took %v: a trip each for claim and commit would take 10 s", took)
		}
	})
}

// Claims ahead are asked for again when half of them are used, so that the next travel
// together.
func TestClaimsTravelTogether(t *testing.T) {
	for _, c := range []struct {
		name        string
		workers     int
		ahead       int
		least, most int // trips for the claims of 40 messages
	}{
		{"one ahead has nothing to travel with", 1, 1, 35, 40},
		{"of eight, four or more travel", 1, 8, 5, 11},
		{"of eight for two handlers, too", 2, 8, 5, 11},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, consumers.Broker{MaxHeld: 100, Workers: c.workers})
				trips := 0
				r.store.On(func(b *store.Batch) storefault.Fault {
					if slices.ContainsFunc(b.Ops, func(op store.Op) bool { return op.Kind == store.Begin }) {
						trips++
					}
					return storefault.None
				})
				want := tokens(40)
				r.b.publish(want...)
				stop := r.start(func(context.Context, *delivery) error { time.Sleep(time.Second); return nil }, consumers.WorkAhead(c.ahead))
				time.Sleep(time.Minute)
				r.mustStop(stop)
				handled := r.seen()
				slices.Sort(handled) // two handlers begin together
				if !slices.Equal(handled, want) {
					t.Errorf("handled %q", handled)
				}
				if trips < c.least || trips > c.most {
					t.Errorf("%d trips for the claims of %d messages, want %d to %d", trips, len(want), c.least, c.most)
				}
			})
		})
	}
}

// While the store is down nothing is settled, nothing is lost, no budget is spent, and
// neither the broker nor the store is asked in a hot loop.
func TestStoreAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{DeadLetters: true, ExtendEvery: 10 * time.Second})
		before, during := tokens(30)[:10], tokens(30)[10:]
		r.b.publish(before...)
		const handling = 3 * time.Second
		stop := r.start(func(context.Context, *delivery) error { time.Sleep(handling); return nil }, consumers.WorkAhead(5))
		time.Sleep(4*handling + handling/2) // the fifth is being handled
		r.store.Set(storefault.Away)
		settled, trips, extends := len(r.b.settlements()), r.store.Trips(), r.b.extends
		r.b.publish(during...)
		const away = 5 * time.Minute
		time.Sleep(away)
		if n := len(r.b.settlements()) - settled; n != 0 {
			t.Errorf("%d messages settled while the store was away", n)
		}
		if n := r.store.Trips() - trips; n > int(away/time.Second) {
			t.Errorf("%d store trips in %v", n, away)
		}
		held := 14
		if n := r.b.extends - extends; n > held*int(away/(10*time.Second)+1) {
			t.Errorf("%d extensions in %v", n, away)
		}
		r.store.Set(storefault.None)
		time.Sleep(5 * time.Minute)
		r.mustStop(stop)
		if n := len(r.b.settlements()); n != 30 {
			t.Errorf("%d of 30 settled", n)
		}
		if l := r.b.posted(); len(l) != 0 {
			t.Errorf("dead letters: %+v", l)
		}
		counts := map[string]int{}
		for _, token := range r.seen() {
			counts[token]++
		}
		for _, token := range slices.Concat(before, during) {
			rec, err := r.guard.Inspect(t.Context(), token)
			if err != nil || rec.State != store.Done {
				t.Errorf("%s: %+v, %v", token, rec, err)
			}
			if counts[token] != 1 {
				t.Errorf("%s handled %d times: its handler returned nil once, and nobody took over", token, counts[token])
			}
		}
		for _, e := range r.events {
			if e.Kind == idem.EventRetry {
				t.Errorf("budget touched: %+v", e)
			}
		}
	})
}

func TestFailOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{})
		r.store.Set(storefault.Away)
		r.b.publish("a", "b")
		stop := r.start(func(ctx context.Context, _ *delivery) error {
			c, ok := idem.FromContext(ctx)
			if !ok || c.Derive("receipt") != idem.TokenFor("idem derive", c.Token(), "billing", "receipt") {
				t.Error("a handler without a claim cannot derive the tokens that it would with one")
			}
			return nil
		}, consumers.FailOpen(time.Minute))
		time.Sleep(50 * time.Second)
		r.wantSettled()
		time.Sleep(20 * time.Second)
		r.wantSettled("ack 1", "ack 2")
		r.store.Set(storefault.None)
		time.Sleep(5 * time.Second) // until it is noticed
		r.b.publish("c", "a")
		time.Sleep(time.Minute)
		r.mustStop(stop)
		r.wantHandled("a", "b", "c", "a") // the first "a" is not recorded, as promised
		if n := r.count(idem.EventUnguarded); n != 2 {
			t.Errorf("%d unguarded messages reported", n)
		}
	})
}

// The loser of a lease acks nothing; the winner handles the message.
func TestLeaseLostInTheHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{})
		winner := idem.New(idem.WithStore(r.store.Store), idem.WithLease(lease)).Group("billing")
		r.b.publish("a")
		starts := 0
		stop := r.start(func(ctx context.Context, _ *delivery) error {
			starts++
			r.store.Set(storefault.Away) // renewals are cut off
			<-ctx.Done()
			if cause := context.Cause(ctx); !errors.Is(cause, idem.ErrLeaseLost) {
				t.Errorf("cause %v", cause)
			}
			c, err := winner.Begin(context.WithoutCancel(ctx), "a")
			if err != nil {
				t.Errorf("the winner: %v", err)
				return err
			}
			time.AfterFunc(30*time.Second, func() { _ = c.Commit(context.Background()) })
			r.store.Set(storefault.None)
			return nil // it ignored the cancellation
		})
		time.Sleep(25 * time.Second)
		r.wantSettled()
		time.Sleep(time.Minute)
		r.mustStop(stop)
		r.wantSettled("ack 1")
		if starts != 1 {
			t.Errorf("%d starts: the message was the winner's", starts)
		}
		if rec, _ := r.guard.Inspect(t.Context(), "a"); rec.Attempt != 2 {
			t.Errorf("completed on attempt %d, want the winner's", rec.Attempt)
		}
	})
}

// die makes a number of processes die with a claim on token.
func (r *rig) die(token string, times int) {
	r.t.Helper()
	for range times {
		dead := storefault.New(r.store.Store)
		g := idem.New(idem.WithStore(dead), idem.WithLease(lease)).Group("billing")
		ctx, cancel := context.WithCancel(context.Background())
		if _, err := g.Begin(ctx, token); err != nil {
			r.t.Fatal(err)
		}
		dead.Set(storefault.Away)
		cancel()
		time.Sleep(lease + time.Second)
	}
}

// Solitude: a token whose processes died is claimed with nothing beside it, and what
// was claimed ahead of it is given back, uncounted.
func TestClaimedAlone(t *testing.T) {
	for _, workers := range []int{1, 4} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, consumers.Broker{Workers: workers, DeadLetters: true})
			r.die("poison", 2)
			innocent := tokens(60)
			r.b.publish(innocent[:30]...)
			r.b.publish("poison")
			r.b.publish(innocent[30:]...)
			beside := func(ctx context.Context) {
				for _, other := range innocent {
					rec, err := r.guard.Inspect(ctx, other)
					if err != nil || rec.State == store.Running {
						t.Errorf("%s is claimed beside the poison: %+v, %v", other, rec, err)
					}
				}
			}
			stop := r.start(func(ctx context.Context, d *delivery) error {
				c, _ := idem.FromContext(ctx)
				if c.Token() == "poison" {
					if c.Spent() != 2 || c.Attempt() != 3 {
						t.Errorf("spent %d on attempt %d", c.Spent(), c.Attempt())
					}
					beside(ctx)
					time.Sleep(time.Second)
					beside(ctx)
					return nil
				}
				time.Sleep(time.Duration(rand.N(int64(50 * time.Millisecond))))
				return nil
			}, consumers.WorkAhead(20))
			time.Sleep(10 * time.Minute)
			r.mustStop(stop)
			if n := len(r.b.settlements()); n != 61 {
				t.Errorf("%d of 61 settled", n)
			}
			if n := len(r.seen()); n != 61 {
				t.Errorf("%d starts of 61 messages", n)
			}
			for _, token := range innocent {
				if rec, _ := r.guard.Inspect(t.Context(), token); rec.State != store.Done {
					t.Errorf("%s: %+v", token, rec)
				}
			}
		})
	}
}

// A message in backoff does not hold up one that needs solitude, nor is it forgotten
// that it failed.
func TestSolitudeDuringABackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{Workers: 2})
		r.die("poison", 2)
		r.b.publish("waits", "poison")
		var handledAt time.Time
		begin := time.Now()
		stop := r.start(func(ctx context.Context, d *delivery) error {
			c, _ := idem.FromContext(ctx)
			if c.Token() == "waits" && c.Attempt() == 1 {
				return idem.RetryAfter(errBoom, time.Hour)
			}
			if c.Token() == "poison" {
				handledAt = time.Now()
			}
			return nil
		})
		time.Sleep(2 * time.Hour)
		r.mustStop(stop)
		if d := handledAt.Sub(begin); d > time.Minute {
			t.Errorf("the poison was handled after %v", d)
		}
		r.wantSettled("ack 2", "ack 1")
	})
}

// While a token waits to be alone nothing is started: that is told, with the reason, after a
// second and then each minute.
func TestSolitudeIsTold(t *testing.T) {
	for _, tt := range []struct {
		takes time.Duration // the handler that it waits for
		told  int
	}{{30 * time.Second, 1}, {150 * time.Second, 3}, {500 * time.Millisecond, 0}} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, consumers.Broker{Workers: 2})
			r.die("poison", 2)
			r.b.publish("long", "poison")
			stop := r.start(func(ctx context.Context, _ *delivery) error {
				if c, _ := idem.FromContext(ctx); c.Token() == "long" {
					time.Sleep(tt.takes)
				}
				return nil
			})
			time.Sleep(2 * time.Hour)
			r.mustStop(stop)
			told := 0
			for _, e := range r.events {
				if e.Kind == idem.EventWaiting && e.Token == "poison" && strings.Contains(e.Err.Error(), "nothing beside it") {
					told++
				}
			}
			if told != tt.told {
				t.Errorf("told %d times where a handler takes %v, want %d", told, tt.takes, tt.told)
			}
		})
	}
}

// A message that killed its processes until its budget was spent is not started
// again.
func TestBudgetSpentByDeaths(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, deadLetters)
		r.die("poison", 3)
		r.b.publish("poison")
		stop := r.start(fine, consumers.Budget(3))
		time.Sleep(time.Minute)
		r.mustStop(stop)
		r.wantHandled()
		r.wantSettled("term 1")
		if l := r.b.posted(); len(l) != 1 || l[0].Reason != consumers.ReasonBudget {
			t.Errorf("letters %+v", l)
		}
	})
}

// Two consumers that each hold the other's next message must not wait for ever: the
// claims for their heads come late, and those that each made ahead do not.
func TestNoDeadlockAhead(t *testing.T) {
	met := 0
	for range 100 { // whether a worker or the claims ahead ask for a head is a race
		synctest.Test(t, func(t *testing.T) {
			if crossedClaims(t) {
				met++
			}
		})
	}
	if met == 0 {
		t.Error("the claims never crossed")
	}
}

// crossedClaims reports whether each consumer found its head in the other's hands.
func crossedClaims(t *testing.T) bool {
	r := newRig(t, consumers.Broker{MaxHeld: 5})
	other := &rig{t: t, b: newBroker(consumers.Broker{MaxHeld: 5}), store: r.store}
	other.guard = other.newGuard()
	asked := map[string]bool{}
	r.store.On(func(b *store.Batch) storefault.Fault {
		fault := storefault.None
		for _, op := range b.Ops {
			if op.Kind == store.Begin && !asked[op.Token] {
				asked[op.Token] = true
				fault = storefault.Late
			}
		}
		return fault
	})
	stop1, stop2 := r.start(fine, consumers.WorkAhead(5)), other.start(fine, consumers.WorkAhead(5))
	r.b.publish("x")
	other.b.publish("y")
	synctest.Wait()
	r.b.publish("y")
	other.b.publish("x")
	time.Sleep(2 * time.Minute)
	r.mustStop(stop1)
	other.mustStop(stop2)
	if a, b := len(r.b.settlements()), len(other.b.settlements()); a != 2 || b != 2 {
		t.Errorf("%d and %d of 2 settled: they wait for each other", a, b)
	}
	if n := len(r.seen()) + len(other.seen()); n != 2 {
		t.Errorf("%d starts of 2 messages", n)
	}
	return r.count(idem.EventInProgress) > 0 && other.count(idem.EventInProgress) > 0
}

// While a worker waits for somebody else's message nothing is claimed ahead, however often it
// asks; when it is through, the next ones are claimed together again.
func TestNothingIsAskedAheadMeanwhile(t *testing.T) {
	for _, tt := range []struct {
		name  string
		shape consumers.Broker
		end   func(ctx context.Context, c *idem.Claim) error
		want  string // how the message is settled first
	}{
		{"the other gives it back", consumers.Broker{}, func(ctx context.Context, c *idem.Claim) error { return c.Release(ctx) }, "ack 1"},
		{"the other completes it", consumers.Broker{}, func(ctx context.Context, c *idem.Claim) error { return c.Commit(ctx) }, "ack 1"},
		{"it goes back to the broker", consumers.Broker{HoldLimit: 50 * time.Second}, func(context.Context, *idem.Claim) error { return nil }, "redeliver 1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, tt.shape)
				held, err := r.newGuard().Begin(t.Context(), "held")
				if err != nil {
					t.Fatal(err)
				}
				var mu sync.Mutex
				trips, asked := 0, 0 // for the others
				r.store.On(func(b *store.Batch) storefault.Fault {
					n := 0
					for _, op := range b.Ops {
						if op.Kind == store.Begin && op.Token != "held" {
							n++
						}
					}
					mu.Lock()
					defer mu.Unlock()
					asked += n
					trips += min(n, 1)
					return storefault.None
				})
				others := tokens(20)
				r.b.publish("held")
				stop := r.start(fine, consumers.WorkAhead(20))
				time.Sleep(15 * time.Second)
				r.b.publish(others...)
				time.Sleep(30 * time.Second)
				mu.Lock()
				if asked > 0 {
					t.Errorf("%d claims of %d messages asked for while the worker waited", asked, len(others))
				}
				trips = 0
				mu.Unlock()
				if err := tt.end(t.Context(), held); err != nil {
					t.Fatal(err)
				}
				time.Sleep(10 * time.Second)
				if got := r.b.settlements(); len(got) != 1+len(others) || got[0] != tt.want {
					t.Errorf("settlements %q, want %q, and then those of the others", got, tt.want)
				}
				r.mustStop(stop)
				mu.Lock()
				defer mu.Unlock()
				if trips > 5 {
					t.Errorf("%d trips for the claims of %d messages", trips, len(others))
				}
			})
		})
	}
}

func TestWorkAheadIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{MaxHeld: 50})
		all := tokens(40)
		r.b.publish(all...)
		stop := r.start(func(ctx context.Context, _ *delivery) error {
			time.Sleep(time.Second)
			held := 0
			for _, token := range all {
				if rec, _ := r.guard.Inspect(ctx, token); rec.State == store.Running {
					held++
				}
			}
			if held > 6 {
				t.Errorf("%d claims held, want the handler's and five ahead", held)
			}
			return nil
		}, consumers.WorkAhead(5))
		time.Sleep(10 * time.Minute)
		r.mustStop(stop)
		r.wantHandled(all...)
	})
}

func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{Workers: 2})
		r.b.publish(tokens(10)...)
		var mu sync.Mutex
		finished := 0
		stop := r.start(func(context.Context, *delivery) error {
			time.Sleep(10 * time.Second)
			mu.Lock()
			defer mu.Unlock()
			finished++
			return nil
		}, consumers.WorkAhead(8))
		time.Sleep(5 * time.Second)
		begin := time.Now()
		r.mustStop(stop)
		if d := time.Since(begin); d > 6*time.Second {
			t.Errorf("the drain took %v", d)
		}
		if finished != 2 {
			t.Errorf("%d handlers finished, want the two that had started", finished)
		}
		acks, backs := 0, 0
		for _, s := range r.b.settlements() {
			if strings.HasPrefix(s, "ack") {
				acks++
			} else {
				backs++
			}
		}
		if acks != 2 || backs != 8 {
			t.Errorf("%d acked, %d sent back, want 2 and 8", acks, backs)
		}
		for _, token := range tokens(10) {
			rec, err := r.guard.Inspect(t.Context(), token)
			if err != nil || rec.State == store.Running || rec.Spent != 0 {
				t.Errorf("%s: %+v, %v: a claim was stranded", token, rec, err)
			}
		}
		time.Sleep(time.Second)
	})
}

// What was not started goes back at once where another consumer may have it, and after
// what is before it where order matters.
func TestDrainSendsBack(t *testing.T) {
	for _, ordered := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, consumers.Broker{Redelivers: !ordered, MaxHeld: 10})
			r.b.publish(tokens(5)...)
			stop := r.start(func(context.Context, *delivery) error { time.Sleep(15 * time.Second); return nil })
			time.Sleep(5 * time.Second)
			ended := make(chan error)
			go func() { ended <- stop() }()
			time.Sleep(time.Second)
			if n, want := len(r.b.settlements()), map[bool]int{true: 0, false: 4}[ordered]; n != want {
				t.Errorf("ordered %v: %d settled a second after the stop, want %d: %q", ordered, n, want, r.b.settlements())
			}
			if err := <-ended; err != nil {
				t.Error(err)
			}
			if n := len(r.b.settlements()); n != 5 {
				t.Errorf("ordered %v: %d of 5 settled", ordered, n)
			}
			time.Sleep(time.Second)
		})
	}
}

func TestDrainOfAHandlerThatDoesNotReturn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{})
		release := make(chan struct{})
		r.b.publish("a", "b")
		stop := r.start(func(ctx context.Context, _ *delivery) error {
			<-release
			return ctx.Err()
		}, consumers.DrainTimeout(5*time.Second))
		time.Sleep(time.Second)
		begin := time.Now()
		err := stop()
		if err == nil || !strings.Contains(err.Error(), "message 1") || strings.Contains(err.Error(), "message 2") {
			t.Errorf("Run: %v, want an error that names message 1", err)
		}
		if d := time.Since(begin); d > 10*time.Second {
			t.Errorf("the drain took %v", d)
		}
		if rec, _ := r.guard.Inspect(t.Context(), "a"); rec.State != store.Running {
			t.Errorf("record %+v: the claim of a handler that may still work was given back", rec)
		}
		trips := r.store.Trips()
		time.Sleep(time.Minute)
		if n := r.store.Trips() - trips; n != 0 {
			t.Errorf("%d trips: it is still renewed", n)
		}
		r.wantSettled("redeliver 2")
		close(release)
		time.Sleep(time.Minute)
	})
}

func TestDrainCancelsHandlersAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{})
		r.b.publish("a")
		stop := r.start(func(ctx context.Context, _ *delivery) error {
			<-ctx.Done()
			if !errors.Is(context.Cause(ctx), consumers.ErrDraining) {
				t.Errorf("cause %v", context.Cause(ctx))
			}
			return ctx.Err()
		}, consumers.DrainTimeout(5*time.Second))
		time.Sleep(time.Second)
		r.mustStop(stop)
		r.wantSettled("redeliver 1")
		if rec, _ := r.guard.Inspect(t.Context(), "a"); rec.State != store.Released || rec.Spent != 0 {
			t.Errorf("record %+v: a shutdown spends no budget", rec)
		}
		time.Sleep(time.Second)
	})
}

func TestDrainWithTheStoreAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{})
		r.b.publish(tokens(5)...)
		stop := r.start(func(context.Context, *delivery) error { r.store.Set(storefault.Away); return nil })
		time.Sleep(time.Minute)
		begin := time.Now()
		r.mustStop(stop)
		if d := time.Since(begin); d > consumers.DefaultDrainTimeout+3*time.Second {
			t.Errorf("the drain took %v", d)
		}
		for _, s := range r.b.settlements() {
			if strings.HasPrefix(s, "ack") {
				t.Errorf("%s: acked without a record", s)
			}
		}
		if n, want := r.count(idem.EventUnrecorded), len(r.seen()); n != want {
			t.Errorf("%d unrecorded effects reported, want %d", n, want)
		}
		time.Sleep(time.Minute)
	})
}

func TestHandlerTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{})
		r.b.publish("a")
		first := true
		stop := r.start(func(ctx context.Context, _ *delivery) error {
			if !first {
				return nil
			}
			first = false
			<-ctx.Done()
			if !errors.Is(context.Cause(ctx), consumers.ErrHandlerTimeout) {
				t.Errorf("cause %v", context.Cause(ctx))
			}
			time.Sleep(time.Minute) // and does not return for a while
			return ctx.Err()
		}, consumers.HandlerTimeout(time.Second))
		time.Sleep(5 * time.Minute)
		r.mustStop(stop)
		r.wantSettled("ack 1")
		if n := r.count(idem.EventStuck); n != 1 {
			t.Errorf("%d reports of a handler that does not return", n)
		}
		if rec, _ := r.guard.Inspect(t.Context(), "a"); rec.Attempt != 2 {
			t.Errorf("record %+v", rec)
		}
	})
}

// Goexit stands for a panic as well, which cannot be let go on here: both run the
// deferred functions.
func TestHandlerThatEndsItsGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{})
		r.b.publish("a", "b")
		stop := r.start(func(context.Context, *delivery) error { t.SkipNow(); return nil })
		time.Sleep(time.Second)
		if rec, _ := r.guard.Inspect(context.Background(), "a"); rec.State != store.Released || rec.Spent != 1 {
			t.Errorf("record %+v, want released and counted", rec)
		}
		if err := stop(); err == nil || !strings.Contains(err.Error(), "message 1") {
			t.Errorf("Run: %v", err)
		}
		time.Sleep(time.Second)
	})
}

func TestPanicReleasesAndGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{})
		e := r.engine(r.guard)
		m := &message{id: 1, headers: map[string][]string{idem.Header: {"a"}}}
		func() {
			defer func() {
				if v := recover(); v != errBoom {
					t.Errorf("recovered %v, want the handler's own", v)
				}
			}()
			_ = e.Handle(t.Context(), &delivery{message: m, b: r.b, h: func(context.Context, *delivery) error { panic(errBoom) }})
		}()
		if rec, _ := r.guard.Inspect(t.Context(), "a"); rec.State != store.Released || rec.Spent != 1 {
			t.Errorf("record %+v", rec)
		}
		r.wantSettled()
	})
}

// A lane whose deliveries go to another consumer, as a Kafka partition does.
func TestLostLane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{})
		e := r.engine(r.guard, consumers.WorkAhead(5))
		revoked, revoke := context.WithCancelCause(t.Context())
		gone := errors.New("partition revoked")
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- e.Run(ctx, func(ctx context.Context) error {
				lane := e.Lane(revoked)
				for i, token := range tokens(5) {
					lane.Add(&delivery{
						message: &message{id: i, headers: map[string][]string{idem.Header: {token}}}, b: r.b,
						h: func(ctx context.Context, _ *delivery) error {
							<-ctx.Done()
							if !errors.Is(context.Cause(ctx), gone) {
								t.Errorf("cause %v", context.Cause(ctx))
							}
							return ctx.Err()
						},
					})
				}
				time.Sleep(time.Second)
				revoke(gone)
				lane.Wait()
				for _, token := range tokens(5) {
					rec, err := r.guard.Inspect(ctx, token)
					if err != nil || rec.State == store.Running || rec.Spent != 0 {
						t.Errorf("%s: %+v, %v: a rebalance spends nothing and holds nothing", token, rec, err)
					}
				}
				<-ctx.Done()
				return ctx.Err()
			})
		}()
		time.Sleep(time.Minute)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		r.wantSettled()
	})
}

// A store outage that costs a handler its lease spends no budget.
func TestLeaseLostInAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, deadLetters)
		r.b.publish("a")
		stop := r.start(func(ctx context.Context, _ *delivery) error {
			c, _ := idem.FromContext(ctx)
			if c.Attempt() > 5 {
				return nil
			}
			r.store.Set(storefault.Away)
			<-ctx.Done()
			time.AfterFunc(time.Minute, func() { r.store.Set(storefault.None) })
			return ctx.Err()
		}, consumers.Budget(2))
		time.Sleep(time.Hour)
		r.mustStop(stop)
		r.wantSettled("ack 1")
		if l := r.b.posted(); len(l) != 0 {
			t.Errorf("letters %+v: outages spent the budget", l)
		}
	})
}

func TestSupersededStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{}, idem.WithInstance("pod-0"))
		newer := r.newGuard(idem.WithInstance("pod-0"))
		if _, err := r.guard.Begin(t.Context(), "draws its incarnation"); err != nil {
			t.Fatal(err)
		}
		if _, err := newer.Begin(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		r.b.publish("a")
		stop := r.start(fine)
		time.Sleep(time.Second)
		if err := stop(); !errors.Is(err, idem.ErrSuperseded) {
			t.Errorf("Run: %v", err)
		}
		time.Sleep(time.Second)
	})
}

func TestFetchErrorStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{})
		e := r.engine(r.guard)
		if err := e.Run(t.Context(), func(context.Context) error { return errBoom }); !errors.Is(err, errBoom) {
			t.Errorf("Run: %v", err)
		}
		if err := e.Run(t.Context(), func(context.Context) error { return nil }); err == nil {
			t.Error("a second Run is accepted")
		}
	})
}

// A duplicate storm costs no trips: what is known to be done needs no store.
func TestDuplicateStorm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{MaxHeld: 500})
		for range 10_000 {
			r.b.publish("a")
		}
		stop := r.start(fine)
		time.Sleep(time.Minute)
		r.mustStop(stop)
		if n := len(r.b.settlements()); n != 10_000 {
			t.Errorf("%d of 10,000 settled", n)
		}
		r.wantHandled("a")
		if n := r.store.Trips(); n > 200 {
			t.Errorf("%d trips for 9,999 duplicates", n)
		}
	})
}

// A function of the user's that ends the goroutine of fetch, as a test's FailNow does in
// TokenFrom, ends Run.
func TestFetchThatEndsItsGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{})
		r.b.publish("a")
		stop := r.start(fine, consumers.TokenFrom(func(consumers.Message) (string, error) { runtime.Goexit(); return "", nil }))
		time.Sleep(time.Second)
		ended := make(chan error, 1)
		go func() { ended <- stop() }()
		select {
		case err := <-ended:
			if err == nil || !strings.Contains(err.Error(), "ended its goroutine") {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(time.Hour):
			t.Fatal("Run does not return")
		}
	})
}

// Shadow mode starts no handler after the drain has begun, nor in a lane that was lost.
func TestShadowStartsNothingAtTheEnd(t *testing.T) {
	for _, lost := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, consumers.Broker{})
			if _, err := r.newGuard().Begin(t.Context(), "a"); err != nil {
				t.Fatal(err)
			}
			e := r.engine(r.guard, consumers.Shadow())
			run, drain := context.WithCancel(t.Context())
			ours, lose := context.WithCancel(t.Context())
			defer lose()
			end := drain
			if lost {
				end = lose
			}
			time.AfterFunc(time.Minute, drain)
			err := e.Run(run, func(ctx context.Context) error {
				r.store.On(func(*store.Batch) storefault.Fault { end(); return storefault.None })
				e.Lane(ours).Add(r.delivery(1, "a", func(context.Context, *delivery) error { t.Errorf("handled; lane lost: %v", lost); return nil }))
				<-ctx.Done()
				return ctx.Err()
			})
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		})
	}
}
