package idemnats_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	idemnats "github.com/idemq/idemq/consumers/nats"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store/memstore"
)

// script is a source without a server: fetch says what becomes of the nth pull request.
type script struct {
	jetstream.Consumer
	fetch func(nth, n int) ([]jetstream.Msg, time.Duration)
	nth   int
}

func (s *script) CachedInfo() *jetstream.ConsumerInfo {
	return &jetstream.ConsumerInfo{
		Stream: "ORDERS", Name: "billing", Created: time.Unix(1, 0),
		Config: jetstream.ConsumerConfig{Durable: "billing", AckPolicy: jetstream.AckExplicitPolicy, MaxDeliver: -1, AckWait: 30 * time.Second},
	}
}

func (s *script) Info(context.Context) (*jetstream.ConsumerInfo, error) {
	return s.CachedInfo(), nil
}

func (s *script) Fetch(n int, _ ...jetstream.FetchOpt) (jetstream.MessageBatch, error) {
	s.nth++
	msgs, after := s.fetch(s.nth, n)
	out := make(chan jetstream.Msg, len(msgs))
	for _, m := range msgs {
		out <- m
	}
	time.AfterFunc(after, func() { close(out) })
	return &spyBatch{emptyBatch{}, out}, nil
}

// runFor runs a consumer of s for d, and returns what it waited for.
func (s *script) runFor(t *testing.T, d time.Duration) []idem.Event {
	t.Helper()
	var told events
	c, err := idemnats.NewConsumer(s, idem.New(idem.WithStore(memstore.New()), idem.WithObserver(&told)), noop)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	if err := c.Run(ctx); err != nil {
		t.Errorf("Run returned %v", err)
	}
	return told.of(idem.EventWaiting)
}

// How long a pull request of a second takes that the server answers, and one that nats.go
// gives up.
const (
	answered = time.Second
	silent   = 2 * time.Second
)

// TestSilence: that pull requests get no answer is told, once an outage.
func TestSilence(t *testing.T) {
	for _, c := range []struct {
		name  string
		takes func(nth int) time.Duration
		want  int
	}{
		{"no outage", func(int) time.Duration { return answered }, 0},
		{"one", func(nth int) time.Duration {
			if nth > 3 {
				return silent
			}
			return answered
		}, 1},
		{"two", func(nth int) time.Duration {
			if nth%10 == 5 {
				return answered
			}
			return silent
		}, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &script{fetch: func(nth, _ int) ([]jetstream.Msg, time.Duration) { return nil, c.takes(nth) }}
				waits := s.runFor(t, 25*time.Second)
				if len(waits) != c.want {
					t.Errorf("told of %d outages, want %d: %v", len(waits), c.want, waits)
				}
				if s.nth < 10 {
					t.Errorf("%d pull requests in 25 seconds", s.nth)
				}
			})
		})
	}
}
