package idemnats_test

import (
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/idemq/idemq/consumers"
	idemnats "github.com/idemq/idemq/consumers/nats"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/internal/natstest"
	"github.com/idemq/idemq/internal/redistest"
	"github.com/idemq/idemq/internal/testenv"
)

// quiet makes the store find nothing: what is found is the server's.
func (v *env) quiet() {
	v.store.OnVerify(func(context.Context) ([]store.Finding, error) { return nil, nil })
}

// wantFound asks and wants these findings, each of them whole.
func (v *env) wantFound(c *idemnats.Consumer, want ...string) []idem.Finding {
	v.t.Helper()
	found, err := c.Preflight(v.ctx())
	if err != nil {
		v.t.Fatalf("Preflight: %v", err)
	}
	ids := make([]string, 0, len(found))
	for _, f := range found {
		ids = append(ids, f.ID)
		for _, s := range []string{f.What, f.Consequence, f.Cure} {
			if s == "" || !strings.HasSuffix(s, ".") || strings.ToUpper(s[:1]) != s[:1] {
				v.t.Errorf("%s: %q is no sentence", f.ID, s)
			}
		}
	}
	slices.Sort(ids)
	slices.Sort(want)
	if !slices.Equal(ids, want) {
		v.t.Errorf("found %q, want %q\n%v", ids, want, found)
	}
	return found
}

// A server and a store that are set up well give nothing to say, and Strict lets them
// pass.
func TestNoFindings(t *testing.T) {
	v := setup(t)
	v.guard = idem.New(idem.WithRedis(redistest.Start(t, "--appendonly", "yes").Client(t)), idem.WithObserver(v.events))
	v.publish("a")
	v.wantFound(v.consumer(noop, v.deadLetter(), idemnats.Concurrency(4)))
	r := v.run(noop, v.deadLetter(), idemnats.Concurrency(4), consumers.Strict())
	v.settled()
	if err := r.stop(); err != nil {
		t.Errorf("Run returned %v", err)
	}
	if n := v.events.of(idem.EventFinding); len(n) != 0 {
		t.Errorf("findings about nothing: %+v", n)
	}
}

func TestFindings(t *testing.T) {
	deliver := func(n int) func(*jetstream.ConsumerConfig) {
		return func(cc *jetstream.ConsumerConfig) { cc.MaxDeliver = n }
	}
	backOffs := func(waits ...time.Duration) func(*jetstream.ConsumerConfig) {
		return func(cc *jetstream.ConsumerConfig) { cc.BackOff = waits }
	}
	for _, c := range []struct {
		name string
		edit []func(*jetstream.ConsumerConfig)
		age  time.Duration // of the stream; zero: an hour
		keep time.Duration // the guard's; zero: a day
		opts []idemnats.Option
		want []string
	}{
		{"MaxDeliver within the budget", []func(*jetstream.ConsumerConfig){deliver(10)}, 0, 0, []idemnats.Option{idemnats.AllowMaxDeliver()}, []string{"nats-max-deliver"}},
		{"MaxDeliver beyond the budget", []func(*jetstream.ConsumerConfig){deliver(10)}, 0, 0, []idemnats.Option{idemnats.AllowMaxDeliver(), consumers.Budget(9)}, nil},
		{"MaxAckPending", []func(*jetstream.ConsumerConfig){func(cc *jetstream.ConsumerConfig) { cc.MaxAckPending = 2 }}, 0, 0, []idemnats.Option{idemnats.Concurrency(3)}, []string{"nats-max-ack-pending"}},
		{"MaxAckPending that suffices", []func(*jetstream.ConsumerConfig){func(cc *jetstream.ConsumerConfig) { cc.MaxAckPending = 3 }}, 0, 0, []idemnats.Option{idemnats.Concurrency(3)}, nil},
		{"AckWait", []func(*jetstream.ConsumerConfig){ackWait(3 * time.Second)}, 0, 0, nil, []string{"nats-ack-wait"}},
		{"BackOff", []func(*jetstream.ConsumerConfig){backOffs(time.Second, time.Minute)}, 0, 0, nil, []string{"nats-ack-wait"}},
		{"BackOff that falls", []func(*jetstream.ConsumerConfig){backOffs(time.Minute, 5*time.Second)}, 0, 0, []idemnats.Option{idemnats.Concurrency(2)}, []string{"nats-backoff"}},
		{"BackOff that rises", []func(*jetstream.ConsumerConfig){backOffs(5*time.Second, time.Minute)}, 0, 0, []idemnats.Option{idemnats.Concurrency(2)}, []string{"nats-backoff"}},
		{"BackOff of one wait", []func(*jetstream.ConsumerConfig){backOffs(5*time.Second, 5*time.Second)}, 0, 0, []idemnats.Option{idemnats.Concurrency(2)}, nil},
		{"BackOff in order", []func(*jetstream.ConsumerConfig){backOffs(5*time.Second, time.Minute)}, 0, 0, nil, nil},
		{"InactiveThreshold", []func(*jetstream.ConsumerConfig){func(cc *jetstream.ConsumerConfig) { cc.InactiveThreshold = time.Hour }}, 0, 0, nil, []string{"nats-inactive-threshold"}},
		{"a consumer in memory", []func(*jetstream.ConsumerConfig){func(cc *jetstream.ConsumerConfig) { cc.MemoryStorage = true }}, 0, 0, nil, []string{"nats-consumer-memory"}},
		{"AckWait that suffices", []func(*jetstream.ConsumerConfig){ackWait(4 * time.Second)}, 0, 0, nil, nil},
		{"MaxAge", nil, 25 * time.Hour, 0, nil, []string{"nats-retention"}},
		{"MaxAge of the retention", nil, 24 * time.Hour, 0, nil, nil},
		{"no MaxAge", nil, -1, 0, nil, []string{"nats-retention"}},
		{"a short retention", nil, 0, time.Minute, nil, []string{"nats-retention"}},
		{
			"all at once",
			[]func(*jetstream.ConsumerConfig){ackWait(time.Second), deliver(5), func(cc *jetstream.ConsumerConfig) { cc.MaxAckPending = 2 }},
			-1, 0,
			[]idemnats.Option{idemnats.AllowMaxDeliver(), idemnats.Concurrency(3)},
			[]string{"nats-ack-wait", "nats-max-ack-pending", "nats-max-deliver", "nats-retention"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := setup(t, c.edit...)
			v.quiet()
			if c.keep > 0 {
				v.guard = v.newGuard(idem.WithRetention(c.keep))
			}
			if c.age != 0 {
				v.update("ORDERS", func(sc *jetstream.StreamConfig) { sc.MaxAge = max(c.age, 0) })
			}
			v.wantFound(v.consumer(noop, append(c.opts, v.deadLetter())...), c.want...)
		})
	}
}

// Without a destination the last delivery ends Run, and the server gives its message up.
func TestMaxDeliverWithoutLetters(t *testing.T) {
	v := setup(t, func(cc *jetstream.ConsumerConfig) { cc.MaxDeliver = 10 })
	v.quiet()
	opts := []idemnats.Option{idemnats.AllowMaxDeliver(), consumers.Budget(9)}
	v.wantFound(v.consumer(noop, opts...), "nats-max-deliver-letters")
	v.wantFound(v.consumer(noop, append(opts, idemnats.TerminateWithoutDeadLetter())...))
}

// What nats-backoff tells of is what the server does: the second time a message is given
// back it comes as much later as the second BackOff is longer.
func TestDelayUnderBackOff(t *testing.T) {
	const longer = 2 * time.Second
	v := setup(t, func(cc *jetstream.ConsumerConfig) {
		cc.BackOff = []time.Duration{10 * time.Second, 10*time.Second + longer}
	})
	v.quiet()
	v.publish("a")
	var tried [3]time.Time
	var n atomic.Int32
	v.run(func(context.Context, jetstream.Msg) error {
		i := n.Add(1) - 1
		tried[i] = time.Now()
		if i < 2 {
			return errTest
		}
		return nil
	}, idemnats.Concurrency(2))
	v.settled()
	if first, second := tried[1].Sub(tried[0]), tried[2].Sub(tried[1]); first > longer || second < longer {
		t.Errorf("waited %v and %v", first, second)
	}
	if found := v.events.of(idem.EventFinding); len(found) != 1 || !strings.Contains(found[0].Text, "up to 2s later") {
		t.Errorf("found %+v", found)
	}
}

func (v *env) update(stream string, edit func(*jetstream.StreamConfig)) {
	v.t.Helper()
	st, err := v.js.Stream(v.ctx(), stream)
	if err != nil {
		v.t.Fatal(err)
	}
	sc := st.CachedInfo().Config
	edit(&sc)
	if _, err := v.js.UpdateStream(v.ctx(), sc); err != nil {
		v.t.Fatal(err)
	}
}

// Where the publisher cannot be asked, the stream is not.
func TestFindingsWithoutAStream(t *testing.T) {
	v := setup(t)
	v.quiet()
	v.update("ORDERS", func(sc *jetstream.StreamConfig) { sc.MaxAge = 0 })
	v.wantFound(v.consumer(noop))
	v.wantFound(v.consumer(noop, idemnats.DeadLetter(struct{ jetstream.Publisher }{v.js}, "dead.orders")))
	other := natstest.Start(t).JetStream(t)
	if _, err := other.CreateStream(v.ctx(), jetstream.StreamConfig{Name: "DEAD", Subjects: []string{"dead.>"}}); err != nil {
		t.Fatal(err)
	}
	v.wantFound(v.consumer(noop, idemnats.DeadLetter(other, "dead.orders")))

	// Nor is another stream of its name.
	namesake, err := other.CreateStream(v.ctx(), jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := namesake.CreateConsumer(v.ctx(), v.info().Config); err != nil {
		t.Fatal(err)
	}
	v.wantFound(v.consumer(noop, idemnats.DeadLetter(other, "dead.orders")))
}

// A client that gives up ends Run with it.
func TestGivesUpReconnecting(t *testing.T) {
	v := setup(t)
	v.quiet()
	for name, c := range map[string]struct {
		opt  nats.Option
		want []string
	}{
		"the client's default": {nats.MaxReconnects(nats.DefaultMaxReconnect), []string{"nats-reconnects"}},
		"never":                {nats.NoReconnect(), []string{"nats-reconnects"}},
		"for ever":             {nats.MaxReconnects(-1), nil},
	} {
		t.Run(name, func(t *testing.T) {
			js := v.srv.JetStream(t, c.opt)
			v.wantFound(v.consumer(noop, idemnats.DeadLetter(js, "dead.orders")), c.want...)
		})
	}
}

// A work queue deletes what was acked: its age says nothing.
func TestNoFindingsOfAWorkQueue(t *testing.T) {
	v := setup(t)
	v.quiet()
	if _, err := v.js.CreateStream(v.ctx(), jetstream.StreamConfig{Name: "WORK", Subjects: []string{"work.>"}, Retention: jetstream.WorkQueuePolicy}); err != nil {
		t.Fatal(err)
	}
	source, err := v.js.CreateConsumer(v.ctx(), "WORK", jetstream.ConsumerConfig{Durable: "billing", AckPolicy: jetstream.AckExplicitPolicy, MaxDeliver: -1})
	if err != nil {
		t.Fatal(err)
	}
	v.source = source
	v.wantFound(v.consumer(noop, v.deadLetter()))
}

func TestLettersInMemory(t *testing.T) {
	v := setup(t)
	v.quiet()
	if _, err := v.js.CreateStream(v.ctx(), jetstream.StreamConfig{Name: "VOLATILE", Subjects: []string{"volatile.>"}, Storage: jetstream.MemoryStorage, MaxAge: time.Hour}); err != nil {
		t.Fatal(err)
	}
	v.wantFound(v.consumer(noop, idemnats.DeadLetter(v.js, "volatile.orders")), "nats-letters-memory")

	// Messages that are in memory themselves are no safer than their copies.
	source, err := v.js.CreateConsumer(v.ctx(), "VOLATILE", jetstream.ConsumerConfig{
		Durable: "billing", AckPolicy: jetstream.AckExplicitPolicy, MaxDeliver: -1, FilterSubject: "volatile.orders",
	})
	if err != nil {
		t.Fatal(err)
	}
	v.source = source
	v.wantFound(v.consumer(noop, idemnats.DeadLetter(v.js, "volatile.dead")))
}

// A cluster of three, in which the stream has three replicas.
func TestLettersWithFewerReplicas(t *testing.T) {
	v := setup(t)
	v.quiet()
	js := natstest.StartCluster(t, 3).Servers[0].JetStream(t)
	for name, replicas := range map[string]int{"ORDERS": 3, "DEAD": 1, "SAFE": 3} {
		sc := jetstream.StreamConfig{Name: name, Subjects: []string{strings.ToLower(name) + ".>"}, Replicas: replicas, MaxAge: time.Hour}
		testenv.Await(t, "stream "+name, func() bool {
			_, err := js.CreateOrUpdateStream(v.ctx(), sc)
			return err == nil
		})
	}
	var err error
	if v.source, err = js.CreateConsumer(v.ctx(), "ORDERS", jetstream.ConsumerConfig{Durable: "billing", AckPolicy: jetstream.AckExplicitPolicy, MaxDeliver: -1}); err != nil {
		t.Fatal(err)
	}
	v.wantFound(v.consumer(noop, idemnats.DeadLetter(js, "dead.orders")), "nats-letters-replicas")
	v.wantFound(v.consumer(noop, idemnats.DeadLetter(js, "safe.orders")))
}

// A user who may not ask is told so.
func TestStreamsThatMayNotBeAsked(t *testing.T) {
	v := setup(t)
	v.quiet()
	for _, c := range []struct {
		deny string
		want []string
	}{
		{"names", []string{"nats-letters-unknown"}},
		{"consumer", []string{"nats-stream-unknown"}},
		{"stream", []string{"nats-stream-unknown"}},
		{"dead", []string{"nats-stream-unknown"}},
	} {
		v.wantFound(v.consumer(noop, idemnats.DeadLetter(denied{v.js, c.deny}, "dead.orders")), c.want...)
	}
}

// denied is a JetStream whose server answers one question with a refusal.
type denied struct {
	jetstream.JetStream
	what string
}

var errDenied = &jetstream.APIError{Code: 403, Description: "not allowed"}

func (d denied) StreamNameBySubject(ctx context.Context, subject string) (string, error) {
	if d.what == "names" {
		return "", errDenied
	}
	return d.JetStream.StreamNameBySubject(ctx, subject)
}

func (d denied) Consumer(ctx context.Context, stream, name string) (jetstream.Consumer, error) {
	if d.what == "consumer" {
		return nil, errDenied
	}
	return d.JetStream.Consumer(ctx, stream, name)
}

func (d denied) Stream(ctx context.Context, name string) (jetstream.Stream, error) {
	if d.what == "stream" || d.what == "dead" && name == "DEAD" {
		return nil, errDenied
	}
	return d.JetStream.Stream(ctx, name)
}

// What would end Run is Preflight's error.
func TestPreflightErrors(t *testing.T) {
	v := setup(t)
	v.quiet()
	if _, err := v.consumer(noop, idemnats.DeadLetter(v.js, "nowhere")).Preflight(v.ctx()); err == nil || !strings.Contains(err.Error(), `no stream stores subject "nowhere"`) {
		t.Errorf("no stream: %v", err)
	}
	c := v.consumer(noop)
	cc := v.info().Config
	cc.MaxDeliver = 3
	if _, err := v.js.UpdateConsumer(v.ctx(), "ORDERS", cc); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Preflight(v.ctx()); err == nil || !strings.Contains(err.Error(), "MaxDeliver is 3") {
		t.Errorf("MaxDeliver: %v", err)
	}
	if err := v.js.DeleteConsumer(v.ctx(), "ORDERS", "billing"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Preflight(v.ctx()); err == nil || !strings.Contains(err.Error(), "create it first") {
		t.Errorf("no consumer: %v", err)
	}
	v.srv.Stop()
	if _, err := c.Preflight(v.ctx()); err == nil || !strings.Contains(err.Error(), "reading the JetStream consumer's settings") {
		t.Errorf("no server: %v", err)
	}
}

// Strict ends Run before the first fetch.
func TestStrictFetchesNothing(t *testing.T) {
	v := setup(t, ackWait(time.Second))
	v.publish("a")
	source := &spy{Consumer: v.source}
	v.source = source
	var j journal
	err := v.run(j.handle, consumers.Strict("memory-forgets")).result()
	if err == nil || !strings.Contains(err.Error(), `Strict("nats-ack-wait")`) {
		t.Errorf("Run returned %v", err)
	}
	if n := source.count(); n != 0 || j.len() != 0 {
		t.Errorf("%d fetches, handled %q", n, j.list())
	}
	v.run(j.handle, consumers.Strict("nats-ack-wait", "memory-forgets"))
	v.settled()
	j.want(t, "a")
}

func TestStrictIsNotForWrap(t *testing.T) {
	v := setup(t)
	if _, err := idemnats.Wrap(v.guard.Group("g"), noop, consumers.Strict()); err == nil || !strings.Contains(err.Error(), "Guard.Preflight") {
		t.Errorf("Wrap: %v", err)
	}
}
