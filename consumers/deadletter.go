package consumers

import (
	"context"
	"errors"
	"fmt"

	"github.com/idemq/idemq/idem"
)

// ErrUndeliverable is wrapped by errors of Delivery.DeadLetter that no waiting mends: a
// copy that is larger than the destination takes. The consumer stops.
var ErrUndeliverable = errors.New("the copy is undeliverable")

// deadLetter hands the claimed message over to the dead-letter destination, then
// records it as dead, then tells the broker: in this order, a death in between makes
// a second copy, and never a loss. Without a destination the consumer stops.
func (en *entry) deadLetter(reason string, cause error) (again bool) {
	e, c := en.l.e, en.claim
	if !e.broker.DeadLetters {
		en.giveBack(false) // or the mended handler would not be started
		en.halt(noDestination(en, reason, cause))
		return false
	}
	en.leaveGate() // nothing is started any more that could end the process
	l := Letter{Token: en.token, Reason: reason, Err: cause, Attempt: c.Attempt(), Redrive: c.Redrive() + 1}
	if !en.posted(en.post(en.waits, en.l.ph.final, l), en.kept()) {
		en.giveBack(false)
		return true
	}
	if en.bury() != nil {
		return true
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
	if err := en.bury(); err != nil {
		// A store without details of what is done has forgotten who spent it: the next
		// answer is a duplicate, and nothing else would tell.
		if !errors.Is(err, idem.ErrLeaseLost) || e.guard.Settings().Store.Capabilities().NoDoneDetails {
			e.emit(en, idem.Event{Kind: idem.EventDropped, Attempt: c.Attempt(), Err: errors.Join(cause, err)})
		}
		return true
	}
	l := Letter{Token: en.token, Reason: ReasonFailed, Err: cause, Attempt: c.Attempt(), Redrive: redrive}
	if !en.posted(en.post(en.l.ph.final, en.l.ph.final, l), itsSpent) {
		// The next delivery is a duplicate of what is recorded as dead.
		e.emit(en, idem.Event{Kind: idem.EventDropped, Attempt: c.Attempt(), Err: cause})
		return true
	}
	en.settle(en.d.Terminate, settled)
	return false
}

// bury records the claimed message as dead. If that is refused, because somebody took
// over, or the store is away to the end, the token has to be asked for again.
func (en *entry) bury() error {
	c := en.claim
	err := c.Bury(en.l.ph.final)
	if err != nil {
		c.Abandon()
	}
	en.setClaim(nil)
	en.leaveGate()
	if err != nil {
		sleep(en.waits, jitter(askAgain))
	}
	return err
}

// refuse dead-letters a message for which there is no claim, so there is nothing to
// record: each redelivery is dead-lettered again. Without a destination the consumer
// stops.
func (en *entry) refuse(reason string, cause error) (again bool) {
	if !en.l.e.broker.DeadLetters {
		en.halt(noDestination(en, reason, cause))
		return false
	}
	if !en.posted(en.postUnclaimed(en.waits, en.l.ph.final, reason, cause), en.kept()) {
		return true
	}
	en.settle(en.d.Terminate, settled)
	return false
}

// postUnclaimed is post for a message without a claim.
func (en *entry) postUnclaimed(waits, final context.Context, reason string, cause error) error {
	l := Letter{Token: en.token, Reason: reason, Err: cause, Attempt: en.failures}
	if en.invalid == nil {
		l.Redrive = en.redrive + 1
	}
	return en.post(waits, final, l)
}

// post publishes the copy until the destination confirms it. Each try may last until final
// ends; after one that failed, the end of waits ends it, with the error of that try.
func (en *entry) post(waits, final context.Context, l Letter) error {
	e := en.l.e
	l.Group = en.l.guard.Settings().Group
	if l.Token != "" {
		l.borne = en.borne
	}
	for n := 1; ; n++ {
		err := en.d.DeadLetter(final, l)
		if err == nil {
			e.emit(en, idem.Event{Kind: idem.EventDeadLetter, Attempt: l.Attempt, Err: l.Err, Text: l.Reason})
			return nil
		}
		if errors.Is(err, ErrUndeliverable) {
			return fmt.Errorf("%s, and its dead-letter copy cannot be published: %w", l.Reason, err)
		}
		wait := max(e.policy.backoff(n), firstPause) // the destination's, which is dialled perhaps
		e.emit(en, idem.Event{Kind: idem.EventWaiting, Err: fmt.Errorf("dead-letter destination: %w", err), Wait: wait})
		sleep(waits, wait)
		if waits.Err() != nil {
			return err
		}
	}
}

// What has become of a message that stops the consumer.
const (
	itsKept  = "nothing was skipped"
	itsLast  = "the broker does not deliver it again: look into the dead-letter exchange of its queue, or publish it anew with its token"
	itsSpent = "its token is spent: have the guard Forget it before the consumer starts again, or the message is dropped"
)

// kept is itsKept, where the broker keeps the message too.
func (en *entry) kept() string {
	if en.d.Final() {
		return itsLast
	}
	return itsKept
}

// posted reports whether the copy is at its destination, by what post returned. An error that
// no waiting mends stops the consumer, with one that ends in what has become of the message.
func (en *entry) posted(err error, state string) bool {
	if errors.Is(err, ErrUndeliverable) {
		en.halt(fmt.Errorf("consumer: %s (token %q): %w; %s", en.d, en.token, err, state))
	}
	return err == nil
}

func noDestination(en *entry, reason string, cause error) error {
	return fmt.Errorf("consumer: %s (token %q): %s, and there is no dead-letter destination: give the consumer one with DeadLetter, or mend the cause and start again (a message whose processes died too often needs guard.Forget besides); %s: %w", en.d, en.token, reason, en.kept(), cause)
}
