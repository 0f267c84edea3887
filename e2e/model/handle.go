package model

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
	if d.ending() && d.c.Policy != AtMostOnce {
		if sl.is(fTaken) {
			d.step("gives the claim back, as it ends", func(_ *State, sl *slot) { give(sl, false) })
		}
		return
	}
	if !d.turn() {
		return
	}
	switch {
	case d.c.Policy == AtMostOnce && sl.is(fGone) && !d.c.Broker.keepsHandlers():
		d.step("is not started: its partition is lost", func(_ *State, sl *slot) { sl.Ph = burying })
		return
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
	case d.c.Policy != AtMostOnce && sl.is(gOver|fLost) && d.c.Bug != NoClock:
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
