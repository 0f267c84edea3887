package idemamqp

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/idemq/idemq/consumers"
)

// longEnough is how long a session lasts that was of use, though it settled nothing.
const longEnough = 5 * time.Second

// subscribe gives the engine messages until ctx ends, from one session after another. The
// last one is left open, for what is still to be settled.
func (c *Consumer) subscribe(ctx context.Context, e *consumers.Engine, s *session, last **session) error {
	var p consumers.Pause
	prefetch := c.conf.prefetch
	counting := sync.OnceFunc(func() { c.tellCounting(*last) })
	for {
		if s != nil {
			*last, s.run = s, ctx
			lane := e.Lane(s.ctx)
			began := time.Now()
			err := c.receive(ctx, s, lane, func(d amqp.Delivery) {
				if _, ok := returned(d); ok {
					counting()
				}
			})
			if ctx.Err() != nil {
				if c.conf.concurrency > 1 {
					s.sendBack() // one handler at a time, in order: nobody else gets what waits before it has returned
				}
				return context.Cause(ctx)
			}
			s.end(err)
			if errors.Is(err, errStream) {
				return fmt.Errorf("idemamqp: consumer of queue %q: %w", c.queue, err)
			}
			s.close()
			if s.wasOfUse() || time.Since(began) > longEnough {
				p.Reset()
			}
			if prefetch = c.conf.prefetch; isUnreadable(err) {
				prefetch = c.fewest()
			}
			p.Wait(ctx, c.guard, fmt.Errorf("the subscription to queue %q was lost: %w", c.queue, err))
		}
		var err error
		if s, err = c.openSession(ctx, prefetch, nil); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if isUnreadable(err) {
				prefetch = c.fewest()
			}
			p.Wait(ctx, c.guard, fmt.Errorf("queue %q: %w", c.queue, err))
		}
	}
}

// fewest is the prefetch for a queue with a message that the client cannot read: what is
// before it is to be handled, not delivered together with it.
func (c *Consumer) fewest() int { return min(c.conf.concurrency, c.conf.prefetch) }

// receive hands deliveries to a lane until ctx or the session ends.
func (c *Consumer) receive(ctx context.Context, s *session, lane *consumers.Lane, seen func(amqp.Delivery)) error {
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case err := <-s.closed:
			return reason(err)
		case d, ok := <-s.deliveries:
			if !ok {
				select {
				case err := <-s.closed:
					return reason(err)
				default:
				}
				if err := s.alive(); err != nil {
					return err
				}
				return errors.New("the broker cancelled the subscription: was the queue deleted?")
			}
			if err := s.accept(d); err != nil {
				return err
			}
			seen(d)
			lane.Add(c.s.delivery(d, s))
		}
	}
}

// receiveAll gives the engine the messages of the caller's subscription until ctx ends.
func (c *Consumer) receiveAll(ctx context.Context, e *consumers.Engine) error {
	var s *session
	var lane *consumers.Lane
	var closed chan *amqp.Error
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case err := <-closed:
			return c.lost(s, reason(err))
		case d, ok := <-c.deliveries:
			if !ok {
				return c.ended(ctx, s, lane)
			}
			if s == nil || d.Acknowledger != s.ch {
				ch, isChannel := d.Acknowledger.(*amqp.Channel)
				switch {
				case !isChannel && s == nil:
					return fmt.Errorf("idemamqp: %w", foreign(d))
				case !isChannel:
					return c.lost(s, foreign(d))
				case s != nil:
					return c.lost(s, errors.New("the deliveries are those of two channels: make a consumer for each"))
				}
				s = newSession(ctx, ch)
				s.prefetch = c.conf.prefetch
				closed = s.closed
				lane = e.Lane(s.ctx)
			}
			if err := s.accept(d); err != nil {
				return c.lost(s, err)
			}
			lane.Add(c.s.delivery(d, s))
		}
	}
}

// lost ends the session of the caller's channel.
func (c *Consumer) lost(s *session, err error) error {
	s.mu.Lock()
	if s.over == nil {
		s.over = err // settle nothing more
	}
	s.mu.Unlock()
	s.end(err)
	if errors.Is(err, errStream) {
		return fmt.Errorf("idemamqp: %w", err)
	}
	return fmt.Errorf("idemamqp: %w: what was not settled is delivered again: subscribe anew, and make a new consumer", err)
}

// ended is the end of the deliveries: with the channel, or without, when the subscription
// was cancelled; then what was delivered is handled and settled.
func (c *Consumer) ended(ctx context.Context, s *session, lane *consumers.Lane) error {
	const cure = "the subscription cancelled, or its queue deleted? Subscribe anew, and make a new consumer"
	if s == nil {
		return errors.New("idemamqp: the deliveries ended before the first: was the channel closed (Channel.NotifyClose says why), or " + cure)
	}
	if err := s.alive(); err != nil {
		return c.lost(s, err)
	}
	lane.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		lane.Wait()
	}()
	select {
	case err := <-s.closed:
		return c.lost(s, reason(err))
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-done:
	}
	return errors.New("idemamqp: the deliveries ended, and all were handled: was " + cure)
}
