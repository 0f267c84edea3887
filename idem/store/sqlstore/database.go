package sqlstore

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"time"

	"github.com/idemq/idemq/idem/store/sqlstore/internal/inbox"
)

// database is the inbox's way through database/sql.
type database struct {
	db   *sql.DB
	opts *sql.TxOptions // of handlers' transactions
}

type rows struct{ *sql.Rows }

func (r rows) Close() { _ = r.Rows.Close() }

// execer is what *sql.DB, *sql.Conn and *sql.Tx have in common.
type execer interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

func exec(ctx context.Context, on execer, statement string, params []any) (int64, error) {
	r, err := on.ExecContext(ctx, statement, params...)
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}

func query(ctx context.Context, on execer, statement string, params []any) (inbox.Rows, error) {
	r, err := on.QueryContext(ctx, statement, params...) //nolint:rowserrcheck // the caller's
	if err != nil {
		return nil, err
	}
	return rows{r}, nil
}

func (d *database) Exec(ctx context.Context, statement string, params ...any) (int64, error) {
	return exec(ctx, d.db, statement, params)
}

func (d *database) Query(ctx context.Context, statement string, params ...any) (inbox.Rows, error) {
	return query(ctx, d.db, statement, params)
}

// staleConns is how many connections that died in the pool are passed over.
const staleConns = 1000

// Begin begins a transaction by statements, not by BeginTx: of each the context bounds the
// wait then, COMMIT included. Nothing has happened when the first one fails, so it is
// tried on another connection if its own was dead.
func (d *database) Begin(ctx context.Context, statements []string) (inbox.Tx, error) {
	for n := 0; ; n++ {
		conn, err := d.db.Conn(ctx)
		if err != nil {
			return nil, err
		}
		t := &short{conn: conn}
		for _, s := range statements {
			if _, err = conn.ExecContext(ctx, s); err != nil {
				break
			}
		}
		if err == nil {
			return t, nil
		}
		t.Rollback()
		if !errors.Is(err, driver.ErrBadConn) || n >= staleConns || ctx.Err() != nil {
			return nil, err
		}
	}
}

// short is a transaction of the inbox's own.
type short struct {
	conn *sql.Conn
	done bool
}

func (t *short) Exec(ctx context.Context, statement string, params ...any) (int64, error) {
	return exec(ctx, t.conn, statement, params)
}

func (t *short) Query(ctx context.Context, statement string, params ...any) (inbox.Rows, error) {
	return query(ctx, t.conn, statement, params)
}

func (t *short) Commit(ctx context.Context) error {
	_, err := t.conn.ExecContext(ctx, "COMMIT")
	if err == nil {
		t.done = true
		_ = t.conn.Close()
	}
	return err
}

// rollbackTimeout is how long a rollback may take before its connection is given up,
// which ends the transaction as well.
const rollbackTimeout = 2 * time.Second

func (t *short) Rollback() {
	if t.done {
		return
	}
	t.done = true
	ctx, cancel := context.WithTimeout(context.Background(), rollbackTimeout)
	defer cancel()
	if _, err := t.conn.ExecContext(ctx, "ROLLBACK"); err != nil {
		_ = t.conn.Raw(func(any) error { return driver.ErrBadConn })
	}
	_ = t.conn.Close()
}

// Open opens a transaction for a handler.
func (d *database) Open(ctx, wait context.Context) (inbox.Tx, error) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(wait, cancel)
	tx, err := d.db.BeginTx(ctx, d.opts)
	if !stop() && err == nil {
		_ = tx.Rollback()
		err = wait.Err()
	}
	if err != nil {
		cancel()
		return nil, err
	}
	return &transaction{tx: tx, cancel: cancel}, nil
}

// transaction is a handler's.
type transaction struct {
	tx     *sql.Tx
	cancel context.CancelFunc
	ended  error // of Rollback
}

// Ended is the error of Rollback.
func (t *transaction) Ended() error { return t.ended }

func (t *transaction) Exec(ctx context.Context, statement string, params ...any) (int64, error) {
	return exec(ctx, t.tx, statement, params)
}

func (t *transaction) Query(ctx context.Context, statement string, params ...any) (inbox.Rows, error) {
	return query(ctx, t.tx, statement, params)
}

// Commit gives up waiting at the end of ctx. *sql.Tx's own has no context: it goes on
// until the connection answers or breaks, which the driver's timeouts see to.
func (t *transaction) Commit(ctx context.Context) error {
	done := make(chan error, 1)
	go func() { done <- t.tx.Commit() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		t.cancel()
		return ctx.Err()
	}
}

func (t *transaction) Rollback() {
	done := make(chan error, 1)
	go func() { done <- t.tx.Rollback() }()
	timer := time.NewTimer(rollbackTimeout)
	defer timer.Stop()
	select {
	case t.ended = <-done:
	case <-timer.C:
		t.ended = context.DeadlineExceeded
	}
	t.cancel()
}
