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

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/redis/go-redis/v9"

	"github.com/idemq/idemq/consumers"
	idemamqp "github.com/idemq/idemq/consumers/amqp"
	"github.com/idemq/idemq/idem"
)

const amqpRoleEnv = "IDEM_E2E_AMQP"

// amqpRole is what a process that consumes from RabbitMQ is told.
type amqpRole struct {
	URL, Redis    string
	Queue, DeadTo string
	Prefix        string   // of the records and the ledger
	Poison        []string // tokens whose handler kills the process
	Hold          []string // tokens whose handler waits for its end
	Lease         time.Duration
	Budget        int
	Concurrency   int
	DeliveryLimit int
	Instance      string
}

// consumeAMQP is a process that consumes from RabbitMQ.
func consumeAMQP(config string) int {
	var r amqpRole
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

func (r amqpRole) run(ctx context.Context) error {
	rdb := redis.NewClient(&redis.Options{Addr: r.Redis})
	defer rdb.Close()
	options := []idem.Option{idem.WithRedis(rdb), idem.WithPrefix(r.Prefix), idem.WithLease(r.Lease)}
	if r.Instance != "" {
		options = append(options, idem.WithInstance(r.Instance))
	}
	opts := []idemamqp.Option{
		idemamqp.DeadLetter("", r.DeadTo), idemamqp.Concurrency(max(r.Concurrency, 1)), consumers.Budget(r.Budget),
		consumers.Backoff(10*time.Millisecond, 50*time.Millisecond),
	}
	if r.DeliveryLimit > 0 {
		opts = append(opts, idemamqp.DeliveryLimit(r.DeliveryLimit))
	}
	c, err := idemamqp.NewQueueConsumer(r.URL, r.Queue, idem.New(options...), func(ctx context.Context, _ amqp.Delivery) error {
		claim, _ := idem.FromContext(ctx)
		token := claim.Token()
		poison, hold := slices.Contains(r.Poison, token), slices.Contains(r.Hold, token)
		if poison || hold {
			if err := rdb.RPush(ctx, attemptsKey(r.Prefix), fmt.Sprintf("%s %d", token, claim.Attempt())).Err(); err != nil {
				return err
			}
		}
		if poison {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		if hold {
			<-ctx.Done()
			return context.Cause(ctx)
		}
		return rdb.HIncrBy(ctx, ledgerKey(r.Prefix), token, 1).Err()
	}, opts...)
	if err != nil {
		return err
	}
	return c.Run(ctx)
}
