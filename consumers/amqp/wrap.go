package idemamqp

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"weak"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/idem"
)

// Wrap makes a function for a loop over Channel.Consume that is the caller's. It handles
// and settles one delivery, and returns nil when that is done: acked, dead-lettered, or
// requeued after HoldLimit. An error says that the delivery was left unsettled: the loop
// has to stop, and to close the channel, so that the broker delivers again. That is so when
// ctx has ended, when a message must not be passed over, when a settlement could not be
// sent, for each delivery of a channel that was closed once, and for those of a stream.
//
// The guard needs a group, else the error is idem.ErrNoGroup. The subscription is not
// seen: give Channel.Qos a count, and subscribe with autoAck false. Nothing is asked at a
// start: for the store there is Guard.Preflight. A panic of h releases
// the claim, spends budget, and goes on to the caller.
//
// The result is safe for concurrent use.
func Wrap(g *idem.Guard, h Handler, opts ...Option) (func(ctx context.Context, d amqp.Delivery) error, error) {
	conf, policy, faults := configure(opts, ofWrap)
	faults = append(faults, policy.CheckWrap(), consumers.CheckHandler(h != nil, false))
	var e *consumers.Engine
	if g == nil {
		faults = append(faults, errNilGuard)
	} else {
		var err error
		e, err = consumers.New(g, conf.engine(policy), policy)
		faults = append(faults, err)
	}
	if err := errors.Join(faults...); err != nil {
		return nil, fmt.Errorf("idemamqp: wrap: %w", err)
	}
	s := newSettler(g, h, &conf)
	s.slots = nil // as many as the loop calls
	var all sessions
	return func(ctx context.Context, msg amqp.Delivery) error {
		from, err := all.of(ctx, msg)
		if err == nil {
			err = checkStream(msg)
		}
		if err != nil {
			return fmt.Errorf("idemamqp: %w", err)
		}
		d := s.delivery(msg, from)
		if err := e.Handle(ctx, d); err != nil {
			return err
		}
		return d.failed
	}, nil
}

// sessions are those of the channels that a loop's deliveries come from. What is known of
// a channel stays for as long as the channel itself: with the client's recovery one that was
// closed may be open again, and a delivery from before must not be settled in it.
type sessions struct {
	mu  sync.Mutex
	all map[weak.Pointer[amqp.Channel]]*life
}

// life is a channel's session, or, without holding on to the channel, why that is over.
type life struct {
	*session
	over error
}

// check returns an error once the session is over.
func (l *life) check() error {
	if l.session != nil {
		if l.over = l.alive(); l.over != nil {
			l.session = nil
		}
	}
	return l.over
}

// of returns the session of a delivery; an error if it is over.
func (s *sessions) of(ctx context.Context, d amqp.Delivery) (*session, error) {
	ch, ok := d.Acknowledger.(*amqp.Channel)
	if !ok {
		return nil, foreign(d)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	key := weak.Make(ch)
	from := s.all[key]
	if from == nil {
		for _, old := range s.all {
			_ = old.check()
		}
		if s.all == nil {
			s.all = make(map[weak.Pointer[amqp.Channel]]*life)
		}
		from = &life{session: newSession(ctx, ch)}
		s.all[key] = from
		runtime.AddCleanup(ch, s.forget, key)
	}
	if err := from.check(); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", message{d: d}, errOver, err)
	}
	return from.session, nil
}

// forget is called when nobody has the channel any more.
func (s *sessions) forget(key weak.Pointer[amqp.Channel]) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, key)
}

// foreign says that a delivery's channel cannot be watched.
func foreign(d amqp.Delivery) error {
	return fmt.Errorf("delivery %d: its Acknowledger is a %T: it has to be the *amqp091.Channel that brought it, whose close must be noticed", d.DeliveryTag, d.Acknowledger)
}
