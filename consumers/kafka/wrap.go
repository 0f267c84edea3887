package idemkafka

import (
	"context"
	"errors"
	"fmt"

	"github.com/segmentio/kafka-go"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/idem"
)

// Wrap makes a handler for a loop of the caller's own. It waits, and retries in place.
// Nil says that the message's offset may be committed, once those of all messages before
// it may: it is done, was done before, or is in the dead-letter topic. An error says that
// the loop has to stop, and commit neither this message nor one behind it: ctx has ended
// (a handler that has started gets consumers.DrainTimeout then), or the message must not
// be passed over. A loop that begins again needs a new kafka.Reader: the one that it had
// does not fetch that message again, and a commit behind it would lose it.
//
// The guard needs a group, else the error is idem.ErrNoGroup: one for each topic, or a
// message that is forwarded from one to another with its token is taken for a duplicate
// there. A panic of h releases the claim, spends budget, and goes on to the caller.
// Nothing is asked at a start: for the store there is Guard.Preflight, and the topics are
// the loop's to know (docs/preflight.md says what weakens the promise).
//
// The result is safe for concurrent use. Called for several messages of a partition at a
// time, it does not keep their order.
func Wrap(g *idem.Guard, h Handler, opts ...Option) (func(ctx context.Context, msg kafka.Message) error, error) {
	conf, policy, faults := configure(opts)
	for _, name := range conf.ofConsumer {
		faults = append(faults, fmt.Errorf("%s: is for NewConsumer and NewGroupConsumer", name))
	}
	faults = append(faults, policy.CheckWrap(), consumers.CheckHandler(h != nil, false))
	var e *consumers.Engine
	if g == nil {
		faults = append(faults, errNilGuard)
	} else {
		var err error
		e, err = consumers.New(g, consumers.Broker{DeadLetters: conf.letters != nil}, policy)
		faults = append(faults, err)
	}
	if err := errors.Join(faults...); err != nil {
		return nil, fmt.Errorf("idemkafka: wrap: %w", err)
	}
	return func(ctx context.Context, msg kafka.Message) error {
		return e.Handle(ctx, single{message: message{msg}, handle: h, letters: conf.letters})
	}, nil
}

// single is a delivery of a loop of the caller's own, who commits.
type single struct {
	message
	kept
	handle  Handler
	letters *letters
}

func (d single) Handle(ctx context.Context) error { return d.handle(ctx, d.msg) }
func (d single) DeadLetter(ctx context.Context, l consumers.Letter) error {
	return d.letters.post(ctx, d.message, l)
}

func (single) Ack(context.Context) error       { return nil }
func (single) Terminate(context.Context) error { return nil }
