package idemamqp_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/idemq/idemq/consumers"
	idemamqp "github.com/idemq/idemq/consumers/amqp"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/internal/storefault"
	"github.com/idemq/idemq/internal/testenv"
)

var errTest = errors.New("a test's error")

// A failed message is tried again in memory: the broker delivers it once.
func TestRetriesInPlace(t *testing.T) {
	v := setup(t)
	v.publish("a", "b")
	var j journal
	v.run(func(_ context.Context, d amqp.Delivery) error {
		if d.Redelivered {
			t.Errorf("%s was delivered again", d.Body)
		}
		if n := j.add("%s %d", d.Body, d.DeliveryTag); n < 4 {
			return errTest
		}
		return nil
	})
	v.settled()
	j.want(t, "a 1", "a 1", "a 1", "a 1", "b 2")
}

// The ack of one delivery never covers another that is not done.
func TestAcksOnlyItself(t *testing.T) {
	v := setup(t)
	v.publish("a", "b", "c", "d")
	var j journal
	finish := make(chan struct{})
	r := v.run(func(ctx context.Context, d amqp.Delivery) error {
		if string(d.Body) == "b" {
			<-finish
		}
		return j.handle(ctx, d)
	}, idemamqp.Concurrency(4))
	testenv.Await(t, "all others to be acked", func() bool { return v.owed() == 1 && j.len() == 3 })
	close(finish)
	v.settled()
	if err := r.stop(); err != nil {
		t.Error(err)
	}
}

// The handler's message cannot settle.
func TestHandlerCannotSettle(t *testing.T) {
	v := setup(t)
	v.publish("a")
	v.run(func(_ context.Context, d amqp.Delivery) error {
		for name, err := range map[string]error{
			"Ack": d.Ack(false), "Ack(multiple)": d.Ack(true), "Nack": d.Nack(false, true), "Reject": d.Reject(false),
		} {
			if !errors.Is(err, idemamqp.ErrSettledByConsumer) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if n := v.owed(); n != 1 {
			t.Errorf("the broker owes %d messages: the handler settled", n)
		}
		return nil
	})
	v.settled()
}

// A channel without Qos, over which the broker sends the whole queue: Run ends, and says
// so; nothing is lost.
func TestQosMissing(t *testing.T) {
	v := setup(t)
	const n = 3 * prefetch
	var want []string
	for i := range n {
		want = append(want, fmt.Sprintf("token-%02d", i))
	}
	v.publish(want...)
	s := v.source() // with Qos: this one is not used
	_ = s.conn.Close()
	conn := v.dial()
	ch := v.channel(conn)
	deliveries, err := ch.Consume(v.queue, "", false, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	c, err := idemamqp.NewConsumer(deliveries, v.guard, func(ctx context.Context, _ amqp.Delivery) error {
		<-ctx.Done()
		return context.Cause(ctx)
	}, idemamqp.Prefetch(prefetch), consumers.DrainTimeout(time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	if err := v.start(c).result(); err == nil || !strings.Contains(err.Error(), "Channel.Qos") {
		t.Errorf("Run returned %v, want one that names Channel.Qos", err)
	}
	_ = conn.Close()
	v.wantOwed(n)
	var j journal
	v.run(j.handle)
	v.settled()
	j.want(t, want...)
}

// A subscription that acks by itself: the first settlement finds it out, and Run says
// what it was.
func TestAutoAck(t *testing.T) {
	v := setup(t)
	v.publish("a")
	ch := v.channel(v.dial())
	deliveries, err := ch.Consume(v.queue, "", true, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	var j journal
	c, err := idemamqp.NewConsumer(deliveries, v.guard, j.handle, idemamqp.Prefetch(prefetch))
	if err != nil {
		t.Fatal(err)
	}
	if err := v.start(c).result(); err == nil || !strings.Contains(err.Error(), "autoAck") {
		t.Errorf("Run returned %v, want one that names autoAck", err)
	}
	j.want(t, "a")
}

// At the end of Run what was not started comes to the next consumer at once, though a
// handler goes on.
func TestStopGivesBackAtOnce(t *testing.T) {
	v := setup(t)
	v.publish("a", "b", "c", "d", "e", "f", "g", "h")
	var j journal
	var once sync.Once
	started, finish := make(chan struct{}), make(chan struct{})
	r := v.run(func(ctx context.Context, d amqp.Delivery) error {
		once.Do(func() { close(started) })
		<-finish
		return j.handle(ctx, d)
	})
	<-started
	r.cancel()
	close(finish)
	if err := r.result(); err != nil {
		t.Errorf("Run returned %v", err)
	}
	began := time.Now()
	next := v.run(j.handle)
	v.settled()
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("the next consumer had them after %v", took)
	}
	if err := next.stop(); err != nil {
		t.Error(err)
	}
	got := j.list()
	slices.Sort(got)
	if !slices.Equal(got, []string{"a", "b", "c", "d", "e", "f", "g", "h"}) {
		t.Errorf("handled %q", got)
	}
	if n := len(v.events.of(idem.EventInProgress)); n != 0 {
		t.Errorf("%d claims were left to their lease", n)
	}
}

// With Concurrency, what is on its way when Run's context ends is requeued while
// handlers still run.
func TestStopSendsBackWhatIsOnItsWay(t *testing.T) {
	v := setup(t)
	finish := make(chan struct{})
	started := make(chan struct{}, 2)
	r := v.run(func(context.Context, amqp.Delivery) error {
		started <- struct{}{}
		<-finish
		return nil
	}, idemamqp.Concurrency(2))
	v.publish("a", "b")
	<-started
	<-started
	r.cancel()
	testenv.Await(t, "the subscription to end", func() bool { return v.consumers() == 0 })
	v.publish("c")
	var j journal
	next := v.run(j.handle)
	testenv.Await(t, "the next consumer to handle", func() bool { return j.len() == 1 })
	close(finish)
	if err := r.result(); err != nil {
		t.Errorf("Run returned %v", err)
	}
	v.settled()
	if err := next.stop(); err != nil {
		t.Error(err)
	}
	j.want(t, "c")
}

// Nothing is acked before it is recorded.
func TestAckAfterRecord(t *testing.T) {
	v := setup(t)
	v.publish("a")
	var j journal
	v.run(func(ctx context.Context, d amqp.Delivery) error {
		v.store.Set(storefault.Away)
		return j.handle(ctx, d)
	})
	testenv.Await(t, "the store to be missed", func() bool { return len(v.events.of(idem.EventStoreDown)) > 0 })
	v.wantOwed(1)
	v.store.Set(storefault.None)
	v.settled()
	j.want(t, "a")
}

// Run ends at once with a context that has ended, and may be called once.
func TestRunEnds(t *testing.T) {
	v := setup(t)
	c, err := idemamqp.NewQueueConsumer(v.srv.URL(), v.queue, v.guard, (&journal{}).handle)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Run(ctx); err != nil {
		t.Errorf("Run returned %v", err)
	}
	if err := c.Run(ctx); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Errorf("the second Run returned %v", err)
	}
}
