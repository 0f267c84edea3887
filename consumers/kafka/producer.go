package idemkafka

import (
	"context"
	"errors"
	"fmt"

	"github.com/segmentio/kafka-go"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/idem"
)

// TokenOf returns the token in a message's header; false where it has none, or one
// that is not valid.
func TokenOf(msg kafka.Message) (string, bool) { return consumers.TokenIn(message{msg}) }

// SetToken gives a message a token, in the place of any that it has. A nil message is
// left alone.
func SetToken(msg *kafka.Message, token string) {
	if msg != nil {
		msg.Headers = set(msg.Headers, idem.Header, token)
	}
}

// Stamp gives a message that is to be written a token, unless it has one. A message
// that is written again after an error has to be the same, stamped once.
//
// Under WithTokenKeys the new token is signed, and one that the message had must be (see
// Guard.Sign). Under WithIssuedOnly the new token is registered in the store; one that the
// message had is not (see Guard.Issue). The errors are the guard's, a token that is not
// valid or not signed, and that ctx is a handler's: use StampAs there.
func Stamp(ctx context.Context, g *idem.Guard, msg *kafka.Message) error {
	if msg == nil {
		return errNilMsg
	}
	token, err := consumers.TokenToStamp(ctx, g, header(msg.Headers, idem.Header))
	if err != nil {
		return fmt.Errorf("idemkafka: stamp: %w", err)
	}
	SetToken(msg, token)
	return nil
}

// StampAs is Stamp for a handler's messages: the token is made of the one being
// handled, the group and name, so that a handler that runs twice writes the same token
// twice. It takes the place of a token that was copied with the headers. Each message of
// one attempt needs a name of its own; a name that another one has is an error. Under
// WithIssuedOnly the token is registered.
func StampAs(ctx context.Context, msg *kafka.Message, name string) error {
	if msg == nil {
		return errNilMsg
	}
	token, err := consumers.TokenToStampAs(ctx, msg, name)
	if err != nil {
		return fmt.Errorf("idemkafka: %w", err)
	}
	SetToken(msg, token)
	return nil
}

var (
	errNilMsg   = errors.New("idemkafka: the message is nil")
	errNilGuard = errors.New("the guard is nil: make one with idem.New")
)

// Writer is a kafka.Writer that stamps what it writes, and changes nothing else of it:
// its balancer, its batching (BatchTimeout is one second unless you set it) and its
// acks (RequiredAcks is none unless you set it!) are yours. It is safe for concurrent
// use.
type Writer struct {
	*kafka.Writer
	guard *idem.Guard
}

// NewWriter makes a Writer of w. The guard needs no store, but for WithIssuedOnly.
func NewWriter(w *kafka.Writer, g *idem.Guard) *Writer { return &Writer{w, g} }

// WriteMessages stamps each message that has no token, as Stamp does, and writes them.
// If one cannot be stamped, none is written.
//
// The tokens are set in the slice that msgs is: to write after an error again, write
// that slice again. A message that was passed by value was stamped in a copy, and gets
// another token the next time: Stamp it first.
//
// In a handler every message has to have been given its token by StampAs.
func (w *Writer) WriteMessages(ctx context.Context, msgs ...kafka.Message) error {
	if w.Writer == nil {
		return errors.New("idemkafka: writer: the kafka.Writer is nil")
	}
	inHandler := consumers.CheckNotInHandler(ctx)
	for i := range msgs {
		if inHandler == nil {
			if err := Stamp(ctx, w.guard, &msgs[i]); err != nil {
				return err
			}
			continue
		}
		token, ok := TokenOf(msgs[i])
		if !ok {
			return fmt.Errorf("idemkafka: message %d of %d has no token that is valid: WriteMessages was %w", i+1, len(msgs), inHandler)
		}
		if w.guard == nil {
			return fmt.Errorf("idemkafka: writer: %w", errNilGuard)
		}
		if _, err := w.guard.Identity(token); err != nil {
			return fmt.Errorf("idemkafka: message %d of %d: %w", i+1, len(msgs), err)
		}
	}
	return w.Writer.WriteMessages(ctx, msgs...)
}
