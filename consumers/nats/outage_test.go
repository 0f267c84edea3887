package idemnats_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/idemq/idemq/consumers"
	idemnats "github.com/idemq/idemq/consumers/nats"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store/memstore"
)

// script is a source without a server: fetch says what becomes of the nth pull request.
type script struct {
	jetstream.Consumer
	fetch func(nth, n int) ([]jetstream.Msg, time.Duration)
	mute  bool // Info gets no answer once fetching has begun
	anew  bool // Info says then that the consumer was created again
	nth   int
	asked int // since then

	missing bool // Info finds none then
}

func (s *script) CachedInfo() *jetstream.ConsumerInfo {
	return &jetstream.ConsumerInfo{
		Stream: "ORDERS", Name: "billing", Created: time.Unix(1, 0),
		Config: jetstream.ConsumerConfig{Durable: "billing", AckPolicy: jetstream.AckExplicitPolicy, MaxDeliver: -1, AckWait: 30 * time.Second},
	}
}

func (s *script) Info(ctx context.Context) (*jetstream.ConsumerInfo, error) {
	if s.nth > 0 && s.mute {
		s.asked++
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if s.nth > 0 && s.missing {
		return nil, jetstream.ErrConsumerNotFound
	}
	info := s.CachedInfo()
	if s.nth > 0 && s.anew {
		info.Created = time.Now()
	}
	return info, nil
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
func (s *script) runFor(t *testing.T, d time.Duration, opts ...idemnats.Option) []idem.Event {
	t.Helper()
	var told events
	c, err := idemnats.NewConsumer(s, idem.New(idem.WithStore(memstore.New()), idem.WithObserver(&told)), noop, opts...)
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

// TestSilence: each pull request that gets no answer is told.
func TestSilence(t *testing.T) {
	for _, c := range []struct {
		name  string
		takes func(nth int) time.Duration
	}{
		{"none", func(int) time.Duration { return answered }},
		{"an outage", func(nth int) time.Duration {
			if nth > 3 {
				return silent
			}
			return answered
		}},
		{"with an answer between", func(nth int) time.Duration {
			if nth%10 == 5 {
				return answered
			}
			return silent
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &script{fetch: func(nth, _ int) ([]jetstream.Msg, time.Duration) { return nil, c.takes(nth) }}
				waits := s.runFor(t, 25*time.Second)
				want := 0
				for nth := 1; nth < s.nth; nth++ { // the last one is under way at the end
					if c.takes(nth) == silent {
						want++
					}
				}
				if len(waits) != want {
					t.Errorf("told of %d silent pull requests, want %d: %v", len(waits), want, waits)
				}
				if s.nth < 10 {
					t.Errorf("%d pull requests in 25 seconds", s.nth)
				}
			})
		})
	}
}

// TestSilenceOfADeleted: where the network between does not carry that nobody listens, the
// silence is looked into: a JetStream consumer that was deleted ends Run.
func TestSilenceOfADeleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{missing: true, fetch: func(int, int) ([]jetstream.Msg, time.Duration) { return nil, silent }}
		c, err := idemnats.NewConsumer(s, idem.New(idem.WithStore(memstore.New())), noop)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := c.Run(ctx); !errors.Is(err, jetstream.ErrConsumerNotFound) || !strings.Contains(err.Error(), "was deleted") {
			t.Errorf("Run returned %v", err)
		}
	})
}

// scripted is a message of script, with a number that is the consumer's.
type scripted struct {
	jetstream.Msg
	nth      uint64
	ack      func()
	extended *atomic.Int32
}

func (m scripted) Metadata() (*jetstream.MsgMetadata, error) {
	return &jetstream.MsgMetadata{Stream: "ORDERS", Consumer: "billing", Timestamp: time.Now(), NumDelivered: 1, Sequence: jetstream.SequencePair{Stream: m.nth, Consumer: m.nth}}, nil
}
func (scripted) Headers() nats.Header { return nil }
func (scripted) Data() []byte         { return nil }
func (scripted) Subject() string      { return "orders.x" }
func (m scripted) Ack() error         { m.ack(); return nil }
func (scripted) Nak() error           { return nil }
func (m scripted) InProgress() error  { m.extended.Add(1); return nil }

// TestNumbersGoBack: whether the JetStream consumer is another one is asked once a pull
// while that gets no answer: the messages behind wait, and nobody extends them.
func TestNumbersGoBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var acked atomic.Int32
		var lastAck time.Time
		ack := func() {
			acked.Add(1)
			lastAck = time.Now()
		}
		began := time.Now()
		s := &script{mute: true}
		s.fetch = func(nth, n int) (msgs []jetstream.Msg, after time.Duration) {
			switch nth {
			case 1:
				return []jetstream.Msg{scripted{nth: 100, ack: ack}}, 0
			case 2, 3:
				for i := range 10 {
					msgs = append(msgs, scripted{nth: uint64(10*(nth-2) + i + 1), ack: ack})
				}
				return msgs, 0
			}
			return nil, answered
		}
		s.runFor(t, time.Minute, consumers.WorkAhead(32))
		if n := acked.Load(); n != 21 || lastAck.Sub(began) > 5*time.Second {
			t.Errorf("%d messages of 21 are acked, the last one after %v", n, lastAck.Sub(began))
		}
		if s.asked != 2 {
			t.Errorf("asked %d times, want once in each of two pulls", s.asked)
		}
	})
}

// TestExtendsNoOthers: once the JetStream consumer was created anew, what is in hand is not
// extended any more: its number may be another message's.
func TestExtendsNoOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var extended atomic.Int32
		s := &script{anew: true}
		s.fetch = func(nth, _ int) ([]jetstream.Msg, time.Duration) {
			if nth == 1 {
				return []jetstream.Msg{scripted{nth: 100, extended: &extended}}, 15 * time.Second
			}
			return []jetstream.Msg{scripted{nth: 1, extended: &extended}}, 0
		}
		c, err := idemnats.NewConsumer(s, idem.New(idem.WithStore(memstore.New())), func(context.Context, jetstream.Msg) error {
			work(time.Minute)
			return nil
		}, consumers.DrainTimeout(2*time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Run(t.Context()); err == nil {
			t.Error("Run returned nil")
		}
		if n := extended.Load(); n != 1 {
			t.Errorf("extended %d times, want once, before that", n)
		}
	})
}
