package consumers_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store/memstore"
	"github.com/idemq/idemq/internal/storefault"
)

// broker is a broker in memory, with one lane: it delivers what is published, again
// where it is asked to, and again to the next consumer what was not settled. What it
// shows of the engine an adapter's tests show again on a real broker.
type broker struct {
	shape consumers.Broker

	mu       sync.Mutex
	next     int
	ready    []*message
	arrived  chan struct{}
	log      []string // settlements, in order
	letters  []letter
	dlqErr   error
	dlqTakes time.Duration // for a letter
	extErr   error
	extends  int
	ackErr   error
	ackRTT   time.Duration // how long an ack takes to be confirmed
}

type message struct {
	id         int
	headers    map[string][]string
	body       []byte
	at         time.Time
	final      bool
	deliveries int
	anonymous  bool // no coordinates
	mid        string
}

type letter struct {
	consumers.Letter
	m *message
}

func newBroker(shape consumers.Broker) *broker {
	return &broker{shape: shape, arrived: make(chan struct{}, 1)}
}

// publish makes a message of each token.
func (b *broker) publish(tokens ...string) {
	for _, t := range tokens {
		b.add(&message{headers: map[string][]string{idem.Header: {t}}})
	}
}

func (b *broker) add(m *message) {
	b.mu.Lock()
	b.next++
	m.id = b.next
	b.ready = append(b.ready, m)
	b.mu.Unlock()
	b.signal()
}

func (b *broker) signal() {
	select {
	case b.arrived <- struct{}{}:
	default:
	}
}

func (b *broker) note(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.log = append(b.log, fmt.Sprintf(format, args...))
}

func (b *broker) settlements() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.log)
}

func (b *broker) posted() []letter {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.letters)
}

// fetch gives the engine what is ready, as an adapter does.
func (b *broker) fetch(e *consumers.Engine, h handler) func(context.Context) error {
	return func(ctx context.Context) error {
		lane := e.Lane(context.WithoutCancel(ctx))
		for {
			n, err := e.Room(ctx)
			if err != nil {
				return err
			}
			b.mu.Lock()
			n = min(n, len(b.ready))
			batch := slices.Clone(b.ready[:n])
			b.ready = slices.Delete(b.ready, 0, n)
			b.mu.Unlock()
			for _, m := range batch {
				m.deliveries++
				lane.Add(&delivery{message: m, b: b, h: h})
			}
			if n == 0 {
				select {
				case <-b.arrived:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		}
	}
}

type handler func(ctx context.Context, d *delivery) error

// delivery implements consumers.Delivery.
type delivery struct {
	*message
	b *broker
	h handler
}

func (m *message) Header(name string) []string {
	for k, v := range m.headers {
		if strings.EqualFold(k, name) {
			return v
		}
	}
	return nil
}

func (m *message) Body() []byte { return m.body }
func (m *message) Coordinates() []string {
	if m.anonymous {
		return nil
	}
	return []string{"queue", fmt.Sprint(m.id)}
}
func (m *message) ID() string      { return m.mid }
func (m *message) Time() time.Time { return m.at }
func (m *message) String() string  { return fmt.Sprintf("message %d", m.id) }
func (m *message) Final() bool     { return m.final }

func (d *delivery) Handle(ctx context.Context) error { return d.h(ctx, d) }

func (d *delivery) Ack(context.Context) error {
	d.b.mu.Lock()
	err, rtt := d.b.ackErr, d.b.ackRTT
	d.b.mu.Unlock()
	time.Sleep(rtt)
	if err != nil {
		return err
	}
	d.b.note("ack %d", d.id)
	return nil
}

func (d *delivery) Terminate(context.Context) error {
	d.b.note("term %d", d.id)
	return nil
}

func (d *delivery) Redeliver(_ context.Context, after time.Duration) error {
	d.b.note("redeliver %d", d.id)
	time.AfterFunc(after, func() {
		d.b.mu.Lock()
		d.b.ready = append(d.b.ready, d.message)
		d.b.mu.Unlock()
		d.b.signal()
	})
	return nil
}

func (d *delivery) DeadLetter(_ context.Context, l consumers.Letter) error {
	time.Sleep(d.b.dlqTakes)
	d.b.mu.Lock()
	defer d.b.mu.Unlock()
	if d.b.dlqErr != nil {
		return d.b.dlqErr
	}
	d.b.letters = append(d.b.letters, letter{l, d.message})
	return nil
}

func (d *delivery) Extend(context.Context) error {
	d.b.mu.Lock()
	defer d.b.mu.Unlock()
	d.b.extends++
	return d.b.extErr
}

// moveBack publishes a dead letter's copy again.
func (b *broker) moveBack(l letter) {
	m := &message{headers: map[string][]string{}, body: l.m.body, at: l.m.at}
	maps.Copy(m.headers, l.m.headers)
	for _, h := range l.Headers(l.m.String()) {
		m.headers[h[0]] = []string{h[1]}
	}
	b.add(m)
}

// rig is a consumer on a broker and a store with faults.
type rig struct {
	t     *testing.T
	b     *broker
	store *storefault.Store
	guard *idem.Guard

	mu      sync.Mutex
	handled []string // tokens, at their handlers' start
	events  []idem.Event
}

const lease = 9 * time.Second

func newRig(t *testing.T, shape consumers.Broker, opts ...idem.Option) *rig {
	r := &rig{t: t, b: newBroker(shape), store: storefault.New(memstore.New())}
	r.guard = r.newGuard(opts...)
	return r
}

func (r *rig) newGuard(opts ...idem.Option) *idem.Guard {
	opts = append([]idem.Option{
		idem.WithStore(r.store), idem.WithLease(lease),
		idem.WithObserver(idem.ObserverFunc(func(e idem.Event) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.events = append(r.events, e)
		})),
	}, opts...)
	return idem.New(opts...).Group("billing")
}

func (r *rig) count(k idem.EventKind) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		if e.Kind == k {
			n++
		}
	}
	return n
}

func (r *rig) seen() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.handled)
}

// start runs a consumer until stop is called, which returns what Run did.
func (r *rig) start(h handler, opts ...consumers.Option) (stop func() error) {
	return r.startWith(r.guard, h, opts...)
}

func (r *rig) startWith(g *idem.Guard, h handler, opts ...consumers.Option) (stop func() error) {
	r.t.Helper()
	e := r.engine(g, opts...)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	note := func(ctx context.Context, d *delivery) error {
		token := ""
		if c, ok := idem.FromContext(ctx); ok {
			token = c.Token()
		}
		r.mu.Lock()
		r.handled = append(r.handled, token)
		r.mu.Unlock()
		return h(ctx, d)
	}
	go func() { done <- e.Run(ctx, r.b.fetch(e, note)) }()
	return func() error {
		cancel()
		return <-done
	}
}

func (r *rig) engine(g *idem.Guard, opts ...consumers.Option) *consumers.Engine {
	r.t.Helper()
	p, err := consumers.Configure(&struct{}{}, opts)
	if err != nil {
		r.t.Fatal(err)
	}
	e, err := consumers.New(g, r.b.shape, p)
	if err != nil {
		r.t.Fatal(err)
	}
	return e
}

func (r *rig) mustStop(stop func() error) {
	r.t.Helper()
	if err := stop(); err != nil {
		r.t.Errorf("Run: %v", err)
	}
}

func (r *rig) wantSettled(want ...string) {
	r.t.Helper()
	if got := r.b.settlements(); !slices.Equal(got, want) {
		r.t.Errorf("settlements %q, want %q", got, want)
	}
}

func (r *rig) wantHandled(want ...string) {
	r.t.Helper()
	if got := r.seen(); !slices.Equal(got, want) {
		r.t.Errorf("handled %q, want %q", got, want)
	}
}

var errBoom = errors.New("boom")

func fine(context.Context, *delivery) error { return nil }
