package idemnats_test

import (
	"context"
	"errors"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/idemq/idemq/consumers/consumertest"
	idemnats "github.com/idemq/idemq/consumers/nats"
)

func TestHandleBatches(t *testing.T) {
	v := setup(t)
	consumertest.Batches(t, v.publish, func(handle func(context.Context, []string) []error) {
		v.run(nil, idemnats.HandleBatches(consumertest.MaxBatch, func(ctx context.Context, msgs []jetstream.Msg) []error {
			tokens := make([]string, len(msgs))
			for i, msg := range msgs {
				tokens[i] = string(msg.Data())
				if err := msg.Ack(); !errors.Is(err, idemnats.ErrSettledByConsumer) {
					t.Errorf("the handler acked: %v", err)
				}
			}
			return handle(ctx, tokens)
		}))
	}, func() int {
		info := v.info() // NumPending may lag
		return int(v.last-min(info.AckFloor.Stream, v.last)) + info.NumAckPending
	})
}
