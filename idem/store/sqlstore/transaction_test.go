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
	"github.com/idemq/idemq/idem/store/sqlstore"
	"github.com/idemq/idemq/internal/sqltest"
	"github.com/idemq/idemq/internal/testenv"
)

// effects makes the table that handlers write to.
func effects(t *testing.T, db *sql.DB) {
	t.Helper()
	run(t, db, "CREATE TABLE effects (name varchar(40))")
}

func run(t *testing.T, db *sql.DB, statement string) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

// write is a handler's effect.
func write(ctx context.Context, name string) error {
	tx, err := sqlstore.Tx(ctx)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, "INSERT INTO effects VALUES ('"+name+"')")
	return err
}

// has wants so many effects of a name.
func has(t *testing.T, db *sql.DB, name string, want int) {
	t.Helper()
	n := 0
	if err := db.QueryRowContext(t.Context(), "SELECT COUNT(*) FROM effects WHERE name = '"+name+"'").Scan(&n); err != nil {
		t.Fatal(err)
	}
	if n != want {
		t.Errorf("the effect %q is there %d times, want %d", name, n, want)
	}
}

func terms(ops ...store.Op) *store.Batch {
	return &store.Batch{Prefix: "p", Lease: 10 * time.Second, Retention: time.Hour, CheckWithin: time.Hour, Ops: ops}
}

func begin(token, claim string) store.Op {
	return store.Op{Kind: store.Begin, Group: "g", Token: token, Claim: claim}
}

func commit(token, claim string, attempt int) store.Op {
	return store.Op{Kind: store.Commit, Group: "g", Token: token, Claim: claim, Attempt: attempt}
}

func renew(token, claim string) store.Op {
	return store.Op{Kind: store.Renew, Group: "g", Token: token, Claim: claim}
}

func inspect(token string) store.Op {
	return store.Op{Kind: store.Inspect, Group: "g", Token: token}
}

// apply executes one operation.
func apply(t *testing.T, s store.Store, op store.Op, lease time.Duration) store.Reply {
	t.Helper()
	b := terms(op)
	b.Lease = lease
	if err := s.Apply(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	return b.Replies[0]
}

// enlist begins a claim and prepares the run of its handler.
func enlist(t *testing.T, s store.Transactor, token, claim string, lease time.Duration) (context.Context, store.Tx, *store.Batch) {
	t.Helper()
	r := apply(t, s, begin(token, claim), lease)
	if r.Status != store.Claimed {
		t.Fatalf("Begin: %+v", r)
	}
	b := terms(commit(token, claim, r.Attempt))
	b.Lease = lease
	ctx, tx := s.Enlist(t.Context(), b, func() {})
	return ctx, tx, b
}

func state(t *testing.T, s store.Store, token string, want store.State) {
	t.Helper()
	if r := apply(t, s, inspect(token), time.Second).Record; r.State != want {
		t.Errorf("token %s is %v, want %v", token, r.State, want)
	}
}

// levels are the isolation levels that a backend's handlers may use.
func (b backend) levels() []sql.IsolationLevel {
	if b.dialect == sqlstore.SQLite {
		return []sql.IsolationLevel{sql.LevelDefault}
	}
	return []sql.IsolationLevel{sql.LevelReadCommitted, sql.LevelRepeatableRead, sql.LevelSerializable}
}

// eachLevel runs a test on every backend, at every level.
func eachLevel(t *testing.T, on []backend, test func(t *testing.T, b backend, db *sql.DB, s *sqlstore.Store)) {
	t.Helper()
	for _, b := range on {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			db := b.database(t)
			effects(t, db)
			for _, level := range b.levels() {
				t.Run(level.String(), func(t *testing.T) {
					run(t, db, "DELETE FROM effects")
					s := b.store(t, db, sqlstore.WithTables(fmt.Sprintf("level%d_", level)), sqlstore.WithTxOptions(sql.TxOptions{Isolation: level}))
					test(t, b, db, s)
				})
			}
		})
	}
}

// A handler's effect is there if and only if its token is done.
func TestTx(t *testing.T) {
	t.Parallel()
	eachLevel(t, backends, func(t *testing.T, _ backend, db *sql.DB, s *sqlstore.Store) {
		g := idem.New(idem.WithStore(s))
		errBoom := errors.New("boom")
		err := g.Do(t.Context(), "a", func(ctx context.Context) error {
			if err := write(ctx, "failed"); err != nil {
				return err
			}
			return errBoom
		})
		if !errors.Is(err, errBoom) {
			t.Errorf("Do: %v", err)
		}
		has(t, db, "failed", 0)
		for i := range 3 {
			err := g.Do(t.Context(), "a", func(ctx context.Context) error {
				first, err := sqlstore.Tx(ctx)
				if err != nil {
					return err
				}
				if second, err := sqlstore.Tx(ctx); err != nil || first != second {
					t.Errorf("a second transaction in one handler: %v", err)
				}
				return write(ctx, "once")
			})
			if i == 0 && err != nil || i > 0 && !errors.Is(err, idem.ErrDuplicate) {
				t.Errorf("Do %d: %v", i, err)
			}
		}
		has(t, db, "once", 1)
		if _, err := sqlstore.Tx(t.Context()); err == nil {
			t.Error("a transaction outside of a handler")
		}
		c, err := g.Begin(t.Context(), "panics")
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(write(c.Context(), "given back"), c.Release(t.Context())); err != nil {
			t.Error(err)
		}
		has(t, db, "given back", 0)
		if n := db.Stats().InUse; n != 0 {
			t.Errorf("%d connections were not given back", n)
		}
	})
}

// Renewals leave the record as it is, so that a transaction with an older snapshot can
// complete it.
func TestRenewedTx(t *testing.T) {
	t.Parallel()
	eachLevel(t, []backend{postgres15, mariadb}, func(t *testing.T, _ backend, db *sql.DB, s *sqlstore.Store) {
		ctx, tx, b := enlist(t, s, "a", "c1", 10*time.Second)
		if err := write(ctx, "renewed"); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if r := apply(t, s, renew("a", "c1"), 10*time.Second); r.Status != store.OK {
				t.Errorf("Renew: %+v", r)
			}
		}
		if r := apply(t, s, begin("a", "c2"), time.Second); r.Status != store.InProgress {
			t.Errorf("Begin by another: %+v", r)
		}
		if err := tx.Commit(t.Context(), b); err != nil || b.Replies[0].Status != store.OK {
			t.Errorf("Commit: %v, %+v", err, b.Replies)
		}
		has(t, db, "renewed", 1)
		state(t, s, "a", store.Done)
	})
}

// A consumer that lost its claim rolls its effect back.
func TestLostTx(t *testing.T) {
	t.Parallel()
	eachLevel(t, []backend{postgres15, mariadb}, func(t *testing.T, _ backend, db *sql.DB, s *sqlstore.Store) {
		for _, finished := range []bool{false, true} {
			token := fmt.Sprint("lost", finished)
			ctx, tx, b := enlist(t, s, token, "c1", 50*time.Millisecond)
			if err := write(ctx, token); err != nil {
				t.Fatal(err)
			}
			wait(t, 60*time.Millisecond)
			ctx2, tx2, b2 := enlist(t, s, token, "c2", 10*time.Second)
			if err := write(ctx2, "by the other"); err != nil {
				t.Fatal(err)
			}
			if finished {
				if err := tx2.Commit(t.Context(), b2); err != nil {
					t.Fatal(err)
				}
			}
			switch err := tx.Commit(t.Context(), b); {
			case errors.Is(err, store.ErrRolledBack):
				if again := tx.Commit(t.Context(), b); !errors.Is(again, store.ErrRolledBack) {
					t.Errorf("Commit again: %v", again)
				}
			case err != nil || b.Replies[0].Status != store.Lost:
				t.Errorf("Commit: %v, %+v", err, b.Replies)
			}
			has(t, db, token, 0)
			if !finished {
				if err := tx2.Commit(t.Context(), b2); err != nil || b2.Replies[0].Status != store.OK {
					t.Errorf("Commit of the other: %v, %+v", err, b2.Replies)
				}
			}
			tx.Rollback()
			tx2.Rollback()
			state(t, s, token, store.Done)
		}
	})
}

// A claim that ran out, and was given back by whoever took it over, may still complete.
func TestLateTx(t *testing.T) {
	t.Parallel()
	eachLevel(t, []backend{postgres15, mariadb}, func(t *testing.T, _ backend, db *sql.DB, s *sqlstore.Store) {
		apply(t, s, begin("late", "c1"), time.Millisecond)
		wait(t, 5*time.Millisecond)
		if r := apply(t, s, begin("late", "c2"), time.Second); r.Status != store.Claimed {
			t.Fatalf("Begin: %+v", r)
		}
		if r := apply(t, s, store.Op{Kind: store.Release, Group: "g", Token: "late", Claim: "c2"}, time.Second); r.Status != store.OK {
			t.Fatalf("Release: %+v", r)
		}
		for _, token := range []string{"late", "absent"} {
			b := terms(commit(token, "c1", 1))
			ctx, tx := s.Enlist(t.Context(), b, func() {})
			if err := errors.Join(write(ctx, token), tx.Commit(t.Context(), b)); err != nil || b.Replies[0].Status != store.OK {
				t.Errorf("Commit of %s: %v, %+v", token, err, b.Replies)
			}
			has(t, db, token, 1)
			state(t, s, token, store.Done)
			// Completed already, a second effect of the same claim is none.
			ctx, tx = s.Enlist(t.Context(), b, func() {})
			if err := errors.Join(write(ctx, token), tx.Commit(t.Context(), b)); err != nil || b.Replies[0].Status != store.OK {
				t.Errorf("Commit of %s again: %v, %+v", token, err, b.Replies)
			}
			has(t, db, token, 1)
		}
	})
}

// The connection is cut exactly at COMMIT, before and after the server has it.
func TestCutAtCommit(t *testing.T) {
	t.Parallel()
	for _, on := range []struct {
		backend
		start func(tb testing.TB) *sqltest.Server
	}{
		{postgres15, func(tb testing.TB) *sqltest.Server { return sqltest.StartPostgres(tb, "15") }},
		{postgres18, func(tb testing.TB) *sqltest.Server { return sqltest.StartPostgres(tb, "18") }},
		{mariadb, func(tb testing.TB) *sqltest.Server { return sqltest.StartMariaDB(tb) }},
	} {
		t.Run(on.name, func(t *testing.T) {
			t.Parallel()
			server := on.start(t)
			direct := open(t, on.driver, server.DSN())
			effects(t, direct)
			p := sqltest.StartProxy(t, server)
			db := open(t, on.driver, p.DSN())
			for _, level := range on.levels() {
				s := on.store(t, db, sqlstore.WithTxOptions(sql.TxOptions{Isolation: level}))
				g := idem.New(idem.WithStore(s))
				for _, how := range []sqltest.Cut{sqltest.CutBefore, sqltest.CutAfter} {
					for _, own := range []bool{false, true} {
						name := fmt.Sprintf("%v-%v-%v", int(level), how, own)
						t.Run(name, func(t *testing.T) { cutAtCommit(t, p, direct, db, g, name, how, own) })
					}
				}
			}
		})
	}
}

func cutAtCommit(t *testing.T, p *sqltest.Proxy, direct, db *sql.DB, g *idem.Guard, name string, how sqltest.Cut, own bool) {
	p.CutNextCommit(how, name)
	runs := 0
	handler := func(ctx context.Context) error {
		runs++
		if !own {
			return write(ctx, name)
		}
		c, _ := idem.FromContext(ctx)
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, "INSERT INTO effects VALUES ('"+name+"')"); err != nil {
			return err
		}
		return sqlstore.CommitTx(ctx, tx, c)
	}
	err := g.Do(t.Context(), name, handler)
	if len(p.Cuts()) != 1 {
		t.Fatalf("%d commits were cut", len(p.Cuts()))
	}
	<-p.Cuts()
	if how == sqltest.CutAfter {
		if err != nil {
			t.Errorf("the server had committed: %v", err)
		}
	} else {
		if !errors.Is(err, idem.ErrRolledBack) {
			t.Errorf("the server had not committed: %v", err)
		}
		has(t, direct, name, 0)
		if err := g.Do(t.Context(), name, handler); err != nil {
			t.Errorf("Do again: %v", err)
		}
	}
	has(t, direct, name, 1)
	if err := g.Do(t.Context(), name, handler); !errors.Is(err, idem.ErrDuplicate) {
		t.Errorf("Do at last: %v", err)
	}
	has(t, direct, name, 1)
}

// slowCommit has PostgreSQL take its time at the COMMIT of whoever wrote to effects, also
// when pgx asks it to cancel that: the postmaster signals the session and its process
// group, so that one request may interrupt twice.
const slowCommit = `
CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$
  BEGIN
    BEGIN PERFORM pg_sleep(0.7); RETURN NULL;
    EXCEPTION WHEN query_canceled THEN PERFORM pg_sleep(0.7); RETURN NULL;
    END;
  EXCEPTION WHEN query_canceled THEN PERFORM pg_sleep(0.7); RETURN NULL;
  END $$;
CREATE CONSTRAINT TRIGGER dawdle AFTER INSERT ON effects DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION dawdle()`

// awaitWaiting returns when a session of the database waits for an event, by PostgreSQL's
// name of it.
func awaitWaiting(t *testing.T, db *sql.DB, event string) {
	t.Helper()
	testenv.Await(t, "a session to wait for "+event, func() bool {
		var n int
		err := db.QueryRowContext(t.Context(), "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = $1", event).Scan(&n)
		return err == nil && n == 1
	})
}

// Whoever gave up waiting for COMMIT asks, and waits while it is still under way on the
// server, whether the network is well or swallows everything meanwhile.
func TestCommitUnderWay(t *testing.T) {
	t.Parallel()
	for _, hole := range []bool{false, true} {
		t.Run(fmt.Sprint("black hole ", hole), func(t *testing.T) {
			t.Parallel()
			server := sqltest.StartPostgres(t, "15")
			direct := open(t, "pgx", server.DSN())
			effects(t, direct)
			run(t, direct, slowCommit)
			p := sqltest.StartProxy(t, server)
			s := postgres15.store(t, open(t, "pgx", p.DSN()))
			ctx, tx, b := enlist(t, s, "a", "c1", 2*time.Second)
			if err := write(ctx, "a"); err != nil {
				t.Fatal(err)
			}
			try := func(d time.Duration) error {
				ctx, cancel := context.WithTimeout(t.Context(), d)
				defer cancel()
				return tx.Commit(ctx, b)
			}
			first, leave := context.WithCancel(t.Context())
			defer leave()
			done := make(chan error)
			go func() { done <- tx.Commit(first, b) }()
			awaitWaiting(t, direct, "PgSleep")
			if hole {
				p.Hold()
			}
			leave()
			if err := <-done; !errors.Is(err, store.ErrUnavailable) {
				t.Fatalf("Commit without an answer: %v", err)
			}
			if hole {
				if err := try(100 * time.Millisecond); !errors.Is(err, store.ErrUnavailable) {
					t.Errorf("asking into the black hole: %v", err)
				}
				p.Release()
			}
			if err := try(20 * time.Second); err != nil || b.Replies[0].Status != store.OK {
				t.Errorf("asking: %v, %+v", err, b.Replies)
			}
			has(t, direct, "a", 1)
			state(t, s, "a", store.Done)
			tx.Rollback()
		})
	}
}

// The answer to the completion is swallowed: whether it was executed is all the same,
// since COMMIT has not been sent.
func TestBlackHoleBeforeCommit(t *testing.T) {
	t.Parallel()
	for _, on := range []struct {
		backend
		start func(tb testing.TB) *sqltest.Server
	}{
		{postgres15, func(tb testing.TB) *sqltest.Server { return sqltest.StartPostgres(tb, "15") }},
		{mariadb, func(tb testing.TB) *sqltest.Server { return sqltest.StartMariaDB(tb) }},
	} {
		t.Run(on.name, func(t *testing.T) {
			t.Parallel()
			server := on.start(t)
			direct := open(t, on.driver, server.DSN())
			effects(t, direct)
			p := sqltest.StartProxy(t, server)
			s := on.store(t, open(t, on.driver, p.DSN()))
			ctx, tx, b := enlist(t, s, "a", "c1", 2*time.Second)
			if err := write(ctx, "a"); err != nil {
				t.Fatal(err)
			}
			p.Hold()
			short, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			if err := tx.Commit(short, b); !errors.Is(err, store.ErrRolledBack) {
				t.Errorf("Commit: %v", err)
			}
			p.Release()
			tx.Rollback()
			state(t, s, "a", store.Running)
			has(t, direct, "a", 0)
		})
	}
}

// A constraint that is deferred to COMMIT is the handler's own error, and nothing stays.
func TestDeferredConstraint(t *testing.T) {
	t.Parallel()
	db := postgres15.database(t)
	run(t, db, "CREATE TABLE effects (name varchar(40) UNIQUE DEFERRABLE INITIALLY DEFERRED)")
	run(t, db, "INSERT INTO effects VALUES ('a')")
	s := postgres15.store(t, db)
	ctx, tx, b := enlist(t, s, "a", "c1", time.Second)
	if err := write(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(t.Context(), b); err == nil || errors.Is(err, store.ErrRolledBack) || errors.Is(err, store.ErrUnavailable) {
		t.Errorf("Commit: %v", err)
	}
	has(t, db, "a", 1)
	state(t, s, "a", store.Running)
}

// A handler that passes over a failed statement, and returns nil, commits nothing.
func TestFailedTx(t *testing.T) {
	t.Parallel()
	db := postgres15.database(t)
	effects(t, db)
	g := idem.New(idem.WithStore(postgres15.store(t, db)))
	err := g.Do(t.Context(), "a", func(ctx context.Context) error {
		tx, err := sqlstore.Tx(ctx)
		if err != nil {
			return err
		}
		_, _ = tx.ExecContext(ctx, "SELECT 1/0")
		return nil
	})
	if err == nil || errors.Is(err, store.ErrRolledBack) || !strings.Contains(err.Error(), "passed over") {
		t.Errorf("Do: %v", err)
	}
}

// In SQLite the open transaction is the lease: nobody takes the claim over, and it is not
// counted; a claim that is lost before is an error at Tx.
func TestSQLiteHolds(t *testing.T) {
	t.Parallel()
	db := sqlite.database(t)
	effects(t, db)
	s := sqlite.store(t, db)
	_, _, b := enlist(t, s, "a", "c1", 20*time.Millisecond)
	held := false
	ctx, tx := s.Enlist(t.Context(), b, func() { held = true })
	if err := write(ctx, "a"); err != nil || !held {
		t.Fatalf("held %v: %v", held, err)
	}
	wait(t, 30*time.Millisecond)
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := s.Apply(short, terms(begin("a", "c2"))); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("Begin beside an open transaction: %v", err)
	}
	if r := apply(t, s, inspect("a"), time.Second); r.Record.Claim != "c1" {
		t.Errorf("Inspect beside an open transaction: %+v", r.Record)
	}
	if err := tx.Commit(t.Context(), b); err != nil || b.Replies[0].Status != store.OK {
		t.Errorf("Commit: %v, %+v", err, b.Replies)
	}
	has(t, db, "a", 1)

	ctx, tx, _ = enlist(t, s, "b", "c1", 20*time.Millisecond)
	wait(t, 30*time.Millisecond)
	if r := apply(t, s, begin("b", "c2"), time.Second); r.Status != store.Claimed {
		t.Fatalf("Begin: %+v", r)
	}
	if err := write(ctx, "b"); !errors.Is(err, store.ErrRolledBack) || tx.Used() {
		t.Errorf("a transaction of a lost claim: %v, used %v", err, tx.Used())
	}
}
