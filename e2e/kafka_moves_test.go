package e2e_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/internal/testenv"
)

// traveller is two consumers in this process, and what they were given.
type traveller struct {
	ledger
	s *kafkaSite

	mu      sync.Mutex
	where   map[string]map[int]bool // partitions by consumer
	waits   int                     // messages that the second found in progress
	held    map[string]bool         // tokens that were held once
	holding chan string             // tokens that are held
	release chan struct{}
}

const heldPrefix = "held-"

// handle is the handler of one of the consumers. The first one holds some messages, the
// first time.
func (tr *traveller) handle(name string) func(context.Context, kafka.Message) error {
	return func(ctx context.Context, msg kafka.Message) error {
		claim, _ := idem.FromContext(ctx)
		token := claim.Token()
		work := time.After(5 * time.Millisecond) // so that more is at work when a partition moves
		var release chan struct{}
		tr.mu.Lock()
		if tr.where[name] == nil {
			tr.where[name] = map[int]bool{}
		}
		tr.where[name][msg.Partition] = true
		if name == "first" && strings.HasPrefix(token, heldPrefix) && !tr.held[token] {
			tr.held[token] = true
			work, release = nil, tr.release
			tr.holding <- token
		}
		tr.mu.Unlock()
		select {
		case <-work:
		case <-release:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		tr.add(token)
		return nil
	}
}

// Observe notes what the second consumer finds in progress.
func (tr *traveller) Observe(e idem.Event) {
	if e.Kind == idem.EventInProgress && strings.HasPrefix(e.Token, heldPrefix) {
		tr.mu.Lock()
		defer tr.mu.Unlock()
		tr.waits++
	}
}

// share is how many partitions a consumer has had messages of.
func (tr *traveller) share(name string) int {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return len(tr.where[name])
}

// forget begins a new round.
func (tr *traveller) forget() {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.where, tr.waits = map[string]map[int]bool{}, 0
}

// hold publishes a message into each partition, and returns when the first consumer
// holds them all, until release is called.
func (tr *traveller) hold(round, partitions int) (tokens []string, release func()) {
	tr.s.t.Helper()
	tr.mu.Lock()
	tr.release = make(chan struct{})
	tr.mu.Unlock()
	w := tr.s.writer()
	w.Balancer = kafka.BalancerFunc(func(msg kafka.Message, all ...int) int {
		return all[int(msg.Key[len(msg.Key)-1]-'0')%len(all)]
	})
	for p := range partitions {
		token := fmt.Sprintf("%s%d-%d", heldPrefix, round, p)
		tokens = append(tokens, token)
		if err := w.WriteMessages(tr.s.t.Context(), tr.s.order(token)); err != nil {
			tr.s.t.Fatal(err)
		}
	}
	testenv.Await(tr.s.t, "a message of each partition is held", func() bool { return len(tr.holding) == partitions })
	for range partitions {
		<-tr.holding
	}
	return tokens, func() { close(tr.release) }
}

// A partition moves to another consumer and comes back, while one of its messages is in
// a handler and others are on their way: each message is handled once. Over a Reader the
// second consumer waits for the handler; without one the handler is cancelled first.
func TestPartitionMovesAwayAndBack(t *testing.T) {
	t.Parallel()
	const partitions, rounds = 2, 3
	servers := newKafkaSite(t)
	for _, c := range constructors {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := servers.with(t, "moves-"+c.name, partitions)
			tr := &traveller{s: s, held: map[string]bool{}, holding: make(chan string, partitions)}
			tr.forget()
			// Offsets only rise, where commits carry their generation.
			highest := map[int]int64{}
			await := func(what string, cond func() bool) {
				t.Helper()
				testenv.Await(t, what, seldom(func() bool {
					for p, offset := range s.kafka.Committed(t, s.group, s.topic) {
						if c.owns && offset < highest[p] {
							t.Errorf("the offset of partition %d went back from %d to %d", p, highest[p], offset)
						}
						highest[p] = offset
					}
					return cond()
				}))
			}
			stop := s.consume(c.owns, s.config(), s.guard(), tr.handle("first"))
			stopFlow := s.trickle()
			await("the first has both partitions", func() bool { return tr.share("first") == partitions })
			var all []string
			waits := 0
			for round := range rounds {
				held, release := tr.hold(round, partitions)
				all = append(all, held...)
				tr.forget()
				stopSecond := s.consume(c.owns, s.config(), s.guard(idem.WithObserver(tr)), tr.handle("second"))
				await("the second has a partition", func() bool {
					tr.mu.Lock()
					defer tr.mu.Unlock()
					return tr.waits > 0 || len(tr.where["second"]) > 0
				})
				tr.mu.Lock()
				waits += min(tr.waits, 1)
				tr.mu.Unlock()
				release()
				await("the second handles messages", func() bool { return tr.share("second") == 1 })
				tr.forget()
				await("each has one", func() bool { return tr.share("first") == 1 && tr.share("second") == 1 })
				stopSecond()
				tr.forget()
				await("the first has both again", func() bool { return tr.share("first") == partitions })
			}
			all = append(all, stopFlow()...)
			await("all offsets are committed", func() bool { return s.owed() == 0 })
			stop()
			tr.wantOnce(t, all)
			t.Logf("%d messages; in %d of %d moves the second consumer waited for a handler of the first", len(all), waits, rounds)
			if !c.owns && waits != rounds {
				t.Errorf("the handler was waited for in %d of %d moves", waits, rounds)
			}
		})
	}
}

// trickle publishes a message each few milliseconds until stop is called, which returns
// their tokens.
func (s *kafkaSite) trickle() (stop func() []string) {
	w, ctx := s.writer(), s.t.Context()
	ending := make(chan struct{})
	published := make(chan []string, 1)
	go func() {
		var all []string
		defer func() { published <- all }()
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-ending:
				return
			case <-ctx.Done():
				return
			}
			token := orderToken(len(all))
			if err := w.WriteMessages(ctx, s.order(token)); err != nil {
				if ctx.Err() == nil {
					s.t.Errorf("publish: %v", err)
				}
				return
			}
			all = append(all, token)
		}
	}()
	return func() []string {
		close(ending)
		return <-published
	}
}
