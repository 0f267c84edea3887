package store

import (
	"context"
	"errors"
)

// Transactor is a Store in a database that handlers write to as well, so that a
// handler's effect and its completion commit in one transaction, or neither does.
type Transactor interface {
	Store

	// Enlist prepares one run of a handler. In the context that it returns, which is
	// derived from ctx, the driver's own accessor (sqlstore.Tx, say) opens the
	// transaction, at its first use. The transaction is rolled back at the end of ctx.
	//
	// terms are those of the batches that the guard sends, with one operation: the
	// Commit that is to end the claim. Without an operation the transaction belongs to
	// no claim, and is committed alone.
	//
	// The driver calls hold once where the open transaction itself keeps everybody
	// else from the claim (SQLite's one writer): from then on the lease is neither
	// counted nor renewed.
	Enlist(ctx context.Context, terms *Batch, hold func()) (context.Context, Tx)
}

// Tx is the transaction of one run of a handler. Its methods are safe for concurrent use;
// Commit is called one at a time.
type Tx interface {
	// Used reports whether the handler opened the transaction, also after its end.
	Used() bool

	// Commit executes b, the terms and the one operation of Enlist, in the
	// transaction, and commits. Replied OK: effect and completion are committed. Any
	// other reply: somebody took over, and the transaction was rolled back.
	//
	// An error that wraps ErrRolledBack says for certain that nothing was committed:
	// the handler has to run again. After any other error it is not known whether it
	// was: Commit is called again, and then only asks, under the claim id; it waits
	// for a commit that is still under way on the server. Whatever the answer, the
	// handler's transaction is over then. After Rollback the answer is ErrRolledBack.
	Commit(ctx context.Context, b *Batch) error

	// Rollback ends the transaction, if it is open; it is not opened any more.
	Rollback()

	// RolledBack reports whether a handler's error means that the database gave the
	// transaction up for a reason that is not the message's: a deadlock, a
	// serialization failure, a lost connection.
	RolledBack(err error) bool
}

// TxKey is under which the Tx of the handler that runs stands in its context: Enlist
// puts it there, the accessor of the driver looks whether it is its own. A claim over a
// store without transactions hides those of a handler around it.
type TxKey struct{}

// ErrRolledBack says that the database rolled a handler's transaction back, and can take it
// when it is tried again.
var ErrRolledBack = errors.New("transaction rolled back")
