package consumers

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/idemq/idemq/idem"
)

// How far the engine works ahead, where the user does not say: for what it expects
// to start within horizon, and no further than maxWindow.
const (
	horizon   = 50 * time.Millisecond
	maxWindow = 64
)

// maxRecord bounds how many completions are recorded in one call.
const maxRecord = 256

// outcome is how the engine's part in a delivery ended.
type outcome uint8

const (
	open      outcome = iota
	unsettled         // left to the broker
	settled           // acked, terminated, or sent back
	completed         // acked, and known to be done
)

// entry is one delivery on its way through a lane.
type entry struct {
	l       *Lane
	d       Delivery
	nth     uint64 // of all that the engine held
	token   string
	invalid error  // why there is no token
	prev    *entry // the same token, earlier in this lane

	over    chan struct{} // closed when outcome is set
	outcome outcome
	failure error // Handle: why nothing was settled

	// Guarded by the lane's mutex while the entry is queued; after that they are
	// the worker's.
	claim  *idem.Claim
	asking bool // a trip for this entry is under way
	tried  bool // a claim ahead was refused: its turn decides
	alone  bool // it is claimed with nothing beside it
	shared bool // it counts at the gate

	failures int // without a claim to count them: shadow mode, FailOpen

	mu      sync.Mutex
	started bool // in the handler
}

func (en *entry) inHandler() bool {
	en.mu.Lock()
	defer en.mu.Unlock()
	return en.started
}

func (en *entry) setStarted(started bool) {
	en.mu.Lock()
	defer en.mu.Unlock()
	en.started = started
}

// abandon leaves the claim of a handler that does not return to its lease.
func (en *entry) abandon() {
	en.mu.Lock()
	defer en.mu.Unlock()
	if en.claim != nil {
		en.claim.Abandon()
	}
}

// Lane is a line of deliveries. With one worker its messages reach the handler one
// after another; lanes are independent of each other.
type Lane struct {
	e   *Engine
	ctx context.Context // ends when its deliveries are this consumer's no longer
	ph  *phases
	wg  sync.WaitGroup

	waits context.Context // ends when nothing of this lane is waited for any more

	mu       sync.Mutex
	cond     *sync.Cond
	queue    []*entry          // in order; the first is next
	last     map[string]*entry // by token, the latest that is not settled
	returned []*entry          // handled, completion to be recorded
	working  int               // workers at work, entries between queue and returned included
	waiting  int               // workers that wait for a message that is held elsewhere
	closed   bool              // no more are added
	pace     time.Duration     // what a handler takes, a moving average
}

// Lane makes a lane, whose deliveries belong to this consumer until ctx ends: then
// handlers are cancelled, claims are given back uncounted, and nothing more of it is
// settled. It is called by the function that Run fetches with.
func (e *Engine) Lane(ctx context.Context) *Lane {
	e.mu.Lock()
	ph := e.ph
	l := &Lane{e: e, ctx: ctx, ph: ph, last: make(map[string]*entry)}
	l.cond = sync.NewCond(&l.mu)
	e.lanes[l] = struct{}{}
	e.mu.Unlock()
	waits, endWaits := context.WithCancelCause(ph.run)
	l.waits = waits
	end := func() {
		endWaits(context.Cause(ctx))
		l.wake()
	}
	stops := []func() bool{context.AfterFunc(ctx, end), context.AfterFunc(ph.run, l.wake)}
	for range e.broker.Workers {
		l.wg.Go(l.work)
	}
	l.wg.Go(l.claimAhead)
	l.wg.Go(l.record)
	go func() {
		l.wg.Wait()
		for _, stop := range stops {
			stop()
		}
		endWaits(nil)
		if ctx.Err() != nil {
			l.forgetQueued()
		}
		e.mu.Lock()
		delete(e.lanes, l)
		e.mu.Unlock()
	}()
	return l
}

// forgetQueued ends the engine's part in what a lost lane had not started.
func (l *Lane) forgetQueued() {
	l.mu.Lock()
	queue := l.queue
	l.queue = nil
	l.mu.Unlock()
	for _, en := range queue {
		l.e.forget(en, unsettled)
	}
}

// Add hands a delivery to the lane. It does not wait: the bound is Room's.
func (l *Lane) Add(d Delivery) {
	en := l.newEntry(d)
	l.e.hold(en)
	l.mu.Lock()
	defer l.mu.Unlock()
	if en.token != "" {
		en.prev = l.last[en.token]
		l.last[en.token] = en
	}
	l.queue = append(l.queue, en)
	l.cond.Broadcast()
}

// Close says that no more deliveries come, and Wait that those that were added are
// settled or left.
func (l *Lane) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.cond.Broadcast()
}

// Wait waits until the lane's work has ended: after Close, the end of its context,
// or the drain.
func (l *Lane) Wait() { l.wg.Wait() }

func (l *Lane) newEntry(d Delivery) *entry {
	en := &entry{l: l, d: d, over: make(chan struct{})}
	en.token, en.invalid = l.e.policy.token(d)
	if en.invalid != nil {
		en.token = ""
	}
	return en
}

func (l *Lane) wake() {
	if l.cond == nil { // of Handle: nobody waits
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cond.Broadcast()
}

// ending reports whether no new message is to be started.
func (l *Lane) ending() bool { return l.ph.run.Err() != nil || l.ctx.Err() != nil }

// settled notes the outcome of an entry.
func (l *Lane) settled(en *entry, o outcome) {
	l.mu.Lock()
	defer l.mu.Unlock()
	en.outcome = o
	close(en.over)
	if l.last[en.token] == en {
		delete(l.last, en.token)
	}
	en.prev = nil
	if l.cond != nil {
		l.cond.Broadcast()
	}
}

// work is a worker: it takes what is next and sees it through its handler.
func (l *Lane) work() {
	for en := l.take(); en != nil; en = l.take() {
		func() {
			defer l.leaveWork()
			en.process()
		}()
	}
}

func (l *Lane) leaveWork() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.working--
	l.cond.Broadcast()
}

// take waits for the next entry; nil when there will be none.
func (l *Lane) take() *entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		switch {
		case l.ending():
			return nil
		case len(l.queue) > 0 && !l.queue[0].asking:
			en := l.queue[0]
			l.queue = l.queue[1:]
			l.working++
			l.cond.Broadcast()
			return en
		case l.closed && l.idle():
			return nil
		}
		l.cond.Wait()
	}
}

// idle reports, with mu held, that nothing is in the lane.
func (l *Lane) idle() bool { return len(l.queue) == 0 && l.working == 0 && len(l.returned) == 0 }

// putBack makes an entry the next one again: its completion was refused.
func (l *Lane) putBack(en *entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.queue = append([]*entry{en}, l.queue...)
	l.cond.Broadcast()
}

// window is how many of the next messages are claimed ahead.
func (l *Lane) window() int {
	if a := l.e.policy.ahead; a > 0 {
		return a - 1
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.windowLocked()
}

func (l *Lane) windowLocked() int {
	if a := l.e.policy.ahead; a > 0 {
		return a - 1
	}
	if l.pace == 0 {
		return 1
	}
	n := int(horizon / l.pace)
	return max(1, min(n*l.e.broker.Workers, maxWindow))
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
			l.sendBack()
			return
		}
		if batch == nil {
			l.giveBackAhead()
			continue
		}
		l.askAhead(batch)
	}
}

// sendBack returns, at the beginning of the drain, what was not started to a broker
// that has other consumers for it at once. Where order matters it waits for the
// message before it, and goes back at the end.
func (l *Lane) sendBack() {
	if !l.e.broker.Redelivers || l.ctx.Err() != nil {
		return
	}
	l.mu.Lock()
	queue := l.queue
	l.queue = nil
	l.mu.Unlock()
	for _, en := range queue {
		en.settle(func(ctx context.Context) error { return en.d.Redeliver(ctx, 0) }, unsettled)
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
		case l.waiting > 0 || l.e.gate.wanted():
			if held > 0 {
				return nil, true
			}
		default:
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

func (l *Lane) heldAhead() int {
	n := 0
	for _, en := range l.queue {
		if en.claim != nil && !en.asking {
			n++
		}
	}
	return n
}

// claimable lists, with mu held, the entries to claim ahead now.
func (l *Lane) claimable() []*entry {
	// A lane that is idle has its worker ask; ahead is what stands behind.
	var batch []*entry
	for i, en := range l.queue {
		if i >= l.windowLocked() {
			break
		}
		if en.claim == nil && !en.asking && !en.tried && en.invalid == nil && en.prev == nil {
			batch = append(batch, en)
		}
	}
	return batch
}

func (l *Lane) askAhead(batch []*entry) {
	reqs := make([]idem.Request, len(batch))
	for i, en := range batch {
		reqs[i] = en.request()
	}
	answers := l.e.guard.BeginAll(l.ph.ask, reqs)

	type duplicate struct {
		en *entry
		as outcome
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
		l.e.gate.leave(1, false)
		var dup *idem.DuplicateError
		if errors.As(answers[i].Err, &dup) && !l.e.policy.shadow && !l.ending() {
			duplicates = append(duplicates, duplicate{en, outcomeOf(dup)})
			l.drop(en)
			l.tookLocked(0)
		}
	}
	l.cond.Broadcast()
	l.mu.Unlock()
	for _, d := range duplicates {
		d.en.settle(d.en.d.Ack, d.as)
	}
}

// drop takes an entry out of the queue, with mu held.
func (l *Lane) drop(en *entry) {
	for i, x := range l.queue {
		if x == en {
			l.queue = append(l.queue[:i:i], l.queue[i+1:]...)
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
	_ = l.e.guard.ReleaseAll(l.ph.final, claims, false) // one that fails was lost, or is left to its lease
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, en := range batch {
		en.claim, en.asking, en.shared = nil, false, false
		l.e.gate.leave(1, false)
	}
	l.cond.Broadcast()
}

// wait is for a worker that cannot go on with its message because somebody else
// holds it: claims made ahead are given back, or two consumers could each hold the
// other's next message for ever.
func (l *Lane) wait(ctx context.Context, d time.Duration) {
	if l.cond != nil {
		l.mu.Lock()
		l.waiting++
		l.cond.Broadcast() // claimAhead gives back
		l.mu.Unlock()
		defer func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.waiting--
			l.cond.Broadcast()
		}()
	}
	sleep(ctx, d)
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

// record records completions, as many in one trip as have come together.
func (l *Lane) record() {
	for {
		batch := l.nextReturned()
		if batch == nil {
			return
		}
		again := l.e.commit(batch)
		for _, en := range again {
			if l.ending() {
				en.leave()
				continue
			}
			l.putBack(en)
		}
		l.mu.Lock()
		l.working -= len(batch)
		l.cond.Broadcast()
		l.mu.Unlock()
	}
}

// nextReturned waits for completions; nil at the end, when no worker can bring
// one any more. Those that it returns count as working until record is done.
func (l *Lane) nextReturned() []*entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		switch {
		case len(l.returned) > 0:
			n := min(len(l.returned), maxRecord)
			batch := l.returned[:n:n]
			l.returned = l.returned[n:]
			l.working += n
			return batch
		case l.working == 0 && (l.ending() || l.closed && len(l.queue) == 0):
			return nil
		}
		l.cond.Wait()
	}
}

// complete hands over an entry whose handler returned nil.
func (l *Lane) complete(en *entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.returned = append(l.returned, en)
	l.cond.Broadcast()
}
