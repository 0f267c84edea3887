package idemnats_test

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/consumers/consumertest"
	idemnats "github.com/idemq/idemq/consumers/nats"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/internal/natstest"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	consumertest.Run(t, func(tb testing.TB) consumertest.Queue {
		tb.Helper()
		q := &queue{js: natstest.Start(tb).JetStream(tb)}
		q.create(tb, "WORK", "work")
		q.create(tb, "DEAD", "dead")
		var err error
		q.source, err = q.js.CreateConsumer(tb.Context(), "WORK", jetstream.ConsumerConfig{
			Durable: "worker", AckPolicy: jetstream.AckExplicitPolicy, MaxDeliver: -1, AckWait: conformanceAckWait,
		})
		if err != nil {
			tb.Fatal(err)
		}
		return q
	})
}

const conformanceAckWait = time.Second

// queue implements consumertest.Queue.
type queue struct {
	js     jetstream.JetStream
	source jetstream.Consumer
	last   uint64
}

func (q *queue) create(tb testing.TB, stream, subject string) {
	tb.Helper()
	if _, err := q.js.CreateStream(tb.Context(), jetstream.StreamConfig{Name: stream, Subjects: []string{subject}}); err != nil {
		tb.Fatal(err)
	}
}

func (q *queue) Publish(tb testing.TB, m consumertest.Message) {
	tb.Helper()
	msg := nats.NewMsg("work")
	msg.Data = []byte(m.Body)
	for k, value := range m.Headers {
		msg.Header[k] = []string{value}
	}
	msg.Header.Del(jetstream.MsgIDHeader) // of a dead letter that is moved back twice
	ack, err := q.js.PublishMsg(tb.Context(), msg)
	if err != nil {
		tb.Fatal(err)
	}
	q.last = ack.Sequence
}

func (q *queue) Consume(ctx context.Context, g *idem.Guard, h consumertest.Handler, deadLetters bool, opts ...consumers.Option) error {
	if deadLetters {
		opts = append(opts, idemnats.DeadLetter(q.js, "dead"))
	}
	c, err := idemnats.NewConsumer(q.source, g, func(ctx context.Context, msg jetstream.Msg) error {
		return h(ctx, message(msg.Headers(), msg.Data()))
	}, opts...)
	if err != nil {
		return err
	}
	return c.Run(ctx)
}

func message(h nats.Header, data []byte) consumertest.Message {
	m := consumertest.Message{Headers: map[string]string{}, Body: string(data)}
	for k := range h {
		m.Headers[k] = h.Get(k)
	}
	return m
}

func (q *queue) Owed(tb testing.TB) int {
	tb.Helper()
	info, err := q.source.Info(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	undelivered := int(q.last) - int(info.Delivered.Stream)
	return undelivered + info.NumAckPending
}

func (q *queue) DeadLetters(tb testing.TB) []consumertest.Message {
	tb.Helper()
	st, err := q.js.Stream(tb.Context(), "DEAD")
	if err != nil {
		tb.Fatal(err)
	}
	var all []consumertest.Message
	for i := range st.CachedInfo().State.Msgs {
		m, err := st.GetMsg(tb.Context(), i+1)
		if err != nil {
			tb.Fatal(err)
		}
		all = append(all, message(m.Header, m.Data))
	}
	return all
}

func (q *queue) Patience() time.Duration { return conformanceAckWait * 3 / 2 }

func (q *queue) BreakDeadLetters(tb testing.TB) (mend func()) {
	tb.Helper()
	if err := q.js.DeleteStream(tb.Context(), "DEAD"); err != nil {
		tb.Fatal(err)
	}
	return func() { q.create(tb, "DEAD", "dead") }
}
