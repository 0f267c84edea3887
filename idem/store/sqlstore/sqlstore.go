// Package sqlstore keeps the records in a SQL database, through database/sql: PostgreSQL 15
// or later (pgx), MySQL 8 or MariaDB 10.11 or later (go-sql-driver), SQLite (modernc).
//
// It is an inbox: a handler that writes to the same database through the transaction of
// [Tx] has its effect and its completion committed together, or neither, and only while
// nobody has taken its claim over. Nothing happens twice then, however often a message
// is delivered and wherever its consumers die:
//
//	s := sqlstore.New(db, sqlstore.Postgres)
//	guard := idem.New(idem.WithStore(s))
//	...
//	err := guard.Do(ctx, token, func(ctx context.Context) error {
//		tx, err := sqlstore.Tx(ctx)
//		if err != nil {
//			return err
//		}
//		_, err = tx.ExecContext(ctx, "INSERT INTO payments ...")
//		return err
//	})
//
// The library ends this transaction, and only the library: no tx.Commit, no deferred
// tx.Rollback, no DDL in MySQL, and no going on after an error with which the database
// ended it. [Tx] tells more. Such a handler has failed, whatever it returns: its message is
// not done, and what it wrote outside of the transaction stays.
//
// A transaction that the handler opens itself, it ends with [CommitTx].
//
// The tables are made by what [Schema] prints, or by [Store.Create]. They are not made
// unasked: in the wrong database an empty inbox would let everything be handled again.
//
// SQLite has one writer. From a handler's [Tx] on nobody else writes to the database, so
// the open transaction is the lease; the claims, completions and renewals of all others
// wait until it ends: keep it short. SQLite needs journal_mode WAL.
package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/sqlstore/internal/inbox"
)

const name = "sqlstore"

// Dialect is a kind of database.
type Dialect int

// The dialects.
const (
	Postgres = Dialect(inbox.Postgres)
	MySQL    = Dialect(inbox.MySQL) // and MariaDB
	SQLite   = Dialect(inbox.SQLite)
)

// String is the dialect's name.
func (d Dialect) String() string { return inbox.Dialect(d).String() }

type settings struct {
	inbox.Config
	tx *sql.TxOptions
}

// Option changes a [Store].
type Option func(*settings)

// WithTables sets what the names of the tables begin with; default "idemq_". It may name a
// schema (in MySQL a database): "inbox.idemq_".
func WithTables(prefix string) Option {
	return func(s *settings) { s.Tables = prefix }
}

// WithCreate makes the tables at first use, and upgrades those of an earlier version,
// where the user has the right to. It is for tests, tools and databases that belong to one
// program: elsewhere a wrong database or schema would be taken for a new one, and all
// messages that are delivered again would be handled again.
func WithCreate() Option {
	return func(s *settings) { s.Create = true }
}

// WithoutSweep leaves it to [Store.Sweep] to delete rows whose time has passed. Without it
// each batch of operations does a little of that.
func WithoutSweep() Option {
	return func(s *settings) { s.NoSweep = true }
}

// WithTxOptions sets the isolation of the handlers' transactions; default: the
// database's. Any will do. With REPEATABLE READ and SERIALIZABLE the database may refuse a
// completion because of what others did meanwhile: the handler then runs again, and spends
// no budget.
func WithTxOptions(opts sql.TxOptions) Option {
	return func(s *settings) { s.tx = &opts }
}

// Store is a store.Transactor in a SQL database. It is safe for concurrent use, starts no
// goroutine that outlives a call but to wait for a COMMIT or ROLLBACK that the server does
// not answer, and does not close the database.
type Store struct{ inbox *inbox.Store }

var _ store.Transactor = (*Store)(nil)

// New returns a store in a database. It dials nothing. With a nil database, or settings
// that cannot be, every call fails with an error that says so.
//
// The store uses up to two connections at once for a guard, and one for each handler that
// has called [Tx].
func New(db *sql.DB, d Dialect, opts ...Option) *Store {
	c := settings{Config: inbox.Config{Package: name, Dialect: inbox.Dialect(d)}}
	for _, o := range opts {
		o(&c)
	}
	var fault error
	if db == nil {
		fault = errors.New("the database is nil: give New the *sql.DB that sql.Open returned")
	}
	return &Store{inbox: inbox.New(&database{db: db, opts: c.tx}, c.Config, fault)}
}

// Schema is the DDL of the tables for people's own migrations: statements that end with a
// semicolon at a line's end. They can be executed again, and upgrade the tables of an
// earlier version. Of the options [WithTables] counts. It is empty for a dialect or a name
// that cannot be, of which New's store tells.
func Schema(d Dialect, opts ...Option) string { return New(nil, d, opts...).Schema() }

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

// Verify implements store.Store. It looks at the tables, at the user's rights on them, and
// at the settings of the server that decide whether it forgets what it committed.
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
// The handler must not end it: no tx.Commit, and no "defer tx.Rollback()". It returns an
// error to have what it wrote undone. Nor may it go on after an error with which the
// database ended the transaction (a deadlock in MySQL; an interrupted statement, or one
// with ON CONFLICT ROLLBACK, in SQLite), or execute DDL in MySQL, which commits: whatever
// it writes afterwards is in no transaction, and stays. A handler that returns nil then
// has failed, with an error that says so. In PostgreSQL and SQLite DDL is part of the
// transaction. Rows are to be closed before the handler returns.
func Tx(ctx context.Context) (*sql.Tx, error) {
	t, err := inbox.FromContext(ctx, name)
	if err != nil {
		return nil, err
	}
	return t.(*transaction).tx, nil
}

// Claim is what [CommitTx] ends: *idem.Claim.
type Claim interface {
	CommitWith(ctx context.Context, commit func(ctx context.Context, s store.Store, b *store.Batch) error) error
}

// CommitTx commits a transaction that the user opened, in the store's database, and the
// claim's completion with it. tx is ended in any case.
//
// If somebody has taken the claim over, it is rolled back, and the error is that of a lost
// lease. An error that wraps store.ErrRolledBack says that nothing was committed, and the
// effect has to be tried again, under another claim: give this one back. A transaction of
// another database is rolled back, with an error.
//
// If the connection breaks at COMMIT, the database is asked whether it has it, by the
// claim's id. Where it cannot be asked for a lease, the error wraps store.ErrUnavailable.
// CommitTx and the claim's Commit can be called again then, and ask about the first
// transaction: another one that CommitTx is given is rolled back.
func CommitTx(ctx context.Context, tx *sql.Tx, c Claim) error {
	if tx == nil || c == nil {
		return errors.New("sqlstore: CommitTx was given no transaction, or no claim: look at the error of BeginTx, and whether idem.FromContext found one")
	}
	t := &transaction{tx: tx, cancel: func() {}}
	defer t.Rollback()
	parent := ctx
	var h *inbox.Handler // the claim keeps the function, and with it what became of tx
	return c.CommitWith(ctx, func(ctx context.Context, s store.Store, b *store.Batch) error {
		if h == nil {
			of, ok := s.(*Store)
			if !ok {
				return fmt.Errorf("sqlstore: the claim is of a guard whose store is a %T, not a sqlstore.Store", s)
			}
			h = of.inbox.Adopt(parent, t)
		}
		return h.Commit(ctx, b)
	})
}
