package sqlstore_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/sqlstore"
)

// While a COMMIT is under way on the server, "not known" is no refusal, however short the
// time was to ask: a message would be dead-lettered that is done.
func TestNotKnownIsNoRefusal(t *testing.T) {
	t.Parallel()
	db := postgres15.database(t)
	effects(t, db)
	run(t, db, strings.ReplaceAll(slowCommit, "pg_sleep(0.7)", "pg_advisory_xact_lock_shared(1)"))
	s := postgres15.store(t, db)
	ctx, tx, b := enlist(t, s, "a", "c1", 20*time.Second)
	if err := write(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	holder, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close()
	hold := func(function string) {
		if _, err := holder.ExecContext(t.Context(), "SELECT "+function+"(1)"); err != nil {
			t.Fatal(err)
		}
	}
	hold("pg_advisory_lock")
	first, leave := context.WithCancel(t.Context())
	defer leave()
	done := make(chan error)
	go func() { done <- tx.Commit(first, b) }()
	awaitWaiting(t, db, "advisory")
	leave()
	if err := <-done; !errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrRolledBack) {
		t.Fatalf("Commit without an answer: %v", err)
	}
	for _, d := range []int{1, 100, 400} {
		soon, cancel := context.WithTimeout(t.Context(), time.Duration(d)*time.Millisecond)
		if err := tx.Commit(soon, b); !errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrRolledBack) {
			t.Errorf("Commit within %d ms: %v", d, err)
		}
		cancel()
	}
	soon, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	other := terms(commit("a", "c1", 1))
	if err := s.Apply(soon, other); err == nil {
		err = other.Replies[0].Err
		if !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("Apply meanwhile: %+v", other.Replies)
		}
	} else if !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("Apply meanwhile: %v", err)
	}
	hold("pg_advisory_unlock")
	await(t, "an answer", func() bool { return tx.Commit(t.Context(), b) == nil })
	if b.Replies[0].Status != store.OK {
		t.Errorf("the answer is %+v", b.Replies)
	}
	has(t, db, "a", 1)
	state(t, s, "a", store.Done)
}

// A database that has forgotten its last commits, a failover's say, gives a group's number
// to no other group, and to the same group again.
func TestNumbersOfGroups(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, b backend) {
		db := b.database(t)
		billing, mail, restarted := b.store(t, db), b.store(t, db), b.store(t, db)
		claim := func(s *sqlstore.Store, group, token string) store.Status {
			op := begin(token, fmt.Sprint(group, token))
			op.Group = group
			return apply(t, s, op, time.Minute).Status
		}
		if r := claim(billing, "billing", "t0"); r != store.Claimed {
			t.Fatal(r)
		}
		run(t, db, "DELETE FROM idemq_records")
		run(t, db, "DELETE FROM idemq_groups")
		if b.dialect == sqlstore.MySQL {
			run(t, db, "ALTER TABLE idemq_groups AUTO_INCREMENT = 1")
		}
		for i, step := range []struct {
			s            *sqlstore.Store
			group, token string
			want         store.Status
		}{
			{mail, "mail", "t0", store.Claimed},
			{billing, "billing", "order", store.Claimed},
			{mail, "mail", "order", store.Claimed},
			{billing, "mail", "order", store.InProgress},
			{restarted, "billing", "order", store.InProgress},
		} {
			op := begin(step.token, fmt.Sprint("c", i))
			op.Group = step.group
			if r := apply(t, step.s, op, time.Minute); r.Status != step.want {
				t.Errorf("step %d: token %s in %s: %v, want %v", i, step.token, step.group, r.Status, step.want)
			}
		}
	})
}

// A lease may be longer than any timeout that a server knows.
func TestLongLease(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, b backend) {
		s := b.store(t, b.database(t))
		g := idem.New(idem.WithStore(s), idem.WithLease(30*24*time.Hour), idem.WithRetention(60*24*time.Hour))
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := g.Do(ctx, "a", func(context.Context) error { return nil }); err != nil {
			t.Error(err)
		}
	})
}

// A row that somebody else holds keeps its own operation from being executed, after a
// while, and no other of its batch.
func TestHeldRowAlone(t *testing.T) {
	t.Parallel()
	for _, b := range []backend{postgres15, mariadb} {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			db := b.database(t)
			s := b.store(t, db)
			for _, token := range []string{"commit", "release", "renew", "bury", "free", "freer"} {
				apply(t, s, begin(token, "c"), time.Minute)
			}
			issue, check := store.Op{Kind: store.Issue, Token: "issue"}, store.Op{Kind: store.Check, Token: "check", Claim: "k"}
			apply(t, s, issue, time.Minute)
			apply(t, s, store.Op{Kind: store.Issue, Token: "check"}, time.Minute)
			release, bury := commit("release", "c", 1), commit("bury", "c", 1)
			release.Kind, bury.Kind = store.Release, store.Bury
			tx, err := db.BeginTx(t.Context(), &sql.TxOptions{Isolation: sql.LevelReadCommitted}) // without gap locks
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = tx.Rollback() }()
			for _, statement := range []string{
				fmt.Sprintf("UPDATE idemq_records SET attempt = attempt WHERE token IN (%s, %s, %s, %s)",
					hexLiteral(db, "commit"), hexLiteral(db, "release"), hexLiteral(db, "renew"), hexLiteral(db, "bury")),
				"SELECT 1 FROM idemq_issued FOR UPDATE",
			} {
				if _, err := tx.ExecContext(t.Context(), statement); err != nil {
					t.Fatal(err)
				}
			}
			held := []store.Op{commit("commit", "c", 1), release, renew("renew", "c"), bury, issue, check}
			batch := terms(append(held, commit("free", "c", 1), renew("freer", "c"), begin("new", "c"), store.Op{Kind: store.Issue, Token: "new"})...)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			if err := s.Apply(ctx, batch); err != nil {
				t.Fatalf("beside held rows: %v", err)
			}
			for i, r := range batch.Replies {
				switch op := batch.Ops[i]; {
				case i < len(held) && !errors.Is(r.Err, store.ErrUnavailable):
					t.Errorf("kind %d of a row that is held: %+v", op.Kind, r)
				case i >= len(held) && (r.Err != nil || r.Status != store.OK && r.Status != store.Claimed):
					t.Errorf("kind %d of token %s, beside them: %+v", op.Kind, op.Token, r)
				}
			}
			if err := tx.Rollback(); err != nil {
				t.Fatal(err)
			}
			batch = terms(held...)
			if err := s.Apply(t.Context(), batch); err != nil {
				t.Fatal(err)
			}
			for i, r := range batch.Replies {
				if r.Err != nil || r.Status == store.Lost {
					t.Errorf("kind %d afterwards: %+v", batch.Ops[i].Kind, r)
				}
			}
		})
	}
}

// A claim whose row somebody holds costs no other claim its lease.
func TestHeldRowsNeighbour(t *testing.T) {
	t.Parallel()
	db := postgres15.database(t)
	g := idem.New(idem.WithStore(postgres15.store(t, db)), idem.WithLease(2*time.Second))
	if _, err := g.Begin(t.Context(), "held"); err != nil {
		t.Fatal(err)
	}
	innocent, err := g.Begin(t.Context(), "innocent")
	if err != nil {
		t.Fatal(err)
	}
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.ExecContext(t.Context(), "SELECT 1 FROM idemq_records WHERE token = 'held' FOR UPDATE"); err != nil {
		t.Fatal(err)
	}
	wait(t, 5*time.Second)
	if err := context.Cause(innocent.Context()); err != nil {
		t.Errorf("beside a row that is held for 5 s, at a lease of 2 s: %v", err)
	}
	if err := innocent.Commit(t.Context()); err != nil {
		t.Errorf("Commit: %v", err)
	}
}

// anew makes other tables of the same name.
func anew(t *testing.T, db *sql.DB, s *sqlstore.Store) {
	t.Helper()
	for _, table := range []string{"meta", "groups", "records"} {
		run(t, db, "DELETE FROM idemq_"+table)
	}
	if err := s.Create(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// Sweep, and what else meets new tables, leaves it to the next Apply to tell, and each
// guard over the store is told, once.
func TestNoticeIsTold(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, b backend) {
		db := b.database(t)
		s := b.store(t, db, sqlstore.WithoutSweep())
		var told [3]atomic.Int32
		guard := func(i int) *idem.Guard {
			return idem.New(idem.WithStore(s), idem.WithHaltOnDataLoss(), idem.WithObserver(idem.ObserverFunc(func(e idem.Event) {
				if e.Kind == idem.EventStoreNotice {
					told[i].Add(1)
				}
			})))
		}
		do := func(g *idem.Guard, token string) error {
			return g.Do(t.Context(), token, func(context.Context) error { return nil })
		}
		first, second := guard(0), guard(1)
		for _, g := range []*idem.Guard{first, second} {
			if err := do(g, "a"); err != nil && !idem.Done(err) {
				t.Fatal(err)
			}
		}
		anew(t, db, s)
		if _, err := s.Sweep(t.Context(), 10); err != nil {
			t.Fatal(err)
		}
		for i, g := range []*idem.Guard{first, second} {
			for n := range 2 {
				if err := do(g, fmt.Sprint("new", i, n)); !errors.Is(err, idem.ErrDataLoss) {
					t.Errorf("guard %d: %v, want ErrDataLoss", i, err)
				}
			}
			if n := told[i].Load(); n != 1 {
				t.Errorf("guard %d was told %d times", i, n)
			}
		}
		if err := do(guard(2), "b"); err != nil || told[2].Load() != 0 {
			t.Errorf("a guard that comes later: %v, told %d times", err, told[2].Load())
		}
	})
}

// Each Apply that had begun before somebody was told is told as well.
func TestNoticeOfFlights(t *testing.T) {
	t.Parallel()
	db := postgres15.database(t)
	s := postgres15.store(t, db)
	apply(t, s, begin("a", "c"), time.Minute)
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.ExecContext(t.Context(), "LOCK TABLE idemq_meta"); err != nil {
		t.Fatal(err)
	}
	losses := make(chan int, 2)
	for i := range 2 {
		go func() {
			batch := terms(begin(fmt.Sprint("new", i), "c"))
			if err := s.Apply(t.Context(), batch); err != nil {
				t.Errorf("Apply: %v", err)
			}
			losses <- batch.Losses
		}()
	}
	await(t, "both to be under way", func() bool {
		n := 0
		err := db.QueryRowContext(t.Context(), "SELECT count(*) FROM pg_locks WHERE NOT granted").Scan(&n)
		return err == nil && n == 2
	})
	if _, err := tx.ExecContext(t.Context(), "UPDATE idemq_meta SET epoch = 'another'"); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if n := <-losses; n != 1 {
			t.Errorf("an Apply that began before was told of %d losses", n)
		}
	}
}

// A result that is larger than the server takes is refused by itself; those that are
// together too large go one by one.
func TestLargeResults(t *testing.T) {
	t.Parallel()
	dsn := mariadb.start(t)
	for _, c := range []struct {
		name      string
		params    string
		big, half int
	}{
		{"server", "", 12 << 20, 5 << 20},
		{"driver", "&maxAllowedPacket=1048576", 600 << 10, 300 << 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			if !strings.Contains(dsn, "?") {
				c.params = "?" + strings.TrimPrefix(c.params, "&")
			}
			s := mariadb.store(t, open(t, "mysql", dsn+c.params))
			token := func(what string) string { return c.name + what }
			result := func(what string, n int) store.Op {
				op := commit(token(what), "c", 1)
				op.Result = make([]byte, n)
				return op
			}
			for _, what := range []string{"big", "half", "half too", "innocent"} {
				apply(t, s, begin(token(what), "c"), time.Minute)
			}
			batch := terms(result("big", c.big), commit(token("innocent"), "c", 1), result("half", c.half), begin(token("new"), "c"), result("half too", c.half))
			if err := s.Apply(t.Context(), batch); err != nil {
				t.Fatal(err)
			}
			r := batch.Replies
			refuses(t, r[0].Err, "max_allowed_packet", fmt.Sprint(c.big))
			if errors.Is(r[0].Err, store.ErrFull) || errors.Is(r[0].Err, store.ErrUnavailable) || errors.Is(r[0].Err, store.ErrRefused) {
				t.Errorf("it is no error that stays: %v", r[0].Err)
			}
			if r[1].Status != store.OK || r[2].Status != store.OK || r[3].Status != store.Claimed || r[4].Status != store.OK || batch.Now.IsZero() {
				t.Errorf("beside it: %+v", r[1:])
			}
			state(t, s, token("big"), store.Running)
			for _, what := range []string{"half", "half too", "innocent"} {
				state(t, s, token(what), store.Done)
			}
		})
	}
}

// What is due is swept however many claims in progress, which renewals keep, come before it.
func TestSweepPastRenewed(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, b backend) {
		db := b.database(t)
		s := b.store(t, db, sqlstore.WithoutSweep())
		for i := range 20 {
			apply(t, s, begin(fmt.Sprint("live", i), "c"), time.Minute)
			apply(t, s, renew(fmt.Sprint("live", i), "c"), time.Minute)
		}
		run(t, db, "UPDATE idemq_records SET expires = 1000, due = 0")
		for i := range 5 {
			token := fmt.Sprint("old", i)
			apply(t, s, begin(token, "c"), time.Minute)
			run(t, db, "UPDATE idemq_records SET expires = 1000, due = 1 WHERE token = "+hexLiteral(db, token))
		}
		if n, err := s.Sweep(t.Context(), 10); err != nil || n != 5 {
			t.Errorf("Sweep of 10: %d, %v, want 5", n, err)
		}
		for i := range 20 {
			state(t, s, fmt.Sprint("live", i), store.Running)
		}
	})
}

// A schema that is not there is not made by Create.
func TestNoSchema(t *testing.T) {
	t.Parallel()
	for _, b := range []backend{postgres15, mariadb} {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			db := b.database(t)
			for _, err := range []error{
				sqlstore.New(db, b.dialect, sqlstore.WithTables("nowhere.idemq_")).Create(t.Context()),
				b.store(t, db, sqlstore.WithTables("nowhere.idemq_")).Apply(t.Context(), terms(begin("a", "c"))),
			} {
				if refuses(t, err, "create the schema", "nowhere.idemq_"); strings.Contains(err.Error(), "'s Create") {
					t.Errorf("it advises what was tried: %v", err)
				}
			}
		})
	}
}

// Handlers' transactions that may not write are not blamed on the server alone.
func TestReadOnlyOption(t *testing.T) {
	t.Parallel()
	for _, b := range []backend{postgres15, mariadb} {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			s := b.store(t, b.database(t), sqlstore.WithTxOptions(sql.TxOptions{ReadOnly: true}))
			ctx, tx, batch := enlist(t, s, "a", "c", time.Minute)
			if _, err := sqlstore.Tx(ctx); err != nil {
				t.Fatal(err)
			}
			refuses(t, tx.Commit(t.Context(), batch), "WithTxOptions")
		})
	}
}

// A pool that is too small for a guard and one handler is found.
func TestVerifyPool(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, b backend) {
		db := b.database(t)
		s := b.store(t, db)
		for _, n := range []int{0, 1, 2, 3} {
			db.SetMaxOpenConns(n)
			found, err := s.Verify(t.Context(), "p")
			if err != nil {
				t.Fatal(err)
			}
			has := slices.ContainsFunc(found, func(f store.Finding) bool { return f.ID == "sql-pool" })
			if want := b.dialect != sqlstore.SQLite && (n == 1 || n == 2); has != want {
				t.Errorf("%d connections: found %v, want %v", n, has, want)
			}
		}
	})
}

// A row that somebody inserts, and does not commit, keeps its own operation from being
// executed, after a while, and no other of its batch.
func TestInsertThatIsHeld(t *testing.T) {
	t.Parallel()
	for _, b := range []backend{postgres15, mariadb} {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			db := b.database(t)
			s := b.store(t, db)
			renewed := make([]store.Op, 20)
			for i := range renewed {
				renewed[i] = renew(fmt.Sprint("renewed", i), "c")
				apply(t, s, begin(renewed[i].Token, "c"), time.Minute)
			}
			apply(t, s, begin("committed", "c"), time.Minute)
			apply(t, s, store.Op{Kind: store.Issue, Token: "issued"}, time.Minute)
			spent := store.Op{Kind: store.Spend, Group: "g", Token: "spent", Claim: "c1"}
			apply(t, s, spent, time.Minute)
			tx, err := db.BeginTx(t.Context(), &sql.TxOptions{Isolation: sql.LevelReadCommitted})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = tx.Rollback() }()
			for _, statement := range []string{ // as a process does that is stopped then
				"INSERT INTO idemq_records (gid, token, version, state, claim, attempt, expires, due) SELECT gid, " + hexLiteral(db, "held") +
					", version, state, claim, attempt, expires, due FROM idemq_records WHERE token = " + hexLiteral(db, "committed"),
				"INSERT INTO idemq_issued (gid, token, version, check_by, expires, due) SELECT gid, " + hexLiteral(db, "held") +
					", version, check_by, expires, due FROM idemq_issued",
			} {
				if _, err := tx.ExecContext(t.Context(), statement); err != nil {
					t.Fatal(err)
				}
			}
			spend := store.Op{Kind: store.Spend, Group: "g", Token: "held", Claim: "c3"}
			issue := store.Op{Kind: store.Issue, Token: "held"}
			for _, trip := range []time.Duration{10 * time.Second, 2 * time.Second} {
				id := fmt.Sprint(trip)
				free := append([]store.Op{commit("committed", "c", 1), begin("fresh"+id, "c")}, renewed...)
				batch := terms(append([]store.Op{begin("held", "c2"), spend, commit("held", "c2", 1), issue}, free...)...)
				ctx, cancel := context.WithTimeout(t.Context(), trip)
				err := s.Apply(ctx, batch)
				if cancel(); err != nil {
					t.Errorf("beside a row that is being inserted, within %v: %v", trip, err)
					continue
				}
				for i, r := range batch.Replies {
					switch op := batch.Ops[i]; {
					case i < 2 && (r.Err != nil || r.Status != store.InProgress || r.RetryAfter < batch.Lease/3), // the search costs each batch
						i >= 2 && i < 4 && !errors.Is(r.Err, store.ErrUnavailable):
						t.Errorf("kind %d of the row, within %v: %+v", op.Kind, trip, r)
					case i == 5 && r.Status == store.InProgress: // there was no time to look for the row
						await(t, "the claim of "+op.Token, func() bool { return apply(t, s, op, batch.Lease).Status == store.Claimed })
					case i >= 4 && (r.Err != nil || r.Status != store.OK && r.Status != store.Claimed):
						t.Errorf("kind %d of token %s, beside it, within %v: %+v", op.Kind, op.Token, trip, r)
					}
				}
				if batch.Now.IsZero() {
					t.Error("the batch has no time")
				}
			}
			// A whole batch of a process that was stopped.
			many := make([]store.Op, 200)
			for i := range many {
				many[i] = begin(fmt.Sprint("held", i), "c")
				statement := "INSERT INTO idemq_records (gid, token, version, state, claim, attempt, expires, due) SELECT gid, " + hexLiteral(db, many[i].Token) +
					", version, state, claim, attempt, expires, due FROM idemq_records WHERE token = " + hexLiteral(db, "committed")
				if _, err := tx.ExecContext(t.Context(), statement); err != nil {
					t.Fatal(err)
				}
			}
			// What is there already, of a batch that comes again above all, is answered as it is.
			there := []store.Op{spent, begin("renewed0", "c"), begin("spent", "another"), {Kind: store.Issue, Token: "issued"}}
			batch := terms(slices.Concat(many, renewed, there)...)
			ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
			defer cancel()
			if err := s.Apply(ctx, batch); err != nil {
				t.Errorf("beside %d rows that are being inserted: %v", len(many), err)
			}
			answers := batch.Replies[len(many)+len(renewed):]
			for i, want := range []store.Status{store.Claimed, store.Claimed, store.Duplicate, store.OK} {
				if r := answers[i]; r.Err != nil || r.Status != want {
					t.Errorf("kind %d of token %s, which is there: %+v, want %v", there[i].Kind, there[i].Token, r, want)
				}
			}
			batch.Replies = batch.Replies[:len(many)+len(renewed)]
			for i, r := range batch.Replies {
				if want := map[bool]store.Status{true: store.InProgress, false: store.OK}[i < len(many)]; r.Err != nil || r.Status != want || i < len(many) && r.RetryAfter < batch.Lease/3 {
					t.Errorf("kind %d of token %s, of many: %+v", batch.Ops[i].Kind, batch.Ops[i].Token, r)
					break
				}
			}
			if err := tx.Rollback(); err != nil {
				t.Fatal(err)
			}
			if r := apply(t, s, begin("held", "c4"), time.Minute); r.Status != store.Claimed {
				t.Errorf("Begin afterwards: %+v", r)
			}
		})
	}
}
