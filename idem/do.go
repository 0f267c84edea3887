package idem

import (
	"context"
	"errors"
	"fmt"

	"github.com/idemq/idemq/idem/store"
)

// Do claims a token, calls fn under the claim's context while the claim is
// renewed, and commits when fn returns nil. An error, a panic or runtime.Goexit of
// fn releases the claim, which spends budget, and goes on. An error marked by
// RetryAfter, or one after the end of ctx, spends none.
//
// Without calling fn, Do returns the errors of Begin; ErrDuplicate says that the
// message may be acked. An error of fn that is itself what a guard says of a token or a
// claim (ErrDuplicate, ErrConflict, ErrLeaseLost and the like) does not match these.
//
// If fn returned nil and the completion cannot be recorded within one more lease,
// the error says so: the effect happened, and a redelivery runs fn again. With
// ErrLeaseLost, another process has the message, and the effect may happen twice.
//
// Where fn wrote in the store's own transaction (sqlstore.Tx), effect and completion are
// committed together: whatever the error, neither happened, unless it says that this is
// not known, or fn did not wait for its CommitWith. ErrRolledBack (a deadlock, say) spends no
// budget: try again.
func (g *Guard) Do(ctx context.Context, token string, fn func(context.Context) error, opts ...ClaimOption) error {
	c, err := g.ask(ctx, store.Begin, newRequest(token, opts))
	if err != nil {
		return err
	}
	c.patient = true // complete and endWithin bound the end
	run, err := c.Start(ctx)
	if err != nil {
		_ = c.giveBackWithin(ctx)
		return err
	}
	ended := false
	defer func() {
		if !ended {
			_ = c.endWithin(ctx, c.Release)
		}
	}()
	err = c.endBy(ctx, fn(run))
	ended = true
	return err
}

// endBy ends the claim by what fn returned.
func (c *Claim) endBy(ctx context.Context, err error) error {
	if c.isCommitted() { // by CommitWith
		_ = c.Commit(ctx)
		return ofHandler(err)
	}
	if err == nil {
		return c.complete(ctx)
	}
	switch {
	case c.isLost(): // the context may have ended with the lease of a handler around this one
		_ = c.giveBackWithin(ctx)
		return fmt.Errorf("%w (%w)", ofHandler(err), ErrLeaseLost)
	case c.RolledBack(err):
		_ = c.giveBackWithin(ctx)
		return fmt.Errorf("%w (%w)", ofHandler(err), ErrRolledBack)
	case ctx.Err() != nil, isRetryAfter(err):
		_ = c.giveBackWithin(ctx)
	default:
		_ = c.endWithin(ctx, c.Release)
	}
	return ofHandler(err)
}

// complete commits after fn returned nil.
func (c *Claim) complete(ctx context.Context) error {
	joined := c.Joined()
	err := c.Commit(c.oneLease(ctx))
	what := "the handler returned nil, and its completion is not recorded; a redelivery runs it again"
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrRolledBack):
		_ = c.giveBackWithin(ctx)
		return fmt.Errorf("idem: the handler returned nil, and its transaction was rolled back: %w", err)
	case errors.Is(err, ErrClaimEnded):
		what = "the handler returned nil while its CommitWith was under way, and what comes of that is not known"
	case joined && !errors.Is(err, store.ErrUnavailable) && !errors.Is(err, ErrLeaseLost):
		_ = c.endWithin(ctx, c.Release) // refused: a deferred constraint, say
		return fmt.Errorf("idem: the handler returned nil, and its transaction could not be committed: %w", err)
	case joined:
		what = "the handler returned nil"
	}
	c.Abandon()
	return fmt.Errorf("idem: %s: %w", what, err)
}

func isRetryAfter(err error) bool {
	_, ok := RetryDelay(err)
	return ok
}

func (c *Claim) giveBackWithin(ctx context.Context) error { return c.endWithin(ctx, c.GiveBack) }

// oneLease is how long the end of a claim is tried, whatever becomes of ctx.
func (c *Claim) oneLease(ctx context.Context) context.Context {
	return c.guard.core.ending.with(ctx)
}

// endWithin tries to end the claim for one lease. Where that fails the claim is not
// renewed any more.
func (c *Claim) endWithin(ctx context.Context, end func(context.Context) error) error {
	err := end(c.oneLease(ctx))
	if err != nil {
		c.Abandon()
	}
	return err
}
