package idemamqp_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/idemq/idemq/consumers"
	idemamqp "github.com/idemq/idemq/consumers/amqp"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/internal/redistest"
	"github.com/idemq/idemq/internal/testenv"
)

// quiet makes the store find nothing: what is found is the broker's.
func (v *env) quiet() {
	v.store.OnVerify(func(context.Context) ([]store.Finding, error) { return nil, nil })
}

func (v *env) queueConsumer(opts ...idemamqp.Option) *idemamqp.Consumer {
	v.t.Helper()
	c, err := idemamqp.NewQueueConsumer(v.srv.URL(), v.queue, v.guard, (&journal{}).handle, opts...)
	if err != nil {
		v.t.Fatal(err)
	}
	return c
}

// wantFound asks and wants these findings, each of them whole.
func (v *env) wantFound(c *idemamqp.Consumer, want ...string) {
	v.t.Helper()
	found, err := c.Preflight(v.t.Context())
	if err != nil {
		v.t.Fatalf("Preflight: %v", err)
	}
	v.wantIDs(found, want...)
}

func (v *env) wantIDs(found []idem.Finding, want ...string) {
	v.t.Helper()
	ids := make([]string, 0, len(found))
	for _, f := range found {
		ids = append(ids, f.ID)
		for _, s := range []string{f.What, f.Consequence, f.Cure} {
			if s == "" || !strings.HasSuffix(s, ".") || strings.ToUpper(s[:1]) != s[:1] {
				v.t.Errorf("%s: %q is no sentence", f.ID, s)
			}
		}
	}
	if !slices.Equal(ids, want) {
		v.t.Errorf("found %q, want %q\n%v", ids, want, found)
	}
}

// told are the findings that observers were told of.
func (v *env) told() (found []idem.Finding) {
	for _, e := range v.events.of(idem.EventFinding) {
		found = append(found, *e.Finding)
	}
	return found
}

// A broker and a store that are set up well give nothing to say, and Strict lets them
// pass.
func TestNoFindings(t *testing.T) {
	v := setup(t, amqp.Table{"x-queue-type": "quorum"})
	v.guard = idem.New(idem.WithRedis(redistest.Start(t, "--appendonly", "yes").Client(t)), idem.WithObserver(v.events)).Group("billing")
	v.publish("a")
	v.returned(1)
	opts := []idemamqp.Option{v.deadLetter(), idemamqp.DeliveryLimit(20), consumers.Strict()}
	v.wantFound(v.queueConsumer(opts...))
	r := v.run((&journal{}).handle, opts...)
	v.settled()
	if err := r.stop(); err != nil {
		t.Errorf("Run returned %v", err)
	}
	v.wantIDs(v.told())
	s := v.source()
	c, err := idemamqp.NewConsumer(s.deliveries, v.guard, (&journal{}).handle, idemamqp.Prefetch(prefetch))
	if err != nil {
		t.Fatal(err)
	}
	v.wantFound(c)
}

// A delivery limit within the budget, by both constructors, and at Run's start.
func TestDeliveryLimitWithinTheBudget(t *testing.T) {
	v := setup(t, quorum)
	v.quiet()
	v.wantFound(v.queueConsumer(v.deadLetter(), idemamqp.DeliveryLimit(limit)), "amqp-delivery-limit")
	v.wantFound(v.queueConsumer(v.deadLetter(), idemamqp.DeliveryLimit(limit), consumers.Budget(limit-1)))
	s := v.source()
	c, err := idemamqp.NewConsumer(s.deliveries, v.guard, (&journal{}).handle, idemamqp.Prefetch(1), idemamqp.DeliveryLimit(limit))
	if err != nil {
		t.Fatal(err)
	}
	v.wantFound(c, "amqp-delivery-limit")
	r := v.start(c)
	testenv.Await(t, "Run to begin", func() bool { return len(v.told()) > 0 })
	if err := r.stop(); err != nil {
		t.Errorf("Run returned %v", err)
	}
	v.wantIDs(v.told(), "amqp-delivery-limit")
}

// A quorum queue of RabbitMQ 4 shows when a message comes again. The version is made up.
func TestQuorumQueueOfRabbitMQ4(t *testing.T) {
	for name, c := range map[string]struct {
		version string
		opts    []idemamqp.Option
		want    []string
	}{
		"of 4":            {"4.1.0", nil, []string{"amqp-quorum-limit"}},
		"of 4, limited":   {"4.1.0", []idemamqp.Option{idemamqp.DeliveryLimit(20)}, nil},
		"of 3":            {"3.13.7", nil, nil},
		"of who knows it": {"", nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			v := setup(t, amqp.Table{"x-queue-type": "quorum"})
			v.quiet()
			v.publish("a", "b", "c")
			v.returned(1)
			var j journal
			v.run(j.handle, append(c.opts, consumers.Strict(), v.deadLetter(), idemamqp.Dial(func(context.Context) (*amqp.Connection, error) {
				conn, err := amqp.Dial(v.srv.URL())
				if err == nil {
					conn.Properties["version"] = c.version
				}
				return conn, err
			}))...)
			v.settled()
			v.wantIDs(v.told(), c.want...)
		})
	}
}

// What would end Run is Preflight's error, and Strict's too.
func TestPreflightErrors(t *testing.T) {
	v := setup(t)
	v.store.OnVerify(func(context.Context) ([]store.Finding, error) {
		return []store.Finding{{ID: "store-test", What: "It tests.", Consequence: "It is found.", Cure: "Accept it."}}, nil
	})
	missing := *v
	missing.queue = "nowhere"
	for _, c := range []struct {
		c    *idemamqp.Consumer
		want string
	}{
		{missing.queueConsumer(), "looking for the queue at"},
		{v.queueConsumer(idemamqp.DeadLetter("", "nowhere")), `looking for queue "nowhere"`},
		{v.queueConsumer(idemamqp.DeadLetter("nowhere", "k")), `looking for exchange "nowhere"`},
		{v.queueConsumer(consumers.Strict()), `Strict("store-test")`},
		{v.queueConsumer(idemamqp.Dial(func(context.Context) (*amqp.Connection, error) { return nil, errTest })), "test"},
	} {
		found, err := c.c.Preflight(t.Context())
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "idemamqp: preflight: ") || len(found) != 1 {
			t.Errorf("found %v, %v, want %q", found, err, c.want)
		}
	}
	v.wantFound(v.queueConsumer(consumers.Strict("store-test"), v.deadLetter()), "store-test")
}

// Strict ends Run before anything is delivered: no message is returned for it.
func TestStrictSubscribesToNothing(t *testing.T) {
	v := setup(t, quorum)
	v.publish("a")
	var j journal
	opts := []idemamqp.Option{v.deadLetter(), idemamqp.DeliveryLimit(limit)}
	for range 2 * limit {
		err := v.run(j.handle, append(opts, consumers.Strict("memory-forgets"))...).result()
		if err == nil || !strings.Contains(err.Error(), `Strict("amqp-delivery-limit")`) {
			t.Fatalf("Run returned %v", err)
		}
	}
	v.run(func(ctx context.Context, d amqp.Delivery) error {
		if d.Redelivered {
			t.Errorf("it was delivered before: %v", d.Headers)
		}
		return j.handle(ctx, d)
	}, append(opts, consumers.Strict("amqp-delivery-limit", "memory-forgets"))...)
	v.settled()
	j.want(t, "a")
}

func TestStrictIsNotForWrap(t *testing.T) {
	v := setup(t)
	if _, err := idemamqp.Wrap(v.guard, (&journal{}).handle, consumers.Strict()); err == nil || !strings.Contains(err.Error(), "Guard.Preflight") {
		t.Errorf("Wrap: %v", err)
	}
}
