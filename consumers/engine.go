package consumers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/idemq/idemq/idem"
)

// drainGrace is how long, after the drain timeout, handlers whose contexts were
// cancelled have to return, and completions to be recorded.
const drainGrace = 2 * time.Second

// ErrHandlerTimeout is the cause of a handler's context after HandlerTimeout.
var ErrHandlerTimeout = errors.New("handler timeout")

// ErrNotStarted is wrapped by errors of Delivery.Handle where the handler was not called.
var ErrNotStarted = errors.New("the handler was not started")

// ErrDraining is the cause of a handler's context that outlived the drain timeout.
var ErrDraining = errors.New("consumer is shutting down")

// Engine turns deliveries into settlements. An adapter makes one per consumer,
// gives it deliveries in lanes, and translates the settling verbs.
type Engine struct {
	guard  *idem.Guard
	broker Broker
	policy Policy
	gate   *gate

	mu      sync.Mutex
	held    []*entry // from Add to settlement, in no order
	holds   uint64   // that there have been
	lanes   map[*Lane]struct{}
	changed change // held shrinks
	failure error
	fail    context.CancelCauseFunc // starts the drain; set by Run
	ph      *phases
}

// New makes an engine for one consumer of one broker. The guard must have a group
// and a store.
func New(g *idem.Guard, b Broker, p Policy) (*Engine, error) {
	if g == nil {
		return nil, errors.New("the guard is nil: make one with idem.New")
	}
	if err := g.Err(); err != nil {
		return nil, err
	}
	s := g.Settings()
	if s.Store == nil {
		return nil, idem.ErrRedisNotEnabled
	}
	if s.Group == "" {
		return nil, idem.ErrNoGroup
	}
	if p.fingerprints && s.Store.Capabilities().NoFingerprints {
		return nil, fmt.Errorf("options: Fingerprints: %w", idem.ErrNoFingerprints)
	}
	b.Workers = max(b.Workers, 1)
	if b.HandleAll == nil {
		b.MaxBatch = 0
	}
	p = p.withDefaults()
	if p.atMostOnce || p.budget == 1 || b.FewDeliveries {
		p.ahead = 1 // none
	}
	e := &Engine{
		guard: g, broker: b, policy: p,
		lanes: make(map[*Lane]struct{}),
	}
	e.gate = newGate(e.wakeLanes)
	return e, nil
}

// Guard returns the guard that the engine claims with.
func (e *Engine) Guard() *idem.Guard { return e.guard }

// maxHeld bounds the deliveries that are held in all.
func (e *Engine) maxHeld() int {
	switch {
	case e.broker.FewDeliveries:
		return e.broker.Workers
	case e.broker.MaxHeld > 0:
		return e.broker.MaxHeld
	}
	most := e.broker.Workers
	for _, l := range e.allLanes() {
		most = max(most, l.mostHeld())
	}
	return most
}

// phases are the contexts of a consumer's life and end. All carry the values of
// the context that it was run with.
type phases struct {
	run   context.Context // ends when the drain begins
	ask   context.Context // ends one try later: claims without an answer are given up
	hard  context.Context // ends after the drain timeout: handlers are cancelled
	final context.Context // ends a little later: nothing is recorded or settled any more
}

// newPhases begins the drain at the end of ctx.
func (e *Engine) newPhases(ctx context.Context) (*phases, func()) {
	var ph phases
	var ends [3]context.CancelCauseFunc
	ph.run = ctx
	base := context.WithoutCancel(ctx)
	ph.ask, ends[0] = context.WithCancelCause(base)
	ph.hard, ends[1] = context.WithCancelCause(base)
	ph.final, ends[2] = context.WithCancelCause(base)
	drain := e.policy.drainTimeout
	after := [3]time.Duration{min(e.guard.Settings().Lease/3, drain), drain, drain + drainGrace}
	var mu sync.Mutex
	var timers []*time.Timer
	over := false
	stop := context.AfterFunc(ctx, func() {
		mu.Lock()
		defer mu.Unlock()
		if over {
			return
		}
		for i, d := range after {
			timers = append(timers, time.AfterFunc(d, func() { ends[i](ErrDraining) }))
		}
	})
	return &ph, func() {
		stop()
		mu.Lock()
		defer mu.Unlock()
		over = true
		for _, t := range timers {
			t.Stop()
		}
		for _, end := range ends {
			end(ErrDraining)
		}
	}
}

// Run calls fetch, which gets deliveries from the broker and adds them to lanes
// until its context ends, and handles them until ctx ends, fetch returns, or
// something happens that no message may be skipped for. Then it drains: handlers
// that have started get the drain timeout, claims that were not started are given
// back, completions are recorded, and what is held and not handled goes back to the
// broker. It returns nil after the end of ctx; an error says what stopped it, or
// which handlers did not return: they keep their claims, which are renewed no more.
//
// Run may be called once.
func (e *Engine) Run(ctx context.Context, fetch func(ctx context.Context) error) error {
	run, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	ph, end := e.newPhases(run)
	defer end()
	e.mu.Lock()
	if e.ph != nil {
		e.mu.Unlock()
		return errors.New("consumer: Run was called twice: make a new consumer")
	}
	e.ph, e.fail = ph, fail
	e.mu.Unlock()

	fetched := make(chan error, 1)
	go func() {
		err := errors.New("consumer: what fetches deliveries panicked, or ended its goroutine")
		defer func() { fetched <- err }()
		err = fetch(run)
	}()
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		e.watch(ph.final, e.allHeld)
	}()

	var fetchErr error
	select {
	case fetchErr = <-fetched:
		fail(nil)
	case <-run.Done():
		fetchErr = <-fetched
	}
	if ctx.Err() == nil && fetchErr != nil {
		e.stop(fetchErr)
	}
	stuck := e.drain(ph)
	end()
	<-watched

	e.mu.Lock()
	defer e.mu.Unlock()
	return errors.Join(e.failure, stuck)
}

// stop begins the drain, because err must not be passed over.
func (e *Engine) stop(err error) {
	e.mu.Lock()
	if e.failure == nil {
		e.failure = err
	}
	fail := e.fail
	e.mu.Unlock()
	if fail != nil {
		fail(err)
	}
}

// drain waits for the lanes, and returns an error that names the messages whose
// handlers did not return.
func (e *Engine) drain(ph *phases) error {
	e.wakeLanes()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, l := range e.allLanes() {
			l.wg.Wait()
		}
	}()
	select {
	case <-done:
	case <-ph.final.Done():
		// Calls under it return now; only a handler may not.
		select {
		case <-done:
		case <-time.After(drainGrace):
		}
	}
	var stuck []string
	var toReturn, last []*entry
	for _, en := range e.allHeld() {
		switch {
		case en.inHandler():
			stuck = append(stuck, fmt.Sprintf("%s (token %q)", en.d, en.token))
			en.stopRenewing()
			e.emit(en, idem.Event{Kind: idem.EventStuck, Wait: e.policy.drainTimeout})
			continue
		case en.l.ctx.Err() != nil: // it is another consumer's now
		case en.d.Final():
			last = append(last, en)
		default:
			toReturn = append(toReturn, en)
		}
		e.forget(en, unsettled)
	}
	returnAll(ph, toReturn)
	returnLast(ph, last)
	if len(stuck) == 0 {
		return nil
	}
	slices.Sort(stuck)
	return fmt.Errorf("consumer: handlers did not return within %v of shutdown, nor when their context was cancelled: %s", e.policy.drainTimeout, strings.Join(stuck, ", "))
}

// returnAll gives back to the broker, in their order, what was not handled. The phases may be
// over; a broker that has gone must not hold Run up.
func returnAll(ph *phases, all []*entry) {
	back, cancel := context.WithTimeout(context.WithoutCancel(ph.final), drainGrace)
	defer cancel()
	whileItLasts(back, all, func(en *entry) { _ = en.d.Redeliver(back, 0) })
}

// returnLast gives back last deliveries, each of which is to be dead-lettered before: that has
// what is left of the drain, and the grace at least.
func returnLast(ph *phases, all []*entry) {
	base := context.WithoutCancel(ph.final)
	letters := ph.final
	if letters.Err() != nil {
		var cancel context.CancelFunc
		letters, cancel = context.WithTimeout(base, drainGrace)
		defer cancel()
	}
	back, cancel := context.WithCancel(base)
	defer cancel()
	defer context.AfterFunc(letters, func() { time.AfterFunc(drainGrace, cancel) })()
	whileItLasts(back, all, func(en *entry) { en.returnLast(letters, back) })
}

// whileItLasts calls f for each until ctx ends, and then returns: a client may not mind that.
func whileItLasts(ctx context.Context, all []*entry, f func(*entry)) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, en := range all {
			if ctx.Err() == nil {
				f(en)
			}
		}
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// Room waits until the engine wants more deliveries, for any of its lanes, and returns
// how many. While all workers have something to do, at least half of what it holds at
// most is asked for at a time, so that a fetch is worth its trip.
func (e *Engine) Room(ctx context.Context) (int, error) {
	for {
		limit := e.maxHeld()
		e.mu.Lock()
		n := room(limit, len(e.held), e.broker.Workers*max(len(e.lanes), 1))
		if n > 0 {
			e.mu.Unlock()
			return n, nil
		}
		changed := e.changed.wait()
		e.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

// Handle handles and settles one delivery, and returns when that is done: for loops
// that belong to the user. Nil says that the message may be passed over: it is done, or
// dead-lettered (should the broker not have taken the ack, it comes again and is
// dropped), or was sent back (Broker.HoldLimit). The error says why it may not: ctx ended,
// or something happened that no message may be skipped for. idem.Done is false of it,
// whatever ended ctx or the handler returned.
func (e *Engine) Handle(ctx context.Context, d Delivery) error {
	if ctx.Err() != nil {
		return &unsettledError{context.Cause(ctx)}
	}
	ph, end := e.newPhases(ctx)
	defer end()
	l := &Lane{e: e, guard: e.guard, ctx: context.WithoutCancel(ctx), ph: ph, ask: ph.ask, waits: ctx, handling: ph.hard}
	en := l.newEntry(d)
	e.hold(en)
	watching, stop := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	wg.Go(func() { e.watch(watching, func() []*entry { return []*entry{en} }) })
	defer wg.Wait()
	defer stop() // also when the handler panics: else nobody else would ever get the message
	en.process()
	if en.outcome == unsettled || en.outcome == open {
		switch {
		case en.failure != nil:
			return &unsettledError{en.failure}
		case ctx.Err() != nil:
			return &unsettledError{context.Cause(ctx)}
		}
		return fmt.Errorf("consumer: %s was not settled: it has to come again", d)
	}
	return nil
}

// unsettledError is an error of Handle. What it wraps may have been said of another token: the
// cause of an errgroup's context, an error of the handler's. It is not what settles this one.
type unsettledError struct{ err error }

func (e *unsettledError) Error() string { return e.err.Error() }

func (e *unsettledError) Is(target error) bool {
	return target != idem.ErrDuplicate && target != idem.ErrInProgress && errors.Is(e.err, target)
}

func (e *unsettledError) As(target any) bool {
	switch target.(type) {
	case **idem.DuplicateError, **idem.InProgressError:
		return false
	}
	return errors.As(e.err, target)
}

// room is how many deliveries are wanted beside those held, zero while it is not worth
// a trip.
func room(limit, held, workers int) int {
	free := limit - held
	if free > 0 && (held < workers || free >= limit/2) {
		return free
	}
	return 0
}

func (e *Engine) hold(en *entry) {
	if limit := e.broker.HoldLimit; limit > 0 {
		en.holdUntil = time.Now().Add(limit)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.holds++
	en.nth = e.holds
	e.held = append(e.held, en)
	en.place = len(e.held)
}

// forget ends the engine's part in a delivery.
func (e *Engine) forget(en *entry, o outcome) {
	e.mu.Lock()
	held := en.place > 0
	if held { // the last one takes its place
		end := len(e.held) - 1
		last := e.held[end]
		e.held[en.place-1], last.place = last, en.place
		en.place = 0
		e.held[end] = nil
		e.held = e.held[:end]
	}
	e.changed.signal()
	e.mu.Unlock()
	if held {
		en.l.settled(en, o)
	}
}

// allHeld lists what is held, in the order in which it came: the broker delivers
// again in the order in which it is told to.
func (e *Engine) allHeld() []*entry {
	e.mu.Lock()
	all := slices.Clone(e.held)
	e.mu.Unlock()
	slices.SortFunc(all, func(a, b *entry) int { return cmp.Compare(a.nth, b.nth) })
	return all
}

func (e *Engine) allLanes() []*Lane {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := make([]*Lane, 0, len(e.lanes))
	for l := range e.lanes {
		all = append(all, l)
	}
	return all
}

func (e *Engine) wakeLanes() {
	for _, l := range e.allLanes() {
		l.wake()
	}
}

// watch keeps deliveries from being delivered again, and looks once a lease for handlers that
// do not return, until ctx ends.
func (e *Engine) watch(ctx context.Context, deliveries func() []*entry) {
	overdue := time.NewTicker(e.guard.Settings().Lease)
	defer overdue.Stop()
	var extend <-chan time.Time
	if every := e.broker.ExtendEvery; every > 0 {
		tick := time.NewTicker(every)
		defer tick.Stop()
		extend = tick.C
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-extend:
			e.extend(ctx, deliveries())
		case <-overdue.C:
			for _, en := range deliveries() {
				en.tellOverdue()
			}
		}
	}
}

// extend keeps deliveries from being delivered again; the next call tries again, and at worst
// the broker delivers twice. What fails twice running is told, of one for all.
func (e *Engine) extend(ctx context.Context, all []*entry) {
	told := false
	for _, en := range all {
		err := en.d.Extend(ctx)
		if err == nil || ctx.Err() != nil {
			en.unextended = 0
			continue
		}
		if en.unextended++; en.unextended != 2 || told {
			continue
		}
		told = true
		e.emit(en, idem.Event{Kind: idem.EventSettleFailed, Err: fmt.Errorf("%s is still worked on, and the broker did not take that, perhaps not of others either: %w", en.d, err)})
	}
}

func (e *Engine) emit(en *entry, ev idem.Event) {
	ev.Token = en.token
	en.l.guard.Emit(ev)
}
