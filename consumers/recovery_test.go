package consumers_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/internal/storefault"
)

// Each of these was a way in which a consumer stood still, held on to what was not its
// own, or let go of what was.

// elsewhere is another process at work on the store.
func elsewhere(r *rig, op ...store.Op) []store.Reply {
	b := &store.Batch{Prefix: "idempotent", Lease: lease, Retention: 24 * time.Hour, CheckWithin: time.Hour, Ops: op}
	if err := r.store.Store.Apply(context.Background(), b); err != nil {
		r.t.Fatal(err)
	}
	return b.Replies
}

// A completion is refused while the lane's only worker waits for it, with a repeat of
// the token in its hands.
func TestRefusedCompletionBeforeItsRepeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{})
		r.b.publish("a", "a", "b")
		first := true
		stop := r.start(func(ctx context.Context, d *delivery) error {
			if first {
				first = false
				r.store.Set(storefault.Away) // the lease runs out
				time.Sleep(2 * lease)
				// another process takes it over
				if rep := elsewhere(r, store.Op{Kind: store.Begin, Group: "billing", Token: "a", Claim: "other"}); rep[0].Status != store.Claimed {
					t.Errorf("%+v", rep)
				}
				r.store.Set(storefault.None)
				return nil
			}
			return nil
		})
		time.Sleep(2*lease + 2*time.Second)
		elsewhere(r, store.Op{Kind: store.Commit, Group: "billing", Token: "a", Claim: "other", Attempt: 2}) // and completes it
		time.Sleep(time.Hour)
		if got := r.b.settlements(); len(got) != 3 {
			t.Errorf("settlements %q, want all three messages", got)
		}
		r.mustStop(stop)
	})
}

// A completion that could not be recorded by the end of the drain leaves its claim to
// the lease: the next consumer, of this guard or another, gets the message.
func TestClaimsDoNotOutliveTheirConsumer(t *testing.T) {
	for after, result := range map[time.Duration]error{0: nil, time.Second: idem.RetryAfter(errBoom, time.Minute), time.Minute: nil} {
		t.Run(fmt.Sprint("store back ", after, " after Run, handler returned ", result), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, consumers.Broker{})
				r.b.publish("a")
				stop := r.start(func(context.Context, *delivery) error {
					r.store.Set(storefault.Away)
					return result
				}, consumers.DrainTimeout(time.Second))
				time.Sleep(time.Second)
				r.mustStop(stop)
				time.Sleep(after)
				r.store.Set(storefault.None)
				time.Sleep(time.Hour)
				rec, _ := r.guard.Inspect(context.Background(), "a")
				if rec.Lease > 0 {
					t.Errorf("the claim is renewed still: no other process will ever get it")
				}
				h := func(context.Context, *delivery) error { return nil }
				stop = r.start(h)
				r.b.publish("z")
				time.Sleep(time.Hour)
				if n := len(r.b.settlements()); n < 3 {
					t.Errorf("settlements %q: the new consumer stands still", r.b.settlements())
				}
				r.mustStop(stop)
			})
		})
	}
}

func TestClaimsAheadDoNotOutliveTheirConsumer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{})
		r.b.publish("a", "b", "c")
		stop := r.start(func(ctx context.Context, d *delivery) error { time.Sleep(time.Second); return nil }, consumers.DrainTimeout(time.Second), consumers.WorkAhead(3))
		time.Sleep(500 * time.Millisecond)
		r.store.Set(storefault.Away)
		r.mustStop(stop)
		r.store.Set(storefault.None)
		time.Sleep(time.Hour)
		for _, x := range []string{"a", "b", "c"} {
			rec, _ := r.guard.Inspect(context.Background(), x)
			if rec.Lease > 0 {
				t.Errorf("%s is renewed an hour after Run returned", x)
			}
		}
	})
}

// A token in solitude whose completion is refused: solitude ends with it.
func TestSolitaryCompletionRefused(t *testing.T) {
	for try := range 20 {
		t.Run(fmt.Sprint(try), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, consumers.Broker{})
				for _, tok := range []string{"p", "q"} {
					for i := range 2 {
						elsewhere(r, store.Op{Kind: store.Begin, Group: "billing", Token: tok, Claim: fmt.Sprint(tok, i)})
						time.Sleep(lease + time.Second)
					}
					elsewhere(r, store.Op{Kind: store.Begin, Group: "billing", Token: tok, Claim: fmt.Sprint(tok, 2)})
					elsewhere(r, store.Op{Kind: store.Release, Group: "billing", Token: tok, Claim: fmt.Sprint(tok, 2)})
				}
				n := 0
				stop := r.start(func(ctx context.Context, d *delivery) error {
					c, _ := idem.FromContext(ctx)
					if c.Token() == "p" {
						if n++; n == 1 {
							r.store.Set(storefault.Away)
							time.Sleep(2 * lease)
							r.store.Set(storefault.None)
							elsewhere(r, store.Op{Kind: store.Forget, Group: "billing", Token: "p", Claim: "op"})
						}
					}
					if c.Token() == "b" {
						time.Sleep(time.Second)
					}
					return nil
				})
				time.Sleep(time.Second)
				r.b.publish("p")
				time.Sleep(time.Second)
				r.b.publish("b", "c", "q", "d")
				time.Sleep(time.Hour)
				if n := len(r.b.settlements()); n != 5 {
					t.Errorf("%d of 5 settled after an hour: %v, started %v", n, r.b.settlements(), r.seen())
				}
				r.mustStop(stop)
			})
		})
	}
}

// A claim that was made ahead and given back says nothing about the message's past.
func TestStaleAfterAGiveBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{DeadLetters: true}, idem.WithRetention(time.Hour))
		r.b.publish("held")
		r.b.add(&message{headers: map[string][]string{idem.Header: {"old"}}, at: time.Now().Add(-2 * time.Hour)})
		stop := r.start(func(ctx context.Context, d *delivery) error {
			if c, _ := idem.FromContext(ctx); c.Token() == "held" && c.Attempt() == 1 {
				time.Sleep(time.Second) // "old" is claimed ahead
			}
			return nil
		}, consumers.DeadLetterStale(), consumers.WorkAhead(5))
		time.Sleep(500 * time.Millisecond)
		r.mustStop(stop) // a rolling restart: the claim ahead is given back
		stop = r.start(fine, consumers.DeadLetterStale())
		time.Sleep(time.Minute)
		if len(r.b.posted()) != 1 {
			t.Errorf("the stale message was handled: %v", r.seen())
		}
		r.mustStop(stop)
	})
}

func TestIdleWorkersAreGivenWork(t *testing.T) {
	for _, few := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, consumers.Broker{Workers: 10, FewDeliveries: few})
			release := make(chan struct{})
			r.b.publish(tokens(7)...)
			stop := r.start(func(ctx context.Context, d *delivery) error {
				if c, _ := idem.FromContext(ctx); c.Token() != "fast" {
					<-release
				}
				return nil
			})
			time.Sleep(time.Second)
			r.b.publish("fast")
			time.Sleep(time.Hour)
			if n := len(r.b.settlements()); n == 0 {
				t.Errorf("few=%v: 7 of 10 workers are busy, 1 message waits for an hour", few)
			}
			close(release)
			time.Sleep(time.Second)
			r.mustStop(stop)
		})
	}
}

// What a partition's reader had in hand when it was revoked.
func TestAddToALostLane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{})
		e := r.engine(r.guard)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error)
		go func() {
			done <- e.Run(ctx, func(ctx context.Context) error {
				lctx, lost := context.WithCancel(ctx)
				l := e.Lane(lctx)
				lost()
				synctest.Wait()
				n, _ := e.Room(ctx)
				for i := range n { // what the partition's reader had in hand when it was revoked
					l.Add(&delivery{message: &message{id: i + 1, headers: map[string][]string{idem.Header: {fmt.Sprint(i)}}}, b: r.b, h: fine})
				}
				e.Lane(ctx) // the partition's next assignment
				rctx, stop := context.WithTimeout(ctx, time.Hour)
				defer stop()
				if _, err := e.Room(rctx); err != nil {
					t.Errorf("Room after an hour: %v", err)
				}
				<-ctx.Done()
				return nil
			})
		}()
		time.Sleep(2 * time.Hour)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		r.wantSettled()
	})
}

type goneDelivery struct{ *delivery }

func (goneDelivery) Redeliver(ctx context.Context, _ time.Duration) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestDrainWithTheBrokerGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{MaxHeld: 1000})
		e := r.engine(r.guard, consumers.DrainTimeout(time.Second))
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error)
		go func() {
			done <- e.Run(ctx, func(ctx context.Context) error {
				l := e.Lane(context.WithoutCancel(ctx))
				for i := range 1000 {
					l.Add(goneDelivery{&delivery{message: &message{id: i + 1}, b: r.b, h: func(ctx context.Context, d *delivery) error { <-ctx.Done(); return ctx.Err() }}})
				}
				<-ctx.Done()
				return nil
			})
		}()
		time.Sleep(time.Second)
		cancel()
		begin := time.Now()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if d := time.Since(begin); d > 10*time.Second {
			t.Errorf("Run returned %v after the end of its context; drain timeout 1 s", d)
		}
	})
}

// While its copy cannot be published, a message holds itself up and nothing else.
func TestSolitudeEndsWithTheHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{DeadLetters: true, Workers: 2})
		for i := range 2 {
			elsewhere(r, store.Op{Kind: store.Begin, Group: "billing", Token: "p", Claim: fmt.Sprint("p", i)})
			time.Sleep(lease + time.Second)
		}
		elsewhere(r, store.Op{Kind: store.Begin, Group: "billing", Token: "p", Claim: "p2"})
		elsewhere(r, store.Op{Kind: store.Release, Group: "billing", Token: "p", Claim: "p2"})
		r.b.dlqErr = errors.New("gone")
		r.b.publish("p")
		stop := r.start(func(ctx context.Context, d *delivery) error {
			if c, _ := idem.FromContext(ctx); c.Token() == "p" {
				return errBoom
			}
			return nil
		}, consumers.Budget(3))
		time.Sleep(10 * time.Second)
		r.b.publish("b", "c")
		time.Sleep(time.Hour)
		if len(r.b.settlements()) != 2 {
			t.Errorf("settled %q: the other worker stands still", r.b.settlements())
		}
		r.mustStop(stop)
	})
}

// At most once, a failed message that could not be dead-lettered by the end is reported:
// its redelivery is dropped.
func TestAtMostOnceLetterLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, deadLetters)
		r.b.dlqErr = errBoom
		r.b.publish("a")
		stop := r.start(func(context.Context, *delivery) error { return errBoom }, consumers.AtMostOnce())
		time.Sleep(time.Minute)
		r.mustStop(stop)
		if n := r.count(idem.EventDropped); n != 1 {
			t.Errorf("%d messages reported as dropped, want 1", n)
		}
		time.Sleep(time.Second)
	})
}

// A handler that is cancelled at the end of the drain failed, as far as at most once
// knows: it may have had its effect.
func TestAtMostOnceAtTheDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, deadLetters)
		r.b.publish("a")
		stop := r.start(func(ctx context.Context, _ *delivery) error { <-ctx.Done(); return ctx.Err() }, consumers.AtMostOnce())
		time.Sleep(time.Second)
		r.mustStop(stop)
		r.wantSettled("term 1")
		if n := len(r.b.posted()); n != 1 {
			t.Errorf("%d dead letters, want 1", n)
		}
		time.Sleep(time.Second)
	})
}

// At most once, a token is spent when it is asked for: nobody else starts its handler any
// more, so that its message is handled, or dead-lettered, also where the answer comes when
// nothing new is started.
func TestAtMostOnceAnsweredLate(t *testing.T) {
	kept := deadLetters
	kept.KeepHandlers = true
	held := deadLetters
	held.HoldLimit = time.Second
	for _, tc := range []struct {
		name    string
		shape   consumers.Broker
		fault   storefault.Fault // of the first request
		stop    bool             // the consumer; else its lane is lost
		handled int
		letters int
		settled []string
	}{
		{"the consumer stops", deadLetters, storefault.Late, true, 1, 0, []string{"ack 1"}},
		{"the consumer stops, and the answer is lost", deadLetters, storefault.Swallow, true, 1, 0, []string{"ack 1"}},
		{"the lane is lost", deadLetters, storefault.Late, false, 0, 1, []string{"term 1"}},
		{"the lane is lost, and the answer", deadLetters, storefault.Swallow, false, 0, 1, []string{"term 1"}},
		{"the lane is lost, and its handlers are kept", kept, storefault.Late, false, 1, 0, []string{"ack 1"}},
		{"the message was held for long", held, storefault.Late, true, 1, 0, []string{"ack 1"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, tc.shape)
				r.store.Once(store.Spend, tc.fault)
				ours, lose := context.WithCancel(t.Context())
				handled := 0
				e := r.engine(r.guard, consumers.AtMostOnce())
				ctx, stop := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() {
					done <- e.Run(ctx, func(ctx context.Context) error {
						e.Lane(ours).Add(r.delivery(1, "a", func(ctx context.Context, _ *delivery) error {
							handled++
							return ctx.Err()
						}))
						<-ctx.Done()
						return ctx.Err()
					})
				}()
				time.Sleep(time.Millisecond)
				if tc.stop {
					stop()
				} else {
					lose()
				}
				time.Sleep(time.Minute)
				stop()
				if err := <-done; err != nil {
					t.Errorf("Run: %v", err)
				}
				lose()
				if letters := len(r.b.posted()); handled != tc.handled || letters != tc.letters {
					t.Errorf("handled %d times, %d dead letters, want %d and %d", handled, letters, tc.handled, tc.letters)
				}
				r.wantSettled(tc.settled...)
			})
		})
	}
}

// Where the store does not answer to the very end, nobody knows whether the token is spent:
// that is reported.
func TestAtMostOnceNotAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, deadLetters)
		r.b.publish("a")
		r.store.Set(storefault.Away)
		stop := r.start(fine, consumers.AtMostOnce())
		time.Sleep(time.Second)
		r.mustStop(stop)
		if n := r.count(idem.EventDropped); n != 1 {
			t.Errorf("%d messages reported as dropped, want 1", n)
		}
		r.wantSettled("redeliver 1")
		r.wantHandled()
		time.Sleep(time.Minute)
	})
}

// At most once, a failed message whose death could not be recorded is reported: its
// redelivery is dropped.
func TestAtMostOnceNotBuried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, deadLetters)
		r.b.publish("a")
		stop := r.start(func(context.Context, *delivery) error {
			r.store.Set(storefault.Away)
			return errBoom
		}, consumers.AtMostOnce())
		time.Sleep(time.Second)
		r.mustStop(stop)
		if n := r.count(idem.EventDropped); n != 1 {
			t.Errorf("%d messages reported as dropped, want 1", n)
		}
		time.Sleep(time.Minute)
	})
}

// At most once, a message that the adapter could not start yet is started later: it failed
// of nothing.
func TestAtMostOnceNotStarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, deadLetters)
		r.b.publish("a")
		n := 0
		stop := r.start(func(context.Context, *delivery) error {
			if n++; n < 3 {
				return idem.RetryAfter(consumers.ErrNotStarted, time.Second)
			}
			return nil
		}, consumers.AtMostOnce())
		time.Sleep(time.Minute)
		r.mustStop(stop)
		r.wantSettled("ack 1")
		if n != 3 || len(r.b.posted()) != 0 {
			t.Errorf("called %d times, %d dead letters, want 3 and none", n, len(r.b.posted()))
		}
	})
}

// At most once, a handler that ends its goroutine, or panics, has lost its message: that is
// reported, and the error says what to do.
func TestAtMostOnceGoexit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, deadLetters)
		r.b.publish("a")
		stop := r.start(func(context.Context, *delivery) error { runtime.Goexit(); return nil }, consumers.AtMostOnce())
		time.Sleep(time.Second)
		if err := stop(); err == nil || !strings.Contains(err.Error(), "Forget") {
			t.Errorf("Run: %v", err)
		}
		if n := r.count(idem.EventDropped); n != 1 {
			t.Errorf("%d messages reported as dropped, want 1", n)
		}
	})
}

// At most once, what cannot be dead-lettered is spent, and whoever reads the error has to
// know.
func TestAtMostOnceUndeliverable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, deadLetters)
		r.b.dlqErr = consumers.ErrUndeliverable
		r.b.publish("a")
		stop := r.start(func(context.Context, *delivery) error { return errBoom }, consumers.AtMostOnce())
		time.Sleep(time.Second)
		if err := stop(); err == nil || !strings.Contains(err.Error(), "have the guard Forget it") {
			t.Errorf("Run: %v", err)
		}
		time.Sleep(time.Minute)
	})
}

// At most once, a message that the store gives no answer about does not go back to the
// broker, which is told when it would have.
func TestAtMostOnceHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shape := deadLetters
		shape.HoldLimit = time.Minute
		r := newRig(t, shape)
		r.b.publish("a")
		r.store.Set(storefault.Away)
		stop := r.start(fine, consumers.AtMostOnce())
		time.Sleep(10 * time.Minute)
		if n := r.count(idem.EventWaiting); n != 1 {
			t.Errorf("told %d times that it waits, want once", n)
		}
		r.wantSettled()
		r.store.Set(storefault.None)
		time.Sleep(time.Minute)
		r.wantSettled("ack 1")
		r.mustStop(stop)
	})
}

// A dead letter that is moved back asks the store, also where it stands behind a delivery
// of its token that was a duplicate of what has failed since.
func TestRedriveBehindADuplicate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, deadLetters)
		elsewhere(r, store.Op{Kind: store.Spend, Group: "billing", Token: "a", Claim: "other"})
		e := r.engine(r.guard, consumers.AtMostOnce())
		handled := 0
		handle := func(context.Context, *delivery) error { handled++; return nil }
		r.within(e, func(ctx context.Context) {
			lane := e.Lane(context.WithoutCancel(ctx))
			lane.Add(acking{r.delivery(1, "a", handle), func() {
				elsewhere(r, store.Op{Kind: store.Bury, Group: "billing", Token: "a", Claim: "other"})
			}})
			back := r.delivery(2, "a", handle)
			back.headers[idem.RedriveHeader] = []string{"1"}
			lane.Add(back)
		})
		r.wantSettled("ack 1", "ack 2")
		if handled != 1 {
			t.Errorf("handled %d times, want once: what was moved back", handled)
		}
	})
}

// acking is a delivery whose ack takes long enough for something to happen.
type acking struct {
	*delivery
	during func()
}

func (a acking) Ack(ctx context.Context) error {
	a.during()
	return a.delivery.Ack(ctx)
}

// A redrive number that cannot be used is not read as none: that would drop a message
// that was moved back.
func TestBadRedriveNumber(t *testing.T) {
	for _, n := range []string{"9007199254740993", "-1", "one", ""} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, deadLetters)
			r.b.add(&message{headers: map[string][]string{idem.Header: {"a"}, idem.RedriveHeader: {n}}})
			stop := r.start(fine)
			time.Sleep(time.Second)
			r.mustStop(stop)
			r.wantSettled("term 1")
			r.wantHandled()
		})
	}
}

// A function of the user's that panics on a message must not end every process that
// meets it.
func TestTokenFromPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, deadLetters)
		r.b.publish("a")
		stop := r.start(fine, consumers.TokenFrom(func(consumers.Message) (string, error) { panic("nil map") }))
		time.Sleep(time.Second)
		r.mustStop(stop)
		r.wantSettled("term 1")
	})
}

// What an adapter cannot read is refused without a claim, be its token as it may, and its
// neighbours are handled. Without a destination the consumer stops, and so does Handle.
func TestInvalidDelivery(t *testing.T) {
	for _, destination := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, consumers.Broker{DeadLetters: destination})
			e := r.engine(r.guard)
			of := func(id int, token string) *delivery {
				return &delivery{message: &message{id: id, headers: map[string][]string{idem.Header: {token}}}, b: r.b, h: fine}
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			run := make(chan error, 1)
			go func() {
				run <- e.Run(ctx, func(ctx context.Context) error {
					l := e.Lane(context.WithoutCancel(ctx))
					l.Add(consumers.Invalid(of(1, "a"), errBoom))
					l.Add(consumers.Invalid(of(2, "b"), nil))
					<-ctx.Done()
					return nil
				})
			}()
			time.Sleep(time.Minute)
			cancel()
			err := <-run
			handle := r.engine(r.guard).Handle(t.Context(), consumers.Invalid(of(3, "c"), errBoom))
			if destination {
				if err != nil || handle != nil {
					t.Errorf("Run: %v; Handle: %v", err, handle)
				}
				r.wantSettled("term 1", "ack 2", "term 3")
				for _, l := range r.b.posted() {
					if l.Reason != consumers.ReasonToken || !errors.Is(l.Err, errBoom) || l.Attempt != 0 {
						t.Errorf("letter %+v", l.Letter)
					}
				}
				return
			}
			for name, err := range map[string]error{"message 1": err, "message 3": handle} {
				if !errors.Is(err, errBoom) || !strings.Contains(err.Error(), name) {
					t.Errorf("%s: %v", name, err)
				}
			}
			if n := r.count(idem.EventClaimed); n > 1 { // message 2 may be claimed ahead
				t.Errorf("%d claims", n)
			}
		})
	}
}

// A panic goes on soon, also while the store is away.
func TestPanicWithTheStoreAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{})
		e := r.engine(r.guard)
		m := &message{id: 1, headers: map[string][]string{idem.Header: {"a"}}}
		begin := time.Now()
		func() {
			defer func() {
				if recover() == nil {
					t.Error("the panic did not go on")
				}
			}()
			_ = e.Handle(t.Context(), &delivery{message: m, b: r.b, h: func(context.Context, *delivery) error {
				r.store.Set(storefault.Away)
				panic(errBoom)
			}})
		}()
		if d := time.Since(begin); d > lease {
			t.Errorf("the panic was held back for %v", d)
		}
		time.Sleep(time.Minute)
	})
}

// A copy that no waiting makes publishable stops the consumer, and settles nothing.
func TestUndeliverableLetter(t *testing.T) {
	for _, token := range []string{"a", ""} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, deadLetters)
			r.b.dlqErr = fmt.Errorf("payload too large: %w", consumers.ErrUndeliverable)
			r.b.publish(token)
			stop := r.start(failing(9, idem.Permanent(errBoom)))
			time.Sleep(time.Minute)
			if err := stop(); !errors.Is(err, consumers.ErrUndeliverable) {
				t.Errorf("Run: %v", err)
			}
			r.wantSettled("redeliver 1")
			m := &message{id: 2, headers: map[string][]string{idem.Header: {token}}}
			err := r.engine(r.guard).Handle(t.Context(), &delivery{message: m, b: r.b, h: failing(9, idem.Permanent(errBoom))})
			if !errors.Is(err, consumers.ErrUndeliverable) {
				t.Errorf("Handle: %v", err)
			}
			time.Sleep(time.Minute)
		})
	}
}

// While one message waits for the dead-letter destination, another needs solitude: the
// first holds up neither that one nor the rest.
func TestLetterThatWaitsHoldsUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{Workers: 4, DeadLetters: true})
		r.die("poison", 2)
		r.b.dlqErr = errBoom
		r.b.publish("bad", "poison")
		r.b.publish(tokens(20)...)
		stop := r.start(func(ctx context.Context, _ *delivery) error {
			if c, _ := idem.FromContext(ctx); c.Token() == "bad" {
				return idem.Permanent(errBoom)
			}
			time.Sleep(10 * time.Millisecond)
			return nil
		})
		time.Sleep(time.Hour)
		if n := len(r.b.settlements()); n != 21 {
			t.Errorf("%d of 22 settled in an hour, though only one cannot be dead-lettered", n)
		}
		r.mustStop(stop)
	})
}

// Handle's context ends while the handler works: what is done is acked.
func TestHandleAcksWhatIsDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, deadLetters)
		ctx, cancel := context.WithCancel(t.Context())
		m := &message{id: 1, headers: map[string][]string{idem.Header: {"a"}}}
		err := r.engine(r.guard).Handle(ctx, &delivery{message: m, b: r.b, h: func(context.Context, *delivery) error { cancel(); return nil }})
		if err != nil {
			t.Errorf("Handle: %v", err)
		}
		r.wantSettled("ack 1")
	})
}
