package pgxstore_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/sqlstore/pgxstore"
	"github.com/idemq/idemq/internal/sqltest"
)

// A handler that ends the transaction itself, or has it ended, and returns nil, is not done.
func TestEndedByHandler(t *testing.T) {
	t.Parallel()
	pool := open(t, sqltest.StartPostgres(t, "").DSN())
	if _, err := pool.Exec(t.Context(), "CREATE TABLE effects (name text)"); err != nil {
		t.Fatal(err)
	}
	g := idem.New(idem.WithStore(pgxstore.New(pool, pgxstore.WithCreate())))
	const theirs, over = "leave that to the library", "ended before the handler returned"
	for token, test := range map[string]struct {
		end  func(ctx context.Context) error
		says string
	}{
		"Commit": {func(ctx context.Context) error {
			tx, _ := pgxstore.Tx(ctx)
			if err := tx.Commit(ctx); err == nil {
				t.Error("Commit by the handler")
			}
			return nil
		}, theirs},
		"deferred Rollback": {func(ctx context.Context) error {
			tx, _ := pgxstore.Tx(ctx)
			defer func() { _ = tx.Rollback(ctx) }()
			return nil
		}, theirs},
		"ROLLBACK": {func(ctx context.Context) error {
			tx, _ := pgxstore.Tx(ctx)
			_, err := tx.Exec(ctx, "ROLLBACK")
			return err
		}, over},
		"COMMIT AND CHAIN": {func(ctx context.Context) error {
			tx, _ := pgxstore.Tx(ctx)
			_, err := tx.Exec(ctx, "COMMIT AND CHAIN")
			return err
		}, over},
	} {
		err := g.Do(t.Context(), token, func(ctx context.Context) error {
			if err := write(ctx, pool, token, false); err != nil {
				return err
			}
			return test.end(ctx)
		})
		if err == nil || errors.Is(err, idem.ErrRolledBack) || errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %v", token, err)
		}
		if r, err := g.Inspect(t.Context(), token); err != nil || r.State == store.Done || r.Spent == 0 {
			t.Errorf("%s: %+v, %v", token, r, err)
		}
		if test.says == theirs {
			has(t, pool, token, 0)
		}
	}
	err := g.Do(t.Context(), "nested", func(ctx context.Context) error {
		tx, err := pgxstore.Tx(ctx)
		if err != nil {
			return err
		}
		nested, err := tx.Begin(ctx)
		if err != nil {
			return err
		}
		_, err = nested.Exec(ctx, "INSERT INTO effects VALUES ('nested')")
		return errors.Join(err, nested.Commit(ctx))
	})
	if err != nil {
		t.Error(err)
	}
	has(t, pool, "nested", 1)
	if n := pool.Stat().AcquiredConns(); n != 0 {
		t.Errorf("%d connections were not given back", n)
	}
}

// A transaction within another one is no transaction to commit a claim with: what its Commit
// keeps, the outer one may still undo.
func TestCommitTxNested(t *testing.T) {
	t.Parallel()
	pool := open(t, sqltest.StartPostgres(t, "").DSN())
	if _, err := pool.Exec(t.Context(), "CREATE TABLE effects (name text)"); err != nil {
		t.Fatal(err)
	}
	g := idem.New(idem.WithStore(pgxstore.New(pool, pgxstore.WithCreate())))
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	commitNested := func(ctx context.Context, outer pgx.Tx, c *idem.Claim) error {
		tx, err := outer.Begin(ctx)
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "INSERT INTO effects VALUES ('nested')"); err != nil {
			return err
		}
		return pgxstore.CommitTx(ctx, tx, c)
	}
	for name, begin := range map[string]func() (pgx.Tx, error){
		"the pool's":     func() (pgx.Tx, error) { return pool.Begin(t.Context()) },
		"a connection's": func() (pgx.Tx, error) { return conn.Begin(t.Context()) },
		"a handler's":    nil,
	} {
		c, err := g.Begin(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if begin == nil {
			err = g.Do(t.Context(), "outer", func(ctx context.Context) error {
				tx, err := pgxstore.Tx(ctx)
				if err != nil {
					return err
				}
				if err = commitNested(ctx, tx, c); err == nil {
					err = errors.New("committed")
				}
				return err
			})
		} else {
			outer, oops := begin()
			if oops != nil {
				t.Fatal(oops)
			}
			err = commitNested(t.Context(), outer, c)
			if err := outer.Rollback(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if err == nil || !strings.Contains(err.Error(), "outer") {
			t.Errorf("%s: CommitTx: %v", name, err)
		}
		if err := c.GiveBack(t.Context()); err != nil {
			t.Errorf("%s: GiveBack: %v", name, err)
		}
	}
	has(t, pool, "nested", 0)
}
