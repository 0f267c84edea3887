package sqlstore_test

import (
	"context"
	"database/sql"
	"errors"
	"testing"
	"time"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/sqlstore"
	"github.com/idemq/idemq/internal/sqltest"
)

// leases wants so many rows of a token among the leases, after a sweep.
func leases(t *testing.T, s *sqlstore.Store, db *sql.DB, token string, want int) {
	t.Helper()
	if _, err := s.Sweep(t.Context(), 100); err != nil {
		t.Error(err)
	}
	n := 0
	err := db.QueryRowContext(t.Context(), "SELECT COUNT(*) FROM idemq_leases WHERE token = "+hexLiteral(db, token)).Scan(&n)
	if err != nil || n != want {
		t.Errorf("%s: %d rows among the leases, want %d, %v", token, n, want, err)
	}
}

// A claim whose COMMIT failed keeps its renewal, and one that is committed leaves none,
// whether COMMIT was answered or asked about.
func TestRenewalAndCommit(t *testing.T) {
	t.Parallel()
	server := sqltest.StartPostgres(t, "15")
	direct := open(t, "pgx", server.DSN())
	effects(t, direct)
	run(t, direct, "CREATE TABLE parents (name varchar(40) PRIMARY KEY)")
	run(t, direct, "ALTER TABLE effects ADD FOREIGN KEY (name) REFERENCES parents DEFERRABLE INITIALLY DEFERRED")
	run(t, direct, "INSERT INTO parents VALUES ('answered'), ('asked')")
	p := sqltest.StartProxy(t, server)
	s := postgres15.store(t, open(t, "pgx", p.DSN()), sqlstore.WithoutSweep())
	for name, want := range map[string]int{"refused": 1, "answered": 0, "asked": 0} {
		ctx, tx, b := enlist(t, s, name, "c1", 10*time.Second)
		if r := apply(t, s, renew(name, "c1"), 10*time.Second); r.Status != store.OK {
			t.Fatalf("%s: Renew: %+v", name, r)
		}
		if err := write(ctx, name); err != nil {
			t.Fatal(err)
		}
		if name == "asked" {
			p.CutNextCommit(sqltest.CutAfter, name)
		}
		err := tx.Commit(t.Context(), b)
		if errors.Is(err, store.ErrUnavailable) {
			err = tx.Commit(t.Context(), b)
		}
		if (err == nil) != (want == 0) {
			t.Errorf("%s: Commit: %v", name, err)
		}
		leases(t, s, direct, name, want)
	}
}

// A renewal that comes while this very store commits the claim is answered at once, as one
// that comes after it; it waits for no row, and is no outage.
func TestRenewWhileCommitting(t *testing.T) {
	t.Parallel()
	db := postgres15.database(t)
	effects(t, db)
	run(t, db, `CREATE FUNCTION linger() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER linger AFTER INSERT ON effects DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION linger()`)
	s, other := postgres15.store(t, db), postgres15.store(t, db)
	ctx, tx, b := enlist(t, s, "a", "c1", 10*time.Second)
	if r := apply(t, s, renew("a", "c1"), 10*time.Second); r.Status != store.OK {
		t.Fatalf("Renew before COMMIT: %+v", r)
	}
	if err := write(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	gate, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = gate.Rollback() }()
	if _, err := gate.ExecContext(t.Context(), "SELECT pg_advisory_xact_lock(7)"); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- tx.Commit(context.WithoutCancel(t.Context()), b) }()
	awaitWaiting(t, db, "advisory")
	both := terms(renew("a", "c1"), begin("b", "c1"))
	if err := s.Apply(t.Context(), both); err != nil || both.Replies[0].Status != store.Lost || both.Replies[0].Err != nil || both.Replies[1].Status != store.Claimed {
		t.Errorf("Renew during COMMIT, and another's Begin: %v, %+v", err, both.Replies)
	}
	leases(t, s, db, "a", 1) // COMMIT may fail
	if r := apply(t, s, renew("a", "c2"), 10*time.Second); !errors.Is(r.Err, store.ErrUnavailable) {
		t.Errorf("Renew of another claim during COMMIT: %+v", r)
	}
	if r := apply(t, other, renew("a", "c1"), 10*time.Second); !errors.Is(r.Err, store.ErrUnavailable) {
		t.Errorf("Renew by whoever does not know of the COMMIT: %+v", r)
	}
	if err := gate.Rollback(); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil || b.Replies[0].Status != store.OK {
		t.Errorf("Commit: %v, %+v", err, b.Replies)
	}
	if r := apply(t, s, renew("a", "c1"), 10*time.Second); r.Status != store.Lost {
		t.Errorf("Renew after COMMIT: %+v", r)
	}
}
