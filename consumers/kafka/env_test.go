package idemkafka_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"go.uber.org/goleak"

	"github.com/idemq/idemq/consumers"
	idemkafka "github.com/idemq/idemq/consumers/kafka"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store/memstore"
	"github.com/idemq/idemq/internal/kafkatest"
	"github.com/idemq/idemq/internal/storefault"
	"github.com/idemq/idemq/internal/testenv"
)

// The tests wait far more than they compute.
func TestMain(m *testing.M) {
	if err := flag.Set("test.parallel", "8"); err != nil { // the command line's comes later, and wins
		panic(err)
	}
	goleak.VerifyTestMain(kafkatest.Main(m))
}

var names atomic.Int64

// unique makes a name of a topic or a group.
func unique(what string) string { return fmt.Sprintf("%s-%d", what, names.Add(1)) }

// ways are the two constructors.
var ways = []string{"reader", "group"}

// env is a broker with a topic, and a topic for dead letters.
type env struct {
	t      *testing.T
	srv    *kafkatest.Server
	topic  string
	dead   string
	group  string
	store  *storefault.Store
	guard  *idem.Guard
	events *events
	w      *kafka.Writer
}

func setup(t *testing.T, partitions int, configs ...string) *env {
	t.Helper()
	return setupOn(t, kafkatest.Shared(t), partitions, configs...)
}

func setupOn(t *testing.T, srv *kafkatest.Server, partitions int, configs ...string) *env {
	t.Helper()
	v := &env{
		t: t, srv: srv, topic: unique("orders"), dead: unique("dead"), group: unique("billing"),
		store: storefault.New(memstore.New()), events: &events{},
	}
	srv.CreateTopic(t, v.topic, partitions, configs...)
	srv.CreateTopic(t, v.dead, 1, configs...)
	v.guard = v.newGuard()
	v.w = v.writer()
	return v
}

func (v *env) newGuard(opts ...idem.Option) *idem.Guard {
	return idem.New(append([]idem.Option{idem.WithStore(v.store), idem.WithObserver(v.events), idem.WithRetention(24 * 7 * time.Hour), idem.WithLease(3 * time.Second)}, opts...)...)
}

// writer makes a writer that confirms, and closes it with the test.
func (v *env) writer() *kafka.Writer {
	transport := &kafka.Transport{}
	w := &kafka.Writer{
		Addr: kafka.TCP(v.srv.Addr()), RequiredAcks: kafka.RequireAll, BatchTimeout: time.Millisecond, BatchSize: 1000,
		Transport: transport, Balancer: &kafka.Hash{},
	}
	v.t.Cleanup(func() { _ = w.Close(); transport.CloseIdleConnections() })
	return w
}

func (v *env) config() kafka.ReaderConfig {
	return kafka.ReaderConfig{
		Brokers: []string{v.srv.Addr()}, GroupID: v.group, Topic: v.topic,
		MaxWait: 100 * time.Millisecond, HeartbeatInterval: 100 * time.Millisecond,
		SessionTimeout: 6 * time.Second, RebalanceTimeout: 6 * time.Second, JoinGroupBackoff: 100 * time.Millisecond,
		ReadLagInterval: -1,
	}
}

func (v *env) deadLetter() idemkafka.Option { return idemkafka.DeadLetter(v.w, v.dead) }

// send writes messages, in order, to the partition that their key says.
func (v *env) send(msgs ...kafka.Message) {
	v.t.Helper()
	for i := range msgs {
		msgs[i].Topic = v.topic
	}
	if err := v.w.WriteMessages(v.t.Context(), msgs...); err != nil {
		v.t.Fatal(err)
	}
}

// publish writes a message for each token, with the token as key and value.
func (v *env) publish(tokens ...string) {
	v.t.Helper()
	msgs := make([]kafka.Message, len(tokens))
	for i, token := range tokens {
		msgs[i] = kafka.Message{Key: []byte(token), Value: []byte(token)}
		idemkafka.SetToken(&msgs[i], token)
	}
	v.send(msgs...)
}

// consumer makes a consumer one way or the other. end is to be called after Run.
func (v *env) consumer(way string, c kafka.ReaderConfig, g *idem.Guard, h idemkafka.Handler, opts ...idemkafka.Option) (_ *idemkafka.Consumer, end func(), _ error) {
	opts = append([]idemkafka.Option{
		consumers.Backoff(time.Millisecond, 20*time.Millisecond), idemkafka.CommitEvery(100, 20*time.Millisecond),
	}, opts...)
	if way == "group" {
		consumer, err := idemkafka.NewGroupConsumer(c, g, h, opts...)
		return consumer, func() {}, err
	}
	r := kafka.NewReader(c)
	end = func() { _ = r.Close() }
	consumer, err := idemkafka.NewConsumer(r, g, h, opts...)
	if err != nil {
		end()
	}
	return consumer, end, err
}

// running is a Run under way.
type running struct {
	t      *testing.T
	cancel context.CancelFunc
	done   chan error
}

// run starts a consumer, which ends with the test at the latest.
func (v *env) run(way string, h idemkafka.Handler, opts ...idemkafka.Option) *running {
	v.t.Helper()
	return v.runWith(way, v.config(), h, opts...)
}

func (v *env) runWith(way string, config kafka.ReaderConfig, h idemkafka.Handler, opts ...idemkafka.Option) *running {
	v.t.Helper()
	c, end, err := v.consumer(way, config, v.guard, h, opts...)
	if err != nil {
		v.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{v.t, cancel, make(chan error, 1)}
	go func() {
		err := c.Run(ctx)
		end()
		r.done <- err
	}()
	v.t.Cleanup(func() { _ = r.stop() })
	return r
}

// result waits for the end of Run.
func (r *running) result() error {
	r.t.Helper()
	select {
	case err := <-r.done:
		r.done <- err
		return err
	case <-time.After(40 * time.Second):
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

func (r *running) mustStop() {
	r.t.Helper()
	if err := r.stop(); err != nil {
		r.t.Errorf("Run: %v", err)
	}
}

// owed is how many offsets are not committed.
func (v *env) owed() (n int) {
	v.t.Helper()
	committed := v.srv.Committed(v.t, v.group, v.topic)
	for p, end := range v.srv.Ends(v.t, v.topic) {
		n += int(end - committed[p])
	}
	return n
}

// settled waits until every offset is committed.
func (v *env) settled() {
	v.t.Helper()
	testenv.Await(v.t, "all offsets to be committed", func() bool { return v.owed() == 0 })
}

func (v *env) letters() []kafka.Message { return v.srv.All(v.t, v.dead) }

// journal notes what handlers did.
type journal struct {
	mu  sync.Mutex
	all []string
}

func (j *journal) add(s string) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.all = append(j.all, s)
	return len(j.all)
}

func (j *journal) list() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.all)
}

func (j *journal) len() int { return len(j.list()) }

// handle notes the value of each message.
func (j *journal) handle(_ context.Context, msg kafka.Message) error {
	j.add(string(msg.Value))
	return nil
}

func (j *journal) want(t *testing.T, entries ...string) {
	t.Helper()
	if got := j.list(); !slices.Equal(got, entries) {
		t.Errorf("handled %q, want %q", got, entries)
	}
}

// wantEach wants each of the entries once, in any order.
func (j *journal) wantEach(t *testing.T, entries ...string) {
	t.Helper()
	got, want := j.list(), slices.Clone(entries)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("handled %d messages, want %d: %.300q", len(got), len(want), got)
	}
}

// events are what observers are told.
type events struct {
	mu  sync.Mutex
	all []idem.Event
}

func (e *events) Observe(ev idem.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, ev)
}

func (e *events) of(k idem.EventKind) (out []idem.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, ev := range e.all {
		if ev.Kind == k {
			out = append(out, ev)
		}
	}
	return out
}

// has reports whether an event of the kind speaks of text.
func (e *events) has(k idem.EventKind, text string) bool {
	return slices.ContainsFunc(e.of(k), func(ev idem.Event) bool {
		return strings.Contains(fmt.Sprint(ev.Text, ev.Err), text)
	})
}

var errTest = errors.New("test")

func series(name string, n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf("%s-%04d", name, i)
	}
	return all
}
