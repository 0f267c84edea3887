package torture

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	// The drivers.
	_ "github.com/go-sql-driver/mysql"
	_ "github.com/jackc/pgx/v5/stdlib"
	_ "modernc.org/sqlite"

	"github.com/idemq/idemq/e2e/torture/role"
	"github.com/idemq/idemq/idem/store/sqlstore"
	"github.com/idemq/idemq/internal/sqltest"
)

// sqlStore is a database that holds the records and the effects. It is Transactional.
type sqlStore struct {
	tb      testing.TB
	kind    string
	driver  string
	dialect sqlstore.Dialect
	version string
	server  *sqltest.Server // nil: SQLite
	proxy   *Proxy
	empty   []string // what leaves nothing of the round before
	dsn     string   // the harness's
	run     string
	db      *sql.DB
}

// NewMariaDB starts a MariaDB.
func NewMariaDB(tb testing.TB) Store {
	tb.Helper()
	s := &sqlStore{
		tb: tb, kind: "mariadb", driver: "mysql", dialect: sqlstore.MySQL, server: sqltest.StartMariaDB(tb),
		empty: []string{"DROP DATABASE test", "CREATE DATABASE test"},
	}
	s.begin("SELECT VERSION()", "MariaDB ")
	return s
}

// NewSQLite makes a SQLite, in a file.
func NewSQLite(tb testing.TB) Store {
	tb.Helper()
	s := &sqlStore{tb: tb, kind: "sqlite", driver: "sqlite", dialect: sqlstore.SQLite}
	s.dsn = sqliteDSN(filepath.Join(tb.TempDir(), "first.db"))
	s.begin("SELECT sqlite_version()", "SQLite ")
	return s
}

func sqliteDSN(file string) string {
	return "file:" + file + "?_pragma=busy_timeout(5000)&_pragma=journal_mode(wal)"
}

// postgresStore is a PostgreSQL whose disk can be full. It is a Filler.
type postgresStore struct {
	*sqlStore
	disk string
}

// NewPostgres starts a PostgreSQL of a major version; empty for any. It is a Filler where
// the process may mount a small disk for it.
func NewPostgres(tb testing.TB, version string) Store {
	tb.Helper()
	s := &sqlStore{
		tb: tb, kind: "postgres", driver: "pgx", dialect: sqlstore.Postgres,
		empty: []string{"DROP SCHEMA public CASCADE", "CREATE SCHEMA public"},
	}
	disk, mounted := smallDisk(tb)
	if mounted {
		s.server = sqltest.StartPostgresIn(tb, version, disk, "max_wal_size=64MB", "min_wal_size=32MB")
	} else {
		s.server = sqltest.StartPostgres(tb, version)
	}
	s.begin("SHOW server_version", "PostgreSQL ")
	if mounted {
		return &postgresStore{s, disk}
	}
	return s
}

// smallDisk mounts one.
func smallDisk(tb testing.TB) (dir string, mounted bool) {
	tb.Helper()
	dir = tb.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=768m"); err != nil {
		tb.Logf("no full disk: a small one could not be mounted, which root may: %v", err)
		return "", false
	}
	tb.Cleanup(func() { // after the server's end
		if err := syscall.Unmount(dir, 0); err != nil {
			tb.Error(err)
		}
	})
	return dir, true
}

func (s *sqlStore) begin(version, name string) {
	s.tb.Helper()
	if s.server != nil {
		s.dsn = s.server.DSN()
		s.proxy = NewProxy(s.tb, s.server.Addr())
	}
	s.open()
	s.tb.Cleanup(func() { _ = s.db.Close() })
	if err := s.db.QueryRow(version).Scan(&s.version); err != nil {
		s.tb.Fatalf("the version of %s: %v", s.kind, err)
	}
	number, _, _ := strings.Cut(s.version, "-") // MariaDB's has more
	number, _, _ = strings.Cut(number, " ")     // and so has Debian's PostgreSQL
	s.version = name + number
}

func (s *sqlStore) open() {
	s.tb.Helper()
	if s.db != nil {
		_ = s.db.Close()
	}
	var err error
	if s.db, err = sql.Open(s.driver, s.dsn); err != nil {
		s.tb.Fatal(err)
	}
}

func (s *sqlStore) Kind() string    { return s.kind }
func (s *sqlStore) Version() string { return s.version }
func (s *sqlStore) Proxy() *Proxy   { return s.proxy }

func (s *sqlStore) Role() role.Store {
	addr := s.dsn
	if s.server != nil {
		addr = s.server.DSNAt(s.proxy.Addr())
	}
	return role.Store{Kind: s.kind, Addr: addr, Prefix: s.run}
}

func (s *sqlStore) Round(run string) {
	s.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s.run = run
	if s.server == nil {
		s.dsn = sqliteDSN(filepath.Join(s.tb.TempDir(), "round.db"))
	}
	s.execute(ctx, s.empty...)
	s.open() // a connection of MariaDB's has no database now
	if err := sqlstore.New(s.db, s.dialect).Create(ctx); err != nil {
		s.tb.Fatal(err)
	}
	// Nothing is unique here: the rows tell how often an effect happened.
	s.execute(ctx, "CREATE TABLE effects (token BIGINT NOT NULL, attempt INTEGER NOT NULL, process INTEGER NOT NULL)")
}

func (s *sqlStore) execute(ctx context.Context, statements ...string) {
	s.tb.Helper()
	for _, statement := range statements {
		if _, err := s.db.ExecContext(ctx, statement); err != nil {
			s.tb.Fatalf("%s: %s: %v", s.kind, statement, err)
		}
	}
}

func (s *sqlStore) Restart() {
	if s.server != nil {
		s.server.Kill()
		s.server.Restart()
	}
}

// Effects implements Transactional.
func (s *sqlStore) Effects(ctx context.Context) ([]Row, error) {
	found, err := s.db.QueryContext(ctx, "SELECT token, attempt, process FROM effects")
	if err != nil {
		return nil, err
	}
	defer found.Close()
	var rows []Row
	for found.Next() {
		var r Row
		if err := found.Scan(&r.Token, &r.Attempt, &r.Process); err != nil {
			return nil, err
		}
		rows = append(rows, r)
	}
	return rows, found.Err()
}

func (s *postgresStore) hog() string { return filepath.Join(s.disk, "hog") }

// Fill implements Filler.
func (s *postgresStore) Fill() {
	s.tb.Helper()
	file, err := os.Create(s.hog())
	if err != nil {
		s.tb.Fatal(err)
	}
	defer file.Close()
	for _, size := range []int{1 << 20, 1 << 12} {
		block := bytes.Repeat([]byte{1}, size)
		for err = nil; err == nil; {
			_, err = file.Write(block)
		}
	}
	if !errors.Is(err, syscall.ENOSPC) {
		s.tb.Fatalf("filling the disk of PostgreSQL: %v", err)
	}
}

// Empty implements Filler: it also starts a server again that has given up.
func (s *postgresStore) Empty() {
	s.tb.Helper()
	if err := os.Remove(s.hog()); err != nil && !errors.Is(err, os.ErrNotExist) {
		s.tb.Fatal(fmt.Errorf("making room for PostgreSQL: %w", err))
	}
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	for s.db.PingContext(ctx) != nil {
		if pause(ctx) != nil {
			s.server.Restart()
			return
		}
	}
}
