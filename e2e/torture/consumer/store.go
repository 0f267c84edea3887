package main

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	_ "github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/redis/go-redis/v9"
	_ "modernc.org/sqlite"

	"github.com/idemq/idemq/e2e/torture/role"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/natsstore"
	"github.com/idemq/idemq/idem/store/redisstore"
	"github.com/idemq/idemq/idem/store/sqlstore"
	"github.com/idemq/idemq/idem/store/sqlstore/pgxstore"
)

const (
	dialTimeout = 2 * time.Second
	poolSize    = 32
	// Each message of a batch has a transaction of its own, and a connection with it, until
	// the handler returns; four handlers at a time leave enough for the guard.
	sqlBatch = 4
)

const (
	redisCompact = "redis-compact"
	// In a round some buckets go over to the next generation, and none forgets what was done in it.
	compactRetention = 5 * time.Minute
	// Buckets get many tokens, as in production.
	compactTokens = 20_000
)

// effect writes the effect of an attempt.
type effect = func(ctx context.Context, token uint32, attempt int) error

// openStore opens the store, and says how an effect is written where that belongs to the
// store. It sends nothing.
func openStore(c role.Config) (st store.Store, eff effect, done func(), err error) {
	switch c.Store.Kind {
	case "redis", redisCompact:
		client := redis.NewClient(&redis.Options{
			Addr: c.Store.Addr, DialTimeout: dialTimeout, ReadTimeout: dialTimeout, WriteTimeout: dialTimeout, ContextTimeoutEnabled: true,
		})
		var opts []redisstore.Option
		if c.Store.Kind == redisCompact {
			opts = append(opts, redisstore.WithCompact(redisstore.Compact{Retention: compactRetention, Tokens: compactTokens}))
		}
		return redisstore.New(client, opts...), nil, func() { _ = client.Close() }, nil
	case "nats":
		js, done, err := connectNATS(c.Store.Addr)
		if err != nil {
			return nil, nil, nil, err
		}
		return natsstore.New(js, c.Store.Bucket), nil, done, nil
	case "postgres":
		if c.PGX {
			return openPGX(c)
		}
		return openSQL(c, "pgx", sqlstore.Postgres, insertPostgres)
	case "mariadb":
		return openSQL(c, "mysql", sqlstore.MySQL, "INSERT INTO effects (token, attempt, process) VALUES (?, ?, ?)")
	case "sqlite":
		return openSQL(c, "sqlite", sqlstore.SQLite, "INSERT INTO effects (token, attempt, process) VALUES (?, ?, ?)")
	}
	return nil, nil, nil, fmt.Errorf("store %q is not known", c.Store.Kind)
}

func openSQL(c role.Config, driver string, d sqlstore.Dialect, insert string) (store.Store, effect, func(), error) {
	db, err := sql.Open(driver, c.Store.Addr)
	if err != nil {
		return nil, nil, nil, err
	}
	db.SetMaxOpenConns(poolSize)
	db.SetMaxIdleConns(poolSize)
	eff := func(ctx context.Context, token uint32, attempt int) error {
		tx, err := sqlstore.Tx(ctx)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, insert, int64(token), attempt, int64(c.Number))
		return err
	}
	return sqlstore.New(db, d), eff, func() { _ = db.Close() }, nil
}

const insertPostgres = "INSERT INTO effects (token, attempt, process) VALUES ($1, $2, $3)"

func openPGX(c role.Config) (store.Store, effect, func(), error) {
	config, err := pgxpool.ParseConfig(c.Store.Addr)
	if err != nil {
		return nil, nil, nil, err
	}
	config.MaxConns = poolSize
	pool, err := pgxpool.NewWithConfig(context.Background(), config)
	if err != nil {
		return nil, nil, nil, err
	}
	eff := func(ctx context.Context, token uint32, attempt int) error {
		tx, err := pgxstore.Tx(ctx)
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, insertPostgres, int64(token), attempt, int64(c.Number))
		return err
	}
	return pgxstore.New(pool), eff, pool.Close, nil
}

// connectNATS makes a connection that comes back for ever, and notices soon that nothing
// comes through.
func connectNATS(url string) (jetstream.JetStream, func(), error) {
	nc, err := nats.Connect(url,
		nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond), nats.ReconnectJitter(50*time.Millisecond, 0),
		nats.Timeout(dialTimeout), nats.PingInterval(time.Second), nats.MaxPingsOutstanding(2), nats.IgnoreDiscoveredServers(),
	)
	if err != nil {
		return nil, nil, err
	}
	js, err := jetstream.New(nc)
	if err != nil {
		nc.Close()
		return nil, nil, err
	}
	return js, func() { _ = nc.FlushTimeout(dialTimeout); nc.Close() }, nil
}
