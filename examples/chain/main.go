// Command chain is two consumers in a row. The first one handles orders, and publishes a
// receipt for each; the second one handles the receipts. Every third order fails just
// after its receipt was published, and is handled again: its receipt comes twice, with
// the same token, and takes effect once. So each order has one effect at the far end.
//
//	go run ./examples/chain -kafka localhost:9092 -redis redis://localhost:6379/0 -n 100
//
// The exit status is 1 if a receipt was lost or took effect twice, and 2 if the program
// could not do its work. It removes its topics at the end.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/segmentio/kafka-go"

	"github.com/idemq/idemq/consumers"
	idemkafka "github.com/idemq/idemq/consumers/kafka"
	"github.com/idemq/idemq/idem"
)

// retention is how long the broker keeps a message; the records are kept longer.
const retention = time.Hour

// patience is how long a receipt may take before it counts as lost.
const patience = time.Minute

// chain is the two consumers, and what they counted.
type chain struct {
	addr             string
	redis            *redis.Client
	orders, receipts string // topics

	mu        sync.Mutex
	published int            // receipts
	effects   map[string]int // of receipts, by order
}

// bill handles an order: it publishes a receipt. The receipt's token is made of the
// order's, so it is the same each time.
func (c *chain) bill(w *kafka.Writer) idemkafka.Handler {
	return func(ctx context.Context, order kafka.Message) error {
		receipt := kafka.Message{Topic: c.receipts, Key: order.Key, Value: order.Value}
		if err := idemkafka.StampAs(ctx, &receipt, "receipt"); err != nil {
			return err
		}
		if err := w.WriteMessages(ctx, receipt); err != nil {
			return err
		}
		c.mu.Lock()
		c.published++
		c.mu.Unlock()
		claim, _ := idem.FromContext(ctx)
		if n, _ := strconv.Atoi(string(order.Value)); n%3 == 0 && claim.Attempt() == 1 {
			return errors.New("the database did not answer") // but the receipt is out
		}
		return nil
	}
}

// file handles a receipt. This is what is to happen once.
func (c *chain) file(_ context.Context, receipt kafka.Message) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.effects[string(receipt.Value)]++
	return nil
}

// consume runs one of the consumers. Each has a group of its own, so that one does not
// take the other's tokens for its own.
func (c *chain) consume(ctx context.Context, topic string, handle idemkafka.Handler, settled func(idem.Event)) error {
	guard := idem.New(
		idem.WithRedis(c.redis),
		idem.WithPrefix("example"),
		idem.WithRetention(2*retention),
		idem.WithObserver(idem.ObserverFunc(settled)),
	)
	consumer, err := idemkafka.NewGroupConsumer(kafka.ReaderConfig{
		Brokers: []string{c.addr}, Topic: topic, GroupID: "consumer-of-" + topic,
		MaxWait: time.Second, JoinGroupBackoff: time.Second,
	}, guard, handle, consumers.Backoff(10*time.Millisecond, time.Second))
	if err != nil {
		return err
	}
	return consumer.Run(ctx)
}

// run publishes n orders, and runs both consumers until all their receipts came.
func (c *chain) run(ctx context.Context, n int) error {
	w := writer(c.addr)
	defer w.Close()
	orders := make([]kafka.Message, n)
	for i := range orders {
		number := []byte(strconv.Itoa(i))
		orders[i] = kafka.Message{Topic: c.orders, Key: number, Value: number}
	}
	if err := idemkafka.NewWriter(w, idem.New()).WriteMessages(ctx, orders...); err != nil {
		return fmt.Errorf("publish: %w", err)
	}

	ctx, stop := context.WithTimeout(ctx, patience)
	defer stop()
	awaited := n + repeats(n) // receipts
	errs := make(chan error, 2)
	go func() { errs <- c.consume(ctx, c.orders, c.bill(w), func(idem.Event) {}) }()
	go func() {
		errs <- c.consume(ctx, c.receipts, c.file, func(e idem.Event) {
			c.mu.Lock()
			defer c.mu.Unlock()
			if e.Kind == idem.EventCommitted || e.Kind == idem.EventDuplicate {
				awaited--
			}
			if awaited == 0 {
				stop()
			}
		})
	}()
	err := <-errs
	stop() // one without the other is no chain
	return errors.Join(err, <-errs)
}

// repeats is how many orders fail after their receipt was published.
func repeats(n int) int { return (n + 2) / 3 }

// verify returns an error if a receipt was lost or took effect twice.
func (c *chain) verify(n int) error {
	for i := range n {
		if got := c.effects[strconv.Itoa(i)]; got != 1 {
			return fmt.Errorf("the receipt of order %d took effect %d times", i, got)
		}
	}
	return nil
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}

// run returns the exit status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("chain", flag.ContinueOnError)
	flags.SetOutput(stderr)
	addr := flags.String("kafka", "localhost:9092", "`host:port` of a Kafka broker")
	url := flags.String("redis", "redis://localhost:6379/0", "`URL` of the Redis server")
	n := flags.Int("n", 100, "`number` of orders")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	}
	c := &chain{addr: *addr, effects: map[string]int{}}
	if err := c.open(ctx, *url, *n); err != nil {
		fmt.Fprintf(stderr, "chain: %v\n", err)
		return 2
	}
	fmt.Fprintf(stdout, "%d orders, %d receipts published, %d receipts took effect\n", *n, c.published, len(c.effects))
	if err := c.verify(*n); err != nil {
		fmt.Fprintf(stderr, "chain: the promise was broken: %v\n", err)
		return 1
	}
	fmt.Fprintln(stdout, "from end to end: each order once")
	return 0
}

func (c *chain) open(ctx context.Context, url string, n int) (err error) {
	if n < 1 {
		return fmt.Errorf("-n %d: must be more than zero", n)
	}
	if c.redis, err = connect(ctx, url); err != nil {
		return err
	}
	defer c.redis.Close()
	id := idem.NewToken()
	c.orders, c.receipts = "example-orders-"+id, "example-receipts-"+id
	remove, err := createTopics(ctx, c.addr, c.orders, c.receipts)
	if err != nil {
		return err
	}
	defer remove()
	if err := c.run(ctx, n); err != nil {
		return err
	}
	return context.Cause(ctx) // interrupted
}

// writer waits for the broker's answer, unlike kafka-go's default, and waits no second
// for more messages.
func writer(addr string) *kafka.Writer {
	return &kafka.Writer{
		Addr: kafka.TCP(addr), Balancer: &kafka.Hash{}, RequiredAcks: kafka.RequireAll, BatchTimeout: 10 * time.Millisecond,
	}
}

func connect(ctx context.Context, url string) (*redis.Client, error) {
	opts, err := redis.ParseURL(url)
	if err != nil {
		return nil, fmt.Errorf("-redis: %w: write it as redis://host:port/0", err)
	}
	opts.ContextTimeoutEnabled = true
	opts.DialTimeout = 2 * time.Second
	redis.SetLogger(quiet{}) // errors are returned, and said once
	client := redis.NewClient(opts)
	ask, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := client.Ping(ask).Err(); err != nil {
		client.Close()
		return nil, fmt.Errorf("redis at %s does not answer: %w: start one there, or name another with -redis", opts.Addr, err)
	}
	return client, nil
}

// quiet is a go-redis logger that says nothing.
type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}

// createTopics returns what removes them again.
func createTopics(ctx context.Context, addr string, topics ...string) (remove func(), err error) {
	ask, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := kafka.DialContext(ask, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("kafka at %q does not answer: %w: start one there, or name another with -kafka", addr, err)
	}
	conn.Close()
	client := &kafka.Client{Addr: kafka.TCP(addr), Timeout: 10 * time.Second}
	request := &kafka.CreateTopicsRequest{}
	for _, topic := range topics {
		request.Topics = append(request.Topics, kafka.TopicConfig{
			Topic: topic, NumPartitions: 4, ReplicationFactor: 1,
			ConfigEntries: []kafka.ConfigEntry{{ConfigName: "retention.ms", ConfigValue: strconv.FormatInt(retention.Milliseconds(), 10)}},
		})
	}
	answer, err := client.CreateTopics(ctx, request)
	for _, topic := range topics {
		if err == nil {
			err = answer.Errors[topic]
		}
	}
	if err != nil {
		return nil, fmt.Errorf("-kafka: creating topics at %s: %w", addr, err)
	}
	return func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		_, _ = client.DeleteTopics(ctx, &kafka.DeleteTopicsRequest{Topics: topics})
	}, nil
}
