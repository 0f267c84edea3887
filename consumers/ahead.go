package consumers

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/idemq/idemq/idem"
)

// How far the engine works ahead, where the user does not say: for what it expects
// to start within horizon, and no further than maxWindow.
const (
	horizon   = 50 * time.Millisecond
	maxWindow = 384
)

// mostHeld is how many deliveries the lane has a use for.
func (l *Lane) mostHeld() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mostHeldLocked()
}

func (l *Lane) mostHeldLocked() int {
	if l.e.broker.FewDeliveries {
		return l.e.broker.Workers
	}
	return l.e.broker.Workers + max(2*l.windowLocked(), 1)
}

// windowLocked is how many of the next messages are claimed ahead.
func (l *Lane) windowLocked() int {
	if a := l.e.policy.ahead; a > 0 {
		return a - 1
	}
	batches := l.e.broker.MaxBatch * l.e.broker.Workers
	if l.pace == 0 {
		return max(1, batches)
	}
	n := int(horizon / l.pace)
	return max(1, batches, min(n*l.e.broker.Workers, maxWindow))
}

// took notes how long a message kept its worker: a handler's time, or none for a
// duplicate.
func (l *Lane) took(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tookLocked(d)
}

func (l *Lane) tookLocked(d time.Duration) {
	d = max(d, 1)
	if l.pace == 0 {
		l.pace = d
		return
	}
	l.pace = max(1, l.pace+(d-l.pace)/8)
}

// claimAhead makes claims for the next messages while handlers work, all in one
// trip, settles those that turn out to be duplicates, and gives claims back when
// something must come first.
func (l *Lane) claimAhead() {
	for {
		batch, ok := l.nextAhead()
		if !ok {
			l.returnUnstarted()
			return
		}
		if batch == nil {
			l.giveBackAhead()
			continue
		}
		l.askAhead(batch)
	}
}

// returnUnstarted returns, at the beginning of the drain, what was not started to a broker
// that has other consumers for it at once. Where order matters it waits for the
// message before it, and goes back at the end; so does what the broker would drop.
func (l *Lane) returnUnstarted() {
	inOrder := l.e.broker.Workers == 1 && !l.e.broker.Redelivers
	if inOrder || l.ctx.Err() != nil {
		return
	}
	l.mu.Lock()
	queue := l.queue
	l.queue = nil
	l.mu.Unlock()
	for _, en := range queue {
		if !en.d.Final() {
			en.settle(func(ctx context.Context) error { return en.d.Redeliver(ctx, 0) }, unsettled)
		}
	}
}

// nextAhead waits for entries to claim ahead; nil if claims are to be given back;
// not ok at the end.
func (l *Lane) nextAhead() (batch []*entry, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		held := l.heldAhead()
		switch {
		case l.ending():
			if held == 0 {
				return nil, false
			}
			return nil, true
		case l.closed && l.idle():
			return nil, false
		case !l.mayAhead():
			if held > 0 {
				return nil, true
			}
		case !l.hasEnough(held):
			if batch = l.claimable(); len(batch) > 0 && l.e.gate.tryEnter(len(batch)) {
				for _, en := range batch {
					en.asking, en.shared = true, true
				}
				return batch, true
			}
		}
		l.cond.Wait()
	}
}

// mayAhead reports, with mu held, whether claims may be made ahead.
func (l *Lane) mayAhead() bool { return l.stalled == 0 && !l.e.gate.wanted() }

func (l *Lane) heldAhead() int {
	n := 0
	for _, en := range l.queue {
		if en.claim != nil && !en.asking {
			n++
		}
	}
	return n
}

// claimable lists, with mu held, the entries to claim ahead now. What was held for long is left
// to its turn.
func (l *Lane) claimable() []*entry {
	// A lane that is idle has its worker ask; ahead is what stands behind.
	var batch []*entry
	for _, en := range l.queue[:min(l.windowLocked(), len(l.queue))] {
		switch {
		case !l.isClaimable(en):
		case en.heldLong():
			en.tried = true
			l.cond.Broadcast() // a worker may have left it to be claimed ahead, and takes it now
		default:
			batch = append(batch, en)
		}
	}
	return batch
}

// isClaimable reports, with mu held, whether an entry can be claimed before its turn.
func (l *Lane) isClaimable(en *entry) bool {
	return en.claim == nil && !en.asking && !en.tried && !en.alone && en.invalid == nil && en.prev == nil
}

// hasEnough reports, with mu held, whether no more needs to be claimed ahead yet: the next entry
// is not waiting for that, and half of the window is claimed, and as many as handlers of
// several may take. More travel together then.
func (l *Lane) hasEnough(claimed int) bool {
	enough := max(1, (l.windowLocked()+1)/2, l.e.broker.MaxBatch*l.e.broker.Workers)
	return claimed >= enough && !l.isClaimable(l.queue[0])
}

func (l *Lane) askAhead(batch []*entry) {
	reqs := make([]idem.Request, len(batch))
	for i, en := range batch {
		reqs[i] = en.request()
	}
	ask := l.ask
	if until := batch[0].holdUntil; !until.IsZero() { // the one that came first
		var cancel context.CancelFunc
		ask, cancel = context.WithDeadlineCause(ask, until, errHeldLong)
		defer cancel()
	}
	answers := l.guard.BeginAll(ask, reqs)

	type duplicate struct {
		en  *entry
		was *idem.DuplicateError
	}
	var duplicates []duplicate
	l.mu.Lock()
	for i, en := range batch {
		en.asking = false
		if answers[i].Err == nil {
			en.claim = answers[i].Claim
			continue
		}
		en.tried, en.shared = true, false
		l.e.gate.leave(false)
		var dup *idem.DuplicateError
		if errors.As(answers[i].Err, &dup) && !l.e.policy.shadow && !l.ending() {
			duplicates = append(duplicates, duplicate{en, dup})
			l.drop(en)
			l.tookLocked(0)
		}
	}
	l.cond.Broadcast()
	l.mu.Unlock()
	for _, d := range duplicates {
		d.en.settleDuplicate(d.was)
	}
}

// drop takes an entry out of the queue, with mu held.
func (l *Lane) drop(en *entry) {
	for i, x := range l.queue {
		if x == en {
			l.queue = slices.Delete(l.queue, i, i+1)
			return
		}
	}
}

// giveBackAhead releases, uncounted, the claims that were made ahead and not
// started.
func (l *Lane) giveBackAhead() {
	var batch []*entry
	var claims []*idem.Claim
	l.mu.Lock()
	for _, en := range l.queue {
		if en.claim != nil && !en.asking {
			en.asking = true
			batch = append(batch, en)
			claims = append(claims, en.claim)
		}
	}
	l.mu.Unlock()
	if len(batch) == 0 {
		return
	}
	within, cancel := batch[0].giveBackCtx()
	defer cancel()
	for i, err := range l.guard.ReleaseAll(within, claims, false) {
		if err != nil {
			l.releaseLate(claims[i], false)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, en := range batch {
		en.claim, en.asking, en.shared = nil, false, false
		l.e.gate.leave(false)
	}
	l.cond.Broadcast()
}
