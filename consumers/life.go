package consumers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
)

// askAgain is the longest wait before a token that somebody else holds is asked for
// again: a partition must not stand still for a whole lease.
const askAgain = time.Second

// soloNotice is how long a token that is to be handled alone waits for the others until that
// is told, and soloAgain until it is told again: nothing is started meanwhile.
const (
	soloNotice = time.Second
	soloAgain  = time.Minute
)

// process sees a delivery through: from its token to its settlement, or to the
// point where it must be left to the broker. A completion may still be on its way to
// the store when it returns.
func (en *entry) process() {
	defer en.begin()()
	if !en.notBefore.IsZero() {
		sleep(en.waits, time.Until(en.notBefore))
	}
	if en.prev != nil && en.awaitPrevious() {
		return
	}
	for again := true; again; {
		if en.over() {
			en.unstall()
			if en.claim != nil {
				en.giveBack(false)
			}
			if en.heldLong() && !en.l.ending() {
				en.returnHeld()
			} else {
				en.leave()
			}
			return
		}
		again = en.next()
	}
}

// returnHeld gives what was held for long back to the broker. What that would not deliver
// again is dead-lettered, without a claim: somebody may have it, who may complete it, and
// then the copy is a duplicate.
func (en *entry) returnHeld() {
	e, final := en.l.e, en.l.ph.final
	switch {
	case !en.d.Final():
		e.emit(en, idem.Event{Kind: idem.EventWaiting, Wait: e.broker.HoldLimit, Err: fmt.Errorf("%s goes back to the broker: %w", en.d, errHeldLong)})
	case e.broker.DeadLetters:
		err := en.postUnclaimed(final, final, ReasonFinal, fmt.Errorf("%w: %w", errHeldLong, errFinal))
		if en.posted(err, en.kept()) {
			en.settle(en.d.Terminate, settled)
		} else {
			en.leave()
		}
		return
	default:
		en.emitReturnedLast(errHeldLong)
	}
	en.settle(func(ctx context.Context) error { return en.d.Redeliver(ctx, 0) }, settled)
}

// returnLast gives a last delivery back at the end of the drain, while back lasts: it is
// dead-lettered, while letters lasts, or told of.
func (en *entry) returnLast(letters, back context.Context) {
	err := ErrDraining
	if en.l.e.broker.DeadLetters {
		if err = en.postUnclaimed(letters, letters, ReasonFinal, fmt.Errorf("%w: %w", ErrDraining, errFinal)); err == nil {
			if err := en.d.Terminate(back); err != nil {
				en.l.e.emit(en, idem.Event{Kind: idem.EventSettleFailed, Err: err})
			}
			return
		}
	}
	en.emitReturnedLast(err)
	_ = en.d.Redeliver(back, 0)
}

func (en *entry) emitReturnedLast(err error) {
	en.l.e.emit(en, idem.Event{Kind: idem.EventDropped, Err: fmt.Errorf("%s goes back to the broker, and no dead-letter copy was taken, though %w: %w", en.d, errFinal, err)})
}

// next is one try: a claim, a handler, an outcome. It reports whether there is to be
// another.
func (en *entry) next() (again bool) {
	switch {
	case errors.Is(en.invalid, idem.ErrUnknownToken):
		return en.refuse(ReasonUnknown, en.invalid)
	case en.invalid != nil:
		return en.refuse(ReasonToken, en.invalid)
	}
	if en.claim == nil {
		if claimed, again := en.obtain(); !claimed {
			return again
		}
		if en.over() && !en.l.e.policy.atMostOnce {
			return true // the answer took long: it is given back
		}
	}
	if done, again := en.admitted(); done {
		return again
	}
	return en.attempt()
}

// obtain asks for a claim. Where it makes none it reports whether to ask again.
func (en *entry) obtain() (claimed, again bool) {
	l, e := en.l, en.l.e
	if err := en.enter(); err != nil {
		return false, true // it is over
	}
	en.shared, en.solo = true, en.alone
	if e.policy.atMostOnce {
		return en.judge(en.spend())
	}
	return en.judge(l.guard.BeginAll(en.ask, []idem.Request{en.request()})[0])
}

// enter waits until a claim may be made.
func (en *entry) enter() error {
	e := en.l.e
	if !en.alone {
		return e.gate.enter(en.waits)
	}
	waits, stop := context.WithCancel(en.waits)
	defer stop()
	go en.tellSolo(waits)
	return e.gate.enterAlone(en.waits)
}

// tellSolo tells, until ctx ends, that the entry waits for the others.
func (en *entry) tellSolo(ctx context.Context) {
	e, since := en.l.e, time.Now()
	for sleep(ctx, soloNotice); ctx.Err() == nil; sleep(ctx, soloAgain) {
		e.emit(en, idem.Event{Kind: idem.EventWaiting, Wait: time.Since(since), Err: fmt.Errorf(
			"%s is to be handled with nothing beside it, since earlier claims of its token ended with their process; nothing is started until "+
				"the %d messages that are claimed are through: see to handlers that take long, or do not return", en.d, e.gate.held())})
	}
}

// spend is for at most once. A token that was asked for may be spent, whether the answer
// came or not, and nobody else will ever start its handler: the answer is waited for to the
// very end.
func (en *entry) spend() idem.Begun {
	l := en.l
	if !en.holdUntil.IsZero() {
		held := time.AfterFunc(time.Until(en.holdUntil), func() {
			l.e.emit(en, idem.Event{Kind: idem.EventWaiting, Wait: l.e.broker.HoldLimit, Err: fmt.Errorf("%s does not go back to the broker: its token may be spent: %w", en.d, errHeldLong)})
		})
		defer held.Stop()
	}
	b := l.guard.SpendAll(l.ph.final, []idem.Request{en.request()})[0]
	if errors.Is(b.Err, ErrDraining) {
		l.e.emit(en, idem.Event{Kind: idem.EventDropped, Err: fmt.Errorf("its token may be spent, and its handler was not started: %w", b.Err)})
	}
	return b
}

// judge acts on the answer to a request for a claim.
func (en *entry) judge(b idem.Begun) (claimed, again bool) {
	if !errors.Is(b.Err, idem.ErrInProgress) {
		en.unstall()
	}
	if b.Err == nil {
		en.setClaim(b.Claim)
		return true, false
	}
	en.leaveGate()
	l, e, err := en.l, en.l.e, b.Err
	var busy *idem.InProgressError
	var dup *idem.DuplicateError
	switch {
	case errors.Is(err, idem.ErrNeedAlone):
		en.alone = true
		return false, true
	case errors.As(err, &dup), errors.As(err, &busy):
		switch {
		case e.policy.shadow && en.over():
			return false, true
		case e.policy.shadow:
			e.emit(en, idem.Event{Kind: idem.EventShadowed, Err: err})
			return false, en.unguarded()
		case dup != nil:
			l.took(0)
			en.settleDuplicate(dup)
			return false, false
		}
		en.stall()
		en.tellStall()
		sleep(en.waits, jitter(min(max(busy.RetryAfter, time.Millisecond), askAgain)))
		return false, true
	case errors.Is(err, idem.ErrUnknownToken):
		return false, en.refuse(ReasonUnknown, err)
	case errors.Is(err, idem.ErrConflict):
		return false, en.refuse(ReasonConflict, err)
	case errors.Is(err, store.ErrUnreadable):
		return false, en.refuse(ReasonRecord, err)
	case en.ask.Err() != nil, l.ending():
		return false, true
	case e.policy.failOpen > 0 && errors.Is(err, store.ErrUnavailable):
		e.emit(en, idem.Event{Kind: idem.EventUnguarded, Err: err})
		return false, en.unguarded()
	}
	// Superseded, a record of a newer version, a guard that cannot work.
	en.halt(fmt.Errorf("consumer: %s: %w", en.d, err))
	return false, false
}

var (
	errFinal          = errors.New("the broker will not deliver this message again")
	errLastNotStarted = fmt.Errorf("%w, so it is not started", errFinal)
)

// admitted looks at a fresh claim: is its message to be handled at all? If not, it
// is dead-lettered without a start.
func (en *entry) admitted() (done, again bool) {
	e, c := en.l.e, en.claim
	switch {
	case e.policy.atMostOnce && en.d.Final():
		return true, en.failedOnce(errLastNotStarted)
	case e.policy.atMostOnce && en.l.ctx.Err() != nil && !e.broker.KeepHandlers:
		return true, en.failedOnce(fmt.Errorf("its handler was not started: %w", context.Cause(en.l.ctx)))
	case e.policy.atMostOnce && c.Spent() > 0:
		return true, en.failedOnce(fmt.Errorf("attempt %d may have started before", c.Attempt()-1))
	case !e.policy.atMostOnce && c.Spent() >= e.policy.budget:
		return true, en.deadLetter(ReasonBudget, fmt.Errorf("%d of %d attempts failed or did not end", c.Spent(), e.policy.budget))
	case en.d.Final():
		return true, en.deadLetter(ReasonFinal, errLastNotStarted)
	}
	// What was claimed and given back proves nothing; what failed, or was redriven, was
	// known before.
	if age, old := en.isOld(); old && !en.stale && c.Spent() == 0 && c.Redrive() == 0 {
		text := fmt.Sprintf("%s is %v old, longer than the retention of %v: a record of its handling may have expired", en.d, age.Round(time.Second), e.guard.Settings().Retention)
		e.emit(en, idem.Event{Kind: idem.EventStale, Text: text})
		en.stale = true
		switch {
		case e.policy.stopStale && e.policy.atMostOnce:
			return true, en.failedOnce(errors.New(text))
		case e.policy.stopStale:
			return true, en.deadLetter(ReasonStale, errors.New(text))
		}
	}
	return false, false
}

// isOld reports whether the message is older than the retention, by its own timestamp
// against the store's clock at its claim, and how old it is.
func (en *entry) isOld() (age time.Duration, old bool) {
	t := en.d.Time()
	if t.IsZero() {
		return 0, false
	}
	age = en.claim.ClaimedAt().Sub(t)
	return age, age > en.l.e.guard.Settings().Retention
}

// attempt runs the handler under the claim, and ends the claim by what it returns.
func (en *entry) attempt() (again bool) {
	ctx, end, err := en.l.e.start(en.l.handling, en.claim)
	if err != nil {
		en.giveBack(false)
		return true
	}
	defer end()
	return en.end(ctx, en.run(ctx))
}

// end ends an attempt by what the handler returned.
func (en *entry) end(ctx context.Context, err error) (again bool) {
	l, e, c := en.l, en.l.e, en.claim
	for e.policy.atMostOnce && errors.Is(err, ErrNotStarted) && ctx.Err() == nil {
		delay, _ := idem.RetryDelay(err)
		sleep(ctx, max(delay, e.policy.firstBackoff)) // nobody else starts it any more
		err = en.run(ctx)
	}
	if err == nil || en.handledInside(c, err) {
		return en.complete()
	}
	rolledBack := c.RolledBack(err) // which the transaction is asked about
	c.Rollback()
	delay, later := idem.RetryDelay(err)
	switch {
	case e.policy.atMostOnce:
		return en.failedOnce(err)
	case errors.Is(context.Cause(ctx), idem.ErrLeaseLost):
		en.giveBack(false)
		return true
	case l.ctx.Err() != nil, ctx.Err() != nil && l.ending():
		en.giveBack(ctx.Err() == nil && e.broker.KeepHandlers && !later)
		return true
	case later:
		return en.tryLater(err, max(delay, e.policy.firstBackoff), false)
	case rolledBack:
		return en.rolledBack(err)
	}
	return en.failed(err)
}

// failed acts on an attempt that failed, and spends budget.
func (en *entry) failed(err error) (again bool) {
	e, c := en.l.e, en.claim
	switch {
	case idem.IsPermanent(err):
		return en.deadLetter(ReasonPermanent, err)
	case c.Spent()+1 >= e.policy.budget:
		return en.deadLetter(ReasonBudget, err)
	}
	return en.tryLater(err, e.policy.backoff(c.Spent()+1), true)
}

// handledInside reports whether the handler committed the completion itself
// (Claim.CommitWith) before it returned err: the message is done all the same.
func (en *entry) handledInside(c *idem.Claim, err error) bool {
	if !c.Committed() {
		return false
	}
	en.l.e.emit(en, idem.Event{Kind: idem.EventLateError, Attempt: c.Attempt(), Err: err})
	return true
}

// run calls the handler for this entry alone.
func (en *entry) run(ctx context.Context) error {
	run, errs := [1]*entry{en}, [1]error{}
	en.l.run(ctx, run[:], errs[:])
	return errs[0]
}

// run calls the handler for all of run, and sets the errors in their places. A panic or
// runtime.Goexit of the handler releases the claims and goes on.
func (l *Lane) run(ctx context.Context, run []*entry, errs []error) {
	e := l.e
	if d := e.policy.handlerTimeout; d > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, d, ErrHandlerTimeout)
		defer cancel()
		stuck := slices.Clone(run)
		report := time.AfterFunc(2*d, func() {
			for _, en := range stuck {
				e.emit(en, idem.Event{Kind: idem.EventStuck, Wait: 2 * d})
			}
		})
		defer report.Stop()
	}
	returned := false
	begin := time.Now()
	for _, en := range run {
		en.enterHandler(ctx)
	}
	defer func() {
		for _, en := range run {
			en.leaveHandler()
		}
		l.took(time.Since(begin) / time.Duration(len(run)))
		if !returned {
			// Not for long: a panic has to go on.
			ctx, cancel := context.WithTimeout(l.ph.final, e.guard.Settings().Lease/3)
			defer cancel()
			for _, en := range run {
				en.panicked(ctx)
			}
		}
	}()
	e.handle(ctx, run, errs)
	returned = true
}

// panicked gives the claim back, and stops the consumer.
func (en *entry) panicked(ctx context.Context) {
	if en.claim != nil {
		en.giveBackWithin(ctx, true)
	}
	err := fmt.Errorf("consumer: the handler of %s panicked, or ended its goroutine", en.d)
	if en.l.e.policy.atMostOnce {
		err = fmt.Errorf("%w; the token %q is spent: have the guard Forget it, or the message is dropped when it comes again", err, en.token)
		en.l.e.emit(en, idem.Event{Kind: idem.EventDropped, Err: err})
	}
	en.halt(err)
}

// unguarded handles a message without a claim: shadow mode, FailOpen.
func (en *entry) unguarded() (again bool) {
	l, e := en.l, en.l.e
	c := l.guard.Detached(l.handling, en.token)
	ctx, end, err := e.start(l.handling, c)
	if err == nil {
		defer end()
		err = en.run(ctx)
	}
	if err == nil || en.handledInside(c, err) {
		err = c.Commit(l.ph.final) // of a transaction that the handler opened
	}
	c.Abandon()
	delay, later := idem.RetryDelay(err)
	switch {
	case err == nil:
		en.settle(en.d.Ack, settled)
		return false
	case ctx.Err() != nil && l.ending():
		return true
	case later:
		delay = max(delay, e.policy.firstBackoff)
	case c.RolledBack(err):
		en.rollbacks++
		delay = e.policy.backoff(en.rollbacks)
	case idem.IsPermanent(err):
		return en.refuse(ReasonPermanent, err)
	default:
		if en.failures++; en.failures >= e.policy.budget {
			return en.refuse(ReasonBudget, err)
		}
		delay = e.policy.backoff(en.failures)
	}
	e.emit(en, idem.Event{Kind: idem.EventRetry, Attempt: en.failures, Err: err, Wait: delay})
	sleep(en.waits, delay)
	return true
}
