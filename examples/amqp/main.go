// Command amqp publishes orders to a RabbitMQ queue, each of them twice, and handles
// them. It counts: each order is handled once, and those that cannot be read, one in
// fifty, are in the dead-letter queue.
//
//	go run ./examples/amqp -amqp amqp://guest:guest@localhost:5672/ -redis redis://localhost:6379/0 -n 100
//
// The exit status is 1 if an order was lost or handled twice, and 2 if the program could
// not do its work. It removes its queues at the end.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/redis/go-redis/v9"

	idemamqp "github.com/idemq/idemq/consumers/amqp"
	"github.com/idemq/idemq/idem"
)

// timeToLive is how long the queue keeps a message; the records are kept longer.
const timeToLive = time.Hour

// patience is how long the orders may take.
const patience = time.Minute

func isUnreadable(order int) bool { return order%50 == 13 }

// publish publishes the orders, each with a token of its own, and then publishes the
// same messages again, as a producer does that did not see the confirmation.
func publish(ctx context.Context, ch *amqp.Channel, queue string, n int) error {
	guard := idem.New() // to stamp takes no store
	orders := make([]amqp.Publishing, n)
	for i := range orders {
		orders[i] = amqp.Publishing{DeliveryMode: amqp.Persistent, Body: []byte(strconv.Itoa(i))}
		if isUnreadable(i) {
			orders[i].Body = []byte("?")
		}
		if err := idemamqp.Stamp(ctx, guard, &orders[i]); err != nil {
			return err
		}
	}
	returned := ch.NotifyReturn(make(chan amqp.Return, 1))
	for range 2 {
		for _, msg := range orders {
			// The broker confirms when the message is on its disk. Mandatory: one that it has
			// no queue for it returns, and confirms then too.
			confirm, err := ch.PublishWithDeferredConfirmWithContext(ctx, "", queue, true, false, msg)
			if err != nil {
				return fmt.Errorf("publish: %w", err)
			}
			switch ok, err := confirm.WaitContext(ctx); {
			case err != nil:
				return fmt.Errorf("publish: no confirmation: %w", err)
			case !ok:
				return errors.New("publish: the broker refused an order")
			}
			select {
			case r := <-returned:
				return fmt.Errorf("publish: no queue took an order: %s", r.ReplyText)
			default:
			}
		}
	}
	return nil
}

// consume handles orders until all deliveries are accounted for.
func consume(ctx context.Context, amqpURL, queue string, client *redis.Client, s *shop, n int) error {
	guard := idem.New(
		idem.WithRedis(client),
		idem.WithPrefix("example"),
		idem.WithRetention(2*timeToLive),
		idem.WithObserver(s),
	)
	// This constructor opens its own connection, and opens it again when it is lost. For
	// a subscription that you have there is NewConsumer.
	consumer, err := idemamqp.NewQueueConsumer(amqpURL, queue, guard, s.handle, idemamqp.DeadLetter("", queue+"-dead"))
	if err != nil {
		return err
	}
	running, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- consumer.Run(running) }()
	for {
		select {
		case err := <-ended:
			return err
		case <-time.After(50 * time.Millisecond):
		}
		if s.seen() >= 2*n {
			stop()
		}
	}
}

// shop handles orders, and counts.
type shop struct {
	mu                       sync.Mutex
	handled                  map[string]int
	recorded                 int
	duplicates, deadLettered int
	left                     int // messages in the queue at the end
}

// handle is what is to happen once.
func (s *shop) handle(_ context.Context, d amqp.Delivery) error {
	order := string(d.Body)
	if _, err := strconv.Atoi(order); err != nil {
		return idem.Permanent(err) // no other attempt would mend that
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handled[order]++
	return nil
}

// Observe implements idem.Observer.
func (s *shop) Observe(e idem.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch e.Kind {
	case idem.EventCommitted:
		s.recorded++
	case idem.EventDuplicate:
		s.duplicates++
	case idem.EventDeadLetter:
		s.deadLettered++
	}
}

// seen is how many deliveries came to an end.
func (s *shop) seen() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.recorded + s.duplicates + s.deadLettered
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
	switch {
	case s.deadLettered != unreadable:
		return fmt.Errorf("%d orders are in the dead-letter queue, want %d", s.deadLettered, unreadable)
	case s.left != 0:
		return fmt.Errorf("%d messages are still in the queue", s.left)
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
	flags := flag.NewFlagSet("amqp", flag.ContinueOnError)
	flags.SetOutput(stderr)
	amqpURL := flags.String("amqp", "amqp://guest:guest@localhost:5672/", "`URL` of the RabbitMQ server")
	redisURL := flags.String("redis", "redis://localhost:6379/0", "`URL` of the Redis server")
	n := flags.Int("n", 100, "`number` of orders")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	}
	s := &shop{handled: map[string]int{}}
	if err := s.open(ctx, *amqpURL, *redisURL, *n); err != nil {
		fmt.Fprintf(stderr, "amqp: %v\n", err)
		return 2
	}
	fmt.Fprintf(stdout, "%d orders, each published twice: %d handled, %d dead-lettered, %d duplicates dropped\n",
		*n, len(s.handled), s.deadLettered, s.duplicates)
	if err := s.verify(*n); err != nil {
		fmt.Fprintf(stderr, "amqp: the promise was broken: %v\n", err)
		return 1
	}
	return 0
}

// open publishes and handles the orders.
func (s *shop) open(ctx context.Context, amqpURL, redisURL string, n int) error {
	if n < 1 {
		return fmt.Errorf("-n %d: must be more than zero", n)
	}
	client, err := connectRedis(ctx, redisURL)
	if err != nil {
		return err
	}
	defer client.Close()
	conn, ch, err := connectAMQP(amqpURL)
	if err != nil {
		return err
	}
	defer conn.Close()

	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("not done after %v: some orders are still with the servers", patience))
	defer cancel()
	queue := "example-orders-" + idem.NewToken()
	for _, name := range []string{queue, queue + "-dead"} {
		args := amqp.Table{amqp.QueueMessageTTLArg: timeToLive.Milliseconds()}
		if _, err := ch.QueueDeclare(name, true, false, false, false, args); err != nil {
			return fmt.Errorf("-amqp: declaring a queue: %w", err)
		}
		defer func() { _, _ = ch.QueueDelete(name, false, false, false) }()
	}
	if err := publish(ctx, ch, queue, n); err != nil {
		return err
	}
	if err := consume(ctx, amqpURL, queue, client, s, n); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx) // out of patience, or interrupted
	}
	// What the broker itself has at the end.
	left, err := ch.QueueDeclarePassive(queue, true, false, false, false, nil)
	if err != nil {
		return err
	}
	dead, err := ch.QueueDeclarePassive(queue+"-dead", true, false, false, false, nil)
	s.left, s.deadLettered = left.Messages, dead.Messages
	return err
}

// connectAMQP opens a connection and a channel on it that confirms.
func connectAMQP(amqpURL string) (*amqp.Connection, *amqp.Channel, error) {
	u, err := amqp.ParseURI(amqpURL)
	if err != nil {
		return nil, nil, errors.New("-amqp: write it as amqp://user:password@host:port/")
	}
	conn, err := amqp.DialConfig(amqpURL, amqp.Config{Dial: amqp.DefaultDial(2 * time.Second)})
	if err != nil {
		addr := net.JoinHostPort(u.Host, strconv.Itoa(u.Port))
		return nil, nil, fmt.Errorf("no connection to rabbitmq at %s: %w: start one there, or name another, with its user, with -amqp", addr, err)
	}
	ch, err := conn.Channel()
	if err == nil {
		err = ch.Confirm(false)
	}
	if err != nil {
		conn.Close()
		return nil, nil, fmt.Errorf("-amqp: opening a channel: %w", err)
	}
	return conn, ch, nil
}

func connectRedis(ctx context.Context, redisURL string) (*redis.Client, error) {
	opts, err := redis.ParseURL(redisURL)
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
