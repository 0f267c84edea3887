package idemkafka_test

import (
	"context"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/consumers/consumertest"
	idemkafka "github.com/idemq/idemq/consumers/kafka"
	"github.com/idemq/idemq/idem"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	for _, way := range ways {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			consumertest.Run(t, func(tb testing.TB) consumertest.Queue {
				tb.Helper()
				v := setup(tb.(*testing.T), 1)
				w := v.writer()
				w.WriteBackoffMin, w.WriteBackoffMax = time.Millisecond, 10*time.Millisecond
				broken := &breakable{RoundTripper: w.Transport}
				w.Transport = broken
				return &queue{env: v, way: way, poster: w, to: broken}
			})
		})
	}
}

// queue implements consumertest.Queue.
type queue struct {
	*env
	way    string
	poster *kafka.Writer // of dead letters
	to     *breakable    // its transport
}

// breakable fails on demand.
type breakable struct {
	kafka.RoundTripper
	broken atomic.Bool
}

func (b *breakable) RoundTrip(ctx context.Context, addr net.Addr, r kafka.Request) (kafka.Response, error) {
	if b.broken.Load() {
		return nil, syscall.ECONNREFUSED
	}
	return b.RoundTripper.RoundTrip(ctx, addr, r)
}

func (q *queue) BreakDeadLetters(testing.TB) (mend func()) {
	q.to.broken.Store(true)
	return func() { q.to.broken.Store(false) }
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
		opts = append(opts, idemkafka.DeadLetter(q.poster, q.dead))
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
