package model

// started holds the start of a handler to the promise.
func (d *delivery) started(n *State, sl *slot) {
	if d.c.Policy == AtMostOnce {
		if n.Starts[d.g][d.item]++; n.Starts[d.g][d.item] > 1 && n.Why[d.g][d.t]&wForgot == 0 {
			d.breach("started twice, at most once")
		}
		n.Starts[d.g][d.item] = min(n.Starts[d.g][d.item], 2)
	} else if n.Done[d.g][d.t] && sl.How != forgot {
		if sl.How == stolen {
			d.window("a start after the completion: a higher incarnation took over from a holder that lives")
		} else {
			d.breach("a handler started after the completion was recorded")
		}
	}
	if d.c.Policy != AtMostOnce && d.others(func(x *slot) bool {
		return x.Ph == running && d.c.token(d.s, x) == d.t
	}) {
		d.breach("one process ran a token twice at a time")
	}
}

// Windows in which an effect may land again.
const (
	winForgot = "again: the store, or an operator, had it forgotten"
	winOpen   = "again: it was handled without a claim"
	winLease  = "again: the lease was lost before the completion was recorded"
	winStolen = "again: a higher incarnation took over from a holder that lives"
	winDied   = "again: the process died before the completion was recorded"
)

// effect notes an effect, and if it is not the first, in which window it landed.
func (d *delivery) effect(n *State, sl *slot) {
	landed := &n.Effect[d.g][d.item]
	if *landed > 0 {
		window := d.why(n, sl)
		switch {
		case window == "":
			d.breach("an effect landed again, in no window")
		case d.c.NoDoubles && window != winForgot || d.c.Policy == Transactional && window != winForgot:
			d.breach("an effect landed again where none may: " + window)
		case d.c.Policy == AtMostOnce && window != winForgot:
			d.breach("an effect landed twice, at most once")
		default:
			d.window(window)
		}
	}
	*landed = min(*landed+1, 2)
}

// why is the window in which an effect lands again.
func (d *delivery) why(n *State, sl *slot) string {
	why := n.Why[d.g][d.t]
	late := func(x *slot) string {
		switch {
		case x.How == stolen:
			return winStolen
		case x.is(gOver | fLost):
			return winLease
		}
		return ""
	}
	if why&wForgot != 0 {
		return winForgot
	}
	if why&wOpen != 0 {
		return winOpen
	}
	if w := late(sl); w != "" {
		return w
	}
	for p := range d.c.Procs {
		if d.c.Procs[p] != d.g {
			continue
		}
		for i := range n.P[p].S {
			x := &n.P[p].S[i]
			if (p != d.p || i != d.i) && x.Ph != none && d.c.item(n, x) == d.item && x.is(gEffect) {
				if w := late(x); w != "" {
					return w
				}
			}
		}
	}
	switch {
	case why&wLate != 0:
		return winLease
	case why&wDied != 0:
		return winDied
	}
	return ""
}

// check holds a state to the promise. It reports whether everything is handled.
func (w *world) check(s *State) (drained bool) {
	c := w.c
	drained = true
	for g := range c.groups {
		var open [maxItems]bool
		for m := range s.NM {
			if w.isOpen(s, g, m) {
				open[s.M[m].Item] = true
				drained = drained && w.isPassed(s, g, m)
			}
		}
		for i := range c.Items {
			if open[i] || c.MayLose || s.Effect[g][i] > 0 {
				continue
			}
			handed := c.Policy == AtMostOnce && w.inHand(s, g, i)
			for _, k := range s.Dlq[g][i] {
				handed = handed || k > 0
			}
			if !handed {
				w.breach("lost: neither an effect nor a dead letter, and nobody will deliver it again")
			}
		}
	}
	for p := range c.Procs {
		for i := range s.P[p].S {
			sl := &s.P[p].S[i]
			if sl.Ph == none {
				continue
			}
			drained = false
			if holds(c, sl) {
				w.alone(s, p, i)
			}
		}
	}
	if c.Checkers {
		for _, ch := range s.Check {
			drained = drained && ch.Ph > checkAsks
		}
		if s.Check[0].Ph == checkRefused && s.Check[1].Ph == checkRefused && !s.Gave && !s.Issued[0].Over && s.Failovers == 0 {
			w.breach("no Check passed: the first was taken for a duplicate")
		}
	}
	return drained
}

// inHand tells whether a process works on an item. At most once others may ack it then.
func (w *world) inHand(s *State, g, item int) bool {
	for p := range w.c.Procs {
		for i := range s.P[p].S {
			if sl := &s.P[p].S[i]; w.c.Procs[p] == g && sl.Ph != none && sl.Ph != settling && w.c.item(s, sl) == item {
				return true
			}
		}
	}
	return false
}

// holds tells whether a slot's claim counts as live for its process.
func holds(c *Config, sl *slot) bool {
	switch sl.Ph {
	case claimed, running, backoff, returned:
		return c.Policy != AtMostOnce && sl.How == 0 && !sl.is(gOver|fLost)
	}
	return false
}

// alone finds a second live claim of a token.
func (w *world) alone(s *State, p, i int) {
	sl := &s.P[p].S[i]
	for q := p; q < len(w.c.Procs); q++ {
		if w.c.Procs[q] != w.c.Procs[p] {
			continue
		}
		for k := range s.P[q].S {
			x := &s.P[q].S[k]
			if (q > p || k > i) && x.Ph != none && holds(w.c, x) && w.c.token(s, x) == w.c.token(s, sl) {
				w.breach("two claims of one token are live")
			}
		}
	}
}

// isOpen tells whether the broker still owes a message to a group.
func (w *world) isOpen(s *State, g int, m uint8) bool {
	if w.c.Broker.isKafka() {
		return m >= s.Offset[g][s.M[m].Part]
	}
	return s.B[g][m] != acked && s.B[g][m] != dropped
}

// isPassed tells whether an open message will not be delivered before the next rebalance:
// a late commit moved the offset back behind its reader.
func (w *world) isPassed(s *State, g int, m uint8) bool {
	if w.c.Broker != Kafka || !s.Cause[g][s.M[m].Item] {
		return false
	}
	part := s.M[m].Part
	owner := s.Owner[g][part]
	return owner > 0 && s.P[owner-1].Pos[part] > m && s.P[owner-1].Next[part] == 0
}
