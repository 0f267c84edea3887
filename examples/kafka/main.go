// Command kafka publishes orders to a topic, each of them twice, and handles them with
// a consumer group. It counts: each order is handled once, and those that cannot be
// read, one in fifty, are in the dead-letter topic.
//
//	go run ./examples/kafka -kafka localhost:9092 -redis redis://localhost:6379/0 -n 100
//
// The exit status is 1 if an order was lost or handled twice, and 2 if the program could
// not do its work. It removes its topics at the end.
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

	idemkafka "github.com/idemq/idemq/consumers/kafka"
	"github.com/idemq/idemq/idem"
)

// retention is how long the broker keeps a message; the records are kept longer.
const retention = time.Hour

// patience is how long an order may take before it counts as lost.
const patience = time.Minute

func isUnreadable(order int) bool { return order%50 == 13 }

// publish writes the orders, each with a token of its own, and then writes the same
// messages again, as a producer does that did not see the answer.
func publish(ctx context.Context, addr, topic string, n int) error {
	w := writer(addr)
	defer w.Close()
	producer := idemkafka.NewWriter(w, idem.New()) // to stamp takes no store
	orders := make([]kafka.Message, n)
	for i := range orders {
		number := []byte(strconv.Itoa(i))
		orders[i] = kafka.Message{Topic: topic, Key: number, Value: number}
		if isUnreadable(i) {
			orders[i].Value = []byte("?")
		}
	}
	for range 2 { // the second time the tokens are there already
		if err := producer.WriteMessages(ctx, orders...); err != nil {
			return fmt.Errorf("publish: %w", err)
		}
	}
	return nil
}

// consume handles orders until the shop has seen enough.
func consume(ctx context.Context, addr, topic string, client *redis.Client, s *shop) error {
	letters := writer(addr)
	defer letters.Close()
	guard := idem.New(
		idem.WithRedis(client),
		idem.WithPrefix("example"),
		idem.WithRetention(2*retention),
		idem.WithObserver(s),
	)
	// This constructor joins the group itself, and reads each partition on its own. For
	// a kafka.Reader that you have there is NewConsumer.
	consumer, err := idemkafka.NewGroupConsumer(kafka.ReaderConfig{
		Brokers: []string{addr}, Topic: topic, GroupID: "billing-" + topic,
		MaxWait: time.Second, JoinGroupBackoff: time.Second,
	}, guard, s.handle, idemkafka.DeadLetter(letters, topic+"-dead"))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	s.enough = cancel
	return consumer.Run(ctx)
}

// shop handles orders, and counts.
type shop struct {
	awaited int // deliveries
	enough  func()

	mu                    sync.Mutex
	handled               map[string]int
	duplicates, unhandled int
}

// handle is what is to happen once.
func (s *shop) handle(_ context.Context, msg kafka.Message) error {
	order := string(msg.Value)
	if _, err := strconv.Atoi(order); err != nil {
		return idem.Permanent(err) // no other attempt would mend that
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handled[order]++
	return nil
}

// Observe implements idem.Observer: what becomes of each delivery.
func (s *shop) Observe(e idem.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch e.Kind {
	case idem.EventCommitted:
	case idem.EventDuplicate:
		s.duplicates++
	case idem.EventDeadLetter:
		s.unhandled++
	default:
		return
	}
	if s.awaited--; s.awaited == 0 {
		s.enough()
	}
}

// verify returns an error if an order was lost or handled twice.
func (s *shop) verify(n int) error {
	unreadable := 0
	for i := range n {
		want := 1
		if isUnreadable(i) {
			want = 0
			unreadable++
		}
		if got := s.handled[strconv.Itoa(i)]; got != want {
			return fmt.Errorf("order %d was handled %d times, want %d", i, got, want)
		}
	}
	if s.unhandled != unreadable {
		return fmt.Errorf("%d orders were dead-lettered, want %d", s.unhandled, unreadable)
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
	flags := flag.NewFlagSet("kafka", flag.ContinueOnError)
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
	s := &shop{awaited: 2 * *n, handled: map[string]int{}}
	if err := s.open(ctx, *addr, *url, *n); err != nil {
		fmt.Fprintf(stderr, "kafka: %v\n", err)
		return 2
	}
	fmt.Fprintf(stdout, "%d orders, each published twice: %d handled, %d dead-lettered, %d duplicates dropped\n",
		*n, len(s.handled), s.unhandled, s.duplicates)
	if err := s.verify(*n); err != nil {
		fmt.Fprintf(stderr, "kafka: the promise was broken: %v\n", err)
		return 1
	}
	return 0
}

// open publishes and handles the orders.
func (s *shop) open(ctx context.Context, addr, url string, n int) error {
	if n < 1 {
		return fmt.Errorf("-n %d: must be more than zero", n)
	}
	client, err := connect(ctx, url)
	if err != nil {
		return err
	}
	defer client.Close()
	topic := "example-orders-" + idem.NewToken()
	remove, err := createTopics(ctx, addr, topic, topic+"-dead")
	if err != nil {
		return err
	}
	defer remove()
	if err := publish(ctx, addr, topic, n); err != nil {
		return err
	}
	if err := consume(ctx, addr, topic, client, s); err != nil {
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
