package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
	_ "modernc.org/sqlite"             // the driver "sqlite"

	"github.com/idemq/idemq/idem/store/sqlstore"
)

const accounts = 10

// payment is a message's payload.
type payment struct {
	ID      int `json:"id"`
	Account int `json:"account"`
	Cents   int `json:"cents"`
}

func newPayment(id int) payment { return payment{ID: id, Account: id % accounts, Cents: 1 + id%97} }

// bank is the database: what is owed, what was booked, and the records of idem. Nothing
// in its tables keeps a payment from being booked twice.
type bank struct {
	db    *sql.DB
	store *sqlstore.Store
	names *strings.Replacer

	schema string // of the tables; empty: none, they are in a file
}

// open connects; it creates nothing.
func open(s settings) (*bank, error) {
	driver, dsn, dialect := "sqlite", "file:"+s.db+"?_pragma=busy_timeout(10000)&_pragma=journal_mode(wal)&_pragma=synchronous(full)", sqlstore.SQLite
	tables, schema := s.name+"_", ""
	if isPostgres(s.db) {
		driver, dsn, dialect = "pgx", s.db, sqlstore.Postgres
		tables, schema = s.name+".", s.name
	}
	db, err := sql.Open(driver, dsn)
	if err != nil {
		return nil, fmt.Errorf("-db: %w", err)
	}
	return &bank{
		db:     db,
		store:  sqlstore.New(db, dialect, sqlstore.WithTables(tables+"idemq_")),
		names:  strings.NewReplacer("payments", tables+"payments", "bookings", tables+"bookings", "accounts", tables+"accounts"),
		schema: schema,
	}, nil
}

func isPostgres(db string) bool {
	return strings.HasPrefix(db, "postgres://") || strings.HasPrefix(db, "postgresql://")
}

// sql names the tables of this run.
func (b *bank) sql(query string) string { return b.names.Replace(query) }

// create makes the tables, the inbox's as well.
func (b *bank) create(ctx context.Context) error {
	if err := b.db.PingContext(ctx); err != nil {
		return fmt.Errorf("-db: the database does not answer: %w", err)
	}
	if b.schema != "" {
		if _, err := b.db.ExecContext(ctx, "CREATE SCHEMA "+b.schema); err != nil {
			return fmt.Errorf("-db: %w", err)
		}
	}
	for _, query := range []string{
		"CREATE TABLE accounts (id INTEGER PRIMARY KEY, cents BIGINT NOT NULL)",
		"CREATE TABLE payments (id INTEGER PRIMARY KEY, account INTEGER NOT NULL, cents BIGINT NOT NULL)",
		"CREATE TABLE bookings (payment INTEGER NOT NULL, attempt INTEGER NOT NULL)",
	} {
		if _, err := b.db.ExecContext(ctx, b.sql(query)); err != nil {
			return fmt.Errorf("-db: creating tables: %w", err)
		}
	}
	for id := range accounts {
		if _, err := b.db.ExecContext(ctx, b.sql("INSERT INTO accounts VALUES ($1, 0)"), id); err != nil {
			return err
		}
	}
	return b.store.Create(ctx)
}

// owe notes what is going to be published.
func (b *bank) owe(ctx context.Context, n int) (err error) {
	tx, err := b.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ignoreDone(tx.Rollback())) }()
	for id := range n {
		p := newPayment(id)
		if _, err := tx.ExecContext(ctx, b.sql("INSERT INTO payments VALUES ($1, $2, $3)"), p.ID, p.Account, p.Cents); err != nil {
			return err
		}
	}
	return tx.Commit()
}

func ignoreDone(err error) error {
	if errors.Is(err, sql.ErrTxDone) {
		return nil
	}
	return err
}

// book is what is to happen once. The transaction is the inbox's: it commits with the
// completion of the message, or not at all.
func (b *bank) book(ctx context.Context, p payment, attempt int) error {
	tx, err := sqlstore.Tx(ctx)
	if err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, b.sql("INSERT INTO bookings VALUES ($1, $2)"), p.ID, attempt); err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, b.sql("UPDATE accounts SET cents = cents + $1 WHERE id = $2"), p.Cents, p.Account)
	return err
}

// result is what the audit found.
type result struct{ owed, booked, lost, doubled, wrong int }

func (r result) exact() bool { return r.booked == r.owed && r.lost+r.doubled+r.wrong == 0 }

// audit asks the tables what became of the payments.
func (b *bank) audit(ctx context.Context) (r result, err error) {
	err = b.db.QueryRowContext(ctx, b.sql(`
		SELECT (SELECT count(*) FROM payments),
		       (SELECT count(*) FROM bookings),
		       (SELECT count(*) FROM payments p WHERE NOT EXISTS (SELECT 1 FROM bookings b WHERE b.payment = p.id)),
		       (SELECT count(*) FROM (SELECT payment FROM bookings GROUP BY payment HAVING count(*) > 1) twice),
		       (SELECT count(*) FROM accounts a WHERE cents <> (SELECT coalesce(sum(p.cents), 0) FROM payments p WHERE p.account = a.id))`,
	)).Scan(&r.owed, &r.booked, &r.lost, &r.doubled, &r.wrong)
	if err != nil {
		err = fmt.Errorf("audit: %w", err)
	}
	return r, err
}

// remove drops what create made in a server's database.
func (b *bank) remove(ctx context.Context) error {
	if b.schema == "" {
		return nil
	}
	_, err := b.db.ExecContext(ctx, "DROP SCHEMA IF EXISTS "+b.schema+" CASCADE")
	return err
}
