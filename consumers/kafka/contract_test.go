package idemkafka_test

import (
	"context"

	"github.com/segmentio/kafka-go"

	"github.com/idemq/idemq/consumers"
	idemkafka "github.com/idemq/idemq/consumers/kafka"
	"github.com/idemq/idemq/idem"
)

// The names and shapes that programs outside this repository are compiled against.
var (
	_ func(context.Context, kafka.Message) error = idemkafka.Handler(nil)

	_ idemkafka.Reader = (*kafka.Reader)(nil)

	_ func(idemkafka.Reader, *idem.Guard, idemkafka.Handler, ...idemkafka.Option) (*idemkafka.Consumer, error)              = idemkafka.NewConsumer
	_ func(kafka.ReaderConfig, *idem.Guard, idemkafka.Handler, ...idemkafka.Option) (*idemkafka.Consumer, error)            = idemkafka.NewGroupConsumer
	_ func(*idemkafka.Consumer, context.Context) error                                                                      = (*idemkafka.Consumer).Run
	_ func(*idem.Guard, idemkafka.Handler, ...idemkafka.Option) (func(ctx context.Context, msg kafka.Message) error, error) = idemkafka.Wrap
	_ func(context.Context, *idem.Guard, *kafka.Message) error                                                              = idemkafka.Stamp
	_ func(context.Context, *kafka.Message, string) error                                                                   = idemkafka.StampAs
	_ func(kafka.Message) (string, bool)                                                                                    = idemkafka.TokenOf
	_ func(*kafka.Message, string)                                                                                          = idemkafka.SetToken
	_ func(*kafka.Writer, string) idemkafka.Option                                                                          = idemkafka.DeadLetter
	_ func(*kafka.Writer, *idem.Guard) *idemkafka.Writer                                                                    = idemkafka.NewWriter

	_ idemkafka.Option = consumers.Budget(1) // the shared policies fit
)
