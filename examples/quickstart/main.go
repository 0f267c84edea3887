// Command quickstart sends 1,000 orders through NATS JetStream to a service that has
// every trouble of real life (see trouble.go), three times: to consumers written by
// hand, and to consumers with idem. It counts what became of each order.
//
//	go run ./examples/quickstart
//
// It needs nothing but Go: the NATS server runs inside the program, and the records
// are kept in memory. With -nats and -redis it uses servers of yours, and removes
// what it made there.
//
// The exit status is 1 if with idem an order was lost or handled twice, and 2 if the
// program could not do its work.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/idemq/idemq/consumers"
	idemnats "github.com/idemq/idemq/consumers/nats"
	"github.com/idemq/idemq/idem"
)

const (
	orders = 1000

	// A message that is not acked for ackWait is delivered again.
	ackWait = 750 * time.Millisecond

	// The lease of a consumer that dies keeps its orders from the others until it
	// runs out. The default is 10 s; this is short so that nobody has to wait.
	lease = 2 * time.Second
)

// ways are the consumers that are compared.
var ways = [...]way{
	{"by hand: handle, then ack", handleThenAck},
	{"by hand: SETNX, then handle", setnxThenHandle},
	{"with idem", withIdem},
}

type way struct {
	name    string
	consume func(context.Context, *replica) error
}

// withIdem is a consumer with the library. Its group is named by the stream and the
// durable consumer.
func withIdem(ctx context.Context, r *replica) error {
	guard := idem.New(idem.WithStore(r.store), idem.WithPrefix(r.prefix), idem.WithLease(lease))
	consumer, err := idemnats.NewConsumer(r.source, guard, r.handle,
		consumers.Backoff(10*time.Millisecond, time.Second)) // before a failed order is tried again
	if err != nil {
		return err
	}
	return consumer.Run(ctx)
}

// publish sends the orders, each with a token of its own. Some are sent twice, as by
// a producer that did not see the answer to the first: with the same token, after
// the stream's own window for duplicates.
func publish(ctx context.Context, js jetstream.JetStream, subject string, l *ledger) error {
	guard := idem.New() // to stamp takes no store
	again := make([]*nats.Msg, 0, orders)
	for n := range orders {
		msg := nats.NewMsg(subject)
		msg.Data = orderData(n)
		if err := idemnats.Stamp(ctx, guard, msg); err != nil {
			return err
		}
		if _, err := js.PublishMsg(ctx, msg); err != nil {
			return err
		}
		l.sent(n)
		if sentTwice(n) {
			again = append(again, msg)
		}
	}
	for _, msg := range again {
		if err := publishAfterWindow(ctx, js, msg); err != nil {
			return err
		}
	}
	return nil
}

// compare sends the orders to one kind of consumer, in a stream of its own, and
// counts. Two replicas of the service share the work; the first one dies.
func compare(ctx context.Context, s *servers, w way, bar *progress) (counts, error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	stream, err := s.newStream(ctx)
	if err != nil {
		return counts{}, err
	}
	defer stream.remove()

	l := newLedger()
	if err := publish(ctx, s.js, stream.subject, l); err != nil {
		return counts{}, fmt.Errorf("publish: %w", err)
	}

	t := newTrouble(l)
	failed := make(chan error, 2)
	first, err := s.newReplica(ctx, stream, t, diesAtOrder)
	if err != nil {
		return counts{}, err
	}
	defer first.close()
	go func() {
		if err := w.consume(ctx, first); err != nil && !first.dead.Load() {
			failed <- err // its death is no failure
		}
	}()
	second, err := s.newReplica(ctx, stream, t, never)
	if err != nil {
		return counts{}, err
	}
	defer second.close()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-first.atWork:
		case <-ctx.Done():
		}
		if err := w.consume(ctx, second); err != nil {
			failed <- err
		}
	}()

	deliveries, err := stream.drained(ctx, bar, failed)
	if err != nil {
		return counts{}, err
	}
	if !first.dead.Load() {
		return counts{}, errors.New("the first consumer never got to the order that it dies in")
	}
	stop()
	<-ended // the first one is dead: nobody waits for it
	return l.count(deliveries), nil
}

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout, stderr io.Writer) (status int) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	flags := flag.NewFlagSet("quickstart", flag.ContinueOnError)
	flags.SetOutput(stderr)
	natsURL := flags.String("nats", "", "`URL` of a NATS server with JetStream (default: one inside this program)")
	redisURL := flags.String("redis", "", "`URL` of a Redis server (default: records in memory)")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	}
	fail := func(err error) int {
		fmt.Fprintf(stderr, "quickstart: %v\n", err)
		return 2
	}
	s, err := open(ctx, *natsURL, *redisURL)
	if err != nil {
		return fail(err)
	}
	defer s.close()

	fmt.Fprintf(stdout, "%d orders, %d of them sent twice; acks get lost, handlers fail, a consumer dies.\n\n", orders, repeats())
	var table [len(ways)]counts
	for i, w := range ways {
		bar := newProgress(stdout, w.name, orders+repeats())
		table[i], err = compare(ctx, s, w, bar)
		bar.end()
		if err != nil {
			return fail(fmt.Errorf("%s: %w", w.name, err))
		}
	}
	printTable(stdout, table[:])
	result := table[len(table)-1]
	fmt.Fprintf(stdout, "\nwith idem: %d messages, %d deliveries, %d effects, %d doubled, %d lost\n",
		result.messages, result.deliveries, result.effects, result.doubled, result.lost)
	if result.doubled > 0 || result.lost > 0 {
		return 1
	}
	return 0
}
