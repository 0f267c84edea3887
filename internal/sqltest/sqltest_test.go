package sqltest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgconn"
	_ "github.com/jackc/pgx/v5/stdlib"
	"go.uber.org/goleak"

	"github.com/idemq/idemq/internal/child"
	"github.com/idemq/idemq/internal/testenv"
)

func TestMain(m *testing.M) {
	_ = mysql.SetLogger(&mysql.NopLogger{}) // connections that break are what the tests want
	goleak.VerifyTestMain(m)
}

const envVictim = "SQLTEST_VICTIM"

// kind is a server that the tests run against.
type kind struct {
	name, driver string
	start        func(tb testing.TB, settings ...string) *Server
	in           func(tb testing.TB, dir string) *Server
	setting      string // twenty connections
}

var kinds = []kind{postgresKind("15"), postgresKind("18"), {
	"mariadb", "mysql", StartMariaDB,
	func(tb testing.TB, dir string) *Server { tb.Helper(); return StartMariaDBIn(tb, dir) },
	"--max-connections=20",
}}

func postgresKind(version string) kind {
	return kind{
		"postgres" + version, "pgx",
		func(tb testing.TB, settings ...string) *Server {
			tb.Helper()
			return StartPostgres(tb, version, settings...)
		},
		func(tb testing.TB, dir string) *Server { tb.Helper(); return StartPostgresIn(tb, version, dir) },
		"max_connections=20",
	}
}

// each runs a test against every kind of server.
func each(t *testing.T, test func(t *testing.T, k kind)) {
	t.Helper()
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) { test(t, k) })
	}
}

func open(tb testing.TB, k kind, dsn string) *sql.DB {
	tb.Helper()
	db, err := sql.Open(k.driver, dsn)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = db.Close() })
	return db
}

func run(t *testing.T, db *sql.DB, statement string) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

func text(t *testing.T, db *sql.DB, query string) (answer string) {
	t.Helper()
	if err := db.QueryRowContext(t.Context(), query).Scan(&answer); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return answer
}

// count is how many rows of the table things have a name.
func count(t *testing.T, db *sql.DB, name string) string {
	t.Helper()
	return text(t, db, "SELECT count(*) FROM things WHERE name = '"+name+"'")
}

// briefly makes a call that must not be answered.
func briefly(t *testing.T, what string, call func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := call(ctx); ctx.Err() == nil {
		t.Fatalf("%s: ended with %v before the time was over", what, err)
	}
}

// A server has the settings that it was given, and keeps what it committed over a SIGKILL.
func TestServer(t *testing.T) {
	each(t, func(t *testing.T, k kind) {
		begun := time.Now()
		s := k.start(t, k.setting)
		t.Logf("it took %v to start", time.Since(begun))
		db := open(t, k, s.DSN())
		query := "SELECT @@max_connections"
		if k.driver == "pgx" {
			query = "SHOW max_connections"
			if v := text(t, db, "SHOW server_version"); !strings.HasPrefix("postgres"+v, k.name+".") {
				t.Errorf("version %s", v)
			}
		}
		if n := text(t, db, query); n != "20" {
			t.Errorf("%s: %s, want 20", query, n)
		}
		run(t, db, "CREATE TABLE things (name varchar(20))")
		run(t, db, "INSERT INTO things VALUES ('kept')")
		addr := s.Addr()
		s.Kill()
		if err := db.PingContext(t.Context()); err == nil {
			t.Error("a killed server answers")
		}
		begun = time.Now()
		s.Restart()
		t.Logf("it took %v to start again", time.Since(begun))
		if s.Addr() != addr {
			t.Errorf("it was at %s and is at %s", addr, s.Addr())
		}
		if n := count(t, db, "kept"); n != "1" {
			t.Errorf("after the restart there are %s rows, want 1", n)
		}
		s.Restart()
		if n := count(t, db, "kept"); n != "1" {
			t.Errorf("after a restart without a kill there are %s rows, want 1", n)
		}
	})
}

// A paused server answers nobody: neither a session that is open nor a new one.
func TestPause(t *testing.T) {
	each(t, func(t *testing.T, k kind) {
		s := k.start(t)
		db := open(t, k, s.DSN())
		session, err := db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		idle, err := db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		s.Pause()
		s.Pause()
		briefly(t, "a session", func(ctx context.Context) error {
			_, err := session.ExecContext(ctx, "SELECT 1")
			return err
		})
		briefly(t, "a new session", db.PingContext)
		_ = session.Close()
		s.Resume()
		if err := db.PingContext(t.Context()); err != nil {
			t.Errorf("after the pause: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		if _, err := idle.ExecContext(ctx, "SELECT 1"); err != nil {
			t.Errorf("a session from before the pause: %v", err)
		}
		_ = idle.Close()
		s.Pause()
		s.Restart()
		if err := db.PingContext(t.Context()); err != nil {
			t.Errorf("after a restart of the paused server: %v", err)
		}
		s.Pause() // a paused server can be stopped, too
	})
}

// A replica shows what its origin commits, and refuses to write, also after a restart.
func TestReplica(t *testing.T) {
	each(t, func(t *testing.T, k kind) {
		s := k.start(t, k.setting)
		db := open(t, k, s.DSN())
		run(t, db, "CREATE TABLE things (name varchar(20))")
		run(t, db, "INSERT INTO things VALUES ('before')")
		begun := time.Now()
		r := s.StartReplica(t)
		t.Logf("it took %v to start the replica", time.Since(begun))
		replica := open(t, k, r.DSN())
		shows := func(name string) {
			t.Helper()
			testenv.Await(t, "the replica to show a row", func() bool {
				var n int
				err := replica.QueryRowContext(t.Context(), "SELECT count(*) FROM things WHERE name = '"+name+"'").Scan(&n)
				return err == nil && n == 1
			})
		}
		refuses := func() {
			t.Helper()
			_, err := replica.ExecContext(t.Context(), "INSERT INTO things VALUES ('lost')")
			var pg *pgconn.PgError
			var my *mysql.MySQLError
			readOnly := errors.As(err, &pg) && pg.Code == "25006" || errors.As(err, &my) && my.Number == 1290
			if !readOnly {
				t.Errorf("the replica answers a write with %v", err)
			}
		}
		shows("before")
		refuses()
		run(t, db, "INSERT INTO things VALUES ('after')")
		shows("after")
		r.Restart()
		run(t, db, "INSERT INTO things VALUES ('again')")
		shows("again")
		refuses()
	})
}

// The data are in the folder that was named, and belong to nobody once the test is over.
func TestIn(t *testing.T) {
	each(t, func(t *testing.T, k kind) {
		dir := t.TempDir()
		var s *Server
		t.Run("a test", func(t *testing.T) {
			s = k.in(t, dir)
			if err := open(t, k, s.DSN()).PingContext(t.Context()); err != nil {
				t.Error(err)
			}
			if filepath.Dir(s.data) != dir {
				t.Errorf("the data are in %s", s.data)
			}
			if len(living(t, s.data)) == 0 {
				t.Error("no process is found: the test shows nothing")
			}
			if k.driver == "pgx" {
				s.Kill() // which leaves its shared memory
			}
		})
		if pids := living(t, s.data); len(pids) > 0 {
			t.Errorf("the processes %v are still there", pids)
		}
		if k.driver == "pgx" {
			id := sharedMemory(s.data)
			if id == "" {
				t.Fatal("the server has noted no shared memory: the test shows nothing")
			}
			if all, err := os.ReadFile("/proc/sysvipc/shm"); err == nil {
				for line := range strings.Lines(string(all)) {
					if f := strings.Fields(line); len(f) > 1 && f[1] == id {
						t.Errorf("the shared memory %s is still there", id)
					}
				}
			}
		}
	})
}

// living lists the processes that work in a data folder.
func living(t *testing.T, data string) (pids []string) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cwd")
	if err != nil || len(all) == 0 {
		t.Skip("needs /proc")
	}
	for _, link := range all {
		if dir, err := os.Readlink(link); err == nil && strings.TrimSuffix(dir, " (deleted)") == data {
			pids = append(pids, filepath.Base(filepath.Dir(link)))
		}
	}
	return pids
}

// A server dies with the test process, though that is killed, and though the server is paused.
func TestDiesWithTheTest(t *testing.T) {
	if !child.DiesWithParent {
		t.Skip("children outlive a killed parent on this system")
	}
	each(t, func(t *testing.T, k kind) {
		for _, state := range []string{"running", "paused"} {
			t.Run(state, func(t *testing.T) {
				if os.Getenv(envVictim) != "" {
					s := k.start(t)
					db := open(t, k, s.DSN())
					if err := db.PingContext(t.Context()); err != nil {
						t.Fatal(err)
					}
					n := len(living(t, s.data))
					if state == "paused" {
						s.Pause()
					}
					fmt.Println("victim", n, s.data)
					_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
				}
				cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+strings.ReplaceAll(t.Name(), "/", "$/^")+"$")
				cmd.Env = append(os.Environ(), envVictim+"=1")
				out, _ := cmd.Output()
				var n int
				var data string
				_, line, _ := strings.Cut(string(out), "victim ")
				if _, err := fmt.Sscan(line, &n, &data); err != nil || n == 0 || !filepath.IsAbs(data) {
					t.Fatalf("the victim printed %q", out)
				}
				t.Cleanup(func() {
					(*postgres)(nil).gone(&Server{data: data})
					_ = os.RemoveAll(filepath.Dir(filepath.Dir(data)))
				})
				testenv.Await(t, "all processes of the server to be gone", func() bool { return len(living(t, data)) == 0 })
			})
		}
	})
}

// Data folders are copied from the one that was made first, and made where that fails.
func TestTemplate(t *testing.T) {
	k, root := kinds[0], t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "go.mod"), []byte("module github.com/idemq/idemq\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Chdir(root)
	start := func(what string) (data string) {
		t.Helper()
		s := k.start(t)
		if err := open(t, k, s.DSN()).PingContext(t.Context()); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		return s.data
	}
	start("nothing in the cache")
	templates, err := filepath.Glob(filepath.Join(root, ".cache", "sqltest", "*"))
	if err != nil || len(templates) != 1 {
		t.Fatalf("the cache holds %v, want one folder", templates)
	}
	if err := os.WriteFile(filepath.Join(templates[0], "mark"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(start("a copy"), "mark")); err != nil {
		t.Errorf("the second folder is no copy of the first: %v", err)
	}
	if err := syscall.Mkfifo(filepath.Join(templates[0], "no file"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(start("no copy can be made"), "mark")); err == nil {
		t.Error("a copy that failed has left something")
	}
	if err := os.RemoveAll(filepath.Dir(templates[0])); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Dir(templates[0]), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	start("nothing can be cached")
}

// recorder is a testing.TB that notes how a test was ended.
type recorder struct {
	testing.TB
	skipped, failed string
}

func (r *recorder) Helper()                           {}
func (r *recorder) Skip(args ...any)                  { r.skipped = fmt.Sprint(args...); panic(r) }
func (r *recorder) Fatal(args ...any)                 { r.failed = fmt.Sprint(args...); panic(r) }
func (r *recorder) Fatalf(format string, args ...any) { r.Fatal(fmt.Sprintf(format, args...)) }

// ended tells how call ends a test.
func ended(t *testing.T, call func(tb testing.TB)) (r *recorder) {
	t.Helper()
	r = &recorder{TB: t}
	defer func() {
		if p := recover(); p != nil && p != any(r) {
			panic(p)
		}
	}()
	call(r)
	return r
}

// A test without its server says what is missing and how to get it; one that was sent to
// the wrong place says so.
func TestMissing(t *testing.T) {
	t.Setenv(testenv.RequireServers, "")
	nowhere := t.TempDir()
	r := ended(t, func(tb testing.TB) { StartPostgres(tb, "7") })
	if want := "needs PostgreSQL 7: bash .ci/postgres 7, or name the folder of its programs in IDEM_POSTGRES_7, or make test"; r.skipped != want {
		t.Errorf("PostgreSQL 7: skipped %q, failed %q, want %q", r.skipped, r.failed, want)
	}
	t.Setenv("IDEM_POSTGRES_18", nowhere)
	for _, version := range []string{"18", ""} {
		t.Setenv("IDEM_POSTGRES_15", "")
		r = ended(t, func(tb testing.TB) { StartPostgres(tb, version) })
		if !strings.HasPrefix(r.failed, "IDEM_POSTGRES_18: "+nowhere) {
			t.Errorf("a wrong IDEM_POSTGRES_18, version %q: skipped %q, failed %q", version, r.skipped, r.failed)
		}
	}
	t.Setenv("IDEM_MARIADB", filepath.Join(nowhere, "mariadbd"))
	r = ended(t, func(tb testing.TB) { StartMariaDB(tb) })
	if !strings.HasPrefix(r.failed, "IDEM_MARIADB: ") {
		t.Errorf("a wrong IDEM_MARIADB: skipped %q, failed %q", r.skipped, r.failed)
	}
}

// A server that does not start says why.
func TestNotStarting(t *testing.T) {
	each(t, func(t *testing.T, k kind) {
		t.Run("a test", func(t *testing.T) {
			r := ended(t, func(tb testing.TB) { k.start(tb, strings.Replace(k.setting, "max", "nonsense", 1)) })
			if !strings.Contains(r.failed, "nonsense") {
				t.Errorf("failed with %q", r.failed)
			}
		})
	})
}
