package idemkafka_test

import (
	"context"
	"testing"

	"github.com/segmentio/kafka-go"

	"github.com/idemq/idemq/consumers/consumertest"
	idemkafka "github.com/idemq/idemq/consumers/kafka"
)

func TestHandleBatches(t *testing.T) {
	for _, way := range ways {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			v := setup(t, 1)
			consumertest.Batches(t, v.publish, func(handle func(context.Context, []string) []error) {
				v.run(way, nil, idemkafka.HandleBatches(consumertest.MaxBatch, func(ctx context.Context, msgs []kafka.Message) []error {
					tokens := make([]string, len(msgs))
					for i, msg := range msgs {
						tokens[i] = string(msg.Value)
					}
					return handle(ctx, tokens)
				}))
			}, v.owed)
		})
	}
}
