package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/idemq/idemq/consumers"
	idemnats "github.com/idemq/idemq/consumers/nats"
	"github.com/idemq/idemq/idem"
)

// What a message of a killed consumer waits for: the server delivers it again, and the
// lease of the dead claim runs out. Short, because here consumers die all the time.
const (
	ackWait = time.Second
	lease   = 2 * time.Second
)

// consume is one consumer: a process of its own.
func consume(ctx context.Context, s settings) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go func() { // whoever started it has died
		_, _ = os.Stdin.Read(make([]byte, 1))
		stop()
	}()
	b, err := open(s)
	if err != nil {
		return err
	}
	defer b.db.Close()
	conn, err := nats.Connect(s.nats, nats.MaxReconnects(-1))
	if err != nil {
		return fmt.Errorf("-nats: %w", err)
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		return err
	}
	source, err := js.Consumer(ctx, s.name, "bank")
	if ctx.Err() != nil {
		return nil // it was told to stop before it began: the work was done meanwhile
	}
	if err != nil {
		return err
	}

	guard := idem.New(
		idem.WithStore(b.store),
		idem.WithLease(lease),
		idem.WithInstance(s.replica), // its next process takes its claims over sooner
		idem.WithLogger(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))),
	)
	consumer, err := idemnats.NewConsumer(source, guard, func(ctx context.Context, msg jetstream.Msg) error {
		var p payment
		if err := json.Unmarshal(msg.Data(), &p); err != nil {
			return idem.Permanent(err)
		}
		claim, _ := idem.FromContext(ctx)
		return b.book(ctx, p, claim.Attempt())
	}, consumers.Budget(1000)) // a killed process spends budget, and here it is no sign of a bad message
	if err != nil {
		return err
	}
	return consumer.Run(ctx)
}
