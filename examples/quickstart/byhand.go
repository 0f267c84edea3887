package main

import (
	"context"
	"errors"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/idemq/idemq/idem"
)

// handleThenAck is the loop of every tutorial. What is delivered twice is handled
// twice.
func handleThenAck(ctx context.Context, r *replica) error {
	return loop(ctx, r.source, r.handle)
}

// setnxThenHandle marks the token first, by SET NX where there is a Redis, and
// handles an order only if the mark was not there. When the handler fails, or its
// process dies, the mark stays, and the redelivered order is taken for a duplicate.
func setnxThenHandle(ctx context.Context, r *replica) error {
	return loop(ctx, r.source, func(ctx context.Context, msg jetstream.Msg) error {
		isNew, err := r.setnx(ctx, msg.Headers().Get(idem.Header))
		if err != nil || !isNew {
			return err
		}
		return r.handle(ctx, msg)
	})
}

// loop acks what was handled, and has the rest delivered again.
func loop(ctx context.Context, source jetstream.Consumer, handle func(context.Context, jetstream.Msg) error) error {
	messages, err := source.Messages(jetstream.PullMaxMessages(20))
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, messages.Stop)()
	for {
		msg, err := messages.Next()
		switch {
		case errors.Is(err, jetstream.ErrMsgIteratorClosed):
			return nil
		case err != nil:
			return err
		}
		if handle(ctx, msg) != nil {
			_ = msg.Nak() // if that is lost, AckWait does the same
			continue
		}
		_ = msg.Ack() // if that is lost, the order is delivered again
	}
}
