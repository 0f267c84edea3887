package bench

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/idemq/idemq/idem"
)

// Trips are a row's round trips to Redis for a message.
type Trips struct {
	Broker string `json:"broker"`
	Row    string `json:"row"`
	Failed string `json:"failed,omitempty"`

	Load       float64 `json:"load"`        // fresh messages, as fast as they come
	Repeats    float64 `json:"repeats"`     // nothing but duplicates, likewise
	Idle       float64 `json:"idle"`        // one fresh message at a time
	IdleRepeat float64 `json:"idle_repeat"` // one duplicate at a time
}

// idleMessages are handled one at a time.
const idleMessages = 10

// fresh is work of n messages, each with a token of its own.
func fresh(n int) *Work {
	w := &Work{partitions: partitions}
	for i := range n {
		w.tokens, w.messages = append(w.tokens, idem.NewToken()), append(w.messages, i)
	}
	return w
}

// measureTrips has a row consume messages one at a time, then many: fresh ones, then the same
// again.
func (l *lab) measureTrips(tb testing.TB, row Row, messages int) Trips {
	tb.Helper()
	all := Trips{Broker: l.broker.Name, Row: row.Name}
	if err := l.tripsOf(tb, row, messages, &all); err != nil {
		all.Failed = err.Error()
	}
	return all
}

func (l *lab) tripsOf(tb testing.TB, row Row, messages int, all *Trips) error {
	tb.Helper()
	if err := emptied(tb.Context(), l.own); err != nil {
		return err
	}
	w := fresh(1 + idleMessages + messages)
	s, counted, discard := l.site(tb, w.partitions)
	defer discard()
	r := newRun(w)
	p := l.server.producer(tb, s.Source)
	defer p.close()
	ctx, cancel := context.WithTimeout(tb.Context(), runLimit)
	defer cancel()
	over := make(chan error, 1)
	go func() {
		err := row.consume(ctx, s, r)
		cancel()
		over <- err
	}()

	// through publishes messages, a number at a time, and tells the trips for each.
	through := func(from, n, atOnce int) (float64, error) {
		before := counted.n.Load()
		for i := from; i < from+n; i += atOnce {
			last := counted.n.Load()
			some := make([]message, 0, atOnce)
			for j := i; j < min(i+atOnce, from+n); j++ {
				some = append(some, w.at(j))
			}
			if err := errors.Join(p.send(ctx, some...), p.flush(ctx)); err != nil {
				return 0, err
			}
			s.Messages += len(some)
			if err := errors.Join(await(ctx, func() bool { return counted.n.Load() > last }), l.settled(ctx, s)); err != nil {
				return 0, err
			}
		}
		return float64(counted.n.Load()-before) / float64(n), nil
	}
	measure := func() (err error) {
		if _, err = through(0, 1, 1); err != nil { // it has joined, and looked at its store
			return err
		}
		many := 1 + idleMessages
		for _, phase := range []struct {
			into            *float64
			from, n, atOnce int
		}{
			{&all.Idle, 1, idleMessages, 1},
			{&all.IdleRepeat, 1, idleMessages, 1},
			{&all.Load, many, messages, messages},
			{&all.Repeats, many, messages, messages},
		} {
			if *phase.into, err = through(phase.from, phase.n, phase.atOnce); err != nil {
				return err
			}
		}
		return nil
	}
	err := measure()
	close(r.over)
	if err != nil {
		cancel()
	}
	if err := errors.Join(err, <-over); err != nil {
		return err
	}
	if missing, doubled := r.tally(); missing > 0 || doubled > 0 {
		return fmt.Errorf("%d tokens without an effect, %d effects too many", missing, doubled)
	}
	return nil
}
