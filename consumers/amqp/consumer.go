package idemamqp

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/idem"
)

// Consumer handles the messages of one queue.
type Consumer struct {
	deliveries <-chan amqp.Delivery // NewConsumer's
	broker     *broker              // NewQueueConsumer's
	queue      string               // NewQueueConsumer's

	guard  *idem.Guard
	conf   config
	policy consumers.Policy
	s      *settler
	ran    atomic.Bool
}

// NewQueueConsumer makes a consumer of a queue that opens its own connection to url
// (amqp:// or amqps://), and opens it again, for as long as Run's context lasts, when it
// is lost. The group is the guard's, else the queue's name. It dials nothing: Run does.
// The error names all faults; among them are idem.ErrRedisNotEnabled and a Config with
// Recovery.
func NewQueueConsumer(url, queue string, g *idem.Guard, h Handler, opts ...Option) (*Consumer, error) {
	conf, policy, faults := configure(opts, ofQueue)
	b, err := newBroker(url, queue, conf)
	faults = append(faults, err, checkName("the name of the queue", queue))
	if queue == "" {
		faults = append(faults, errors.New("the queue is empty: name the one to consume"))
	}
	if conf.letters != nil {
		conf.letters.dial = b.connect
		if conf.letters.exchange == "" && conf.letters.key == queue {
			faults = append(faults, fmt.Errorf("DeadLetter: queue %q is the one that is consumed: its dead letters would come back at once", queue))
		}
	}
	if g != nil && g.Settings().Group == "" && queue != "" {
		g = g.Group(queue)
	}
	c := &Consumer{broker: b, queue: queue, guard: g, conf: conf, policy: policy}
	return c.finish("queue consumer", h, faults)
}

// NewConsumer makes a consumer of the deliveries of one subscription, as Channel.Consume
// returned them, with autoAck false. The option Prefetch is required: it says what the
// channel was given with Channel.Qos before. The guard needs a group, else the error is
// idem.ErrNoGroup. The error names all faults.
//
// The connection and the channel stay the caller's. Close the channel when Run has
// returned: what was given back, or not taken from the deliveries, waits in it, and a quorum
// queue counts a second return, unless the subscription was cancelled before. Run ends
// with an error when the channel is closed before, and another channel needs another
// consumer. NewQueueConsumer comes back by itself.
func NewConsumer(deliveries <-chan amqp.Delivery, g *idem.Guard, h Handler, opts ...Option) (*Consumer, error) {
	conf, policy, faults := configure(opts, ofChannel)
	if deliveries == nil {
		faults = append(faults, errors.New("the deliveries are nil: get them with Channel.Consume"))
	}
	if conf.prefetch == 0 {
		faults = append(faults, errors.New("Prefetch is missing: call Channel.Qos(n, 0, false) before Consume, else the client keeps the whole queue in memory, and say the same n with Prefetch(n)"))
	}
	c := &Consumer{deliveries: deliveries, guard: g, conf: conf, policy: policy}
	return c.finish("consumer", h, faults)
}

// finish checks what both constructors have in common.
func (c *Consumer) finish(what string, h Handler, faults []error) (*Consumer, error) {
	faults = append(faults, consumers.CheckHandler(h != nil, c.conf.handleBatch != nil))
	switch c.guard {
	case nil:
		faults = append(faults, errNilGuard)
	default:
		faults = append(faults, c.conf.checkLimits(c.policy))
		_, err := c.engine()
		faults = append(faults, err)
	}
	if err := errors.Join(faults...); err != nil {
		return nil, fmt.Errorf("idemamqp: %s: %w", what, err)
	}
	c.s = newSettler(c.guard, h, &c.conf)
	return c, nil
}

var errNilGuard = errors.New("the guard is nil: make one with idem.New")

func (c *Consumer) engine() (*consumers.Engine, error) {
	return consumers.New(c.guard, c.conf.engine(c.policy), c.policy)
}

// Run handles messages until ctx ends. Then handlers that have started get
// consumers.DrainTimeout, what was not handled goes back to the queue, and Run returns
// nil.
//
// A consumer of NewQueueConsumer ends with an error if at its first connection the broker
// refuses it: wrong credentials, a queue that is not there, no permission. A broker that
// gives no answer is waited for, and so is everything once the consumer has had its
// subscription: it opens connection, channel and subscription again, with pauses of 100 ms
// to 5 s, and tells the guard's observers (idem.EventWaiting). Handlers that run
// meanwhile go on: their messages are delivered again, and are duplicates then.
//
// A consumer of NewConsumer ends with an error when its channel is closed, or its
// deliveries end, before ctx. After the close of a channel nothing is settled any more.
//
// Before anything is delivered, or received, it does what Preflight does, and tells of each
// finding (idem.EventFinding). The store is waited for about five seconds only, unless by
// consumers.Strict.
//
// Both end with an error, and have acked nothing that is not done, when a message must
// not be passed over (no dead-letter destination, or one that a copy does not reach), when
// the store refuses at the start, and when a handler does not return at the end: that
// names its message. Run may be called once.
func (c *Consumer) Run(ctx context.Context) error {
	if c.ran.Swap(true) {
		return errors.New("idemamqp: Run was called twice: make a new consumer")
	}
	e, err := c.engine()
	if err != nil {
		return fmt.Errorf("idemamqp: consumer: %w", err)
	}
	if c.conf.letters != nil {
		defer c.conf.letters.close()
	}
	first, err := c.awaitPreflight(ctx)
	switch {
	case ctx.Err() != nil:
		first.close()
		return nil // it was told to stop before it began
	case err != nil:
		return fmt.Errorf("idemamqp: consumer of %s: %w", c.queueName(), err)
	case c.broker == nil:
		return e.Run(ctx, func(ctx context.Context) error { return c.receiveAll(ctx, e) })
	}
	var last *session
	defer func() { last.close() }()
	return e.Run(ctx, func(ctx context.Context) error { return c.subscribe(ctx, e, first, &last) })
}
