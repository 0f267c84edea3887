package sqlstore_test

import (
	"context"
	"database/sql"
	"fmt"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	_ "github.com/go-sql-driver/mysql"
	_ "github.com/jackc/pgx/v5/stdlib"
	"go.uber.org/goleak"
	_ "modernc.org/sqlite"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/sqlstore"
	"github.com/idemq/idemq/idem/store/storetest"
	"github.com/idemq/idemq/internal/sqltest"
	"github.com/idemq/idemq/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// unit is the suite's lease; histories wait for some thousand of shortUnit.
const (
	unit      = 100 * time.Millisecond
	shortUnit = 30 * time.Millisecond
)

// backend is a database that the tests run on.
type backend struct {
	name    string
	dialect sqlstore.Dialect
	driver  string
	start   func(tb testing.TB) (dsn string)
}

var sqlite = backend{"SQLite", sqlstore.SQLite, "sqlite", sqliteFile}

func sqliteFile(tb testing.TB) string {
	return "file:" + filepath.Join(tb.TempDir(), "inbox.db") + "?_pragma=journal_mode(wal)&_pragma=busy_timeout(5000)"
}

var (
	postgres15 = backend{"PostgreSQL 15", sqlstore.Postgres, "pgx", func(tb testing.TB) string { return sqltest.StartPostgres(tb, "15").DSN() }}
	postgres18 = backend{"PostgreSQL 18", sqlstore.Postgres, "pgx", func(tb testing.TB) string { return sqltest.StartPostgres(tb, "18").DSN() }}
	mariadb    = backend{"MariaDB 10.11", sqlstore.MySQL, "mysql", func(tb testing.TB) string { return sqltest.StartMariaDB(tb).DSN() }}
)

var backends = []backend{sqlite, postgres15, postgres18, mariadb}

// each runs a test on every backend.
func each(t *testing.T, test func(t *testing.T, b backend)) {
	t.Helper()
	for _, b := range backends {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			test(t, b)
		})
	}
}

func open(tb testing.TB, driver, dsn string) *sql.DB {
	tb.Helper()
	db, err := sql.Open(driver, dsn)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = db.Close() })
	return db
}

// database is an empty database of the test's own.
func (b backend) database(tb testing.TB) *sql.DB {
	tb.Helper()
	return open(tb, b.driver, b.start(tb))
}

func (b backend) store(tb testing.TB, db *sql.DB, opts ...sqlstore.Option) *sqlstore.Store {
	tb.Helper()
	return sqlstore.New(db, b.dialect, append([]sqlstore.Option{sqlstore.WithCreate()}, opts...)...)
}

func (b backend) harness(db *sql.DB, lease time.Duration, opts ...sqlstore.Option) storetest.Harness {
	return storetest.Harness{
		Name:   b.name,
		Server: b.version(db),
		Open:   func(tb testing.TB) store.Store { return b.store(tb, db, opts...) },
		Wait:   wait,
		Lease:  lease,
		Corrupt: func(tb testing.TB, _ store.Store, prefix, _, token string, how storetest.Corruption) {
			corrupt(tb, db, prefix, token, how)
		},
	}
}

// version is what the database says that it is.
func (b backend) version(db *sql.DB) (v string) {
	query := "SELECT version()"
	switch b.dialect {
	case sqlstore.SQLite:
		query = "SELECT sqlite_version()"
	case sqlstore.Postgres:
		query = "SHOW server_version"
	}
	_ = db.QueryRowContext(context.Background(), query).Scan(&v)
	return v
}

// wait returns when d has passed: the servers' clock is this machine's.
func wait(tb testing.TB, d time.Duration) {
	end := time.Now().Add(d)
	testenv.Await(tb, "time to pass", func() bool { return time.Now().After(end) })
}

// corrupt damages the record of a token, which one group of the prefix has.
func corrupt(tb testing.TB, db *sql.DB, prefix, token string, how storetest.Corruption) {
	tb.Helper()
	set := map[storetest.Corruption]string{
		storetest.WrongType: "state = 77", storetest.Garbage: "version = 0", storetest.NewerVersion: "version = 2",
	}[how]
	statement := fmt.Sprintf("UPDATE idemq_records SET %s WHERE token = %s AND gid IN (SELECT id FROM idemq_groups WHERE prefix = %s)",
		set, hexLiteral(db, token), hexLiteral(db, prefix))
	r, err := db.ExecContext(context.Background(), statement)
	if err != nil {
		tb.Fatal(err)
	}
	if n, _ := r.RowsAffected(); n != 1 {
		tb.Fatalf("%s: %d rows", statement, n)
	}
}

func hexLiteral(db *sql.DB, s string) string {
	if fmt.Sprintf("%T", db.Driver()) == "*stdlib.Driver" {
		return fmt.Sprintf(`'\x%x'`, s)
	}
	return fmt.Sprintf("X'%x'", s)
}

func TestStore(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, b backend) {
		db := b.database(t)
		h := b.harness(db, unit)
		h.Name, h.Server = b.name, serverVersion(t, b, db)
		storetest.Run(t, h)
	})
}

// serverVersion is the number that the database says of itself.
func serverVersion(tb testing.TB, b backend, db *sql.DB) string {
	tb.Helper()
	query := "SELECT version()"
	if b.dialect == sqlstore.SQLite {
		query = "SELECT sqlite_version()"
	}
	var v string
	if err := db.QueryRowContext(context.Background(), query).Scan(&v); err != nil {
		tb.Fatal(err)
	}
	return regexp.MustCompile(`\d+(\.\d+)+`).FindString(v)
}

func TestHistories(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, b backend) { storetest.Histories(t, b.harness(b.database(t), shortUnit)) })
}
