package sqlstore_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/memstore"
	"github.com/idemq/idemq/idem/store/sqlstore"
	"github.com/idemq/idemq/internal/sqltest"
)

// over wants a handler's own failure, which says why, and a message that is not done.
func over(t *testing.T, g *idem.Guard, token string, err error, says string) {
	t.Helper()
	if err == nil || errors.Is(err, idem.ErrRolledBack) || errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), says) {
		t.Errorf("%s: %v", token, err)
	}
	r, err := g.Inspect(t.Context(), token)
	if err != nil || r.State == store.Done {
		t.Errorf("%s: state %v, %v", token, r.State, err)
	}
	if r.Spent == 0 {
		t.Errorf("%s: no budget was spent", token)
	}
}

// in runs statements in the handler's transaction, and passes over their errors.
func in(ctx context.Context, statements ...string) error {
	tx, err := sqlstore.Tx(ctx)
	if err != nil {
		return err
	}
	for _, s := range statements {
		_, _ = tx.ExecContext(ctx, s)
	}
	return nil
}

// A handler that ends its transaction by a statement, and returns nil, is not done.
func TestEndedByStatement(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, b backend) {
		db := b.database(t)
		effects(t, db)
		g := idem.New(idem.WithStore(b.store(t, db)))
		const insert = "INSERT INTO effects VALUES ('e')"
		for token, statements := range map[string][]string{
			"ROLLBACK":           {insert, "ROLLBACK"},
			"COMMIT":             {insert, "COMMIT"},
			"ROLLBACK and go on": {insert, "ROLLBACK", insert},
			"begun anew":         {insert, "ROLLBACK", "BEGIN", insert},
		} {
			err := g.Do(t.Context(), token, func(ctx context.Context) error { return in(ctx, statements...) })
			over(t, g, token, err, "ended before the handler returned")
		}
		if err := g.Do(t.Context(), "well", func(ctx context.Context) error { return in(ctx, insert) }); err != nil {
			t.Error(err)
		}
		if n := db.Stats().InUse; n != 0 {
			t.Errorf("%d connections were not given back", n)
		}
	})
}

// In MySQL DDL commits, and a deadlock rolls back, whatever the handler does next.
func TestEndedByMySQL(t *testing.T) {
	t.Parallel()
	db := mariadb.database(t)
	effects(t, db)
	run(t, db, "CREATE TABLE accounts (id int PRIMARY KEY, cents int)")
	run(t, db, "INSERT INTO accounts VALUES (1, 0), (2, 0)")
	run(t, db, "CREATE TABLE pad (id int PRIMARY KEY)")
	g := idem.New(idem.WithStore(mariadb.store(t, db)))
	err := g.Do(t.Context(), "DDL", func(ctx context.Context) error {
		return in(ctx, "INSERT INTO effects VALUES ('e')", "CREATE TABLE month_10 (n int)")
	})
	over(t, g, "DDL", err, "DDL (which in MySQL commits what was written before it)")

	err = g.Do(t.Context(), "deadlock", func(ctx context.Context) error {
		if err := in(ctx, "UPDATE accounts SET cents = cents - 100 WHERE id = 1"); err != nil {
			return err
		}
		other, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		for i := range 50 { // more work than the handler's: that is the victim
			if _, err := other.ExecContext(ctx, fmt.Sprintf("INSERT INTO pad VALUES (%d)", i)); err != nil {
				return err
			}
		}
		if _, err := other.ExecContext(ctx, "UPDATE accounts SET cents = cents WHERE id = 2"); err != nil {
			return err
		}
		done := make(chan error)
		go func() {
			_, err := other.ExecContext(ctx, "UPDATE accounts SET cents = cents WHERE id = 1")
			done <- errors.Join(err, other.Rollback())
		}()
		wait(t, 200*time.Millisecond)
		err = in(ctx, "UPDATE accounts SET cents = cents + 100 WHERE id = 2")
		return errors.Join(err, <-done)
	})
	over(t, g, "deadlock", err, "a deadlock, say")
}

// SQLite rolls the whole transaction back for some errors.
func TestEndedBySQLite(t *testing.T) {
	t.Parallel()
	db := sqlite.database(t)
	effects(t, db)
	run(t, db, "CREATE TABLE one (n int UNIQUE ON CONFLICT ROLLBACK)")
	run(t, db, "INSERT INTO one VALUES (1)")
	g := idem.New(idem.WithStore(sqlite.store(t, db)))
	err := g.Do(t.Context(), "conflict", func(ctx context.Context) error {
		return in(ctx, "INSERT INTO effects VALUES ('e')", "INSERT INTO one VALUES (1)")
	})
	over(t, g, "conflict", err, "ended before the handler returned")
	err = g.Do(t.Context(), "interrupt", func(ctx context.Context) error {
		if err := in(ctx, "INSERT INTO effects VALUES ('e')"); err != nil {
			return err
		}
		tx, err := sqlstore.Tx(ctx)
		if err != nil {
			return err
		}
		short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		_, err = tx.ExecContext(short, "INSERT INTO effects WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c LIMIT 1000000000) SELECT 'many' FROM c WHERE x < 0")
		if err == nil {
			return errors.New("not interrupted")
		}
		return nil
	})
	over(t, g, "interrupt", err, "ended before the handler returned")
	has(t, db, "e", 0)
}

// A handler that ends the transaction itself is told so.
func TestEndedByHandler(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, b backend) {
		db := b.database(t)
		effects(t, db)
		g := idem.New(idem.WithStore(b.store(t, db)))
		for token, end := range map[string]func(*sql.Tx) error{"Commit": (*sql.Tx).Commit, "Rollback": (*sql.Tx).Rollback} {
			err := g.Do(t.Context(), token, func(ctx context.Context) error {
				tx, err := sqlstore.Tx(ctx)
				if err != nil {
					return err
				}
				return end(tx)
			})
			over(t, g, token, err, "leave that to the library")
		}
	})
}

// A handler whose context has ended, and that returned nil, has not failed.
func TestEndedByContext(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, b backend) {
		db := b.database(t)
		effects(t, db)
		s := b.store(t, db)
		r := apply(t, s, begin("a", "c1"), 10*time.Second)
		op := terms(commit("a", "c1", r.Attempt))
		parent, cancel := context.WithCancel(t.Context())
		ctx, tx := s.Enlist(parent, op, func() {})
		if err := write(ctx, "e"); err != nil {
			t.Fatal(err)
		}
		cancel()
		err := tx.Commit(t.Context(), op)
		if errors.Is(err, store.ErrUnavailable) { // COMMIT itself was cut
			err = tx.Commit(t.Context(), op)
		}
		if !errors.Is(err, store.ErrRolledBack) {
			t.Errorf("Commit: %v", err)
		}
		state(t, s, "a", store.Running)
		has(t, db, "e", 0)
	})
}

// An adopted transaction must be open, and in the store's database.
func TestAdopted(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, b backend) {
		db, elsewhere := b.database(t), b.database(t)
		effects(t, db)
		effects(t, elsewhere)
		s := b.store(t, db)
		if err := b.store(t, elsewhere).Create(t.Context()); err != nil {
			t.Fatal(err)
		}
		var notices []string
		g := idem.New(idem.WithStore(s), idem.WithObserver(idem.ObserverFunc(func(e idem.Event) {
			if e.Kind == idem.EventStoreNotice {
				notices = append(notices, e.Text)
			}
		})))
		commitTx := func(token string, db *sql.DB, statements ...string) error {
			c, err := g.Begin(t.Context(), token)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.GiveBack(t.Context()) }()
			tx, err := db.BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, statement := range append([]string{"INSERT INTO effects VALUES ('" + token + "')"}, statements...) {
				if _, err := tx.ExecContext(t.Context(), statement); err != nil {
					t.Fatal(err)
				}
			}
			return sqlstore.CommitTx(t.Context(), tx, c)
		}
		for token, says := range map[string]string{"ROLLBACK": "was ended before", "COMMIT": "was ended before"} {
			if err := commitTx(token, db, token); err == nil || errors.Is(err, store.ErrRolledBack) || !strings.Contains(err.Error(), says) {
				t.Errorf("%s: %v", token, err)
			}
			if r, err := g.Inspect(t.Context(), token); err != nil || r.State == store.Done {
				t.Errorf("%s: %v, %v", token, r.State, err)
			}
		}
		if err := commitTx("elsewhere", elsewhere); err == nil || !strings.Contains(err.Error(), "of another database") {
			t.Errorf("a transaction of another database: %v", err)
		}
		has(t, elsewhere, "elsewhere", 0)
		if err := commitTx("here", db); err != nil {
			t.Error(err)
		}
		has(t, db, "here", 1)
		if len(notices) > 0 {
			t.Errorf("notices: %q", notices)
		}
	})
}

// A handler of an inner guard has no transaction of an outer one's.
func TestInnerTx(t *testing.T) {
	t.Parallel()
	db := sqlite.database(t)
	effects(t, db)
	outer, inner := idem.New(idem.WithStore(sqlite.store(t, db))), idem.New(idem.WithStore(memstore.New()))
	err := outer.Do(t.Context(), "outer", func(ctx context.Context) error {
		if err := inner.Do(ctx, "inner", func(ctx context.Context) error { return write(ctx, "inner") }); err == nil {
			t.Error("the inner handler found the outer one's transaction")
		}
		return write(ctx, "outer")
	})
	if err != nil {
		t.Error(err)
	}
	has(t, db, "outer", 1)
	has(t, db, "inner", 0)
}

// What an error means is the same before and after Rollback; a time limit of the
// handler's own is its own failure, and so is a result that it left open.
func TestRolledBack(t *testing.T) {
	t.Parallel()
	db := postgres15.database(t)
	effects(t, db)
	s := postgres15.store(t, db)
	for token, test := range map[string]struct {
		fail func(ctx context.Context, tx *sql.Tx) error
		want bool
	}{
		"lost": {func(ctx context.Context, tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, "SELECT pg_terminate_backend(pg_backend_pid())")
			return err
		}, true},
		"slow": {func(ctx context.Context, tx *sql.Tx) error {
			short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
			defer cancel()
			_, err := tx.ExecContext(short, "SELECT pg_sleep(5)")
			return err
		}, false},
		"refused": {func(ctx context.Context, tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, "SELECT 1/0")
			return err
		}, false},
	} {
		ctx, tx, _ := enlist(t, s, token, "c1", 10*time.Second)
		handlers, err := sqlstore.Tx(ctx)
		if err != nil {
			t.Fatal(err)
		}
		err = test.fail(ctx, handlers)
		if err == nil || tx.RolledBack(err) != test.want {
			t.Errorf("%s, before Rollback: %v", token, err)
		}
		tx.Rollback()
		if tx.RolledBack(err) != test.want {
			t.Errorf("%s, after Rollback: %v", token, err)
		}
	}
	full := postgres15.store(t, db)
	ctx, tx, _ := enlist(t, full, "full", "c1", 10*time.Second)
	_, other, _ := enlist(t, full, "other", "c1", 10*time.Second)
	db.SetMaxOpenConns(1)
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err = sqlstore.Tx(short); !tx.RolledBack(fmt.Errorf("no transaction: %w", err)) || other.RolledBack(err) {
		t.Errorf("a transaction that could not be opened: %v", err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
}

// Of rows that the handler left open the error tells, where they are in the way.
func TestOpenRows(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, b backend) {
		db := b.database(t)
		effects(t, db)
		run(t, db, "INSERT INTO effects VALUES ('1'), ('2'), ('3')")
		g := idem.New(idem.WithStore(b.store(t, db)))
		err := g.Do(t.Context(), "a", func(ctx context.Context) error {
			tx, err := sqlstore.Tx(ctx)
			if err != nil {
				return err
			}
			rows, err := tx.QueryContext(ctx, "SELECT name FROM effects") //nolint:rowserrcheck,sqlclosecheck // the point
			if err == nil {
				rows.Next()
			}
			return err
		})
		switch {
		case b.dialect == sqlstore.SQLite && err == nil:
		case b.dialect == sqlstore.MySQL: // a broken connection looks the same
			if err == nil || !strings.Contains(err.Error(), "Close its rows") {
				t.Errorf("Do: %v", err)
			}
		default:
			over(t, g, "a", err, "Close its rows")
		}
	})
}

// What became of a COMMIT is not known until it is certain.
func TestUnknownCommit(t *testing.T) {
	t.Parallel()
	db := postgres15.database(t)
	effects(t, db)
	run(t, db, slowCommit)
	s := postgres15.store(t, db)
	try := func(tx store.Tx, b *store.Batch, d time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), d)
		defer cancel()
		return tx.Commit(ctx, b)
	}
	ctx, tx, b := enlist(t, s, "a", "c1", 20*time.Second)
	if err := write(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	for range 4 {
		if err := try(tx, b, 100*time.Millisecond); !errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrRolledBack) {
			t.Errorf("Commit: %v", err)
		}
	}
	if err := try(tx, b, 20*time.Second); err != nil || b.Replies[0].Status != store.OK {
		t.Errorf("Commit: %v, %+v", err, b.Replies)
	}
	has(t, db, "a", 1)
	// Of a transaction without a claim it never is.
	none := terms()
	ctx, tx = s.Enlist(t.Context(), none, func() {})
	if err := write(ctx, "none"); err != nil {
		t.Fatal(err)
	}
	for _, d := range []time.Duration{100 * time.Millisecond, time.Second} {
		if err := try(tx, none, d); !errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrRolledBack) {
			t.Errorf("Commit without an operation: %v", err)
		}
	}
}

// A CommitTx whose outcome was not to be had is called again, and asks: the effect is there
// once, whichever transaction it is called with.
func TestCommitTxAgain(t *testing.T) {
	t.Parallel()
	server := sqltest.StartPostgres(t, "15")
	direct := open(t, "pgx", server.DSN())
	effects(t, direct)
	p := sqltest.StartProxy(t, server)
	db := open(t, "pgx", p.DSN())
	g := idem.New(idem.WithStore(postgres15.store(t, db)), idem.WithLease(time.Second))
	for _, how := range []sqltest.Cut{sqltest.CutBefore, sqltest.CutAfter} {
		for _, another := range []bool{false, true} {
			name := fmt.Sprintf("%v-%v", how, another)
			c, err := g.Begin(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			openTx := func() *sql.Tx {
				tx, err := db.BeginTx(t.Context(), nil)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := tx.ExecContext(t.Context(), "INSERT INTO effects VALUES ('"+name+"')"); err != nil {
					t.Fatal(err)
				}
				return tx
			}
			tx := openTx()
			p.CutNextCommit(how, name)
			done := make(chan error)
			go func() { done <- sqlstore.CommitTx(t.Context(), tx, c) }()
			<-p.Cuts()
			p.Cut()
			if err := <-done; !errors.Is(err, store.ErrUnavailable) {
				t.Errorf("%s: CommitTx while nothing answers: %v", name, err)
			}
			p.Restore()
			if another {
				tx = openTx()
			}
			err = sqlstore.CommitTx(t.Context(), tx, c)
			want := 0
			if how == sqltest.CutAfter {
				if want = 1; err != nil {
					t.Errorf("%s: CommitTx again: %v", name, err)
				}
			} else if !errors.Is(err, store.ErrRolledBack) {
				t.Errorf("%s: CommitTx again: %v", name, err)
			}
			has(t, direct, name, want)
			if how == sqltest.CutBefore {
				if err := sqlstore.CommitTx(t.Context(), openTx(), c); !errors.Is(err, store.ErrRolledBack) {
					t.Errorf("%s: CommitTx once more: %v", name, err)
				}
				has(t, direct, name, 0)
			}
		}
	}
}

// A transaction that was never begun is told, and ends no process.
func TestCommitTxOfNothing(t *testing.T) {
	for name, call := range map[string]func() error{
		"no transaction": func() error { return sqlstore.CommitTx(t.Context(), nil, new(idem.Claim)) },
		"no claim":       func() error { return sqlstore.CommitTx(t.Context(), new(sql.Tx), nil) },
	} {
		if err := call(); err == nil || !strings.Contains(err.Error(), "BeginTx") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// completion is a claim that the test's own batch completes.
type completion struct {
	s store.Store
	b *store.Batch
}

func (c completion) CommitWith(ctx context.Context, commit func(context.Context, store.Store, *store.Batch) error) error {
	return commit(ctx, c.s, c.b)
}

// A completion needs no connection beside its transaction's, also where the group's number
// is not in mind any more.
func TestOneConnection(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, b backend) {
		db := b.database(t)
		effects(t, db)
		first := b.store(t, db)
		for _, token := range []string{"own", "adopted"} {
			apply(t, first, begin(token, "c"), time.Minute)
		}
		db.SetMaxOpenConns(1)
		forgot := func() *sqlstore.Store { // as one does of many groups
			s := b.store(t, db)
			if err := s.Apply(t.Context(), terms()); err != nil {
				t.Fatal(err)
			}
			return s
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		s, batch := forgot(), terms(commit("own", "c", 1))
		handler, tx := s.Enlist(ctx, batch, func() {})
		if err := write(handler, "own"); err != nil {
			t.Fatal(err)
		}
		if err := tx.Commit(ctx, batch); err != nil || batch.Replies[0].Status != store.OK {
			t.Errorf("a handler's: %v, %+v", err, batch.Replies)
		}
		ctx, cancel = context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		claim := completion{forgot(), terms(commit("adopted", "c", 1))}
		adopted, err := db.BeginTx(ctx, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := sqlstore.CommitTx(ctx, adopted, claim); err != nil || claim.b.Replies[0].Status != store.OK {
			t.Errorf("CommitTx: %v, %+v", err, claim.b.Replies)
		}
		for _, token := range []string{"own", "adopted"} {
			state(t, s, token, store.Done)
		}
	})
}

// Whether a COMMIT that is under way will be there is not known either where the completion
// made the record, which nobody sees before.
func TestUnknownCommitOfAbsentRecord(t *testing.T) {
	t.Parallel()
	db := postgres15.database(t)
	effects(t, db)
	run(t, db, strings.ReplaceAll(slowCommit, "pg_sleep(0.7)", "pg_advisory_xact_lock_shared(1)"))
	s := postgres15.store(t, db)
	gate, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = gate.Rollback() }()
	if _, err := gate.ExecContext(t.Context(), "SELECT pg_advisory_xact_lock(1)"); err != nil {
		t.Fatal(err)
	}
	ctx, tx, b := enlist(t, s, "a", "c1", 20*time.Second)
	run(t, db, "DELETE FROM idemq_records") // as a sweep does, a retention later
	if err := write(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	first, leave := context.WithCancel(t.Context())
	defer leave()
	done := make(chan error)
	go func() { done <- tx.Commit(first, b) }()
	awaitWaiting(t, db, "advisory")
	leave()
	if err := <-done; !errors.Is(err, store.ErrUnavailable) {
		t.Fatalf("Commit without an answer: %v", err)
	}
	soon, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := tx.Commit(soon, b); !errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrRolledBack) {
		t.Errorf("Commit while the first is under way: %v, %+v", err, b.Replies)
	}
	if err := gate.Rollback(); err != nil {
		t.Fatal(err)
	}
	await(t, "an answer", func() bool { return tx.Commit(t.Context(), b) == nil })
	if b.Replies[0].Status != store.OK {
		t.Errorf("the answer is %+v", b.Replies)
	}
	has(t, db, "a", 1)
	state(t, s, "a", store.Done)
}

// A record that is not there is not made by asking about it.
func TestUnknownCommitIsForgotten(t *testing.T) {
	t.Parallel()
	for _, kind := range []struct {
		backend
		start func(testing.TB) *sqltest.Server
	}{
		{postgres15, func(tb testing.TB) *sqltest.Server { return sqltest.StartPostgres(tb, "15") }},
		{mariadb, func(tb testing.TB) *sqltest.Server { return sqltest.StartMariaDB(tb) }},
	} {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			server := kind.start(t)
			direct := open(t, kind.driver, server.DSN())
			effects(t, direct)
			p := sqltest.StartProxy(t, server)
			s := kind.store(t, open(t, kind.driver, p.DSN()))
			ctx, tx, b := enlist(t, s, "a", "c1", 20*time.Second)
			if err := write(ctx, "a"); err != nil {
				t.Fatal(err)
			}
			p.CutNextCommit(sqltest.CutAfter, "a")
			if err := tx.Commit(t.Context(), b); !errors.Is(err, store.ErrUnavailable) {
				t.Fatalf("Commit without an answer: %v", err)
			}
			await(t, "the commit", func() bool {
				var n int
				return direct.QueryRowContext(t.Context(), "SELECT COUNT(*) FROM effects").Scan(&n) == nil && n == 1
			})
			run(t, direct, "DELETE FROM idemq_records")
			if err := tx.Commit(t.Context(), b); err != nil || b.Replies[0].Status != store.Lost {
				t.Errorf("Commit when the record has gone: %v, %+v", err, b.Replies)
			}
			state(t, s, "a", 0)
		})
	}
}

// Where the context has ended too, the error still tells what a handler that ended its
// transaction itself may have left.
func TestEndedByHandlerAndContext(t *testing.T) {
	t.Parallel()
	db := sqlite.database(t)
	effects(t, db)
	s := sqlite.store(t, db)
	r := apply(t, s, begin("a", "c1"), 10*time.Second)
	op := terms(commit("a", "c1", r.Attempt))
	parent, cancel := context.WithCancel(t.Context())
	defer cancel()
	ctx, tx := s.Enlist(parent, op, func() {})
	if err := write(ctx, "e"); err != nil {
		t.Fatal(err)
	}
	handlers, err := sqlstore.Tx(ctx)
	if err == nil {
		err = handlers.Commit()
	}
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := tx.Commit(t.Context(), op); err == nil || !strings.Contains(err.Error(), "may be there") {
		t.Errorf("Commit: %v", err)
	}
	state(t, s, "a", store.Running)
}
