package inbox

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/idemq/idemq/idem/store"
)

// schedule is when to sweep next, guarded by the store's mutex.
type schedule struct {
	running bool
	debt    int // operations since the last time
	next    time.Time
	times   int
	limit   int // rows that there was time for; zero: it is not known
}

const (
	sweepLimit = 1000                   // rows a transaction
	sweepFew   = 10                     // at least, where time is short
	sweepDebt  = 1000                   // operations after which it is time: of a message, two at least
	sweepEvery = 20 * time.Second       // or else
	sweepFor   = time.Second            // at most, in somebody's Apply, or a tenth of the lease
	sweepLeast = 100 * time.Millisecond // of that: a sweep that is cut off deletes nothing
	sweepAll   = 50                     // times after which it is all tables' turn, not the records' only
	// A later incarnation is above the clock anyhow.
	oldInstances = 24 * time.Hour
)

// sweepSometimes deletes a few rows whose time has passed, after a batch; it keeps up
// with what comes in. Its errors are nobody's: the next batch meets them too.
func (s *Store) sweepSometimes(ctx context.Context, b *store.Batch) {
	if s.config.NoSweep {
		return
	}
	s.mu.Lock()
	s.sweep.debt += len(b.Ops)
	due := !s.sweep.running && (s.sweep.debt >= sweepDebt || time.Now().After(s.sweep.next))
	limit := cmp.Or(s.sweep.limit, sweepLimit)
	if due {
		s.sweep = schedule{running: true, next: time.Now().Add(sweepEvery), times: s.sweep.times + 1}
	}
	all := s.sweep.times%sweepAll == 1
	s.mu.Unlock()
	if !due {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, min(sweepFor, max(sweepLeast, b.Lease/10)))
	defer cancel()
	n, err := s.sweepOnce(ctx, b.Now.UnixMicro(), limit, all)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sweep.running = false
	s.sweep.limit = min(2*limit, sweepLimit)
	if err != nil { // the same rows come first again
		s.sweep.limit = max(sweepFew, limit/2)
	}
	if n >= limit {
		s.sweep.next = time.Time{} // there is more
	}
}

// Sweep deletes up to limit rows whose time has passed, and returns how many.
func (s *Store) Sweep(ctx context.Context, limit int) (int, error) {
	if err := s.prepare(ctx); err != nil {
		return 0, err
	}
	clock, err := s.clock(ctx)
	if err != nil {
		return 0, s.failure("sweeping", err)
	}
	total := 0
	for total < limit {
		n, err := s.sweepOnce(ctx, clock, min(limit-total, sweepLimit), true)
		total += n
		if err != nil {
			return total, s.failure("sweeping", err)
		}
		if n == 0 {
			break
		}
	}
	return total, nil
}

// sweepOnce deletes the rows of renewed claims last: one of them that is held is waited for.
func (s *Store) sweepOnce(ctx context.Context, clock int64, limit int, all bool) (total int, err error) {
	if total, err = s.sweepTables(ctx, clock, limit, all); err != nil {
		return total, err
	}
	return total, s.endLeases(ctx, limit)
}

func (s *Store) sweepTables(ctx context.Context, clock int64, limit int, all bool) (total int, err error) {
	which := []string{"records", "issued", "leases"}
	if !all {
		which = which[:1]
	}
	for _, which := range which {
		n := 0
		err := s.persist(ctx, func() error {
			return s.mark(s.within(ctx, func(tx Tx) (err error) {
				n, err = s.sweepTable(ctx, tx, which, clock, limit-total)
				return err
			}))
		})
		if err != nil {
			return total, err
		}
		if total += n; total >= limit {
			return total, nil
		}
	}
	if !all {
		return total, nil
	}
	_, err = s.exec(ctx, s.db, "old_instances", values{"now": clock - oldInstances.Microseconds()})
	return total, err
}

// clock asks for the database's.
func (s *Store) clock(ctx context.Context) (int64, error) {
	x := &execution{s: s, b: &store.Batch{}}
	err := s.persist(ctx, func() error { return s.mark(x.look(ctx, s.db, "read", nil)) })
	return x.now, err
}

// sweepTable deletes rows that nobody holds. A claim in progress that was renewed has its
// time among the leases, which are read with the row locked.
func (s *Store) sweepTable(ctx context.Context, tx Tx, which string, clock int64, limit int) (int, error) {
	var keys, running []key
	v := values{"due": clock / bucket, "now": clock, "limit": int64(limit)}
	err := s.query(ctx, tx, "due_"+which, v, func(r Rows) error {
		var gid, state int64
		var token []byte
		if err := r.Scan(&gid, &token, &state); err != nil {
			return err
		}
		k := key{gid, string(token)}
		keys = append(keys, k)
		if state == int64(store.Running) {
			running = append(running, k)
		}
		return nil
	})
	if err != nil || len(keys) == 0 {
		return 0, err
	}
	if len(running) > 0 {
		slices.SortFunc(running, compareKeys)
		alive := make(map[key]bool)
		err := s.query(ctx, tx, "leases", values{"keys": keyTable(running)}, func(r Rows) error {
			var gid, renewed, length, expires int64
			var token []byte
			var claim string
			err := r.Scan(&gid, &token, &claim, &renewed, &length, &expires)
			if expires > clock {
				alive[key{gid, string(token)}] = true
			}
			return err
		})
		if err != nil {
			return 0, err
		}
		keys = slices.DeleteFunc(keys, func(k key) bool { return alive[k] })
	}
	if len(keys) == 0 {
		return 0, nil
	}
	slices.SortFunc(keys, compareKeys)
	_, err = s.exec(ctx, tx, "delete_"+which, values{"keys": keyTable(keys)})
	return len(keys), err
}

// endLeases deletes the rows of some renewed claims that are over, which this process knows.
// Where that fails they are forgotten: somebody may hold one of them for good. The sweep of
// leases passes over that one and finds the others, once their time has passed.
func (s *Store) endLeases(ctx context.Context, limit int) error {
	s.mu.Lock()
	n := min(limit, maxOps, len(s.ended))
	ended := s.ended[:n:n]
	s.ended = s.ended[n:]
	s.mu.Unlock()
	if n == 0 {
		return nil
	}
	slices.SortFunc(ended, func(a, b lease) int { return compareKeys(a.key, b.key) })
	t := table{columns: []string{"gid", "token", "claim"}}
	for _, l := range ended {
		t.rows = append(t.rows, []any{l.gid, []byte(l.token), l.claim})
	}
	_, err := s.exec(ctx, s.db, "end_leases", values{"rows": t})
	return err
}
