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
// message may be acked. An error of fn that is itself a guard's ErrDuplicate or
// ErrInProgress does not match these.
//
// If fn returned nil and the completion cannot be recorded within one more lease,
// the error says so: the effect happened, and a redelivery runs fn again. With
// ErrLeaseLost, another process has the message, and the effect may happen twice.
func (g *Guard) Do(ctx context.Context, token string, fn func(context.Context) error, opts ...ClaimOption) error {
	c, err := g.ask(ctx, store.Begin, newRequest(token, opts))
	if err != nil {
		return err
	}
	c.patient = true // the end is bounded by endDo's contexts
	run, err := c.Start(ctx)
	if err != nil {
		_ = c.giveBackWithin(ctx)
		return err
	}
	returned := false
	defer func() {
		if !returned {
			_ = c.endWithin(ctx, c.Release)
		}
	}()
	err = fn(run)
	returned = true
	switch {
	case err == nil:
		if err := c.endWithin(ctx, c.Commit); err != nil {
			return fmt.Errorf("idem: the handler returned nil, and its completion is not recorded; a redelivery runs it again: %w", err)
		}
		return nil
	case errors.Is(context.Cause(run), ErrLeaseLost):
		_ = c.giveBackWithin(ctx)
		return fmt.Errorf("%w (%w)", ofHandler(err), ErrLeaseLost)
	case ctx.Err() != nil, isRetryAfter(err):
		_ = c.giveBackWithin(ctx)
	default:
		_ = c.endWithin(ctx, c.Release)
	}
	return ofHandler(err)
}

func isRetryAfter(err error) bool {
	_, ok := RetryDelay(err)
	return ok
}

func (c *Claim) giveBackWithin(ctx context.Context) error { return c.endWithin(ctx, c.GiveBack) }

// endWithin tries to end the claim for one lease, whatever becomes of ctx. Where
// that fails the claim is not renewed any more.
func (c *Claim) endWithin(ctx context.Context, end func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.guard.core.opts.lease)
	defer cancel()
	err := end(ctx)
	if err != nil {
		c.Abandon()
	}
	return err
}
