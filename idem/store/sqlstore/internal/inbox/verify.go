package inbox

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/idemq/idemq/idem/store"
)

// Verify implements store.Store.
func (s *Store) Verify(ctx context.Context) ([]store.Finding, error) {
	if s.err != nil {
		return nil, s.err
	}
	if s.config.Create {
		if err := s.prepare(ctx); err != nil {
			return nil, err
		}
	}
	if _, err := s.readMeta(ctx); err != nil {
		return nil, s.failure("looking at the schema", err)
	}
	v := verification{s: s, ctx: ctx}
	switch s.config.Dialect {
	case Postgres:
		v.postgres()
	case MySQL:
		v.mysql()
	default:
		v.sqlite()
	}
	v.pool()
	if v.err != nil {
		return nil, s.failure("checking the server", v.err)
	}
	if err := s.tryWriting(ctx); err != nil {
		return nil, s.failure("trying the user's rights on the tables", err)
	}
	return v.found, nil
}

// tryWriting executes statements that touch no row, and need every right.
func (s *Store) tryWriting(ctx context.Context) error {
	return s.persist(ctx, func() error {
		return s.mark(s.tryTables(ctx))
	})
}

func (s *Store) tryTables(ctx context.Context) error {
	tx, err := s.db.Begin(ctx, s.statements.begin)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	columns := map[string]string{
		"groups": "prefix", "records": "attempt", "leases": "lease", "issued": "version", "instances": "n",
	}
	for _, t := range tables[1:] {
		name, column := s.config.Tables+t, columns[t]
		for _, right := range []string{"SELECT", "INSERT", "UPDATE", "DELETE"} {
			if t == "groups" && (right == "UPDATE" || right == "DELETE") {
				continue
			}
			statement := map[string]string{
				"SELECT": "SELECT " + column + " FROM " + name + " WHERE 1 = 0",
				"INSERT": "INSERT INTO " + name + " SELECT * FROM " + name + " WHERE 1 = 0",
				"UPDATE": "UPDATE " + name + " SET " + column + " = " + column + " WHERE 1 = 0",
				"DELETE": "DELETE FROM " + name + " WHERE 1 = 0",
			}[right]
			if _, err := tx.Exec(ctx, statement); err != nil {
				if s.kind(err) == denied {
					return fmt.Errorf("the user may not %s %s: GRANT %s ON %s: %w", right, name, right, name, err)
				}
				return err
			}
		}
	}
	return nil
}

// forgets is what comes of a database that loses commits.
const forgets = "Completions and the effects that were committed with them can be lost after their messages were acknowledged."

// verification is one Verify.
type verification struct {
	s     *Store
	ctx   context.Context //nolint:containedctx // lives as long as one call
	found []store.Finding
	err   error
}

func (v *verification) add(id, what, consequence, cure string) {
	v.found = append(v.found, store.Finding{ID: id, What: what, Consequence: consequence, Cure: cure})
}

// ask executes a query and returns its rows, all columns as text.
func (v *verification) ask(statement string, columns int) (list [][]string) {
	if v.err != nil {
		return nil
	}
	rows, err := v.s.db.Query(v.ctx, statement)
	if err != nil {
		v.err = err
		return nil
	}
	defer rows.Close()
	for rows.Next() {
		values, dest := make([]string, columns), make([]any, columns)
		for i := range values {
			dest[i] = &values[i]
		}
		if v.err = rows.Scan(dest...); v.err != nil {
			return nil
		}
		list = append(list, values)
	}
	v.err = rows.Err()
	return list
}

// settings asks for names and values.
func (v *verification) settings(statement string) map[string]string {
	m := make(map[string]string)
	for _, r := range v.ask(statement, 2) {
		m[strings.ToLower(r[0])] = strings.ToLower(r[1])
	}
	return m
}

// pool looks at the size of the pool, if that can be had.
func (v *verification) pool() {
	db, ok := v.s.db.(interface{ MaxConns() int })
	if !ok || v.s.config.Dialect == SQLite {
		return
	}
	if n := db.MaxConns(); n == 1 || n == 2 {
		v.add("sql-pool", "The pool has at most "+plural(n, "connection")+": the store uses up to two for a guard, and one for each handler that has called Tx.",
			"Renewals wait for handlers, whose leases run out meanwhile, and handlers for each other.",
			"Let the pool open as many connections as handlers run at once, and two more.")
	}
}

func (v *verification) postgres() {
	is := v.settings(`SELECT name, setting FROM pg_settings WHERE name IN
		('server_version_num', 'transaction_read_only', 'synchronous_commit', 'fsync', 'full_page_writes', 'autovacuum', 'track_counts')
		UNION ALL SELECT 'recovery', pg_is_in_recovery()::text`)
	if v.err != nil {
		return
	}
	if n, err := strconv.Atoi(is["server_version_num"]); err == nil && n < 150000 {
		v.err = fmt.Errorf("the server is PostgreSQL %d: the store needs 15 or later", n/10000)
		return
	}
	switch {
	case is["recovery"] == "true":
		v.err = fmt.Errorf("the server is a hot standby and takes no writes: connect to the primary (target_session_attrs=read-write chooses it)")
		return
	case is["transaction_read_only"] == "on":
		v.err = fmt.Errorf("transactions are read-only here (default_transaction_read_only): set it to off for this user or database")
		return
	}
	if is["fsync"] == "off" {
		v.add("sql-fsync", "PostgreSQL runs with fsync off.",
			"A crash of its machine can lose everything, and damage the database.", "Set fsync to on.")
	}
	if is["synchronous_commit"] == "off" {
		v.add("sql-synchronous-commit", "PostgreSQL answers COMMIT before it is on disk (synchronous_commit is off).",
			forgets, "Set synchronous_commit to on, for this user or database at least.")
	}
	off := is["autovacuum"] == "off" || is["track_counts"] == "off"
	for _, r := range v.ask(`SELECT COALESCE(array_to_string(reloptions, ','), ''), '' FROM pg_class WHERE oid = '`+v.s.config.Tables+`records'::regclass`, 2) {
		off = off || strings.Contains(r[0], "autovacuum_enabled=false") || strings.Contains(r[0], "autovacuum_enabled=off")
	}
	if off {
		v.add("sql-autovacuum", "Autovacuum is off for the tables of the inbox.",
			"Deleted rows keep their place, and the tables grow and get slower without bound.", "Set autovacuum and track_counts to on.")
	}
}

func (v *verification) mysql() {
	is := v.settings(`SHOW VARIABLES WHERE Variable_name IN ('version', 'read_only', 'super_read_only', 'innodb_flush_log_at_trx_commit',
		'log_bin', 'sync_binlog', 'sql_mode', 'innodb_doublewrite', 'innodb_read_only')`)
	if v.err != nil {
		return
	}
	if old(is["version"]) {
		v.err = fmt.Errorf("the server is %s: the store needs MySQL 8.0 or later, or MariaDB 10.11 or later", is["version"])
		return
	}
	for _, name := range []string{"super_read_only", "innodb_read_only"} {
		if is[name] == "on" || is[name] == "1" {
			v.err = fmt.Errorf("the server takes no writes (%s is on): connect to the primary", name)
			return
		}
	}
	if is["read_only"] == "on" || is["read_only"] == "1" { // some users may write all the same
		if err := v.s.tryWriting(v.ctx); err != nil {
			v.err = fmt.Errorf("the server takes no writes (read_only is on): connect to the primary: %w", err)
			return
		}
	}
	if n := is["innodb_flush_log_at_trx_commit"]; n != "1" && n != "3" {
		v.add("sql-flush-log", "MySQL answers COMMIT before it is on disk (innodb_flush_log_at_trx_commit is "+n+").",
			forgets, "Set innodb_flush_log_at_trx_commit to 1.")
	}
	if is["log_bin"] == "on" && is["sync_binlog"] == "0" {
		v.add("sql-sync-binlog", "The binary log is written to disk at some time after COMMIT (sync_binlog is 0).",
			"After a crash of its machine the replicas may have less than was committed, or more: a failover to one forgets tokens.", "Set sync_binlog to 1.")
	}
	if !strings.Contains(is["sql_mode"], "strict_") {
		v.add("sql-strict", "The sql_mode has neither STRICT_TRANS_TABLES nor STRICT_ALL_TABLES.",
			"The server stores what fits of a value that is too long, of handlers' effects among others, and says nothing.",
			"Add STRICT_TRANS_TABLES to sql_mode.")
	}
	schema, prefix := "DATABASE()", v.s.config.Tables
	if i := strings.IndexByte(prefix, '.'); i >= 0 {
		schema, prefix = "'"+prefix[:i]+"'", prefix[i+1:]
	}
	for _, t := range tables {
		for _, r := range v.ask("SELECT TABLE_NAME, COALESCE(ENGINE, '') FROM information_schema.TABLES WHERE TABLE_SCHEMA = "+schema+
			" AND TABLE_NAME = '"+prefix+t+"'", 2) {
			if !strings.EqualFold(r[1], "InnoDB") {
				v.err = fmt.Errorf("the table %s has the engine %s, which has no transactions: ALTER TABLE %s ENGINE = InnoDB", r[0], r[1], r[0])
				return
			}
		}
	}
}

// old tells whether a MySQL or MariaDB is too old: both need SKIP LOCKED, of MySQL 8.0 and
// MariaDB 10.6, and MariaDB is tested from 10.11 on.
func old(version string) bool {
	parts := strings.SplitN(version, ".", 3)
	major, err := strconv.Atoi(parts[0])
	if err != nil || len(parts) < 2 {
		return false
	}
	minor, _ := strconv.Atoi(parts[1])
	if strings.Contains(version, "mariadb") {
		return major < 10 || major == 10 && minor < 11
	}
	return major < 8
}

func (v *verification) sqlite() {
	for _, r := range v.ask("SELECT file, '' FROM pragma_database_list WHERE name = 'main'", 2) {
		if r[0] == "" {
			v.err = fmt.Errorf("the database is in memory, and each connection of a pool has one of its own: give it a file")
			return
		}
	}
	one := func(pragma string) string {
		for _, r := range v.ask("PRAGMA "+pragma, 1) {
			return strings.ToLower(r[0])
		}
		return ""
	}
	if mode := one("journal_mode"); v.err == nil && mode != "wal" {
		v.add("sql-journal-mode", "SQLite's journal_mode is "+mode+", not WAL.",
			"Reading and writing exclude each other: while a handler's transaction commits nobody reads, and it waits for readers.",
			"Open the database with _pragma=journal_mode(wal).")
	}
	if level := one("synchronous"); v.err == nil && slices.Contains([]string{"0", "off"}, level) {
		v.add("sql-synchronous", "SQLite does not wait for the disk (synchronous is OFF).",
			"A crash of the machine can lose what was committed, and damage the database.", "Open the database with _pragma=synchronous(full).")
	} else if v.err == nil && level == "1" && one("journal_mode") == "wal" {
		v.add("sql-synchronous", "SQLite does not wait for the disk at each commit (synchronous is NORMAL).",
			forgets, "Open the database with _pragma=synchronous(full).")
	}
	if timeout := one("busy_timeout"); v.err == nil && timeout == "0" {
		v.add("sql-busy-timeout", "SQLite's busy_timeout is 0.",
			"Handlers' own statements fail at once while somebody else writes.", "Open the database with _pragma=busy_timeout(5000).")
	}
}
