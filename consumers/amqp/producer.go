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
// Under WithIssuedOnly the new token is registered in the store; one that the message
// had is not (see Guard.Issue). The errors are the guard's, a token that is not valid,
// and that ctx is a handler's: use StampAs there.
func Stamp(ctx context.Context, g *idem.Guard, msg *amqp.Publishing) error {
	switch {
	case msg == nil:
		return errNilMsg
	case g == nil:
		return fmt.Errorf("idemamqp: stamp: %w", errNilGuard)
	case g.Err() != nil:
		return fmt.Errorf("idemamqp: stamp: %w", g.Err())
	}
	if c, ok := idem.FromContext(ctx); ok {
		return fmt.Errorf("idemamqp: Stamp in the handler of token %q: each attempt would publish another token: use StampAs", c.Token())
	}
	token, found, err := tokenIn(msg)
	switch {
	case err != nil:
		return err
	case found:
	case g.Settings().IssuedOnly:
		if token, err = g.Token(ctx); err != nil {
			return fmt.Errorf("idemamqp: stamp: %w", err)
		}
	default:
		token = idem.NewToken()
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
	c, ok := idem.FromContext(ctx)
	if !ok {
		return errors.New("idemamqp: StampAs needs the context that a handler was called with: elsewhere use Stamp")
	}
	token, err := c.DeriveFor(ctx, name, msg)
	if err != nil {
		return fmt.Errorf("idemamqp: stamp as %q: %w", name, err)
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

// tokenIn returns the token that a message to be published has.
func tokenIn(msg *amqp.Publishing) (token string, found bool, err error) {
	values := header(msg.Headers, idem.Header)
	if len(values) == 0 {
		return "", false, nil
	}
	for _, v := range values {
		if v != values[0] {
			err = fmt.Errorf("%w: it is there %d times, with different values", idem.ErrInvalidToken, len(values))
		} else {
			err = idem.CheckToken(v)
		}
		if err != nil {
			return "", true, fmt.Errorf("idemamqp: header %s: %w", idem.Header, err)
		}
	}
	return values[0], true, nil
}
