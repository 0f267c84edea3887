package consumers

import (
	"context"
	"fmt"

	"github.com/idemq/idemq/idem"
)

// deadLetter hands the claimed message over to the dead-letter destination, then
// records it as dead, then tells the broker: in this order, a death in between makes
// a second copy, and never a loss. Without a destination the consumer stops.
func (en *entry) deadLetter(reason string, cause error) (again bool) {
	e, c := en.l.e, en.claim
	if !e.broker.DeadLetters {
		en.giveBack(true)
		en.halt(noDestination(en, reason, cause))
		return false
	}
	l := Letter{Token: en.token, Reason: reason, Err: cause, Attempt: c.Attempt(), Redrive: c.Redrive() + 1}
	if !en.post(l) {
		en.giveBack(false)
		return true
	}
	err := c.Bury(en.l.ph.final)
	en.setClaim(nil)
	en.leaveGate()
	if err != nil {
		return true // somebody took over, or the store is away to the end: ask again
	}
	en.settle(en.d.Terminate, settled)
	return false
}

// failedOnce ends a message whose handler failed under at-most-once: it is not
// handled again.
func (en *entry) failedOnce(cause error) (again bool) {
	e, c := en.l.e, en.claim
	if !e.broker.DeadLetters {
		e.emit(en, idem.Event{Kind: idem.EventDropped, Attempt: c.Attempt(), Err: cause})
		en.giveBack(false)
		en.settle(en.d.Ack, settled)
		return false
	}
	// Dead before it is published, so that a redrive can spend the token anew.
	redrive := c.Redrive() + 1
	err := c.Bury(en.l.ph.final)
	en.setClaim(nil)
	en.leaveGate()
	if err != nil {
		return true
	}
	if !en.post(Letter{Token: en.token, Reason: ReasonFailed, Err: cause, Attempt: c.Attempt(), Redrive: redrive}) {
		return true
	}
	en.settle(en.d.Terminate, settled)
	return false
}

// refuse dead-letters a message for which there is no claim, so there is nothing to
// record: each redelivery is dead-lettered again. Without a destination the consumer
// stops.
func (en *entry) refuse(reason string, cause error) (again bool) {
	if !en.l.e.broker.DeadLetters {
		en.halt(noDestination(en, reason, cause))
		return false
	}
	if !en.post(Letter{Token: en.token, Reason: reason, Err: cause, Redrive: redrive(en.d) + 1}) {
		return true
	}
	en.settle(en.d.Terminate, settled)
	return false
}

// post publishes the copy until the destination confirms it; false if the consumer
// ends before.
func (en *entry) post(l Letter) bool {
	e := en.l.e
	l.Group = e.guard.Settings().Group
	for n := 1; ; n++ {
		err := en.d.DeadLetter(en.l.ph.final, l)
		if err == nil {
			e.emit(en, idem.Event{Kind: idem.EventDeadLetter, Attempt: l.Attempt, Err: l.Err, Text: l.Reason})
			return true
		}
		wait := e.policy.backoff(n)
		e.emit(en, idem.Event{Kind: idem.EventWaiting, Err: fmt.Errorf("dead-letter destination: %w", err), Wait: wait})
		sleep(en.l.waits, wait)
		if en.l.ending() || context.Cause(en.l.ph.final) != nil {
			return false
		}
	}
}

func noDestination(en *entry, reason string, cause error) error {
	return fmt.Errorf("consumer: %s (token %q): %s, and there is no dead-letter destination: give the consumer one with DeadLetter, or mend the cause and start again; nothing was skipped: %w", en.d, en.token, reason, cause)
}
