package idem

import "context"

// StartAll is Start for claims whose messages are handled together, by one call: it
// returns the context for that. ClaimsFromContext finds the claims in it, in the same
// order, each with a context of its own; FromContext finds none. It ends, with cause
// ErrLeaseLost, as soon as one of the claims is lost, and by end, which the caller owes.
//
// An error says that a claim has run out or has ended: then none is started, and each can
// be started alone.
func StartAll(ctx context.Context, claims []*Claim) (_ context.Context, end context.CancelFunc, _ error) {
	for _, c := range claims {
		if err := c.startable(); err != nil {
			return nil, nil, err
		}
	}
	own := make([]*Claim, len(claims))
	shared, cancel := context.WithCancelCause(context.WithValue(ctx, claimsKey{}, own))
	for i, c := range claims {
		c.start(shared)
		own[i] = &Claim{claim: c.claim, borrowed: true}
		c.mu.Lock()
		c.cancelBatch = cancel
		lost := c.lost
		c.mu.Unlock()
		if lost {
			cancel(ErrLeaseLost)
		}
	}
	return shared, func() { cancel(nil) }, nil
}

// ClaimsFromContext returns the claims of a handler that takes several messages at a time,
// in the order of its messages. What concerns one of them is done with its claim's Context:
// sending on a message that is stamped, or a transaction of the store's. The handler cannot
// end them, as with FromContext.
func ClaimsFromContext(ctx context.Context) ([]*Claim, bool) {
	claims, ok := ctx.Value(claimsKey{}).([]*Claim)
	return claims, ok
}

type claimsKey struct{}
