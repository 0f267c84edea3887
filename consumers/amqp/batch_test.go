package idemamqp_test

import (
	"context"
	"errors"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	idemamqp "github.com/idemq/idemq/consumers/amqp"
	"github.com/idemq/idemq/consumers/consumertest"
)

func TestHandleBatches(t *testing.T) {
	v := setup(t)
	consumertest.Batches(t, v.publish, func(handle func(context.Context, []string) []error) {
		v.run(nil, idemamqp.HandleBatches(consumertest.MaxBatch, func(ctx context.Context, ds []amqp.Delivery) []error {
			tokens := make([]string, len(ds))
			for i, d := range ds {
				tokens[i] = string(d.Body)
				if err := d.Ack(false); !errors.Is(err, idemamqp.ErrSettledByConsumer) {
					t.Errorf("the handler acked: %v", err)
				}
			}
			return handle(ctx, tokens)
		}))
	}, v.owed)
}
