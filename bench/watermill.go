package bench

import (
	"context"
	"errors"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	wkafka "github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	wmessage "github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"

	"github.com/idemq/idemq/idem"
)

// watermillRow is Watermill's router with its Deduplicator, whose tokens are in a map of the
// process. Its own choice of token, a checksum of 32 bits of the payload, takes different
// messages for one: here it takes the header, as the other rows do.
func watermillRow() Row {
	return Row{Name: "Watermill, Deduplicator (in memory)", Kind: Peer, Late: true, consume: func(ctx context.Context, s *Site, r *Run) error {
		config := wkafka.DefaultSaramaSubscriberConfig()
		config.Consumer.Offsets.Initial = sarama.OffsetOldest
		source, err := wkafka.NewSubscriber(wkafka.SubscriberConfig{
			Brokers: []string{s.Addr}, ConsumerGroup: s.Group, Unmarshaler: wkafka.DefaultMarshaler{}, OverwriteSaramaConfig: config,
		}, watermill.NopLogger{})
		if err != nil {
			return err
		}
		router, err := wmessage.NewRouter(wmessage.RouterConfig{}, watermill.NopLogger{})
		if err != nil {
			return err
		}
		seen, err := middleware.NewMapExpiringKeyRepository(seenFor)
		if err != nil {
			return err
		}
		once := middleware.Deduplicator{
			KeyFactory: middleware.NewMessageHasherFromMetadataField(idem.Header), Repository: seen, Timeout: time.Minute,
		}
		router.AddMiddleware(func(next wmessage.HandlerFunc) wmessage.HandlerFunc {
			return func(m *wmessage.Message) ([]*wmessage.Message, error) {
				r.Begin()
				return next(m)
			}
		}, once.Middleware)
		router.AddConsumerHandler("bench", s.Source, source, func(m *wmessage.Message) error { return r.Handle(m.Payload) })
		ctx, stop := r.Until(ctx)
		defer stop()
		return errors.Join(router.Run(ctx), source.Close())
	}}
}
