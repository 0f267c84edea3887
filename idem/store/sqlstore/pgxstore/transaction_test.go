package pgxstore_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/sqlstore"
	"github.com/idemq/idemq/idem/store/sqlstore/pgxstore"
	"github.com/idemq/idemq/internal/sqltest"
)

func has(t *testing.T, pool *pgxpool.Pool, name string, want int) {
	t.Helper()
	n := 0
	if err := pool.QueryRow(t.Context(), "SELECT count(*) FROM effects WHERE name = $1", name).Scan(&n); err != nil {
		t.Fatal(err)
	}
	if n != want {
		t.Errorf("the effect %q is there %d times, want %d", name, n, want)
	}
}

// write is a handler's effect, in the store's transaction or in one of its own.
func write(ctx context.Context, pool *pgxpool.Pool, name string, own bool) error {
	if own {
		tx, err := pool.Begin(ctx)
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "INSERT INTO effects VALUES ($1)", name); err != nil {
			return err
		}
		c, _ := idem.FromContext(ctx)
		return pgxstore.CommitTx(ctx, tx, c)
	}
	tx, err := pgxstore.Tx(ctx)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, "INSERT INTO effects VALUES ($1)", name)
	return err
}

// An effect is there once, also when the connection is cut exactly at COMMIT.
func TestTx(t *testing.T) {
	t.Parallel()
	server := sqltest.StartPostgres(t, "")
	direct := open(t, server.DSN())
	if _, err := direct.Exec(t.Context(), "CREATE TABLE effects (name text)"); err != nil {
		t.Fatal(err)
	}
	p := sqltest.StartProxy(t, server)
	pool := open(t, p.DSN())
	for _, level := range []pgx.TxIsoLevel{pgx.ReadCommitted, pgx.Serializable} {
		g := idem.New(idem.WithStore(pgxstore.New(pool, pgxstore.WithCreate(), pgxstore.WithTxOptions(pgx.TxOptions{IsoLevel: level}))))
		for _, how := range []sqltest.Cut{0, sqltest.CutBefore, sqltest.CutAfter} {
			for _, own := range []bool{false, true} {
				name := fmt.Sprint(level, how, own)
				if how != 0 {
					p.CutNextCommit(how, name)
				}
				handler := func(ctx context.Context) error { return write(ctx, pool, name, own) }
				err := g.Do(t.Context(), name, handler)
				if how == sqltest.CutBefore {
					if !errors.Is(err, idem.ErrRolledBack) {
						t.Errorf("%s: %v", name, err)
					}
					has(t, direct, name, 0)
					err = g.Do(t.Context(), name, handler)
				}
				if err != nil {
					t.Errorf("%s: %v", name, err)
				}
				has(t, direct, name, 1)
				if err := g.Do(t.Context(), name, handler); !errors.Is(err, idem.ErrDuplicate) {
					t.Errorf("%s again: %v", name, err)
				}
				has(t, direct, name, 1)
			}
		}
		errBoom := errors.New("boom")
		err := g.Do(t.Context(), "fails", func(ctx context.Context) error {
			return errors.Join(write(ctx, pool, "fails", false), errBoom)
		})
		if !errors.Is(err, errBoom) {
			t.Errorf("a failing handler: %v", err)
		}
		has(t, direct, "fails", 0)
	}
	if _, err := pgxstore.Tx(t.Context()); err == nil {
		t.Error("a transaction outside of a handler")
	}
	if n := pool.Stat().AcquiredConns(); n != 0 {
		t.Errorf("%d connections were not given back", n)
	}
}

// The transaction ends with the context that its handler was given, whoever still runs.
func TestTxEndsWithContext(t *testing.T) {
	t.Parallel()
	pool := open(t, sqltest.StartPostgres(t, "").DSN())
	s := pgxstore.New(pool, pgxstore.WithCreate())
	b := &store.Batch{Prefix: "p", Lease: time.Second, Retention: time.Hour, Ops: []store.Op{{Kind: store.Begin, Token: "a", Claim: "c"}}}
	if err := s.Apply(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	b.Ops[0] = store.Op{Kind: store.Commit, Token: "a", Claim: "c", Attempt: 1}
	parent, cancel := context.WithCancel(t.Context())
	ctx, tx := s.Enlist(parent, b, func() {})
	if _, err := pgxstore.Tx(ctx); err != nil {
		t.Fatal(err)
	}
	cancel()
	awaitIdle := func() bool {
		var n int
		err := pool.QueryRow(t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'").Scan(&n)
		return err == nil && n == 0
	}
	await(t, "the server to roll back", awaitIdle)
	if err := tx.Commit(t.Context(), b); !errors.Is(err, store.ErrRolledBack) {
		t.Errorf("Commit: %v", err)
	}
	tx.Rollback()
}

// Connections that died in the pool are passed over; where each one dies, new ones too, it is
// an outage, and soon.
func TestConnectionsThatDie(t *testing.T) {
	t.Parallel()
	config, err := pgxpool.ParseConfig(sqltest.StartPostgres(t, "").DSN())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var left, died atomic.Int32 // connections that are to die, and did
	config.MaxConns = 3
	config.PrepareConn = func(_ context.Context, c *pgx.Conn) (bool, error) {
		if left.Add(-1) < 0 {
			return true, nil
		}
		if died.Add(1) == 100 {
			cancel()
		}
		return true, c.PgConn().Conn().Close()
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	s := pgxstore.New(pool, pgxstore.WithCreate())
	begin := func(token string, dying int32) error {
		b := &store.Batch{Prefix: "p", Lease: time.Second, Retention: time.Hour, Ops: []store.Op{{Kind: store.Begin, Token: token, Claim: "c"}}}
		left.Store(dying)
		died.Store(0)
		return s.Apply(ctx, b)
	}
	if err := begin("none", 0); err != nil {
		t.Fatal(err)
	}
	if err := begin("all that can be in the pool", 3); err != nil || died.Load() != 3 {
		t.Errorf("%d connections died: %v", died.Load(), err)
	}
	if err := begin("each", 1<<20); !errors.Is(err, store.ErrUnavailable) || died.Load() != 4 {
		t.Errorf("%d connections died: %v", died.Load(), err)
	}
}

// Two stores of both kinds, on one database, give each token to one claim.
func TestBesideSQLStore(t *testing.T) {
	t.Parallel()
	dsn := sqltest.StartPostgres(t, "").DSN()
	db, err := sql.Open("pgx", dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	stores := []store.Store{
		pgxstore.New(open(t, dsn), pgxstore.WithCreate()),
		sqlstore.New(db, sqlstore.Postgres, sqlstore.WithCreate()),
	}
	const tokens, racers = 40, 12
	var claimed [tokens]atomic.Int32
	var wg sync.WaitGroup
	for r := range racers {
		wg.Go(func() {
			b := &store.Batch{Prefix: "p", Lease: time.Minute, Retention: time.Hour}
			for i := range tokens {
				b.Ops = append(b.Ops, store.Op{Kind: store.Begin, Group: "g", Token: fmt.Sprint("t", (i+r*7)%tokens), Claim: fmt.Sprint("c", r)})
			}
			if err := stores[r%2].Apply(t.Context(), b); err != nil {
				t.Errorf("Apply: %v", err)
				return
			}
			for i, reply := range b.Replies {
				switch reply.Status {
				case store.Claimed:
					claimed[(i+r*7)%tokens].Add(1)
				case store.InProgress:
				default:
					t.Errorf("Begin: %+v", reply)
				}
			}
		})
	}
	wg.Wait()
	for i := range claimed {
		if n := claimed[i].Load(); n != 1 {
			t.Errorf("token %d was claimed %d times", i, n)
		}
	}
}
