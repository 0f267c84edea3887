package idemamqp

import (
	"context"
	"errors"
	"fmt"
	"maps"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/idem"
)

// TokenOf returns the token in a message's header; false where it has none, or one
// that is not valid.
func TokenOf(d amqp.Delivery) (string, bool) { return consumers.TokenIn(message{d: d}) }

// SetToken gives a message a token, in the place of any that it has. The message gets a
// table of its own: one that it shares with others stays as it is. A nil message is left
// alone.
func SetToken(msg *amqp.Publishing, token string) {
	if msg == nil {
		return
	}
	if msg.Headers = maps.Clone(msg.Headers); msg.Headers == nil {
		msg.Headers = amqp.Table{}
	}
	set(msg.Headers, idem.Header, token)
}

// Stamp gives a message that is to be published a token, unless it has one, and sets
// message-id to the token where that is empty. A message that is published again after an
// error has to be the same, stamped once.
//
// Under WithTokenKeys the new token is signed, and one that the message had must be (see
// Guard.Sign). Under WithIssuedOnly the new token is registered in the store; one that the
// message had is not (see Guard.Issue). The errors are the guard's, a token that is not
// valid or not signed, and that ctx is a handler's: use StampAs there.
func Stamp(ctx context.Context, g *idem.Guard, msg *amqp.Publishing) error {
	if msg == nil {
		return errNilMsg
	}
	token, err := consumers.TokenToStamp(ctx, g, header(msg.Headers, idem.Header))
	if err != nil {
		return fmt.Errorf("idemamqp: stamp: %w", err)
	}
	stamp(msg, token, "")
	return nil
}

// StampAs is Stamp for a handler's messages: the token is made of the one being
// handled, the group and name, so that a handler that runs twice publishes the same
// token twice. It takes the place of a token that was copied with the headers. Each
// message of one attempt needs a name of its own; a name that another one has is an
// error. Under WithIssuedOnly the token is registered.
func StampAs(ctx context.Context, msg *amqp.Publishing, name string) error {
	if msg == nil {
		return errNilMsg
	}
	token, err := consumers.TokenToStampAs(ctx, msg, name)
	if err != nil {
		return fmt.Errorf("idemamqp: %w", err)
	}
	copied := ""
	if values := header(msg.Headers, idem.Header); len(values) > 0 {
		copied = values[0]
	}
	stamp(msg, token, copied)
	return nil
}

var errNilMsg = errors.New("idemamqp: the message is nil: give the address of an amqp091.Publishing")

// stamp sets the token, and message-id where it is empty or the copied token.
func stamp(msg *amqp.Publishing, token, copied string) {
	SetToken(msg, token)
	if msg.MessageId == "" || msg.MessageId == copied {
		msg.MessageId = token
	}
}
