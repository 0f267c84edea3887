package inbox

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	_ "github.com/go-sql-driver/mysql"
	_ "github.com/jackc/pgx/v5/stdlib"
	_ "modernc.org/sqlite"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/rules"
	"github.com/idemq/idemq/internal/sqltest"
)

// envFill is how many rows TestExplain fills the table with; without it, it is skipped.
const envFill = "IDEM_SQL_FILL"

// filled is a table of records of so many rows that were done in the course of a day, with
// tokens in the order of time as UUIDv7's are.
type filled struct {
	*testing.T
	db   *sql.DB
	st   *statements
	rows int
}

func fill(t *testing.T, d Dialect, driver, dsn string) *filled {
	rows, err := strconv.Atoi(os.Getenv(envFill))
	if err != nil {
		t.Skip("set " + envFill + " to a number of rows, 5000000 say")
	}
	db, err := sql.Open(driver, dsn)
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	t.Cleanup(func() { _ = db.Close() })
	st, err := load(d, DefaultTables)
	if err != nil {
		t.Fatal(err)
	}
	schema, err := Schema(d, DefaultTables)
	if err != nil {
		t.Fatal(err)
	}
	f := &filled{T: t, db: db, st: st, rows: rows}
	for _, s := range split(schema) {
		f.exec(s)
	}
	return f
}

func (f *filled) exec(statement string) {
	f.Helper()
	if _, err := f.db.ExecContext(context.Background(), statement); err != nil {
		f.Fatalf("%.200s: %v", statement, err)
	}
}

func (f *filled) show(title, query string, params ...any) {
	f.Helper()
	rows, err := f.db.QueryContext(context.Background(), query, params...)
	if err != nil {
		f.Fatalf("%s: %v", title, err)
	}
	defer rows.Close()
	columns, _ := rows.Columns()
	var b strings.Builder
	for rows.Next() {
		values, dest := make([]sql.NullString, len(columns)), make([]any, len(columns))
		for i := range values {
			dest[i] = &values[i]
		}
		if err := rows.Scan(dest...); err != nil {
			f.Fatal(err)
		}
		b.WriteString("\n   ")
		for _, v := range values {
			b.WriteString(" " + v.String)
		}
	}
	if err := rows.Err(); err != nil {
		f.Fatalf("%s: %v", title, err)
	}
	f.Logf("%s%s", title, b.String())
}

// token is that of a row in the fill.
func (f *filled) token(n int) string {
	return fmt.Sprintf("%012x-7000-8000-%016x", 1_900_000_000_000+n*86_400_000/f.rows, n)
}

// operations are what is explained: the statements of some operations on tokens that are
// there, or after all others.
func (f *filled) operations(show func(title, name string, v values)) {
	at := int64(1_900_000_000_000_000)
	for _, n := range []int{1, 100} {
		var known, fresh []key
		var done, claimed [][]any
		for i := range n {
			known = append(known, key{1, f.token(f.rows/2 + i)})
			fresh = append(fresh, key{1, f.token(f.rows + n + i)})
			r := row{key: fresh[i], record: rules.Record{
				State: store.Running, Claim: "0123456789abcdefghij", Attempt: 1,
				Renewed: fromMicros(at), Lease: 10 * time.Second, Expires: fromMicros(at + 86_410_000_000),
			}}
			claimed = append(claimed, r.values(10*time.Second))
			r.stored, r.record.State, r.record.At = true, store.Done, fromMicros(at)
			done = append(done, r.values(10*time.Second))
		}
		each := func(title string) string { return fmt.Sprintf("%s, %d at once", title, n) }
		show(each("claim: look for absent rows"), "lock", values{"keys": keyTable(fresh), "idle": "10000", "now": at})
		f.write(show, each("claim: insert"), claimed, 1)
		show(each("commit: lock"), "lock", values{"keys": keyTable(fresh), "idle": "10000", "now": at})
		f.write(show, each("commit: update"), done, 0)
		show(each("duplicate"), "lock", values{"keys": keyTable(known), "idle": "10000", "now": at})
	}
	finish := values{
		"gid": int64(1), "token": []byte(f.token(f.rows)), "claim": "0123456789abcdefghij", "attempt": int64(1), "result": nil,
		"retention": int64(86_400_000_000), "slack": int64(3), "idle": "10000", "now": at,
	}
	show("completion in a handler's transaction", "finish", finish)
	due := f.due()
	show("sweep: what is due", "due_records", values{"due": due, "limit": int64(1000)})
	var gone []key
	for i := range 1000 {
		gone = append(gone, key{1, f.token(i)})
	}
	show("sweep: delete", "delete_records", values{"keys": keyTable(gone)})
}

func (f *filled) write(show func(string, string, values), title string, rows [][]any, fresh int64) {
	t := table{columns: recordColumns, rows: rows}
	name := "update"
	if fresh == 1 {
		name = "insert"
	}
	if f.st.dialect == Postgres {
		name = "write"
		t.columns = append([]string{"fresh"}, recordColumns...)
		for i, r := range rows {
			t.rows[i] = append([]any{fresh}, r...)
		}
	}
	show(title, name, values{"rows": t, "wait": int64(1)})
}

// due is when a thousandth of the rows is.
func (f *filled) due() (n int64) {
	f.Helper()
	err := f.db.QueryRowContext(context.Background(),
		fmt.Sprintf("SELECT due FROM idemq_records ORDER BY due LIMIT 1 OFFSET %d", f.rows/1000)).Scan(&n)
	if err != nil {
		f.Fatal(err)
	}
	return n
}

// The rows of the fill, with a number n from 0: gid, token, version, state, claim,
// attempt, expires, due, at.
const filling = `1, %[1]s, 1, 3, '0123456789abcdefghij', 1,
	1900086400000000 + %[2]s, (1900086400000000 + %[2]s) / 60000000 + 2, 1900000000000000 + %[2]s`

const filledColumns = "(gid, token, version, state, claim, attempt, expires, due, at)"

func TestExplainPostgres(t *testing.T) {
	if os.Getenv(envFill) == "" {
		t.Skip("set " + envFill + " to a number of rows, 5000000 say")
	}
	server := sqltest.StartPostgres(t, "15", "shared_buffers=1GB", "max_wal_size=8GB", "maintenance_work_mem=512MB")
	f := fill(t, Postgres, "pgx", server.DSN())
	start := time.Now()
	const token = `convert_to(lpad(to_hex(1900000000000 + n * 86400000 / %[1]d), 12, '0') || '-7000-8000-' || lpad(to_hex(n), 16, '0'), 'UTF8')`
	f.exec("INSERT INTO idemq_records " + filledColumns + " SELECT " +
		fmt.Sprintf(filling, fmt.Sprintf(token, f.rows), fmt.Sprintf("n * (86400000000 / %d)", f.rows)) +
		fmt.Sprintf(" FROM generate_series(0::bigint, %d) AS n", f.rows-1))
	t.Logf("%d rows in %v", f.rows, time.Since(start))
	f.exec("VACUUM ANALYZE idemq_records")
	const sizes = `SELECT c.relname, pg_size_pretty(pg_relation_size(c.oid)), round(pg_relation_size(c.oid) / r.reltuples::numeric, 1) || ' bytes a row'
		FROM pg_class c, pg_class r WHERE r.relname = 'idemq_records' AND c.relname IN ('idemq_records', 'idemq_records_pkey', 'idemq_records_due')`
	f.show("sizes", sizes)
	f.exec("CREATE INDEX plain ON idemq_records (expires)")
	f.show("for comparison, an index on expires itself",
		"SELECT pg_size_pretty(pg_relation_size('plain')), round(pg_relation_size('plain') / "+strconv.Itoa(f.rows)+".0, 1) || ' bytes a row'")
	f.exec("DROP INDEX plain")
	f.exec("SET plan_cache_mode = force_generic_plan")
	f.operations(func(title, name string, v values) {
		text, params := f.st.bind(name, v)
		f.exec("PREPARE explained AS " + text)
		given := make([]string, len(params))
		for i, p := range params {
			switch p := p.(type) {
			case string:
				given[i] = "'" + p + "'"
			case []byte:
				given[i] = fmt.Sprintf(`'\x%x'`, p)
			case int64:
				given[i] = strconv.FormatInt(p, 10)
			default:
				given[i] = "NULL"
			}
		}
		f.show(title, "EXPLAIN (ANALYZE, BUFFERS, COSTS OFF) EXECUTE explained ("+strings.Join(given, ", ")+")")
		f.exec("DEALLOCATE explained")
	})

	for _, fillfactor := range []int{90, 70, 50} {
		for _, size := range []int{1, 10, 100} {
			f.claimAndComplete(fillfactor, size)
		}
	}
	f.show("sizes then", sizes)
}

// claimAndComplete measures what of the updates from claim to completion is HOT, and how
// the table grows, with so many messages to a transaction.
func (f *filled) claimAndComplete(fillfactor, size int) {
	f.Helper()
	f.exec(fmt.Sprintf("ALTER TABLE idemq_records SET (fillfactor = %d)", fillfactor))
	f.exec("VACUUM ANALYZE idemq_records")
	f.exec("SELECT pg_stat_reset_single_table_counters('idemq_records'::regclass)")
	const messages = 20_000
	start := time.Now()
	for i := 0; i < messages; i += size {
		now := int64(1_900_100_000_000_000) + int64(i)*10_000
		var claimed, done [][]any
		for j := range size {
			r := row{key: key{1, f.token(f.rows*2 + fillfactor*10*messages + size*messages + i + j)}, record: rules.Record{
				State: store.Running, Claim: "0123456789abcdefghij", Attempt: 1,
				Renewed: fromMicros(now), Lease: 10 * time.Second, Expires: fromMicros(now + 86_410_000_000),
			}}
			claimed = append(claimed, r.values(10*time.Second))
			r.due = claimed[j][7].(int64)
			r.record.State, r.record.At, r.record.Expires = store.Done, fromMicros(now+500_000), fromMicros(now+86_400_500_000)
			done = append(done, r.values(10*time.Second))
		}
		run := func(_, name string, v values) {
			text, params := f.st.bind(name, v)
			f.drain(text, params...)
		}
		f.write(run, "", claimed, 1)
		f.write(run, "", done, 0)
	}
	took := time.Since(start)
	f.exec("SELECT pg_stat_force_next_flush()")
	f.show(fmt.Sprintf("fillfactor %d, %d messages at once, %v: updated, of them HOT", fillfactor, size, took.Round(time.Millisecond)),
		"SELECT n_tup_upd, round(100.0 * n_tup_hot_upd / n_tup_upd, 1) || ' %' FROM pg_stat_user_tables WHERE relname = 'idemq_records'")
}

func TestExplainMariaDB(t *testing.T) {
	if os.Getenv(envFill) == "" {
		t.Skip("set " + envFill + " to a number of rows, 5000000 say")
	}
	server := sqltest.StartMariaDB(t, "--innodb-buffer-pool-size=2G", "--innodb-log-file-size=1G", "--skip-log-bin")
	f := fill(t, MySQL, "mysql", server.DSN())
	const token = `CONCAT(LPAD(LOWER(HEX(1900000000000 + n * 86400000 DIV %[1]d)), 12, '0'), '-7000-8000-', LPAD(LOWER(HEX(n)), 16, '0'))`
	start := time.Now()
	f.exec("INSERT INTO idemq_records " + filledColumns + " SELECT " +
		strings.Replace(fmt.Sprintf(filling, fmt.Sprintf(token, f.rows), fmt.Sprintf("n * (86400000000 DIV %d)", f.rows)), "/ 60000000", "DIV 60000000", 1) +
		fmt.Sprintf(" FROM (SELECT seq AS n FROM seq_0_to_%d) AS s", f.rows-1))
	t.Logf("%d rows in %v", f.rows, time.Since(start))
	f.show("analyze", "ANALYZE TABLE idemq_records")
	f.show("sizes", "SELECT index_name, ROUND(stat_value * 16384 / 1048576), 'MB', ROUND(stat_value * 16384 / "+strconv.Itoa(f.rows)+
		", 1), 'bytes a row' FROM mysql.innodb_index_stats WHERE table_name = 'idemq_records' AND stat_name = 'size'")
	f.operations(func(title, name string, v values) {
		text, _ := f.st.bind(name, v)
		_, explained, ok := strings.Cut(text, "FOR */ ")
		if !ok {
			explained = text
		}
		f.show(title, "EXPLAIN "+explained)
		start := time.Now()
		if strings.HasPrefix(text, "(SELECT") || strings.HasPrefix(text, "SELECT") {
			f.drain(text)
		} else {
			f.exec(text)
		}
		t.Logf("    %v", time.Since(start))
	})
}

func (f *filled) drain(query string, params ...any) {
	f.Helper()
	rows, err := f.db.QueryContext(context.Background(), query, params...)
	if err != nil {
		f.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
	}
	if err := rows.Err(); err != nil {
		f.Fatal(err)
	}
}

func TestExplainSQLite(t *testing.T) {
	f := fill(t, SQLite, "sqlite", "file:"+filepath.Join(t.TempDir(), "inbox.db")+"?_pragma=journal_mode(wal)&_pragma=synchronous(off)")
	const token = `CAST(printf('%%012x-7000-8000-%%016x', 1900000000000 + n * 86400000 / %[1]d, n) AS BLOB)`
	start := time.Now()
	f.exec(fmt.Sprintf("WITH RECURSIVE s (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM s WHERE n < %d) INSERT INTO idemq_records ", f.rows-1) +
		filledColumns + " SELECT " + fmt.Sprintf(filling, fmt.Sprintf(token, f.rows), fmt.Sprintf("n * (86400000000 / %d)", f.rows)) + " FROM s")
	t.Logf("%d rows in %v", f.rows, time.Since(start))
	f.exec("ANALYZE")
	f.show("size in bytes", "SELECT page_count * page_size, page_count * page_size / "+strconv.Itoa(f.rows)+" || ' bytes a row' FROM pragma_page_count, pragma_page_size")
	f.operations(func(title, name string, v values) {
		text, _ := f.st.bind(name, v)
		f.show(title, "EXPLAIN QUERY PLAN "+text)
		start := time.Now()
		if strings.HasPrefix(text, "SELECT") {
			f.drain(text)
		} else {
			f.exec(text)
		}
		t.Logf("    %v", time.Since(start))
	})
}
