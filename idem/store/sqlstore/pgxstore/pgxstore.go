// Package pgxstore is package sqlstore for those who use pgx itself: the same tables, the
// same promise, and a [pgx.Tx] for handlers. Both can be used on one database at once.
package pgxstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/sqlstore/internal/inbox"
)

const name = "pgxstore"

type settings struct {
	inbox.Config
	tx pgx.TxOptions
}

// Option changes a [Store].
type Option func(*settings)

// WithTables sets what the names of the tables begin with; default "idemq_". It may name a
// schema: "inbox.idemq_".
func WithTables(prefix string) Option {
	return func(s *settings) { s.Tables = prefix }
}

// WithCreate makes the tables at first use, and upgrades those of an earlier version,
// where the user has the right to; see sqlstore.WithCreate.
func WithCreate() Option {
	return func(s *settings) { s.Create = true }
}

// WithoutSweep leaves it to [Store.Sweep] to delete rows whose time has passed. Without it
// each batch of operations does a little of that.
func WithoutSweep() Option {
	return func(s *settings) { s.NoSweep = true }
}

// WithTxOptions sets the isolation of the handlers' transactions; default: the
// database's. See sqlstore.WithTxOptions.
func WithTxOptions(opts pgx.TxOptions) Option {
	return func(s *settings) { s.tx = opts }
}

// Store is a store.Transactor in PostgreSQL. It is safe for concurrent use, and does not close
// the pool. The only goroutine that it starts waits, where a handler's context ends before its
// transaction does, for two seconds to cut that.
type Store struct{ inbox *inbox.Store }

var _ store.Transactor = (*Store)(nil)

// New returns a store in a pool's database. It dials nothing. With a nil pool, or settings
// that cannot be, every call fails with an error that says so.
//
// The store uses up to two connections at once for a guard, and one for each handler that
// has called [Tx].
func New(pool *pgxpool.Pool, opts ...Option) *Store {
	c := settings{Config: inbox.Config{Package: name, Dialect: inbox.Postgres}}
	for _, o := range opts {
		o(&c)
	}
	var fault error
	if pool == nil {
		fault = errors.New("the pool is nil: give New the *pgxpool.Pool that pgxpool.New returned")
	}
	return &Store{inbox: inbox.New(newDatabase(pool, c.tx), c.Config, fault)}
}

// Schema is the DDL of the tables for people's own migrations, as sqlstore.Schema's. Of
// the options [WithTables] counts.
func Schema(opts ...Option) string { return New(nil, opts...).Schema() }

// Schema is the DDL of this store's tables.
func (s *Store) Schema() string { return s.inbox.Schema() }

// Create makes the tables that are not there, and upgrades those of an earlier version.
// Several processes may do it at once.
func (s *Store) Create(ctx context.Context) error { return s.inbox.Create(ctx) }

// Sweep deletes up to limit rows whose time has passed, in small transactions that nobody
// waits for, and returns how many. They count as absent, deleted or not.
func (s *Store) Sweep(ctx context.Context, limit int) (n int, err error) {
	return s.inbox.Sweep(ctx, limit)
}

// Apply implements store.Store. A batch is one transaction for each 500 operations.
func (s *Store) Apply(ctx context.Context, b *store.Batch) error { return s.inbox.Apply(ctx, b) }

// Incarnation implements store.Store.
func (s *Store) Incarnation(ctx context.Context, prefix, name string) (uint64, error) {
	return s.inbox.Incarnation(ctx, prefix, name)
}

// Verify implements store.Store, as sqlstore.Store's.
func (s *Store) Verify(ctx context.Context, _ string) ([]store.Finding, error) {
	return s.inbox.Verify(ctx)
}

// Capabilities implements store.Store: nothing is lacking.
func (s *Store) Capabilities() store.Capabilities { return s.inbox.Capabilities() }

// Enlist implements store.Transactor.
func (s *Store) Enlist(ctx context.Context, terms *store.Batch, hold func()) (context.Context, store.Tx) {
	return s.inbox.Enlist(ctx, terms, hold)
}

// Tx is the transaction of the handler that runs in ctx: opened at the first call, and
// always the same one. It is committed with the claim when the handler returns nil, and
// rolled back else, or at the end of the context that the handler was given. An error
// means that it cannot be opened, or that ctx is not a handler's.
//
// The handler must not end it: its Commit and Rollback return an error, also in
// "defer tx.Rollback(ctx)", and a handler that has called one of them has failed, even if
// it returns nil: nothing is committed. It returns an error to have what it wrote undone.
// Transactions within it (tx.Begin) it ends itself. Rows are to be closed before the
// handler returns.
func Tx(ctx context.Context) (pgx.Tx, error) {
	t, err := inbox.FromContext(ctx, name)
	if err != nil {
		return nil, err
	}
	return t.(*transaction).users, nil
}

// Claim is what [CommitTx] ends: *idem.Claim.
type Claim interface {
	CommitWith(ctx context.Context, commit func(ctx context.Context, s store.Store, b *store.Batch) error) error
}

// CommitTx commits a transaction that the user opened, in the store's database, and the
// claim's completion with it, and answers as sqlstore.CommitTx does. tx is ended in any
// case. It must be the outermost one: the commit of one within another (tx.Begin) is a
// savepoint's release, which the outer one may still undo. pgx's own are refused; one that
// is wrapped is not recognized.
func CommitTx(ctx context.Context, tx pgx.Tx, c Claim) error {
	if tx == nil || c == nil {
		return errors.New("pgxstore: CommitTx was given no transaction, or no claim: look at the error of Begin, and whether idem.FromContext found one")
	}
	t := newTransaction(tx)
	defer t.Rollback()
	if isNested(tx) {
		return errors.New("pgxstore: CommitTx was given a transaction within another one, which may still be rolled back: give it the outer one")
	}
	parent := ctx
	var h *inbox.Handler // the claim keeps the function, and with it what became of tx
	return c.CommitWith(ctx, func(ctx context.Context, s store.Store, b *store.Batch) error {
		if h == nil {
			of, ok := s.(*Store)
			if !ok {
				return fmt.Errorf("pgxstore: the claim is of a guard whose store is a %T, not a pgxstore.Store", s)
			}
			h = of.inbox.Adopt(parent, t)
		}
		return h.Commit(ctx, b)
	})
}

// isNested tells by the type, which pgx does not export.
func isNested(tx pgx.Tx) bool { return fmt.Sprintf("%T", tx) == "*pgx.dbSimulatedNestedTx" }
