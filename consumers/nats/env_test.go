package idemnats_test

import (
	"context"
	"flag"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/idemq/idemq/consumers"
	idemnats "github.com/idemq/idemq/consumers/nats"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store/memstore"
	"github.com/idemq/idemq/internal/natstest"
	"github.com/idemq/idemq/internal/storefault"
	"github.com/idemq/idemq/internal/testenv"
)

// The tests wait far more than they compute.
func TestMain(m *testing.M) {
	if err := flag.Set("test.parallel", "8"); err != nil { // the command line's comes later, and wins
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

const shortAckWait = 700 * time.Millisecond

// env is a server with the stream ORDERS, its consumer "billing", and the stream DEAD.
type env struct {
	t      *testing.T
	srv    *natstest.Server
	js     jetstream.JetStream
	source jetstream.Consumer
	store  *storefault.Store
	guard  *idem.Guard
	events *events
	last   uint64 // sequence published to ORDERS
}

func setup(t *testing.T, edit ...func(*jetstream.ConsumerConfig)) *env {
	t.Helper()
	t.Parallel()
	v := &env{t: t, srv: natstest.Start(t), store: storefault.New(memstore.New()), events: &events{}}
	v.js = v.srv.JetStream(t)
	v.stream("ORDERS", "orders.>")
	v.stream("DEAD", "dead.>")
	cc := jetstream.ConsumerConfig{Durable: "billing", AckPolicy: jetstream.AckExplicitPolicy, MaxDeliver: -1, AckWait: 30 * time.Second}
	for _, e := range edit {
		e(&cc)
	}
	source, err := v.js.CreateConsumer(v.ctx(), "ORDERS", cc)
	if err != nil {
		t.Fatal(err)
	}
	v.source = source
	v.guard = v.newGuard()
	return v
}

func ackWait(d time.Duration) func(*jetstream.ConsumerConfig) {
	return func(cc *jetstream.ConsumerConfig) { cc.AckWait = d }
}

func (v *env) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	v.t.Cleanup(cancel)
	return ctx
}

func (v *env) stream(name string, subjects ...string) {
	v.t.Helper()
	_, err := v.js.CreateStream(v.ctx(), jetstream.StreamConfig{Name: name, Subjects: subjects, MaxAge: time.Hour, Duplicates: time.Minute})
	if err != nil {
		v.t.Fatal(err)
	}
}

func (v *env) newGuard(opts ...idem.Option) *idem.Guard {
	return idem.New(append([]idem.Option{idem.WithStore(v.store), idem.WithObserver(v.events)}, opts...)...)
}

// publish stores a message for each token, on orders.<token>, with the token as data.
func (v *env) publish(tokens ...string) {
	v.t.Helper()
	for _, token := range tokens {
		msg := nats.NewMsg("orders." + token)
		msg.Data = []byte(token)
		idemnats.SetToken(msg, token)
		v.send(msg)
	}
}

func (v *env) send(msg *nats.Msg) {
	v.t.Helper()
	ack, err := v.js.PublishMsg(v.ctx(), msg)
	if err != nil {
		v.t.Fatal(err)
	}
	v.last = ack.Sequence
}

// running is a Run under way.
type running struct {
	t      *testing.T
	cancel context.CancelFunc
	done   chan error
}

func (v *env) consumer(h idemnats.Handler, opts ...idemnats.Option) *idemnats.Consumer {
	v.t.Helper()
	c, err := idemnats.NewConsumer(v.source, v.guard, h, opts...)
	if err != nil {
		v.t.Fatal(err)
	}
	return c
}

// run starts a consumer, which ends with the test at the latest.
func (v *env) run(h idemnats.Handler, opts ...idemnats.Option) *running {
	v.t.Helper()
	opts = append([]idemnats.Option{consumers.Backoff(time.Millisecond, 20*time.Millisecond)}, opts...)
	c := v.consumer(h, opts...)
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{v.t, cancel, make(chan error, 1)}
	go func() { r.done <- c.Run(ctx) }()
	v.t.Cleanup(func() {
		cancel()
		select {
		case err := <-r.done:
			v.t.Logf("Run returned %v", err)
		case <-time.After(20 * time.Second):
			v.t.Error("Run does not return")
		}
	})
	return r
}

// result waits for the end of Run.
func (r *running) result() error {
	r.t.Helper()
	select {
	case err := <-r.done:
		r.done <- err
		return err
	case <-time.After(20 * time.Second):
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

func (v *env) info() *jetstream.ConsumerInfo {
	v.t.Helper()
	info, err := v.source.Info(v.ctx())
	if err != nil {
		v.t.Fatal(err)
	}
	return info
}

// settled waits until everything that was published is settled.
func (v *env) settled() {
	v.t.Helper()
	testenv.Await(v.t, "all messages to be settled", func() bool {
		info := v.info()
		return info.AckFloor.Stream >= v.last && info.NumAckPending == 0
	})
}

// deliveries is how often the server has delivered, redeliveries included.
func (v *env) deliveries() uint64 { return v.info().Delivered.Consumer }

func (v *env) wantDeliveries(n uint64) {
	v.t.Helper()
	if got := v.deliveries(); got != n {
		v.t.Errorf("the server delivered %d times, want %d", got, n)
	}
}

// deadLetters returns what the stream DEAD has.
func (v *env) deadLetters() []*jetstream.RawStreamMsg {
	v.t.Helper()
	st, err := v.js.Stream(v.ctx(), "DEAD")
	if err != nil {
		v.t.Fatal(err)
	}
	var all []*jetstream.RawStreamMsg
	for i := range st.CachedInfo().State.Msgs {
		m, err := st.GetMsg(v.ctx(), i+1)
		if err != nil {
			v.t.Fatal(err)
		}
		all = append(all, m)
	}
	return all
}

func (v *env) deadLetter() idemnats.Option { return idemnats.DeadLetter(v.js, "dead.orders") }

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

// handle notes the data of each message.
func (j *journal) handle(_ context.Context, msg jetstream.Msg) error {
	j.add("%s", msg.Data())
	return nil
}

func (j *journal) want(t *testing.T, entries ...string) {
	t.Helper()
	if got := j.list(); !slices.Equal(got, entries) {
		t.Errorf("handled %q, want %q", got, entries)
	}
}

// events counts what observers are told.
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

// spy is a source whose messages pass through edit, and whose fetches are counted.
type spy struct {
	jetstream.Consumer
	edit func(jetstream.Msg) jetstream.Msg

	mu      sync.Mutex
	fetches int
}

func (s *spy) Fetch(n int, opts ...jetstream.FetchOpt) (jetstream.MessageBatch, error) {
	s.mu.Lock()
	s.fetches++
	s.mu.Unlock()
	b, err := s.Consumer.Fetch(n, opts...)
	if err != nil || s.edit == nil {
		return b, err
	}
	out := make(chan jetstream.Msg, n)
	go func() {
		defer close(out)
		for m := range b.Messages() {
			out <- s.edit(m)
		}
	}()
	return &spyBatch{b, out}, nil
}

func (s *spy) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fetches
}

type spyBatch struct {
	jetstream.MessageBatch
	out chan jetstream.Msg
}

func (b *spyBatch) Messages() <-chan jetstream.Msg { return b.out }

// work is what a handler does: it takes its time.
func work(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	<-t.C
}
