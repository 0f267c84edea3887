package e2e_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/stdlib"
	"modernc.org/sqlite"

	"github.com/idemq/idemq/idem/store/sqlstore"
	"github.com/idemq/idemq/internal/sqltest"
)

// database is where payments are booked, as a process is told of it.
type database struct {
	Dialect sqlstore.Dialect
	DSN     string
	Tables  string // what the names of the bank's tables begin with, and those of the inbox
	Shard   int    // of the accounts, each of which has a row in each shard
}

const bankShards = 2

// sqlEngine is a kind of database that the tests run on.
type sqlEngine struct {
	name    string
	dialect sqlstore.Dialect
	start   func(t *testing.T) *sqltest.Server // nil: a file
}

var (
	onPostgres = sqlEngine{"PostgreSQL", sqlstore.Postgres, func(t *testing.T) *sqltest.Server {
		return sqltest.StartPostgres(t, "", "max_connections=200")
	}}
	onMariaDB = sqlEngine{"MariaDB", sqlstore.MySQL, func(t *testing.T) *sqltest.Server { return sqltest.StartMariaDB(t) }}
	onSQLite  = sqlEngine{"SQLite", sqlstore.SQLite, nil}
)

// database starts the engine's server, if it has one.
func (e sqlEngine) database(t *testing.T) database {
	t.Helper()
	if e.start == nil {
		file := filepath.Join(t.TempDir(), "bank.db")
		return database{Dialect: e.dialect, DSN: "file:" + file + "?_pragma=busy_timeout(10000)&_pragma=journal_mode(wal)"}
	}
	return e.at(e.start(t).DSN(), "")
}

// at is a database by an address of its server's.
func (e sqlEngine) at(dsn, tables string) database {
	return database{Dialect: e.dialect, DSN: dsn, Tables: tables}
}

// open connects. at, which may be nil, is told where a transaction is.
func (d database) open(at func(spot)) *sql.DB {
	var of driver.Driver
	switch d.Dialect {
	case sqlstore.Postgres:
		of = stdlib.GetDefaultDriver()
	case sqlstore.MySQL:
		of = mariadbDriver{interpolate: at != nil} // a statement that is prepared first is not watched
	case sqlstore.SQLite:
		of = &sqlite.Driver{}
	}
	return sql.OpenDB(watched{of, d.DSN, at})
}

func (d database) store(db *sql.DB, opts ...sqlstore.Option) *sqlstore.Store {
	return sqlstore.New(db, d.Dialect, append([]sqlstore.Option{sqlstore.WithTables(d.Tables + "idemq_")}, opts...)...)
}

const bankAccounts = 10

// payment is a message's meaning. Its token says all.
type payment struct{ id, account, cents int }

func paymentOf(token string) (p payment, err error) {
	_, number, _ := strings.Cut(token, "-")
	p.id, err = strconv.Atoi(number)
	p.account, p.cents = p.id%bankAccounts, 1+p.id%97
	return p, err
}

func payments(n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf("payment-%d", i)
	}
	return all
}

// sql is a statement with the names of the tables, and the dialect's placeholders for ?.
func (d database) sql(query string) string {
	for _, table := range []string{"payments", "bookings", "accounts"} {
		query = strings.ReplaceAll(query, table, d.Tables+table)
	}
	if d.Dialect != sqlstore.Postgres {
		return query
	}
	var b strings.Builder
	n := 0
	for _, c := range query {
		if c == '?' {
			n++
			fmt.Fprintf(&b, "$%d", n)
			continue
		}
		b.WriteRune(c)
	}
	return b.String()
}

// bank is the test's own way to the database.
type bank struct {
	database
	t  *testing.T
	db *sql.DB
}

// newBank makes the tables, the inbox's too, and notes n payments as owed.
func newBank(t *testing.T, d database, n int) *bank {
	t.Helper()
	b := &bank{database: d, t: t, db: d.open(nil)}
	t.Cleanup(func() { _ = b.db.Close() })
	if err := d.store(b.db).Create(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Nothing keeps a payment from being booked twice.
	statements := []string{
		"CREATE TABLE accounts (id INTEGER PRIMARY KEY, cents BIGINT NOT NULL)",
		"CREATE TABLE payments (id INTEGER PRIMARY KEY, account INTEGER NOT NULL, cents BIGINT NOT NULL)",
		"CREATE TABLE bookings (payment INTEGER NOT NULL, attempt INTEGER NOT NULL, consumer VARCHAR(100) NOT NULL)",
	}
	var values []string
	for id := range bankAccounts * bankShards {
		values = append(values, fmt.Sprintf("(%d, 0)", id))
	}
	statements = append(statements, "INSERT INTO accounts VALUES "+strings.Join(values, ","))
	values = nil
	for _, token := range payments(n) {
		p, err := paymentOf(token)
		if err != nil {
			t.Fatal(err)
		}
		values = append(values, fmt.Sprintf("(%d, %d, %d)", p.id, p.account, p.cents))
		if len(values) == 1000 || p.id == n-1 {
			statements = append(statements, "INSERT INTO payments VALUES "+strings.Join(values, ","))
			values = nil
		}
	}
	for _, query := range statements {
		if _, err := b.db.ExecContext(t.Context(), b.sql(query)); err != nil {
			t.Fatalf("%.100s: %v", query, err)
		}
	}
	return b
}

// execer is what the transactions of database/sql have, and pgx's by [pgxExecer].
type execer interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// book is what is to happen once.
func (d database) book(ctx context.Context, on execer, token, consumer string, attempt int) error {
	p, err := paymentOf(token)
	if err != nil {
		return err
	}
	if _, err := on.ExecContext(ctx, d.sql("INSERT INTO bookings VALUES (?, ?, ?)"), p.id, attempt, consumer); err != nil {
		return err
	}
	_, err = on.ExecContext(ctx, d.sql("UPDATE accounts SET cents = cents + ? WHERE id = ?"), p.cents, p.account+bankAccounts*d.Shard)
	return err
}

// bookings counts those that meet a condition.
func (b *bank) bookings(where string) (n int) {
	b.t.Helper()
	if err := b.db.QueryRowContext(b.t.Context(), b.sql("SELECT count(*) FROM bookings WHERE "+where)).Scan(&n); err != nil {
		b.t.Fatal(err)
	}
	return n
}

// audit reports every payment that was not booked once, and every wrong balance.
func (b *bank) audit() {
	b.t.Helper()
	var owed, booked, lost, doubled, wrong int
	if err := b.db.QueryRowContext(b.t.Context(), b.sql(`
		SELECT (SELECT count(*) FROM payments),
		       (SELECT count(*) FROM bookings),
		       (SELECT count(*) FROM payments p WHERE NOT EXISTS (SELECT 1 FROM bookings b WHERE b.payment = p.id)),
		       (SELECT count(*) FROM (SELECT payment FROM bookings GROUP BY payment HAVING count(*) > 1) twice),
		       (SELECT count(*) FROM (SELECT id % 10 AS id, sum(cents) AS cents FROM accounts GROUP BY id % 10) a
		        WHERE cents <> (SELECT coalesce(sum(p.cents), 0) FROM payments p WHERE p.account = a.id))`,
	)).Scan(&owed, &booked, &lost, &doubled, &wrong); err != nil {
		b.t.Fatal(err)
	}
	b.t.Logf("audit: %d payments, %d bookings, %d on a second attempt or a later one: %d lost, %d doubled, %d wrong balances",
		owed, booked, b.bookings("attempt > 1"), lost, doubled, wrong)
	if booked != owed || lost+doubled+wrong != 0 {
		b.t.Errorf("%d payments, %d bookings, %d lost, %d doubled, %d wrong balances", owed, booked, lost, doubled, wrong)
	}
}

// spot is a place on the way of a handler's transaction.
type spot string

const (
	beforeBegin      spot = "before the transaction is opened"
	afterFirst       spot = "after its first statement"
	afterLast        spot = "after its last statement"
	beforeCompletion spot = "before the completion is written"
	beforeCommit     spot = "at COMMIT, before it is sent"
	duringCommit     spot = "while COMMIT is under way"
	afterCommit      spot = "after COMMIT is answered"
	beforeAck        spot = "before the ack"
	afterAck         spot = "after the ack"
)

// mariadbDriver is the driver mysql, which tells nobody of the connections that are cut.
type mariadbDriver struct {
	mysql.MySQLDriver
	interpolate bool
}

func (d mariadbDriver) OpenConnector(dsn string) (driver.Connector, error) {
	c, err := mysql.ParseDSN(dsn)
	if err != nil {
		return nil, err
	}
	c.Logger, c.InterpolateParams = &mysql.NopLogger{}, d.interpolate
	return mysql.NewConnector(c)
}

// watched is a driver whose handlers' transactions tell where they are. The store's own
// transactions are begun by statements, and are not meant.
type watched struct {
	of  driver.Driver
	dsn string
	at  func(spot)
}

func (w watched) Driver() driver.Driver { return w.of }

func (w watched) Connect(ctx context.Context) (conn driver.Conn, err error) {
	if d, ok := w.of.(driver.DriverContext); ok {
		var c driver.Connector
		if c, err = d.OpenConnector(w.dsn); err == nil {
			conn, err = c.Connect(ctx)
		}
	} else {
		conn, err = w.of.Open(w.dsn)
	}
	if err != nil || w.at == nil {
		return conn, err
	}
	all, ok := conn.(watchable)
	if !ok {
		return nil, fmt.Errorf("a %T cannot be watched", conn)
	}
	return &watchedConn{watchable: all, at: w.at}, nil
}

// watchable is what the connections of all three drivers can do.
type watchable interface {
	driver.Conn
	driver.ConnPrepareContext
	driver.ConnBeginTx
	driver.ExecerContext
	driver.QueryerContext
	driver.Pinger
}

type watchedConn struct {
	watchable
	at    func(spot)
	open  bool // a transaction
	wrote bool // the handler's last statement
}

func (c *watchedConn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	c.at(beforeBegin)
	tx, err := c.watchable.BeginTx(ctx, opts)
	if err != nil {
		return nil, err
	}
	c.open, c.wrote = true, false
	return watchedTx{tx, c}, nil
}

func (c *watchedConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if !c.open {
		return c.watchable.ExecContext(ctx, query, args)
	}
	if c.wrote {
		c.at(beforeCompletion)
	}
	r, err := c.watchable.ExecContext(ctx, query, args)
	switch {
	case errors.Is(err, driver.ErrSkip):
		panic("the statement is prepared first, which is not watched")
	case strings.Contains(query, "bookings"):
		c.at(afterFirst)
	case strings.Contains(query, "accounts"):
		c.wrote = true
		c.at(afterLast)
	}
	return r, err
}

func (c *watchedConn) CheckNamedValue(v *driver.NamedValue) error {
	if checker, ok := c.watchable.(driver.NamedValueChecker); ok {
		return checker.CheckNamedValue(v)
	}
	return driver.ErrSkip
}

func (c *watchedConn) ResetSession(ctx context.Context) error {
	if r, ok := c.watchable.(driver.SessionResetter); ok {
		return r.ResetSession(ctx)
	}
	return nil
}

func (c *watchedConn) IsValid() bool {
	v, ok := c.watchable.(driver.Validator)
	return !ok || v.IsValid()
}

type watchedTx struct {
	driver.Tx
	c *watchedConn
}

func (t watchedTx) Commit() error {
	t.c.at(beforeCommit)
	t.c.at(duringCommit)
	err := t.Tx.Commit()
	t.c.open = false
	if err == nil {
		t.c.at(afterCommit)
	}
	return err
}

func (t watchedTx) Rollback() error {
	t.c.open = false
	return t.Tx.Rollback()
}
