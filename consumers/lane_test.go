package consumers_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/internal/storefault"
)

// within runs fetch in the Run of an engine, until it has returned and a minute has
// passed.
func (r *rig) within(e *consumers.Engine, fetch func(ctx context.Context)) {
	r.t.Helper()
	ctx, cancel := context.WithCancel(r.t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		done <- e.Run(ctx, func(ctx context.Context) error {
			fetch(ctx)
			<-ctx.Done()
			return ctx.Err()
		})
	}()
	time.Sleep(time.Minute)
	cancel()
	if err := <-done; err != nil {
		r.t.Errorf("Run: %v", err)
	}
}

func (r *rig) delivery(id int, token string, h handler) *delivery {
	return &delivery{message: &message{id: id, headers: map[string][]string{idem.Header: {token}}}, b: r.b, h: h}
}

// A handler that returns nil after its lane has ended: its effect is recorded, and the
// delivery is told, which knows whether it is still its to settle.
func TestLaneEndsBeforeItsHandler(t *testing.T) {
	for _, c := range []struct {
		name      string
		shape     consumers.Broker
		cancelled bool
	}{
		{"its handlers end with it", consumers.Broker{}, true},
		{"its handlers end soon after it", consumers.Broker{HandlerGrace: 500 * time.Millisecond}, true},
		{"its handlers have the time they need", consumers.Broker{HandlerGrace: 2 * time.Second}, false},
		{"its handlers are kept", consumers.Broker{KeepHandlers: true}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, c.shape)
				ours, lose := context.WithCancel(t.Context())
				e := r.engine(r.guard)
				r.within(e, func(context.Context) {
					lane := e.Lane(ours)
					lane.Add(r.delivery(1, "a", func(ctx context.Context, _ *delivery) error {
						lose()
						time.Sleep(time.Second)
						if cancelled := ctx.Err() != nil; cancelled != c.cancelled {
							t.Errorf("cancelled: %v, want %v", cancelled, c.cancelled)
						}
						return nil
					}))
					lane.Add(r.delivery(2, "b", func(context.Context, *delivery) error {
						t.Error("a message was started after the end of its lane")
						return nil
					}))
					lane.Wait()
				})
				r.wantSettled("ack 1")
				if rec, _ := r.guard.Inspect(t.Context(), "a"); rec.State != store.Done {
					t.Errorf("record %+v", rec)
				}
			})
		})
	}
}

// A handler that fails after its lane has ended: where that cancelled it, the failure
// is not the message's; where it was kept, it is.
func TestHandlerFailsAfterItsLane(t *testing.T) {
	for _, keep := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, consumers.Broker{KeepHandlers: keep})
			ours, lose := context.WithCancel(t.Context())
			e := r.engine(r.guard)
			r.within(e, func(context.Context) {
				e.Lane(ours).Add(r.delivery(1, "a", func(context.Context, *delivery) error {
					lose()
					time.Sleep(time.Second)
					return errBoom
				}))
			})
			r.wantSettled()
			rec, err := r.guard.Inspect(t.Context(), "a")
			if err != nil || rec.State != store.Released || (rec.Spent == 1) != keep {
				t.Errorf("keep %v: record %+v, %v", keep, rec, err)
			}
		})
	}
}

// One lane that stands still holds up no other, and holds a bounded number.
func TestRoomOfALane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{})
		e := r.engine(r.guard, consumers.WorkAhead(3))
		stuck := make(chan struct{})
		added := 0
		r.within(e, func(ctx context.Context) {
			blocked, free := e.Lane(context.WithoutCancel(ctx)), e.Lane(context.WithoutCancel(ctx))
			soon, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			for {
				n, err := blocked.Room(soon)
				if err != nil {
					if !errors.Is(err, context.DeadlineExceeded) {
						t.Errorf("Room: %v", err)
					}
					break
				}
				for range n {
					added++
					blocked.Add(r.delivery(added, tokens(100)[added], func(context.Context, *delivery) error { <-stuck; return nil }))
				}
			}
			for i := 200; i < 300; {
				n, err := free.Room(ctx)
				if err != nil {
					t.Error(err)
					return
				}
				for range n {
					free.Add(r.delivery(i, tokens(1000)[i], fine))
					i++
				}
			}
			time.Sleep(time.Second)
			if n := len(r.b.settlements()); n < 100 {
				t.Errorf("%d settled beside the lane that stands still", n)
			}
			close(stuck)
		})
		if added != 7 { // the one at work, and twice what is claimed ahead
			t.Errorf("a lane that stands still took %d deliveries, want 7", added)
		}
	})
}

// Room ends with its lane, and with Run.
func TestRoomEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{})
		e := r.engine(r.guard, consumers.WorkAhead(0))
		gone := errors.New("gone")
		r.within(e, func(ctx context.Context) {
			ours, lose := context.WithCancelCause(context.WithoutCancel(ctx))
			lane := e.Lane(ours)
			for i := range 2 {
				lane.Add(r.delivery(i, tokens(2)[i], func(ctx context.Context, _ *delivery) error { <-ctx.Done(); return ctx.Err() }))
			}
			time.AfterFunc(time.Second, func() { lose(gone) })
			if n, err := lane.Room(ctx); !errors.Is(err, gone) {
				t.Errorf("Room: %d, %v, want the lane's end", n, err)
			}
		})
	})
}

// Two lanes of one consumer whose records belong to different groups: one token is
// handled in each.
func TestGroupLane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, deadLetters)
		e := r.engine(r.guard)
		var groups []string
		r.within(e, func(ctx context.Context) {
			for i, group := range []string{"orders", "refunds"} {
				lane := e.GroupLane(context.WithoutCancel(ctx), group)
				lane.Add(r.delivery(i, "a", func(context.Context, *delivery) error {
					groups = append(groups, group)
					return idem.Permanent(errBoom)
				}))
				time.Sleep(time.Second)
				lane.Add(r.delivery(10+i, "a", fine))
			}
		})
		if !slices.Equal(groups, []string{"orders", "refunds"}) {
			t.Errorf("handled in %q", groups)
		}
		settled := r.b.settlements()
		slices.Sort(settled)
		if want := []string{"term 0", "term 1", "term 10", "term 11"}; !slices.Equal(settled, want) {
			t.Errorf("settlements %q, want %q", settled, want)
		}
		for i, l := range r.b.posted() {
			if l.Group != groups[i] {
				t.Errorf("letter of group %q, want %q", l.Group, groups[i])
			}
		}
		for _, g := range groups {
			if rec, _ := r.guard.Group(g).Inspect(t.Context(), "a"); rec.State != store.Dead {
				t.Errorf("%s: %+v", g, rec)
			}
		}
	})
}

// What is waited with for longer than the broker allows goes back to it, in whatever it
// waits, and spends nothing.
func TestHoldLimit(t *testing.T) {
	shape := consumers.Broker{HoldLimit: 10 * time.Second, DeadLetters: true}
	for _, c := range []struct {
		name string
		with func(r *rig)
		h    handler
	}{
		{"a backoff", func(*rig) {}, func(context.Context, *delivery) error { return idem.RetryAfter(errBoom, time.Minute) }},
		{"in progress elsewhere", func(r *rig) {
			if _, err := r.newGuard().Begin(r.t.Context(), "a"); err != nil {
				r.t.Fatal(err)
			}
		}, fine},
		{"the store away", func(r *rig) { r.store.Set(storefault.Away) }, fine},
		{"the store away, when the claim is asked for again", func(r *rig) {
			time.AfterFunc(time.Second, func() { r.store.Set(storefault.Away) })
		}, func(context.Context, *delivery) error { return idem.RetryAfter(errBoom, 3*time.Second) }},
		{"the store away, when the claim is to be given back", func(r *rig) {
			time.AfterFunc(time.Second, func() { r.store.Set(storefault.Away) })
		}, func(context.Context, *delivery) error { return idem.RetryAfter(errBoom, time.Minute) }},
		{"no dead-letter destination", func(r *rig) { r.b.dlqErr = errBoom }, func(context.Context, *delivery) error { return idem.Permanent(errBoom) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, shape)
				c.with(r)
				r.b.publish("a")
				begun := time.Now()
				stop := r.start(c.h)
				for len(r.b.settlements()) == 0 && time.Since(begun) < time.Minute {
					time.Sleep(100 * time.Millisecond)
				}
				if took := time.Since(begun); took < 9*time.Second || took > 10*time.Second+lease+time.Second {
					t.Errorf("given back after %v", took)
				}
				if got := r.b.settlements(); len(got) == 0 || got[0] != "redeliver 1" {
					t.Errorf("settlements %q", got)
				}
				if r.count(idem.EventWaiting) == 0 {
					t.Error("nobody is told")
				}
				r.store.Set(storefault.None)
				if err := stop(); err != nil {
					t.Error(err)
				}
				if rec, err := r.guard.Inspect(t.Context(), "a"); err != nil || rec.Spent != 0 {
					t.Errorf("record %+v, %v", rec, err)
				}
			})
		})
	}
}

// The last delivery of a message does not go back, since the broker would drop it: it is
// dead-lettered, once the destination takes it.
func TestHoldLimitOfTheLastDelivery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{HoldLimit: 10 * time.Second, DeadLetters: true})
		if _, err := r.newGuard().Begin(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		r.store.Set(storefault.Away)
		r.b.dlqErr = errBoom
		r.b.add(&message{headers: map[string][]string{idem.Header: {"a"}}, final: true})
		stop := r.start(fine)
		time.Sleep(time.Minute)
		if got := r.b.settlements(); len(got) != 0 {
			t.Fatalf("settlements %q while no copy was taken", got)
		}
		r.b.mu.Lock()
		r.b.dlqErr = nil
		r.b.mu.Unlock()
		time.Sleep(time.Minute)
		if got := r.b.settlements(); !slices.Equal(got, []string{"term 1"}) {
			t.Errorf("settlements %q", got)
		}
		if l := r.b.posted(); len(l) != 1 || l[0].Reason != consumers.ReasonFinal || l[0].Token != "a" || l[0].Redrive != 1 {
			t.Errorf("letters %+v", l)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// The drain gives back what the broker will deliver again. A last delivery is dead-lettered,
// in its place among the others; where no copy is taken that is told, and it goes back all
// the same: it is for the broker to say what becomes of it.
func TestDrainOfTheLastDelivery(t *testing.T) {
	for _, c := range []struct {
		name    string
		broker  consumers.Broker
		dlqErr  error
		want    []string
		letters int
	}{
		{"dead-lettered", consumers.Broker{DeadLetters: true}, nil, []string{"redeliver 2", "term 1", "term 3"}, 2},
		{"one is not begun, in no order", consumers.Broker{DeadLetters: true, Workers: 2}, nil, []string{"redeliver 2", "term 1", "term 3"}, 2},
		{"no copy is taken", consumers.Broker{DeadLetters: true}, errBoom, []string{"redeliver 2", "redeliver 1", "redeliver 3"}, 0},
		{"no copy can be taken", consumers.Broker{DeadLetters: true}, consumers.ErrUndeliverable, []string{"redeliver 2", "redeliver 1", "redeliver 3"}, 0},
		{"no destination", consumers.Broker{}, nil, []string{"redeliver 2", "redeliver 1", "redeliver 3"}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, c.broker)
				other := r.newGuard()
				r.b.dlqErr = c.dlqErr
				for _, token := range []string{"a", "b", "c"} {
					if _, err := other.Begin(t.Context(), token); err != nil {
						t.Fatal(err)
					}
					r.b.add(&message{headers: map[string][]string{idem.Header: {token}}, final: token != "b"})
				}
				stop := r.start(fine)
				time.Sleep(100 * time.Millisecond) // they wait for whoever has their tokens
				if err := stop(); err != nil {
					t.Error(err)
				}
				if got := r.b.settlements(); !slices.Equal(got, c.want) {
					t.Errorf("settlements %q, want %q", got, c.want)
				}
				for _, l := range r.b.posted() {
					if l.Reason != consumers.ReasonFinal || l.Redrive != 1 {
						t.Errorf("letter %+v", l)
					}
				}
				if n := len(r.b.posted()); n != c.letters {
					t.Errorf("%d letters, want %d", n, c.letters)
				}
				if n := r.count(idem.EventDropped); n != 2-c.letters {
					t.Errorf("%d messages were told of as dropped, want %d", n, 2-c.letters)
				}
			})
		})
	}
}

// Each letter takes its time, and all of them together more than a consumer has at the end
// where a handler does not return.
func TestDrainOfManyLastDeliveries(t *testing.T) {
	const messages = 100
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{DeadLetters: true})
		r.b.dlqTakes = 100 * time.Millisecond
		r.store.Set(storefault.Away)
		for range messages {
			r.b.add(&message{headers: map[string][]string{idem.Header: {"a"}}, final: true})
		}
		stop := r.start(fine, consumers.WorkAhead(messages))
		time.Sleep(100 * time.Millisecond)
		if err := stop(); err != nil {
			t.Error(err)
		}
		if n := len(r.b.posted()); n != messages {
			t.Errorf("%d of %d are dead-lettered", n, messages)
		}
	})
}

// What the broker does not keep has been skipped, whatever ends the consumer.
func TestStopByALastDelivery(t *testing.T) {
	for _, c := range []struct {
		name   string
		broker consumers.Broker
		dlqErr error
	}{
		{"no destination", consumers.Broker{}, nil},
		{"no copy can be taken", consumers.Broker{DeadLetters: true}, consumers.ErrUndeliverable},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, c.broker)
				r.b.dlqErr = c.dlqErr
				r.b.add(&message{headers: map[string][]string{idem.Header: {"a"}}, final: true})
				stop := r.start(fine)
				time.Sleep(time.Second)
				if err := stop(); err == nil || strings.Contains(err.Error(), "nothing was skipped") || !strings.Contains(err.Error(), "publish it anew") {
					t.Error(err)
				}
				if n := r.count(idem.EventDropped); n != 1 {
					t.Errorf("told of %d times as dropped", n)
				}
			})
		})
	}
}

// What waits behind a message that is given back is too, each in its turn: also where its
// claim was asked for, or made, ahead.
func TestHoldLimitOfTheQueue(t *testing.T) {
	for _, when := range []time.Duration{0, time.Second} { // before the claims, and after
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, consumers.Broker{HoldLimit: 10 * time.Second})
			time.AfterFunc(when, func() { r.store.Set(storefault.Away) })
			time.Sleep(time.Millisecond)
			r.b.publish("a", "b", "c")
			stop := r.start(func(context.Context, *delivery) error { return idem.RetryAfter(errBoom, time.Minute) }, consumers.WorkAhead(5))
			time.Sleep(10*time.Second + 3*(lease+lease/3) + time.Second)
			for _, want := range []string{"redeliver 1", "redeliver 2", "redeliver 3"} {
				if !slices.Contains(r.b.settlements(), want) {
					t.Errorf("store away after %v: settlements %q, want %q among them", when, r.b.settlements(), want)
				}
			}
			r.store.Set(storefault.None)
			r.mustStop(stop)
		})
	}
}

// A lane ends though the store is away: nobody waits for it with a claim that would
// come too late.
func TestLaneEndsWithoutItsStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{KeepHandlers: true})
		r.store.Set(storefault.Away)
		e := r.engine(r.guard, consumers.WorkAhead(5))
		r.within(e, func(ctx context.Context) {
			ours, lose := context.WithCancel(context.WithoutCancel(ctx))
			lane := e.Lane(ours)
			for i, token := range tokens(3) {
				lane.Add(r.delivery(i, token, fine))
			}
			time.Sleep(time.Second)
			begun := time.Now()
			lose()
			lane.Wait()
			if took := time.Since(begun); took > lease {
				t.Errorf("the lane took %v to end", took)
			}
			r.store.Set(storefault.None)
		})
		r.wantSettled()
	})
}

// Why a lane ended is no answer about its tokens.
func TestLanesCauseIsNoAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, deadLetters)
		r.store.Set(storefault.Away)
		e := r.engine(r.guard)
		r.within(e, func(ctx context.Context) {
			ours, lose := context.WithCancelCause(context.WithoutCancel(ctx))
			lane := e.Lane(ours)
			lane.Add(r.delivery(1, "a", fine))
			time.Sleep(time.Second)
			lose(fmt.Errorf("the topic's records: %w", store.ErrUnreadable))
			lane.Wait()
		})
		r.wantSettled()
		if l := r.b.posted(); len(l) != 0 {
			t.Errorf("letters %+v", l)
		}
	})
}

// A handler at work is not interrupted, and what waited behind it for as long is handled
// all the same: sent back untried it would wait as long again.
func TestHoldLimitBehindAHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{HoldLimit: 10 * time.Second})
		r.b.publish("a", "b")
		stop := r.start(func(_ context.Context, d *delivery) error {
			if d.deliveries == 1 {
				time.Sleep(15 * time.Second)
			}
			return nil
		})
		time.Sleep(time.Minute)
		r.mustStop(stop)
		r.wantSettled("ack 1", "ack 2")
		r.wantHandled("a", "b")
	})
}

// Handle gives a handler that has started the drain timeout.
func TestHandleDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{})
		e := r.engine(r.guard)
		ctx, cancel := context.WithCancel(t.Context())
		err := e.Handle(ctx, r.delivery(1, "a", func(ctx context.Context, _ *delivery) error {
			cancel()
			select {
			case <-time.After(time.Second):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}))
		if err != nil {
			t.Errorf("Handle: %v", err)
		}
		r.wantSettled("ack 1")
	})
}

// A claim that is answered after its lane, or the consumer, has ended is given back, and
// its handler not started.
func TestClaimAnsweredTooLate(t *testing.T) {
	for _, shape := range []consumers.Broker{{}, {KeepHandlers: true}, {HandlerGrace: time.Minute}} {
		for _, way := range []string{"lane", "run"} {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, shape)
				r.store.Set(storefault.Away)
				e := r.engine(r.guard)
				ctx, cancel := context.WithCancel(t.Context())
				ours, lose := context.WithCancel(context.WithoutCancel(ctx))
				done := make(chan error, 1)
				go func() {
					done <- e.Run(ctx, func(ctx context.Context) error {
						lane := e.Lane(ours)
						lane.Add(r.delivery(1, "a", func(context.Context, *delivery) error {
							t.Errorf("%s, %+v: started after the end", way, shape)
							return nil
						}))
						<-ctx.Done()
						return ctx.Err()
					})
				}()
				time.Sleep(time.Second)
				if way == "lane" {
					lose()
				} else {
					cancel()
				}
				time.Sleep(time.Second) // within the drain
				r.store.Set(storefault.None)
				time.Sleep(time.Minute)
				cancel()
				lose()
				if err := <-done; err != nil {
					t.Error(err)
				}
				r.store.Set(storefault.None)
				if rec, err := r.guard.Inspect(t.Context(), "a"); err != nil || rec.State == store.Running || rec.Spent != 0 {
					t.Errorf("%s, %+v: record %+v, %v", way, shape, rec, err)
				}
			})
		}
	}
}

// At the beginning of the drain, what was not started goes to others at once, where no
// order has to be kept with what is at work.
func TestSentBackAtOnce(t *testing.T) {
	for _, c := range []struct {
		workers int
		atOnce  bool
	}{{1, false}, {2, true}} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, consumers.Broker{Workers: c.workers})
			r.b.publish(tokens(5)...)
			stop := r.start(func(context.Context, *delivery) error {
				time.Sleep(10 * time.Second)
				return nil
			})
			time.Sleep(time.Second)
			done := make(chan error, 1)
			go func() { done <- stop() }()
			time.Sleep(time.Second)
			if got := r.b.settlements(); (len(got) > 0) != c.atOnce {
				t.Errorf("%d workers: settlements %q a second after the stop", c.workers, got)
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
			deliveries := 0
			for i := range 5 {
				if slices.Contains(r.b.settlements(), fmt.Sprintf("ack %d", i+1)) || slices.Contains(r.b.settlements(), fmt.Sprintf("redeliver %d", i+1)) {
					deliveries++
				}
			}
			if deliveries != len(r.b.settlements()) || deliveries <= c.workers {
				t.Errorf("%d workers: settlements %q", c.workers, r.b.settlements())
			}
		})
	}
}
