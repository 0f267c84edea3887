package torture

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/idemq/idemq/e2e/history"
	"github.com/idemq/idemq/e2e/torture/role"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/internal/rabbittest"
)

type amqpBroker struct {
	tb      testing.TB
	server  *rabbittest.Server
	proxy   *Proxy
	version string
	kind    string
	args    amqp.Table // of the source

	run, queue, dead string

	out *amqp.Connection // Publish's
	ch  *amqp.Channel
}

// NewAMQP starts a RabbitMQ, for a classic or a quorum queue. No two brokers share a server.
func NewAMQP(tb testing.TB, quorum bool) Broker {
	tb.Helper()
	b := &amqpBroker{tb: tb, kind: "amqp-classic", server: rabbittest.Start(tb)}
	b.proxy = NewProxy(tb, b.server.Addr())
	b.version = strings.Trim(b.server.Eval(tb, "rabbit_misc:version()"), `"`)
	if quorum {
		b.kind, b.args = "amqp-quorum", amqp.Table{"x-queue-type": "quorum"}
		if major, _, _ := strings.Cut(b.version, "."); len(major) > 1 || major > "3" {
			b.args["x-delivery-limit"] = -1 // 3 has none of itself, and does not take this
		}
	}
	tb.Cleanup(b.hangUp)
	return b
}

func (b *amqpBroker) Kind() string    { return b.kind }
func (b *amqpBroker) Version() string { return "RabbitMQ " + b.version }
func (b *amqpBroker) Proxy() *Proxy   { return b.proxy }
func (b *amqpBroker) Ordered() bool   { return false } // what is requeued goes to another consumer
func (b *amqpBroker) Restart()        { b.server.Restart() }

func (b *amqpBroker) Role() role.Broker {
	return role.Broker{Kind: b.kind, Addr: b.server.URLAt(b.proxy.Addr()), Source: b.queue, DeadTo: b.dead}
}

func (b *amqpBroker) Round(run string) {
	b.tb.Helper()
	name := fmt.Sprintf("%s.%08x", run, rand.Uint32())
	queue, dead := name, name+".dead"
	err := b.do(func(ch *amqp.Channel) error {
		if b.run != "" {
			for _, old := range []string{b.queue, b.dead} {
				if _, err := ch.QueueDelete(old, false, false, false); err != nil {
					return err
				}
			}
		}
		if _, err := ch.QueueDeclare(queue, true, false, false, false, b.args); err != nil {
			return err
		}
		_, err := ch.QueueDeclare(dead, true, false, false, false, nil)
		return err
	})
	if err != nil {
		b.tb.Fatalf("the queues of %s: %v", run, err)
	}
	b.run, b.queue, b.dead = run, queue, dead
}

// do calls f with a channel, on a connection of its own.
func (b *amqpBroker) do(f func(ch *amqp.Channel) error) error {
	conn, err := amqp.Dial(b.server.URL())
	if err != nil {
		return err
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		return err
	}
	return f(ch)
}

func (b *amqpBroker) hangUp() {
	if b.out != nil {
		_ = b.out.Close()
		b.out, b.ch = nil, nil
	}
}

// dial gives Publish a channel in confirm mode.
func (b *amqpBroker) dial() (err error) {
	if b.out != nil && !b.out.IsClosed() && !b.ch.IsClosed() {
		return nil
	}
	b.hangUp()
	if b.out, err = amqp.Dial(b.server.URL()); err != nil {
		b.out = nil
		return err
	}
	if b.ch, err = b.out.Channel(); err == nil {
		err = b.ch.Confirm(false)
	}
	if err != nil {
		b.hangUp()
	}
	return err
}

func (b *amqpBroker) Publish(ctx context.Context, msgs []Message) error {
	for owed := msgs; len(owed) > 0; {
		confirmed := 0
		if b.dial() == nil {
			confirmed = b.send(ctx, owed)
		}
		if owed = owed[confirmed:]; len(owed) == 0 {
			return nil
		}
		b.hangUp() // what was not confirmed is sent again, on another channel
		if err := pause(ctx); err != nil {
			return err
		}
	}
	return nil
}

// send returns how many, from the first on, the broker has confirmed.
func (b *amqpBroker) send(ctx context.Context, msgs []Message) (confirmed int) {
	confirms := make([]*amqp.DeferredConfirmation, 0, len(msgs))
	for _, m := range msgs {
		c, err := b.ch.PublishWithDeferredConfirmWithContext(ctx, "", b.queue, true, false, amqp.Publishing{
			DeliveryMode: amqp.Persistent, Headers: amqp.Table{idem.Header: history.Token(b.run, m.Token)},
			Body: []byte("order " + strconv.FormatUint(uint64(m.Token), 10)),
		})
		if err != nil {
			break
		}
		confirms = append(confirms, c)
	}
	for i, c := range confirms {
		if ok, err := c.WaitContext(ctx); err != nil || !ok {
			return i
		}
	}
	return len(confirms)
}

func (b *amqpBroker) Owed(context.Context) (int, error) { return b.server.Count(b.queue) }

func (b *amqpBroker) DeadLetters(ctx context.Context) (tokens []uint32, err error) {
	left, err := b.server.Count(b.dead)
	if err != nil || left == 0 {
		return nil, err
	}
	err = b.do(func(ch *amqp.Channel) error {
		letters, err := ch.ConsumeWithContext(ctx, b.dead, "", false, false, false, false, nil)
		if err != nil {
			return err
		}
		for ; left > 0; left-- {
			select {
			case d, open := <-letters:
				if !open {
					return errors.New("the broker ended the subscription")
				}
				token, _ := d.Headers[idem.Header].(string)
				n, err := number(b.run, token)
				if err != nil {
					return err
				}
				tokens = append(tokens, n)
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	})
	return tokens, err
}
