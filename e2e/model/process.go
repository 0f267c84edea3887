package model

import "github.com/idemq/idemq/idem/store"

// process makes the steps of a consumer process.
func (w *world) process(s *State, p int) {
	c := w.c
	pr := &s.P[p]
	l := label{p: int8(p)}
	if !pr.Up {
		l.what = "starts again"
		w.step(s, l, func(n *State) {
			n.P[p].Up = true
			if c.Names != nil {
				n.P[p].Inc = n.newIncarnation()
			}
		})
		return
	}
	l.what = "dies"
	w.fault(Crash, s, l, func(n *State) { w.die(n, p) })
	if !pr.Stop {
		l.what = "is told to stop"
		w.fault(Stop, s, l, func(n *State) { n.P[p].Stop = true })
	} else if s.isDrained(p) {
		l.what = "has drained, and ends"
		w.step(s, l, func(n *State) {
			for i := range n.P[p].S {
				if n.P[p].S[i].Ph == queued {
					w.leave(n, p, i)
				}
			}
			w.die(n, p)
		})
	}
	w.fetch(s, p)
	for i := range pr.S {
		if pr.S[i].Ph != none {
			d := &delivery{world: w, s: s, p: p, i: i, g: c.Procs[p], t: c.token(s, &pr.S[i]), item: c.item(s, &pr.S[i])}
			d.steps()
		}
	}
}

// isDrained tells whether a process that stops has nothing left that was started.
func (s *State) isDrained(p int) bool {
	for i := range s.P[p].S {
		switch s.P[p].S[i].Ph {
		case none, queued, marked:
		default:
			return false
		}
	}
	return true
}

// die ends a process. Its messages are delivered again.
func (w *world) die(n *State, p int) {
	c, g := w.c, w.c.Procs[p]
	for i := range n.P[p].S {
		if sl := &n.P[p].S[i]; sl.Ph != none && sl.is(gEffect) {
			n.Why[g][c.token(n, sl)] |= wDied
		}
	}
	for m := range n.B[g] {
		if n.B[g][m] == uint8(p)+1 {
			c.back(n, g, m)
		}
	}
	n.P[p] = proc{}
	for part := range n.Owner[g] {
		if n.Owner[g][part] == uint8(p)+1 {
			n.Owner[g][part] = 0
		}
	}
}

// delivery makes the steps of a slot of s.
type delivery struct {
	*world
	s          *State
	p, i       int
	g, t, item int
}

func (d *delivery) slot() *slot { return &d.s.P[d.p].S[d.i] }

func (d *delivery) of(n *State) *slot { return &n.P[d.p].S[d.i] }

func (d *delivery) label(what string) label {
	sl := d.slot()
	return label{p: int8(d.p), msg: sl.Msg, claim: sl.C, what: what}
}

func (d *delivery) step(what string, f func(n *State, sl *slot)) {
	d.world.step(d.s, d.label(what), func(n *State) { f(n, d.of(n)) })
}

func (d *delivery) whim(what string, f func(n *State, sl *slot)) {
	d.world.whim(d.s, d.label(what), func(n *State) { f(n, d.of(n)) })
}

func (d *delivery) fault(kind Faults, what string, f func(n *State, sl *slot)) {
	d.world.fault(kind, d.s, d.label(what), func(n *State) { f(n, d.of(n)) })
}

// ending tells whether nothing new is to be started.
func (d *delivery) ending() bool { return d.s.P[d.p].Stop || d.slot().is(fGone) }

// inQueue tells whether a slot waits for a worker.
func inQueue(sl *slot) bool {
	if sl.is(fTaken) {
		return false
	}
	switch sl.Ph {
	case queued, asking, claimed, releasing:
		return true
	}
	return false
}

// place is how many stand before the slot in its lane's queue, and how many workers are
// busy there.
func (d *delivery) place() (before, busy int) {
	lane := d.s.laneOf(d.c, d.slot())
	for k := range d.s.P[d.p].S {
		x := &d.s.P[d.p].S[k]
		if x.Ph == none || d.s.laneOf(d.c, x) != lane {
			continue
		}
		if x.is(fTaken) {
			busy++
		} else if k < d.i && inQueue(x) {
			before++
		}
	}
	return before, busy
}

// turn tells whether a worker has the slot, or takes it next.
func (d *delivery) turn() bool {
	if d.slot().is(fTaken) {
		return true
	}
	before, busy := d.place()
	return before == 0 && busy < d.c.Workers
}

// others calls f for the other slots of the process, until it is true.
func (d *delivery) others(f func(*slot) bool) bool {
	for k := range d.s.P[d.p].S {
		if x := &d.s.P[d.p].S[k]; k != d.i && x.Ph != none && f(x) {
			return true
		}
	}
	return false
}

// atGate tells whether a slot counts at the gate.
func (c *Config) atGate(sl *slot) bool {
	switch sl.Ph {
	case asking, claimed, running, backoff, retrying, returned, releasing:
		return true
	}
	return false
}

// shut tells whether somebody else has solitude, or wants it.
func (d *delivery) shut() bool {
	return d.others(func(x *slot) bool { return x.Ph == solitude || x.is(fSolo) && d.c.atGate(x) })
}

// entered tells whether a slot holds its token in the guard.
func (c *Config) entered(sl *slot) bool {
	if sl.C == 0 || c.Policy == AtMostOnce && sl.Ph != asking {
		return false
	}
	switch sl.Ph {
	case asking, claimed, running, backoff, retrying, returned, releasing, posting, burying:
		return true
	}
	return false
}

// barred tells whether the guard holds the token for another delivery.
func (d *delivery) barred() bool {
	return d.c.Bug != NoRunSet && d.others(func(x *slot) bool { return d.c.token(d.s, x) == d.t && d.c.entered(x) })
}

// behind tells whether the same token stands earlier in the lane, and has no outcome yet.
func (d *delivery) behind() bool {
	if !d.slot().is(fPrev) {
		return false
	}
	lane := d.s.laneOf(d.c, d.slot())
	for k := range d.i {
		x := &d.s.P[d.p].S[k]
		if x.Ph != none && x.Ph != marked && !x.is(fEnded) && d.s.laneOf(d.c, x) == lane && d.c.token(d.s, x) == d.t {
			return true
		}
	}
	return false
}

// laneWaits tells whether a worker of the lane waits for a message that is held elsewhere.
func (d *delivery) laneWaits() bool {
	lane := d.s.laneOf(d.c, d.slot())
	return d.c.Bug != NoGiveBack && d.others(func(x *slot) bool { return x.Ph == waiting && d.s.laneOf(d.c, x) == lane })
}

func (d *delivery) steps() {
	sl := d.slot()
	if renewed(sl) && (sl.Ph == claimed || sl.Ph == running || sl.Ph == backoff) && d.c.Policy != AtMostOnce {
		if r := &d.s.Rec[d.g][d.t]; sl.is(gOver) || r.Claim != sl.C || !r.running() {
			d.step("learns that its lease is lost", func(_ *State, sl *slot) { sl.F |= fLost })
		}
	}
	switch sl.Ph {
	case queued, waiting:
		d.ask()
	case solitude:
		d.askAlone()
	case asking:
		d.askAgain()
	case claimed:
		d.start()
	case running:
		d.run()
	case backoff:
		d.tryLater()
	case retrying:
		d.retry()
	case returned:
		d.commit()
	case releasing:
		d.release()
	case posting:
		d.post()
	case burying:
		d.bury()
	case unguarded:
		d.runUnguarded()
	case settling:
		d.settle()
	}
	if sl.is(fTaken) && d.c.Broker == RabbitMQ && !sl.is(fGone) {
		switch sl.Ph {
		case queued, waiting, solitude:
			d.fault(Held, "held for too long: goes back", func(n *State, _ *slot) { d.leave(n, d.p, d.i) })
		case backoff:
			d.fault(Held, "held for too long: is given back", func(_ *State, sl *slot) {
				sl.Ph = releasing
				sl.F = sl.F&^fCounted | fNak
			})
		}
	}
}

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
	if before < d.c.Window && !sl.is(fTried|fAlone|fPrev) && !d.laneWaits() && !d.shut() {
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
// the end.
func (d *delivery) askAgain() {
	if d.ending() {
		d.step("gives its request up, and sends a Release", func(n *State, sl *slot) { d.abandon(n, sl) })
		return
	}
	d.step("asks again under the same claim id", func(n *State, sl *slot) { d.answered(n, d.claim(n, sl.C)) })
	d.failOpen("gives its request up: the store has been away for long", func(*State, *slot) {})
}

func (d *delivery) abandon(n *State, sl *slot) {
	if n.mayDelay() && d.c.Policy != AtMostOnce {
		n.delay(late{Op: uint8(store.Release), G: uint8(d.g), T: uint8(d.t), Item: uint8(d.item), C: sl.C})
	}
	d.leave(n, d.p, d.i)
}

// give tells the worker to release, and what is to follow.
func give(sl *slot, counted bool) {
	sl.Ph = releasing
	sl.F &^= fCounted
	if counted {
		sl.F |= fCounted
	}
}

// start is for a claim whose handler is not started.
func (d *delivery) start() {
	sl := d.slot()
	if !sl.is(fTaken) && (d.ending() || d.laneWaits() || d.shut()) {
		d.step("gives the claim made ahead back", func(_ *State, sl *slot) { give(sl, false) })
	}
	if d.ending() {
		if sl.is(fTaken) {
			d.step("gives the claim back, as it ends", func(n *State, sl *slot) {
				if d.c.Policy == AtMostOnce {
					d.leave(n, d.p, d.i)
					return
				}
				give(sl, false)
			})
		}
		return
	}
	if !d.turn() {
		return
	}
	switch {
	case d.c.Policy == AtMostOnce && (sl.Sp > 0 || sl.is(fFinal)):
		d.step("is not started: it may have been before", func(_ *State, sl *slot) {
			sl.F |= fTaken
			sl.Ph = burying
		})
		return
	case d.c.Policy != AtMostOnce && (sl.Sp >= d.c.Budget || sl.is(fFinal)):
		d.step("is not started: its budget is spent, or the broker gives it up", func(n *State, sl *slot) {
			sl.F |= fTaken
			d.giveUp(sl)
			if n.Blame[d.g][d.t] < d.c.Budget && !sl.is(fFinal) {
				d.breach("dead-lettered for a budget that was not spent")
			}
		})
		return
	case d.c.Policy != AtMostOnce && (sl.is(gOver | fLost)) && d.c.Bug != NoClock:
		d.step("is not started: the lease has run out", func(_ *State, sl *slot) {
			sl.F |= fTaken
			give(sl, false)
		})
		return
	}
	d.step("handler starts", func(n *State, sl *slot) {
		sl.F |= fTaken
		sl.Ph = running
		d.started(n, sl)
	})
}

// giveUp begins to dead-letter a message under its claim.
func (d *delivery) giveUp(sl *slot) {
	sl.Ph = posting
	sl.F &^= fSolo
	if d.c.Bug == BuryBeforePost {
		sl.Ph = burying
	}
	if d.c.Bug == AckBeforePost {
		sl.Ph = settling
	}
}

// run is in the handler.
func (d *delivery) run() {
	sl := d.slot()
	it := &d.c.Items[d.item]
	if it.Poison {
		d.step("handler kills its process", func(n *State, sl *slot) {
			if sl.Sp >= d.c.Budget {
				d.breach("poison was started beyond its budget")
			}
			d.die(n, d.p)
		})
		return
	}
	had, obeys := sl.is(gEffect), sl.is(fLost) && !d.c.Ignore
	switch {
	case d.c.Policy == Transactional && d.c.Bug != EffectOutside:
		if !obeys {
			d.step("handler returns nil, its effect waits for the commit", func(_ *State, sl *slot) { sl.Ph = returned })
		}
	case had:
		d.step("handler returns nil", func(n *State, sl *slot) { d.returns(n, sl) })
	case !obeys:
		d.step("the effect lands", func(n *State, sl *slot) {
			sl.F |= gEffect
			d.effect(n, sl)
		})
	}
	if had {
		return
	}
	if sl.is(fLost) {
		d.step("handler gives up, its context is cancelled", func(_ *State, sl *slot) { give(sl, false) })
		return
	}
	if sl.is(fGone) && !d.c.Broker.keepsHandlers() {
		d.step("handler gives up, its partition is lost", func(n *State, sl *slot) {
			if d.c.Policy == AtMostOnce {
				sl.Ph = burying
				return
			}
			give(sl, false)
		})
	}
	if d.c.may(HandlerErr) {
		d.whim("handler fails", func(n *State, sl *slot) { d.fails(n, sl) })
	}
	if d.c.may(Permanent) {
		d.whim("handler fails for good", func(n *State, sl *slot) {
			switch {
			case d.c.Policy == AtMostOnce:
				sl.Ph = burying
			case sl.is(fGone):
				n.blame(d.c, d.g, d.t)
				give(sl, d.c.Broker.keepsHandlers())
			default:
				d.giveUp(sl)
			}
		})
	}
	if d.c.may(Later) && d.c.Policy != AtMostOnce {
		d.fault(Later, "handler returns RetryAfter", func(_ *State, sl *slot) { d.later(sl, false) })
	}
}

func (d *delivery) returns(n *State, sl *slot) {
	switch {
	case d.c.Policy == AtMostOnce:
		sl.Ph = settling
		sl.F |= fCompleted
	case d.c.Bug == AckBeforeCommit:
		sl.Ph = returned
		copied := *sl
		d.world.settle(n, d.p, d.i)
		if !d.c.Broker.isKafka() {
			*d.of(n) = copied
		}
	default:
		sl.Ph = returned
		if d.c.Policy != Transactional {
			sl.F &^= fTaken // the worker goes on
		}
	}
}

// fails acts on an error of the handler.
func (d *delivery) fails(n *State, sl *slot) {
	if d.c.Policy == AtMostOnce {
		sl.Ph = burying
		return
	}
	n.blame(d.c, d.g, d.t)
	switch {
	case sl.is(fGone):
		give(sl, d.c.Broker.keepsHandlers())
	case sl.Sp+1 >= d.c.Budget:
		d.giveUp(sl)
	default:
		d.later(sl, true)
	}
}

// later begins a backoff, in place or by way of the broker.
func (d *delivery) later(sl *slot, counted bool) {
	switch {
	case sl.is(fGone), d.s.P[d.p].Stop && !d.c.redelivers():
		give(sl, counted)
	case d.c.redelivers():
		give(sl, counted)
		sl.F |= fNak
	case sl.is(fAlone):
		give(sl, counted)
	default:
		give(sl, counted)
		sl.Ph = backoff
	}
}

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
