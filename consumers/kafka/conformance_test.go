package idemkafka_test

import (
	"context"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/consumers/consumertest"
	"github.com/idemq/idemq/idem"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	for _, way := range ways {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			consumertest.Run(t, func(tb testing.TB) consumertest.Queue {
				tb.Helper()
				return &queue{setup(tb.(*testing.T), 1), way}
			})
		})
	}
}

// queue implements consumertest.Queue.
type queue struct {
	*env
	way string
}

func (q *queue) Publish(_ testing.TB, m consumertest.Message) {
	msg := kafka.Message{Value: []byte(m.Body)}
	for k, value := range m.Headers {
		msg.Headers = append(msg.Headers, kafka.Header{Key: k, Value: []byte(value)})
	}
	q.send(msg)
}

func (q *queue) Consume(ctx context.Context, g *idem.Guard, h consumertest.Handler, deadLetters bool, opts ...consumers.Option) error {
	if deadLetters {
		opts = append(opts, q.deadLetter())
	}
	c, end, err := q.consumer(q.way, q.config(), g, func(ctx context.Context, msg kafka.Message) error {
		return h(ctx, flat(msg))
	}, opts...)
	if err != nil {
		return err
	}
	defer end()
	return c.Run(ctx)
}

func flat(msg kafka.Message) consumertest.Message {
	m := consumertest.Message{Headers: map[string]string{}, Body: string(msg.Value)}
	for _, h := range msg.Headers {
		m.Headers[h.Key] = string(h.Value)
	}
	return m
}

func (q *queue) Owed(testing.TB) int { return q.owed() }

func (q *queue) DeadLetters(testing.TB) (all []consumertest.Message) {
	for _, m := range q.letters() {
		all = append(all, flat(m))
	}
	return all
}

func (q *queue) Patience() time.Duration { return 0 }
