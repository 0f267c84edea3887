package consumers

import (
	"errors"
	"fmt"

	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
)

// maxRecord bounds how many completions are recorded in one call.
const maxRecord = 256

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

// complete hands over entries whose handler returned nil.
func (l *Lane) complete(done ...*entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, en := range done {
		en.awaits = en
	}
	l.returned = append(l.returned, done...)
	l.cond.Broadcast()
}

// complete records that the message was handled, and acks it then. In a lane of Run
// the worker goes on meanwhile, unless the completion belongs to the handler's own
// transaction: the next handler is to see what that wrote.
func (en *entry) complete() (again bool) {
	c := en.claim
	if !c.Joined() {
		if en.l.cond != nil {
			en.l.complete(en)
			return false
		}
		return len(en.l.e.commit([]*entry{en})) > 0
	}
	err := c.Commit(en.l.ph.final)
	switch {
	case err != nil && en.l.e.policy.atMostOnce:
		return en.failedOnce(err)
	case errors.Is(err, idem.ErrRolledBack):
		return en.rolledBack(err)
	case err == nil, errors.Is(err, idem.ErrLeaseLost), errors.Is(err, store.ErrUnavailable):
		return en.recorded(err)
	}
	return en.failed(err) // the database refused to commit it: a deferred constraint, say
}

// maxRollbacks is after how many rollbacks in a row, in budgets, they spend budget as
// well: a handler that leaves its rows open, say, meets one each time.
const maxRollbacks = 3

// rolledBack tries a message again whose transaction the database gave up: this spends
// no budget, within reason.
func (en *entry) rolledBack(err error) (again bool) {
	if en.rollbacks++; en.rollbacks > maxRollbacks*en.l.e.policy.budget {
		return en.failed(err)
	}
	return en.tryLater(err, en.l.e.policy.backoff(en.rollbacks), false)
}

// commit records completions in one trip and settles what was recorded. It returns
// the entries whose completion was refused because somebody took over: they are
// asked for again.
func (e *Engine) commit(batch []*entry) (again []*entry) {
	claims := make([]*idem.Claim, len(batch))
	for i, en := range batch {
		claims[i] = en.claim
	}
	l := batch[0].l
	errs := e.guard.CommitAll(l.ph.final, claims)
	var done []*entry
	for i, en := range batch {
		switch {
		case errs[i] == nil && e.broker.AckAll != nil && l.cond != nil:
			done = append(done, en)
		case en.recorded(errs[i]):
			again = append(again, en)
		}
	}
	if len(done) > 0 {
		l.ackAll(done)
	}
	return again
}

// ackAll acks what was recorded, and what is parked behind it.
func (l *Lane) ackAll(done []*entry) {
	for _, en := range done {
		en.setClaim(nil)
		en.leaveGate()
	}
	for _, r := range l.duplicatesOf(done) {
		l.e.emit(r, idem.Event{Kind: idem.EventDuplicate})
		done = append(done, r)
	}
	deliveries := make([]Delivery, len(done))
	for i, en := range done {
		deliveries[i] = en.d
	}
	errs := l.e.broker.AckAll(l.ph.final, deliveries)
	for i, en := range done {
		if i < len(errs) && errs[i] != nil {
			l.e.emit(en, idem.Event{Kind: idem.EventSettleFailed, Err: errs[i]})
		}
		l.e.forget(en, completed)
	}
}

// recorded acts on the answer to a commit. It reports whether the token is to be asked
// for again, because somebody took over.
func (en *entry) recorded(err error) (again bool) {
	e, c := en.l.e, en.claim
	en.setClaim(nil)
	en.leaveGate()
	switch {
	case err == nil:
		en.ack()
	case errors.Is(err, idem.ErrLeaseLost):
		return true
	default:
		c.Abandon() // its lease runs out
		e.emit(en, idem.Event{Kind: idem.EventUnrecorded, Attempt: c.Attempt(), Err: err})
		if en.l.ph.final.Err() != nil {
			en.leave()
			return false
		}
		en.halt(fmt.Errorf("consumer: %s: its handler returned nil, and that could not be recorded; a redelivery runs it again: %w", en.d, err))
	}
	return false
}
