package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/redis/go-redis/v9"

	"github.com/idemq/idemq/consumers"
	idemnats "github.com/idemq/idemq/consumers/nats"
	"github.com/idemq/idemq/idem"
)

const roleEnv = "IDEM_E2E_CONSUMER"

// role is what a consumer process is told.
type role struct {
	NATS, Redis      string
	Stream, Durable  string
	Prefix, DeadTo   string
	Poison           []string      // tokens whose handler kills the process
	Work             time.Duration // what a handler takes
	Lease            time.Duration
	Budget           int
	Ahead            int
	Concurrency      int
	Instance         string
	FailFirstOfEvery int // one in so many tokens fails on its first attempt
}

// Keys of the ledger, in the same Redis, written by the handlers themselves.
func ledgerKey(prefix string) string   { return prefix + "-ledger" }   // hash: token to effects
func attemptsKey(prefix string) string { return prefix + "-attempts" } // list: token and attempt, at each start of a poison's handler

// consume is a consumer process.
func consume(config string) int {
	var r role
	if err := json.Unmarshal([]byte(config), &r); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := r.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func (r role) run(ctx context.Context) error {
	nc, err := nats.Connect(r.NATS, nats.MaxReconnects(-1))
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	source, err := js.Consumer(ctx, r.Stream, r.Durable)
	if err != nil {
		return err
	}
	rdb := redis.NewClient(&redis.Options{Addr: r.Redis})
	defer rdb.Close()
	options := []idem.Option{idem.WithRedis(rdb), idem.WithPrefix(r.Prefix), idem.WithLease(r.Lease)}
	if r.Instance != "" {
		options = append(options, idem.WithInstance(r.Instance))
	}
	opts := []idemnats.Option{
		idemnats.DeadLetter(js, r.DeadTo), consumers.Budget(r.Budget), consumers.WorkAhead(r.Ahead),
		consumers.Backoff(10*time.Millisecond, 50*time.Millisecond),
	}
	if r.Concurrency > 1 {
		opts = append(opts, idemnats.Concurrency(r.Concurrency))
	}
	c, err := idemnats.NewConsumer(source, idem.New(options...), func(ctx context.Context, _ jetstream.Msg) error {
		claim, _ := idem.FromContext(ctx)
		if slices.Contains(r.Poison, claim.Token()) {
			if err := rdb.RPush(ctx, attemptsKey(r.Prefix), fmt.Sprintf("%s %d", claim.Token(), claim.Attempt())).Err(); err != nil {
				return err
			}
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		select {
		case <-time.After(r.Work):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		return rdb.HIncrBy(ctx, ledgerKey(r.Prefix), claim.Token(), 1).Err()
	}, opts...)
	if err != nil {
		return err
	}
	return c.Run(ctx)
}
