package idemamqp

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/idemq/idemq/consumers"
)

// Option sets a policy of package consumers, or something of AMQP's.
type Option = consumers.Option

const (
	// ahead is how many messages a queue consumer has delivered beside those whose
	// handlers run, unless Prefetch says something else: few enough for slow handlers.
	ahead = 64

	defaultHoldLimit = 15 * time.Minute
	minHoldLimit     = time.Second

	maxName = 255 // bytes of a queue's or an exchange's name, or of a key
)

// checkName refuses a name that AMQP has no room for.
func checkName(what, name string) error {
	if len(name) > maxName {
		return fmt.Errorf("%s is %d bytes long, %d are allowed: %.40q…", what, len(name), maxName, name)
	}
	return nil
}

// config is what the options of this package come to.
type config struct {
	concurrency   int
	prefetch      int
	handleBatch   BatchHandler
	maxBatch      int
	letters       *letters
	reject        bool
	publishOn     *amqp.Channel
	holdLimit     time.Duration
	deliveryLimit int

	dial   func(context.Context) (*amqp.Connection, error)
	client *amqp.Config

	given  []string // options that not all constructors have
	faults []error
}

// The constructors, and the options that only some of them have.
type constructor string

const (
	ofQueue   constructor = "NewQueueConsumer"
	ofChannel constructor = "NewConsumer"
	ofWrap    constructor = "Wrap"
)

var notForAll = [...]struct {
	option string
	refuse constructor
	why    string
}{
	{"Concurrency", ofWrap, "as many run as the loop has goroutines"},
	{"HandleBatches", ofWrap, "the loop has one message at a time"},
	{"Prefetch", ofWrap, "the loop's own Channel.Qos says it"},
	{"Dial", ofWrap, "it opens no connection"},
	{"Dial", ofChannel, "it opens no connection: the channel is the caller's"},
	{"Config", ofWrap, "it opens no connection"},
	{"Config", ofChannel, "it opens no connection: the channel is the caller's"},
	{"PublishOn", ofQueue, "it opens a connection of its own for dead letters"},
}

func (c *config) fault(format string, args ...any) {
	c.faults = append(c.faults, fmt.Errorf(format, args...))
}

// configure applies opts for one constructor. The faults are those of all options.
func configure(opts []Option, of constructor) (config, consumers.Policy, []error) {
	var c config
	p, err := consumers.Configure(&c, opts)
	faults := c.faults
	faults = append(faults, err)
	for _, name := range c.given {
		for _, n := range notForAll {
			if n.option == name && n.refuse == of {
				faults = append(faults, fmt.Errorf("%s: is not for %s: %s", name, of, n.why))
			}
		}
	}
	if c.reject && c.letters != nil {
		faults = append(faults, errors.New("RejectToDLX and DeadLetter exclude each other"))
	}
	if c.dial != nil && c.client != nil {
		faults = append(faults, errors.New("Dial and Config exclude each other: give the Config to what Dial dials with"))
	}
	switch {
	case of == ofQueue:
	case c.letters != nil && c.publishOn == nil:
		faults = append(faults, fmt.Errorf("DeadLetter: %s has no connection of its own: give it a channel to publish on with PublishOn", of))
	case c.letters == nil && c.publishOn != nil:
		faults = append(faults, errors.New("PublishOn: is for DeadLetter, which is missing"))
	case c.letters != nil:
		c.letters.users = c.publishOn
	}
	if c.holdLimit == 0 {
		c.holdLimit = defaultHoldLimit
	}
	c.concurrency = max(c.concurrency, 1)
	if c.prefetch == 0 && of == ofQueue {
		c.prefetch = min(c.concurrency*max(c.maxBatch, 1)+max(ahead, c.maxBatch), math.MaxUint16)
		if c.fewDeliveries(p) {
			c.prefetch = min(c.concurrency, math.MaxUint16)
		}
	}
	if c.prefetch > 0 && c.prefetch < c.concurrency {
		faults = append(faults, fmt.Errorf("Prefetch: %d is less than the Concurrency of %d: so many handlers would never run", c.prefetch, c.concurrency))
	}
	return c, p, faults
}

// fewDeliveries reports whether the broker may drop a message before its budget is
// spent.
func (c *config) fewDeliveries(p consumers.Policy) bool {
	return c.deliveryLimit > 0 && c.deliveryLimit <= p.MaxAttempts()
}

// checkLimits refuses a prefetch that spends deliveries on messages that wait.
func (c *config) checkLimits(p consumers.Policy) error {
	if c.fewDeliveries(p) && c.prefetch > c.concurrency {
		return fmt.Errorf("DeliveryLimit: %d is within the budget of %d, so no message may be held before it can be started: leave Prefetch out, or set it (and Channel.Qos) to the Concurrency of %d", c.deliveryLimit, p.MaxAttempts(), c.concurrency)
	}
	return nil
}

// engine describes the broker to the engine.
func (c *config) engine(p consumers.Policy) consumers.Broker {
	return consumers.Broker{
		Workers:       c.concurrency,
		DeadLetters:   c.letters != nil || c.reject,
		FewDeliveries: c.fewDeliveries(p),
		KeepHandlers:  true,
		HoldLimit:     c.holdLimit,
		AckAll:        ackAll,
		HandleAll:     handleAll(c.handleBatch),
		MaxBatch:      c.maxBatch,
	}
}

func option(name string, set func(*config)) Option {
	return consumers.NewOption(name, func(c *config) {
		c.given = append(c.given, name)
		set(c)
	})
}

// Concurrency lets n handlers run at a time, in any order. By default one handler runs,
// in the order of delivery. Failed messages are tried again in place either way, and
// keep their handler's place during the backoff. Not for Wrap.
func Concurrency(n int) Option {
	return option("Concurrency", func(c *config) {
		if n <= 0 {
			c.fault("Concurrency: %d: must be more than zero", n)
		}
		c.concurrency = n
	})
}

// HandleBatches has h called instead of the constructor's handler, which is nil then, with
// up to most messages at a time: for effects that are cheaper in bulk. Zero is
// consumers.DefaultMaxBatch. The claims of a batch are made in one trip to the store, and its
// completions recorded in one. No time is waited for to fill a batch: what is ready when the
// handler is free goes in, be it one message.
//
// A message that failed is tried again alone, and so is one that was tried before, so that
// one that cannot be handled does not spend the others' budgets. A panic, or the death of
// the process, spends budget of all that were in the batch. Where nothing may be claimed
// ahead (a DeliveryLimit within the budget, consumers.AtMostOnce, Budget(1), WorkAhead(0)) each message comes
// alone. Not for Wrap.
func HandleBatches(most int, h BatchHandler) Option {
	return option("HandleBatches", func(c *config) {
		most, err := consumers.CheckBatches(most, h != nil)
		if err != nil {
			c.faults = append(c.faults, err)
			return
		}
		c.handleBatch, c.maxBatch = h, most
	})
}

// Prefetch sets how many unsettled messages the broker lets this consumer have; a
// consumer of NewQueueConsumer has 64 more than Concurrency by default (with HandleBatches,
// more than all batches, or one batch more). Messages wait in
// it for their turn, and the broker's consumer timeout (30 minutes by default) runs
// meanwhile: the handlers of all that is before a message, and its own, have to fit into
// it, with the default, one handler at a time, about 27 seconds each. Where they take
// longer set a smaller Prefetch. Where they take a few milliseconds set a larger one: a
// trip to the store, and an ack, then settle more messages at once. docs/performance.md
// has a row with 1,000.
//
// For NewConsumer it is required, and says what the caller gave Channel.Qos. If more are
// delivered, Run ends with an error. Not for Wrap.
func Prefetch(n int) Option {
	return option("Prefetch", func(c *config) {
		if n <= 0 || n > math.MaxUint16 {
			c.fault("Prefetch: %d: must be from 1 to %d", n, math.MaxUint16)
		}
		c.prefetch = n
	})
}

// DeadLetter publishes messages that failed for good to exchange, with key for the
// routing key (an empty exchange: to the queue of that name), as mandatory, and goes on when the
// broker has confirmed that it is in a queue. Without it (or RejectToDLX) such a message
// ends Run.
//
// A copy that reaches no queue, an exchange that does not exist, and a copy that the
// broker refuses end Run with an error that names exchange and key; nothing is lost
// then. While the broker gives no confirmation the message is held, and published again
// after five seconds. A copy whose confirmation is lost, with its connection or its
// process, leaves a second one; moved back, both, they are handled once.
//
// A consumer of NewQueueConsumer publishes on a connection of its own, so that a broker
// that holds publishers up does not hold up acks; while that cannot be opened, be it
// refused, the message is held. The others need PublishOn.
func DeadLetter(exchange, key string) Option {
	return option("DeadLetter", func(c *config) {
		if exchange == "" && key == "" {
			c.fault("DeadLetter: exchange and key are both empty: name an exchange, or a queue as the key")
		}
		for _, err := range []error{checkName("DeadLetter: the exchange", exchange), checkName("DeadLetter: the key", key)} {
			if err != nil {
				c.faults = append(c.faults, err)
			}
		}
		c.letters = newLetters(exchange, key)
	})
}

// PublishOn gives NewConsumer and Wrap the channel to publish dead letters on: one of
// another connection than the deliveries', without Config.Recovery, so that a broker that
// holds publishers up does not hold up acks. It is put into confirm mode, has to be used for
// nothing else from then on, and is the caller's to close, after Run. While the broker holds
// it up one write of the consumer's may wait in it, Close too: Connection.CloseDeadline ends
// both. The next dead letter ends Run when it is closed before. Not for NewQueueConsumer.
func PublishOn(ch *amqp.Channel) Option {
	return option("PublishOn", func(c *config) {
		if ch == nil {
			c.fault("PublishOn: the channel is nil: open one with Connection.Channel")
		}
		c.publishOn = ch
	})
}

// RejectToDLX rejects messages that failed for good, without requeueing them, for
// queues that have a dead-letter exchange (x-dead-letter-exchange, or a policy), which
// cannot be seen from here: where a queue has none, or its dead letters are not routed,
// the message is lost. Nothing confirms that a reject arrived: a message that is known as
// dead is rejected again when it is delivered again, which may make a second copy, and
// never loses it. The copy has the broker's headers (x-death), not those of DeadLetter: one
// that is moved back returns to the exchange unhandled, unless idem.RedriveHeader is set to
// 1 (2 the next time), or Guard.Forget called.
func RejectToDLX() Option {
	return option("RejectToDLX", func(c *config) { c.reject = true })
}

// HoldLimit sets how long a message is waited with, through backoffs, for another
// consumer that has it in progress, for the store, before it goes back to the queue, which
// idem.EventWaiting tells; the default is 15 minutes, the least a second. It has to be less
// than the consumer timeout of the broker (30 minutes by default), after which the broker
// closes the channel. A handler that runs is not interrupted, and a message that only
// waited for its turn for as long is tried all the same: it does not go back. Nor does one
// under AtMostOnce whose token the store was asked to spend. A quorum queue counts each
// return (RabbitMQ up to 4.2), RabbitMQ 4 up to 20 by itself: see DeliveryLimit.
func HoldLimit(d time.Duration) Option {
	return option("HoldLimit", func(c *config) {
		if d < minHoldLimit {
			c.fault("HoldLimit: %v: must be %v at least", d, minHoldLimit)
		}
		c.holdLimit = d
	})
}

// DeliveryLimit tells of the delivery limit of a quorum queue (x-delivery-limit, or the
// policy delivery-limit; RabbitMQ 4 sets 20 by itself). Each process that dies, each
// connection that is lost, counts for every message that was delivered, and a message
// that is returned more often than the limit is dropped by the broker, or goes to the
// queue's dead-letter exchange: it is lost then unless it has one.
//
// With this option a message's last delivery is not started: it is acked if it is a
// duplicate, held while it is in progress elsewhere or the store is away, else, and after
// HoldLimit, and when Run ends, dead-lettered. (Wrap leaves it when its context ends, and
// what closes the channel spends it.) Where the limit is within consumers.Budget, no message
// is held before it can be started, which costs throughput. A queue without a limit (-1)
// loses nothing, and needs none of this.
func DeliveryLimit(n int) Option {
	return option("DeliveryLimit", func(c *config) {
		if n <= 0 {
			c.fault("DeliveryLimit: %d: must be more than zero; a queue without a limit needs no option", n)
		}
		c.deliveryLimit = n
	})
}

// Dial sets how a consumer of NewQueueConsumer opens its connections, in the place of its
// url: each call opens a new one, which becomes the consumer's to close. It should heed
// ctx: Run does not return before a call that is for its subscription. One for dead letters
// is waited for two seconds at Run's end; what it brings later is closed. The connection
// must not use Config.Recovery.
func Dial(dial func(ctx context.Context) (*amqp.Connection, error)) Option {
	return option("Dial", func(c *config) {
		if dial == nil {
			c.fault("Dial: the function is nil")
		}
		c.dial = dial
	})
}

// Config sets what a consumer of NewQueueConsumer dials its url with: TLS, SASL,
// heartbeats. Run waits for its Dial, which knows no context. Recovery must be nil: the
// consumer recovers by itself, and knows then which deliveries are still its own.
func Config(client amqp.Config) Option {
	return option("Config", func(c *config) {
		if client.Recovery != nil {
			c.fault("Config: Recovery: must be nil: the consumer opens its connection again by itself, and the client's recovery would let an ack reach another message")
		}
		c.client = &client
	})
}
