package model

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
		case none, queued, marked, left:
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
		if x.Ph != none && x.Ph != marked && x.Ph != left && !x.is(fEnded) && d.s.laneOf(d.c, x) == lane && d.c.token(d.s, x) == d.t {
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
