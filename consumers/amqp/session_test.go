package idemamqp_test

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/idemq/idemq/consumers"
	idemamqp "github.com/idemq/idemq/consumers/amqp"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store/memstore"
	"github.com/idemq/idemq/internal/rabbittest"
	"github.com/idemq/idemq/internal/testenv"
)

// kill closes a connection from the server's side.
func (v *env) kill(name string) {
	v.t.Helper()
	testenv.Await(v.t, "the connection "+name+" to be known", func() bool {
		return v.srv.Eval(v.t, closeByName(name)) != "[]"
	})
}

func closeByName(name string) string {
	return `[rabbit_networking:close_connection(P, "a test") || P <- rabbit_networking:connections(), ` +
		`lists:any(fun({_, _, N}) -> N =:= <<"` + name + `">>; (_) -> false end, case catch rabbit_reader:info(P, [client_properties]) of [{_, L}] when is_list(L) -> L; _ -> [] end)]`
}

// recovery returns what waits for the client to have opened a lost connection again, with
// its channels. A Close before that leaves a goroutine of a channel behind (amqp091-go
// 1.16.0).
func (v *env) recovery(conn *amqp.Connection) (await func()) {
	changes := make(chan *amqp.StateChanged, 16)
	conn.NotifyStateChange(changes)
	return func() {
		v.t.Helper()
		for {
			select {
			case c := <-changes:
				if c.To == amqp.StateOpen {
					return
				}
			case <-time.After(20 * time.Second):
				v.t.Fatal("the client does not recover its connection")
			}
		}
	}
}

// A connection that the client recovers by itself: the same channel is open again, and
// its tags start anew. The ack of a message that was delivered before must not be sent:
// there it is another message's.
func TestRecoveredChannelIsNotAcked(t *testing.T) {
	v := setup(t)
	v.publish("x", "a", "b") // a is 2 before, b is 2 afterwards
	conn, err := amqp.DialConfig(v.srv.URL(), amqp.Config{
		Recovery:   &amqp.Recovery{},
		Properties: amqp.Table{"connection_name": v.queue},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	s := v.sourceOf(conn)
	recovered := v.recovery(conn)
	started, finish := make(chan struct{}), make(chan struct{})
	r := v.runOn(s, func(_ context.Context, d amqp.Delivery) error {
		if string(d.Body) == "a" {
			if d.DeliveryTag != 2 {
				t.Errorf("a has tag %d: the test shows nothing", d.DeliveryTag)
			}
			close(started)
			<-finish
		}
		return nil
	})
	<-started
	testenv.Await(t, "x to be acked", func() bool { return v.owed() == 2 })
	v.kill(v.queue)
	recovered()
	if s.ch.IsClosed() {
		t.Fatal("the channel is closed: the test shows nothing")
	}
	close(finish)
	if err := r.result(); err == nil || !strings.Contains(err.Error(), "a test") {
		t.Errorf("Run returned %v, want an error with the broker's reason", err)
	}
	testenv.Await(t, "the ack to be refused", func() bool { return len(v.events.of(idem.EventSettleFailed)) == 1 })
	_ = conn.Close()
	v.wantOwed(2)
	var j journal
	next := v.run(j.handle)
	v.settled()
	if err := next.stop(); err != nil {
		t.Error(err)
	}
	j.want(t, "b") // a was handled: its completion is recorded
}

// A bare channel that is closed: Run ends, nothing is settled, the next consumer gets
// everything.
func TestClosedChannelEndsRun(t *testing.T) {
	tests := []struct {
		name   string
		end    func(v *env, s *source) error
		says   string
		reason string
	}{
		{"by the broker", func(v *env, s *source) error {
			_, err := s.ch.QueueDeclarePassive("no such queue", false, false, false, false, nil)
			if err == nil {
				err = errors.New("there is such a queue")
			} else {
				err = nil
			}
			return err
		}, "no such queue", "what the channel died of is what the user has to know"},
		{"by its owner", func(_ *env, s *source) error { return s.ch.Close() }, "closed", "no error is notified then, and the tags are worth nothing all the same"},
		{"with its connection", func(_ *env, s *source) error { return s.conn.Close() }, "closed", "the channel goes with it"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			v := setup(t)
			v.publish("a", "b")
			s := v.source()
			var j journal
			var once sync.Once
			started, finish := make(chan struct{}), make(chan struct{})
			r := v.runOn(s, func(ctx context.Context, d amqp.Delivery) error {
				once.Do(func() { close(started) })
				<-finish
				return j.handle(ctx, d)
			})
			<-started
			if err := test.end(v, s); err != nil {
				t.Fatal(err)
			}
			close(finish)
			err := r.result()
			if err == nil || !strings.Contains(err.Error(), test.says) || !strings.Contains(err.Error(), "subscribe anew") {
				t.Errorf("Run returned %v, want one that says %q and the cure: %s", err, test.says, test.reason)
			}
			v.wantOwed(2)
			v.run(j.handle)
			v.settled()
			j.want(t, "a", "b")
		})
	}
}

// The end of the deliveries without the end of the channel: what came is handled first.
func TestCancelledSubscription(t *testing.T) {
	v := setup(t)
	v.publish("a", "b", "c")
	s := v.source()
	var j journal
	started, finish := make(chan struct{}), make(chan struct{})
	r := v.runOn(s, func(ctx context.Context, d amqp.Delivery) error {
		if j.len() == 0 {
			close(started)
			<-finish
		}
		return j.handle(ctx, d)
	})
	<-started
	if err := s.ch.Cancel(v.consumerTag(), false); err != nil {
		t.Fatal(err)
	}
	close(finish)
	if err := r.result(); err == nil || !strings.Contains(err.Error(), "deliveries ended") {
		t.Errorf("Run returned %v", err)
	}
	v.settled()
	j.want(t, "a", "b", "c")
}

// consumerTag asks the server for the tag of the queue's first consumer.
func (v *env) consumerTag() string {
	v.t.Helper()
	return strings.Trim(v.ofConsumers(`case C of [] -> ""; [X | _] -> binary_to_list(element(2, X)) end`), `"`)
}

// consumers asks the server how many consumers the queue has.
func (v *env) consumers() int {
	v.t.Helper()
	n, err := strconv.Atoi(v.ofConsumers("length(C)"))
	if err != nil {
		v.t.Fatal(err)
	}
	return n
}

func (v *env) ofConsumers(what string) string {
	v.t.Helper()
	return v.srv.Eval(v.t, `{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"`+v.queue+`">>)), C = rabbit_amqqueue:consumers(Q), `+what)
}

// A connection that is lost while a handler runs: the handler is not cancelled, what it
// did is recorded, and the message, delivered again, is a duplicate. Order is kept.
func TestLostConnectionKeepsHandler(t *testing.T) {
	v := setup(t)
	v.publish("a", "b", "c")
	var j journal
	started, finish := make(chan struct{}), make(chan struct{})
	r := v.run(func(ctx context.Context, d amqp.Delivery) error {
		if string(d.Body) == "a" {
			close(started)
			select {
			case <-finish:
			case <-ctx.Done():
				t.Errorf("the handler was cancelled: %v", context.Cause(ctx))
			}
		}
		return j.handle(ctx, d)
	}, idemamqp.Config(amqp.Config{Properties: amqp.Table{"connection_name": v.queue}}))
	<-started
	first := v.consumerTag()
	v.kill(v.queue)
	testenv.Await(t, "a new subscription", func() bool {
		return v.consumers() == 1 && v.consumerTag() != first
	})
	if n := j.len(); n != 0 {
		t.Errorf("%d messages were handled beside the one that is first", n)
	}
	close(finish)
	v.settled()
	j.want(t, "a", "b", "c")
	if ev := v.events.of(idem.EventWaiting); len(ev) == 0 || !strings.Contains(ev[0].Err.Error(), v.queue) || !strings.Contains(ev[0].Err.Error(), "a test") {
		t.Errorf("events %v: none names the queue and the reason", ev)
	}
	if err := r.stop(); err != nil {
		t.Error(err)
	}
}

// The bound on handlers holds over the loss of a session, also where what was delivered
// again went to somebody else.
func TestConcurrencyOverSessions(t *testing.T) {
	v := setup(t)
	other := v.source() // takes its share, and settles nothing
	v.publish("a", "b", "c", "d")
	var once sync.Once
	started, finish := make(chan struct{}), make(chan struct{})
	running := make(chan struct{}, 1)
	v.run(func(context.Context, amqp.Delivery) error {
		select {
		case running <- struct{}{}:
			defer func() { <-running }()
		default:
			t.Error("two handlers run at a time")
		}
		once.Do(func() {
			close(started)
			<-finish
		})
		return nil
	}, idemamqp.Config(amqp.Config{Properties: amqp.Table{"connection_name": v.queue}}))
	testenv.Await(t, "two consumers", func() bool { return v.consumers() == 2 })
	v.publish("e", "f", "g", "h")
	<-started
	v.kill(v.queue)
	testenv.Await(t, "a new subscription", func() bool { return len(v.events.of(idem.EventWaiting)) > 0 && v.consumers() == 2 })
	before := len(v.events.of(idem.EventClaimed))
	v.publish("i", "j")
	testenv.Await(t, "the new session to have a claim", func() bool { return len(v.events.of(idem.EventClaimed)) > before })
	chance := time.NewTimer(200 * time.Millisecond)
	<-chance.C
	close(finish)
	_ = other.conn.Close()
	v.settled()
}

// A message that waits for a handler of a lost session to return has not been tried: the
// wait spends none of its budget, and ends with its own session.
func TestWaitForSlotSpendsNothing(t *testing.T) {
	v := setup(t)
	v.publish("a")
	started, finish := make(chan struct{}), make(chan struct{})
	var j journal
	v.run(func(ctx context.Context, d amqp.Delivery) error {
		if string(d.Body) == "a" {
			close(started)
			<-finish
		}
		return j.handle(ctx, d)
	}, v.deadLetter(), consumers.HandlerTimeout(50*time.Millisecond), consumers.Budget(2),
		idemamqp.Config(amqp.Config{Properties: amqp.Table{"connection_name": v.queue}}))
	<-started
	other := v.source() // gets what the consumer loses
	v.kill(v.queue)
	<-other.deliveries // a
	testenv.Await(t, "a new subscription", func() bool { return v.consumers() == 2 })
	v.publish("b", "c") // one each
	failures := func() int { return len(v.events.of(idem.EventRetry)) }
	testenv.Await(t, "several waits to end", func() bool { return failures() > 3 || len(v.events.of(idem.EventDeadLetter)) > 0 })
	if ev := v.events.of(idem.EventDeadLetter); len(ev) != 0 {
		t.Errorf("dead letters %v", ev)
	}
	close(finish)
	_ = other.conn.Close()
	v.settled()
	got := j.list()
	slices.Sort(got)
	if want := []string{"a", "b", "c"}; !slices.Equal(got, want) {
		t.Errorf("handled %q, want %q", got, want)
	}
	if n := len(v.deadLetters()); n != 0 {
		t.Errorf("%d dead letters", n)
	}
}

// The wait for a slot ends with the session: the message's claim is free, for whoever has
// it now.
func TestWaitForSlotEndsWithSession(t *testing.T) {
	v := setup(t)
	v.publish("a")
	started, finish := make(chan struct{}), make(chan struct{})
	var j journal
	v.run(func(ctx context.Context, d amqp.Delivery) error {
		if string(d.Body) == "a" {
			close(started)
			<-finish
		}
		return j.handle(ctx, d)
	}, idemamqp.Config(amqp.Config{Properties: amqp.Table{"connection_name": v.queue}}))
	<-started
	other := v.source()
	v.kill(v.queue)
	<-other.deliveries // a
	testenv.Await(t, "a new subscription", func() bool { return v.consumers() == 2 })
	n := len(v.events.of(idem.EventClaimed))
	v.publish("b", "c") // one each
	testenv.Await(t, "a claim", func() bool { return len(v.events.of(idem.EventClaimed)) > n })
	waits := v.events.of(idem.EventClaimed)[n].Token
	v.kill(v.queue)
	<-other.deliveries
	<-other.deliveries
	testenv.Await(t, "the claim to be free", func() bool {
		c, err := v.guard.Begin(t.Context(), waits)
		if err != nil {
			return false
		}
		return c.GiveBack(t.Context()) == nil
	})
	j.want(t)
	close(finish)
	_ = other.conn.Close()
	v.settled()
}

// The broker is killed and started again: the consumer comes back by itself, and so
// does one that is started while there is no broker.
func TestBrokerKilled(t *testing.T) {
	t.Parallel()
	srv := rabbittest.Start(t)
	v := setupOn(t, srv)
	var j journal
	v.run(j.handle)
	v.publish("a")
	v.settled()
	srv.Kill()
	v.run(j.handle, consumers.WorkAhead(0))
	testenv.Await(t, "both to wait", func() bool { return len(v.events.of(idem.EventWaiting)) > 4 })
	for _, ev := range v.events.of(idem.EventWaiting) {
		if ev.Wait <= 0 || ev.Wait > 5*time.Second {
			t.Errorf("a pause of %v", ev.Wait)
		}
	}
	srv.Restart()
	v.conn = v.dial()
	v.ch = v.channel(v.conn)
	if err := v.ch.Confirm(false); err != nil {
		t.Fatal(err)
	}
	v.publish("b", "c", "a")
	v.settled()
	if n := j.len(); n != 3 {
		t.Errorf("handled %q", j.list())
	}
}

// A handler that takes longer than the broker's consumer timeout: the channel is closed,
// what the handler did counts, and the cause is told.
func TestConsumerTimeout(t *testing.T) {
	t.Parallel()
	srv := rabbittest.Start(t, "consumer_timeout = 1000")
	srv.Eval(t, "application:set_env(rabbit, channel_tick_interval, 300)")
	v := setupOn(t, srv)
	v.publish("a")
	var j journal
	r := v.run(func(ctx context.Context, d amqp.Delivery) error {
		testenv.Await(t, "the channel to be closed", func() bool { return len(v.events.of(idem.EventWaiting)) > 0 || ctx.Err() != nil })
		return j.handle(ctx, d)
	})
	v.settled()
	j.want(t, "a")
	if ev := v.events.of(idem.EventWaiting); len(ev) == 0 || !strings.Contains(ev[0].Err.Error(), "consumer_timeout") {
		t.Errorf("events %v: none names consumer_timeout", ev)
	}
	if err := r.stop(); err != nil {
		t.Error(err)
	}
}

// A message that somebody else has in progress goes back to the queue after HoldLimit,
// spending nothing.
func TestHoldLimit(t *testing.T) {
	v := setup(t)
	c, err := v.guard.Begin(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	v.publish("a")
	held := make(chan amqp.Delivery, 1)
	v.run(func(ctx context.Context, d amqp.Delivery) error {
		if c, _ := idem.FromContext(ctx); c.Spent() != 0 {
			t.Errorf("%d spent", c.Spent())
		}
		held <- d
		return nil
	}, idemamqp.HoldLimit(time.Second))
	testenv.Await(t, "the consumer to hold it", func() bool { return len(v.events.of(idem.EventInProgress)) > 0 })
	watch := v.source()
	select {
	case d := <-watch.deliveries:
		if !d.Redelivered {
			t.Error("it was not with the consumer before")
		}
		if err := d.Nack(false, true); err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("it does not come back")
	}
	_ = watch.conn.Close()
	if err := c.GiveBack(t.Context()); err != nil {
		t.Fatal(err)
	}
	if d := <-held; !d.Redelivered {
		t.Error("it was held all the time")
	}
	v.settled()
}

// A queue that is deleted, and made again: the consumer waits, and says for what.
func TestQueueDeleted(t *testing.T) {
	v := setup(t)
	var j journal
	v.run(j.handle)
	v.publish("a")
	v.settled()
	if _, err := v.ch.QueueDelete(v.queue, false, false, false); err != nil {
		t.Fatal(err)
	}
	testenv.Await(t, "the consumer to miss it", func() bool {
		for _, ev := range v.events.of(idem.EventWaiting) {
			if strings.Contains(ev.Err.Error(), "NOT_FOUND") && strings.Contains(ev.Err.Error(), v.queue) {
				return true
			}
		}
		return false
	})
	v.declare(v.queue)
	v.publish("b")
	v.settled()
	j.want(t, "a", "b")
}

// Faults that the first connection finds end Run: each is named.
func TestRefusedAtFirst(t *testing.T) {
	v := setup(t)
	recovering := func(context.Context) (*amqp.Connection, error) {
		return amqp.DialConfig(v.srv.URL(), amqp.Config{Recovery: &amqp.Recovery{}})
	}
	tests := []struct {
		name, url, queue string
		opts             []idemamqp.Option
		says             []string
		reason           string
	}{
		{"wrong password", strings.Replace(v.srv.URL(), "guest:guest", "guest:secret", 1), v.queue, nil, []string{`user "guest"`, "username or password"}, "no waiting mends it"},
		{"unknown vhost", v.srv.URL() + "nowhere", v.queue, nil, []string{`vhost "nowhere"`}, "the same"},
		{"unknown queue", v.srv.URL(), "no-such-queue", nil, []string{`"no-such-queue"`, "create it first"}, "the consumer declares none: its arguments are not known here"},
		{"unknown dead-letter queue", v.srv.URL(), v.queue, []idemamqp.Option{idemamqp.DeadLetter("", "no-letters")}, []string{"DeadLetter", `"no-letters"`}, "found at the first message to bury it would be too late"},
		{"unknown dead-letter exchange", v.srv.URL(), v.queue, []idemamqp.Option{idemamqp.DeadLetter("no-exchange", "k")}, []string{"DeadLetter", `"no-exchange"`, `"k"`}, "the same"},
		{"recovery in Dial", "", v.queue, []idemamqp.Option{idemamqp.Dial(recovering)}, []string{"Dial", "Recovery"}, "an ack could reach another message"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c, err := idemamqp.NewQueueConsumer(test.url, test.queue, v.guard, (&journal{}).handle, test.opts...)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			err = c.Run(ctx)
			if err == nil {
				t.Fatalf("Run returned nil, want an error: %s", test.reason)
			}
			for _, s := range test.says {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("%q does not say %q", err, s)
				}
			}
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("the error tells the password: %v", err)
			}
		})
	}
}

// ended is a context that has ended, which nobody is told before asking.
type ended struct{ context.Context }

func (ended) Err() error { return context.Canceled }

// A context that ends as the first session begins: that is closed.
func TestEndedAtFirst(t *testing.T) {
	v := setup(t)
	v.publish("a")
	var j journal
	c, err := idemamqp.NewQueueConsumer(v.srv.URL(), v.queue, v.guard, j.handle)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Run(ended{context.Background()}); err != nil {
		t.Errorf("Run returned %v", err)
	}
	testenv.Await(t, "the subscription to end", func() bool { return v.consumers() == 0 })
	j.want(t)
}

// A broker that accepts and says nothing holds up neither the end of Run nor its error.
func TestMuteBroker(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		if conn, err := l.Accept(); err == nil {
			accepted <- conn
		}
	}()
	g := idem.New(idem.WithStore(memstore.New()))
	c, err := idemamqp.NewQueueConsumer("amqp://guest:guest@"+l.Addr().String()+"/", "q", g, (&journal{}).handle)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	conn := <-accepted
	defer conn.Close()
	if _, err := io.ReadFull(conn, make([]byte, len("AMQP\x00\x00\x09\x01"))); err != nil {
		t.Fatal(err)
	}
	cancel() // in the handshake
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("Run returned %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("Run does not return")
	}
}

// A delivery that comes between, and is not of a channel that can be watched, ends the
// session like one of another channel.
func TestForeignDelivery(t *testing.T) {
	v := setup(t)
	v.publish("a")
	s := v.source()
	d := <-s.deliveries
	other := d
	other.DeliveryTag, other.Acknowledger = 2, &fake{}
	feed := make(chan amqp.Delivery, 2)
	feed <- d
	feed <- other
	c, err := idemamqp.NewConsumer(feed, v.guard, (&journal{}).handle, idemamqp.Prefetch(prefetch))
	if err != nil {
		t.Fatal(err)
	}
	if err := v.start(c).result(); err == nil || !strings.Contains(err.Error(), "fake") || !strings.Contains(err.Error(), "subscribe anew") {
		t.Errorf("Run returned %v", err)
	}
}
