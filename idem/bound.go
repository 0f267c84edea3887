package idem

import (
	"context"
	"sync"
	"time"
)

// bound gives out contexts that end after a time that is the same for all. Those who ask one
// soon after another are given the same one: a timer for each of them would be started and
// stopped with each trip, and may wake a thread each time. Nothing is to be cancelled; the last
// timer runs out by itself.
type bound struct {
	least, most time.Duration

	mu     sync.Mutex
	ctx    context.Context
	cancel context.CancelFunc // not called: others may have the context as well
	fresh  time.Time          // until when it is given out
}

// with returns one that has the values of ctx.
func (b *bound) with(ctx context.Context) context.Context { return valued{b.context(), ctx} }

func (b *bound) context() context.Context {
	b.mu.Lock()
	defer b.mu.Unlock()
	if now := time.Now(); now.After(b.fresh) {
		b.ctx, b.cancel = context.WithDeadline(context.Background(), now.Add(b.most))
		b.fresh = now.Add(b.most - b.least)
	}
	return b.ctx
}

// valued is a context with the values of another.
type valued struct {
	context.Context
	values context.Context
}

// Value asks the context itself first: package context finds its own contexts by a key.
func (v valued) Value(key any) any {
	if own := v.Context.Value(key); own != nil {
		return own
	}
	return v.values.Value(key)
}
