package model

import "github.com/idemq/idemq/idem/store"

// ask is for a delivery without a claim.
func (d *delivery) ask() {
	sl := d.slot()
	if d.ending() {
		d.step("left to the broker", func(n *State, _ *slot) { d.leave(n, d.p, d.i) })
		return
	}
	if d.turn() {
		switch {
		case d.behind():
			if !sl.is(fTaken) {
				d.step("waits for the same token before it", func(_ *State, sl *slot) { sl.F |= fTaken })
			}
			return
		case sl.is(fPrevDone) && !d.c.Fingerprints && d.c.Policy != Shadow:
			d.step("is a repeat of what has just completed", func(_ *State, sl *slot) {
				sl.F |= fTaken | fCompleted
				sl.Ph = settling
			})
			return
		case sl.is(fAlone):
			d.step("waits for solitude", func(_ *State, sl *slot) {
				sl.F |= fTaken
				sl.Ph = solitude
			})
			return
		}
		if !d.shut() {
			d.begin(false, false)
		}
		return
	}
	before, _ := d.place()
	if before < d.c.Window && d.c.Policy != AtMostOnce && !sl.is(fTried|fAlone|fPrev) && !d.laneWaits() && !d.shut() {
		d.begin(true, false)
	}
}

// askAlone is for a token whose claims expired too often to be claimed beside others.
func (d *delivery) askAlone() {
	if d.ending() {
		d.step("left to the broker", func(n *State, _ *slot) { d.leave(n, d.p, d.i) })
		return
	}
	if !d.others(d.c.atGate) {
		d.begin(false, true)
	}
}

// begin asks for a claim under a new claim id.
func (d *delivery) begin(ahead, alone bool) {
	if d.barred() {
		if !ahead && d.slot().Ph == waiting {
			return
		}
		d.step("is in progress in this process", func(_ *State, sl *slot) {
			if ahead {
				sl.F |= fTried
				return
			}
			sl.F |= fTaken
			sl.F &^= fSolo
			sl.Ph = waiting
		})
		return
	}
	how := "asks for a claim"
	if ahead {
		how = "asks for a claim ahead"
	}
	if alone {
		how += ", alone"
	}
	set := func(n *State, sl *slot) {
		sl.Ph, sl.C = asking, n.newClaim()
		if !ahead {
			sl.F |= fTaken
		}
		if alone {
			sl.F |= fSolo
		}
		sl.F &^= fPrev | fPrevDone
	}
	d.step(how, func(n *State, sl *slot) {
		set(n, sl)
		d.answered(n, d.claim(n, sl.C))
	})
	d.fault(LostReply, how+", the answer is lost", func(n *State, sl *slot) {
		set(n, sl)
		d.claim(n, sl.C)
	})
	if d.s.mayDelay() {
		d.fault(Delay, how+", the command is late", func(n *State, sl *slot) {
			set(n, sl)
			op := d.claimOp(n, sl.C)
			n.delay(d.late(n, &op))
		})
	}
	d.failOpen(how+": the store has been away for long", set)
}

// failOpen handles the message without a claim. One that the store made, or makes, is
// given back.
func (d *delivery) failOpen(what string, set func(*State, *slot)) {
	if d.c.Policy != FailOpen {
		return
	}
	d.world.fault(LostReply, d.s, d.label(what), func(n *State) {
		sl := d.of(n)
		set(n, sl)
		if n.mayDelay() {
			n.delay(late{Op: uint8(store.Release), G: uint8(d.g), T: uint8(d.t), Item: uint8(d.item), C: sl.C})
		}
		sl.C = 0
		sl.Ph = unguarded
		sl.F |= fTaken
		sl.F &^= fSolo
		if d.c.Bug == FailOpenAcksUnhandled {
			sl.Ph = settling
		}
	})
}

func (d *delivery) late(n *State, op *store.Op) late {
	l := late{
		Op: uint8(op.Kind), G: uint8(d.g), T: uint8(d.t), Item: uint8(d.item), C: number(op.Claim), A: uint8(op.Attempt), N: uint8(op.Redrive),
		FP: number(op.Fingerprint), Max: uint8(op.MaxExpiries), Owner: d.c.name(d.p), Inc: n.P[d.p].Inc,
	}
	if op.Counted {
		l.Counted = 1
	}
	return l
}

// claimOp is the request of a slot, in the state in which it is sent.
func (d *delivery) claimOp(n *State, id uint8) store.Op {
	op := store.Op{Kind: store.Begin, Claim: names[id], Redrive: int(n.M[d.of(n).Msg-1].N)}
	if d.c.Policy == AtMostOnce {
		op.Kind = store.Spend
	} else if !d.of(n).is(fAlone) {
		op.MaxExpiries = int(d.c.maxExpiries())
	}
	if d.c.Fingerprints {
		op.Fingerprint = names[d.c.Items[d.item].FP]
	}
	return op
}

func (d *delivery) claim(n *State, id uint8) store.Reply {
	op := d.claimOp(n, id)
	reply := d.apply(n, d.g, d.t, op, d.c.name(d.p), n.P[d.p].Inc)
	if op.Kind == store.Spend && reply.Status == store.Claimed {
		n.Cause[d.g][d.item] = true
	}
	return reply
}

// answered acts on the answer to Begin or Spend.
func (d *delivery) answered(n *State, reply store.Reply) {
	sl := d.of(n)
	ahead := !sl.is(fTaken)
	if reply.Status == store.Claimed {
		sl.Ph = claimed
		sl.A, sl.N, sl.Sp, sl.How = uint8(reply.Attempt), uint8(reply.Redrive), uint8(reply.Spent), 0
		sl.F &^= gOver | fLost | fTried
		if d.c.NothingSpent && reply.Spent > 0 {
			d.breach("budget was spent though nothing happened that spends")
		}
		if d.c.Bug == UnknownIsDropped && d.c.Items[d.item].Forged {
			d.breach("a token that was not issued was admitted")
		}
		return
	}
	sl.C, sl.A = 0, 0
	sl.F &^= fSolo
	status := reply.Status
	if status == store.InProgress && d.c.Bug == InProgressIsDone || status == store.Conflict && d.c.Bug == ConflictIsDone || status == store.Unknown && d.c.Bug == UnknownIsDropped {
		status = store.Duplicate
	}
	if ahead && (status != store.Duplicate || d.ending() || d.c.Policy == Shadow) {
		sl.Ph = queued
		sl.F |= fTried
		return
	}
	sl.F |= fTaken
	switch status {
	case store.Duplicate:
		if d.c.Policy == Shadow {
			sl.Ph = unguarded
			return
		}
		if ahead {
			sl.F &^= fTaken // no worker is kept
		}
		sl.Ph = settling
		if !reply.Dead {
			sl.F |= fCompleted
		}
	case store.NeedAlone:
		sl.Ph = queued
		sl.F |= fAlone
	case store.Superseded:
		n.P[d.p].Stop = true
		sl.Ph = queued
	case store.Unknown, store.Conflict:
		sl.Ph, sl.N = posting, n.M[sl.Msg-1].N
	default:
		sl.Ph = waiting
		if d.c.Policy == Shadow {
			sl.Ph = unguarded
		}
	}
}

// askAgain sends a request without an answer again, under its claim id, or gives it up at
// the end: but for one that may have spent its token.
func (d *delivery) askAgain() {
	if d.ending() && d.c.Policy != AtMostOnce {
		d.step("gives its request up, and sends a Release", func(n *State, sl *slot) { d.abandon(n, sl) })
		return
	}
	d.step("asks again under the same claim id", func(n *State, sl *slot) { d.answered(n, d.claim(n, sl.C)) })
	d.failOpen("gives its request up: the store has been away for long", func(*State, *slot) {})
}

func (d *delivery) abandon(n *State, sl *slot) {
	if n.mayDelay() {
		n.delay(late{Op: uint8(store.Release), G: uint8(d.g), T: uint8(d.t), Item: uint8(d.item), C: sl.C})
	}
	d.leave(n, d.p, d.i)
}
