package bench

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"
)

// Latency is how long messages of a row took, that were published at a constant rate.
type Latency struct {
	Broker string `json:"broker"`
	Row    string `json:"row"`
	Failed string `json:"failed,omitempty"`

	// Most is the row's maximum, messages a second, with the producer beside it.
	Most float64 `json:"most"`
	Legs []Leg   `json:"legs"`
}

// Leg is one rate.
type Leg struct {
	Share float64 `json:"share"` // of the maximum; zero: as fast as they could be published
	Rate  float64 `json:"rate"`  // messages a second that were due
	// Latency is from when a message was due, whether or not it could be sent then, until its
	// handler had returned.
	Latency Quantiles `json:"latency"`
	// Behind is how long after the last message was due all were handled, seconds.
	Behind  float64 `json:"behind"`
	Seconds float64 `json:"seconds"` // from the first message that was due until all were handled

	messages int
}

// latencyShares are the rates, as shares of a row's maximum.
var latencyShares = []float64{0.1, 0.5, 0.9}

const (
	// warmMessages come first, and are awaited: the consumer has joined, and its connections
	// are made.
	warmMessages = 400
	// paceEvery is how often the messages that are due are sent.
	paceEvery = time.Millisecond
	// floodChunk is how many messages are sent at once where nothing is due.
	floodChunk = 2000
)

// measureLatency measures a row: its maximum first, then each share of it.
func (l *lab) measureLatency(tb testing.TB, row Row, flood int, length time.Duration) Latency {
	tb.Helper()
	all := Latency{Broker: l.broker.Name, Row: row.Name}
	legs := []Leg{{messages: flood}}
	if err := l.pace(tb, row, legs); err != nil {
		all.Failed = err.Error()
		return all
	}
	all.Most = float64(legs[0].messages) / legs[0].Seconds
	legs = nil
	for _, share := range latencyShares {
		legs = append(legs, newLeg(share, all.Most, length))
	}
	if err := l.pace(tb, row, legs); err != nil {
		all.Failed = err.Error()
		return all
	}
	all.Legs = legs
	return all
}

// newLeg is a share of the maximum, for a time: a multiple of ten messages, as Work asks for.
func newLeg(share, most float64, length time.Duration) Leg {
	rate := share * most
	return Leg{Share: share, Rate: rate, messages: max(1, int(rate*length.Seconds()/copyEvery)) * copyEvery}
}

// due is when the i-th message of a leg is, after its beginning.
func (l *Leg) due(i int) time.Duration {
	if l.Rate == 0 {
		return 0
	}
	return time.Duration(float64(i) / l.Rate * float64(time.Second))
}

// pace publishes legs, one after another, while a row consumes.
func (l *lab) pace(tb testing.TB, row Row, legs []Leg) error {
	tb.Helper()
	total := warmMessages
	for i := range legs {
		total += legs[i].messages
	}
	w, err := NewWork(total, 1)
	if err != nil {
		return err
	}
	if err := emptied(tb.Context(), l.own); err != nil {
		return err
	}
	s, _, discard := l.site(tb, w.partitions)
	defer discard()
	s.Messages = total
	r := newRun(w)
	for range legs {
		r.legs = append(r.legs, newHistogram())
	}
	p := l.server.producer(tb, s.Source)
	defer p.close()
	ctx, cancel := context.WithTimeout(tb.Context(), runLimit)
	defer cancel()
	published := make(chan error, 1)
	go func() {
		err := r.publish(ctx, p, legs)
		if err != nil {
			cancel()
		}
		published <- err
	}()
	_, err = l.run(ctx, row, s, r)
	if err != nil {
		cancel()
	}
	if err := errors.Join(<-published, err); err != nil {
		return err
	}
	if missing, doubled := r.tally(); missing > 0 || doubled > 0 {
		return fmt.Errorf("%d tokens without an effect, %d effects too many", missing, doubled)
	}
	for i := range legs {
		legs[i].Latency = r.legs[i].quantiles()
	}
	return nil
}

// publish sends the warm messages, then each leg when its messages are due, and waits after
// each until all of it is handled, so that no leg has to do with what another left.
func (r *Run) publish(ctx context.Context, p producer, legs []Leg) error {
	tick := time.NewTicker(paceEvery)
	defer tick.Stop()
	sent := 0
	send := func(leg, n int, due func(i int) time.Time) error {
		some := make([]message, n)
		for i := range some {
			some[i] = r.work.at(sent)
			if leg > 0 {
				some[i].stamp(leg, due(i))
			}
			sent++
		}
		return p.send(ctx, some...)
	}
	handled := func() error {
		if err := p.flush(ctx); err != nil {
			return err
		}
		want := int64(sent - sent/copyEvery)
		return await(ctx, func() bool { return r.done.Load() >= want })
	}
	if err := errors.Join(send(0, warmMessages, nil), handled()); err != nil {
		return err
	}
	for i := range legs {
		leg := &legs[i]
		begun := time.Now()
		for n := 0; n < leg.messages; {
			now, some := time.Since(begun), floodChunk
			if leg.Rate > 0 {
				some = int(now.Seconds()*leg.Rate) + 1 - n
			}
			some = min(some, leg.messages-n)
			if some > 0 {
				from := n
				if err := send(i+1, some, func(j int) time.Time { return begun.Add(leg.due(from + j)) }); err != nil {
					return err
				}
				n += some
			}
			if leg.Rate > 0 {
				select {
				case <-tick.C:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		}
		if err := handled(); err != nil {
			return err
		}
		leg.Seconds = time.Since(begun).Seconds()
		leg.Behind = max(0, leg.Seconds-leg.due(leg.messages-1).Seconds())
	}
	return nil
}
