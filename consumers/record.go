package consumers

import (
	"errors"
	"fmt"

	"github.com/idemq/idemq/idem"
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

// complete hands over an entry whose handler returned nil.
func (l *Lane) complete(en *entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.returned = append(l.returned, en)
	l.cond.Broadcast()
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
		c := en.claim
		en.setClaim(nil)
		en.leaveGate()
		switch {
		case errs[i] == nil && e.broker.ConfirmsAcks && en.l.cond != nil:
			en.l.wg.Go(func() { en.settle(en.d.Ack, completed) })
		case errs[i] == nil:
			en.settle(en.d.Ack, completed)
		case errors.Is(errs[i], idem.ErrLeaseLost):
			again = append(again, en)
		default:
			c.Abandon() // its lease runs out
			e.emit(en, idem.Event{Kind: idem.EventUnrecorded, Attempt: c.Attempt(), Err: errs[i]})
			if en.l.ph.final.Err() != nil {
				en.leave()
				continue
			}
			en.halt(fmt.Errorf("consumer: %s: its handler returned nil, and that could not be recorded; a redelivery runs it again: %w", en.d, errs[i]))
		}
	}
	return again
}
