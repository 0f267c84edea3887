package idemamqp_test

import (
	"context"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/idemq/idemq/consumers"
	idemamqp "github.com/idemq/idemq/consumers/amqp"
	"github.com/idemq/idemq/idem"
)

// The names and shapes that programs outside this repository are compiled against.
var (
	_ func(context.Context, amqp.Delivery) error = idemamqp.Handler(nil)

	_ func(<-chan amqp.Delivery, *idem.Guard, idemamqp.Handler, ...idemamqp.Option) (*idemamqp.Consumer, error)         = idemamqp.NewConsumer
	_ func(string, string, *idem.Guard, idemamqp.Handler, ...idemamqp.Option) (*idemamqp.Consumer, error)               = idemamqp.NewQueueConsumer
	_ func(*idemamqp.Consumer, context.Context) error                                                                   = (*idemamqp.Consumer).Run
	_ func(*idem.Guard, idemamqp.Handler, ...idemamqp.Option) (func(ctx context.Context, d amqp.Delivery) error, error) = idemamqp.Wrap
	_ func(context.Context, *idem.Guard, *amqp.Publishing) error                                                        = idemamqp.Stamp
	_ func(context.Context, *amqp.Publishing, string) error                                                             = idemamqp.StampAs
	_ func(amqp.Delivery) (string, bool)                                                                                = idemamqp.TokenOf
	_ func(*amqp.Publishing, string)                                                                                    = idemamqp.SetToken
	_ func(exchange, key string) idemamqp.Option                                                                        = idemamqp.DeadLetter
	_ func(*amqp.Channel) idemamqp.Option                                                                               = idemamqp.PublishOn
	_ func() idemamqp.Option                                                                                            = idemamqp.RejectToDLX
	_ func(int) idemamqp.Option                                                                                         = idemamqp.Concurrency
	_ func(int) idemamqp.Option                                                                                         = idemamqp.Prefetch
	_ func(int) idemamqp.Option                                                                                         = idemamqp.DeliveryLimit
	_ func(time.Duration) idemamqp.Option                                                                               = idemamqp.HoldLimit
	_ func(amqp.Config) idemamqp.Option                                                                                 = idemamqp.Config
	_ func(func(context.Context) (*amqp.Connection, error)) idemamqp.Option                                             = idemamqp.Dial
	_ error                                                                                                             = idemamqp.ErrSettledByConsumer

	_ idemamqp.Option = consumers.Budget(1) // the shared policies fit
)
