package idemamqp_test

import (
	"context"
	"log"
	"os/signal"
	"syscall"

	amqp "github.com/rabbitmq/amqp091-go"

	idemamqp "github.com/idemq/idemq/consumers/amqp"
	"github.com/idemq/idemq/idem"
)

const url = "amqp://guest:guest@localhost:5672/"

var (
	ch    *amqp.Channel
	guard *idem.Guard
)

func save(context.Context, []byte) error { return nil }

func ExampleNewQueueConsumer() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	c, err := idemamqp.NewQueueConsumer(url, "orders", guard, func(ctx context.Context, d amqp.Delivery) error {
		return save(ctx, d.Body)
	}, idemamqp.DeadLetter("", "orders-dead"))
	if err != nil {
		log.Fatal(err)
	}
	log.Print(c.Run(ctx))
}

func ExampleNewConsumer() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := ch.Qos(65, 0, false); err != nil { // before Consume
		log.Fatal(err)
	}
	deliveries, err := ch.Consume("orders", "", false, false, false, false, nil)
	if err != nil {
		log.Fatal(err)
	}
	c, err := idemamqp.NewConsumer(deliveries, guard.Group("billing"), func(ctx context.Context, d amqp.Delivery) error {
		return save(ctx, d.Body)
	}, idemamqp.Prefetch(65))
	if err != nil {
		log.Fatal(err)
	}
	log.Print(c.Run(ctx)) // an error if the channel was closed: open another, make a new consumer
	_ = ch.Close()        // what is left goes back to the queue
}

func ExampleStamp() {
	ctx := context.Background()
	msg := amqp.Publishing{DeliveryMode: amqp.Persistent, Body: []byte(`{"order": 17}`)}
	if err := idemamqp.Stamp(ctx, guard, &msg); err != nil {
		log.Fatal(err)
	}
	// The channel is in confirm mode: Channel.Confirm(false).
	confirm, err := ch.PublishWithDeferredConfirmWithContext(ctx, "", "orders", true, false, msg)
	if err != nil {
		log.Fatal(err) // or publish the same msg again
	}
	if ok, err := confirm.WaitContext(ctx); err != nil || !ok {
		log.Fatal("not confirmed") // or publish the same msg again
	}
}

func ExampleStampAs() {
	_ = func(ctx context.Context, in amqp.Delivery) error {
		mail := amqp.Publishing{DeliveryMode: amqp.Persistent, Body: in.Body}
		if err := idemamqp.StampAs(ctx, &mail, "receipt"); err != nil {
			return err
		}
		return ch.PublishWithContext(ctx, "", "mails", true, false, mail)
	}
}

func ExampleWrap() {
	handle, err := idemamqp.Wrap(guard.Group("billing"), func(ctx context.Context, d amqp.Delivery) error {
		return save(ctx, d.Body)
	})
	if err != nil {
		log.Fatal(err)
	}
	deliveries, err := ch.Consume("orders", "", false, false, false, false, nil)
	if err != nil {
		log.Fatal(err)
	}
	for d := range deliveries {
		if err := handle(context.Background(), d); err != nil {
			log.Fatal(err) // the delivery is unsettled, and comes again
		}
	}
}

// Dead letters are moved back by publishing them to their queue, headers and all.
func ExampleDeadLetter_moveBack() {
	for {
		d, ok, err := ch.Get("orders-dead", false)
		if err != nil || !ok {
			log.Print(err)
			return
		}
		confirm, err := ch.PublishWithDeferredConfirm("", "orders", true, false, amqp.Publishing{
			Headers: d.Headers, ContentType: d.ContentType, DeliveryMode: amqp.Persistent, MessageId: d.MessageId, Body: d.Body,
		})
		if err != nil || !confirm.Wait() {
			log.Fatal("not confirmed: ", err)
		}
		if err := d.Ack(false); err != nil {
			log.Fatal(err)
		}
	}
}
