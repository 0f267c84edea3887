package model

import "github.com/idemq/idemq/idem/store"

// tryLater keeps a claim through a backoff.
func (d *delivery) tryLater() {
	sl := d.slot()
	if d.ending() || sl.is(fLost) || d.shut() {
		d.step("gives the claim back instead of keeping it", func(_ *State, sl *slot) { sl.Ph = releasing })
		return
	}
	set := func(n *State, sl *slot) { sl.Ph, sl.C2 = retrying, n.newClaim() }
	d.step("releases and asks anew", func(n *State, sl *slot) {
		set(n, sl)
		d.resend(n, true)
	})
	d.step("releases, and is about to ask anew", func(n *State, sl *slot) {
		set(n, sl)
		d.releaseOp(n, sl)
	})
	d.fault(LostReply, "releases and asks anew, the answer is lost", func(n *State, sl *slot) {
		set(n, sl)
		d.resend(n, false)
	})
}

func (d *delivery) retry() {
	if d.ending() {
		d.step("gives its request up, and sends a Release", func(n *State, sl *slot) {
			if n.mayDelay() {
				n.delay(late{Op: uint8(store.Release), G: uint8(d.g), T: uint8(d.t), Item: uint8(d.item), C: sl.C2})
			}
			sl.C2, sl.Ph = 0, releasing
		})
		return
	}
	d.step("releases and asks again under the same claim ids", func(n *State, _ *slot) { d.resend(n, true) })
}

// resend sends the Release and the Begin of a retry.
func (d *delivery) resend(n *State, answered bool) {
	sl := d.of(n)
	d.releaseOp(n, sl)
	reply := d.claim(n, sl.C2)
	if !answered {
		return
	}
	sl.C, sl.C2 = sl.C2, 0
	sl.F &^= fCounted
	d.answered(n, reply)
}

func (d *delivery) releaseOp(n *State, sl *slot) {
	d.apply(n, d.g, d.t, store.Op{Kind: store.Release, Claim: names[sl.C], Counted: sl.is(fCounted)}, 0, 0)
}

// release ends a claim as to be tried again.
func (d *delivery) release() {
	next := func(n *State, sl *slot) {
		sl.C, sl.A = 0, 0
		nak := sl.is(fNak)
		sl.F &^= fCounted | fNak | fSolo | fLost | gOver
		sl.Ph = queued
		if nak {
			d.leave(n, d.p, d.i)
		}
	}
	d.step("Release", func(n *State, sl *slot) {
		d.releaseOp(n, sl)
		next(n, sl)
	})
	d.fault(LostReply, "Release, the answer is lost", func(n *State, sl *slot) { d.releaseOp(n, sl) })
	if d.s.mayDelay() {
		d.fault(Delay, "Release, the command is late, and sent again", func(n *State, sl *slot) {
			op := store.Op{Kind: store.Release, Claim: names[sl.C], Counted: sl.is(fCounted)}
			n.delay(d.late(n, &op))
		})
	}
}

// commit records the completion.
func (d *delivery) commit() {
	exec := func(n *State, sl *slot) bool {
		before := n.Rec[d.g][d.t].St
		op := store.Op{Kind: store.Commit, Claim: names[sl.C], Attempt: int(sl.A)}
		if d.apply(n, d.g, d.t, op, 0, 0).Status != store.OK {
			return false
		}
		if d.c.Policy == Transactional && d.c.Bug != EffectOutside && before != uint8(store.Done) {
			d.effect(n, sl)
		}
		if sl.How == fenced {
			d.breach("a completion was taken of a claim from before Forget")
		}
		n.Cause[d.g][d.item] = true
		return true
	}
	d.step("Commit", func(n *State, sl *slot) {
		if exec(n, sl) {
			sl.Ph, sl.C, sl.A = settling, 0, 0
			sl.F &^= gEffect | fSolo | fLost | gOver
			sl.F |= fCompleted
			return
		}
		d.refused(n)
	})
	d.fault(LostReply, "Commit, the answer is lost", func(n *State, sl *slot) { exec(n, sl) })
	if d.s.mayDelay() && d.c.Policy != Transactional {
		d.fault(Delay, "Commit, the command is late, and sent again", func(n *State, sl *slot) {
			op := store.Op{Kind: store.Commit, Claim: names[sl.C], Attempt: int(sl.A)}
			n.delay(d.late(n, &op))
		})
	}
}

// refused puts a message whose completion was refused at the front of its lane.
func (d *delivery) refused(n *State) {
	sl := d.of(n)
	if sl.is(gEffect) {
		if !sl.is(gOver|fLost) && sl.How == 0 {
			d.breach("a completion was refused though the lease was never lost")
		}
		n.Why[d.g][d.t] |= wLate
	}
	if d.ending() {
		d.leave(n, d.p, d.i)
		return
	}
	x := *sl
	x.Ph, x.C, x.A = queued, 0, 0
	x.F = fTried | fEnded
	lane := n.laneOf(d.c, sl)
	all := &n.P[d.p].S
	k := d.i
	for k > 0 && all[k-1].Ph != none && n.laneOf(d.c, &all[k-1]) == lane {
		all[k] = all[k-1]
		k--
	}
	all[k] = x
}

// post publishes the dead-letter copy.
func (d *delivery) post() {
	publish := func(n *State, sl *slot) {
		k := sl.N + 1
		if d.c.Bug == HeaderRedrive {
			k = n.M[sl.Msg-1].N + 1
		}
		if k < maxN {
			n.Dlq[d.g][d.item][k] = min(n.Dlq[d.g][d.item][k]+1, 2)
		}
		n.Cause[d.g][d.item] = true
		if d.c.InnocentLive && !d.c.Items[d.item].Poison {
			d.breach("an innocent message was dead-lettered")
		}
	}
	d.step("the dead-letter copy is confirmed", func(n *State, sl *slot) {
		publish(n, sl)
		if sl.C == 0 || d.c.Policy == AtMostOnce || d.c.Bug == BuryBeforePost {
			sl.Ph, sl.C, sl.A = settling, 0, 0
			return
		}
		sl.Ph = burying
	})
	d.fault(ConfirmLost, "the dead-letter copy is stored, its confirmation is lost", publish)
	if d.ending() && d.c.Policy != AtMostOnce {
		d.fault(ConfirmLost, "the dead-letter copy cannot be published, as it ends", func(n *State, sl *slot) {
			if sl.C == 0 {
				d.leave(n, d.p, d.i)
				return
			}
			give(sl, false)
		})
	}
}

// bury records the message as dead.
func (d *delivery) bury() {
	exec := func(n *State, sl *slot) bool {
		return d.apply(n, d.g, d.t, store.Op{Kind: store.Bury, Claim: names[sl.C]}, 0, 0).Status == store.OK
	}
	d.step("Bury", func(n *State, sl *slot) {
		switch {
		case !exec(n, sl):
			sl.Ph, sl.C, sl.A = queued, 0, 0
			sl.F &^= fLost | gOver
		case d.c.Policy == AtMostOnce, d.c.Bug == BuryBeforePost:
			sl.Ph = posting
		default:
			sl.Ph, sl.C, sl.A = settling, 0, 0
		}
	})
	d.fault(LostReply, "Bury, the answer is lost", func(n *State, sl *slot) { exec(n, sl) })
	if d.s.mayDelay() {
		d.fault(Delay, "Bury, the command is late, and sent again", func(n *State, sl *slot) {
			op := store.Op{Kind: store.Bury, Claim: names[sl.C]}
			n.delay(d.late(n, &op))
		})
	}
}

// runUnguarded is in the handler without a claim.
func (d *delivery) runUnguarded() {
	if d.slot().is(gEffect) {
		d.step("handler returns nil, without a claim", func(n *State, sl *slot) {
			sl.Ph = settling
			sl.F &^= gEffect
			n.Cause[d.g][d.item] = true
		})
		return
	}
	d.step("the effect lands, without a claim", func(n *State, sl *slot) {
		n.Why[d.g][d.t] |= wOpen
		sl.F |= gEffect
		d.effect(n, sl)
	})
	if d.ending() {
		d.step("handler gives up, the consumer ends", func(n *State, _ *slot) { d.leave(n, d.p, d.i) })
	}
	if d.c.may(HandlerErr) {
		d.whim("handler fails, without a claim", func(n *State, sl *slot) {
			if sl.Fail++; sl.Fail >= d.c.Budget {
				sl.Ph, sl.N = posting, n.M[sl.Msg-1].N
				return
			}
			sl.Ph = queued
		})
	}
}

// settle tells the broker.
func (d *delivery) settle() {
	what := "is acked"
	if d.slot().is(fGone) {
		what = "cannot be acked any more"
	}
	d.step(what, func(n *State, _ *slot) { d.world.settle(n, d.p, d.i) })
	if d.slot().is(fGone) || d.c.Broker.isKafka() {
		return
	}
	d.fault(AckLost, "its ack is lost", func(n *State, sl *slot) {
		d.outcome(n, d.p, d.i)
		*sl = slot{}
		if d.c.Broker == RabbitMQ {
			d.closeChannel(n, d.p)
		}
	})
}
