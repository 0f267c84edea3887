package consumers

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/idemq/idemq/idem"
)

// stall is for a worker that cannot go on with its message because somebody else
// holds it: claims made ahead are given back, or two consumers could each hold the
// other's next message for ever. None is made until the message is claimed, settled or left.
func (en *entry) stall() {
	if en.stalledSince.IsZero() {
		now := time.Now()
		en.stalledSince, en.stallTold = now, now
		en.l.addStalled(1)
	}
}

func (en *entry) unstall() {
	if !en.stalledSince.IsZero() {
		en.stalledSince = time.Time{}
		en.l.addStalled(-1)
	}
}

func (l *Lane) addStalled(n int) {
	if l.cond == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stalled += n
	l.cond.Broadcast()
}

// tellStall tells once a lease that whoever holds the token goes on renewing it.
func (en *entry) tellStall() {
	e, now := en.l.e, time.Now()
	if now.Sub(en.stallTold) < e.guard.Settings().Lease {
		return
	}
	en.stallTold = now
	e.emit(en, idem.Event{Kind: idem.EventWaiting, Wait: now.Sub(en.stalledSince), Err: fmt.Errorf(
		"%s waits for its token, which somebody else holds, and renews: Guard.Inspect says for how long, and, with WithInstance, who", en.d)})
}

// jitter spreads waits, so that those who wait for one thing do not ask at once.
func jitter(d time.Duration) time.Duration {
	return d/2 + rand.N(d/2+1)
}

// sleep waits for d, or the end of ctx.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// tryLater waits and tries again: in place under this claim, or by way of the
// broker where order does not matter.
func (en *entry) tryLater(err error, d time.Duration, counted bool) (again bool) {
	e, c := en.l.e, en.claim
	e.emit(en, idem.Event{Kind: idem.EventRetry, Attempt: c.Attempt(), Err: err, Wait: d})
	if e.broker.Redelivers {
		en.giveBack(counted)
		en.settle(func(ctx context.Context) error { return en.d.Redeliver(ctx, d) }, settled)
		return false
	}
	until := time.Now().Add(d)
	if en.together {
		en.notBefore = until
		en.giveBack(counted)
		return true
	}
	kept := !en.alone && en.keepFor(c, d)
	if en.over() || !kept {
		en.giveBack(counted)
		sleep(en.waits, time.Until(until))
		return true
	}
	// The claim's share at the gate goes to the next one.
	next, err := c.Retry(en.ask, counted, en.request())
	claimed, again := en.judge(idem.Begun{Claim: next, Err: err})
	if !claimed {
		en.setClaim(nil)
	}
	return claimed || again
}

// keepFor waits for d while the claim is held; false if the claim has to go before.
func (en *entry) keepFor(c *idem.Claim, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	for {
		changed, shut := en.l.e.gate.shutting()
		if shut {
			return false
		}
		select {
		case <-t.C:
			return true
		case <-changed:
		case <-c.Context().Done():
			return false
		case <-en.waits.Done():
			return false
		}
	}
}
