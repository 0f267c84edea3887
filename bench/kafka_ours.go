package bench

import (
	"context"

	"github.com/segmentio/kafka-go"

	idemkafka "github.com/idemq/idemq/consumers/kafka"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store/redisstore"
)

const groupRecords = "idemkafka.NewGroupConsumer, records"

// kafkaOurs are this library's consumers, in order and with their defaults. A layout of
// records is an option of the guard, and a row.
func kafkaOurs() []Row {
	return []Row{
		ourGroup(groupRecords),
		ourReader("idemkafka.NewConsumer, records"),
		ourGroup("idemkafka.NewGroupConsumer, compact", idem.WithCompact(redisstore.Compact{Tokens: 10_000_000})),
	}
}

// ourGroup consumes over a membership of the consumer's own.
func ourGroup(name string, guard ...idem.Option) Row {
	return Row{Name: name, Kind: Ours, flood: 150_000, consume: func(ctx context.Context, s *Site, r *Run) error {
		c, err := idemkafka.NewGroupConsumer(s.reader(), s.guard(guard...), r.kafkaHandler)
		if err != nil {
			return err
		}
		ctx, stop := r.Until(ctx)
		defer stop()
		return c.Run(ctx)
	}}
}

// ourReader consumes over a kafka.Reader.
func ourReader(name string, guard ...idem.Option) Row {
	return Row{Name: name, Kind: Ours, consume: func(ctx context.Context, s *Site, r *Run) error {
		config := s.reader()
		config.OffsetOutOfRangeError = true // as its documentation asks for
		reader := kafka.NewReader(config)
		defer reader.Close()
		c, err := idemkafka.NewConsumer(reader, s.guard(guard...), r.kafkaHandler)
		if err != nil {
			return err
		}
		ctx, stop := r.Until(ctx)
		defer stop()
		return c.Run(ctx)
	}}
}

// kafkaHandler starts the clock too: the library fetches, and does not tell of it.
func (r *Run) kafkaHandler(_ context.Context, m kafka.Message) error {
	r.Begin()
	return r.Handle(m.Value)
}
