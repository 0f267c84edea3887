package idemnats

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/idem"
)

const (
	// fetchWait is how long a pull request stays at the server. It cannot be taken
	// back without stranding what is on its way until AckWait, so it also is how long
	// the end of Run waits.
	fetchWait = time.Second
	// askTimeout bounds a question about the consumer or a stream.
	askTimeout = 2 * time.Second
	// messagePause is the pause where a message broke its request, not the server: each
	// such message costs one.
	messagePause = 50 * time.Millisecond
	// answerDelay is how much later than asked for the end of a pull request may come; nats.go
	// gives it up after a second.
	answerDelay = 500 * time.Millisecond
)

// fetch gives the engine messages until ctx ends or there will be no more.
//
// The messages are this consumer's while ours lasts: JetStream takes none away that is
// extended, and a consumer that was created anew takes all.
func (c *Consumer) fetch(ctx, ours context.Context, lose context.CancelCauseFunc, e *consumers.Engine, info *jetstream.ConsumerInfo) error {
	s := &settler{
		guard: c.guard, handle: c.handle, letters: c.conf.letters, terminate: c.conf.terminate,
		doubleAck: c.conf.doubleAck, maxDeliver: uint64(max(info.Config.MaxDeliver, 0)), ours: ours,
	}
	add := c.lanes(ours, e)
	var order sequence
	most, wait := info.Config.MaxRequestBatch, fetchWait
	if limit := info.Config.MaxRequestExpires; limit > 0 {
		wait = min(wait, limit)
	}
	var p consumers.Pause
	for {
		n, err := e.Room(ctx)
		if err != nil {
			return err
		}
		if most > 0 {
			n = min(n, most)
		}
		if p.Failing() {
			n = 1 // a message that breaks its request must not take others with it each time
		}
		unanswered := false // what is behind is not to wait for that again
		got, err := c.pull(n, wait, func(msg jetstream.Msg) error {
			d := s.delivery(msg)
			if !unanswered && !order.follows(d.meta) {
				anew, err := c.anew(ctx, info)
				switch {
				case anew:
					err = fmt.Errorf("idemnats: %s was %w", nameOf(info), errAnew)
					lose(err) // what is held bears numbers that are other messages' now
					return err
				case err == nil:
					order.accept(d.meta)
				default:
					unanswered = true
				}
			}
			add(d)
			return nil
		})
		if errors.Is(err, errAnew) {
			return err
		}
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case got > 0 || err == nil:
			p.Reset()
		}
		if err == nil {
			continue
		}
		if gone := c.gone(ctx, err, info); gone != nil {
			lose(gone)
			return gone
		}
		if errors.Is(err, errSilent) { // which took its time
			c.guard.Emit(idem.Event{Kind: idem.EventWaiting, Wait: wait + answerDelay, Err: err})
			continue
		}
		failure := fmt.Errorf("fetching from the JetStream consumer: %w", err)
		if errors.Is(err, errNoMessage) {
			p.WaitAtMost(ctx, c.guard, failure, messagePause)
		} else {
			p.Wait(ctx, c.guard, failure)
		}
	}
}

// pull makes one pull request for n messages and hands over each as it comes.
func (c *Consumer) pull(n int, wait time.Duration, add func(jetstream.Msg) error) (got int, err error) {
	began := time.Now()
	batch, err := c.source.Fetch(n, jetstream.FetchMaxWait(wait))
	if err != nil {
		return 0, err
	}
	for msg := range batch.Messages() {
		got++
		if err == nil {
			err = add(msg)
		}
		if err != nil {
			_ = msg.Nak() // for whoever comes next; at worst after AckWait
		}
	}
	if err != nil {
		return got, err
	}
	if err := batch.Error(); err != nil {
		return got, err
	}
	switch took := time.Since(began); {
	case got > 0:
	case took < wait/2:
		return 0, errNoMessage
	case took > wait+answerDelay:
		return 0, errSilent
	}
	return got, nil
}

// errSilent: nats.go keeps what it is given while it has no connection, and tells nobody.
var errSilent = errors.New("the server does not answer pull requests: is the connection lost, or may this user not publish to $JS.API.CONSUMER.MSG.NEXT?")

// errNoMessage is what a message looks like that nats.go takes for the server's own.
var errNoMessage = errors.New("the request ended at once, without a message: is there an empty message with a Status header, just above the consumer's ack floor? Delete it from the stream")

// errAnew: the JetStream consumer is not the one that Run began with.
var errAnew = errors.New("deleted and created anew: make a new consumer")

// sequence watches the consumer's own numbers of deliveries, which only rise.
type sequence struct{ last uint64 }

func (s *sequence) follows(meta *jetstream.MsgMetadata) bool {
	if meta == nil {
		return true
	}
	if meta.Sequence.Consumer <= s.last {
		return false
	}
	s.last = meta.Sequence.Consumer
	return true
}

// accept goes on from a lower number.
func (s *sequence) accept(meta *jetstream.MsgMetadata) { s.last = meta.Sequence.Consumer }

// anew reports whether the JetStream consumer was deleted and created anew. A server
// that crashed may have forgotten its last numbers too. After an error it is not known.
func (c *Consumer) anew(ctx context.Context, info *jetstream.ConsumerInfo) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	now, err := c.source.Info(ctx)
	if err != nil {
		return isMissing(err), err
	}
	return !now.Created.Equal(info.Created), nil
}

func nameOf(info *jetstream.ConsumerInfo) string {
	return fmt.Sprintf("the JetStream consumer %q of stream %q", info.Name, info.Stream)
}

// lanes returns the function that hands a delivery to its lane. One whose key is not known
// has no order to keep, and is refused in the lane that its own name falls to.
func (c *Consumer) lanes(ours context.Context, e *consumers.Engine) func(*delivery) {
	n := 1
	if c.conf.orderBy != nil {
		n = c.conf.concurrency
	}
	lanes := make([]*consumers.Lane, n)
	for i := range lanes {
		lanes[i] = e.Lane(ours)
	}
	seed := maphash.MakeSeed()
	return func(d *delivery) {
		if n == 1 {
			lanes[0].Add(d)
			return
		}
		key, err := consumers.Extract("OrderBy", func() (string, error) { return c.conf.orderBy(&d.given), nil })
		if err != nil {
			key = d.String()
		}
		lanes[maphash.String(seed, key)%uint64(n)].Add(consumers.Invalid(d, err))
	}
}

// gone returns an error if the JetStream consumer, or the connection, will not come
// back. A fetch alone cannot tell: no responders is also the answer of a server that
// starts, and a message's own headers may look like any answer.
func (c *Consumer) gone(ctx context.Context, err error, info *jetstream.ConsumerInfo) error {
	name := nameOf(info)
	if isClosed(err) {
		return fmt.Errorf("idemnats: %s: the connection was closed: connect anew, and make a new consumer: %w", name, err)
	}
	if !errors.Is(err, nats.ErrNoResponders) && !errors.Is(err, jetstream.ErrConsumerDeleted) && !errors.Is(err, errSilent) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	now, err := c.source.Info(ctx)
	switch {
	case err == nil && !now.Created.Equal(info.Created):
		return fmt.Errorf("idemnats: %s was %w", name, errAnew)
	case err == nil:
		return nil
	case isClosed(err):
		return fmt.Errorf("idemnats: %s: the connection was closed: connect anew, and make a new consumer: %w", name, err)
	case isMissing(err):
		return fmt.Errorf("idemnats: %s was deleted: create it, and make a new consumer: %w", name, err)
	}
	return nil
}

func isClosed(err error) bool {
	return errors.Is(err, nats.ErrConnectionClosed) || errors.Is(err, jetstream.ErrConnectionClosed)
}

func isMissing(err error) bool {
	return errors.Is(err, jetstream.ErrConsumerNotFound) || errors.Is(err, jetstream.ErrConsumerDoesNotExist) || errors.Is(err, jetstream.ErrStreamNotFound)
}
