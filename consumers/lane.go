package consumers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/idemq/idemq/idem"
)

// Lane is a line of deliveries. With one worker its messages reach the handler one
// after another; lanes are independent of each other.
type Lane struct {
	e     *Engine
	guard *idem.Guard     // of its group
	ctx   context.Context // ends when its deliveries are this consumer's no longer
	ph    *phases
	wg    sync.WaitGroup

	ask      context.Context // ends when no claim is asked for any more
	waits    context.Context // ends when nothing of this lane is waited for any more
	handling context.Context // the parent of handlers' contexts; see handlers

	mu       sync.Mutex
	cond     *sync.Cond
	held     int               // deliveries that were added and are not settled
	queue    []*entry          // in order; the first is next
	last     map[string]*entry // by token, the latest that is not settled
	returned []*entry          // handled, completion to be recorded
	working  int               // workers at work, entries between queue and returned included
	stalled  int               // workers that wait for a message that is held elsewhere
	closed   bool              // no more are added
	pace     time.Duration     // what a handler takes, a moving average
}

// Lane makes a lane, whose deliveries belong to this consumer until ctx ends: then
// handlers are cancelled (but see Broker.KeepHandlers), claims that were not started
// are given back uncounted, and what had not started is forgotten. It is called by the
// function that Run fetches with.
func (e *Engine) Lane(ctx context.Context) *Lane { return e.lane(ctx, e.guard) }

// GroupLane makes a lane whose records belong to another group than the guard's: for a
// consumer of several topics, each of which is a group.
func (e *Engine) GroupLane(ctx context.Context, group string) *Lane {
	return e.lane(ctx, e.guard.Group(group))
}

func (e *Engine) lane(ctx context.Context, g *idem.Guard) *Lane {
	e.mu.Lock()
	ph := e.ph
	l := &Lane{e: e, guard: g, ctx: ctx, ph: ph, last: make(map[string]*entry)}
	l.cond = sync.NewCond(&l.mu)
	e.lanes[l] = struct{}{}
	e.mu.Unlock()
	ask, endAsk := context.WithCancelCause(ph.ask)
	waits, endWaits := context.WithCancelCause(ph.run)
	l.ask, l.waits = ask, waits
	endHandling := l.handlers()
	end := func() {
		endAsk(fmt.Errorf("%w: %v", errLaneEnded, context.Cause(ctx))) //nolint:errorlint // see errLaneEnded
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
		endAsk(nil)
		endWaits(nil)
		endHandling()
		if ctx.Err() != nil {
			l.forgetQueued()
		}
		e.mu.Lock()
		delete(e.lanes, l)
		e.mu.Unlock()
	}()
	return l
}

// errLaneEnded ends requests for claims. What ended the lane may be an answer about another
// token: it is told, and not wrapped.
var errLaneEnded = errors.New("the message is this consumer's no longer")

// handlers makes the parent of handlers' contexts: it outlives the beginning of the drain,
// and ends with the lane, after the grace, unless the broker keeps handlers.
func (l *Lane) handlers() (end func()) {
	ctx, cancel := context.WithCancelCause(l.ph.hard)
	l.handling = ctx
	if l.e.broker.KeepHandlers {
		return func() { cancel(nil) }
	}
	stop := context.AfterFunc(l.ctx, func() {
		if grace := l.e.broker.HandlerGrace; grace > 0 {
			sleep(ctx, grace)
		}
		cancel(context.Cause(l.ctx))
	})
	return func() {
		stop()
		cancel(nil)
	}
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

// Room waits until this lane wants more deliveries and returns how many: for sources
// that can be read lane by lane, so that one that stands still holds up no other. It
// ends with ctx, or with the lane.
func (l *Lane) Room(ctx context.Context) (int, error) {
	defer context.AfterFunc(ctx, l.wake)()
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		switch {
		case ctx.Err() != nil:
			return 0, context.Cause(ctx)
		case l.ending():
			return 0, cmp.Or(context.Cause(l.ctx), context.Cause(l.ph.run))
		}
		if n := room(l.mostHeldLocked(), l.held, l.e.broker.Workers); n > 0 {
			return n, nil
		}
		l.cond.Wait()
	}
}

// Add hands a delivery to the lane. It does not wait: the bound is Room's.
func (l *Lane) Add(d Delivery) {
	en := l.newEntry(d)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ctx.Err() != nil {
		return // it is another consumer's now
	}
	l.e.hold(en)
	l.held++
	if en.token != "" {
		if en.prev = l.last[en.token]; en.prev != nil {
			en.prev.followed = true
		}
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
	en.outcome = o
	l.held--
	l.release(en)
	if !en.followed {
		delete(l.last, en.token)
	}
	en.prev = nil
	duplicates := l.unpark(en)
	if l.cond != nil {
		l.cond.Broadcast()
	}
	l.mu.Unlock()
	for _, r := range duplicates {
		r.settleRepeat()
	}
}

// work is a worker: it takes what is next and sees it through its handler.
func (l *Lane) work() {
	var run []*entry
	for run = l.take(run[:0]); len(run) > 0; run = l.take(run[:0]) {
		l.process(run)
	}
}

func (l *Lane) process(run []*entry) {
	n := len(run)
	defer func() { l.leaveWork(n) }()
	if n == 1 || !l.processBatch(run) {
		n = 1
		run[0].process()
	}
}

func (l *Lane) leaveWork(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.working -= n
	l.cond.Broadcast()
}

// take waits for the next entry, and appends it to run, with those that are handled
// together with it; none when there will be none.
func (l *Lane) take(run []*entry) []*entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		switch {
		case l.ending():
			return nil
		case len(l.queue) > 0 && !l.queue[0].asking && !l.leavesToAhead():
			run = append(run, l.queue[0])
			l.queue = l.queue[1:]
			run = l.takeBatch(run)
			l.working += len(run)
			l.cond.Broadcast()
			return run
		case l.closed && l.idle():
			return nil
		}
		l.cond.Wait()
	}
}

// leavesToAhead reports, with mu held, whether the next entry is to be claimed together with
// those behind it: a trip of its own would be as long as theirs.
func (l *Lane) leavesToAhead() bool {
	return len(l.queue) > 1 && l.windowLocked() > 1 && l.mayAhead() && l.isClaimable(l.queue[0]) && l.isClaimable(l.queue[1])
}

// idle reports, with mu held, that nothing is in the lane.
func (l *Lane) idle() bool { return len(l.queue) == 0 && l.working == 0 && len(l.returned) == 0 }

// putBack makes an entry the next one again: its completion was refused. Repeats of
// its token do not wait for it any more, or the lane's only worker might wait for what
// it has to handle itself.
func (l *Lane) putBack(en *entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	en.tried, en.alone, en.awaits = true, false, nil // it asks in its turn, like any other
	l.release(en)
	l.unpark(en)
	l.queue = append([]*entry{en}, l.queue...)
	l.cond.Broadcast()
}

// release wakes those who wait for an entry, with mu held.
func (l *Lane) release(en *entry) {
	en.isEnded = true
	en.changed.signal()
}
