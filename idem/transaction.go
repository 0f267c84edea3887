package idem

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/idemq/idemq/idem/store"
)

// enlists reports whether the handler's context has to tell its transactions whose they
// are: this claim's, or, of a handler around this one, nobody's.
func (c *claim) enlists() bool {
	return c.guard.core.transacts || c.parent.Value(store.TxKey{}) != nil
}

// enlist is called with mu held, when the claim's context is made.
func (c *claim) enlist(ctx context.Context) (context.Context, store.Tx) {
	t, ok := c.guard.core.opts.store.(store.Transactor)
	if !ok {
		return context.WithValue(ctx, store.TxKey{}, nil), nil // no effect of this one's is to go there
	}
	var b store.Batch
	c.guard.core.terms(&b)
	if !c.oneTrip {
		b.Ops = []store.Op{c.opLocked(store.Commit, false)}
	}
	return t.Enlist(ctx, &b, c.stopRenewing) // while the transaction keeps everybody else out
}

func (c *claim) transaction() store.Tx {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.tx
}

func (c *claim) usesTx() bool {
	tx := c.transaction()
	return tx != nil && tx.Used() && !c.isCommitted()
}

// Committed reports whether the handler has committed the claim itself, by CommitWith.
func (c *Claim) Committed() bool { return c.isCommitted() }

func (c *claim) isAbandoned() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.abandoned
}

func (c *claim) isCommitted() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.committed
}

// Joined reports whether the claim's completion belongs to a transaction that its
// handler opened, so that Commit commits it, or has been committed with one already
// (CommitWith). Such a claim is to be committed before the next handler starts.
func (c *Claim) Joined() bool { return c.usesTx() || c.committer() != nil || c.isCommitted() }

// Rollback undoes what the handler wrote in the store's own transaction, where it did.
// The claim is still held. Release, GiveBack, Bury and Abandon do this as well. On a
// handler's own claim it does nothing: an error that the handler returns does it.
func (c *Claim) Rollback() {
	if !c.borrowed {
		c.rollback()
	}
}

func (c *claim) rollback() {
	if tx := c.transaction(); tx != nil {
		tx.Rollback()
	}
}

// committer is what CommitWith was given, while what came of it is not known to be a
// commit: only that may commit the claim.
func (c *claim) committer() func(context.Context, *store.Batch) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.commitFn
}

// commitsBy is what commits the claim together with its handler's effect; nil where the
// completion stands alone.
func (c *claim) commitsBy() func(context.Context, *store.Batch) error {
	if with := c.committer(); with != nil {
		return with
	}
	if c.usesTx() {
		return c.transaction().Commit
	}
	return nil
}

// RolledBack reports whether err, of Commit or of the handler, says that the database
// gave the handler's transaction up, or could not be reached for one, for a reason that is
// not the message's. Such an attempt should spend no budget. It says so of no claim without a
// transaction: an error of that one's handler is of another's.
func (c *Claim) RolledBack(err error) bool {
	tx := c.transaction()
	if err == nil || tx == nil && c.committer() == nil {
		return false
	}
	return errors.Is(err, ErrRolledBack) || tx != nil && tx.RolledBack(err)
}

// CommitWith is Commit by a function that commits the effect and b, a batch in the
// terms of the guard with the claim's Commit as its only operation, in one transaction:
// for drivers, whose CommitTx it is (sqlstore.CommitTx). The function answers as
// store.Tx's Commit does, and is called again while the outcome is not known. It may be
// called in a handler: what the handler returns afterwards changes nothing for its
// message, which is done. A handler that does not wait for it has failed.
//
// After an error the claim is still held, and Commit and CommitWith go on with the same
// function: the completion is not recorded without the effect.
func (c *Claim) CommitWith(ctx context.Context, commit func(ctx context.Context, s store.Store, b *store.Batch) error) error {
	if err := c.beginCommitWith(); err != nil {
		return err
	}
	s := c.guard.core.opts.store
	if s == nil {
		c.finish(false)
		return ErrRedisNotEnabled
	}
	if c.usesTx() {
		c.finish(false)
		return fmt.Errorf("idem: commit token %q: the handler has opened the store's own transaction: commit one of the two", c.token)
	}
	c.rollback() // it is not opened any more
	with := c.committer()
	if with == nil {
		with = func(ctx context.Context, b *store.Batch) error { return commit(ctx, s, b) }
		c.mu.Lock()
		c.commitFn = with
		c.mu.Unlock()
	}
	return c.commitBy(ctx, with)
}

// beginCommitWith is beginEnd for the handler too, until it has committed.
func (c *claim) beginCommitWith() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.committed {
		return fmt.Errorf("idem: token %q: attempt %d: %w", c.token, c.attempt, ErrClaimEnded)
	}
	return c.setEnding()
}

// commitBy calls commit until the outcome is known, or, for one lease (a Patient claim's,
// as long as ctx), it is not to be had.
func (c *Claim) commitBy(ctx context.Context, commit func(context.Context, *store.Batch) error) error {
	if !c.patient {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), c.guard.core.opts.lease)
		defer cancel()
	}
	within := c.guard.core.opts.lease // of COMMIT itself, which cut would be rolled back
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		var b store.Batch
		c.guard.core.terms(&b)
		if !c.oneTrip {
			b.Ops = []store.Op{c.op(store.Commit, false)}
		}
		err := c.tryCommit(ctx, within, &b, commit)
		within = c.guard.core.tripTimeout() // of a question
		switch {
		case err == nil && (c.oneTrip || b.Replies[0].Status == store.OK):
			c.done()
			return nil
		case err == nil:
			c.lose()
			c.finish(!c.borrowed)
			return fmt.Errorf("idem: commit token %q: attempt %d: %w", c.token, c.attempt, ErrLeaseLost)
		case c.oneTrip, !errors.Is(err, store.ErrUnavailable), c.isAbandoned():
			c.finish(false)
			return fmt.Errorf("idem: commit token %q: attempt %d: %w", c.token, c.attempt, err)
		}
		c.guard.Emit(Event{
			Kind: EventWaiting, Token: c.token, Attempt: c.attempt, Wait: wait,
			Err: fmt.Errorf("whether the handler's transaction was committed is not known, and asked again: %w", err),
		})
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			c.finish(false)
			return fmt.Errorf("idem: commit token %q: attempt %d: whether the handler's transaction was committed is not known: %w", c.token, c.attempt, err)
		}
	}
}

func (c *Claim) tryCommit(ctx context.Context, within time.Duration, b *store.Batch, commit func(context.Context, *store.Batch) error) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	returned := false
	defer func() {
		if !returned { // it panics: whoever recovers can end the claim
			c.finish(false)
		}
	}()
	err := commit(ctx, b)
	returned = true
	if err != nil {
		return err
	}
	if notice, is := c.guard.core.noticed(b); is {
		c.guard.core.opts.observers.emit(notice)
	}
	if len(b.Replies) != len(b.Ops) {
		return fmt.Errorf("the driver gave %d replies to %d operations", len(b.Replies), len(b.Ops))
	}
	if len(b.Replies) == 0 {
		return nil
	}
	switch r := b.Replies[0]; {
	case r.Err != nil:
		return r.Err
	case r.Status != store.OK && r.Status != store.Lost:
		return c.guard.core.senseless(r)
	}
	return nil
}

// done ends the claim as committed. A handler's own one goes on until the handler
// returns, and whoever began it ends it.
func (c *Claim) done() {
	c.mu.Lock()
	c.commitFn = nil
	goesOn := c.borrowed && !c.abandoned
	if goesOn {
		c.committed, c.ending = true, false
	}
	c.mu.Unlock()
	if goesOn {
		c.stopRenewing()
	} else {
		c.finish(true)
	}
	if !c.oneTrip {
		c.guard.Emit(Event{Kind: EventCommitted, Token: c.token, Attempt: c.attempt})
	}
}
