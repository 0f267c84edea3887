package torture

import (
	"context"
	"fmt"
	"time"

	"github.com/idemq/idemq/e2e/history"
	"github.com/idemq/idemq/idem/store"
)

// watcher keeps an eye on what the broker is owed.
type watcher struct {
	round *Round
	owed  int
	zeros int     // answers of zero in a row
	peak  float64 // copies settled in a second, at most
	last  time.Time
	count int64

	nudges bool // what does not settle: see settle
}

const (
	lookEvery   = 200 * time.Millisecond
	lookTimeout = 3 * time.Second
	stuckAfter  = 60 * time.Second // without progress
	nudgeAfter  = 8 * time.Second  // likewise
	maxNudges   = 3
)

// look asks the broker what it is owed, after a while. A broker that is away does not
// count.
func (w *watcher) look(ctx context.Context) error {
	pass(ctx, lookEvery)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	r := w.round
	asking, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	confirmed := r.pub.confirmed.Load()
	r.faults.broker.Lock()
	owed, err := r.faults.site.Broker.Owed(asking)
	r.faults.broker.Unlock()
	if err != nil {
		w.zeros = 0
		return nil // it is being restarted, say: whether it comes back is for until
	}
	w.owed = owed
	if owed == 0 {
		w.zeros++
	} else {
		w.zeros = 0
	}
	settled := max(confirmed-int64(owed), 0)
	r.pub.settled.Store(settled)
	now := time.Now()
	if !w.last.IsZero() {
		w.peak = max(w.peak, float64(settled-w.count)/now.Sub(w.last).Seconds())
	}
	w.last, w.count = now, settled
	r.pub.limit.Store(min(max(int64(w.peak*1.5), minBacklog), maxBacklog))
	return nil
}

// settle looks until nothing is owed any more, after the faults.
//
// Over a kafka.Reader, a commit of a consumer that was stopped can move the offset of a
// partition back that has gone to another one, until the next rebalance. That is documented,
// and loses nothing. A round that ends so, with everything done that is owed, is nudged: it has
// a deploy more, for a rebalance.
func (w *watcher) settle(ctx context.Context) (stuck string, err error) {
	w.zeros = 0 // of before the last message was published
	w.nudges = w.round.faults.site.Broker.Kind() == "kafka-reader"
	return w.until(ctx, "what is left is not settled", func() bool { return w.zeros >= 2 })
}

// until looks until done, and says so if there is no progress for long.
func (w *watcher) until(ctx context.Context, what string, done func() bool) (stuck string, err error) {
	best, since := -1, time.Now()
	for !done() {
		if err := w.look(ctx); err != nil {
			return "", err
		}
		if best < 0 || w.owed < best {
			best, since = w.owed, time.Now()
		}
		if r := w.round; w.nudges && r.nudges < maxNudges && time.Since(since) > nudgeAfter {
			done, err := r.allDone()
			if err != nil {
				return "", err
			}
			if done {
				r.nudges++
				r.faults.fleet.deploy(ctx, 0)
				best, since = -1, time.Now()
			}
		}
		if time.Since(since) > stuckAfter {
			return fmt.Sprintf("stuck: %s: the broker is owed %d messages, and was owed no fewer for %v", what, w.owed, stuckAfter), nil
		}
	}
	return "", nil
}

// allDone reports whether processes know of every message that was published that it is done.
func (r *Round) allDone() (bool, error) {
	events, err := history.ReadDir(r.Dir)
	if err != nil {
		return false, err
	}
	open := map[uint32]bool{}
	for i := range events {
		if e := &events[i]; e.Kind == history.Published {
			open[e.Token] = true
		}
	}
	for i := range events {
		e := &events[i]
		if e.Kind != history.Answered || e.Has(history.Failed) {
			continue
		}
		switch op, status := store.Kind(e.Op), store.Status(e.Status); {
		case status == store.OK && (op == store.Commit || op == store.Bury), status == store.Duplicate && op == store.Begin:
			delete(open, e.Token)
		}
	}
	return len(open) == 0, nil
}
