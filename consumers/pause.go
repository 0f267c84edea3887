package consumers

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/idemq/idemq/idem"
)

// The first pause, and the longest.
const (
	firstPause = 100 * time.Millisecond
	lastPause  = 5 * time.Second
)

// Pause is the wait of an adapter's loop between failures of one kind: it doubles, from
// 100 ms to 5 s, with jitter. Its zero value is ready. It is for one goroutine.
type Pause struct{ last time.Duration }

// Reset is for a success: the next pause is a first one.
func (p *Pause) Reset() { p.last = 0 }

// Failing reports whether there was no success since the last failure.
func (p *Pause) Failing() bool { return p.last > 0 }

// Wait tells the guard's observers of err (idem.EventWaiting) and waits, not beyond the
// end of ctx.
func (p *Pause) Wait(ctx context.Context, g *idem.Guard, err error) {
	p.WaitAtMost(ctx, g, err, lastPause)
}

// WaitAtMost is Wait with another longest pause than 5 s.
func (p *Pause) WaitAtMost(ctx context.Context, g *idem.Guard, err error, most time.Duration) {
	p.last = min(max(2*p.last, firstPause), most)
	d := p.last/2 + rand.N(p.last/2+1)
	g.Emit(idem.Event{Kind: idem.EventWaiting, Err: err, Wait: d})
	sleep(ctx, d)
}
