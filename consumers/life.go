package consumers

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
)

// askAgain is the longest wait before a token that somebody else holds is asked for
// again: a partition must not stand still for a whole lease.
const askAgain = time.Second

// process sees a delivery through: from its token to its settlement, or to the
// point where it must be left to the broker. A completion may still be on its way to
// the store when it returns.
func (en *entry) process() {
	if en.invalid != nil {
		en.refuse(ReasonToken, fmt.Errorf("%w", en.invalid))
		return
	}
	if en.prev != nil && en.awaitPrevious() {
		return
	}
	for en.next() {
		if en.l.ending() {
			if en.claim != nil {
				en.giveBack(false)
			}
			en.leave()
			return
		}
	}
}

// awaitPrevious waits for the same token's earlier delivery in this lane, and
// settles this one where that one has just completed.
func (en *entry) awaitPrevious() (isSettled bool) {
	prev := en.prev
	select {
	case <-prev.over:
	case <-en.l.waits.Done():
		return false
	}
	e := en.l.e
	if prev.outcome != completed || e.policy.fingerprints || e.policy.shadow {
		return false
	}
	e.emit(en, idem.Event{Kind: idem.EventDuplicate})
	en.settle(en.d.Ack, completed)
	return true
}

// outcomeOf tells later deliveries of the token whether they have to ask the store:
// done stays done; a dead token may be redriven.
func outcomeOf(dup *idem.DuplicateError) outcome {
	if dup.Dead {
		return settled
	}
	return completed
}

// next is one try: a claim, a handler, an outcome. It reports whether there is to be
// another.
func (en *entry) next() (again bool) {
	if en.claim == nil {
		if claimed, again := en.obtain(); !claimed {
			return again
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
	enter := e.gate.enter
	if en.alone {
		enter = e.gate.enterAlone
	}
	if err := enter(l.waits); err != nil {
		return false, true // ending
	}
	en.shared = true
	var b idem.Begun
	if e.policy.atMostOnce {
		b = e.guard.SpendAll(l.ph.ask, []idem.Request{en.request()})[0]
	} else {
		b = e.guard.BeginAll(l.ph.ask, []idem.Request{en.request()})[0]
	}
	return en.judge(b)
}

// judge acts on the answer to a request for a claim.
func (en *entry) judge(b idem.Begun) (claimed, again bool) {
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
		if e.policy.shadow {
			e.emit(en, idem.Event{Kind: idem.EventShadowed, Err: err})
			return false, en.unguarded()
		}
		if dup != nil {
			l.took(0)
			en.settle(en.d.Ack, outcomeOf(dup))
			return false, false
		}
		l.wait(l.waits, jitter(min(max(busy.RetryAfter, time.Millisecond), askAgain)))
		return false, true
	case errors.Is(err, idem.ErrUnknownToken):
		return false, en.refuse(ReasonUnknown, err)
	case errors.Is(err, idem.ErrConflict):
		return false, en.refuse(ReasonConflict, err)
	case errors.Is(err, store.ErrUnreadable):
		return false, en.refuse(ReasonRecord, err)
	case l.ph.ask.Err() != nil, l.ending():
		return false, true
	case e.policy.failOpen > 0 && errors.Is(err, store.ErrUnavailable):
		e.emit(en, idem.Event{Kind: idem.EventUnguarded, Err: err})
		return false, en.unguarded()
	}
	// Superseded, a record of a newer version, a guard that cannot work.
	en.halt(fmt.Errorf("consumer: %s: %w", en.d, err))
	return false, false
}

// admitted looks at a fresh claim: is its message to be handled at all? If not, it
// is dead-lettered without a start.
func (en *entry) admitted() (done, again bool) {
	e, c := en.l.e, en.claim
	switch {
	case e.policy.atMostOnce && c.Spent() > 0:
		return true, en.failedOnce(fmt.Errorf("attempt %d may have started before", c.Attempt()-1))
	case !e.policy.atMostOnce && c.Spent() >= e.policy.budget:
		return true, en.deadLetter(ReasonBudget, fmt.Errorf("%d of %d attempts failed or did not end", c.Spent(), e.policy.budget))
	case en.d.Final():
		return true, en.deadLetter(ReasonFinal, errors.New("the broker will not deliver this message again, so it is not started"))
	}
	if t := en.d.Time(); !t.IsZero() && c.Attempt() == 1 && c.ClaimedAt().Sub(t) > e.guard.Settings().Retention {
		age := c.ClaimedAt().Sub(t).Round(time.Second)
		text := fmt.Sprintf("%s is %v old, longer than the retention of %v: a record of its handling may have expired", en.d, age, e.guard.Settings().Retention)
		e.emit(en, idem.Event{Kind: idem.EventStale, Text: text})
		if e.policy.stopStale {
			return true, en.deadLetter(ReasonStale, errors.New(text))
		}
	}
	return false, false
}

// attempt runs the handler under the claim, and ends the claim by what it returns.
func (en *entry) attempt() (again bool) {
	l, e, c := en.l, en.l.e, en.claim
	ctx, stop := l.handlerCtx()
	defer stop()
	ctx, err := c.Start(ctx)
	if err != nil {
		en.giveBack(false)
		return true
	}
	err = en.run(ctx)
	delay, later := idem.RetryDelay(err)
	switch {
	case err == nil:
		return en.complete()
	case errors.Is(context.Cause(ctx), idem.ErrLeaseLost):
		en.giveBack(false)
		return true
	case ctx.Err() != nil && l.ending(), l.ctx.Err() != nil:
		en.giveBack(false)
		return true
	case e.policy.atMostOnce:
		return en.failedOnce(err)
	case later:
		return en.tryLater(err, delay, false)
	case idem.IsPermanent(err):
		return en.deadLetter(ReasonPermanent, err)
	case c.Spent()+1 >= e.policy.budget:
		return en.deadLetter(ReasonBudget, err)
	}
	return en.tryLater(err, e.policy.backoff(c.Spent()+1), true)
}

// run calls the handler. A panic or runtime.Goexit of the handler releases the claim
// and goes on.
func (en *entry) run(ctx context.Context) error {
	l, e := en.l, en.l.e
	if d := e.policy.handlerTimeout; d > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, d, ErrHandlerTimeout)
		defer cancel()
		report := time.AfterFunc(2*d, func() { e.emit(en, idem.Event{Kind: idem.EventStuck, Wait: 2 * d}) })
		defer report.Stop()
	}
	returned := false
	begin := time.Now()
	en.setStarted(true)
	defer func() {
		en.setStarted(false)
		l.took(time.Since(begin))
		if !returned {
			if en.claim != nil {
				en.giveBack(true)
			}
			en.halt(fmt.Errorf("consumer: the handler of %s panicked, or ended its goroutine", en.d))
		}
	}()
	err := en.d.Handle(ctx)
	returned = true
	return err
}

// complete records that the message was handled, and acks it then. In a lane of Run
// the worker goes on meanwhile.
func (en *entry) complete() (again bool) {
	if en.l.cond != nil {
		en.l.complete(en)
		return false
	}
	return len(en.l.e.commit([]*entry{en})) > 0
}

// commit records completions in one trip and settles what was recorded. It returns
// the entries whose completion was refused because somebody took over: they are
// asked for again.
func (e *Engine) commit(batch []*entry) (again []*entry) {
	claims := make([]*idem.Claim, len(batch))
	for i, en := range batch {
		claims[i] = en.claim
	}
	errs := e.guard.CommitAll(batch[0].l.ph.final, claims)
	for i, en := range batch {
		attempt := en.claim.Attempt()
		en.setClaim(nil)
		en.leaveGate()
		switch {
		case errs[i] == nil:
			en.settle(en.d.Ack, completed)
		case errors.Is(errs[i], idem.ErrLeaseLost):
			again = append(again, en)
		default:
			e.emit(en, idem.Event{Kind: idem.EventUnrecorded, Attempt: attempt, Err: errs[i]})
			en.leave()
		}
	}
	return again
}

// tryLater waits and tries again: in place under this claim, or by way of the
// broker where order does not matter.
func (en *entry) tryLater(err error, d time.Duration, counted bool) (again bool) {
	l, e, c := en.l, en.l.e, en.claim
	e.emit(en, idem.Event{Kind: idem.EventRetry, Attempt: c.Attempt(), Err: err, Wait: d})
	if e.broker.Redelivers {
		en.giveBack(counted)
		en.settle(func(ctx context.Context) error { return en.d.Redeliver(ctx, d) }, settled)
		return false
	}
	until := time.Now().Add(d)
	kept := !en.alone && en.keepFor(c, d)
	if l.ending() || !kept {
		en.giveBack(counted)
		sleep(l.waits, time.Until(until))
		return true
	}
	// The claim's share at the gate goes to the next one.
	next, err := c.Retry(l.ph.ask, counted, en.request())
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
		case <-en.l.waits.Done():
			return false
		}
	}
}

// unguarded handles a message without a claim: shadow mode, FailOpen.
func (en *entry) unguarded() (again bool) {
	l, e := en.l, en.l.e
	ctx, stop := l.handlerCtx()
	defer stop()
	err := en.run(ctx)
	delay, later := idem.RetryDelay(err)
	switch {
	case err == nil:
		en.settle(en.d.Ack, settled)
		return false
	case ctx.Err() != nil && l.ending():
		return true
	case later:
	case idem.IsPermanent(err):
		return en.refuse(ReasonPermanent, err)
	default:
		if en.failures++; en.failures >= e.policy.budget {
			return en.refuse(ReasonBudget, err)
		}
		delay = e.policy.backoff(en.failures)
	}
	e.emit(en, idem.Event{Kind: idem.EventRetry, Attempt: en.failures, Err: err, Wait: delay})
	sleep(l.waits, delay)
	return true
}

func (en *entry) request() idem.Request {
	e := en.l.e
	r := idem.Request{
		Token: en.token, Redrive: redrive(en.d), MaxExpiries: e.policy.maxExpiries(),
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
	ph := en.l.ph
	if counted {
		_ = en.claim.Release(ph.final)
	} else {
		_ = en.claim.GiveBack(ph.final)
	}
	en.setClaim(nil)
	en.leaveGate()
}

func (en *entry) leaveGate() {
	if en.shared {
		en.shared = false
		en.l.e.gate.leave(1, en.alone)
	}
}

// settle tells the broker, and ends the engine's part.
func (en *entry) settle(verb func(context.Context) error, o outcome) {
	e := en.l.e
	if en.l.ctx.Err() == nil { // else it is another consumer's now
		if err := verb(en.l.ph.final); err != nil {
			e.emit(en, idem.Event{Kind: idem.EventSettleFailed, Err: err})
		}
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

// handlerCtx is the parent of a handler's context: it outlives the beginning of the
// drain, and ends with the lane.
func (l *Lane) handlerCtx() (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(l.ph.hard)
	stop := context.AfterFunc(l.ctx, func() { cancel(context.Cause(l.ctx)) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}
