package idemnats

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/idem"
)

// Wrap makes a handler for the Consume of a jetstream.Consumer, or for any loop that
// is the caller's. It returns when the message is settled, or when its context (see
// WrapContext) or something that must not be passed over has left it unsettled: then it
// comes again after AckWait.
//
// Where a Consumer's Run would end with an error, for a message that failed for good and
// has no dead-letter destination say, the loop goes on: the error is told to the guard's
// observers (idem.EventWaiting) and to OnStop, if that is given, and the message is
// tried again at each delivery, without spending budget, until the cause is mended.
// Only OnStop can end the loop.
//
// The guard needs a group, else the error is idem.ErrNoGroup. The JetStream consumer
// is not seen, so nothing of it is checked: it has to be one that NewConsumer would
// take, MaxDeliver above all; for the store there is Guard.Preflight. Messages that wait in the client for their turn are not
// extended: keep few there, with jetstream.PullMaxMessages. A panic of h releases the
// claim, spends budget, and goes on to the caller.
//
// The result is safe for concurrent use.
func Wrap(g *idem.Guard, h Handler, opts ...Option) (jetstream.MessageHandler, error) {
	conf, policy, faults := configure(opts)
	for _, name := range conf.ofConsumer {
		faults = append(faults, fmt.Errorf("%s: is for NewConsumer", name))
	}
	faults = append(faults, policy.CheckWrap())
	faults = append(faults, consumers.CheckHandler(h != nil, false))
	b := consumers.Broker{DeadLetters: conf.letters != nil || conf.terminate, ExtendEvery: time.Second}
	if conf.ackWait > 0 {
		b.ExtendEvery = conf.ackWait / 3
	}
	var e *consumers.Engine
	if g == nil {
		faults = append(faults, errNilGuard)
	} else {
		var err error
		e, err = consumers.New(g, b, policy)
		faults = append(faults, err)
	}
	if err := errors.Join(faults...); err != nil {
		return nil, fmt.Errorf("idemnats: wrap: %w", err)
	}
	base := conf.base
	if base == nil {
		base = context.Background()
	}
	s := &settler{guard: g, handle: h, letters: conf.letters, terminate: conf.terminate, doubleAck: conf.doubleAck, ours: context.Background()}
	return func(msg jetstream.Msg) {
		err := e.Handle(base, s.delivery(msg))
		if err == nil || base.Err() != nil {
			return
		}
		g.Emit(idem.Event{Kind: idem.EventWaiting, Err: err, Wait: conf.ackWait})
		if conf.onStop != nil {
			conf.onStop(err)
		}
	}, nil
}
