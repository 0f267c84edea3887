package idem

import (
	"context"
	"fmt"

	"github.com/idemq/idemq/idem/store"
)

// Token makes a token, signed under WithTokenKeys, and registers it in the store, for
// Check, or for a guard with WithIssuedOnly. It may wait for its Check for the expiry.
func (g *Guard) Token(ctx context.Context) (string, error) {
	token := NewToken()
	if err := g.Issue(ctx, token); err != nil {
		return "", err
	}
	return g.core.sign(token), nil
}

// Issue registers tokens that were made elsewhere, by TokenFor or Claim.Derive,
// 256 in a trip. Registering again starts the expiry anew; a token that Check has
// spent stays spent. Issued tokens belong to the prefix, not to a group.
func (g *Guard) Issue(ctx context.Context, tokens ...string) error {
	if err := g.core.ready(); err != nil {
		return err
	}
	calls := make([]*call, 0, len(tokens))
	for _, t := range tokens {
		if err := CheckToken(t); err != nil {
			return err
		}
		calls = append(calls, &call{op: store.Op{Kind: store.Issue, Token: g.core.bare(t)}})
	}
	if len(calls) == 0 {
		return nil
	}
	g.core.batcher.do(ctx, calls...)
	for _, c := range calls {
		if c.err != nil {
			return fmt.Errorf("idem: issue token %q: %w", c.op.Token, c.err)
		}
		if c.reply.Status != store.OK {
			return fmt.Errorf("idem: issue token %q: %w", c.op.Token, g.core.senseless(c.reply))
		}
	}
	return nil
}

// Check spends an issued token: true exactly once for each, whatever the group.
// A token that is unknown, expired, used, empty, malformed or not signed (WithTokenKeys)
// is false without an error. After an error nothing is known: the token may have been spent.
//
// Check says nothing about what the caller does next. If the process dies then,
// nobody does it: for work that must not be lost, see Do.
func (g *Guard) Check(ctx context.Context, token string) (bool, error) {
	if err := g.core.ready(); err != nil {
		return false, err
	}
	if !validToken(token) {
		return false, nil
	}
	token, admitted := g.core.admit(token)
	if !admitted {
		g.Emit(Event{Kind: EventRefused, Err: fmt.Errorf("idem: check: %w", ErrUnsigned)})
		return false, nil
	}
	c := &call{op: store.Op{Kind: store.Check, Token: token, Claim: g.core.claimID()}}
	g.core.batcher.do(ctx, c)
	if c.err != nil {
		return false, fmt.Errorf("idem: check token %q: %w", token, c.err)
	}
	switch c.reply.Status {
	case store.Claimed:
		return true, nil
	case store.Lost:
		return false, nil
	}
	return false, fmt.Errorf("idem: check token %q: %w", token, g.core.senseless(c.reply))
}
