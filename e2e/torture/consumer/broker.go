package main

import (
	"context"
	"fmt"
	"net"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/segmentio/kafka-go"

	"github.com/idemq/idemq/consumers"
	idemamqp "github.com/idemq/idemq/consumers/amqp"
	idemkafka "github.com/idemq/idemq/consumers/kafka"
	"github.com/idemq/idemq/e2e/torture/role"
	"github.com/idemq/idemq/idem"
)

const (
	// kafkaSession is after what a process that was killed is missed by its group.
	kafkaSession  = 2 * time.Second
	amqpHeartbeat = 2 * time.Second
)

// openBroker makes the consumer. Without an error there is none only when ctx has ended.
func openBroker(ctx context.Context, c role.Config, g *idem.Guard, h *handler, opts []consumers.Option) (r runner, done func(), err error) {
	switch c.Broker.Kind {
	case "kafka-reader", "kafka-group":
		return openKafka(c, g, h, opts)
	case "nats":
		return openNATS(ctx, c, g, h, opts)
	case "amqp-classic", "amqp-quorum":
		return openAMQP(c, g, h, opts)
	}
	return nil, nil, fmt.Errorf("broker %q is not known", c.Broker.Kind)
}

func openKafka(c role.Config, g *idem.Guard, h *handler, opts []consumers.Option) (runner, func(), error) {
	config := kafka.ReaderConfig{
		Brokers: []string{c.Broker.Addr}, GroupID: c.Broker.Group, Topic: c.Broker.Source,
		SessionTimeout: kafkaSession, HeartbeatInterval: kafkaSession / 6, RebalanceTimeout: 5 * time.Second,
		JoinGroupBackoff: 200 * time.Millisecond, MaxWait: 250 * time.Millisecond, OffsetOutOfRangeError: true,
		Dialer: &kafka.Dialer{Timeout: dialTimeout},
	}
	letters := &kafka.Writer{Addr: kafka.TCP(c.Broker.Addr), RequiredAcks: kafka.RequireAll, BatchTimeout: time.Millisecond}
	opts = append(opts, idemkafka.DeadLetter(letters, c.Broker.DeadTo))
	if c.Concurrency > 1 {
		opts = append(opts, idemkafka.Concurrency(c.Concurrency))
	}
	var handle idemkafka.Handler = func(ctx context.Context, _ kafka.Message) error { return h.handle(ctx) }
	if c.Batch > 0 {
		handle = nil
		opts = append(opts, idemkafka.HandleBatches(c.Batch, func(ctx context.Context, msgs []kafka.Message) []error {
			keys := make([]string, len(msgs))
			for i, msg := range msgs {
				keys[i] = string(msg.Key)
			}
			return h.handleAll(ctx, len(msgs), keys)
		}))
	}
	if c.Broker.Kind == "kafka-group" {
		consumer, err := idemkafka.NewGroupConsumer(config, g, handle, opts...)
		return consumer, func() { _ = letters.Close() }, err
	}
	reader := kafka.NewReader(config)
	consumer, err := idemkafka.NewConsumer(&recordedReader{Reader: reader, h: h}, g, handle, opts...)
	return consumer, func() {
		_ = reader.Close()
		_ = letters.Close()
	}, err
}

func openAMQP(c role.Config, g *idem.Guard, h *handler, opts []consumers.Option) (runner, func(), error) {
	opts = append(opts,
		idemamqp.DeadLetter("", c.Broker.DeadTo),
		idemamqp.Config(amqp.Config{Heartbeat: amqpHeartbeat, Dial: func(network, addr string) (net.Conn, error) {
			return amqp.DefaultDial(dialTimeout)(network, addr)
		}}),
	)
	if c.Concurrency > 1 {
		opts = append(opts, idemamqp.Concurrency(c.Concurrency))
	}
	var handle idemamqp.Handler = func(ctx context.Context, _ amqp.Delivery) error { return h.handle(ctx) }
	if c.Batch > 0 {
		handle = nil
		opts = append(opts, idemamqp.HandleBatches(c.Batch, func(ctx context.Context, msgs []amqp.Delivery) []error {
			return h.handleAll(ctx, len(msgs), nil)
		}))
	}
	consumer, err := idemamqp.NewQueueConsumer(c.Broker.Addr, c.Broker.Source, g, handle, opts...)
	return consumer, func() {}, err
}
