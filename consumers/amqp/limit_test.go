package idemamqp_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/idemq/idemq/consumers"
	idemamqp "github.com/idemq/idemq/consumers/amqp"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/internal/testenv"
)

const limit = 3

var quorum = amqp.Table{"x-queue-type": "quorum", "x-delivery-limit": int32(limit)}

// returned takes the queue's only message and gives it back, n times.
func (v *env) returned(n int) {
	v.t.Helper()
	ch := v.channel(v.dial())
	defer ch.Close()
	if err := ch.Qos(1, 0, false); err != nil {
		v.t.Fatal(err)
	}
	deliveries, err := ch.Consume(v.queue, "", false, false, false, false, nil)
	if err != nil {
		v.t.Fatal(err)
	}
	for range n - 1 {
		d := <-deliveries
		if err := d.Nack(false, true); err != nil {
			v.t.Fatal(err)
		}
	}
	<-deliveries // the end of the channel gives it back
}

// What the adapter goes by: a quorum queue counts returns, in x-delivery-count, from the
// second delivery on; the last delivery bears the limit, and the next return drops the
// message.
func TestDeliveryCountOfQuorumQueues(t *testing.T) {
	v := setup(t, quorum)
	v.publish("a")
	ch := v.channel(v.dial())
	deliveries, err := ch.Consume(v.queue, "", false, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	var counts []string
	for range limit + 1 {
		d := <-deliveries
		counts = append(counts, fmt.Sprintf("%T %[1]v", d.Headers["x-delivery-count"]))
		if err := d.Nack(false, true); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("x-delivery-count: %q", counts)
	if counts[0] != "<nil> <nil>" || counts[limit] != fmt.Sprintf("int64 %d", limit) {
		t.Errorf("x-delivery-count: %q", counts)
	}
	testenv.Await(t, "the broker to drop it", func() bool { return v.owed() == 0 })
}

// The last delivery is not started: dead-lettered, or acked as a duplicate, or held
// while somebody else has it.
func TestLastDelivery(t *testing.T) {
	tests := []struct {
		name    string
		returns int
		before  func(v *env) // the last delivery
		handled int
		letters int
		reason  string
	}{
		{"not the last", limit - 1, func(*env) {}, 1, 0, "there is another delivery, should the process die"},
		{"the last", limit, func(*env) {}, 0, 1, "a process that died in it would lose the message"},
		{"a duplicate", limit, func(v *env) {
			if err := v.guard.Do(v.t.Context(), "a", func(context.Context) error { return nil }); err != nil {
				v.t.Fatal(err)
			}
		}, 0, 0, "it is done: there is nothing to dead-letter"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			v := setup(t, quorum)
			v.publish("a")
			v.returned(test.returns)
			test.before(v)
			var j journal
			v.run(j.handle, idemamqp.DeliveryLimit(limit), v.deadLetter(), consumers.Budget(2))
			v.settled()
			if n := j.len(); n != test.handled {
				t.Errorf("handled %d times, want %d: %s", n, test.handled, test.reason)
			}
			letters := v.deadLetters()
			if len(letters) != test.letters {
				t.Fatalf("%d dead letters, want %d: %s", len(letters), test.letters, test.reason)
			}
			for _, l := range letters {
				if reason := l.Headers[consumers.HeaderReason]; reason != consumers.ReasonFinal {
					t.Errorf("reason %v", reason)
				}
			}
		})
	}
	t.Run("in progress elsewhere", func(t *testing.T) {
		v := setup(t, quorum)
		v.publish("a")
		v.returned(limit)
		c, err := v.guard.Begin(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		v.run((&journal{}).handle, idemamqp.DeliveryLimit(limit), v.deadLetter())
		testenv.Await(t, "the consumer to hold it", func() bool { return len(v.events.of(idem.EventInProgress)) > 1 })
		if n := len(v.deadLetters()); n != 0 {
			t.Errorf("%d dead letters while somebody else may still finish it", n)
		}
		if err := c.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		v.settled()
		if n := len(v.deadLetters()); n != 0 {
			t.Errorf("%d dead letters, of a message that is done", n)
		}
	})
}

// A consumer that stops does not return a last delivery: the broker would drop it.
func TestStopWithLastDelivery(t *testing.T) {
	v := setup(t, quorum)
	v.publish("a")
	v.returned(limit)
	if _, err := v.guard.Begin(t.Context(), "a"); err != nil { // so that it is held
		t.Fatal(err)
	}
	r := v.run((&journal{}).handle, idemamqp.DeliveryLimit(limit), v.deadLetter())
	testenv.Await(t, "the consumer to hold it", func() bool { return len(v.events.of(idem.EventInProgress)) > 0 })
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	letters := v.deadLetters()
	if len(letters) != 1 || letters[0].Headers[consumers.HeaderReason] != consumers.ReasonFinal {
		t.Errorf("dead letters %v", letters)
	}
	v.settled()
}

// A stop returns what waits once, be it one that handles in order: what is given back does
// not come to the same consumer again.
func TestStopCountsOneReturn(t *testing.T) {
	for _, n := range []int{1, 2} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			v := setup(t, amqp.Table{"x-queue-type": "quorum", "x-delivery-limit": int32(20)})
			started, finish := make(chan struct{}, n), make(chan struct{})
			var tokens []string
			for i := range 8 {
				tokens = append(tokens, fmt.Sprint(i))
			}
			v.publish(tokens...)
			r := v.run(func(context.Context, amqp.Delivery) error {
				started <- struct{}{}
				<-finish
				return nil
			}, idemamqp.Concurrency(n))
			for range n {
				<-started
			}
			testenv.Await(t, "all to be delivered", func() bool {
				q, err := v.ch.QueueDeclarePassive(v.queue, false, false, false, false, nil)
				if err != nil {
					t.Fatal(err)
				}
				return q.Messages == 0
			})
			r.cancel()
			close(finish)
			if err := r.result(); err != nil {
				t.Fatal(err)
			}
			left := peek(t, v.conn, v.queue)
			if len(left) != len(tokens)-n {
				t.Errorf("%d messages are left", len(left))
			}
			for _, d := range left {
				if count := d.Headers["x-delivery-count"]; count != int64(1) {
					t.Errorf("%s was returned %v times", d.Body, count)
				}
			}
		})
	}
}

// Failures are tried again in memory: they spend none of the queue's deliveries.
func TestRetriesSpendNoDeliveries(t *testing.T) {
	v := setup(t, quorum)
	v.publish("a")
	var j journal
	v.run(func(_ context.Context, d amqp.Delivery) error {
		if _, ok := d.Headers["x-delivery-count"]; ok {
			t.Errorf("it was returned: %v", d.Headers)
		}
		if j.add("a") < 2*limit {
			return errTest
		}
		return nil
	})
	v.settled()
	if n := j.len(); n != 2*limit {
		t.Errorf("%d attempts", n)
	}
}

// Where the limit is within the budget, no message is held before it can be started:
// a process that dies costs its neighbours nothing.
func TestFewDeliveries(t *testing.T) {
	v := setup(t, quorum)
	v.publish("a", "b", "c", "d")
	started, finish := make(chan struct{}, 4), make(chan struct{})
	v.run(func(context.Context, amqp.Delivery) error {
		started <- struct{}{}
		<-finish
		return nil
	}, idemamqp.DeliveryLimit(limit), idemamqp.Concurrency(2))
	<-started
	<-started
	q, err := v.ch.QueueDeclarePassive(v.queue, false, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	if q.Messages != 2 {
		t.Errorf("%d messages were left in the queue, want 2", q.Messages)
	}
	close(finish)
	v.settled()
}

// A consumer that a supervisor starts again and again, without its dead-letter queue: it
// finds out before anything is delivered, so no message is returned for it.
func TestRefusedStartCostsNoReturns(t *testing.T) {
	v := setup(t, quorum)
	v.publish("a", "b")
	for range 2 {
		r := v.run((&journal{}).handle, idemamqp.DeadLetter("", "no-letters"))
		if err := r.result(); err == nil || !strings.Contains(err.Error(), "no-letters") {
			t.Fatalf("Run returned %v", err)
		}
	}
	var j journal
	v.run(func(ctx context.Context, d amqp.Delivery) error {
		if d.Redelivered {
			t.Errorf("%s was delivered before: %v", d.Body, d.Headers)
		}
		return j.handle(ctx, d)
	})
	v.settled()
	j.want(t, "a", "b")
}

// What may count as a delivery without a limit to fear: a lost session.
func TestLostSessionsCountAsReturns(t *testing.T) {
	v := setup(t, quorum)
	v.publish("a")
	var j journal
	started, finish := make(chan struct{}, 1), make(chan struct{})
	v.run(func(ctx context.Context, d amqp.Delivery) error {
		started <- struct{}{}
		<-finish
		return j.handle(ctx, d)
	}, v.deadLetter(), idemamqp.DeliveryLimit(limit), idemamqp.Config(amqp.Config{Properties: amqp.Table{"connection_name": v.queue}}))
	<-started
	for i := range limit {
		n := len(v.events.of(idem.EventInProgress))
		v.kill(v.queue)
		testenv.Await(t, fmt.Sprintf("delivery %d", i+2), func() bool { return len(v.events.of(idem.EventInProgress)) > n })
	}
	close(finish) // of the first delivery, while the last is held
	v.settled()
	j.want(t, "a")
	if n := len(v.deadLetters()); n != 0 {
		t.Errorf("%d dead letters", n)
	}
}
