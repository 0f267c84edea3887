package idemkafka

import (
	"errors"
	"fmt"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/idemq/idemq/consumers"
)

// Defaults of the options.
const (
	defaultCommitCount    = 1000
	defaultCommitInterval = time.Second
	defaultBufferMessages = 1000
	defaultBufferBytes    = 64 << 20
)

// Option sets a policy of package consumers, or something of Kafka's.
type Option = consumers.Option

// config is what the options of this package come to.
type config struct {
	letters        *letters
	concurrency    int
	handleBatch    BatchHandler
	maxBatch       int
	commitCount    int
	commitInterval time.Duration
	bufferMessages int
	bufferBytes    int
	skipMarkers    bool

	ofConsumer []string // options given that Wrap has no use for
	faults     []error
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
	if c.commitCount == 0 {
		c.commitCount, c.commitInterval = defaultCommitCount, defaultCommitInterval
	}
	if c.bufferMessages == 0 {
		c.bufferMessages, c.bufferBytes = defaultBufferMessages, defaultBufferBytes
	}
	return c, p, faults
}

func option(name string, set func(*config)) Option { return consumers.NewOption(name, set) }

func consumerOption(name string, set func(*config)) Option {
	return option(name, func(c *config) {
		c.ofConsumer = append(c.ofConsumer, name)
		set(c)
	})
}

// DeadLetter writes messages that failed for good to topic, and goes on when the
// broker has confirmed them. Without it such a message ends Run. The writer needs
// RequiredAcks other than RequireNone, which is kafka-go's default, and must not be
// Async: anything else is refused. A writer with a topic of its own takes an empty one
// here.
//
// The copy keeps key, value and headers. While the broker does not confirm, the message
// is held; a topic that does not exist ends Run. A process that dies between the
// confirmation and its record leaves a second copy, and so does a confirmation that takes
// longer than half a minute. A copy waits for the writer's BatchTimeout, one second by
// default. The writer is the caller's to close, after Run.
func DeadLetter(w *kafka.Writer, topic string) Option {
	return option("DeadLetter", func(c *config) {
		c.letters = &letters{w, topic}
		c.faults = append(c.faults, c.letters.check()...)
	})
}

// Concurrency lets up to n handlers run at a time for each partition. Messages of one
// key reach the handler one after another, in order; those without a key, or with an
// empty one, in any order. Keys share the n lines of a partition by their hash: one that
// fails holds up those of its line, and the partition when as many of them wait as Buffer
// takes, or when 50,000 messages behind it are done. By default one handler runs for each
// partition, in order. Not for Wrap.
func Concurrency(n int) Option {
	return consumerOption("Concurrency", func(c *config) {
		if n <= 0 {
			c.fault("Concurrency: %d: must be more than zero", n)
		}
		c.concurrency = n
	})
}

// HandleBatches has h called instead of the constructor's handler, which is nil then, with
// up to most messages at a time, all of one partition: for effects that are cheaper in bulk. Zero is
// consumers.DefaultMaxBatch. The claims of a batch are made in one trip to the store, and its
// completions recorded in one. No time is waited for to fill a batch: what is ready when the
// handler is free goes in, be it one message. Messages of one key may be in one batch, in
// order: where one fails, those behind it are done all the same, unless h answers them with
// idem.RetryAfter; what is tried again is so in the order of the batch.
//
// A message that failed is tried again alone, and so is one that was tried before, so that
// one that cannot be handled does not spend the others' budgets. A panic, or the death of
// the process, spends budget of all that were in the batch. Where nothing may be claimed
// ahead (consumers.AtMostOnce, Budget(1), WorkAhead(0)) each message comes
// alone. Not for Wrap.
func HandleBatches(most int, h BatchHandler) Option {
	return consumerOption("HandleBatches", func(c *config) {
		most, err := consumers.CheckBatches(most, h != nil)
		if err != nil {
			c.faults = append(c.faults, err)
			return
		}
		c.handleBatch, c.maxBatch = h, most
	})
}

// CommitEvery commits offsets when count messages of a partition are done since the
// last commit, after interval at the latest, and after a tenth of it where all that was
// fetched is done; the default is 1000 and a second. A
// process that is killed has what it did not commit fetched again, and dropped as
// duplicates. Not for Wrap.
func CommitEvery(count int, interval time.Duration) Option {
	return consumerOption("CommitEvery", func(c *config) {
		if count <= 0 || interval <= 0 {
			c.fault("CommitEvery: %d, %v: both must be more than zero", count, interval)
		}
		c.commitCount, c.commitInterval = count, interval
	})
}

// Buffer bounds what is fetched and not done: the default is 1000 messages, and 64 MiB.
//
// The bytes are those of all partitions together. A message's count from when it was
// fetched until it is settled, or its partition goes away: key, value and headers, and 256
// and 40 bytes for the structs around it and each header. So that large messages make no
// partition wait for the others, each may have two for each of its lines (Concurrency's n,
// else one) whatever they take, and one that waits for room is in hand: what is held is
// bytes at most, and besides, for each partition, 1 + 2 × lines of the largest messages.
// Where messages are so large that only these fit, few claims are made in a trip: give
// more bytes then.
//
// The messages are those of one partition that wait for a place in its lines. A line has,
// besides, the one at work, those that claims are made ahead for, and as many again:
// 1 + 2 × 384 at most, with consumers.WorkAhead(k) 1 + 2 × k (and two at least), with
// HandleBatches of more than 384 1 + 2 × most.
//
// Over a Reader, which cannot fetch one partition without the others, a partition that
// stands still stops all when it has reached a bound; a consumer of NewGroupConsumer gives
// each partition the same share of the bytes, and stops that one alone. kafka-go itself
// has up to 100 messages ready besides, whatever they take: of each partition there, of
// all together over a Reader, if its QueueCapacity is the default. Not for Wrap.
func Buffer(messages, bytes int) Option {
	return consumerOption("Buffer", func(c *config) {
		if messages <= 0 || bytes <= 0 {
			c.fault("Buffer: %d, %d: both must be more than zero", messages, bytes)
		}
		c.bufferMessages, c.bufferBytes = messages, bytes
	})
}

// SkipTransactionMarkers passes over the markers that transactional producers leave in a
// topic. kafka-go hands them out like messages, without what tells them apart: so a
// message of their shape is taken for one (no headers, a key of the four bytes 0 0 0 0 or
// 0 0 0 1, a value of six bytes that begins with 0 0), and never handled. By default they
// are handled, for nothing is lost. Not for Wrap.
func SkipTransactionMarkers() Option {
	return consumerOption("SkipTransactionMarkers", func(c *config) { c.skipMarkers = true })
}

var errNoGroupID = errors.New("the reader has no GroupID: without one nothing is committed, and every start begins anew: set it")
