package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/segmentio/kafka-go"

	"github.com/idemq/idemq/consumers"
	idemamqp "github.com/idemq/idemq/consumers/amqp"
	idemkafka "github.com/idemq/idemq/consumers/kafka"
	idemnats "github.com/idemq/idemq/consumers/nats"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/internal/kafkatest"
	"github.com/idemq/idemq/internal/natstest"
	"github.com/idemq/idemq/internal/rabbittest"
	"github.com/idemq/idemq/internal/redistest"
	"github.com/idemq/idemq/internal/testenv"
)

// foreign is a message as testdata/produce.py publishes it.
type foreign struct {
	To          string            `json:"to"`
	Headers     map[string]string `json:"headers,omitempty"`
	ContentType string            `json:"content_type,omitempty"`
	MessageID   string            `json:"message_id,omitempty"`
	Body        string            `json:"body,omitempty"`
}

// produce publishes messages with a Python client, and returns when the broker has them.
func produce(t *testing.T, broker, address string, messages []foreign) {
	t.Helper()
	python, err := filepath.Abs("../.cache/venv/bin/python")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := exec.LookPath(python); err != nil {
		testenv.Missing(t, "Python with the brokers' clients", "bash .ci/python, or make test")
	}
	var input bytes.Buffer
	enc := json.NewEncoder(&input)
	for _, m := range messages {
		if err := enc.Encode(m); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, python, "testdata/produce.py", broker, address)
	cmd.Stdin = &input
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("produce.py %s: %v\n%s", broker, err, out)
	}
}

// queues is a broker as these tests see it. Each destination is consumed once.
type queues interface {
	kind() string
	address() string
	// make makes a destination, and one for its dead letters.
	make(name string)
	// consumer makes a consumer of a destination.
	consumer(name string, g *idem.Guard, h func(context.Context) error, deadLetters bool, opts ...consumers.Option) (interface{ Run(context.Context) error }, error)
	// owed is how many messages of a destination are not settled.
	owed(name string) int
	// reasons says why the dead letters of a destination are there.
	reasons(name string) []string
}

// found is what has to become of a message that is published twice.
type found struct {
	tokens  []string // those of the handlers that ran; nil stands for one that is made of coordinates
	reasons []string // of its dead letters
}

var (
	event   = idem.TokenFor("/shop", "order-1")
	orderID = consumers.TokenFrom(func(m consumers.Message) (string, error) {
		var body struct{ Order string }
		err := json.Unmarshal(m.Body(), &body)
		return body.Order, err
	})

	twiceUnknown = found{tokens: []string{"", ""}}
	twiceDead    = found{reasons: []string{consumers.ReasonToken, consumers.ReasonToken}}
)

func once(token string) found { return found{tokens: []string{token}} }

// What a producer in another language and without this library writes is handled once
// where it names itself, and by policy where it does not.
func TestForeignProducers(t *testing.T) {
	t.Parallel()
	for _, b := range []struct {
		start    func(*testing.T) queues
		prefixes []string // of CloudEvents' headers
		nameless found    // what becomes of a message that names itself in no way
		ids      bool     // the broker has an optional message id
	}{
		{newNATSQueues, []string{"ce-"}, twiceUnknown, true},
		{newKafkaQueues, []string{"ce_"}, twiceUnknown, false},
		{newAMQPQueues, []string{"cloudEvents:", "cloudEvents_"}, twiceDead, true},
	} {
		b := struct {
			queues
			prefixes []string
			nameless found
			ids      bool
		}{b.start(t), b.prefixes, b.nameless, b.ids}
		t.Run(b.kind(), func(t *testing.T) {
			t.Parallel()
			type testcase struct {
				name string
				m    foreign
				opts []consumers.Option
				want found
			}
			const (
				structured = `{"specversion":"1.0","type":"order","source":"/shop","id":"order-1","data":{"id":"x"}}`
				trusted    = "order-9"
			)
			cases := []testcase{
				{"stamped", foreign{Headers: map[string]string{"Idempotency-Key": "k1"}}, nil, once("k1")},
				{"stamped in lower case", foreign{Headers: map[string]string{"idempotency-key": "k1"}}, nil, once("k1")},
				{"structured event", foreign{ContentType: "application/cloudevents+json; charset=utf-8", Body: structured}, nil, once(event)},
				{"structured batch", foreign{ContentType: "application/cloudevents-batch+json", Body: "[" + structured + "]"}, nil, b.nameless},
				{"nameless", foreign{Body: "order"}, nil, b.nameless},
				{"token in the payload", foreign{Body: `{"order":"o-1"}`}, []consumers.Option{orderID}, once("o-1")},
			}
			for _, prefix := range b.prefixes {
				cases = append(cases, testcase{
					"binary event, " + prefix,
					foreign{Headers: map[string]string{prefix + "specversion": "1.0", prefix + "type": "order", prefix + "source": "/shop", prefix + "id": "order-1"}},
					nil, once(event),
				})
			}
			if b.ids {
				id := foreign{MessageID: trusted}
				cases = append(cases,
					testcase{"message id", id, nil, b.nameless},
					testcase{"message id, trusted", id, []consumers.Option{consumers.TrustMessageID()}, once(idem.TokenFor("id", trusted))},
				)
			}
			var messages []foreign
			for i := range cases {
				c := &cases[i]
				c.m.To = fmt.Sprintf("foreign-%d", i)
				b.make(c.m.To)
				messages = append(messages, c.m, c.m)
			}
			produce(t, b.kind(), b.address(), messages)
			rdb := redistest.Start(t).Client(t)
			for _, c := range cases {
				t.Run(c.name, func(t *testing.T) {
					var l ledger
					g := idem.New(idem.WithRedis(rdb))
					stop := runForeign(t, b, c.m.To, g, func(ctx context.Context) error {
						claim, _ := idem.FromContext(ctx)
						l.add(claim.Token())
						return nil
					}, c.opts...)
					testenv.Await(t, "both are settled", func() bool { return b.owed(c.m.To) == 0 })
					stop()
					l.wantFound(t, c.want)
					if got := b.reasons(c.m.To); !slices.Equal(got, c.want.reasons) {
						t.Errorf("dead letters %q, want %q", got, c.want.reasons)
					}
				})
			}
		})
	}
}

// wantFound checks the tokens that handlers ran for.
func (l *ledger) wantFound(t *testing.T, want found) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(want.tokens) > 0 && want.tokens[0] == "" {
		if len(l.n) != len(want.tokens) || slices.Max(slices.Collect(maps.Values(l.n))) != 1 {
			t.Errorf("effects %v, want one for each of %d tokens", l.n, len(want.tokens))
		}
		return
	}
	all := map[string]int{}
	for _, token := range want.tokens {
		all[token]++
	}
	if !maps.Equal(l.n, all) {
		t.Errorf("effects %v, want %v", l.n, all)
	}
}

func runForeign(t *testing.T, b queues, name string, g *idem.Guard, h func(context.Context) error, opts ...consumers.Option) (stop func()) {
	t.Helper()
	c, err := b.consumer(name, g, h, true, opts...)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// Without a dead-letter destination, a message that names itself in no way stops an AMQP
// consumer, and stays in the queue.
func TestForeignNamelessStops(t *testing.T) {
	t.Parallel()
	b := newAMQPQueues(t)
	b.make("nameless")
	produce(t, b.kind(), b.address(), []foreign{{To: "nameless", Body: "order"}})
	rdb := redistest.Start(t).Client(t)
	c, err := b.consumer("nameless", idem.New(idem.WithRedis(rdb)), func(context.Context) error {
		t.Error("it was handled")
		return nil
	}, false)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := c.Run(ctx); err == nil || !strings.Contains(err.Error(), "no token") {
		t.Errorf("Run: %v, want an error that says that the message has no token", err)
	}
	if n := b.owed("nameless"); n != 1 {
		t.Errorf("%d messages in the queue, want the one", n)
	}
}

type natsQueues struct {
	t   *testing.T
	srv *natstest.Server
	js  jetstream.JetStream
}

func newNATSQueues(t *testing.T) queues {
	t.Helper()
	srv := natstest.Start(t)
	return &natsQueues{t, srv, srv.JetStream(t)}
}

func (q *natsQueues) kind() string    { return "nats" }
func (q *natsQueues) address() string { return q.srv.URL() }

func (q *natsQueues) make(name string) {
	q.t.Helper()
	for _, s := range []string{name, name + "-dead"} {
		// The shortest window in which the server itself drops a Nats-Msg-Id it has seen.
		if _, err := q.js.CreateStream(q.t.Context(), jetstream.StreamConfig{Name: s, Subjects: []string{s}, Duplicates: 100 * time.Millisecond}); err != nil {
			q.t.Fatal(err)
		}
	}
	if _, err := q.js.CreateConsumer(q.t.Context(), name, jetstream.ConsumerConfig{Durable: "billing", AckPolicy: jetstream.AckExplicitPolicy, MaxDeliver: -1}); err != nil {
		q.t.Fatal(err)
	}
}

func (q *natsQueues) source(name string) jetstream.Consumer {
	q.t.Helper()
	c, err := q.js.Consumer(context.Background(), name, "billing")
	if err != nil {
		q.t.Fatal(err)
	}
	return c
}

func (q *natsQueues) consumer(name string, g *idem.Guard, h func(context.Context) error, deadLetters bool, opts ...consumers.Option) (interface{ Run(context.Context) error }, error) {
	q.t.Helper()
	if deadLetters {
		opts = append(opts, idemnats.DeadLetter(q.js, name+"-dead"))
	}
	return idemnats.NewConsumer(q.source(name), g, func(ctx context.Context, _ jetstream.Msg) error { return h(ctx) }, opts...)
}

func (q *natsQueues) owed(name string) int {
	q.t.Helper()
	info, err := q.source(name).Info(context.Background())
	if err != nil {
		q.t.Fatal(err)
	}
	return int(info.NumPending) + info.NumAckPending
}

func (q *natsQueues) reasons(name string) (all []string) {
	q.t.Helper()
	s, err := q.js.Stream(context.Background(), name+"-dead")
	if err != nil {
		q.t.Fatal(err)
	}
	for seq := uint64(1); seq <= s.CachedInfo().State.LastSeq; seq++ {
		m, err := s.GetMsg(context.Background(), seq)
		if err != nil {
			q.t.Fatal(err)
		}
		all = append(all, m.Header.Get(consumers.HeaderReason))
	}
	return all
}

type kafkaQueues struct {
	t      *testing.T
	srv    *kafkatest.Server
	writer *kafka.Writer
}

func newKafkaQueues(t *testing.T) queues {
	t.Helper()
	srv := kafkatest.Start(t)
	w := &kafka.Writer{Addr: kafka.TCP(srv.Addr()), RequiredAcks: kafka.RequireAll, BatchTimeout: time.Millisecond}
	t.Cleanup(func() { _ = w.Close() })
	return &kafkaQueues{t, srv, w}
}

func (q *kafkaQueues) kind() string    { return "kafka" }
func (q *kafkaQueues) address() string { return q.srv.Addr() }

func (q *kafkaQueues) make(name string) {
	q.t.Helper()
	q.srv.CreateTopic(q.t, name, 1)
	q.srv.CreateTopic(q.t, name+"-dead", 1)
}

func (q *kafkaQueues) consumer(name string, g *idem.Guard, h func(context.Context) error, deadLetters bool, opts ...consumers.Option) (interface{ Run(context.Context) error }, error) {
	q.t.Helper()
	if deadLetters {
		opts = append(opts, idemkafka.DeadLetter(q.writer, name+"-dead"))
	}
	opts = append(opts, idemkafka.CommitEvery(1, 10*time.Millisecond))
	return idemkafka.NewGroupConsumer(kafka.ReaderConfig{
		Brokers: []string{q.srv.Addr()}, GroupID: "billing-" + name, Topic: name, StartOffset: kafka.FirstOffset,
	}, g, func(ctx context.Context, _ kafka.Message) error { return h(ctx) }, opts...)
}

func (q *kafkaQueues) owed(name string) int {
	q.t.Helper()
	return int(q.srv.Ends(q.t, name)[0] - q.srv.Committed(q.t, "billing-"+name, name)[0])
}

func (q *kafkaQueues) reasons(name string) (all []string) {
	q.t.Helper()
	for _, m := range q.srv.All(q.t, name+"-dead") {
		for _, h := range m.Headers {
			if h.Key == consumers.HeaderReason {
				all = append(all, string(h.Value))
			}
		}
	}
	return all
}

type amqpQueues struct {
	t   *testing.T
	srv *rabbittest.Server
	ch  *amqp.Channel
}

func newAMQPQueues(t *testing.T) queues {
	t.Helper()
	srv := rabbittest.Start(t)
	conn, err := amqp.Dial(srv.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	return &amqpQueues{t, srv, ch}
}

func (q *amqpQueues) kind() string    { return "amqp" }
func (q *amqpQueues) address() string { return q.srv.URL() }

func (q *amqpQueues) make(name string) {
	q.t.Helper()
	for _, n := range []string{name, name + "-dead"} {
		if _, err := q.ch.QueueDeclare(n, true, false, false, false, nil); err != nil {
			q.t.Fatal(err)
		}
	}
}

func (q *amqpQueues) consumer(name string, g *idem.Guard, h func(context.Context) error, deadLetters bool, opts ...consumers.Option) (interface{ Run(context.Context) error }, error) {
	q.t.Helper()
	if deadLetters {
		opts = append(opts, idemamqp.DeadLetter("", name+"-dead"))
	}
	return idemamqp.NewQueueConsumer(q.srv.URL(), name, g, func(ctx context.Context, _ amqp.Delivery) error { return h(ctx) }, opts...)
}

func (q *amqpQueues) owed(name string) int {
	q.t.Helper()
	return q.srv.Messages(q.t, name)
}

func (q *amqpQueues) reasons(name string) (all []string) {
	q.t.Helper()
	for {
		m, found, err := q.ch.Get(name+"-dead", true)
		if err != nil {
			q.t.Fatal(err)
		}
		if !found {
			return all
		}
		reason, _ := m.Headers[consumers.HeaderReason].(string)
		all = append(all, reason)
	}
}
