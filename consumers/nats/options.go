package idemnats

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/idemq/idemq/consumers"
)

// Option sets a policy of package consumers, or something of JetStream's.
type Option = consumers.Option

// config is what the options of this package come to.
type config struct {
	letters         *letters
	terminate       bool
	concurrency     int
	handleBatch     BatchHandler
	maxBatch        int
	orderBy         func(jetstream.Msg) string
	doubleAck       bool
	allowMaxDeliver bool

	ackWait time.Duration
	onStop  func(error)
	base    context.Context

	ofConsumer, ofWrap []string // options given that only one of the two has
	faults             []error
}

// letters is a dead-letter destination.
type letters struct {
	js      jetstream.Publisher
	subject string
}

func (c *config) fault(format string, args ...any) {
	c.faults = append(c.faults, fmt.Errorf(format, args...))
}

// configure applies opts. The faults are those of all options.
func configure(opts []Option) (config, consumers.Policy, []error) {
	var c config
	p, err := consumers.Configure(&c, opts)
	faults := c.faults
	if err != nil {
		faults = append(faults, err)
	}
	if c.terminate && c.letters != nil {
		faults = append(faults, errors.New("TerminateWithoutDeadLetter and DeadLetter exclude each other"))
	}
	if c.orderBy != nil && c.concurrency == 0 {
		faults = append(faults, errors.New("OrderBy: needs Concurrency, which says how many keys are handled at a time"))
	}
	return c, p, faults
}

func option(name string, set func(*config)) Option { return consumers.NewOption(name, set) }

// DeadLetter publishes messages that failed for good to subject, which a stream has
// to store, and goes on when that stream has confirmed it. Without it (or
// TerminateWithoutDeadLetter) such a message ends Run.
//
// While the stream does not confirm, the message is held. A process that dies between
// the confirmation and its record leaves a second copy. Where js is a
// jetstream.JetStream of the same server, Run refuses a subject without a stream, and
// one that would come back to this consumer.
func DeadLetter(js jetstream.Publisher, subject string) Option {
	return option("DeadLetter", func(c *config) {
		if isNil(js) {
			c.fault("DeadLetter: the publisher is nil: make one with jetstream.New")
		}
		if err := checkSubject(subject); err != nil {
			c.fault("DeadLetter: %w", err)
		}
		c.letters = &letters{js, subject}
	})
}

func checkSubject(subject string) error {
	if subject == "" {
		return errors.New("the subject is empty")
	}
	for t := range strings.SplitSeq(subject, ".") {
		switch {
		case t == "*" || t == ">":
			return fmt.Errorf("subject %q has a wildcard: messages are published to one subject", subject)
		case t == "" || strings.ContainsAny(t, " \t\r\n"):
			return fmt.Errorf("subject %q is not valid", subject)
		}
	}
	return nil
}

// TerminateWithoutDeadLetter gives messages that failed for good up: Term, and no
// copy. Each is lost, and reported as idem.EventDropped.
func TerminateWithoutDeadLetter() Option {
	return option("TerminateWithoutDeadLetter", func(c *config) { c.terminate = true })
}

// Concurrency lets n handlers run at a time, in any order, and gives failed messages
// back to the server for their backoff, where they count against MaxAckPending. By
// default one handler runs, in the order of delivery, and a failed message is tried
// again before the next. Not for Wrap.
func Concurrency(n int) Option {
	return option("Concurrency", func(c *config) {
		c.ofConsumer = append(c.ofConsumer, "Concurrency")
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
// ahead (a finite MaxDeliver, consumers.AtMostOnce, Budget(1), WorkAhead(0)) each message comes
// alone. Not for Wrap.
func HandleBatches(most int, h BatchHandler) Option {
	return option("HandleBatches", func(c *config) {
		c.ofConsumer = append(c.ofConsumer, "HandleBatches")
		most, err := consumers.CheckBatches(most, h != nil)
		if err != nil {
			c.faults = append(c.faults, err)
			return
		}
		c.handleBatch, c.maxBatch = h, most
	})
}

// OrderBy hands messages of one key to the handler one after another, in the order
// of delivery, while Concurrency of them run for different keys. Keys share that
// number of lanes by their hash: one that fails holds up those of its lane, and, when
// eight messages for each lane wait behind it, all. The function must be quick, and safe
// to call again. A message on which it panics is not handled: it is dead-lettered, or,
// without a destination, ends Run with an error that names it. Not for Wrap.
func OrderBy(key func(jetstream.Msg) string) Option {
	return option("OrderBy", func(c *config) {
		c.ofConsumer = append(c.ofConsumer, "OrderBy")
		if key == nil {
			c.fault("OrderBy: the function is nil")
		}
		c.orderBy = key
	})
}

// DoubleAck waits for the server to confirm each Ack. It costs a round trip, and
// saves the duplicate that a lost ack would bring. An ack that is not confirmed
// within five seconds is reported, not repeated.
func DoubleAck() Option {
	return option("DoubleAck", func(c *config) { c.doubleAck = true })
}

// AllowMaxDeliver accepts a JetStream consumer with a finite MaxDeliver. A message
// is lost then if that many deliveries end with their process, or lapse, before it
// is settled. What is left is this: the last delivery is dead-lettered without being
// handled; failed messages are retried in place; and no message is fetched before it
// can be started, which costs throughput (with OrderBy, one is handled at a time).
// Not for Wrap.
func AllowMaxDeliver() Option {
	return option("AllowMaxDeliver", func(c *config) {
		c.ofConsumer = append(c.ofConsumer, "AllowMaxDeliver")
		c.allowMaxDeliver = true
	})
}

// AckWait tells Wrap the AckWait of the JetStream consumer (or the shortest entry of
// its BackOff): messages are extended each third of it. Without it, each second.
// NewConsumer reads it from the consumer.
func AckWait(d time.Duration) Option {
	return option("AckWait", func(c *config) {
		c.ofWrap = append(c.ofWrap, "AckWait")
		if d < minAckWait {
			c.fault("AckWait: %v: must be at least %v", d, minAckWait)
		}
		c.ackWait = d
	})
}

// OnStop tells f of what would end a Consumer's Run: a message that must not be
// passed over. That message stays unsettled and is delivered again after AckWait. It
// is called from the goroutine of the message. Without it only the guard's observers are
// told (idem.EventWaiting). For Wrap.
func OnStop(f func(error)) Option {
	return option("OnStop", func(c *config) {
		c.ofWrap = append(c.ofWrap, "OnStop")
		if f == nil {
			c.fault("OnStop: the function is nil")
		}
		c.onStop = f
	})
}

// WrapContext sets the context that Wrap's handlers get theirs from. When it ends,
// handlers that have started get consumers.DrainTimeout, and messages that come after
// are left unsettled. By default it is context.Background. For Wrap.
func WrapContext(ctx context.Context) Option {
	return option("WrapContext", func(c *config) {
		c.ofWrap = append(c.ofWrap, "WrapContext")
		if ctx == nil {
			c.fault("WrapContext: the context is nil")
		}
		c.base = ctx
	})
}
