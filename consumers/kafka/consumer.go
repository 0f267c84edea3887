package idemkafka

import (
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"sync/atomic"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/idem"
)

// Reader is what NewConsumer uses of a kafka.Reader.
type Reader interface {
	FetchMessage(ctx context.Context) (kafka.Message, error)
	CommitMessages(ctx context.Context, msgs ...kafka.Message) error
	Config() kafka.ReaderConfig
}

// commitTimeout bounds one commit, and the question before it. Between generations a
// kafka.Reader's waits.
const commitTimeout = 10 * time.Second

// Consumer handles the messages of one member of a consumer group.
type Consumer struct {
	source *reading  // over a Reader; nil: over a membership of its own
	member *settings // of that membership
	s      *settler
	policy consumers.Policy
	broker consumers.Broker
	topics []string
	ask    brokers
	blind  bool // the Reader does not tell of offsets out of range
	ran    atomic.Bool
}

// NewConsumer makes a consumer of source, a kafka.Reader with a GroupID. The group is
// the guard's, else "<GroupID>/<topic>" for each topic. It asks no broker. The error
// names all faults; among them are idem.ErrNoGroup and idem.ErrRedisNotEnabled.
//
// A Reader has one channel for all partitions: one that stands still stops all when
// Buffer is full. And it does not say when a partition has gone to another member. So
// before a commit the brokers are asked what the group has committed, and what lies behind
// is left out, unless messages of the partition still come. What the other member commits
// between that question and the commit can be moved back still (a commit that comes during
// a rebalance waits for its end), and so can all where the Reader names no brokers, or when
// the question was not answered (idem.EventWaiting, once an outage), and for up to 20 seconds
// after. Nothing is lost by that; after the next rebalance what is done is fetched again, and
// dropped. NewGroupConsumer has neither.
//
// With CommitInterval what lies between question and commit is the interval, and a commit
// that fails is kafka-go's to know: its offset is committed with the next message's. Set
// OffsetOutOfRangeError: without it a topic that is deleted and made again while Run is at
// work is passed over, up to the old offset. The Reader is the caller's to close, after Run.
//
// The Reader has to be new, and this consumer's alone. It does not fetch a message twice:
// what was taken from it before Run or beside it, by FetchMessage or ReadMessage, is lost
// if it is not done when a message behind it in its partition is. A Reader that another
// consumer has run is refused by Run; one that was read by hand, or that comes in a wrapper
// of its own each time, cannot be told from a new one.
func NewConsumer(source Reader, g *idem.Guard, h Handler, opts ...Option) (*Consumer, error) {
	c, faults := newConsumer(g, h, opts)
	c.broker.KeepHandlers = true // a Reader does not say when a partition goes away
	if isNil(source) {
		faults = append(faults, errors.New("the reader is nil: make one with kafka.NewReader"))
	} else {
		config := source.Config()
		c.source, c.blind = &reading{Reader: source}, !config.OffsetOutOfRangeError
		faults = append(faults, c.of(config)...)
	}
	return c.checked(faults)
}

// NewGroupConsumer makes a consumer that joins the group itself, with one reader for
// each partition: config is what kafka.NewReader would be given, with a GroupID, and
// Topic or GroupTopics. Partitions are independent of each other; offsets are committed
// in the generation in which they were fetched, so a late commit moves nobody else's
// back; and when a partition goes away, its handlers are cancelled, after a moment, before
// others get it. Otherwise it is as NewConsumer.
//
// CommitInterval, QueueCapacity, OffsetOutOfRangeError and Partition of config have no
// use here. MaxWait is half a second by default.
func NewGroupConsumer(config kafka.ReaderConfig, g *idem.Guard, h Handler, opts ...Option) (*Consumer, error) {
	c, faults := newConsumer(g, h, opts)
	faults = append(faults, c.of(config)...)
	var err error
	if c.member, err = newSettings(config, c.topics); err != nil {
		faults = append(faults, err)
	} else {
		c.broker.HandlerGrace = c.member.grace
	}
	return c.checked(faults)
}

func newConsumer(g *idem.Guard, h Handler, opts []Option) (*Consumer, []error) {
	conf, policy, faults := configure(opts)
	if err := consumers.CheckHandler(h != nil, conf.handleBatch != nil); err != nil {
		faults = append(faults, err)
	}
	c := &Consumer{policy: policy, s: &settler{guard: g, handle: h, conf: conf, nudge: make(chan struct{}, 1), idle: make(chan struct{}, 1)}}
	c.broker = consumers.Broker{
		DeadLetters: conf.letters != nil,
		HandleAll:   consumers.HandleAll(conf.handleBatch, func(d consumers.Delivery) kafka.Message { return d.(*delivery).msg }),
		MaxBatch:    conf.maxBatch,
	}
	return c, faults
}

// of takes what config says of the group.
func (c *Consumer) of(config kafka.ReaderConfig) (faults []error) {
	c.topics = config.GroupTopics
	if len(c.topics) == 0 && config.Topic != "" {
		c.topics = []string{config.Topic}
	}
	if config.GroupID == "" {
		faults = append(faults, errNoGroupID)
	}
	group := c.s.guard != nil && c.s.guard.Settings().Group != ""
	if config.GroupID == "" && !group {
		faults = append(faults, idem.ErrNoGroup)
	}
	if len(c.topics) == 0 {
		faults = append(faults, errors.New("the reader has no topic: set Topic, or GroupTopics"))
	}
	if l := c.s.conf.letters; l != nil && l.w != nil {
		for _, t := range c.topics {
			if t == l.name() {
				faults = append(faults, fmt.Errorf("DeadLetter: topic %q would come back to this consumer: choose another", t))
			}
		}
	}
	c.ask = brokers{addrs: config.Brokers, dialer: config.Dialer, group: config.GroupID, start: config.StartOffset}
	if g := c.s.guard; g != nil && !group {
		c.s.group = config.GroupID
		c.s.guard = g.Group(config.GroupID)
	}
	return faults
}

// checked returns the consumer, or all faults, the guard's among them.
func (c *Consumer) checked(faults []error) (*Consumer, error) {
	switch g := c.s.guard; {
	case g == nil:
		faults = append(faults, errNilGuard)
	case g.Err() != nil:
		faults = append(faults, g.Err())
	case g.Settings().Store == nil:
		faults = append(faults, idem.ErrRedisNotEnabled)
	case len(faults) == 0:
		_, err := consumers.New(g, c.broker, c.policy)
		faults = append(faults, err)
	}
	if err := errors.Join(faults...); err != nil {
		return nil, fmt.Errorf("idemkafka: consumer: %w", err)
	}
	return c, nil
}

// Run handles messages until ctx ends. Then it fetches no more, gives handlers that
// have started consumers.DrainTimeout, commits the offsets of what is done, and returns
// nil; what it did not handle is fetched by the next. While the brokers are away it
// waits, and tells the guard's observers (idem.EventWaiting).
//
// Before it fetches it does what Preflight does, and tells of each finding
// (idem.EventFinding). It waits for the brokers, but for the store about five seconds
// only, unless by consumers.Strict.
//
// It returns an error, and has committed nothing that is not done, when a message must
// not be passed over (no dead-letter topic), when a topic is not there, or its
// committed offset lies beyond its end, when the brokers refuse the credentials, or the
// store refuses at the start, when the Reader was closed (io.EOF), and when a handler
// does not return at the end: that names its message.
//
// Run may be called once, and over a Reader once by all consumers together: another Run
// returns an error, and fetches nothing. The Reader stands behind messages that were
// fetched and not handled. To go on, after an error too, close it and make a new consumer
// over a new Reader: that begins at the offset that was committed. Only a Run that ended
// before its first fetch leaves the Reader to another consumer.
func (c *Consumer) Run(ctx context.Context) error {
	switch twice := c.ran.Swap(true); {
	case twice && c.source != nil:
		return errors.New("idemkafka: Run was called twice: make a new consumer over a new kafka.Reader, once this one is closed")
	case twice:
		return errors.New("idemkafka: Run was called twice: make a new consumer")
	case c.source != nil && !taken.take(c.source.Reader):
		return errTaken
	}
	e, err := c.begin(ctx)
	switch {
	case e == nil:
		if c.source != nil {
			taken.giveBack(c.source.Reader)
		}
		return err
	case c.source != nil:
		return c.source.run(ctx, c, e, newStanding(c.s.guard, c.ask, c.topics))
	}
	return c.join(ctx, e)
}

// begin looks at brokers and store, and makes the engine: none if ctx ends before.
func (c *Consumer) begin(ctx context.Context) (*consumers.Engine, error) {
	err := consumers.AwaitPreflight(ctx, c.s.guard, c.policy, func(ctx context.Context, pass func([]idem.Finding) error) error {
		found, err := c.examine(ctx)
		var lost []idem.Finding
		if err == nil && c.source != nil { // a membership of its own looks in each generation
			lost, err = c.checkOffsets(ctx)
		}
		if err != nil {
			return err
		}
		for _, f := range lost {
			consumers.EmitFinding(c.s.guard, f)
		}
		return pass(found)
	}, isFinal)
	if ctx.Err() != nil {
		return nil, nil //nolint:nilerr // it was told to stop before it began
	}
	if err != nil {
		return nil, fmt.Errorf("idemkafka: consumer: %w", err)
	}
	e, err := consumers.New(c.s.guard, c.broker, c.policy)
	if err != nil {
		return nil, fmt.Errorf("idemkafka: consumer: %w", err)
	}
	return e, nil
}

// isNil is for interfaces that may hold a nil pointer.
func isNil(r Reader) bool {
	v := reflect.ValueOf(r)
	return r == nil || v.Kind() == reflect.Pointer && v.IsNil()
}

// closedWithin is how soon a Reader that was closed says io.EOF again.
const closedWithin = 50 * time.Millisecond

// errClosed: FetchMessage says io.EOF when the Reader was closed.
var errClosed = fmt.Errorf("idemkafka: the reader was closed while Run was at work: close it after Run: %w", io.EOF)
