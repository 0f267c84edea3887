package consumers

import "github.com/idemq/idemq/idem"

// A repeat is a delivery of a token that this lane has in hand already. It is never
// handled beside the one before it, and when that is recorded as done it is a duplicate,
// which no trip needs to say. Where the handler before it has returned and only the record
// is missing, the repeat is parked: its worker goes on. It is settled with the one that it
// repeats, or takes its turn again should that not become done.

// park waits without a worker for the outcome of the entry before, if that comes without
// one.
func (en *entry) park() (parked bool) {
	l := en.l
	l.mu.Lock()
	defer l.mu.Unlock()
	prev := en.prev
	if prev == nil || prev.isEnded || prev.awaits == nil || !en.dropsBehind(prev) {
		return false
	}
	en.awaits = prev.awaits
	en.awaits.repeats = append(en.awaits.repeats, en)
	return true
}

// dropsBehind reports whether an entry is a duplicate once the one before it is done.
func (en *entry) dropsBehind(prev *entry) bool {
	p := &en.l.e.policy
	return en.redrive <= prev.redrive && !p.fingerprints && !p.shadow
}

// awaitPrevious sees to an entry that repeats another's token: it is parked, or the other
// is waited for. It reports whether that was all.
func (en *entry) awaitPrevious() (isSettled bool) {
	prev := en.prev
	if en.park() {
		return true
	}
	select {
	case <-en.l.ended(prev):
	case <-en.waits.Done():
		return false
	}
	if !en.l.isCompleted(prev) || !en.dropsBehind(prev) {
		return false
	}
	en.settleRepeat()
	return true
}

// ended returns a channel that is closed when an entry's outcome is set, or its completion
// was refused.
func (l *Lane) ended(en *entry) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	ended := en.changed.wait()
	if en.isEnded {
		en.changed.signal()
	}
	return ended
}

// isCompleted reports whether a message is known to be done.
func (l *Lane) isCompleted(en *entry) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return en.outcome == completed
}

func (en *entry) settleRepeat() {
	en.l.e.emit(en, idem.Event{Kind: idem.EventDuplicate})
	en.ack()
}

// duplicatesOf takes what is parked behind entries that are recorded as done.
func (l *Lane) duplicatesOf(done []*entry) (duplicates []*entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, en := range done {
		duplicates = append(duplicates, en.takeRepeats()...)
	}
	return duplicates
}

// unpark ends, with mu held, the wait of those that were parked with an entry. Where it
// was completed they are returned, to be settled; else they are next.
func (l *Lane) unpark(en *entry) (duplicates []*entry) {
	repeats := en.takeRepeats()
	if len(repeats) == 0 || en.outcome == completed {
		return repeats
	}
	l.queue = append(repeats, l.queue...)
	return nil
}

// takeRepeats returns, with the lane's mu held, what is parked behind an entry, and parks it
// there no more: neither is anything that repeats those.
func (en *entry) takeRepeats() []*entry {
	repeats := en.repeats
	en.repeats = nil
	for _, r := range repeats {
		r.awaits = nil
	}
	return repeats
}
