package pgxstore

import (
	"context"
	"sync"
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

// Begin tries connections that died in the pool one after the other: nothing has happened
// when the first statement fails.
func (d *database) Begin(ctx context.Context, statements []string) (inbox.Tx, error) {
	for {
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
		if !died || ctx.Err() != nil {
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
func (d *database) Open(ctx context.Context) (inbox.Tx, error) {
	tx, err := d.pool.BeginTx(ctx, d.opts)
	if err != nil {
		return nil, err
	}
	t := newTransaction(tx)
	wire := tx.Conn().PgConn().Conn()
	context.AfterFunc(ctx, func() {
		timer := time.NewTimer(rollbackTimeout)
		defer timer.Stop()
		select {
		case <-t.ended:
		case <-timer.C:
			_ = wire.Close()
		}
	})
	return t, nil
}

// transaction is a handler's.
type transaction struct {
	conn
	tx    pgx.Tx
	ended chan struct{}
	end   func()
}

func newTransaction(tx pgx.Tx) *transaction {
	t := &transaction{conn: conn{tx}, tx: tx, ended: make(chan struct{})}
	t.end = sync.OnceFunc(func() { close(t.ended) })
	return t
}

func (t *transaction) Commit(ctx context.Context) error {
	defer t.end()
	return t.tx.Commit(ctx)
}

func (t *transaction) Rollback() {
	defer t.end()
	ctx, cancel := context.WithTimeout(context.Background(), rollbackTimeout)
	defer cancel()
	_ = t.tx.Rollback(ctx)
}
