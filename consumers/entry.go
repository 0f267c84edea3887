package consumers

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/idemq/idemq/idem"
)

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
	place   int    // among those that it holds, counted from one; zero: it does not. Guarded by its mutex
	borne   string // the token as it was found, signature included
	token   string // its identity
	redrive int
	invalid error  // why there is no token, no redrive number, or no place in its order
	prev    *entry // the same token, earlier in this lane

	// Guarded by the lane's mutex. See repeat.go.
	followed bool     // its token came again
	awaits   *entry   // whose completion is on its way and decides over this one: itself, or what it repeats
	repeats  []*entry // parked until this one is decided over

	isEnded bool   // the outcome is set, or its completion was refused; guarded by the lane's mutex
	changed change // isEnded
	outcome outcome
	failure error // Handle: why nothing was settled

	// Guarded by the lane's mutex while the entry is queued; after that they are
	// the worker's.
	claim  *idem.Claim
	asking bool // a trip for this entry is under way
	tried  bool // a claim ahead was refused: its turn decides
	alone  bool // it is to be claimed with nothing beside it
	shared bool // it counts at the gate
	solo   bool // and has it for itself
	stale  bool // it was found to be older than the retention

	stalledSince time.Time // somebody else holds the token: see stall
	stallTold    time.Time

	unextended int // how often running the broker did not take an extension; watch's

	failures  int // without a claim to count them: shadow mode, FailOpen
	rollbacks int // of the handler's transaction, by the database

	together  bool      // an attempt beside others is being ended: their claims are held
	notBefore time.Time // when the next attempt may start

	holdUntil time.Time       // zero: as long as it takes
	ask       context.Context // ends when no claim is asked for any more
	waits     context.Context // ends when nothing is waited for any more

	mu       sync.Mutex
	handling context.Context // of the handler, while that runs
	overdue  int             // how often its context was seen to be over
}

// begin sets how long the entry may be waited with. One that was held long before its
// turn came has a lease's time all the same: if it went back untried it would wait as long
// again, and never be handled.
func (en *entry) begin() (end func()) {
	en.ask, en.waits = en.l.ask, en.l.waits
	if en.holdUntil.IsZero() {
		return func() {}
	}
	if turn := time.Now().Add(min(en.l.e.broker.HoldLimit, en.l.guard.Settings().Lease)); en.holdUntil.Before(turn) {
		en.holdUntil = turn
	}
	var ends [2]context.CancelFunc
	en.ask, ends[0] = context.WithDeadlineCause(en.ask, en.holdUntil, errHeldLong)
	en.waits, ends[1] = context.WithDeadlineCause(en.waits, en.holdUntil, errHeldLong)
	return func() {
		ends[0]()
		ends[1]()
	}
}

var errHeldLong = errors.New("held for too long")

// heldLong reports whether the entry has to go back to the broker.
func (en *entry) heldLong() bool {
	return !en.holdUntil.IsZero() && !time.Now().Before(en.holdUntil)
}

// over reports whether there is to be no other try.
func (en *entry) over() bool { return en.failure != nil || en.l.ending() || en.heldLong() }

func (en *entry) inHandler() bool {
	en.mu.Lock()
	defer en.mu.Unlock()
	return en.handling != nil
}

func (en *entry) enterHandler(ctx context.Context) {
	en.mu.Lock()
	defer en.mu.Unlock()
	en.handling, en.overdue = ctx, 0
}

func (en *entry) leaveHandler() {
	en.mu.Lock()
	defer en.mu.Unlock()
	en.handling = nil
}

// tellOverdue is called once a lease, and tells once that the handler goes on for longer than
// that though its context has ended. That of a HandlerTimeout is told by run.
func (en *entry) tellOverdue() {
	e := en.l.e
	en.mu.Lock()
	over := en.handling != nil && en.handling.Err() != nil && !errors.Is(context.Cause(en.handling), ErrHandlerTimeout)
	if over {
		en.overdue++
	}
	tell := over && en.overdue == 2 // the first look may come just after the end
	en.mu.Unlock()
	if tell {
		e.emit(en, idem.Event{Kind: idem.EventStuck, Wait: e.guard.Settings().Lease})
	}
}

// stopRenewing leaves the claim of a handler that does not return to its lease.
func (en *entry) stopRenewing() {
	en.mu.Lock()
	defer en.mu.Unlock()
	if en.claim != nil {
		en.claim.StopRenewing()
	}
}

func (l *Lane) newEntry(d Delivery) *entry {
	if bad, ok := d.(invalid); ok {
		return &entry{l: l, d: bad.Delivery, invalid: bad.why}
	}
	en := &entry{l: l, d: d}
	if en.borne, en.invalid = l.e.policy.token(d); en.invalid == nil {
		en.token, en.invalid = l.guard.Identity(en.borne)
	}
	if en.invalid == nil {
		en.redrive, en.invalid = redrive(d)
	}
	if en.invalid != nil {
		en.token = ""
	}
	return en
}

// settleDuplicate settles what was completed, or dead-lettered, before. A dead one's
// settlement may have been what hands it over (a queue that dead-letters what is
// rejected), and may not have arrived: it is repeated as it was.
func (en *entry) settleDuplicate(dup *idem.DuplicateError) {
	if dup.Dead {
		en.settle(en.d.Terminate, settled) // it may be redriven: the next of its token asks the store
		return
	}
	en.ack()
}

// ack settles what is done. In a lane of Run nothing waits for the broker's answer.
func (en *entry) ack() {
	if en.l.e.broker.ConfirmsAcks && en.l.cond != nil {
		en.l.wg.Go(func() { en.settle(en.d.Ack, completed) })
		return
	}
	en.settle(en.d.Ack, completed)
}

func (en *entry) request() idem.Request {
	e := en.l.e
	r := idem.Request{
		Token: en.borne, Redrive: en.redrive, MaxExpiries: e.policy.maxExpiries(),
		Patient: true, FailOpen: e.policy.failOpen,
	}
	if en.alone {
		r.MaxExpiries = 0
	}
	if e.policy.fingerprints {
		if r.Payload = en.d.Body(); r.Payload == nil {
			r.Payload = []byte{}
		}
	}
	return r
}

// setClaim is seen by the drain, which abandons the claims of handlers that do not
// return.
func (en *entry) setClaim(c *idem.Claim) {
	en.mu.Lock()
	defer en.mu.Unlock()
	en.claim = c
}

// giveBack releases the claim; one that was lost is gone already.
func (en *entry) giveBack(counted bool) {
	ctx, cancel := en.giveBackCtx()
	defer cancel()
	en.giveBackWithin(ctx, counted)
}

// giveBackCtx is how long a release waits for a store that is away: to the end, or a
// little longer than the entry may be held.
func (en *entry) giveBackCtx() (context.Context, context.CancelFunc) {
	if en.holdUntil.IsZero() {
		return en.l.ph.final, func() {}
	}
	until := time.Now().Add(en.l.guard.Settings().Lease / 3)
	if until.Before(en.holdUntil) {
		until = en.holdUntil
	}
	return context.WithDeadlineCause(en.l.ph.final, until, errHeldLong)
}

func (en *entry) giveBackWithin(ctx context.Context, counted bool) {
	end := en.claim.GiveBack
	if counted {
		end = en.claim.Release
	}
	if end(ctx) != nil {
		en.l.releaseLate(en.claim, counted)
	}
	en.setClaim(nil)
	en.leaveGate()
}

// releaseLate gives a claim back whose delivery could not wait for that: until then it
// is renewed, and the lane lasts. What cannot be given back is left to its lease.
func (l *Lane) releaseLate(c *idem.Claim, counted bool) {
	if l.cond == nil || l.e.broker.HoldLimit == 0 || l.ph.final.Err() != nil {
		c.Abandon()
		return
	}
	l.wg.Go(func() {
		end := c.GiveBack
		if counted {
			end = c.Release
		}
		if end(l.ph.final) != nil {
			c.Abandon()
		}
	})
}

func (en *entry) leaveGate() {
	if en.shared {
		en.shared = false
		en.l.e.gate.leave(en.solo)
	}
}

// settle tells the broker, and ends the engine's part.
func (en *entry) settle(verb func(context.Context) error, o outcome) {
	e := en.l.e
	if err := verb(en.l.ph.final); err != nil {
		e.emit(en, idem.Event{Kind: idem.EventSettleFailed, Err: err})
	}
	e.forget(en, o)
}

// leave ends the engine's part without settling: the broker delivers again. Until the
// drain is over the delivery is held, and goes back then.
func (en *entry) leave() {
	if en.l.cond == nil || en.l.ctx.Err() != nil {
		en.l.e.forget(en, unsettled)
	}
}

// halt stops the consumer: this message must not be passed over.
func (en *entry) halt(err error) {
	if en.l.cond == nil {
		en.failure = err
		en.leave()
		return
	}
	en.l.e.stop(err)
	en.leave()
}
