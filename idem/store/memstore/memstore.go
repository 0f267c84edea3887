// Package memstore keeps records in the memory of one process: for tests, for
// programs that run alone, and where a restart may forget.
//
// It can do everything that package store asks for. What it cannot do is outlive
// its process, or be seen by another: two replicas with a memstore each handle
// each message twice.
package memstore

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/rules"
)

// DefaultMaxRecords is how many records a Store holds without [WithMaxRecords].
const DefaultMaxRecords = 1_000_000

// Store is the in-memory driver. It is safe for concurrent use, starts no
// goroutine and needs no closing: expired records are dropped by later calls of
// Apply, a bounded number each.
type Store struct {
	clock    func() time.Time
	onForget func(Forgotten)
	start    time.Time // what a rules.Instant counts from

	mu          sync.Mutex
	table       table
	incarnation uint64 // the last one drawn, for any name
	losses      map[string]losses
}

// losses is what is to be told to those who use a prefix.
type losses struct {
	batches int // that made the store forget some of its records
	notice  string
}

var _ store.Store = (*Store)(nil)

// Option changes a default of [New].
type Option func(*Store)

// WithMaxRecords bounds the number of records held, issued tokens included;
// default [DefaultMaxRecords], which n below one leaves. A record takes about
// half a kilobyte, and its result.
//
// A full store drops what has expired; then it forgets the record that is
// closest to its expiry among done, dead, forgotten and issued ones: a completed
// token that it forgets is handled again when it is redelivered. Each is told to
// [OnForget], and all who use its prefix by [store.Batch.Notice]: a guard tells of what goes
// after its first batch. Records in progress or released are not forgotten before their time;
// when nothing else is left, an operation that needs a new record is answered with
// [store.ErrFull].
func WithMaxRecords(n int) Option {
	return func(s *Store) {
		if n > 0 {
			s.table.max = n
		}
	}
}

// WithClock replaces time.Now, for tests. The function is called from any
// goroutine that uses the store; nil is ignored.
func WithClock(now func() time.Time) Option {
	return func(s *Store) {
		if now != nil {
			s.clock = now
		}
	}
}

// OnForget sets a function that is told of each record that is forgotten before
// its time, one call a record, from the goroutine that called Apply, before it
// returns. It may use the store. It must be safe for concurrent use.
func OnForget(fn func(Forgotten)) Option {
	return func(s *Store) { s.onForget = fn }
}

// Forgotten is a record that had to go before its time, as the store was full.
type Forgotten struct {
	Prefix string
	Group  string // empty for an issued token
	Token  string
	State  store.State   // Done, Dead or Forgotten; Absent for an issued token
	Issued bool          // the registration of an issued token went
	Early  time.Duration // how long before its time
}

// New returns an empty store.
func New(opts ...Option) *Store {
	s := &Store{clock: time.Now, table: newTable(DefaultMaxRecords), losses: make(map[string]losses)}
	for _, o := range opts {
		o(s)
	}
	s.start = s.clock()
	return s
}

// Apply implements [store.Store]. It executes the whole batch or, with an error,
// nothing: the error is that of an ended context, or of an unknown Kind. The
// operations of one batch are not interleaved with those of another.
func (s *Store) Apply(ctx context.Context, b *store.Batch) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("memstore: nothing executed: %w: %w", store.ErrUnavailable, err)
	}
	for i := range b.Ops {
		if k := b.Ops[i].Kind; k < store.Begin || k > store.Check {
			return fmt.Errorf("memstore: nothing executed: operation %d has the unknown kind %d", i, k)
		}
	}
	if cap(b.Replies) < len(b.Ops) {
		b.Replies = make([]store.Reply, len(b.Ops))
	}
	b.Replies = b.Replies[:len(b.Ops)]

	lost := s.execute(b)
	if s.onForget != nil {
		for _, f := range lost {
			s.onForget(f)
		}
	}
	return nil
}

func (s *Store) execute(b *store.Batch) (lost []Forgotten) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b.Now = s.clock()
	// time.Now's monotonic reading is used where there is one, so that a change of the
	// wall clock moves no lease.
	now := rules.Instant(b.Now.Sub(s.start))
	x := &execution{s: s, b: b, Execution: rules.Execution{Batch: b, Now: now, Time: s.time}}
	s.table.expire(now, 64+2*len(b.Ops))
	for i := range b.Ops {
		b.Replies[i] = x.do(&b.Ops[i])
	}
	s.count(x.lost)
	told := s.losses[b.Prefix]
	b.Notice, b.Losses = told.notice, told.batches
	return x.lost
}

// count takes in what one batch made the store forget; mu is held.
func (s *Store) count(lost []Forgotten) {
	if len(lost) == 0 {
		return
	}
	records, early := make(map[string]int), make(map[string]time.Duration)
	for _, f := range lost {
		records[f.Prefix]++
		early[f.Prefix] = max(early[f.Prefix], f.Early)
	}
	for prefix, n := range records {
		s.losses[prefix] = losses{
			batches: s.losses[prefix].batches + 1,
			notice: fmt.Sprintf("The memory store is full at %d records and forgot %d of them, up to %v before their time: "+
				"completed tokens among them can be handled again, and issued ones are no longer known; "+
				"raise WithMaxRecords, or shorten the retention.", s.table.max, n, early[prefix].Round(time.Millisecond)),
		}
	}
}

// Incarnation implements [store.Store]. It never fails.
func (s *Store) Incarnation(_ context.Context, _, _ string) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	// The clock keeps the numbers rising over restarts.
	s.incarnation = max(s.incarnation+1, uint64(max(0, s.clock().UnixNano())))
	return s.incarnation, nil
}

// Verify implements [store.Store]: always usable, always with one finding.
func (s *Store) Verify(context.Context, string) ([]store.Finding, error) {
	return []store.Finding{{
		ID:          "memory-forgets",
		What:        "The memory store forgets everything when its process ends, and is seen by no other process.",
		Consequence: "Messages that were completed before a restart, or elsewhere, and are delivered again are handled again.",
		Cure:        "Keep the records in Redis, a SQL database or NATS.",
	}}, nil
}

// Capabilities implements [store.Store]: nothing is lacking.
func (s *Store) Capabilities() store.Capabilities { return store.Capabilities{} }
