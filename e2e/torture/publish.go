package torture

import (
	"context"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/idemq/idemq/e2e/history"
)

const (
	keyCount    = 64  // that messages have
	batchSize   = 256 // messages that are published together
	againEvery  = 10  // one message in so many is published again
	publishTick = 20 * time.Millisecond

	// publishTimeout is after what a batch is published again: a client may wait for ever
	// for the confirmation of what it sent while its connection went.
	publishTimeout = 20 * time.Second
)

// When messages are published again: while the first copy is in work, or when it is done.
var againAfter = [...]time.Duration{0, 100 * time.Millisecond, 3 * time.Second}

// publisher publishes numbered messages, some of them again a little later, as fast as
// the backlog allows.
type publisher struct {
	broker Broker
	rate   int // messages a second at most
	random *rand.Rand
	record func(history.Event)

	limit     atomic.Int64 // of the backlog
	settled   atomic.Int64 // copies
	confirmed atomic.Int64 // copies
	messages  atomic.Int64

	next  uint32
	seqs  [keyCount]uint32
	again [len(againAfter)][]copyLater
}

// copyLater is a message to be published again.
type copyLater struct {
	Message
	at time.Time
}

func newPublisher(b Broker, seed uint64, rate int, record func(history.Event)) *publisher {
	p := &publisher{broker: b, rate: rate, random: rand.New(rand.NewPCG(seed, keyCount)), record: record}
	p.limit.Store(minBacklog)
	return p
}

// backlog is how many copies are not settled.
func (p *publisher) backlog() int64 { return p.confirmed.Load() - p.settled.Load() }

// run publishes until ctx ends, and then what is still to be published again. Everything
// that it returns from is confirmed, unless final ends before.
func (p *publisher) run(ctx, final context.Context) error {
	began := time.Now()
	allowed := 0.0
	ticker := time.NewTicker(publishTick)
	defer ticker.Stop()
	for last := began; ctx.Err() == nil; {
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
		now := time.Now()
		allowed = min(allowed+now.Sub(last).Seconds()*float64(p.rate), float64(p.rate))
		last = now
		for allowed >= 1 && ctx.Err() == nil && p.backlog() < p.limit.Load() {
			n, err := p.publish(final, p.batch(int(allowed)))
			if err != nil {
				return err
			}
			allowed -= float64(n)
		}
	}
	for {
		msgs := p.due(time.Now().Add(time.Hour))
		if len(msgs) == 0 {
			return nil
		}
		if _, err := p.publish(final, msgs); err != nil {
			return err
		}
	}
}

// batch is what is published next: copies that are due, and new messages.
func (p *publisher) batch(most int) []Message {
	now := time.Now()
	msgs := p.due(now)
	for range min(most, batchSize) - len(msgs) {
		p.next++
		m := Message{Token: p.next, Key: p.random.Uint32N(keyCount)}
		msgs = append(msgs, m)
		if p.random.IntN(againEvery) == 0 {
			i := p.random.IntN(len(againAfter))
			p.again[i] = append(p.again[i], copyLater{m, now.Add(againAfter[i])})
		}
	}
	return msgs
}

func (p *publisher) due(now time.Time) (msgs []Message) {
	for i, wait := range p.again {
		for len(wait) > 0 && len(msgs) < batchSize && !wait[0].at.After(now) {
			msgs = append(msgs, wait[0].Message)
			wait = wait[1:]
		}
		p.again[i] = wait
	}
	return msgs
}

func (p *publisher) publish(ctx context.Context, msgs []Message) (int, error) {
	if len(msgs) == 0 {
		return 1, nil
	}
	for {
		trying, cancel := context.WithTimeout(ctx, publishTimeout)
		err := p.broker.Publish(trying, msgs)
		timedOut := trying.Err() != nil && ctx.Err() == nil
		cancel()
		if err == nil {
			break
		}
		if !timedOut {
			return 0, err
		}
	}
	at := history.Now()
	for _, m := range msgs {
		p.seqs[m.Key]++
		p.record(history.Event{Kind: history.Published, At: at, Token: m.Token, Key: m.Key, Seq: p.seqs[m.Key]})
	}
	p.confirmed.Add(int64(len(msgs)))
	p.messages.Store(int64(p.next))
	return len(msgs), nil
}
