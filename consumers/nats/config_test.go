package idemnats_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/idemq/idemq/consumers"
	idemnats "github.com/idemq/idemq/consumers/nats"
	"github.com/idemq/idemq/idem"
)

func statusMsg(status, description string) *nats.Msg {
	return &nats.Msg{Subject: "orders.status", Header: nats.Header{"Status": {status}, "Description": {description}}}
}

func noop(context.Context, jetstream.Msg) error { return nil }

// described is a source with settings and no server.
type described struct {
	jetstream.Consumer
	info *jetstream.ConsumerInfo
}

func (d described) CachedInfo() *jetstream.ConsumerInfo { return d.info }

func source(edit ...func(*jetstream.ConsumerConfig)) described {
	cc := jetstream.ConsumerConfig{Durable: "billing", AckPolicy: jetstream.AckExplicitPolicy, MaxDeliver: -1, AckWait: 30 * time.Second}
	for _, e := range edit {
		e(&cc)
	}
	return described{info: &jetstream.ConsumerInfo{Stream: "ORDERS", Name: "billing", Config: cc}}
}

// TestNewConsumerRefuses: each fault is named, and what to do about it.
func TestNewConsumerRefuses(t *testing.T) {
	v := setup(t)
	g := v.guard
	js := v.js
	key := func(jetstream.Msg) string { return "" }
	batch := func(context.Context, []jetstream.Msg) []error { return nil }
	var nobody *nobodyPublisher
	for name, c := range map[string]struct {
		source jetstream.Consumer
		guard  *idem.Guard
		h      idemnats.Handler
		opts   []idemnats.Option
		want   []string
		is     error
	}{
		"nothing":       {nil, nil, nil, nil, []string{"source is nil", "guard is nil", "handler is nil"}, nil},
		"no settings":   {described{}, g, noop, nil, []string{"durable name"}, nil},
		"no durable":    {source(func(cc *jetstream.ConsumerConfig) { cc.Durable = "" }), g, noop, nil, []string{"durable name", "guard.Group"}, idem.ErrNoGroup},
		"ack all":       {source(func(cc *jetstream.ConsumerConfig) { cc.AckPolicy = jetstream.AckAllPolicy }), g, noop, nil, []string{"has to be explicit"}, nil},
		"ack none":      {source(func(cc *jetstream.ConsumerConfig) { cc.AckPolicy = jetstream.AckNonePolicy }), g, noop, nil, []string{"has to be explicit"}, nil},
		"max deliver":   {source(func(cc *jetstream.ConsumerConfig) { cc.MaxDeliver = 5 }), g, noop, nil, []string{"MaxDeliver is 5", "-1", "AllowMaxDeliver"}, nil},
		"priority":      {source(func(cc *jetstream.ConsumerConfig) { cc.PriorityPolicy = jetstream.PriorityPolicyPinned }), g, noop, nil, []string{"priority", "Wrap"}, nil},
		"headers only":  {source(func(cc *jetstream.ConsumerConfig) { cc.HeadersOnly = true }), g, noop, []idemnats.Option{idemnats.DeadLetter(js, "dead.x")}, []string{"payload"}, nil},
		"two handlers":  {source(), g, noop, []idemnats.Option{idemnats.HandleBatches(0, batch)}, []string{"give the constructor nil"}, nil},
		"no batches":    {source(), g, nil, []idemnats.Option{idemnats.HandleBatches(-1, nil)}, []string{"-1: must not be negative"}, nil},
		"no handler":    {source(), g, nil, []idemnats.Option{idemnats.HandleBatches(5, nil)}, []string{"HandleBatches: the handler is nil"}, nil},
		"no store":      {source(), idem.New(), noop, nil, nil, idem.ErrRedisNotEnabled},
		"guard's fault": {source(), idem.New(idem.WithLease(1)), noop, nil, []string{"WithLease"}, nil},
		"dead letter":   {source(), g, noop, []idemnats.Option{idemnats.DeadLetter(nil, "")}, []string{"publisher is nil", "subject is empty"}, nil},
		"typed nil":     {source(), g, noop, []idemnats.Option{idemnats.DeadLetter(nobody, "dead.*")}, []string{"publisher is nil", "wildcard"}, nil},
		"subject":       {source(), g, noop, []idemnats.Option{idemnats.DeadLetter(js, "dead..x")}, []string{"not valid"}, nil},
		"both":          {source(), g, noop, []idemnats.Option{idemnats.DeadLetter(js, "dead.x"), idemnats.TerminateWithoutDeadLetter()}, []string{"exclude"}, nil},
		"concurrency":   {source(), g, noop, []idemnats.Option{idemnats.Concurrency(0), idemnats.OrderBy(nil)}, []string{"Concurrency: 0", "OrderBy: the function is nil"}, nil},
		"order by":      {source(), g, noop, []idemnats.Option{idemnats.OrderBy(key)}, []string{"needs Concurrency"}, nil},
		"of wrap":       {source(), g, noop, []idemnats.Option{idemnats.AckWait(time.Second), idemnats.OnStop(func(error) {}), idemnats.WrapContext(context.Background())}, []string{"AckWait: is for Wrap", "OnStop: is for Wrap", "WrapContext: is for Wrap"}, nil},
		"shared":        {source(), g, noop, []idemnats.Option{consumers.Budget(0), idemnats.Concurrency(-1)}, []string{"Budget", "Concurrency: -1"}, nil},
		"another's":     {source(), g, noop, []idemnats.Option{consumers.NewOption("Prefetch", func(*int) {})}, []string{"Prefetch", "another broker"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := idemnats.NewConsumer(c.source, c.guard, c.h, c.opts...)
			if err == nil {
				t.Fatal("no error")
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%v\ndoes not say %q", err, w)
				}
			}
			if c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("%v is not %v", err, c.is)
			}
		})
	}
	if _, err := idemnats.NewConsumer(source(func(cc *jetstream.ConsumerConfig) { cc.Durable = "" }), g.Group("billing"), noop); err != nil {
		t.Errorf("a guard with a group needs no durable name: %v", err)
	}
	if _, err := idemnats.NewConsumer(source(func(cc *jetstream.ConsumerConfig) { cc.MaxDeliver = 5 }), g, noop, idemnats.AllowMaxDeliver()); err != nil {
		t.Errorf("AllowMaxDeliver: %v", err)
	}
}

type nobodyPublisher struct{ jetstream.Publisher }

func TestWrapRefuses(t *testing.T) {
	t.Parallel()
	if _, err := idemnats.Wrap(nil, nil, idemnats.Concurrency(2), idemnats.AllowMaxDeliver(), idemnats.AckWait(0), idemnats.OnStop(nil)); err == nil {
		t.Error("no error")
	} else {
		for _, w := range []string{"guard is nil", "handler is nil", "Concurrency: is for NewConsumer", "AllowMaxDeliver: is for NewConsumer", "AckWait: 0s", "OnStop: the function is nil"} {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%v\ndoes not say %q", err, w)
			}
		}
	}
	v := setupPlain(t)
	if _, err := idemnats.Wrap(v, noop); !errors.Is(err, idem.ErrNoGroup) {
		t.Errorf("without a group: %v", err)
	}
	if _, err := idemnats.Wrap(idem.New().Group("g"), noop); !errors.Is(err, idem.ErrRedisNotEnabled) {
		t.Errorf("without a store: %v", err)
	}
}

// TestPreflightRefuses: a dead-letter destination that is none.
func TestPreflightRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		edit    func(*jetstream.ConsumerConfig)
		subject string
		want    string
	}{
		"no stream":  {nil, "nowhere.orders", "no stream stores"},
		"loop":       {nil, "orders.dead", "come back"},
		"loop, *":    {func(cc *jetstream.ConsumerConfig) { cc.FilterSubject = "orders.*" }, "orders.dead", "come back"},
		"loop, >":    {func(cc *jetstream.ConsumerConfig) { cc.FilterSubjects = []string{"orders.a", "orders.b.>"} }, "orders.b.dead.x", "come back"},
		"filtered":   {func(cc *jetstream.ConsumerConfig) { cc.FilterSubject = "orders.*" }, "orders.dead.x", ""},
		"filtered >": {func(cc *jetstream.ConsumerConfig) { cc.FilterSubjects = []string{"orders.a", "orders.b.>"} }, "orders.b", ""},
	} {
		t.Run(name, func(t *testing.T) {
			var edits []func(*jetstream.ConsumerConfig)
			if c.edit != nil {
				edits = append(edits, c.edit)
			}
			v := setup(t, edits...)
			r := v.run(noop, idemnats.DeadLetter(v.js, c.subject))
			if c.want == "" {
				v.publish("a")
				v.settled()
				if err := r.stop(); err != nil {
					t.Errorf("Run returned %v", err)
				}
				return
			}
			if err := r.result(); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Run returned %v, want %q", err, c.want)
			}
		})
	}
}

// TestSettingsChanged: Run reads them anew.
func TestSettingsChanged(t *testing.T) {
	v := setup(t)
	c := v.consumer(noop)
	cc := v.info().Config
	cc.MaxDeliver = 3
	if _, err := v.js.UpdateConsumer(v.ctx(), "ORDERS", cc); err != nil {
		t.Fatal(err)
	}
	if err := c.Run(v.ctx()); err == nil || !strings.Contains(err.Error(), "MaxDeliver is 3") {
		t.Errorf("Run returned %v", err)
	}
}

// TestRequestLimits: pull requests keep to the limits of the JetStream consumer.
func TestRequestLimits(t *testing.T) {
	v := setup(t, func(cc *jetstream.ConsumerConfig) {
		cc.MaxRequestBatch, cc.MaxRequestExpires = 1, 100*time.Millisecond
	})
	v.publish("a", "b", "c")
	var j journal
	v.run(j.handle)
	v.settled()
	j.want(t, "a", "b", "c")
	if w := v.events.of(idem.EventWaiting); len(w) != 0 {
		t.Errorf("waiting: %+v", w)
	}
}
