package sqlstore_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store/sqlstore"
)

// BenchmarkEffect books one row a message, exactly once: through the guard, and by what
// people write by hand, which counts no attempts, knows no leases and keeps all tokens.
func BenchmarkEffect(b *testing.B) {
	for _, on := range []backend{postgres15, mariadb, sqlite} {
		for _, handlers := range []int{1, 32} {
			if on.dialect == sqlstore.SQLite && handlers > 1 {
				continue // one writer
			}
			for _, way := range []string{"hand", "guard"} {
				b.Run(fmt.Sprintf("%s/handlers=%d/%s", on.name, handlers, way), func(b *testing.B) {
					db := on.database(b)
					db.SetMaxIdleConns(2 * handlers)
					for _, statement := range []string{
						"CREATE TABLE effects (name varchar(60))", "CREATE TABLE inbox (token varchar(60) NOT NULL PRIMARY KEY)",
					} {
						if _, err := db.ExecContext(b.Context(), statement); err != nil {
							b.Fatal(err)
						}
					}
					g := idem.New(idem.WithStore(on.store(b, db)))
					book := func(token string) error { return byHand(b.Context(), on, db, token) }
					if way == "guard" {
						book = func(token string) error {
							return g.Do(b.Context(), token, func(ctx context.Context) error { return write(ctx, token) })
						}
					}
					if err := book("first"); err != nil {
						b.Fatal(err)
					}
					b.ResetTimer()
					var next atomic.Int64
					var wg sync.WaitGroup
					for range handlers {
						wg.Go(func() {
							for next.Add(1) <= int64(b.N) {
								if err := book(idem.NewToken()); err != nil {
									b.Error(err)
									return
								}
							}
						})
					}
					wg.Wait()
					b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
				})
			}
		}
	}
}

func byHand(ctx context.Context, on backend, db *sql.DB, token string) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	insert := "INSERT INTO inbox VALUES ('" + token + "') ON CONFLICT DO NOTHING"
	if on.dialect == sqlstore.MySQL {
		insert = "INSERT IGNORE INTO inbox VALUES ('" + token + "')"
	}
	r, err := tx.ExecContext(ctx, insert)
	if err != nil {
		return err
	}
	if n, err := r.RowsAffected(); err != nil || n == 0 {
		return errors.Join(err, errors.New("a duplicate"))
	}
	if _, err := tx.ExecContext(ctx, "INSERT INTO effects VALUES ('"+token+"')"); err != nil {
		return err
	}
	return tx.Commit()
}
