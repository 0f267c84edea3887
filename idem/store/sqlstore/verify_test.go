package sqlstore_test

import (
	"database/sql"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/sqlstore"
	"github.com/idemq/idemq/internal/sqltest"
)

func find(t *testing.T, s store.Store, want ...string) {
	t.Helper()
	found, err := s.Verify(t.Context(), "p")
	if err != nil {
		t.Errorf("Verify: %v", err)
		return
	}
	var ids []string
	for _, f := range found {
		ids = append(ids, f.ID)
		t.Log(f)
	}
	if !slices.Equal(ids, want) {
		t.Errorf("found %v, want %v", ids, want)
	}
}

// refuses wants an error that says what to do, and is no outage.
func refuses(t *testing.T, err error, says ...string) {
	t.Helper()
	if err == nil || errors.Is(err, store.ErrUnavailable) {
		t.Errorf("the error is %v", err)
		return
	}
	t.Log(err)
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("the error does not say %q: %v", s, err)
		}
	}
}

func verify(t *testing.T, s store.Store) error {
	t.Helper()
	_, err := s.Verify(t.Context(), "p")
	return err
}

func TestVerifyPostgres(t *testing.T) {
	t.Parallel()
	server := sqltest.StartPostgres(t, "18", "fsync=on", "wal_level=replica")
	db := open(t, "pgx", server.DSN())
	s := sqlstore.New(db, sqlstore.Postgres)
	refuses(t, verify(t, s), "idemq_", "Create")
	refuses(t, s.Apply(t.Context(), terms(begin("a", "c"))), "idemq_", "Create", "sqlstore.Schema")
	if err := s.Create(t.Context()); err != nil {
		t.Fatal(err)
	}
	find(t, s)
	for _, c := range []struct{ setting, id string }{
		{"ALTER DATABASE postgres SET synchronous_commit = off", "sql-synchronous-commit"},
		{"ALTER SYSTEM SET autovacuum = off", "sql-autovacuum"},
		{"ALTER TABLE idemq_records SET (autovacuum_enabled = false)", "sql-autovacuum"},
	} {
		run(t, db, c.setting)
		run(t, db, "SELECT pg_reload_conf()")
		other := open(t, "pgx", server.DSN())
		await(t, c.id, func() bool {
			f, err := sqlstore.New(other, sqlstore.Postgres).Verify(t.Context(), "p")
			return err == nil && len(f) > 0
		})
		find(t, sqlstore.New(other, sqlstore.Postgres), c.id)
		run(t, db, "ALTER DATABASE postgres RESET synchronous_commit")
		run(t, db, "ALTER SYSTEM RESET ALL")
		run(t, db, "ALTER TABLE idemq_records RESET (autovacuum_enabled)")
		run(t, db, "SELECT pg_reload_conf()")
		await(t, "the setting to go", func() bool {
			f, err := sqlstore.New(open(t, "pgx", server.DSN()), sqlstore.Postgres).Verify(t.Context(), "p")
			return err == nil && len(f) == 0
		})
	}

	find(t, sqlstore.New(open(t, "pgx", sqltest.StartPostgres(t, "15").DSN()), sqlstore.Postgres, sqlstore.WithCreate()), "sql-fsync") // as tests run it

	// Each right is missed, by name.
	run(t, db, "CREATE ROLE app LOGIN")
	run(t, db, "GRANT SELECT ON idemq_meta TO app")
	app := sqlstore.New(open(t, "pgx", strings.Replace(server.DSN(), "postgres@", "app@", 1)), sqlstore.Postgres)
	rights := []struct{ right, on string }{
		{"SELECT", "idemq_groups"}, {"INSERT", "idemq_groups"},
	}
	for _, table := range []string{"idemq_records", "idemq_leases", "idemq_issued", "idemq_instances"} {
		for _, right := range []string{"SELECT", "INSERT", "UPDATE", "DELETE"} {
			rights = append(rights, struct{ right, on string }{right, table})
		}
	}
	for _, r := range rights {
		refuses(t, verify(t, app), "GRANT "+r.right+" ON "+r.on)
		run(t, db, "GRANT "+r.right+" ON "+r.on+" TO app")
	}
	find(t, app)
	if r := apply(t, app, begin("a", "c"), time.Hour); r.Status != store.Claimed {
		t.Errorf("Begin with no more than these rights: %+v", r)
	}
	if err := app.Create(t.Context()); err == nil {
		t.Error("Create without the right to")
	} else {
		refuses(t, err, "CREATE")
	}

	replica := server.StartReplica(t)
	standby := sqlstore.New(open(t, "pgx", replica.DSN()), sqlstore.Postgres)
	await(t, "the replica", func() bool {
		_, err := standby.Verify(t.Context(), "p")
		return err == nil || !strings.Contains(err.Error(), "Create")
	})
	refuses(t, verify(t, standby), "standby", "primary")
	refuses(t, standby.Apply(t.Context(), terms(begin("a", "c2"))), "primary")
	if r := apply(t, s, begin("a", "c2"), time.Hour); r.Status != store.InProgress {
		t.Errorf("the primary: %+v", r)
	}
}

func TestVerifyMariaDB(t *testing.T) {
	t.Parallel()
	server := sqltest.StartMariaDB(t, "--sync-binlog=1")
	db := open(t, "mysql", server.DSN())
	s := sqlstore.New(db, sqlstore.MySQL)
	refuses(t, verify(t, s), "Create")
	refuses(t, s.Apply(t.Context(), terms(begin("a", "c"))), "idemq_", "Create", "sqlstore.Schema")
	if err := s.Create(t.Context()); err != nil {
		t.Fatal(err)
	}
	find(t, s)
	for _, c := range []struct{ set, reset, id string }{
		{"SET GLOBAL innodb_flush_log_at_trx_commit = 2", "SET GLOBAL innodb_flush_log_at_trx_commit = 1", "sql-flush-log"},
		{"SET GLOBAL sync_binlog = 0", "SET GLOBAL sync_binlog = 1", "sql-sync-binlog"},
		{"SET GLOBAL sql_mode = ''", "SET GLOBAL sql_mode = DEFAULT", "sql-strict"},
	} {
		run(t, db, c.set)
		find(t, sqlstore.New(open(t, "mysql", server.DSN()), sqlstore.MySQL), c.id)
		run(t, db, c.reset)
	}
	run(t, db, "ALTER TABLE idemq_leases ENGINE = MyISAM")
	refuses(t, verify(t, s), "ALTER TABLE idemq_leases ENGINE = InnoDB")
	run(t, db, "ALTER TABLE idemq_leases ENGINE = InnoDB")

	run(t, db, "CREATE USER app")
	run(t, db, "GRANT SELECT ON test.idemq_meta TO app")
	app := sqlstore.New(open(t, "mysql", strings.Replace(server.DSN(), "root@", "app@", 1)), sqlstore.MySQL)
	for _, table := range []string{"idemq_groups", "idemq_records", "idemq_leases", "idemq_issued", "idemq_instances"} {
		for _, right := range []string{"SELECT", "INSERT", "UPDATE", "DELETE"} {
			if table == "idemq_groups" && (right == "UPDATE" || right == "DELETE") {
				continue
			}
			refuses(t, verify(t, app), "GRANT "+right+" ON "+table)
			run(t, db, "GRANT "+right+" ON test."+table+" TO app")
		}
	}
	find(t, app)
	if r := apply(t, app, begin("a", "c"), time.Hour); r.Status != store.Claimed {
		t.Errorf("Begin with no more than these rights: %+v", r)
	}

	replica := server.StartReplica(t)
	follower := sqlstore.New(open(t, "mysql", replica.DSN()), sqlstore.MySQL)
	await(t, "the replica", func() bool {
		_, err := follower.Verify(t.Context(), "p")
		return err == nil || !strings.Contains(err.Error(), "Create")
	})
	refuses(t, verify(t, follower), "primary")
	refuses(t, follower.Apply(t.Context(), terms(begin("a", "c2"))), "primary")
}

func TestVerifySQLite(t *testing.T) {
	t.Parallel()
	file := sqliteFile(t)
	db := open(t, "sqlite", file)
	s := sqlstore.New(db, sqlstore.SQLite)
	refuses(t, verify(t, s), "Create")
	if err := s.Create(t.Context()); err != nil {
		t.Fatal(err)
	}
	find(t, s)
	plain, _, _ := strings.Cut(file, "?")
	find(t, sqlstore.New(open(t, "sqlite", file+"&_pragma=synchronous(off)"), sqlstore.SQLite), "sql-synchronous")
	find(t, sqlstore.New(open(t, "sqlite", plain), sqlstore.SQLite), "sql-busy-timeout")
	plain, _, _ = strings.Cut(sqliteFile(t), "?")
	find(t, sqlstore.New(open(t, "sqlite", plain+"?_pragma=busy_timeout(1000)"), sqlstore.SQLite, sqlstore.WithCreate()), "sql-journal-mode")
	memory := open(t, "sqlite", ":memory:")
	memory.SetMaxOpenConns(1)
	refuses(t, verify(t, sqlstore.New(memory, sqlstore.SQLite, sqlstore.WithCreate())), "in memory")
	refuses(t, sqlstore.New(open(t, "sqlite", file+"&mode=ro"), sqlstore.SQLite).Apply(t.Context(), terms(begin("a", "c"))), "not writable")
}

// What New is given wrongly, every call says, all at once.
func TestNew(t *testing.T) {
	t.Parallel()
	s := sqlstore.New(nil, 7, sqlstore.WithTables("x; DROP"))
	err := s.Apply(t.Context(), terms())
	refuses(t, err, "unknown dialect 7", "the database is nil")
	for _, tables := range []string{"", "inbox.idemq_", "a"} {
		if sqlstore.Schema(sqlstore.Postgres, sqlstore.WithTables(tables)) == "" {
			t.Errorf("no schema for %q", tables)
		}
	}
	for _, tables := range []string{"x; DROP", "a.b.c", "a-b", strings.Repeat("a", 60), "'"} {
		if got := sqlstore.Schema(sqlstore.Postgres, sqlstore.WithTables(tables)); got != "" {
			t.Errorf("a schema for %q: %s", tables, got)
		}
		refuses(t, sqlstore.New(new(sql.DB), sqlstore.MySQL, sqlstore.WithTables(tables)).Apply(t.Context(), terms()), "letters")
	}
}
