package idemamqp_test

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/goleak"

	"github.com/idemq/idemq/consumers"
	idemamqp "github.com/idemq/idemq/consumers/amqp"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store/memstore"
	"github.com/idemq/idemq/internal/rabbittest"
	"github.com/idemq/idemq/internal/storefault"
	"github.com/idemq/idemq/internal/testenv"
)

// shared is the server of all tests that do not kill theirs.
var shared rabbittest.Shared

// The tests wait far more than they compute.
func TestMain(m *testing.M) {
	if err := flag.Set("test.parallel", "8"); err != nil { // the command line's comes later, and wins
		panic(err)
	}
	code := m.Run()
	shared.Stop()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// env is a server with a queue of the test's own and one for its dead letters.
type env struct {
	t           *testing.T
	srv         *rabbittest.Server
	conn        *amqp.Connection // of the test
	ch          *amqp.Channel    // in confirm mode
	queue, dead string
	store       *storefault.Store
	guard       *idem.Guard
	events      *events
}

// setup uses the shared server.
func setup(t *testing.T, args ...amqp.Table) *env {
	t.Helper()
	t.Parallel()
	return setupOn(t, shared.Server(t), args...)
}

func setupOn(t *testing.T, srv *rabbittest.Server, args ...amqp.Table) *env {
	t.Helper()
	v := &env{t: t, srv: srv, queue: t.Name(), dead: t.Name() + "-dead", store: storefault.New(memstore.New()), events: &events{}}
	v.conn = v.dial()
	v.ch = v.channel(v.conn)
	if err := v.ch.Confirm(false); err != nil {
		t.Fatal(err)
	}
	v.declare(v.queue, args...)
	v.declare(v.dead)
	v.guard = v.newGuard()
	return v
}

// dial opens a connection that ends with the test.
func (v *env) dial() *amqp.Connection {
	v.t.Helper()
	conn, err := amqp.Dial(v.srv.URL())
	if err != nil {
		v.t.Fatal(err)
	}
	v.t.Cleanup(func() { _ = conn.CloseDeadline(time.Now().Add(time.Second)) })
	return conn
}

func (v *env) channel(conn *amqp.Connection) *amqp.Channel {
	v.t.Helper()
	ch, err := conn.Channel()
	if err != nil {
		v.t.Fatal(err)
	}
	return ch
}

func (v *env) declare(queue string, args ...amqp.Table) {
	v.t.Helper()
	table := amqp.Table{}
	for _, a := range args {
		maps.Copy(table, a)
	}
	if _, err := v.ch.QueueDeclare(queue, true, false, false, false, table); err != nil {
		v.t.Fatal(err)
	}
	v.t.Cleanup(func() {
		if ch, err := v.conn.Channel(); err == nil {
			_, _ = ch.QueueDelete(queue, false, false, false)
		}
	})
}

func (v *env) newGuard(opts ...idem.Option) *idem.Guard {
	return idem.New(append([]idem.Option{idem.WithStore(v.store), idem.WithObserver(v.events), idem.WithLease(2 * time.Second)}, opts...)...).Group("billing")
}

// publish sends a message for each token, with the token as body.
func (v *env) publish(tokens ...string) {
	v.t.Helper()
	for _, token := range tokens {
		msg := amqp.Publishing{Body: []byte(token)}
		idemamqp.SetToken(&msg, token)
		v.send(msg)
	}
}

func (v *env) send(msg amqp.Publishing) {
	v.t.Helper()
	msg.DeliveryMode = amqp.Persistent
	c, err := v.ch.PublishWithDeferredConfirm("", v.queue, true, false, msg)
	if err != nil {
		v.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if ok, err := c.WaitContext(ctx); !ok || err != nil {
		v.t.Fatalf("publishing: not confirmed: %v", err)
	}
}

func (v *env) owed() int {
	v.t.Helper()
	return v.srv.Messages(v.t, v.queue)
}

// settled waits until the broker owes nothing.
func (v *env) settled() {
	v.t.Helper()
	testenv.Await(v.t, "all messages to be settled", func() bool { return v.owed() == 0 })
}

func (v *env) wantOwed(n int) {
	v.t.Helper()
	if got := v.owed(); got != n {
		v.t.Errorf("the broker owes %d messages, want %d", got, n)
	}
}

// deadLetters returns what the dead-letter queue has, and leaves it there.
func (v *env) deadLetters() []amqp.Delivery {
	v.t.Helper()
	return peek(v.t, v.conn, v.dead)
}

// peek returns what a queue has, and leaves it there.
func peek(tb testing.TB, conn *amqp.Connection, queue string) []amqp.Delivery {
	tb.Helper()
	ch, err := conn.Channel()
	if err != nil {
		tb.Fatal(err)
	}
	defer ch.Close() // requeues
	var all []amqp.Delivery
	for {
		d, ok, err := ch.Get(queue, false)
		if err != nil {
			tb.Fatal(err)
		}
		if !ok {
			return all
		}
		all = append(all, d)
	}
}

func (v *env) deadLetter() idemamqp.Option { return idemamqp.DeadLetter("", v.dead) }

// running is a Run under way.
type running struct {
	t      *testing.T
	cancel context.CancelFunc
	done   chan error
}

// run starts a queue consumer, which ends with the test at the latest.
func (v *env) run(h idemamqp.Handler, opts ...idemamqp.Option) *running {
	v.t.Helper()
	return v.runAt(v.srv.URL(), h, opts...)
}

func (v *env) runAt(url string, h idemamqp.Handler, opts ...idemamqp.Option) *running {
	v.t.Helper()
	opts = append([]idemamqp.Option{consumers.Backoff(time.Millisecond, 20*time.Millisecond)}, opts...)
	c, err := idemamqp.NewQueueConsumer(url, v.queue, v.guard, h, opts...)
	if err != nil {
		v.t.Fatal(err)
	}
	return v.start(c)
}

func (v *env) start(c *idemamqp.Consumer) *running {
	v.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{v.t, cancel, make(chan error, 1)}
	go func() { r.done <- c.Run(ctx) }()
	v.t.Cleanup(func() {
		cancel()
		select {
		case err := <-r.done:
			v.t.Logf("Run returned %v", err)
		case <-time.After(30 * time.Second):
			v.t.Error("Run does not return")
		}
	})
	return r
}

// source is a subscription of the test's own.
type source struct {
	conn       *amqp.Connection
	ch         *amqp.Channel
	out        *amqp.Channel // for dead letters
	deliveries <-chan amqp.Delivery
}

// prefetch of a source.
const prefetch = 16

func (v *env) source() *source {
	v.t.Helper()
	return v.sourceOf(v.dial())
}

func (v *env) sourceOf(conn *amqp.Connection) *source {
	v.t.Helper()
	s := &source{conn: conn, ch: v.channel(conn), out: v.channel(conn)}
	if err := s.ch.Qos(prefetch, 0, false); err != nil {
		v.t.Fatal(err)
	}
	var err error
	if s.deliveries, err = s.ch.Consume(v.queue, "", false, false, false, false, nil); err != nil {
		v.t.Fatal(err)
	}
	return s
}

// runOn starts a consumer of a source.
func (v *env) runOn(s *source, h idemamqp.Handler, opts ...idemamqp.Option) *running {
	v.t.Helper()
	opts = append([]idemamqp.Option{
		consumers.Backoff(time.Millisecond, 20*time.Millisecond), idemamqp.Prefetch(prefetch),
		v.deadLetter(), idemamqp.PublishOn(s.out),
	}, opts...)
	c, err := idemamqp.NewConsumer(s.deliveries, v.guard, h, opts...)
	if err != nil {
		v.t.Fatal(err)
	}
	return v.start(c)
}

// result waits for the end of Run.
func (r *running) result() error {
	r.t.Helper()
	select {
	case err := <-r.done:
		r.done <- err
		return err
	case <-time.After(30 * time.Second):
		r.t.Fatal("Run does not return")
		return nil
	}
}

// stop ends Run's context and waits.
func (r *running) stop() error {
	r.t.Helper()
	r.cancel()
	return r.result()
}

// journal notes what handlers did.
type journal struct {
	mu  sync.Mutex
	all []string
}

func (j *journal) add(format string, args ...any) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.all = append(j.all, fmt.Sprintf(format, args...))
	return len(j.all)
}

func (j *journal) list() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.all)
}

func (j *journal) len() int { return len(j.list()) }

// handle notes the body of each message.
func (j *journal) handle(_ context.Context, d amqp.Delivery) error {
	j.add("%s", d.Body)
	return nil
}

func (j *journal) want(t *testing.T, entries ...string) {
	t.Helper()
	if got := j.list(); !slices.Equal(got, entries) {
		t.Errorf("handled %q, want %q", got, entries)
	}
}

// events keeps what observers are told.
type events struct {
	mu  sync.Mutex
	all []idem.Event
}

func (e *events) Observe(ev idem.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, ev)
}

func (e *events) of(k idem.EventKind) []idem.Event {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []idem.Event
	for _, ev := range e.all {
		if ev.Kind == k {
			out = append(out, ev)
		}
	}
	return out
}
