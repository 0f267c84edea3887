package idemamqp

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/idem"
)

// Preflight asks the store and, for a consumer of NewQueueConsumer, the broker, on a
// connection of its own, and returns what weakens the promise: a delivery limit within the
// budget, as DeliveryLimit tells it, and what the store finds (Guard.Preflight).
// docs/preflight.md lists all findings. The error is what would end Run: a queue, or a
// dead-letter exchange or queue, that is not there, credentials that are refused, what
// consumers.Strict does not let pass; or that a server did not answer. It changes nothing,
// and may be called at any time, also while Run is at work.
//
// AMQP lets nobody read what a queue was declared with, or its policies: a message TTL
// longer than the guard's retention, a delivery limit that DeliveryLimit does not tell of
// (20 for quorum queues, since RabbitMQ 4), a queue without a dead-letter exchange where
// RejectToDLX or that limit needs one, a dead-letter exchange without a queue behind it,
// queues with fewer replicas, and the consumer timeout are not found; the package's
// documentation says how they should be set. That a queue is a quorum queue shows in the
// first message that comes again: Run tells of its limit then ("amqp-quorum-limit").
//
// For a consumer of NewConsumer nothing is asked of the broker: the channels are the
// caller's, and a question about what is not there would close them. A loop around Wrap
// has Guard.Preflight for the store.
func (c *Consumer) Preflight(ctx context.Context) ([]idem.Finding, error) {
	found, err := consumers.Preflight(ctx, c.guard, c.policy, c.examine)
	if err != nil {
		return found, fmt.Errorf("idemamqp: preflight: %w", explain(err))
	}
	return found, nil
}

// examine asks the broker once.
func (c *Consumer) examine(ctx context.Context) ([]idem.Finding, error) {
	if c.broker == nil {
		return c.findings(), nil
	}
	conn, err := c.broker.connect(ctx)
	if err != nil {
		return c.findings(), err
	}
	defer func() { _ = conn.CloseDeadline(time.Now().Add(closeTimeout)) }()
	err = within(ctx, conn, func() error {
		ch, err := conn.Channel()
		if err != nil {
			return fmt.Errorf("opening a channel at %s: %w", c.broker, err)
		}
		if err := c.checkQueue(ch); err != nil {
			return err
		}
		return c.checkLetters(conn)
	})
	return c.findings(), err
}

// awaitPreflight asks the store and the broker, and opens the first session, waiting for
// the broker as long as ctx lasts. What the broker refuses is an error, found before
// anything is delivered.
func (c *Consumer) awaitPreflight(ctx context.Context) (first *session, err error) {
	refused := 0
	err = consumers.AwaitPreflight(ctx, c.guard, c.policy, func(ctx context.Context, pass func([]idem.Finding) error) (err error) {
		if c.broker == nil {
			return pass(c.findings())
		}
		first, err = c.openSession(ctx, c.conf.prefetch, func(conn *amqp.Connection) error {
			if err := c.checkLetters(conn); err != nil {
				return err
			}
			return pass(c.findings())
		})
		return err
	}, func(err error) bool {
		if !isRefused(err) {
			refused = 0
			return false
		}
		// The client takes a connection that breaks at the wrong moment for wrong
		// credentials: RabbitMQ may close it without a word for these.
		refused++
		return refused > 1 || !errors.Is(err, amqp.ErrCredentials)
	})
	return first, err
}

// findings are those that the options tell of.
func (c *Consumer) findings() []idem.Finding {
	if !c.conf.fewDeliveries(c.policy) {
		return nil
	}
	return []idem.Finding{{
		ID:          "amqp-delivery-limit",
		What:        fmt.Sprintf("The delivery limit of %s is %d, within the budget of %d.", c.queueName(), c.conf.deliveryLimit, c.policy.MaxAttempts()),
		Consequence: "Messages whose processes die are dead-lettered, or dropped by the broker, before the budget is spent.",
		Cure:        "Switch the limit off (-1), or raise it.",
	}}
}

func (c *Consumer) queueName() string {
	if c.queue == "" {
		return "the queue"
	}
	return fmt.Sprintf("queue %q", c.queue)
}

// tellCounting tells once of a quorum queue that may have a limit which nobody named.
func (c *Consumer) tellCounting(s *session) {
	version, _ := s.conn.Properties["version"].(string)
	major, _, _ := strings.Cut(version, ".")
	if n, err := strconv.Atoi(major); err != nil || n < 4 || c.conf.deliveryLimit != 0 {
		return
	}
	consumers.EmitFinding(c.guard, idem.Finding{
		ID:          "amqp-quorum-limit",
		What:        fmt.Sprintf("Queue %q is a quorum queue, and RabbitMQ %s gives these a delivery limit of 20 unless they are told otherwise.", c.queue, version),
		Consequence: "After that many crashes, lost connections and, up to RabbitMQ 4.2, stops and returns after HoldLimit it drops a message, unless the queue has a dead-letter exchange.",
		Cure:        "Switch the limit off (-1), or give the queue a dead-letter exchange and name the limit with DeliveryLimit.",
	})
}

// checkQueue looks whether the queue is there.
func (c *Consumer) checkQueue(ch *amqp.Channel) error {
	if _, err := ch.QueueDeclarePassive(c.queue, false, false, false, false, nil); err != nil {
		return fmt.Errorf("looking for the queue at %s: create it first, or give the user the permission: %w", c.broker, err)
	}
	return nil
}

// checkLetters looks for mistakes in the dead-letter destination, on a channel that the
// question may close.
func (c *Consumer) checkLetters(conn *amqp.Connection) error {
	to := c.conf.letters
	if to == nil {
		return nil
	}
	ch, err := conn.Channel()
	if err != nil {
		return fmt.Errorf("opening a channel at %s: %w", c.broker, err)
	}
	if to.exchange == "" {
		_, err = ch.QueueDeclarePassive(to.key, false, false, false, false, nil)
	} else {
		err = ch.ExchangeDeclarePassive(to.exchange, amqp.ExchangeDirect, false, false, false, false, nil)
	}
	if err != nil {
		return fmt.Errorf("DeadLetter: looking for %s: create it first, or give the user the permission: %w", to, err)
	}
	return ch.Close()
}
