package idemnats_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/idemq/idemq/consumers"
	idemnats "github.com/idemq/idemq/consumers/nats"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/internal/storefault"
	"github.com/idemq/idemq/internal/testenv"
)

var errTest = errors.New("handler failed")

// TestHandledOnce: done now and duplicate are both acked; the group is the stream's
// and the consumer's name.
func TestHandledOnce(t *testing.T) {
	v := setup(t)
	v.publish("a", "b", "a", "c", "b")
	var j journal
	r := v.run(j.handle)
	v.settled()
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	j.want(t, "a", "b", "c")
	v.wantDeliveries(5)
	rec, err := v.guard.Group("ORDERS/billing").Inspect(v.ctx(), "a")
	if err != nil || rec.State.String() != "done" {
		t.Errorf("record %+v, %v: want done in group ORDERS/billing", rec, err)
	}
}

// TestCoordinates: without a token, messages are told apart by their place in the
// stream, and not by their content.
func TestCoordinates(t *testing.T) {
	v := setup(t)
	for range 3 {
		v.send(&nats.Msg{Subject: "orders.x", Data: []byte("x")})
	}
	var j journal
	v.run(j.handle)
	v.settled()
	j.want(t, "x", "x", "x")
}

// TestLongHandler: a handler that takes ten times AckWait is not delivered again.
func TestLongHandler(t *testing.T) {
	v := setup(t, ackWait(shortAckWait))
	v.publish("a", "b")
	var j journal
	v.run(func(ctx context.Context, msg jetstream.Msg) error {
		if string(msg.Data()) == "a" {
			work(10 * shortAckWait)
		}
		return j.handle(ctx, msg)
	})
	v.settled()
	j.want(t, "a", "b")
	v.wantDeliveries(2)
}

// TestBackOff: the shortest entry of BackOff counts, not AckWait.
func TestBackOff(t *testing.T) {
	v := setup(t, func(cc *jetstream.ConsumerConfig) {
		cc.BackOff = []time.Duration{10 * time.Second, shortAckWait}
	})
	v.publish("a")
	// The second delivery is the one with the short wait.
	b, err := v.source.Fetch(1, jetstream.FetchMaxWait(10*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	for m := range b.Messages() {
		_ = m.Nak()
	}
	var j journal
	v.run(func(ctx context.Context, msg jetstream.Msg) error {
		work(5 * shortAckWait)
		return j.handle(ctx, msg)
	})
	v.settled()
	j.want(t, "a")
	v.wantDeliveries(2)
}

// deaf loses the first ack of each message.
type deaf struct {
	jetstream.Msg
	lost *sync.Map
}

func (d deaf) Ack() error {
	meta, _ := d.Metadata()
	if _, again := d.lost.LoadOrStore(meta.Sequence.Stream, true); again {
		return d.Msg.Ack()
	}
	return nil
}

// TestLostAck: an ack that gets lost costs a delivery, not a second effect.
func TestLostAck(t *testing.T) {
	v := setup(t, ackWait(shortAckWait))
	var lost sync.Map
	v.source = &spy{Consumer: v.source, edit: func(m jetstream.Msg) jetstream.Msg { return deaf{m, &lost} }}
	v.publish("a", "b", "c")
	var j journal
	v.run(j.handle)
	v.settled()
	j.want(t, "a", "b", "c")
	v.wantDeliveries(6)
}

// TestRetryInOrder: a message that fails is tried again before the next, in place.
func TestRetryInOrder(t *testing.T) {
	v := setup(t)
	v.publish("a", "b", "c")
	var j journal
	v.run(func(ctx context.Context, msg jetstream.Msg) error {
		c, _ := idem.FromContext(ctx)
		j.add("%s%d", msg.Data(), c.Attempt())
		if string(msg.Data()) == "b" && c.Attempt() < 3 {
			return errTest
		}
		return nil
	})
	v.settled()
	j.want(t, "a1", "b1", "b2", "b3", "c1")
	v.wantDeliveries(3)
}

// TestNakWithDelay: without order, a failed message spends its backoff at the server.
func TestNakWithDelay(t *testing.T) {
	v := setup(t)
	v.publish("a", "b")
	var failures atomic.Int32
	v.run(func(_ context.Context, msg jetstream.Msg) error {
		meta, err := msg.Metadata()
		if err != nil {
			return err
		}
		if string(msg.Data()) == "a" && meta.NumDelivered < 3 {
			failures.Add(1)
			return errTest
		}
		return nil
	}, idemnats.Concurrency(2))
	v.settled()
	if n := failures.Load(); n != 2 {
		t.Errorf("%d failures, want 2", n)
	}
	v.wantDeliveries(4)
}

// TestConcurrency: that many handlers run at a time.
func TestConcurrency(t *testing.T) {
	v := setup(t)
	v.publish("a", "b", "c", "d")
	var inside sync.WaitGroup
	inside.Add(4)
	var j journal
	v.run(func(ctx context.Context, msg jetstream.Msg) error {
		inside.Done()
		inside.Wait() // until all four are here
		return j.handle(ctx, msg)
	}, idemnats.Concurrency(4))
	v.settled()
	if j.len() != 4 {
		t.Errorf("handled %q", j.list())
	}
}

// TestInProgress: a message that somebody else holds is kept, not delivered again,
// and acked when that one has completed it.
func TestInProgress(t *testing.T) {
	v := setup(t, ackWait(shortAckWait))
	other := v.newGuard().Group("ORDERS/billing")
	claim, err := other.Begin(v.ctx(), "a")
	if err != nil {
		t.Fatal(err)
	}
	v.publish("a", "b")
	var j journal
	began := time.Now()
	v.run(j.handle)
	testenv.Await(t, "several AckWaits", func() bool { return time.Since(began) > 4*shortAckWait })
	if len(v.events.of(idem.EventInProgress)) == 0 {
		t.Error("the token was not asked for")
	}
	if err := claim.Commit(v.ctx()); err != nil {
		t.Fatal(err)
	}
	v.settled()
	j.want(t, "b")
	v.wantDeliveries(2)
}

// TestRetryAfter spends no budget.
func TestRetryAfter(t *testing.T) {
	for _, n := range []int{1, 2} {
		t.Run(fmt.Sprintf("concurrency %d", n), func(t *testing.T) {
			v := setup(t)
			v.publish("a")
			var j journal
			v.run(func(context.Context, jetstream.Msg) error {
				if j.add("x") < 4 {
					return idem.RetryAfter(errTest, time.Millisecond)
				}
				return nil
			}, consumers.Budget(2), idemnats.Concurrency(n))
			v.settled()
			j.want(t, "x", "x", "x", "x")
		})
	}
}

// TestStoreAway: nothing is settled, nothing is delivered again, and nobody spins.
func TestStoreAway(t *testing.T) {
	v := setup(t, ackWait(shortAckWait))
	source := &spy{Consumer: v.source}
	v.source = source
	v.store.Set(storefault.Away)
	v.publish("a", "b", "c")
	var j journal
	began := time.Now()
	v.run(j.handle)
	testenv.Await(t, "ten AckWaits", func() bool { return time.Since(began) > 10*shortAckWait })
	if n := j.len(); n != 0 {
		t.Errorf("%d messages were handled without a store", n)
	}
	v.wantDeliveries(3)
	// Three seconds, so three pull requests; the store is asked at growing intervals.
	if n := source.count(); n > 12 {
		t.Errorf("%d pull requests", n)
	}
	if n := v.store.Trips(); n > 60 {
		t.Errorf("%d trips to the store", n)
	}
	v.store.Set(storefault.None)
	v.settled()
	j.want(t, "a", "b", "c")
	v.wantDeliveries(3)
}

// TestLeaseLost: the handler is told. Where it returns nil, its completion is recorded
// with its own claim; where it returns an error, the message is handled again.
func TestLeaseLost(t *testing.T) {
	for _, result := range []error{nil, errTest} {
		t.Run(fmt.Sprint(result), func(t *testing.T) {
			v := setup(t)
			v.guard = v.newGuard(idem.WithLease(500 * time.Millisecond))
			v.publish("a")
			var j journal
			v.run(func(ctx context.Context, _ jetstream.Msg) error {
				if j.add("x") > 1 {
					return nil
				}
				v.store.Set(storefault.Away)
				<-ctx.Done()
				if !errors.Is(context.Cause(ctx), idem.ErrLeaseLost) {
					t.Errorf("the context ended by %v", context.Cause(ctx))
				}
				v.store.Set(storefault.None)
				return result
			})
			v.settled()
			want := 1
			if result != nil {
				want = 2
			}
			if j.len() != want {
				t.Errorf("handled %d times, want %d", j.len(), want)
			}
			v.wantDeliveries(1)
		})
	}
}

// TestNoDestination: without a dead-letter destination a message that failed for good
// ends Run, and nothing behind it is handled.
func TestNoDestination(t *testing.T) {
	v := setup(t)
	v.publish("a", "b")
	var j journal
	r := v.run(func(context.Context, jetstream.Msg) error {
		j.add("x")
		return idem.Permanent(errTest)
	})
	err := r.result()
	if !errors.Is(err, errTest) || !strings.Contains(err.Error(), "sequence 1 of stream ORDERS") || !strings.Contains(err.Error(), "DeadLetter") {
		t.Errorf("Run returned %v", err)
	}
	j.want(t, "x")
	info := v.info()
	if n := info.NumPending + uint64(info.NumAckPending); n != 2 {
		t.Errorf("%d messages are left, want 2", n)
	}
}

// TestTerminateWithoutDeadLetter: what the user said may be lost is, visibly.
func TestTerminateWithoutDeadLetter(t *testing.T) {
	v := setup(t)
	v.publish("a", "b")
	var j journal
	v.run(func(ctx context.Context, msg jetstream.Msg) error {
		_ = j.handle(ctx, msg)
		if string(msg.Data()) == "a" {
			return errTest
		}
		return nil
	}, idemnats.TerminateWithoutDeadLetter(), consumers.Budget(2))
	v.settled()
	j.want(t, "a", "a", "b")
	if dropped := v.events.of(idem.EventDropped); len(dropped) != 1 || dropped[0].Token != "a" || !errors.Is(dropped[0].Err, errTest) {
		t.Errorf("dropped: %+v", dropped)
	}
}

// TestCannotSettle: a handler moved over from a hand-written loop cannot ack too
// early.
func TestCannotSettle(t *testing.T) {
	v := setup(t)
	v.publish("a")
	var j journal
	v.run(func(ctx context.Context, msg jetstream.Msg) error {
		for name, err := range map[string]error{
			"Ack": msg.Ack(), "DoubleAck": msg.DoubleAck(ctx), "Nak": msg.Nak(), "NakWithDelay": msg.NakWithDelay(time.Hour),
			"Term": msg.Term(), "TermWithReason": msg.TermWithReason("no"),
		} {
			if !errors.Is(err, idemnats.ErrSettledByConsumer) {
				t.Errorf("%s returned %v", name, err)
			}
		}
		if err := msg.InProgress(); err != nil {
			t.Errorf("InProgress returned %v", err)
		}
		if info := v.info(); info.NumAckPending != 1 {
			t.Errorf("the server awaits %d acks in the handler, want 1", info.NumAckPending)
		}
		if msg.Subject() != "orders.a" || msg.Headers().Get(idem.Header) != "a" || msg.Reply() == "" {
			t.Errorf("subject %q, headers %v, reply %q", msg.Subject(), msg.Headers(), msg.Reply())
		}
		return j.handle(ctx, msg)
	})
	v.settled()
	j.want(t, "a")
}

// counting counts confirmed acks.
type counting struct {
	jetstream.Msg
	plain, double *atomic.Int32
}

func (c counting) Ack() error { c.plain.Add(1); return c.Msg.Ack() }
func (c counting) DoubleAck(ctx context.Context) error {
	c.double.Add(1)
	return c.Msg.DoubleAck(ctx)
}

func TestDoubleAck(t *testing.T) {
	v := setup(t)
	var plain, double atomic.Int32
	v.source = &spy{Consumer: v.source, edit: func(m jetstream.Msg) jetstream.Msg { return counting{m, &plain, &double} }}
	v.publish("a", "b", "a")
	var j journal
	v.run(j.handle, idemnats.DoubleAck())
	v.settled()
	j.want(t, "a", "b")
	if plain.Load() != 0 || double.Load() != 3 {
		t.Errorf("%d plain acks, %d confirmed; want 0 and 3", plain.Load(), double.Load())
	}
	if failed := v.events.of(idem.EventSettleFailed); len(failed) != 0 {
		t.Errorf("failed: %+v", failed)
	}
}

// TestOrderBy: messages of one key in order, different keys at a time.
func TestOrderBy(t *testing.T) {
	v := setup(t)
	const keys, each = 8, 10
	for i := range each {
		for k := range keys {
			msg := nats.NewMsg(fmt.Sprintf("orders.k%d", k))
			msg.Data = fmt.Append(nil, i)
			v.send(msg)
		}
	}
	var mu sync.Mutex
	next := map[string]int{}
	busy := map[string]bool{}
	var at, most, all atomic.Int32
	v.run(func(_ context.Context, msg jetstream.Msg) error {
		k := msg.Subject()
		most.Store(max(most.Load(), at.Add(1)))
		defer at.Add(-1)
		mu.Lock()
		if want := fmt.Sprint(next[k]); want != string(msg.Data()) || busy[k] {
			t.Errorf("%s: message %s, want %s; another one of the key at work: %v", k, msg.Data(), want, busy[k])
		}
		busy[k] = true
		mu.Unlock()
		work(2 * time.Millisecond)
		mu.Lock()
		defer mu.Unlock()
		busy[k] = false
		if all.Add(1)%7 == 0 {
			return errTest
		}
		next[k]++
		return nil
	}, idemnats.Concurrency(4), idemnats.OrderBy(func(m jetstream.Msg) string { return m.Subject() }))
	v.settled()
	for k := range keys {
		if n := next[fmt.Sprintf("orders.k%d", k)]; n != each {
			t.Errorf("key %d: %d messages handled, want %d", k, n, each)
		}
	}
	if most.Load() < 2 || most.Load() > 4 {
		t.Errorf("%d handlers at a time, want 2 to 4", most.Load())
	}
	v.wantDeliveries(keys * each)
}

// TestOrderByPanics: a message on which the key function panics is refused like one
// without a token, and ends no process; those behind it are handled.
func TestOrderByPanics(t *testing.T) {
	key := func(m jetstream.Msg) string {
		if string(m.Data()) == "bad" {
			panic("no customer")
		}
		return m.Subject()
	}
	t.Run("dead-lettered", func(t *testing.T) {
		v := setup(t)
		v.publish("bad", "a")
		var j journal
		v.run(j.handle, idemnats.Concurrency(4), idemnats.OrderBy(key), v.deadLetter())
		v.settled()
		j.want(t, "a")
		v.wantDeliveries(2)
		dead := v.deadLetters()
		if len(dead) != 1 || string(dead[0].Data) != "bad" {
			t.Fatalf("dead letters: %v", dead)
		}
		if h := dead[0].Header; h.Get(idem.Header) != "bad" || !strings.Contains(h.Get(consumers.HeaderError), "OrderBy: the function panicked: no customer") {
			t.Errorf("headers %v", h)
		}
	})
	t.Run("without a destination", func(t *testing.T) {
		v := setup(t)
		v.publish("bad")
		var j journal
		r := v.run(j.handle, idemnats.Concurrency(4), idemnats.OrderBy(key))
		err := r.result()
		if err == nil {
			t.Fatal("Run returned nil")
		}
		for _, want := range []string{"sequence 1 of stream ORDERS", "OrderBy", "no customer", "DeadLetter"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("Run returned %v, want it to say %q", err, want)
			}
		}
		j.want(t)
		if info := v.info(); info.NumPending+uint64(info.NumAckPending) != 1 {
			t.Errorf("the server owes %d + %d messages, want 1", info.NumPending, info.NumAckPending)
		}
	})
}
