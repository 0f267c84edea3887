package main

import (
	"context"
	"sync"

	"github.com/segmentio/kafka-go"

	idemkafka "github.com/idemq/idemq/consumers/kafka"
	"github.com/idemq/idemq/e2e/history"
	"github.com/idemq/idemq/idem"
)

// recordedReader records whose offsets are committed: an offset that is committed acks all
// that was fetched before it.
type recordedReader struct {
	idemkafka.Reader
	h *handler

	mu      sync.Mutex
	fetched map[int][]fetched // by partition, in order of their offsets
}

type fetched struct {
	offset int64
	token  uint32
}

// FetchMessage implements idemkafka.Reader.
func (r *recordedReader) FetchMessage(ctx context.Context) (kafka.Message, error) {
	msg, err := r.Reader.FetchMessage(ctx)
	if err != nil {
		return msg, err
	}
	for _, header := range msg.Headers {
		n, ok := history.Number(r.h.config.Run, string(header.Value))
		if header.Key != idem.Header || !ok {
			continue
		}
		r.mu.Lock()
		if r.fetched == nil {
			r.fetched = make(map[int][]fetched)
		}
		all := r.fetched[msg.Partition]
		if len(all) > 0 && all[len(all)-1].offset >= msg.Offset {
			all = nil // the partition begins anew
		}
		r.fetched[msg.Partition] = append(all, fetched{msg.Offset, n})
		r.mu.Unlock()
	}
	return msg, nil
}

// CommitMessages implements idemkafka.Reader.
func (r *recordedReader) CommitMessages(ctx context.Context, msgs ...kafka.Message) error {
	r.mu.Lock()
	for _, msg := range msgs {
		all := r.fetched[msg.Partition]
		for len(all) > 0 && all[0].offset <= msg.Offset {
			r.h.rec.Add(history.Event{Kind: history.Acked, Token: all[0].token})
			all = all[1:]
		}
		r.fetched[msg.Partition] = all
	}
	r.mu.Unlock()
	return r.Reader.CommitMessages(ctx, msgs...)
}
