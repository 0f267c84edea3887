package sqlstore_test

import (
	"errors"
	"testing"
	"time"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/sqlstore"
	"github.com/idemq/idemq/internal/sqltest"
)

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
		if _, err := s.Sweep(t.Context(), 100); err != nil {
			t.Error(err)
		}
		n := 0
		err = direct.QueryRowContext(t.Context(), "SELECT COUNT(*) FROM idemq_leases WHERE token = "+hexLiteral(direct, name)).Scan(&n)
		if err != nil || n != want {
			t.Errorf("%s: %d rows among the leases, want %d, %v", name, n, want, err)
		}
	}
}
