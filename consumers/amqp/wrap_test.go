package idemamqp_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/idemq/idemq/consumers"
	idemamqp "github.com/idemq/idemq/consumers/amqp"
	"github.com/idemq/idemq/idem"
)

func (v *env) wrap(h idemamqp.Handler, opts ...idemamqp.Option) func(context.Context, amqp.Delivery) error {
	v.t.Helper()
	opts = append([]idemamqp.Option{consumers.Backoff(time.Millisecond, 20*time.Millisecond)}, opts...)
	f, err := idemamqp.Wrap(v.guard, h, opts...)
	if err != nil {
		v.t.Fatal(err)
	}
	return f
}

// A loop of the caller's: done, a duplicate, one that fails twice, one that is
// dead-lettered.
func TestWrap(t *testing.T) {
	v := setup(t)
	v.publish("a", "a", "b", "c")
	s := v.source()
	defer s.conn.Close()
	var j journal
	f := v.wrap(func(ctx context.Context, d amqp.Delivery) error {
		n := j.len()
		j.add("%s", d.Body)
		switch {
		case string(d.Body) == "b" && n < 3:
			return errTest
		case string(d.Body) == "c":
			return idem.Permanent(errTest)
		}
		return nil
	}, v.deadLetter(), idemamqp.PublishOn(s.out))
	for range 4 {
		if err := f(t.Context(), <-s.deliveries); err != nil {
			t.Error(err)
		}
	}
	v.settled()
	j.want(t, "a", "b", "b", "b", "c")
	if n := len(v.deadLetters()); n != 1 {
		t.Errorf("%d dead letters", n)
	}
}

// An error says that the delivery is unsettled.
func TestWrapLeavesUnsettled(t *testing.T) {
	v := setup(t)
	v.publish("a")
	s := v.source()
	d := <-s.deliveries
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var j journal
	if err := v.wrap(j.handle)(ctx, d); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end of ctx: %v", err)
	}
	if err := v.wrap(bury)(t.Context(), d); err == nil || !strings.Contains(err.Error(), "dead-letter destination") {
		t.Errorf("without a destination: %v", err)
	}
	v.wantOwed(1)

	// Handled, and the ack cannot be sent: the loop has to know.
	f := v.wrap(func(ctx context.Context, d amqp.Delivery) error {
		if err := s.conn.Close(); err != nil {
			t.Error(err)
		}
		return j.handle(ctx, d)
	})
	if err := f(t.Context(), d); err == nil || !strings.Contains(err.Error(), "ack of delivery 1") || !strings.Contains(err.Error(), "closed") {
		t.Errorf("after the loss of the channel: %v", err)
	}
	if err := f(t.Context(), d); err == nil || !strings.Contains(err.Error(), "closed") {
		t.Errorf("a delivery of a closed channel: %v", err)
	}
	j.want(t, "a")
	v.wantOwed(1)
	next := v.source()
	defer next.conn.Close()
	if err := f(t.Context(), <-next.deliveries); err != nil {
		t.Errorf("the next channel: %v", err)
	}
	v.settled()
	j.want(t, "a")
}

// A panic goes on to the caller, and the message is not settled.
func TestWrapPanics(t *testing.T) {
	v := setup(t)
	v.publish("a")
	s := v.source()
	f := v.wrap(func(context.Context, amqp.Delivery) error { panic("a test") })
	func() {
		defer func() {
			if r := recover(); r != "a test" {
				t.Errorf("recovered %v", r)
			}
		}()
		_ = f(t.Context(), <-s.deliveries)
	}()
	_ = s.conn.Close()
	v.wantOwed(1)
	var j journal
	v.run(j.handle)
	v.settled()
	j.want(t, "a")
}
