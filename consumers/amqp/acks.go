package idemamqp

// acks knows which deliveries of a session are settled, so that one ack can stand for
// many: it takes with it all that the channel has outstanding up to its tag.
//
// It is guarded by the session's mutex.
type acks struct {
	begun   bool
	gap     bool   // a tag was passed over: the channel has deliveries that are not ours
	first   uint64 // the lowest tag that is not within the settled ones
	settled []bool // from first on
}

// accept notes a delivery.
func (a *acks) accept(tag uint64) {
	if !a.begun {
		a.begun, a.first, a.gap = true, tag, tag != 1
	}
	if a.gap = a.gap || tag != a.first+uint64(len(a.settled)); a.gap {
		a.settled = nil
		return
	}
	a.settled = append(a.settled, false)
}

// settle marks a delivery for which a settlement was sent, or is about to be by whoever
// calls upTo. Those that were not accepted, Wrap's, mean nothing.
func (a *acks) settle(tag uint64) {
	if tag < a.first || tag-a.first >= uint64(len(a.settled)) {
		return
	}
	a.settled[tag-a.first] = true
	for len(a.settled) > 0 && a.settled[0] {
		a.settled = a.settled[1:]
		a.first++
	}
}

// upTo returns the tag up to which everything is settled, zero if nothing is known.
func (a *acks) upTo() uint64 {
	if a.gap || !a.begun {
		return 0
	}
	return a.first - 1
}
