package idemnats_test

import (
	"context"
	"log"
	"os/signal"
	"syscall"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	idemnats "github.com/idemq/idemq/consumers/nats"
	"github.com/idemq/idemq/idem"
)

var (
	js    jetstream.JetStream
	guard *idem.Guard
)

func save(context.Context, []byte) error { return nil }

func ExampleNewConsumer() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	source, err := js.CreateOrUpdateConsumer(ctx, "ORDERS", jetstream.ConsumerConfig{
		Durable: "billing", AckPolicy: jetstream.AckExplicitPolicy, MaxDeliver: -1,
	})
	if err != nil {
		log.Fatal(err)
	}
	c, err := idemnats.NewConsumer(source, guard, func(ctx context.Context, msg jetstream.Msg) error {
		return save(ctx, msg.Data())
	}, idemnats.DeadLetter(js, "dead.orders"))
	if err != nil {
		log.Fatal(err)
	}
	log.Print(c.Run(ctx))
}

func ExampleStamp() {
	ctx := context.Background()
	msg := nats.NewMsg("orders.new")
	msg.Data = []byte(`{"order": 17}`)
	if err := idemnats.Stamp(ctx, guard, msg); err != nil {
		log.Fatal(err)
	}
	if _, err := js.PublishMsg(ctx, msg); err != nil {
		log.Fatal(err) // or publish the same msg again
	}
}

func ExampleStampAs() {
	_ = func(ctx context.Context, in jetstream.Msg) error {
		mail := nats.NewMsg("mail.receipt")
		mail.Data = in.Data()
		if err := idemnats.StampAs(ctx, mail, "receipt"); err != nil {
			return err
		}
		_, err := js.PublishMsg(ctx, mail)
		return err
	}
}

func ExampleWrap() {
	handle, err := idemnats.Wrap(guard.Group("billing"), func(ctx context.Context, msg jetstream.Msg) error {
		return save(ctx, msg.Data())
	}, idemnats.OnStop(func(err error) { log.Print(err) }))
	if err != nil {
		log.Fatal(err)
	}
	source, err := js.Consumer(context.Background(), "ORDERS", "billing")
	if err != nil {
		log.Fatal(err)
	}
	if _, err := source.Consume(handle, jetstream.PullMaxMessages(1)); err != nil {
		log.Fatal(err)
	}
}

// Dead letters are moved back by publishing them to their subject, headers and all.
func ExampleDeadLetter_moveBack() {
	ctx := context.Background()
	dead, err := js.OrderedConsumer(ctx, "DEAD", jetstream.OrderedConsumerConfig{})
	if err != nil {
		log.Fatal(err)
	}
	batch, err := dead.FetchNoWait(100)
	if err != nil {
		log.Fatal(err)
	}
	for m := range batch.Messages() {
		if _, err := js.PublishMsg(ctx, &nats.Msg{Subject: "orders.new", Header: m.Headers(), Data: m.Data()}); err != nil {
			log.Fatal(err)
		}
	}
}
