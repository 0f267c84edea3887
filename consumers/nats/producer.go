package idemnats

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/idem"
)

// TokenOf returns the token in a message's header; false where it has none, or one
// that is not valid.
func TokenOf(msg jetstream.Msg) (string, bool) {
	if isNil(msg) {
		return "", false
	}
	return consumers.TokenIn(message{msg: msg})
}

// SetToken gives a message a token, in the place of any that it has. NATS headers
// turn line breaks into spaces and cut blanks at the ends: a token with these does
// not arrive as it is. A nil message is left alone.
func SetToken(msg *nats.Msg, token string) {
	if msg == nil {
		return
	}
	if msg.Header == nil {
		msg.Header = nats.Header{}
	}
	set(msg.Header, idem.Header, token)
}

// Stamp gives a message that is to be published a token, unless it has one, and sets
// Nats-Msg-Id to the token where that is empty, so that the stream drops repeats
// within its duplicate window too. A message that is published again after an error
// has to be the same, stamped once.
//
// Under WithIssuedOnly the new token is registered in the store; one that the message
// had is not (see Guard.Issue). The errors are the guard's, a token that is not
// valid, and that ctx is a handler's: use StampAs there.
func Stamp(ctx context.Context, g *idem.Guard, msg *nats.Msg) error {
	switch {
	case msg == nil:
		return errNilMsg
	case g == nil:
		return fmt.Errorf("idemnats: stamp: %w", errNilGuard)
	case g.Err() != nil:
		return fmt.Errorf("idemnats: stamp: %w", g.Err())
	}
	if c, ok := idem.FromContext(ctx); ok {
		return fmt.Errorf("idemnats: Stamp in the handler of token %q: each attempt would publish another token: use StampAs", c.Token())
	}
	token, found, err := tokenIn(msg)
	switch {
	case err != nil:
		return err
	case found:
	case g.Settings().IssuedOnly:
		if token, err = g.Token(ctx); err != nil {
			return fmt.Errorf("idemnats: stamp: %w", err)
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
func StampAs(ctx context.Context, msg *nats.Msg, name string) error {
	if msg == nil {
		return errNilMsg
	}
	c, ok := idem.FromContext(ctx)
	if !ok {
		return errors.New("idemnats: StampAs needs the context that a handler was called with: elsewhere use Stamp")
	}
	token, err := c.DeriveFor(ctx, name, msg)
	if err != nil {
		return fmt.Errorf("idemnats: stamp as %q: %w", name, err)
	}
	copied := ""
	if values := header(msg.Header, idem.Header); len(values) > 0 {
		copied = values[0]
	}
	stamp(msg, token, copied)
	return nil
}

var (
	errNilMsg   = errors.New("idemnats: the message is nil: make one with nats.NewMsg")
	errNilGuard = errors.New("the guard is nil: make one with idem.New")
)

// stamp sets the token, and Nats-Msg-Id where it is empty or the copied token.
func stamp(msg *nats.Msg, token, copied string) {
	SetToken(msg, token)
	if id := msg.Header.Get(jetstream.MsgIDHeader); (id == "" || id == copied) && fitsHeader(token) {
		msg.Header.Set(jetstream.MsgIDHeader, token)
	}
}

// tokenIn returns the token that a message to be published has.
func tokenIn(msg *nats.Msg) (token string, found bool, err error) {
	values := header(msg.Header, idem.Header)
	if len(values) == 0 {
		return "", false, nil
	}
	for _, v := range values {
		switch {
		case v != values[0]:
			err = fmt.Errorf("%w: it is there %d times, with different values", idem.ErrInvalidToken, len(values))
		case !fitsHeader(v):
			err = fmt.Errorf("%w: a NATS header would change %.40q: leave out line breaks, and blanks at the ends", idem.ErrInvalidToken, v)
		default:
			err = idem.CheckToken(v)
		}
		if err != nil {
			return "", true, fmt.Errorf("idemnats: header %s: %w", idem.Header, err)
		}
	}
	return values[0], true, nil
}
