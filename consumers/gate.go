package consumers

import (
	"context"
	"sync"
)

// gate keeps count of the claims that a consumer holds or asks for, so that a
// token whose earlier processes died can be claimed with nothing beside it: what
// dies with it then is it alone.
type gate struct {
	onTurn func() // solitude is asked for, or over; called without the gate's lock

	mu      sync.Mutex
	claims  int
	waiting int  // for solitude
	alone   bool // somebody has it
	changed change
}

func newGate(onTurn func()) *gate { return &gate{onTurn: onTurn} }

func (g *gate) shut() bool { return g.waiting > 0 || g.alone }

// wanted reports whether solitude is asked for, or in use.
func (g *gate) wanted() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.shut()
}

// tryEnter makes room for n claims, unless solitude is asked for.
func (g *gate) tryEnter(n int) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut() {
		return false
	}
	g.claims += n
	return true
}

// enter waits until a claim may be made.
func (g *gate) enter(ctx context.Context) error {
	return g.await(ctx, func() bool {
		if g.shut() {
			return false
		}
		g.claims++
		return true
	})
}

// enterAlone waits until no other claim is held, and lets none be made until
// leave.
func (g *gate) enterAlone(ctx context.Context) error {
	g.change(func() { g.waiting++ })
	err := g.await(ctx, func() bool {
		if g.alone || g.claims > 0 {
			return false
		}
		g.alone = true
		return true
	})
	g.change(func() { g.waiting-- })
	return err
}

// leave ends what enter (or one of tryEnter), or enterAlone, began.
func (g *gate) leave(alone bool) {
	g.change(func() {
		if alone {
			g.alone = false
		} else {
			g.claims--
		}
	})
}

// change makes a change, and tells of it whom it may concern: who waits for solitude, or, where
// the gate was shut by it or opened, all. That turns only where somebody asks for solitude, or
// leaves it.
func (g *gate) change(f func()) {
	g.mu.Lock()
	before := g.shut()
	f()
	turned := g.shut() != before
	if turned || g.waiting > 0 {
		g.changed.signal()
	}
	g.mu.Unlock()
	if turned {
		g.onTurn()
	}
}

// held returns how many claims there are, or are asked for.
func (g *gate) held() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.claims
}

// shutting returns a channel that is closed when the gate shuts or opens, and whether
// solitude is asked for now.
func (g *gate) shutting() (<-chan struct{}, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.changed.wait(), g.shut()
}

// await calls ready, with mu held, at each change until it is true.
func (g *gate) await(ctx context.Context, ready func() bool) error {
	for {
		g.mu.Lock()
		if ready() {
			g.mu.Unlock()
			return nil
		}
		changed := g.changed.wait()
		g.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
