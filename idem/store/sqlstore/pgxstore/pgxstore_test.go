package pgxstore_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/sqlstore/pgxstore"
	"github.com/idemq/idemq/idem/store/storetest"
	"github.com/idemq/idemq/internal/sqltest"
	"github.com/idemq/idemq/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(tb testing.TB, dsn string) *pgxpool.Pool {
	tb.Helper()
	pool, err := pgxpool.New(context.Background(), dsn)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(pool.Close)
	return pool
}

func harness(pool *pgxpool.Pool, lease time.Duration) storetest.Harness {
	return storetest.Harness{
		Open: func(testing.TB) store.Store { return pgxstore.New(pool, pgxstore.WithCreate()) },
		Wait: func(tb testing.TB, d time.Duration) {
			end := time.Now().Add(d)
			testenv.Await(tb, "time to pass", func() bool { return time.Now().After(end) })
		},
		Lease: lease,
		Corrupt: func(tb testing.TB, _ store.Store, prefix, _, token string, how storetest.Corruption) {
			set := map[storetest.Corruption]string{
				storetest.WrongType: "state = 77", storetest.Garbage: "version = 0", storetest.NewerVersion: "version = 2",
			}[how]
			_, err := pool.Exec(context.Background(),
				fmt.Sprintf("UPDATE idemq_records SET %s WHERE token = $1 AND gid IN (SELECT id FROM idemq_groups WHERE prefix = $2)", set), []byte(token), []byte(prefix))
			if err != nil {
				tb.Fatal(err)
			}
		},
	}
}

func TestStore(t *testing.T) {
	t.Parallel()
	pool := open(t, sqltest.StartPostgres(t, "").DSN())
	h := harness(pool, 100*time.Millisecond)
	h.Name = "PostgreSQL, by pgxstore"
	if err := pool.QueryRow(t.Context(), "SELECT split_part(current_setting('server_version'), ' ', 1)").Scan(&h.Server); err != nil {
		t.Fatal(err)
	}
	storetest.Run(t, h)
}

func TestHistories(t *testing.T) {
	t.Parallel()
	storetest.Histories(t, harness(open(t, sqltest.StartPostgres(t, "").DSN()), 30*time.Millisecond))
}

func await(tb testing.TB, what string, cond func() bool) {
	tb.Helper()
	testenv.Await(tb, what, cond)
}
