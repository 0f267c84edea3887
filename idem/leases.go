package idem

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/idemq/idemq/idem/store"
)

// leases renews the claims of a guard, all that are due in one trip, and notices
// those that have run out on this process's clock. A claim is in it from its Begin
// until it is ended, abandoned or lost. It has no goroutine between its ticks. The timer is
// left to run out when the last claim goes: the next one comes soon, where there are many.
type leases struct {
	core *core

	mu    sync.Mutex
	held  []*claim // in no order
	timer *time.Timer
	ticks bool // the timer runs
}

// renewal is a claim's place among those that are held, and its last renewal. Guarded by
// the leases' mutex.
type renewal struct {
	place   int       // its place, counted from one; zero: it is not held
	last    time.Time // on this process's clock, before the request was sent
	pending bool      // one is under way
	apart   bool      // the last one failed since its part did not answer: the next travels apart
}

// A tick comes each sixth of the lease and renews what is older than that: so each
// claim is renewed at least each third.
func (l *leases) tick() time.Duration { return max(l.core.opts.lease/6, time.Millisecond) }

func (l *leases) add(c *claim) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held = append(l.held, c)
	c.renewal = renewal{place: len(l.held), last: c.deadline.Add(-l.core.opts.lease)}
	if l.ticks {
		return
	}
	l.ticks = true
	if l.timer == nil {
		l.timer = time.AfterFunc(l.tick(), l.run)
	} else {
		l.timer.Reset(l.tick())
	}
}

func (l *leases) remove(c *claim) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drop(c)
}

// drop is called with mu held; the last claim takes the place of this one.
func (l *leases) drop(c *claim) {
	if c.renewal.place == 0 {
		return
	}
	end := len(l.held) - 1
	last := l.held[end]
	l.held[c.renewal.place-1], last.renewal.place = last, c.renewal.place
	c.renewal.place = 0
	l.held[end] = nil
	l.held = l.held[:end]
}

// run is one tick.
func (l *leases) run() {
	lease, tick := l.core.opts.lease, l.tick()
	now := time.Now()
	next := now.Add(tick)
	var over []*claim
	var due []*call
	l.mu.Lock()
	for _, c := range slices.Backward(l.held) { // what takes the place of one that goes was seen
		r := &c.renewal
		end := r.last.Add(lease)
		switch {
		case !now.Before(end):
			over = append(over, c)
			l.drop(c)
			continue
		case !r.pending && now.Sub(r.last) >= tick:
			due = append(due, &call{to: c, apart: r.apart})
			r.pending = true
		}
		if end.Before(next) {
			next = end
		}
	}
	if l.ticks = len(l.held) > 0; l.ticks {
		l.timer.Reset(max(time.Until(next), time.Millisecond))
	}
	l.mu.Unlock()

	for _, c := range over {
		c.lose()
	}
	for _, d := range due {
		d.op = d.to.(*claim).op(store.Renew, false)
		d.op.Result = nil
	}
	for chunk := range slices.Chunk(due, maxBatch) {
		l.core.batcher.submit(chunk...)
	}
}

// answered is told of a renewal.
func (c *claim) answered(answered *call) {
	l := &c.guard.core.leases
	l.mu.Lock()
	held := c.renewal.place > 0
	c.renewal.pending = false
	c.renewal.apart = answered.apart && answered.err != nil
	if answered.err == nil && answered.reply.Status == store.OK {
		c.renewal.last = answered.sent
	}
	l.mu.Unlock()
	if !held || answered.err != nil {
		return
	}
	switch answered.reply.Status {
	case store.OK:
		c.mu.Lock()
		c.deadline = answered.sent.Add(l.core.opts.lease)
		c.mu.Unlock()
	case store.Lost:
		if !c.wasEnding(answered.sent) { // else it may have come amid or just after the commit
			c.lose()
		}
	default:
		c.guard.Emit(Event{
			Kind: EventRefused, Token: c.token,
			Err: fmt.Errorf("idem: renew token %q: %w", c.token, l.core.senseless(answered.reply)),
		})
	}
}
