package main

import (
	"context"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/idemq/idemq/consumers"
	idemnats "github.com/idemq/idemq/consumers/nats"
	"github.com/idemq/idemq/e2e/history"
	"github.com/idemq/idemq/e2e/torture/role"
	"github.com/idemq/idemq/idem"
)

func openNATS(ctx context.Context, c role.Config, g *idem.Guard, h *handler, opts []consumers.Option) (runner, func(), error) {
	js, done, err := connectNATS(c.Broker.Addr)
	if err != nil {
		return nil, nil, err
	}
	opts = append(opts, idemnats.DeadLetter(js, c.Broker.DeadTo))
	if c.Concurrency > 1 {
		opts = append(opts, idemnats.Concurrency(c.Concurrency))
	}
	var handle idemnats.Handler = func(ctx context.Context, _ jetstream.Msg) error { return h.handle(ctx) }
	if c.Batch > 0 {
		handle = nil
		opts = append(opts, idemnats.HandleBatches(c.Batch, func(ctx context.Context, msgs []jetstream.Msg) []error {
			return h.handleAll(ctx, len(msgs), nil)
		}))
	}
	for { // the server may be away
		asking, cancel := context.WithTimeout(ctx, dialTimeout)
		source, err := js.Consumer(asking, c.Broker.Source, c.Broker.Group)
		cancel()
		if err == nil {
			consumer, err := idemnats.NewConsumer(recordedConsumer{source, h}, g, handle, opts...)
			return consumer, done, err
		}
		select {
		case <-ctx.Done():
			return nil, done, nil
		case <-time.After(lastBackoff):
		}
	}
}

// recordedConsumer records what is acked.
type recordedConsumer struct {
	jetstream.Consumer
	h *handler
}

// Fetch implements jetstream.Consumer.
func (c recordedConsumer) Fetch(n int, opts ...jetstream.FetchOpt) (jetstream.MessageBatch, error) {
	batch, err := c.Consumer.Fetch(n, opts...)
	if err != nil {
		return nil, err
	}
	msgs := make(chan jetstream.Msg)
	go func() {
		defer close(msgs)
		for msg := range batch.Messages() {
			msgs <- recordedMsg{msg, c.h} // idemnats takes all
		}
	}()
	return recordedBatch{batch, msgs}, nil
}

type recordedBatch struct {
	jetstream.MessageBatch
	msgs <-chan jetstream.Msg
}

// Messages implements jetstream.MessageBatch.
func (b recordedBatch) Messages() <-chan jetstream.Msg { return b.msgs }

type recordedMsg struct {
	jetstream.Msg
	h *handler
}

func (m recordedMsg) acked() {
	if n, ok := history.Number(m.h.config.Run, m.Headers().Get(idem.Header)); ok {
		m.h.rec.Add(history.Event{Kind: history.Acked, Token: n})
	}
}

// Ack implements jetstream.Msg.
func (m recordedMsg) Ack() error {
	m.acked()
	return m.Msg.Ack()
}

// DoubleAck implements jetstream.Msg.
func (m recordedMsg) DoubleAck(ctx context.Context) error {
	m.acked()
	return m.Msg.DoubleAck(ctx)
}

// Term implements jetstream.Msg.
func (m recordedMsg) Term() error {
	m.acked()
	return m.Msg.Term()
}

// TermWithReason implements jetstream.Msg.
func (m recordedMsg) TermWithReason(reason string) error {
	m.acked()
	return m.Msg.TermWithReason(reason)
}
