package idemkafka_test

import (
	"context"
	"log"
	"os/signal"
	"syscall"

	"github.com/redis/go-redis/v9"
	"github.com/segmentio/kafka-go"

	idemkafka "github.com/idemq/idemq/consumers/kafka"
	"github.com/idemq/idemq/idem"
)

func charge(context.Context, kafka.Message) error { return nil }

// A consumer with a membership of its own, until the process is told to end.
func ExampleNewGroupConsumer() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	client := redis.NewClient(&redis.Options{Addr: "localhost:6379", ContextTimeoutEnabled: true})
	guard := idem.New(idem.WithRedis(client), idem.WithPrefix("shop"))
	dead := &kafka.Writer{Addr: kafka.TCP("localhost:9092"), RequiredAcks: kafka.RequireAll}
	consumer, err := idemkafka.NewGroupConsumer(
		kafka.ReaderConfig{Brokers: []string{"localhost:9092"}, GroupID: "billing", Topic: "orders"},
		guard, charge, idemkafka.DeadLetter(dead, "orders.dead"))
	if err != nil {
		log.Fatal(err)
	}
	if err := consumer.Run(ctx); err != nil {
		log.Fatal(err)
	}
}

// A handler of several messages, for effects that are cheaper in bulk.
func ExampleHandleBatches() {
	insert := func(ctx context.Context, orders []kafka.Message) []error {
		// One INSERT for all of orders: nil is done, and an error in its place tries one again.
		return nil
	}
	guard := idem.New(idem.WithRedis(redis.NewClient(&redis.Options{Addr: "localhost:6379"})))
	consumer, err := idemkafka.NewGroupConsumer(
		kafka.ReaderConfig{Brokers: []string{"localhost:9092"}, GroupID: "billing", Topic: "orders"},
		guard, nil, idemkafka.HandleBatches(200, insert))
	if err != nil {
		log.Fatal(err)
	}
	if err := consumer.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

// Over a Reader that is there already.
func ExampleNewConsumer() {
	reader := kafka.NewReader(kafka.ReaderConfig{Brokers: []string{"localhost:9092"}, GroupID: "billing", Topic: "orders"})
	defer reader.Close()
	guard := idem.New(idem.WithRedis(redis.NewClient(&redis.Options{Addr: "localhost:6379"})))
	consumer, err := idemkafka.NewConsumer(reader, guard, charge)
	if err != nil {
		log.Fatal(err)
	}
	if err := consumer.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

// A writer that stamps all that it writes.
func ExampleNewWriter() {
	writer := idemkafka.NewWriter(&kafka.Writer{Addr: kafka.TCP("localhost:9092"), Topic: "orders", RequiredAcks: kafka.RequireAll}, idem.New())
	order := []kafka.Message{{Key: []byte("customer-7"), Value: []byte("two teapots")}}
	if err := writer.WriteMessages(context.Background(), order...); err != nil {
		log.Fatal(err) // to try again, write the same slice: it has its tokens
	}
}

// A handler that sends messages on: if it runs twice, it writes the same tokens twice.
func ExampleStampAs() {
	writer := &kafka.Writer{Addr: kafka.TCP("localhost:9092"), Topic: "receipts", RequiredAcks: kafka.RequireAll}
	_ = idemkafka.Handler(func(ctx context.Context, order kafka.Message) error {
		receipt := kafka.Message{Key: order.Key, Value: []byte("paid")}
		if err := idemkafka.StampAs(ctx, &receipt, "receipt"); err != nil {
			return err
		}
		return writer.WriteMessages(ctx, receipt)
	})
}
