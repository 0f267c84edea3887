package consumers

import (
	"context"
	"errors"
	"fmt"

	"github.com/idemq/idemq/idem"
)

// TokenToStamp is for an adapter's Stamp: it returns the token that a message to be sent
// is to have, where values are those of its token header now. A token that it has is
// kept; else it is a new one, signed under WithTokenKeys, and registered in the store under
// WithIssuedOnly. The errors are the guard's, a token that is not valid or not signed, and
// that ctx is a handler's: each attempt would send another token.
func TokenToStamp(ctx context.Context, g *idem.Guard, values []string) (string, error) {
	if g == nil {
		return "", errors.New("the guard is nil: make one with idem.New")
	}
	if err := g.Err(); err != nil {
		return "", err
	}
	if err := CheckNotInHandler(ctx); err != nil {
		return "", err
	}
	token, found, err := tokenAmong(values)
	switch {
	case err != nil:
		return "", err
	case found:
		_, err := g.Identity(token)
		return token, err
	case g.Settings().IssuedOnly:
		return g.Token(ctx)
	}
	return g.Sign(idem.NewToken())
}

// CheckNotInHandler returns an error if ctx is a handler's: a token that is made there
// would be another one at each attempt.
func CheckNotInHandler(ctx context.Context) error {
	if c, ok := idem.FromContext(ctx); ok {
		return fmt.Errorf("called in the handler of token %q: each attempt would send another token: use StampAs", c.Token())
	}
	if _, ok := idem.ClaimsFromContext(ctx); ok {
		return errors.New("called in the handler of several messages: each attempt would send another token: use StampAs, with the context of a claim among idem.ClaimsFromContext")
	}
	return nil
}

// TokenToStampAs is for an adapter's StampAs: the token of a message that a handler
// sends, the same at each of its attempts. msg is the message's address: one name for
// two messages of an attempt is an error.
func TokenToStampAs(ctx context.Context, msg any, name string) (string, error) {
	c, ok := idem.FromContext(ctx)
	if _, several := idem.ClaimsFromContext(ctx); several && !ok {
		return "", errors.New("stamp: the handler has several messages: use the context of the claim of one, among idem.ClaimsFromContext")
	}
	if !ok {
		return "", errors.New("stamp: needs the context that a handler was called with: elsewhere use Stamp")
	}
	token, err := c.DeriveFor(ctx, name, msg)
	if err != nil {
		return "", fmt.Errorf("stamp as %q: %w", name, err)
	}
	return token, nil
}
