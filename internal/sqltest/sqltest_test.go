package sqltest

import (
	"database/sql"
	"testing"
	"time"

	_ "github.com/go-sql-driver/mysql"
	_ "github.com/jackc/pgx/v5/stdlib"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// kinds are the servers that the tests run against, with their drivers.
var kinds = []struct {
	name, driver string
	start        func(tb testing.TB, settings ...string) *Server
}{
	{"postgres15", "pgx", func(tb testing.TB, s ...string) *Server { tb.Helper(); return StartPostgres(tb, "15", s...) }},
	{"postgres18", "pgx", func(tb testing.TB, s ...string) *Server { tb.Helper(); return StartPostgres(tb, "18", s...) }},
	{"mariadb", "mysql", StartMariaDB},
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

func exec_(t *testing.T, db *sql.DB, statement string) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

func TestServer(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			t0 := time.Now()
			s := k.start(t)
			t.Log(time.Since(t0))
			db := open(t, k.driver, s.DSN())
			exec_(t, db, "CREATE TABLE a (n int)")
			exec_(t, db, "INSERT INTO a VALUES (1)")
			t0 = time.Now()
			s.Kill()
			t.Log("kill", time.Since(t0))
			if err := db.PingContext(t.Context()); err == nil {
				t.Error("a killed server answers")
			}
			t0 = time.Now()
			s.Restart()
			t.Log("restart", time.Since(t0))
			var n int
			if err := db.QueryRowContext(t.Context(), "SELECT n FROM a").Scan(&n); err != nil || n != 1 {
				t.Error(n, err)
			}
		})
	}
}
