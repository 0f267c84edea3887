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
// Under WithTokenKeys the new token is signed, and one that the message had must be (see
// Guard.Sign). Under WithIssuedOnly the new token is registered in the store; one that the
// message had is not (see Guard.Issue). The errors are the guard's, a token that is not
// valid or not signed, and that ctx is a handler's: use StampAs there.
func Stamp(ctx context.Context, g *idem.Guard, msg *nats.Msg) error {
	if msg == nil {
		return errNilMsg
	}
	values := header(msg.Header, idem.Header)
	for _, v := range values {
		if !fitsHeader(v) {
			return fmt.Errorf("idemnats: stamp: header %s: %w: a NATS header would change %.40q: leave out line breaks, and blanks at the ends", idem.Header, idem.ErrInvalidToken, v)
		}
	}
	token, err := consumers.TokenToStamp(ctx, g, values)
	if err != nil {
		return fmt.Errorf("idemnats: stamp: %w", err)
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
	token, err := consumers.TokenToStampAs(ctx, msg, name)
	if err != nil {
		return fmt.Errorf("idemnats: %w", err)
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
