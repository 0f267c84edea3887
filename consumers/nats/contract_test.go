package idemnats_test

import (
	"context"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/idemq/idemq/consumers"
	idemnats "github.com/idemq/idemq/consumers/nats"
	"github.com/idemq/idemq/idem"
)

// The names and shapes that programs outside this repository are compiled against.
var (
	_ func(context.Context, jetstream.Msg) error = idemnats.Handler(nil)

	_ func(jetstream.Consumer, *idem.Guard, idemnats.Handler, ...idemnats.Option) (*idemnats.Consumer, error) = idemnats.NewConsumer
	_ func(*idemnats.Consumer, context.Context) error                                                         = (*idemnats.Consumer).Run
	_ func(*idem.Guard, idemnats.Handler, ...idemnats.Option) (jetstream.MessageHandler, error)               = idemnats.Wrap
	_ func(context.Context, *idem.Guard, *nats.Msg) error                                                     = idemnats.Stamp
	_ func(context.Context, *nats.Msg, string) error                                                          = idemnats.StampAs
	_ func(jetstream.Msg) (string, bool)                                                                      = idemnats.TokenOf
	_ func(*nats.Msg, string)                                                                                 = idemnats.SetToken
	_ func(jetstream.Publisher, string) idemnats.Option                                                       = idemnats.DeadLetter

	_ idemnats.Option = consumers.Budget(1) // the shared policies fit
)
