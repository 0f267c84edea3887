package idemamqp_test

import (
	"context"
	"errors"
	"net"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/idemq/idemq/consumers"
	idemamqp "github.com/idemq/idemq/consumers/amqp"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/internal/rabbittest"
	"github.com/idemq/idemq/internal/testenv"
)

func bury(context.Context, amqp.Delivery) error { return idem.Permanent(errTest) }

// exchange declares a direct exchange of the test's own.
func (v *env) exchange() string {
	v.t.Helper()
	name := v.queue + "-exchange"
	if err := v.ch.ExchangeDeclare(name, "direct", true, false, false, false, nil); err != nil {
		v.t.Fatal(err)
	}
	v.t.Cleanup(func() {
		if ch, err := v.conn.Channel(); err == nil {
			_ = ch.ExchangeDelete(name, false, false)
		}
	})
	return name
}

// A dead letter that the broker routes nowhere, or refuses, stops the consumer, with
// either constructor and with Wrap; nothing is lost.
func TestUndeliverableLetterStops(t *testing.T) {
	tests := []struct {
		name   string
		spoil  func(v *env, exchange string)
		says   string
		reason string
	}{
		{"no queue is bound", func(*env, string) {}, "NO_ROUTE", "the broker confirms it all the same: the copy would be gone, and the message acked"},
		{"the exchange was deleted", func(v *env, exchange string) {
			if err := v.ch.ExchangeDelete(exchange, false, false); err != nil {
				v.t.Fatal(err)
			}
		}, "NOT_FOUND", "the broker closes the channel: waiting mends nothing"},
	}
	for _, test := range tests {
		for _, way := range []string{"NewQueueConsumer", "NewConsumer", "Wrap"} {
			t.Run(test.name+"/"+way, func(t *testing.T) {
				v := setup(t)
				exchange := v.exchange()
				to := idemamqp.DeadLetter(exchange, "letters")
				// It fails for good once the exchange is as it is to be.
				ready := make(chan struct{})
				fail := func(ctx context.Context, d amqp.Delivery) error {
					<-ready
					return bury(ctx, d)
				}
				v.publish("a")
				var err error
				switch way {
				case "NewQueueConsumer":
					r := v.run(fail, to)
					testenv.Await(t, "the consumer to have begun", func() bool { return v.consumers() == 1 })
					test.spoil(v, exchange)
					close(ready)
					err = r.result()
				case "NewConsumer":
					test.spoil(v, exchange)
					close(ready)
					err = v.runOn(v.source(), fail, to).result()
				case "Wrap":
					test.spoil(v, exchange)
					close(ready)
					s := v.source()
					f, wrapErr := idemamqp.Wrap(v.guard, fail, to, idemamqp.PublishOn(s.out))
					if wrapErr != nil {
						t.Fatal(wrapErr)
					}
					err = f(t.Context(), <-s.deliveries)
					_ = s.conn.Close()
				}
				if !errors.Is(err, consumers.ErrUndeliverable) {
					t.Errorf("%v, want ErrUndeliverable: %s", err, test.reason)
				}
				for _, s := range []string{exchange, "letters", test.says} {
					if err == nil || !strings.Contains(err.Error(), s) {
						t.Errorf("%v does not say %q", err, s)
					}
				}
				v.wantOwed(1)
				if n := len(v.deadLetters()); n != 0 {
					t.Errorf("%d dead letters", n)
				}
			})
		}
	}
}

// A broker that refuses the connection for dead letters, as it does beyond a limit: the
// message is held until it is granted.
func TestLetterConnectionRefused(t *testing.T) {
	v := setup(t)
	v.publish("a")
	var dials atomic.Int32
	r := v.runAt("", bury, v.deadLetter(), idemamqp.Dial(func(context.Context) (*amqp.Connection, error) {
		switch dials.Add(1) {
		case 2:
			return nil, &amqp.Error{Code: amqp.NotAllowed, Reason: "NOT_ALLOWED - connection limit (1) is reached", Server: true}
		case 3:
			return nil, &amqp.Error{Code: amqp.AccessRefused, Reason: "username or password not allowed"}
		}
		return amqp.Dial(v.srv.URL())
	}))
	v.settled()
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	if n := len(v.deadLetters()); n != 1 {
		t.Errorf("%d dead letters", n)
	}
	if ev := v.events.of(idem.EventWaiting); len(ev) != 2 || !strings.Contains(ev[0].Err.Error(), "connection limit") {
		t.Errorf("events %v", ev)
	}
}

// The broker is given its time to confirm a copy, however long the connection took.
func TestLetterSlowConnection(t *testing.T) {
	t.Parallel()
	v := setupOn(t, shared.Server(t))
	v.publish("a")
	var dials atomic.Int32
	v.runAt("", bury, v.deadLetter(), idemamqp.Dial(func(ctx context.Context) (*amqp.Connection, error) {
		if dials.Add(1) == 2 {
			slow := time.NewTimer(6 * time.Second)
			defer slow.Stop()
			select {
			case <-slow.C:
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		}
		return amqp.Dial(v.srv.URL())
	}))
	v.settled()
	if ev := v.events.of(idem.EventWaiting); len(ev) != 0 {
		t.Errorf("events %v", ev)
	}
}

// A dead-letter queue that takes no more: the message is held, and delivered there when
// there is room.
func TestLetterRefusedForNow(t *testing.T) {
	v := setup(t)
	full := v.queue + "-full"
	v.declare(full, amqp.Table{"x-max-length": int32(1), "x-overflow": "reject-publish"})
	v.publish("a", "b")
	r := v.run(bury, idemamqp.DeadLetter("", full))
	testenv.Await(t, "the second to be refused", func() bool {
		ev := v.events.of(idem.EventWaiting)
		return len(ev) > 0 && strings.Contains(ev[0].Err.Error(), "nack") && strings.Contains(ev[0].Err.Error(), full)
	})
	v.wantOwed(1)
	if _, err := v.ch.QueuePurge(full, false); err != nil {
		t.Fatal(err)
	}
	v.settled()
	if got := peek(t, v.conn, full); len(got) != 1 || string(got[0].Body) != "b" {
		t.Errorf("dead letters %v", got)
	}
	if err := r.stop(); err != nil {
		t.Error(err)
	}
}

// A broker that is short of memory reads nothing from publishers: dead letters wait,
// what else is handled is acked all the while, and the end of Run is not held up.
func TestBlockedPublisher(t *testing.T) {
	t.Parallel()
	srv := rabbittest.Start(t)
	v := setupOn(t, srv)
	v.publish("fine-1")
	v.send(amqp.Publishing{Headers: amqp.Table{idem.Header: "large"}, Body: make([]byte, 32<<20)})
	v.publish("fine-2")
	srv.Ctl(t, "set_vm_memory_high_watermark", "0.000001")
	fine := func(ctx context.Context, d amqp.Delivery) error {
		if strings.HasPrefix(string(d.Body), "fine") {
			return nil
		}
		return bury(ctx, d)
	}
	opts := []idemamqp.Option{v.deadLetter(), idemamqp.Concurrency(2), consumers.DrainTimeout(100 * time.Millisecond)}
	r := v.run(fine, opts...)
	testenv.Await(t, "the fine ones to be acked, the large one to wait", func() bool {
		return v.owed() == 1 && len(v.events.of(idem.EventWaiting)) > 0
	})
	if ev := v.events.of(idem.EventWaiting); !strings.Contains(ev[0].Err.Error(), v.dead) {
		t.Errorf("%v does not name the dead-letter queue", ev[0].Err)
	}
	began := time.Now()
	if err := r.stop(); err != nil {
		t.Errorf("Run returned %v", err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("the end took %v", took)
	}
	v.wantOwed(1)
	v.run(fine, opts...)
	srv.Ctl(t, "set_vm_memory_high_watermark", "0.4")
	v.settled()
	// A copy that was given up may have been on its way: then there are two.
	copies := map[any]int{}
	for _, d := range v.deadLetters() {
		copies[d.Headers[idem.Header]]++
	}
	if len(copies) != 1 || copies["large"] == 0 {
		t.Errorf("dead letters %v", copies)
	}
}

// What the copy keeps, and what it must not keep.
func TestLetterCopy(t *testing.T) {
	v := setup(t)
	elsewhere := v.queue + "-elsewhere"
	v.declare(elsewhere)
	now := time.Now().Truncate(time.Second)
	v.send(amqp.Publishing{
		Headers: amqp.Table{
			"idempotency-KEY": "a", "Color": "red", "n": int32(7), "nothing": nil, "list": []any{"x", int64(1)},
			"CC": []any{elsewhere}, "BCC": []any{elsewhere},
			"x-death": []any{amqp.Table{"queue": "q"}}, "x-first-death-queue": "q", "x-last-death-reason": "expired", "x-mine": "kept",
			"x-delivery-count": int32(3),
		},
		ContentType: "text/plain", ContentEncoding: "utf-8", Priority: 3, CorrelationId: "corr", ReplyTo: "reply",
		Expiration: "600000", MessageId: "id", Timestamp: now, Type: "type", UserId: "guest", AppId: "app",
		Body: []byte("body"),
	})
	v.run(bury, v.deadLetter())
	v.settled()
	all := v.deadLetters()
	if len(all) != 1 {
		t.Fatalf("%d dead letters", len(all))
	}
	d := all[0]
	h := d.Headers
	for name, want := range map[string]any{
		idem.Header: "a", "Color": "red", "n": int32(7), "nothing": nil, "list": []any{"x", int64(1)}, "x-mine": "kept",
		idem.RedriveHeader: "1", consumers.HeaderReason: consumers.ReasonPermanent, consumers.HeaderGroup: "billing", consumers.HeaderAttempt: "1",
	} {
		if got, ok := h[name]; !ok || !reflect.DeepEqual(got, want) {
			t.Errorf("header %s is %v, want %v", name, got, want)
		}
	}
	for _, name := range []string{"idempotency-KEY", "CC", "BCC", "x-death", "x-first-death-queue", "x-last-death-reason", "x-delivery-count"} {
		if _, ok := h[name]; ok {
			t.Errorf("the copy has header %s", name)
		}
	}
	for _, s := range []string{v.queue, "exchange"} {
		if source, _ := h[consumers.HeaderSource].(string); !strings.Contains(source, s) {
			t.Errorf("the source %q does not say %q", source, s)
		}
	}
	want := amqp.Delivery{
		ContentType: "text/plain", ContentEncoding: "utf-8", DeliveryMode: amqp.Persistent, Priority: 3, CorrelationId: "corr",
		ReplyTo: "reply", MessageId: "id", Timestamp: now, Type: "type", AppId: "app", Body: []byte("body"),
		Exchange: "", RoutingKey: v.dead,
	}
	d.Headers, d.Acknowledger, d.DeliveryTag, d.MessageCount, d.Redelivered = nil, nil, 0, 0, false
	if !d.Timestamp.Equal(want.Timestamp) {
		t.Errorf("timestamp %v", d.Timestamp)
	}
	d.Timestamp = want.Timestamp
	if !reflect.DeepEqual(d, want) {
		t.Errorf("the copy is\n%+v, want\n%+v", d, want)
	}
	if got := peek(t, v.conn, elsewhere); len(got) != 1 {
		t.Errorf("%d messages at the queue of CC and BCC, want the original's one", len(got))
	}
}

// RejectToDLX hands the message to the queue's own dead-letter exchange.
func TestRejectToDLX(t *testing.T) {
	t.Parallel()
	v := setupOn(t, shared.Server(t))
	queue := v.queue + "-dlx"
	v.declare(queue, amqp.Table{"x-dead-letter-exchange": "", "x-dead-letter-routing-key": v.dead})
	v.queue = queue
	v.publish("a", "b")
	var j journal
	v.run(func(ctx context.Context, d amqp.Delivery) error {
		if string(d.Body) == "a" {
			return bury(ctx, d)
		}
		return j.handle(ctx, d)
	}, idemamqp.RejectToDLX())
	v.settled()
	j.want(t, "b")
	testenv.Await(t, "the broker's dead letter", func() bool { return len(v.deadLetters()) == 1 })
	if _, ok := v.deadLetters()[0].Headers["x-death"]; !ok {
		t.Error("it did not come by way of the queue's dead-letter exchange")
	}
	v.publish("a") // known as dead: the reject may not have arrived
	v.settled()
	testenv.Await(t, "the second reject", func() bool { return len(v.deadLetters()) == 2 })
	j.want(t, "b")
}

// The channel of PublishOn closed before its time: the next dead letter ends Run.
func TestPublishOnClosed(t *testing.T) {
	v := setup(t)
	v.publish("a")
	s := v.source()
	if err := s.out.Close(); err != nil {
		t.Fatal(err)
	}
	if err := v.runOn(s, bury).result(); !errors.Is(err, consumers.ErrUndeliverable) || !strings.Contains(err.Error(), "PublishOn") {
		t.Errorf("Run returned %v", err)
	}
	v.wantOwed(1)
}

// heldUp is a connection whose writes can be made to wait, as those to a broker that is short
// of memory do.
type heldUp struct {
	net.Conn
	waits   atomic.Bool
	waiting chan struct{}
	release chan struct{}
}

func (c *heldUp) Write(b []byte) (int, error) {
	if c.waits.Load() {
		select {
		case c.waiting <- struct{}{}:
		default:
		}
		<-c.release
	}
	return c.Conn.Write(b)
}

// A broker that holds up the caller's publishing does not hold up the end of a context; what
// is published later is not mixed up with what was under way.
func TestPublishOnHeldUp(t *testing.T) {
	for _, c := range []struct {
		name   string
		before int // dead letters
	}{{"at the first use", 0}, {"later", 1}} {
		t.Run(c.name, func(t *testing.T) {
			v := setup(t)
			v.publish("a", "b")
			socket := &heldUp{waiting: make(chan struct{}, 1), release: make(chan struct{})}
			release := sync.OnceFunc(func() {
				socket.waits.Store(false)
				close(socket.release)
			})
			conn, err := amqp.DialConfig(v.srv.URL(), amqp.Config{Dial: func(network, addr string) (net.Conn, error) {
				var err error
				socket.Conn, err = amqp.DefaultDial(10*time.Second)(network, addr)
				return socket, err
			}})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				release()
				_ = conn.CloseDeadline(time.Now().Add(time.Second))
			})
			f, err := idemamqp.Wrap(v.guard, bury, v.deadLetter(), idemamqp.PublishOn(v.channel(conn)), consumers.DrainTimeout(100*time.Millisecond))
			if err != nil {
				t.Fatal(err)
			}
			s := v.source()
			for range c.before {
				if err := f(t.Context(), <-s.deliveries); err != nil {
					t.Fatal(err)
				}
			}
			socket.waits.Store(true)
			d := <-s.deliveries
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- f(ctx, d) }()
			<-socket.waiting
			cancel()
			select {
			case err := <-ended:
				if !errors.Is(err, context.Canceled) {
					t.Errorf("the end: %v", err)
				}
			case <-time.After(20 * time.Second):
				t.Fatal("the function does not return")
			}
			release()
			if err := f(t.Context(), d); err != nil {
				t.Errorf("once the broker reads again: %v", err)
			}
			copies := map[any]bool{}
			for _, d := range v.deadLetters() {
				copies[d.Headers[idem.Header]] = true
			}
			if len(copies) != c.before+1 {
				t.Errorf("dead letters of %v", copies)
			}
		})
	}
}

// slowDial is a Dial that does not heed its context: from the nth call on it returns after
// release only.
type slowDial struct {
	v       *env
	nth     int32
	calls   atomic.Int32
	entered chan struct{}
	release func()
	may     chan struct{}
	conns   chan *amqp.Connection // those of calls that had to wait
}

func (v *env) slowDial(nth int32) *slowDial {
	d := &slowDial{v: v, nth: nth, entered: make(chan struct{}, 8), may: make(chan struct{}), conns: make(chan *amqp.Connection, 8)}
	d.release = sync.OnceFunc(func() { close(d.may) })
	return d
}

func (d *slowDial) dial(context.Context) (*amqp.Connection, error) {
	late := d.calls.Add(1) >= d.nth
	if late {
		d.entered <- struct{}{}
		<-d.may
	}
	conn, err := amqp.Dial(d.v.srv.URL())
	if err == nil && late {
		d.conns <- conn
	}
	return conn, err
}

// wantClosed waits for a late connection, and for its end.
func (d *slowDial) wantClosed() {
	d.v.t.Helper()
	select {
	case conn := <-d.conns:
		testenv.Await(d.v.t, "the late connection to be closed", conn.IsClosed)
	case <-time.After(20 * time.Second):
		d.v.t.Error("no connection was opened")
	}
}

// Run ends though the Dial for a dead letter does not. The message stays in the queue, and
// the connection that comes after all is closed.
func TestDialDoesNotReturn(t *testing.T) {
	v := setup(t)
	v.publish("a")
	d := v.slowDial(2) // the first is the subscription's
	r := v.runAt("", bury, v.deadLetter(), consumers.DrainTimeout(100*time.Millisecond), idemamqp.Dial(d.dial))
	t.Cleanup(d.release) // before r's, which waits for Run
	<-d.entered
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	testenv.Await(t, "the message to be back in its queue", func() bool {
		all := peek(t, v.conn, v.queue)
		return len(all) == 1 && string(all[0].Body) == "a"
	})
	d.release()
	d.wantClosed()
	if n := len(v.deadLetters()); n != 0 {
		t.Errorf("%d dead letters after the end", n)
	}
}

// A destination that was closed meanwhile keeps no connection, also where its publisher's
// context goes on, and opens none.
func TestLetterClosedMeanwhile(t *testing.T) {
	v := setup(t)
	d := v.slowDial(1)
	t.Cleanup(d.release)
	l := idemamqp.NewLetters(v.dead, d.dial)
	published := make(chan error, 1)
	go func() { published <- l.Publish(context.Background(), amqp.Publishing{Body: []byte("a")}) }()
	<-d.entered
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		l.Close()
	}()
	select {
	case <-closed:
	case <-time.After(20 * time.Second):
		t.Fatal("Close does not return")
	}
	d.release()
	if err := <-published; err != nil {
		t.Errorf("the copy that was on its way: %v", err)
	}
	d.wantClosed()
	if err := l.Publish(context.Background(), amqp.Publishing{Body: []byte("b")}); err == nil || !strings.Contains(err.Error(), "has ended") {
		t.Errorf("publishing after the end: %v", err)
	}
	if n := d.calls.Load(); n != 1 {
		t.Errorf("%d connections were opened, want 1", n)
	}
}
