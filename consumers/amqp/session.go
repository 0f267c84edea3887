package idemamqp

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// closeTimeout bounds the farewell to a broker.
const closeTimeout = 2 * time.Second

// errOver: a settlement came after the end of the session that brought its delivery.
// Its tag would be another message's in any other session.
var errOver = errors.New("not sent: the channel that brought the delivery was closed, and the broker delivers the message again")

// errStream: streams deliver what was acked again, to everybody who subscribes.
var errStream = errors.New("the message comes from a stream (it has the header x-stream-offset): streams keep no account of acks, so they are not for this package; to have their messages handled, copy them into a queue, without that header")

// checkStream returns errStream for a delivery of a stream.
func checkStream(d amqp.Delivery) error {
	if _, ok := d.Headers[streamOffset].(int64); ok {
		return errStream
	}
	return nil
}

// session is the life of one channel, from its opening to its first close. A delivery is
// settled in the session that brought it, or not at all.
type session struct {
	ch    *amqp.Channel
	queue string           // empty: not known
	conn  *amqp.Connection // nil: the caller's

	ctx        context.Context // ends with the session, at the latest with its consumer
	end        context.CancelCauseFunc
	run        context.Context  // the consumer's; nil: the channel is the caller's
	closed     chan *amqp.Error // for the one who receives
	tag        string
	deliveries <-chan amqp.Delivery
	prefetch   int
	rest       sync.WaitGroup

	unsubscribed sync.Once

	mu          sync.Mutex
	noticed     chan *amqp.Error // for those who settle
	over        error
	last        uint64 // delivery tag
	outstanding int
	settled     bool // something was
	acks        acks

	acking sync.Mutex // held while an ack for several is decided upon and sent
}

// newSession watches a channel. Its context carries the values of ctx and outlives it.
func newSession(ctx context.Context, ch *amqp.Channel) *session {
	s := &session{ch: ch}
	s.ctx, s.end = context.WithCancelCause(context.WithoutCancel(ctx))
	s.closed = ch.NotifyClose(make(chan *amqp.Error, 1))
	s.noticed = ch.NotifyClose(make(chan *amqp.Error, 1))
	return s
}

// alive returns an error once the channel was closed, whatever it is now: with the
// client's recovery the same channel is open again, and its tags start anew.
func (s *session) alive() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over == nil {
		select {
		case err := <-s.noticed:
			s.over = reason(err)
		default:
			if s.ch.IsClosed() {
				s.over = reason(nil)
			}
		}
	}
	return s.over
}

// reason says why a channel was closed.
func reason(err *amqp.Error) error {
	switch {
	case err == nil:
		return errors.New("the channel was closed")
	case hint(err) == "":
		return fmt.Errorf("the channel was closed: %w", err)
	}
	return explain(err)
}

// explain adds to an error that is the broker's or the client's what these leave out.
func explain(err error) error {
	if e, ok := errors.AsType[*amqp.Error](err); ok && hint(e) != "" {
		return fmt.Errorf("%s: %w", hint(e), err)
	}
	return err
}

// isUnreadable reports whether the client closed its connection for a message.
func isUnreadable(err error) bool {
	e, ok := errors.AsType[*amqp.Error](err)
	return ok && !e.Server && strings.Contains(e.Reason, amqp.ErrSyntax.Reason)
}

// hint is the cause and the cure of an error, where they are known.
func hint(err *amqp.Error) string {
	switch {
	case isUnreadable(err):
		return "the client cannot read a message that was delivered, and closed the connection: it has more than 8192 headers, or headers nested more than 32 deep: take it out of the queue with the broker's management UI, or purge the queue"
	case err.Server && strings.Contains(err.Reason, "frame_too_large"):
		return "its headers do not fit into one frame: raise frame_max of the broker and FrameSize of the client, or take the message out of the queue"
	case err.Code == amqp.PreconditionFailed && strings.Contains(err.Reason, "unknown delivery tag"):
		return "the broker closed the channel: a delivery was acked that it does not wait for: subscribe with autoAck false, and let nobody else settle"
	case err.Code == amqp.PreconditionFailed && strings.Contains(err.Reason, "timed out"):
		return "the broker closed the channel: a message was held for longer than its consumer timeout: raise consumer_timeout above what a handler takes, or lower HoldLimit or Prefetch"
	}
	return ""
}

// settle calls verb if the session is not over.
func (s *session) settle(tag uint64, verb func(tag uint64) error) error {
	if err := s.alive(); err != nil {
		return fmt.Errorf("%w: %w", errOver, err)
	}
	s.mu.Lock()
	s.outstanding-- // first: the broker may send the next one at once
	s.settled = true
	s.mu.Unlock()
	if err := verb(tag); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.acks.settle(tag) // not before it was sent: an ack for several would take it along
	return nil
}

// ackAll acks deliveries of the session. On a connection of the consumer's own one ack stands
// for all before which nothing else is outstanding. On a channel of the caller's, which the
// client may open again meanwhile (Config.Recovery), it might reach as many others.
func (s *session) ackAll(tags []uint64) error {
	if err := s.alive(); err != nil {
		return fmt.Errorf("%w: %w", errOver, err)
	}
	s.acking.Lock()
	defer s.acking.Unlock()
	s.mu.Lock()
	s.outstanding -= len(tags)
	s.settled = true
	for _, tag := range tags {
		s.acks.settle(tag)
	}
	var upTo uint64
	if s.conn != nil {
		upTo = s.acks.upTo()
	}
	s.mu.Unlock()
	var last uint64 // that one ack can stand for: it has to be outstanding itself
	for _, tag := range tags {
		if tag <= upTo {
			last = max(last, tag)
		}
	}
	for _, tag := range tags {
		if tag < last {
			continue
		}
		if err := s.ch.Ack(tag, tag == last); err != nil {
			return err
		}
	}
	return nil
}

// wasOfUse reports whether something was settled in the session.
func (s *session) wasOfUse() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.settled
}

// accept takes a delivery in. An error says that the session cannot go on.
func (s *session) accept(d amqp.Delivery) error {
	if err := checkStream(d); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if d.DeliveryTag <= s.last {
		return fmt.Errorf("delivery tag %d came after %d: the channel was opened again (Config.Recovery), or the deliveries are not those of one subscription", d.DeliveryTag, s.last)
	}
	s.last = d.DeliveryTag
	s.acks.accept(d.DeliveryTag)
	s.outstanding++
	if s.prefetch > 0 && s.outstanding > s.prefetch {
		return fmt.Errorf("%d deliveries are unsettled, Prefetch says %d: call Channel.Qos(%[2]d, 0, false) before Consume, and subscribe with autoAck false", s.outstanding, s.prefetch)
	}
	return nil
}

// sendBack ends the subscription and requeues what is on its way, until close: it waits for
// the answer, so that all that was on its way is nacked; unsubscribe does not.
func (s *session) sendBack() {
	s.rest.Go(func() {
		if s.ch.Cancel(s.tag, false) != nil {
			return // the session is over
		}
		for d := range s.deliveries {
			if s.ch.Nack(d.DeliveryTag, false, true) != nil {
				return
			}
		}
	})
}

// unsubscribe ends the subscription. What is on its way goes back when the session is closed.
func (s *session) unsubscribe() {
	s.unsubscribed.Do(func() { _ = s.ch.Cancel(s.tag, true) }) // it fails where the session is over
}

// close ends a session of the consumer's own. What is unsettled goes back to the queue.
func (s *session) close() {
	if s == nil {
		return
	}
	s.end(nil)
	_ = s.conn.CloseDeadline(time.Now().Add(closeTimeout))
	s.rest.Wait()
}
