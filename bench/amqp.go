package bench

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	idemamqp "github.com/idemq/idemq/consumers/amqp"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/internal/rabbittest"
)

// The prefetches of rows: what idemamqp.NewQueueConsumer has by default, and one that has for
// the engine all that it works ahead with.
const (
	usualPrefetch = 65
	longPrefetch  = 1000
)

type amqpServer struct {
	*rabbittest.Server
	release string
	queue   amqp.Table // arguments of the queues
	ch      *amqp.Channel
}

// openAMQP starts a RabbitMQ whose queues have a type.
func openAMQP(queueType string) func(testing.TB) server {
	return func(tb testing.TB) server {
		tb.Helper()
		a := &amqpServer{Server: rabbittest.Start(tb), queue: amqp.Table{amqp.QueueTypeArg: queueType}}
		conn, err := amqp.Dial(a.URL())
		if err != nil {
			tb.Fatalf("connecting to RabbitMQ: %v", err)
		}
		tb.Cleanup(func() { _ = conn.Close() })
		a.release = fmt.Sprint(conn.Properties["version"])
		if a.ch, err = conn.Channel(); err == nil {
			err = a.ch.Confirm(false)
		}
		if err != nil {
			tb.Fatalf("opening a channel to RabbitMQ: %v", err)
		}
		return a
	}
}

func (a *amqpServer) version() string { return "RabbitMQ " + a.release }

func (a *amqpServer) create(tb testing.TB, source string, _ int) string {
	tb.Helper()
	if _, err := a.ch.QueueDeclare(source, true, false, false, false, a.queue); err != nil {
		tb.Fatalf("declaring queue %s: %v", source, err)
	}
	return a.URL()
}

func (a *amqpServer) producer(_ testing.TB, source string) producer {
	return &amqpProducer{ch: a.ch, source: source}
}

type amqpProducer struct {
	ch       *amqp.Channel
	source   string
	confirms []*amqp.DeferredConfirmation // the oldest first
}

// send waits where too many are not confirmed.
func (p *amqpProducer) send(ctx context.Context, some ...message) error {
	for _, m := range some {
		confirm, err := p.ch.PublishWithDeferredConfirmWithContext(ctx, "", p.source, true, false, amqp.Publishing{
			DeliveryMode: amqp.Persistent, Headers: amqp.Table{idem.Header: m.token}, Body: m.payload,
		})
		if err != nil {
			return err
		}
		if p.confirms = append(p.confirms, confirm); len(p.confirms) > publishAhead {
			if err := p.taken(ctx, p.confirms[0]); err != nil {
				return err
			}
			p.confirms = p.confirms[1:]
		}
	}
	return nil
}

func (p *amqpProducer) taken(ctx context.Context, c *amqp.DeferredConfirmation) error {
	ok, err := c.WaitContext(ctx)
	if err == nil && !ok {
		err = fmt.Errorf("queue %s did not take a message", p.source)
	}
	return err
}

func (p *amqpProducer) flush(ctx context.Context) error {
	for _, c := range p.confirms {
		if err := p.taken(ctx, c); err != nil {
			return err
		}
	}
	p.confirms = nil
	return nil
}

func (*amqpProducer) close() {}

func (a *amqpServer) pid() int { return a.Pid() }

func (a *amqpServer) owed(_ context.Context, s *Site) (int, error) { return a.Count(s.Source) }

func (a *amqpServer) discard(tb testing.TB, source string) {
	tb.Helper()
	if _, err := a.ch.QueueDelete(source, false, false, false); err != nil {
		tb.Fatalf("deleting queue %s: %v", source, err)
	}
}

// How many deliveries are acked at once where it is not each, and how long they wait at most.
const (
	usualAcks = 32 // of a prefetch of 65: the broker has the other half to send meanwhile
	longAcks  = 100
	ackWithin = time.Millisecond
)

// amqpRows has two raw rows for each prefetch: one that acks each delivery, which ratios are to,
// and one that acks many at once, as ours do.
func amqpRows() []Row {
	raw := func(name string, kind Kind, prefetch, acks int) Row {
		return Row{Name: "no deduplication, " + name, Kind: kind, Repeats: true, consume: func(ctx context.Context, s *Site, r *Run) error {
			return consumeAMQP(ctx, s, r, prefetch, acks)
		}}
	}
	return []Row{
		raw("an ack each", Baseline, usualPrefetch, 1),
		raw(fmt.Sprintf("acks of up to %d", usualAcks), ByHand, usualPrefetch, usualAcks),
		ourAMQP("idemamqp.NewQueueConsumer, records", 40_000),
		raw("prefetch 1,000, an ack each", Baseline, longPrefetch, 1),
		raw(fmt.Sprintf("prefetch 1,000, acks of up to %d", longAcks), ByHand, longPrefetch, longAcks),
		ourAMQP("idemamqp.NewQueueConsumer, records, Prefetch(1000)", 0, idemamqp.Prefetch(longPrefetch)),
	}
}

// consumeAMQP handles deliveries one after another, and acks so many at once, or what there is
// after a while.
func consumeAMQP(ctx context.Context, s *Site, r *Run, prefetch, acks int) (err error) {
	conn, err := amqp.Dial(s.Addr)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	ch, err := conn.Channel()
	if err != nil {
		return err
	}
	if err := ch.Qos(prefetch, 0, false); err != nil {
		return err
	}
	deliveries, err := ch.ConsumeWithContext(ctx, s.Source, "", false, false, false, false, nil)
	if err != nil {
		return err
	}
	tick := time.NewTicker(ackWithin)
	defer tick.Stop()
	var last amqp.Delivery
	handled := 0 // and not acked
	for {
		enough := acks
		select {
		case d, open := <-deliveries:
			if !open {
				return errors.New("the channel was closed")
			}
			r.Begin()
			if err := r.Handle(d.Body); err != nil {
				return err
			}
			last = d
			handled++
		case <-tick.C:
			enough = 1
		case <-r.Over():
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
		if handled < enough {
			continue
		}
		if err := last.Ack(handled > 1); err != nil {
			return fmt.Errorf("acking: %w", err)
		}
		handled = 0
	}
}

// ourAMQP is this library's consumer, in order, and with its defaults but for opts.
func ourAMQP(name string, flood int, opts ...idemamqp.Option) Row {
	return Row{Name: name, Kind: Ours, flood: flood, consume: func(ctx context.Context, s *Site, r *Run) error {
		c, err := idemamqp.NewQueueConsumer(s.Addr, s.Source, s.guard(), func(_ context.Context, d amqp.Delivery) error {
			r.Begin()
			return r.Handle(d.Body)
		}, opts...)
		if err != nil {
			return err
		}
		ctx, stop := r.Until(ctx)
		defer stop()
		return c.Run(ctx)
	}}
}
