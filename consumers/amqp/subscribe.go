package idemamqp

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/idem"
)

const (
	firstPause = 100 * time.Millisecond
	lastPause  = 5 * time.Second
)

// preflight opens the first session, waiting for the broker as long as ctx does. What
// the broker refuses is an error, found before anything is delivered; what weakens the
// promise is an EventStoreNotice.
func (c *Consumer) preflight(ctx context.Context) (*session, error) {
	var p pause
	notices := sync.OnceFunc(c.notices)
	refused := 0
	for {
		s, err := c.openSession(ctx, c.conf.prefetch, func(ctx context.Context, conn *amqp.Connection) error {
			err := c.checkLetters(ctx, conn)
			if err == nil {
				notices()
			}
			return err
		})
		if err == nil {
			return s, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if isRefused(err) {
			// The client takes a connection that breaks at the wrong moment for wrong
			// credentials: RabbitMQ may close it without a word for these.
			if refused++; refused > 1 || !errors.Is(err, amqp.ErrCredentials) {
				return nil, err
			}
		} else {
			refused = 0
		}
		p.wait(ctx, c.guard, err)
	}
}

func (c *Consumer) notice(format string, args ...any) {
	c.guard.Emit(idem.Event{Kind: idem.EventStoreNotice, Text: fmt.Sprintf(format, args...)})
}

// notices tells of settings that work and may surprise.
func (c *Consumer) notices() {
	if budget := c.policy.MaxAttempts(); c.conf.fewDeliveries(c.policy) {
		c.notice("the delivery limit of queue %q is %d, within the budget of %d: messages whose processes die are dead-lettered, or dropped by the broker, before it is spent: switch the limit off (-1), or raise it", c.queue, c.conf.deliveryLimit, budget)
	}
}

// noticeCounting tells once of a quorum queue that may have a limit which nobody named.
func (c *Consumer) noticeCounting(s *session) {
	version, _ := s.conn.Properties["version"].(string)
	major, _, _ := strings.Cut(version, ".")
	if n, err := strconv.Atoi(major); err == nil && n >= 4 && c.conf.deliveryLimit == 0 {
		c.notice("queue %q is a quorum queue, and RabbitMQ %s gives these a delivery limit of 20 unless they are told otherwise: after that many crashes or lost connections it drops a message: switch the limit off (-1), or give the queue a dead-letter exchange and name the limit with DeliveryLimit", c.queue, version)
	}
}

// checkLetters looks for mistakes in the dead-letter destination, on a channel that the
// question may close.
func (c *Consumer) checkLetters(ctx context.Context, conn *amqp.Connection) error {
	to := c.conf.letters
	if to == nil {
		return nil
	}
	return within(ctx, conn, func() error {
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
	})
}

// subscribe gives the engine messages until ctx ends, from one session after another. The
// last one is left open, for what is still to be settled.
func (c *Consumer) subscribe(ctx context.Context, e *consumers.Engine, s *session, last **session) error {
	var p pause
	prefetch := c.conf.prefetch
	counting := sync.OnceFunc(func() { c.noticeCounting(*last) })
	for {
		if s != nil {
			*last = s
			lane := e.Lane(s.ctx)
			began := time.Now()
			err := c.receive(ctx, s, lane, func(d amqp.Delivery) {
				if _, ok := returned(d); ok {
					counting()
				}
			})
			if ctx.Err() != nil {
				if c.conf.concurrency > 1 {
					s.sendBack() // one handler at a time, in order: what waits goes back when the session is closed
				}
				return context.Cause(ctx)
			}
			s.end(err)
			if errors.Is(err, errStream) {
				return fmt.Errorf("idemamqp: consumer of queue %q: %w", c.queue, err)
			}
			s.close()
			if s.wasOfUse() || time.Since(began) > lastPause {
				p.reset()
			}
			if prefetch = c.conf.prefetch; isUnreadable(err) {
				prefetch = c.fewest()
			}
			p.wait(ctx, c.guard, fmt.Errorf("the subscription to queue %q was lost: %w", c.queue, err))
		}
		var err error
		if s, err = c.openSession(ctx, prefetch, nil); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if isUnreadable(err) {
				prefetch = c.fewest()
			}
			p.wait(ctx, c.guard, fmt.Errorf("queue %q: %w", c.queue, err))
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

// pause is the wait between failures: it doubles, with jitter.
type pause struct{ last time.Duration }

func (p *pause) reset() { p.last = 0 }

// wait reports err and waits, not beyond the end of ctx.
func (p *pause) wait(ctx context.Context, g *idem.Guard, err error) {
	p.last = min(max(2*p.last, firstPause), lastPause)
	d := p.last/2 + rand.N(p.last/2+1)
	g.Emit(idem.Event{Kind: idem.EventWaiting, Err: err, Wait: d})
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
