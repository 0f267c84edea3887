package pgxstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/idemq/idemq/idem/store/sqlstore/internal/inbox"
)

// database is the inbox's way through pgx.
type database struct {
	pool *pgxpool.Pool
	opts pgx.TxOptions // of handlers' transactions
}

// querier is what a pool, a connection and a transaction have in common.
type querier interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// conn is a querier for the inbox.
type conn struct{ q querier }

func (c conn) Exec(ctx context.Context, statement string, params ...any) (int64, error) {
	tag, err := c.q.Exec(ctx, statement, params...)
	return tag.RowsAffected(), err
}

func (c conn) Query(ctx context.Context, statement string, params ...any) (inbox.Rows, error) {
	return c.q.Query(ctx, statement, params...) //nolint:sqlclosecheck // the caller's
}

func newDatabase(pool *pgxpool.Pool, opts pgx.TxOptions) inbox.DB {
	return struct {
		conn
		*database
	}{conn{pool}, &database{pool: pool, opts: opts}}
}

// Begin tries connections that died in the pool one after the other, as many as there can be
// and a new one: nothing has happened when the first statement fails.
func (d *database) Begin(ctx context.Context, statements []string) (inbox.Tx, error) {
	for n := int32(0); ; n++ {
		c, err := d.pool.Acquire(ctx)
		if err != nil {
			return nil, err
		}
		t := &short{conn: conn{c}, c: c}
		for _, s := range statements {
			if _, err = c.Exec(ctx, s); err != nil {
				break
			}
		}
		if err == nil {
			return t, nil
		}
		died := c.Conn().IsClosed()
		t.Rollback()
		if !died || n >= d.pool.Stat().MaxConns() || ctx.Err() != nil {
			return nil, err
		}
	}
}

// short is a transaction of the inbox's own.
type short struct {
	conn
	c *pgxpool.Conn // nil: released
}

func (t *short) Commit(ctx context.Context) error {
	_, err := t.c.Exec(ctx, "COMMIT")
	if err == nil {
		t.c.Release()
		t.c = nil
	}
	return err
}

// rollbackTimeout is how long a rollback may take before its connection is given up,
// which ends the transaction as well.
const rollbackTimeout = 2 * time.Second

func (t *short) Rollback() {
	if t.c == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), rollbackTimeout)
	defer cancel()
	_, _ = t.c.Exec(ctx, "ROLLBACK") // Release closes what is still in a transaction
	t.c.Release()
	t.c = nil
}

// Open opens a transaction for a handler. pgx ends none with its context, and a
// connection is not for two goroutines: if whoever runs the handler has not ended the
// transaction a moment after ctx, its connection is cut, and the server rolls back.
func (d *database) Open(ctx, wait context.Context) (inbox.Tx, error) {
	tx, err := d.pool.BeginTx(wait, d.opts)
	if err != nil {
		return nil, err
	}
	t := newTransaction(tx)
	t.users = &usersTx{Tx: tx, of: t}
	wire := tx.Conn().PgConn().Conn()
	t.stop = context.AfterFunc(ctx, func() {
		timer := time.NewTimer(rollbackTimeout)
		defer timer.Stop()
		select {
		case <-t.over:
		case <-timer.C:
			t.cut(wire)
		}
	})
	return t, nil
}

// transaction is a handler's.
type transaction struct {
	conn
	tx    pgx.Tx
	users *usersTx // nil: the user opened it
	over  chan struct{}
	stop  func() bool

	mu     sync.Mutex // held while the connection is cut
	ending bool       // and given back: it is somebody else's then
	ended  error      // of Rollback
}

func newTransaction(tx pgx.Tx) *transaction {
	return &transaction{conn: conn{tx}, tx: tx, over: make(chan struct{}), stop: func() bool { return true }}
}

// usersTx is a transaction as a handler sees it, which must not end it.
type usersTx struct {
	pgx.Tx
	of      *transaction
	touched atomic.Bool // the handler tried
}

var errUsers = errors.New("pgxstore: the transaction of pgxstore.Tx is ended by the library, after the handler: " +
	"do not call its Commit or Rollback, not in a defer either")

func (u *usersTx) Commit(context.Context) error {
	u.touched.Store(true)
	return errUsers
}

func (u *usersTx) Rollback(context.Context) error {
	u.touched.Store(true)
	return errUsers
}

// Intact is an error where the handler meant to end the transaction.
func (t *transaction) Intact() error {
	if t.users != nil && t.users.touched.Load() {
		return fmt.Errorf("%w: %w", sql.ErrTxDone, errUsers)
	}
	return nil
}

func (t *transaction) Exec(ctx context.Context, statement string, params ...any) (int64, error) {
	n, err := t.conn.Exec(ctx, statement, params...)
	if errors.Is(err, pgx.ErrTxClosed) {
		err = fmt.Errorf("%w: %w", sql.ErrTxDone, err)
	}
	return n, err
}

// cut closes the connection, unless it is about to be given back.
func (t *transaction) cut(wire net.Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.ending {
		_ = wire.Close()
	}
}

// end is called before the transaction is ended, and its connection given back.
func (t *transaction) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.ending {
		t.ending = true
		t.stop()
		close(t.over)
	}
}

func (t *transaction) Commit(ctx context.Context) error {
	t.end()
	return t.tx.Commit(ctx)
}

func (t *transaction) Rollback() {
	t.end()
	ctx, cancel := context.WithTimeout(context.Background(), rollbackTimeout)
	defer cancel()
	t.ended = t.tx.Rollback(ctx)
}

// Ended is the error of Rollback.
func (t *transaction) Ended() error { return t.ended }
