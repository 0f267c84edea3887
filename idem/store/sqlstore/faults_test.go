package sqlstore_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/sqlstore"
	"github.com/idemq/idemq/idem/store/storetest"
	"github.com/idemq/idemq/internal/sqltest"
	"github.com/idemq/idemq/internal/testenv"
)

func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	testenv.Await(t, what, cond)
}

// Tables of an earlier version are an error with the cure, which Create is; those of a
// later one are left alone.
func TestSchemaVersions(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, b backend) {
		db := b.database(t)
		s := sqlstore.New(db, b.dialect)
		if err := s.Create(t.Context()); err != nil {
			t.Fatal(err)
		}
		apply(t, s, begin("a", "c1"), 10*time.Second)
		run(t, db, "UPDATE idemq_meta SET version = 0")
		for _, s := range []*sqlstore.Store{s, sqlstore.New(db, b.dialect)} { // one that knew them, and one that did not
			refuses(t, s.Apply(t.Context(), terms(begin("a", "c2"))), "schema version 0", "Create", "sqlstore.Schema")
			refuses(t, verify(t, s), "schema version 0")
		}
		if err := s.Create(t.Context()); err != nil {
			t.Fatal(err)
		}
		if r := apply(t, s, begin("a", "c2"), time.Second); r.Status != store.InProgress {
			t.Errorf("Begin after the upgrade: %+v", r)
		}
		run(t, db, "UPDATE idemq_meta SET version = 2")
		refuses(t, s.Apply(t.Context(), terms(begin("a", "c2"))), "newer", "update this program")
		refuses(t, s.Create(t.Context()), "newer")
	})
}

// Several processes create the tables at once, and what Schema prints can be executed by
// anything that divides it into statements.
func TestCreate(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, b backend) {
		dsn := b.start(t)
		var wg sync.WaitGroup
		for range 8 {
			db := open(t, b.driver, dsn)
			wg.Go(func() {
				if err := sqlstore.New(db, b.dialect).Create(t.Context()); err != nil {
					t.Errorf("Create: %v", err)
				}
			})
		}
		wg.Wait()
		db := open(t, b.driver, dsn)
		for statement := range strings.SplitSeq(sqlstore.Schema(b.dialect, sqlstore.WithTables("printed_")), ";\n") {
			if strings.TrimSpace(statement) != "" {
				run(t, db, statement)
			}
		}
		if r := apply(t, sqlstore.New(db, b.dialect, sqlstore.WithTables("printed_")), begin("a", "c"), time.Second); r.Status != store.Claimed {
			t.Errorf("Begin: %+v", r)
		}
	})
}

// Tables that were made anew are noticed, and counted once.
func TestNotice(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, b backend) {
		db := b.database(t)
		s := b.store(t, db)
		apply(t, s, begin("a", "c1"), 10*time.Second)
		for _, table := range []string{"meta", "groups", "records", "leases", "issued", "instances"} {
			run(t, db, "DROP TABLE idemq_"+table)
		}
		refuses(t, s.Apply(t.Context(), terms(begin("a", "c1"))), "Create")
		if err := s.Create(t.Context()); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			batch := terms(begin("b", "c1"))
			if err := s.Apply(t.Context(), batch); err != nil || batch.Replies[0].Status != store.Claimed {
				t.Errorf("Apply: %v, %+v", err, batch.Replies)
			}
			if batch.Notice == "" || batch.Losses != 1 {
				t.Errorf("the notice is %q, of %d losses", batch.Notice, batch.Losses)
			}
		}
	})
}

// The server is killed amid batches and comes back: clear errors, and what was answered
// stands.
func TestKilledServer(t *testing.T) {
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
			s := on.store(t, open(t, on.driver, server.DSN()))
			done := make(map[string]bool)
			down := 0
			message := func(i int) {
				token, claim := fmt.Sprint("t", i), fmt.Sprint("c", i)
				b := terms(begin(token, claim), commit(token, claim, 1))
				switch err := s.Apply(t.Context(), b); {
				case err == nil:
					done[token] = b.Replies[1].Status == store.OK
				case errors.Is(err, store.ErrUnavailable):
					down++
				default:
					t.Errorf("not an outage: %v", err)
				}
			}
			for i := range 60 {
				if i == 20 || i == 40 {
					server.Kill()
					message(1000 + i)
					server.Restart()
				}
				message(i)
			}
			if down < 2 || down > 10 {
				t.Errorf("%d batches of 62 failed", down)
			}
			for token := range done {
				state(t, s, token, store.Done)
			}
			if len(done) < 50 {
				t.Errorf("only %d were done", len(done))
			}
		})
	}
}

// A full disk is said, loses nothing, and passes.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	for _, on := range []struct {
		backend
		size  string
		start func(tb testing.TB, dir string) string
	}{
		{postgres15, "110m", func(tb testing.TB, dir string) string {
			return sqltest.StartPostgresIn(tb, "15", dir, "max_wal_size=32MB", "min_wal_size=32MB").DSN()
		}},
		{sqlite, "2m", func(_ testing.TB, dir string) string {
			return "file:" + dir + "/inbox.db?_pragma=journal_mode(wal)&_pragma=busy_timeout(5000)"
		}},
	} {
		t.Run(on.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if os.Geteuid() != 0 {
				t.Skip("needs root: it mounts a small disk")
			}
			if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size="+on.size, "tmpfs", dir).CombinedOutput(); err != nil {
				t.Skipf("needs the right to mount a small disk: %v: %s", err, out)
			}
			t.Cleanup(func() { _ = exec.Command("umount", "-l", dir).Run() })
			db := open(t, on.driver, on.start(t, dir))
			s := on.store(t, db)
			apply(t, s, begin("a", "c1"), time.Minute)
			spent := store.Op{Kind: store.Spend, Group: "g", Token: "spent", Claim: "c1"}
			apply(t, s, spent, time.Minute)
			hog := dir + "/hog"
			if out, err := exec.Command("dd", "if=/dev/zero", "of="+hog, "bs=4k").CombinedOutput(); err == nil {
				t.Fatalf("the disk did not fill: %s", out)
			}
			big := make([]byte, 1<<20)
			var said error
			await(t, "the disk to be full", func() bool {
				b := terms(begin("full", "c1"), commit("full", "c1", 1))
				b.Ops[1].Result = big
				b.Ops[0].Token = fmt.Sprint("full", time.Now().UnixNano())
				b.Ops[1].Token = b.Ops[0].Token
				if said = s.Apply(t.Context(), b); said == nil {
					said = b.Replies[0].Err
				}
				return said != nil
			})
			t.Log(said)
			if !errors.Is(said, store.ErrUnavailable) && !errors.Is(said, store.ErrFull) {
				t.Errorf("the error is %v", said)
			}
			var again store.Reply
			await(t, "claims to find no room", func() bool {
				b := terms(spent)
				for i := range 400 {
					b.Ops = append(b.Ops, begin(fmt.Sprintf("%0200d-%d", i, time.Now().UnixNano()), "c1"))
				}
				if s.Apply(t.Context(), b) != nil || !errors.Is(b.Replies[1].Err, store.ErrFull) {
					return false
				}
				again = b.Replies[0]
				return true
			})
			if again.Status != store.Claimed || again.Err != nil {
				t.Errorf("a claim of before, asked for again beside them: %+v", again)
			}
			if err := os.Remove(hog); err != nil {
				t.Fatal(err)
			}
			await(t, "the store to recover", func() bool {
				b := terms(commit("a", "c1", 1))
				return s.Apply(t.Context(), b) == nil && b.Replies[0].Status == store.OK
			})
			state(t, s, "a", store.Done)
		})
	}
}

// A row that somebody else holds is answered as in progress, soon, and the others of its
// batch are not kept; what ends a claim waits for it.
func TestHeldRow(t *testing.T) {
	t.Parallel()
	for _, b := range []backend{postgres15, mariadb} {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			db := b.database(t)
			s := b.store(t, db)
			apply(t, s, begin("held", "c1"), time.Millisecond)
			wait(t, 5*time.Millisecond)
			tx, err := db.BeginTx(t.Context(), &sql.TxOptions{Isolation: sql.LevelReadCommitted}) // without gap locks
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = tx.Rollback() }()
			if _, err := tx.ExecContext(t.Context(), "SELECT 1 FROM idemq_records FOR UPDATE"); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			batch := terms(begin("free", "c2"), begin("held", "c2"), inspect("held"))
			if err := s.Apply(t.Context(), batch); err != nil {
				t.Fatal(err)
			}
			if r := batch.Replies; r[0].Status != store.Claimed || r[1].Status != store.InProgress || r[1].RetryAfter <= 0 || r[2].Record.State != store.Running {
				t.Errorf("beside a held row: %+v", r)
			}
			if d := time.Since(start); d > 3*time.Second {
				t.Errorf("it took %v", d)
			}
			soon, cancel := context.WithTimeout(t.Context(), 800*time.Millisecond) // a trip's where the lease is 2.4 s
			defer cancel()
			batch = terms(begin("another", "c2"), begin("held", "c2"), renew("free", "c2"))
			if err := s.Apply(soon, batch); err != nil {
				t.Errorf("beside a held row, with little time: %v", err)
			} else if r := batch.Replies; r[0].Status != store.Claimed || r[1].Status != store.InProgress || r[2].Status != store.OK {
				t.Errorf("beside a held row, with little time: %+v", r)
			}
			if n, err := s.Sweep(t.Context(), 100); err != nil || n != 0 {
				t.Errorf("Sweep beside a held row: %d, %v", n, err)
			}
			done := make(chan error)
			go func() {
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				for {
					b := terms(commit("held", "c1", 1))
					err := s.Apply(ctx, b)
					if err == nil && errors.Is(b.Replies[0].Err, store.ErrUnavailable) {
						continue
					}
					done <- err
					return
				}
			}()
			wait(t, 500*time.Millisecond)
			if err := tx.Rollback(); err != nil {
				t.Fatal(err)
			}
			if err := <-done; err != nil {
				t.Errorf("Commit: %v", err)
			}
			state(t, s, "held", store.Done)
		})
	}
}

// Sweeping deletes what has expired and nothing else, in small batches, beside a row that
// is held.
func TestSweep(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, b backend) {
		db := b.database(t)
		s := b.store(t, db, sqlstore.WithoutSweep())
		for i := range 25 {
			apply(t, s, begin(fmt.Sprint("old", i), "c"), 10*time.Second)
			apply(t, s, begin(fmt.Sprint("young", i), "c"), 10*time.Second)
		}
		apply(t, s, begin("renewed", "c"), 10*time.Second)
		apply(t, s, renew("renewed", "c"), 10*time.Second)
		apply(t, s, store.Op{Kind: store.Issue, Token: "issued"}, time.Second)
		past := "SET expires = 1000, due = 0"
		for i := range 25 {
			run(t, db, fmt.Sprintf("UPDATE idemq_records %s WHERE token = %s", past, hexLiteral(db, fmt.Sprint("old", i))))
		}
		run(t, db, fmt.Sprintf("UPDATE idemq_records %s WHERE token = %s", past, hexLiteral(db, "renewed")))
		run(t, db, "UPDATE idemq_issued "+past)
		if r := apply(t, s, renew("renewed", "c"), 10*time.Second); r.Status != store.OK {
			t.Errorf("a claim whose renewals keep it: %+v", r)
		}
		if n, err := s.Sweep(t.Context(), 10); err != nil || n != 10 {
			t.Errorf("Sweep of 10: %d, %v", n, err)
		}
		if n, err := s.Sweep(t.Context(), 1000); err != nil || n != 16 {
			t.Errorf("Sweep of the rest: %d, %v", n, err)
		}
		if n, err := s.Sweep(t.Context(), 1000); err != nil || n != 0 {
			t.Errorf("Sweep of nothing: %d, %v", n, err)
		}
		for i := range 25 {
			state(t, s, fmt.Sprint("young", i), store.Running)
		}
		state(t, s, "renewed", store.Running)
		// A renewed claim that is over leaves nothing.
		apply(t, s, commit("renewed", "c", 1), time.Second)
		if _, err := s.Sweep(t.Context(), 1000); err != nil {
			t.Error(err)
		}
		n := 0
		if err := db.QueryRowContext(t.Context(), "SELECT COUNT(*) FROM idemq_leases").Scan(&n); err != nil || n != 0 {
			t.Errorf("%d rows among the leases, %v", n, err)
		}
	})
}

// The rules hold beside somebody who sweeps all the time.
func TestHistoriesBesideSweeper(t *testing.T) {
	t.Parallel()
	db := postgres15.database(t)
	sweeper := postgres15.store(t, db)
	if err := sweeper.Create(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		pace := time.NewTicker(10 * time.Millisecond)
		defer pace.Stop()
		for ; ctx.Err() == nil; <-pace.C {
			// The rows' time is brought forward, so that there is something to sweep.
			_, err := db.ExecContext(ctx, "UPDATE idemq_records SET due = expires / 60000000 - 5 WHERE due > expires / 60000000 - 5")
			if err == nil {
				_, err = sweeper.Sweep(ctx, 100)
			}
			if err != nil && ctx.Err() == nil {
				t.Errorf("Sweep: %v", err)
			}
		}
	}()
	storetest.Histories(t, postgres15.harness(db, shortUnit))
	cancel()
	<-done
}
