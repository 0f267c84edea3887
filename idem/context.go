package idem

import (
	"context"
	"time"
)

// Context is the handler's context: derived from the one that the claim was asked
// for with, it ends when the claim ends, with cause ErrLeaseLost where the lease
// was lost. FromContext finds the claim in it.
func (c *Claim) Context() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.context(c)
}

// context is called with mu held. The claim that FromContext finds is given by whoever
// asks first; nil is one that is the handler's, and borrowed.
func (c *claim) context(found *Claim) context.Context {
	if c.handling != nil {
		return c.handling
	}
	lazy := &c.lazy
	lazy.claim, lazy.found = c, found
	if found == nil {
		lazy.borrowed = Claim{claim: c, borrowed: true}
		lazy.found = &lazy.borrowed
	}
	c.handling = lazy
	if c.enlists() {
		c.handling, c.tx = c.enlist(lazy.made())
	}
	return c.handling
}

// handlerContext costs nothing but itself until a handler asks more of it than its claim
// and its error: most wait for nothing, and contexts that can be waited for are made for
// each message, and entered in their parent.
type handlerContext struct {
	claim    *claim
	found    *Claim // what FromContext finds
	borrowed Claim  // which may be this
}

// made returns the context that does the work, with the claim's mu held.
func (h *handlerContext) made() context.Context {
	c := h.claim
	if c.ctx == nil {
		c.ctx, c.cancel = context.WithCancelCause(context.WithValue(c.parent, claimKey{}, h.found))
		switch {
		case c.lost:
			c.cancel(ErrLeaseLost)
		case c.ended:
			c.cancel(nil)
		}
	}
	return c.ctx
}

func (h *handlerContext) get() context.Context {
	h.claim.mu.Lock()
	defer h.claim.mu.Unlock()
	return h.made()
}

func (h *handlerContext) Deadline() (time.Time, bool) { return h.claim.parent.Deadline() }

func (h *handlerContext) Done() <-chan struct{} { return h.get().Done() }

func (h *handlerContext) Err() error {
	c := h.claim
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.ctx != nil:
		return c.ctx.Err()
	case c.lost || c.ended:
		return context.Canceled
	}
	return c.parent.Err()
}

// Value makes the context for every key but one: package context asks for its own
// contexts by a key.
func (h *handlerContext) Value(key any) any {
	if key == (claimKey{}) {
		return h.found
	}
	return h.get().Value(key)
}

type claimKey struct{}

// FromContext returns the claim that a handler runs under, of Do or of a consumer. The
// handler cannot end it: Do and the consumer do, by what the handler returns, and
// Commit, Release and their like answer ErrClaimBorrowed.
func FromContext(ctx context.Context) (*Claim, bool) {
	c, ok := ctx.Value(claimKey{}).(*Claim)
	return c, ok
}
