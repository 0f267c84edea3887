package idemnats

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/idem"
)

const (
	defaultAckWait = 30 * time.Second // the server's
	minAckWait     = 30 * time.Millisecond
)

// heldPerLane is how many messages are held for each lane of OrderBy, in all lanes
// together: so many of one key that stands still hold up all.
const heldPerLane = 8

// Consumer handles the messages of one JetStream consumer.
type Consumer struct {
	source jetstream.Consumer
	guard  *idem.Guard
	handle Handler
	conf   config
	policy consumers.Policy
	ran    atomic.Bool
}

// NewConsumer makes a consumer of source, a pull consumer with a durable name. The
// group is the guard's, else "<stream>/<durable>". It asks no server: the settings
// are those that source knows of, and Run reads them again. The error names all
// faults; among them are idem.ErrNoGroup, idem.ErrRedisNotEnabled, a finite MaxDeliver
// (see AllowMaxDeliver), and an AckPolicy other than explicit.
//
// No bytes bound what it holds: messages are asked for by number. By default it holds 769
// at most: the one at work, 384 that claims are made ahead for, and as many again. With
// Concurrency(n) that is n + 2 × 384, with consumers.WorkAhead(k) n + 2 × k (and n + 1 at
// least), with HandleBatches, where n × most is more than 384, n + 2 × n × most. With
// OrderBy it is 8 × n, or n × most if that is more; with a finite MaxDeliver what is at
// work. Messages of 1 MiB come to 769 MiB that way: where they are large, set WorkAhead,
// or the JetStream consumer's MaxAckPending, which the server keeps to.
func NewConsumer(source jetstream.Consumer, g *idem.Guard, h Handler, opts ...Option) (*Consumer, error) {
	conf, policy, faults := configure(opts)
	for _, name := range conf.ofWrap {
		faults = append(faults, fmt.Errorf("%s: is for Wrap", name))
	}
	if err := consumers.CheckHandler(h != nil, conf.handleBatch != nil); err != nil {
		faults = append(faults, err)
	}
	c := &Consumer{source: source, guard: g, handle: h, conf: conf, policy: policy}
	var info *jetstream.ConsumerInfo
	if isNil(source) {
		faults = append(faults, errors.New("the source is nil: get one with Stream.Consumer, or CreateOrUpdateConsumer"))
	} else if info = source.CachedInfo(); info == nil {
		faults = append(faults, errors.New("the source has no settings: use a pull consumer with a durable name, not an ordered one"))
	} else {
		faults = append(faults, conf.check(info.Config)...)
	}
	switch {
	case g == nil:
		faults = append(faults, errNilGuard)
	case g.Settings().Group != "" || info == nil:
	case info.Config.Durable == "":
		faults = append(faults, fmt.Errorf("%w, or give the JetStream consumer %q a durable name", idem.ErrNoGroup, info.Name))
	default:
		c.guard = g.Group(info.Stream + "/" + info.Config.Durable)
	}
	if len(faults) == 0 {
		_, err := c.engine(info.Config)
		faults = append(faults, err)
	} else if g != nil {
		faults = append(faults, g.Err())
	}
	if err := errors.Join(faults...); err != nil {
		return nil, fmt.Errorf("idemnats: consumer: %w", err)
	}
	return c, nil
}

// check lists what in the settings of a JetStream consumer could lose messages.
func (c *config) check(cc jetstream.ConsumerConfig) (faults []error) {
	if cc.AckPolicy != jetstream.AckExplicitPolicy {
		faults = append(faults, fmt.Errorf("the JetStream consumer's AckPolicy is %v: it has to be explicit, because any other acks messages that are not done", cc.AckPolicy))
	}
	if cc.MaxDeliver > 0 && !c.allowMaxDeliver {
		faults = append(faults, fmt.Errorf("the JetStream consumer's MaxDeliver is %d: after that many deliveries the server gives a message up, handled or not: set it to -1, and Budget to the attempts that you want, or accept the loss with AllowMaxDeliver", cc.MaxDeliver))
	}
	if cc.PriorityPolicy != jetstream.PriorityPolicyNone {
		faults = append(faults, errors.New("the JetStream consumer has a priority policy, which needs pull requests of its own: use Wrap with the source's Consume"))
	}
	if cc.HeadersOnly && c.letters != nil {
		faults = append(faults, errors.New("the JetStream consumer delivers headers only: a dead-letter copy would lack the payload: set HeadersOnly to false, or leave out DeadLetter"))
	}
	return faults
}

// engine makes the engine for the settings cc.
func (c *Consumer) engine(cc jetstream.ConsumerConfig) (*consumers.Engine, error) {
	n := max(c.conf.concurrency, 1)
	b := consumers.Broker{
		Workers:       n,
		ExtendEvery:   shortestWait(cc) / 3,
		DeadLetters:   c.conf.letters != nil || c.conf.terminate,
		FewDeliveries: cc.MaxDeliver > 0,
		ConfirmsAcks:  c.conf.doubleAck,
		HandleAll:     consumers.HandleAll(c.conf.handleBatch, func(d consumers.Delivery) jetstream.Msg { return &d.(*delivery).given }),
		MaxBatch:      c.conf.maxBatch,
	}
	if c.conf.orderBy != nil {
		b.Workers = 1
		b.MaxHeld = max(heldPerLane, c.conf.maxBatch) * n
	}
	b.Redelivers = c.conf.redelivers(cc)
	return consumers.New(c.guard, b, c.policy)
}

// redelivers reports whether failed messages go back to the server for their backoff.
func (c *config) redelivers(cc jetstream.ConsumerConfig) bool {
	return c.concurrency > 1 && c.orderBy == nil && cc.MaxDeliver <= 0
}

// shortestWait is after how long without a sign the server delivers a message again.
func shortestWait(cc jetstream.ConsumerConfig) time.Duration {
	wait := cc.AckWait
	if wait <= 0 {
		wait = defaultAckWait
	}
	for _, d := range cc.BackOff {
		if d > 0 {
			wait = min(wait, d)
		}
	}
	return max(wait, minAckWait)
}

// Run handles messages until ctx ends. Then it fetches no more, gives handlers that
// have started consumers.DrainTimeout, sends what it did not handle back to the
// server, and returns nil. A pull request that is out is waited for, up to a second, or two
// where the server does not answer: what is on its way would otherwise be stranded for
// AckWait. While the server is away it waits, and tells the guard's observers
// (idem.EventWaiting), for as long as the client reconnects: connect with
// nats.MaxReconnects(-1), since the client's default is 60 attempts at each server, some two
// minutes.
//
// Before it fetches it does what Preflight does, and tells of each finding
// (idem.EventFinding). It waits for the server, but for the store about five seconds
// only, unless by consumers.Strict.
//
// It returns an error, and has acked nothing that is not done, when a message must not
// be passed over (no dead-letter destination), when the JetStream consumer or the
// connection is gone for good, when settings were changed, before Run, to what
// NewConsumer would refuse, when the store refuses at the start, and when a handler does
// not return at the end: that names its message. Settings that change while it runs are not noticed: stop the consumer
// first. The same goes for deleting a stream and creating it anew: acks of old messages
// may reach new ones until Run has noticed.
//
// Run may be called once. The connection is the caller's to close, afterwards.
func (c *Consumer) Run(ctx context.Context) error {
	if c.ran.Swap(true) {
		return errors.New("idemnats: Run was called twice: make a new consumer")
	}
	var info *jetstream.ConsumerInfo
	err := consumers.AwaitPreflight(ctx, c.guard, c.policy, func(ctx context.Context, pass func([]idem.Finding) error) error {
		now, found, err := c.examine(ctx)
		if err != nil {
			return err
		}
		info = now
		return pass(found)
	}, isFinal)
	switch {
	case ctx.Err() != nil:
		return nil // it was told to stop before it began
	case err != nil:
		return fmt.Errorf("idemnats: consumer: %w", err)
	}
	e, err := c.engine(info.Config)
	if err != nil {
		return fmt.Errorf("idemnats: consumer: %w", err)
	}
	ours, lose := context.WithCancelCause(context.WithoutCancel(ctx))
	defer lose(nil)
	return e.Run(ctx, func(ctx context.Context) error { return c.fetch(ctx, ours, lose, e, info) })
}
