package idemamqp_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/idemq/idemq/consumers"
	idemamqp "github.com/idemq/idemq/consumers/amqp"
	"github.com/idemq/idemq/consumers/consumertest"
	"github.com/idemq/idemq/idem"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	for name, ofChannel := range map[string]bool{"NewQueueConsumer": false, "NewConsumer": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			consumertest.Run(t, func(tb testing.TB) consumertest.Queue {
				v := setupOn(tb.(*testing.T), shared.Server(tb))
				v.dead += "-bounded"
				v.declare(v.dead, amqp.Table{"x-max-length": int32(10), "x-overflow": "reject-publish"})
				return &queue{env: v, ofChannel: ofChannel}
			})
		})
	}
}

// queue implements consumertest.Queue.
type queue struct {
	*env
	ofChannel bool
}

func (q *queue) Publish(_ testing.TB, m consumertest.Message) {
	q.t.Helper()
	msg := amqp.Publishing{Headers: amqp.Table{}, Body: []byte(m.Body)}
	for k, value := range m.Headers {
		msg.Headers[k] = value
	}
	q.send(msg)
}

func (q *queue) Consume(ctx context.Context, g *idem.Guard, h consumertest.Handler, deadLetters bool, opts ...consumers.Option) error {
	handle := func(ctx context.Context, d amqp.Delivery) error { return h(ctx, theMessage(d)) }
	if deadLetters {
		opts = append(opts, q.deadLetter())
	}
	if !q.ofChannel {
		c, err := idemamqp.NewQueueConsumer(q.srv.URL(), q.queue, g, handle, opts...)
		if err != nil {
			return err
		}
		return c.Run(ctx)
	}
	conn, err := amqp.Dial(q.srv.URL())
	if err != nil {
		return err
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		return err
	}
	if err := ch.Qos(prefetch, 0, false); err != nil {
		return err
	}
	deliveries, err := ch.Consume(q.queue, "", false, false, false, false, nil)
	if err != nil {
		return err
	}
	opts = append(opts, idemamqp.Prefetch(prefetch))
	if deadLetters {
		out, err := conn.Channel()
		if err != nil {
			return err
		}
		opts = append(opts, idemamqp.PublishOn(out))
	}
	c, err := idemamqp.NewConsumer(deliveries, g, handle, opts...)
	if err != nil {
		return err
	}
	return c.Run(ctx)
}

func theMessage(d amqp.Delivery) consumertest.Message {
	m := consumertest.Message{Headers: map[string]string{}, Body: string(d.Body)}
	for k, value := range d.Headers {
		m.Headers[k] = fmt.Sprint(value)
	}
	return m
}

func (q *queue) Owed(testing.TB) int { return q.owed() }

func (q *queue) DeadLetters(testing.TB) []consumertest.Message {
	q.t.Helper()
	var all []consumertest.Message
	for _, d := range q.deadLetters() {
		all = append(all, theMessage(d))
	}
	return all
}

func (q *queue) Patience() time.Duration { return 0 }

// BreakDeadLetters fills the queue.
func (q *queue) BreakDeadLetters(tb testing.TB) (mend func()) {
	tb.Helper()
	for taken := true; taken; {
		c, err := q.ch.PublishWithDeferredConfirm("", q.dead, false, false, amqp.Publishing{})
		if err != nil {
			tb.Fatal(err)
		}
		taken = c.Wait()
	}
	return func() {
		if _, err := q.ch.QueuePurge(q.dead, false); err != nil {
			tb.Error(err)
		}
	}
}
