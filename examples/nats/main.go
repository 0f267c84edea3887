// Command nats publishes orders to a JetStream stream, each of them twice, and handles
// them with a durable consumer. It counts: each order is handled once, and those that
// cannot be read, one in fifty, are in the dead-letter stream.
//
//	go run ./examples/nats -nats nats://localhost:4222 -redis redis://localhost:6379/0 -n 100
//
// The exit status is 1 if an order was lost or handled twice, and 2 if the program could
// not do its work. It removes its streams at the end.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/redis/go-redis/v9"

	idemnats "github.com/idemq/idemq/consumers/nats"
	"github.com/idemq/idemq/idem"
)

// maxAge is how long the stream keeps a message; the records are kept longer.
const maxAge = time.Hour

// patience is how long the orders may take.
const patience = time.Minute

func isUnreadable(order int) bool { return order%50 == 13 }

// publish publishes the orders, each with a token of its own, and then publishes the
// same messages again, as a producer does that did not see the answer.
func publish(ctx context.Context, js jetstream.JetStream, subject string, n int) error {
	guard := idem.New() // to stamp takes no store
	orders := make([]*nats.Msg, n)
	for i := range orders {
		orders[i] = nats.NewMsg(subject)
		orders[i].Data = []byte(strconv.Itoa(i))
		if isUnreadable(i) {
			orders[i].Data = []byte("?")
		}
		if err := idemnats.Stamp(ctx, guard, orders[i]); err != nil {
			return err
		}
	}
	for range 2 {
		for _, msg := range orders {
			if err := publishOne(ctx, js, msg); err != nil {
				return fmt.Errorf("publish: %w", err)
			}
		}
	}
	return nil
}

// publishOne returns when the stream has another copy of msg. For a short window, this
// stream's is 100 ms, the server itself drops a message that it has: then it was no
// copy, and is published once more.
func publishOne(ctx context.Context, js jetstream.JetStream, msg *nats.Msg) error {
	for {
		ack, err := js.PublishMsg(ctx, msg)
		if err != nil || !ack.Duplicate {
			return err
		}
	}
}

// consume handles orders until the server has none left that is not acked.
func consume(ctx context.Context, js jetstream.JetStream, source jetstream.Consumer, deadLetters string, client *redis.Client, s *shop) error {
	guard := idem.New(
		idem.WithRedis(client),
		idem.WithPrefix("example"),
		idem.WithRetention(2*maxAge),
		idem.WithObserver(s),
	)
	consumer, err := idemnats.NewConsumer(source, guard, s.handle, idemnats.DeadLetter(js, deadLetters))
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
		if info, err := source.Info(ctx); err == nil && info.NumPending == 0 && info.NumAckPending == 0 {
			stop()
		}
	}
}

// shop handles orders, and counts.
type shop struct {
	mu                       sync.Mutex
	handled                  map[string]int
	duplicates, deadLettered int
}

// handle is what is to happen once.
func (s *shop) handle(_ context.Context, msg jetstream.Msg) error {
	order := string(msg.Data())
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
	case idem.EventDuplicate:
		s.duplicates++
	case idem.EventDeadLetter:
		s.deadLettered++
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
	if s.deadLettered != unreadable {
		return fmt.Errorf("%d orders were dead-lettered, want %d", s.deadLettered, unreadable)
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
	flags := flag.NewFlagSet("nats", flag.ContinueOnError)
	flags.SetOutput(stderr)
	natsURL := flags.String("nats", "nats://localhost:4222", "`URL` of a NATS server with JetStream")
	redisURL := flags.String("redis", "redis://localhost:6379/0", "`URL` of the Redis server")
	n := flags.Int("n", 100, "`number` of orders")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	}
	s := &shop{handled: map[string]int{}}
	if err := s.open(ctx, *natsURL, *redisURL, *n); err != nil {
		fmt.Fprintf(stderr, "nats: %v\n", err)
		return 2
	}
	fmt.Fprintf(stdout, "%d orders, each published twice: %d handled, %d dead-lettered, %d duplicates dropped\n",
		*n, len(s.handled), s.deadLettered, s.duplicates)
	if err := s.verify(*n); err != nil {
		fmt.Fprintf(stderr, "nats: the promise was broken: %v\n", err)
		return 1
	}
	return 0
}

// open publishes and handles the orders.
func (s *shop) open(ctx context.Context, natsURL, redisURL string, n int) error {
	if n < 1 {
		return fmt.Errorf("-n %d: must be more than zero", n)
	}
	client, err := connectRedis(ctx, redisURL)
	if err != nil {
		return err
	}
	defer client.Close()
	conn, js, err := connectNATS(natsURL)
	if err != nil {
		return err
	}
	defer conn.Close()

	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("not done after %v: some orders are still with the servers", patience))
	defer cancel()
	name := "example-orders-" + idem.NewToken()
	remove, err := createStreams(ctx, js, name, name+"-dead")
	if err != nil {
		return err
	}
	defer remove()
	source, err := js.CreateConsumer(ctx, name, jetstream.ConsumerConfig{
		Durable:    "billing",
		AckPolicy:  jetstream.AckExplicitPolicy,
		AckWait:    10 * time.Second, // how long a killed process's messages wait
		MaxDeliver: -1,               // the consumer's budget says how often a message is tried
	})
	if err != nil {
		return err
	}
	if err := publish(ctx, js, name, n); err != nil {
		return err
	}
	if err := consume(ctx, js, source, name+"-dead", client, s); err != nil {
		return err
	}
	return context.Cause(ctx) // out of patience, or interrupted
}

// createStreams makes streams whose subjects are their names, and returns what removes
// them again.
func createStreams(ctx context.Context, js jetstream.JetStream, names ...string) (remove func(), err error) {
	remove = func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		for _, name := range names {
			_ = js.DeleteStream(ctx, name)
		}
	}
	for _, name := range names {
		_, err := js.CreateStream(ctx, jetstream.StreamConfig{
			Name: name, Subjects: []string{name}, MaxAge: maxAge, Duplicates: 100 * time.Millisecond,
		})
		if err != nil {
			remove()
			return nil, fmt.Errorf("-nats: creating a stream: %w: start the server with JetStream (nats-server -js)", err)
		}
	}
	return remove, nil
}

func connectNATS(natsURL string) (*nats.Conn, jetstream.JetStream, error) {
	u, err := url.Parse(natsURL)
	if err != nil || u.Host == "" {
		return nil, nil, errors.New("-nats: write it as nats://host:port")
	}
	conn, err := nats.Connect(natsURL, nats.Timeout(2*time.Second), nats.MaxReconnects(-1))
	if err != nil {
		return nil, nil, fmt.Errorf("nats at %s does not answer: %w: start one there, or name another with -nats", u.Host, err)
	}
	js, err := jetstream.New(conn)
	return conn, js, err
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
