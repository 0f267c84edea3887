package idemamqp_test

import (
	"context"
	"errors"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"weak"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/idemq/idemq/consumers"
	idemamqp "github.com/idemq/idemq/consumers/amqp"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/internal/testenv"
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

// A channel that the client recovers, whose session is found over while another channel's
// delivery comes: a delivery from before is not settled in its next life either.
func TestWrapOverRecovery(t *testing.T) {
	v := setup(t)
	v.publish("x", "y", "z") // y is 2 before; afterwards it is 1, and z is 2
	other := v.queue + "-other"
	v.declare(other)
	if err := v.ch.Publish("", other, true, false, amqp.Publishing{Headers: amqp.Table{idem.Header: "other"}, Body: []byte("other")}); err != nil {
		t.Fatal(err)
	}
	ch := v.channel(v.dial())
	others, err := ch.Consume(other, "", false, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	away := make(chan struct{})
	var dials atomic.Int32
	conn, err := amqp.DialConfig(v.srv.URL(), amqp.Config{
		Recovery:   &amqp.Recovery{},
		Properties: amqp.Table{"connection_name": v.queue},
		Dial: func(network, addr string) (net.Conn, error) {
			if dials.Add(1) > 1 {
				<-away
			}
			return net.Dial(network, addr)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	s := v.sourceOf(conn)
	recovered := v.recovery(conn)
	var j journal
	f := v.wrap(j.handle)
	x, y := <-s.deliveries, <-s.deliveries
	if err := f(t.Context(), x); err != nil {
		t.Fatal(err)
	}
	testenv.Await(t, "the ack of x", func() bool { return v.owed() == 2 })
	v.kill(v.queue)
	testenv.Await(t, "the channel to be closed", s.ch.IsClosed)
	if err := f(t.Context(), <-others); err != nil {
		t.Fatal(err)
	}
	close(away)
	recovered()
	for {
		d := <-s.deliveries // as the loop does, which has y in hand
		if string(d.Body) == "z" && d.Redelivered && d.DeliveryTag == y.DeliveryTag {
			break
		}
	}
	if err := f(t.Context(), y); err == nil || !strings.Contains(err.Error(), "closed") {
		t.Errorf("the delivery from before the close: %v", err)
	}
	_ = conn.Close()
	j.want(t, "x", "other")
	v.wantOwed(2)
}

// Channels that are gone are not held on to.
func TestWrapForgetsChannels(t *testing.T) {
	v := setup(t)
	v.publish("a")
	var j journal
	f := v.wrap(j.handle)
	old := func() weak.Pointer[amqp.Channel] {
		s := v.source()
		if err := f(t.Context(), <-s.deliveries); err != nil {
			t.Fatal(err)
		}
		v.settled()
		_ = s.conn.Close()
		return weak.Make(s.ch)
	}()
	v.publish("b")
	s := v.source()
	defer s.conn.Close()
	if err := f(t.Context(), <-s.deliveries); err != nil {
		t.Fatal(err)
	}
	testenv.Await(t, "the channel to be collected", func() bool {
		runtime.GC()
		return old.Value() == nil
	})
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
