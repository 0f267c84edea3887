package consumers_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/consumers/consumertest"
	"github.com/idemq/idemq/idem"
)

// The suite is shown to be passable by a broker in memory; the adapters run it on
// real ones.
func TestConformance(t *testing.T) {
	consumertest.Run(t, func(testing.TB) consumertest.Queue { return &memoryQueue{newBroker(consumers.Broker{})} })
}

type memoryQueue struct{ *broker }

func (q *memoryQueue) Publish(_ testing.TB, m consumertest.Message) {
	headers := map[string][]string{}
	for k, v := range m.Headers {
		headers[k] = []string{v}
	}
	q.add(&message{headers: headers, body: []byte(m.Body)})
}

func (q *memoryQueue) Consume(ctx context.Context, g *idem.Guard, h consumertest.Handler, deadLetters bool, opts ...consumers.Option) error {
	p, err := consumers.Configure(&struct{}{}, opts)
	if err != nil {
		return err
	}
	e, err := consumers.New(g, consumers.Broker{DeadLetters: deadLetters}, p)
	if err != nil {
		return err
	}
	err = consumers.AwaitPreflight(ctx, g, p,
		func(_ context.Context, pass func([]idem.Finding) error) error { return pass(nil) },
		func(error) bool { return false })
	if ctx.Err() != nil {
		return nil //nolint:nilerr // it was told to stop before it began
	}
	if err != nil {
		return err
	}
	return e.Run(ctx, q.fetch(e, func(ctx context.Context, d *delivery) error {
		return h(ctx, flat(d.headers, d.body))
	}))
}

func flat(headers map[string][]string, body []byte) consumertest.Message {
	m := consumertest.Message{Headers: map[string]string{}, Body: string(body)}
	for k, v := range headers {
		m.Headers[k] = v[0]
	}
	return m
}

// Owed counts what was published and neither acked nor terminated.
func (q *memoryQueue) Owed(testing.TB) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	owed := q.next
	for _, s := range q.log {
		if strings.HasPrefix(s, "ack") || strings.HasPrefix(s, "term") {
			owed--
		}
	}
	return owed
}

func (q *memoryQueue) DeadLetters(testing.TB) []consumertest.Message {
	var all []consumertest.Message
	for _, l := range q.posted() {
		m := flat(l.m.headers, l.m.body)
		for _, h := range l.Headers(l.m.String()) {
			m.Headers[h[0]] = h[1]
		}
		all = append(all, m)
	}
	return all
}

func (q *memoryQueue) Patience() time.Duration { return 0 }

func (q *memoryQueue) BreakDeadLetters(testing.TB) (mend func()) {
	set := func(err error) {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.dlqErr = err
	}
	set(errBoom)
	return func() { set(nil) }
}
