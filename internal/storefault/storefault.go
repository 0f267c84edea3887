// Package storefault puts faults between a guard and a store, and counts what
// passes. It is for tests.
package storefault

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/idemq/idemq/idem/store"
)

// Fault is what happens to a trip.
type Fault int

const (
	// None lets it through.
	None Fault = iota
	// Away does not execute it: the store is out of reach.
	Away
	// Swallow executes it and loses the reply.
	Swallow
	// Refuse does not execute it: the store answers with a refusal.
	Refuse
	// Late executes it a second later than asked.
	Late
	// Hang does not execute it, and answers only when the trip's context ends.
	Hang
)

// Store is a store with faults. It is safe for concurrent use.
type Store struct {
	store.Store

	mu     sync.Mutex
	decide func(*store.Batch) Fault
	verify func(context.Context) ([]store.Finding, error)
	delay  time.Duration
	trips  int
	ops    []store.Op
}

// New puts faults in front of s: none, until Set.
func New(s store.Store) *Store { return &Store{Store: s} }

// Set makes every trip from now on suffer f.
func (s *Store) Set(f Fault) { s.On(func(*store.Batch) Fault { return f }) }

// Once makes the first trip with an operation of this kind suffer f.
func (s *Store) Once(k store.Kind, f Fault) {
	done := false
	s.On(func(b *store.Batch) Fault {
		if done || !slices.ContainsFunc(b.Ops, func(op store.Op) bool { return op.Kind == k }) {
			return None
		}
		done = true
		return f
	})
}

// On lets decide choose; it is called for one trip at a time.
func (s *Store) On(decide func(*store.Batch) Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.decide = decide
}

// OnVerify has verify answer in the place of the store's Verify; nil is the store's own.
func (s *Store) OnVerify(verify func(context.Context) ([]store.Finding, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.verify = verify
}

// Verify implements store.Store. Faults of trips do not touch it.
func (s *Store) Verify(ctx context.Context, prefix string) ([]store.Finding, error) {
	s.mu.Lock()
	verify := s.verify
	s.mu.Unlock()
	if verify != nil {
		return verify(ctx)
	}
	return s.Store.Verify(ctx, prefix)
}

// Delay makes each trip take d more.
func (s *Store) Delay(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.delay = d
}

// Trips returns how many were made, faults included.
func (s *Store) Trips() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.trips
}

// Ops returns the operations of one kind that were sent, resent ones included.
func (s *Store) Ops(k store.Kind) []store.Op {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ops []store.Op
	for _, op := range s.ops {
		if op.Kind == k {
			ops = append(ops, op)
		}
	}
	return ops
}

// Apply implements store.Store.
func (s *Store) Apply(ctx context.Context, b *store.Batch) error {
	s.mu.Lock()
	s.trips++
	s.ops = append(s.ops, b.Ops...)
	fault := None
	if s.decide != nil {
		fault = s.decide(b)
	}
	delay := s.delay
	s.mu.Unlock()
	time.Sleep(delay)
	switch fault {
	case Away:
		return fmt.Errorf("storefault: %w", store.ErrUnavailable)
	case Refuse:
		return fmt.Errorf("storefault: refused")
	case Hang:
		<-ctx.Done()
		return fmt.Errorf("storefault: %w: %w", store.ErrUnavailable, ctx.Err())
	}
	if fault == Late {
		time.Sleep(time.Second)
	}
	err := s.Store.Apply(ctx, b)
	if fault == Swallow && err == nil {
		b.Replies = nil
		return fmt.Errorf("storefault: reply lost: %w", store.ErrUnavailable)
	}
	return err
}
