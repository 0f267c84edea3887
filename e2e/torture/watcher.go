package torture

import (
	"context"
	"fmt"
	"path/filepath"
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
	var read time.Time // the history, which is long
	for !done() {
		if err := w.look(ctx); err != nil {
			return "", err
		}
		if best < 0 || w.owed < best {
			best, since = w.owed, time.Now()
		}
		if r := w.round; w.nudges && r.nudges < maxNudges && time.Since(since) > nudgeAfter && time.Since(read) > nudgeAfter {
			read = time.Now()
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
	files, err := filepath.Glob(filepath.Join(r.Dir, "*"+history.Suffix))
	if err != nil {
		return false, err
	}
	published, done := map[uint32]bool{}, map[uint32]bool{}
	for _, f := range files {
		for e, err := range history.Read(f) {
			if err != nil {
				return false, err
			}
			switch op, status := store.Kind(e.Op), store.Status(e.Status); {
			case e.Kind == history.Published:
				published[e.Token] = true
			case e.Kind != history.Answered || e.Has(history.Failed):
			case status == store.OK && (op == store.Commit || op == store.Bury), status == store.Duplicate && op == store.Begin:
				done[e.Token] = true
			}
		}
	}
	for token := range published {
		if !done[token] {
			return false, nil
		}
	}
	return true, nil
}
