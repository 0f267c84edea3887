package model

// fetch is what the broker and a process do with each other, but for settlements.
func (w *world) fetch(s *State, p int) {
	if w.c.Broker.isKafka() {
		for part := range w.c.parts() {
			w.kafka(s, p, part)
		}
		return
	}
	g := w.c.Procs[p]
	free := s.room(w.c, p, 0)
	for m := range s.NM {
		switch s.B[g][m] {
		case ready:
			if free && !s.P[p].Stop {
				w.step(s, label{p: int8(p), msg: m + 1, what: "delivered"}, func(n *State) {
					n.B[g][m] = uint8(p) + 1
					sl := slot{Msg: m + 1, Ph: queued}
					if w.c.Broker == JetStream && w.c.Limit > 0 {
						n.Count[g][m]++
					}
					if w.c.Limit > 0 && n.Count[g][m] >= w.c.Limit {
						sl.F |= fFinal
					}
					n.add(w.c, p, sl)
				})
			}
		case uint8(p) + 1:
			l := label{p: int8(p), msg: m + 1}
			switch {
			case !s.holds(p, m+1):
				l.what = "not acked in time: it will be delivered again"
				w.step(s, l, func(n *State) { w.c.back(n, g, int(m)) })
			case w.c.Broker == JetStream:
				l.what = "the ack wait passes though the message is held"
				w.fault(AckWait, s, l, func(n *State) { w.c.back(n, g, int(m)) })
			}
		}
	}
	if w.c.Broker == RabbitMQ && s.anyInFlight(g, p) {
		w.fault(ChanLoss, s, label{p: int8(p), what: "the channel is closed"}, func(n *State) { w.closeChannel(n, p) })
	}
}

func (c *Config) parts() int {
	n := 0
	for _, it := range c.Items {
		n = max(n, it.Part+1)
	}
	for _, part := range c.Parts {
		n = max(n, part+1)
	}
	return n
}

func (s *State) holds(p int, msg uint8) bool {
	for i := range s.P[p].S {
		if sl := &s.P[p].S[i]; sl.Ph != none && sl.Msg == msg && !sl.is(fGone) {
			return true
		}
	}
	return false
}

func (s *State) anyInFlight(g, p int) bool {
	for _, b := range s.B[g] {
		if b == uint8(p)+1 {
			return true
		}
	}
	return false
}

// closeChannel sends back what was in flight. What is held of it cannot be settled.
func (w *world) closeChannel(n *State, p int) {
	g := w.c.Procs[p]
	for m := range n.B[g] {
		if n.B[g][m] == uint8(p)+1 {
			w.c.back(n, g, m)
		}
	}
	for i := range n.P[p].S {
		if n.P[p].S[i].Ph != none {
			n.P[p].S[i].F |= fGone
		}
	}
	if w.c.BareChannel {
		n.P[p].Stop = true
	}
}

// back makes a message ready to be delivered again, or drops it beyond the limit.
func (c *Config) back(n *State, g, m int) {
	n.B[g][m] = ready
	if c.Limit == 0 {
		return
	}
	over := n.Count[g][m] >= c.Limit
	if c.Broker == RabbitMQ {
		n.Count[g][m]++
	}
	if over {
		n.B[g][m] = dropped
	}
}

// room tells whether a process takes another delivery, for its lane of a partition.
func (s *State) room(c *Config, p, part int) bool {
	inAll, inLane := 0, 0
	for i := range s.P[p].S {
		sl := &s.P[p].S[i]
		if sl.Ph == none {
			continue
		}
		inAll++
		if sl.Ph != marked && !sl.is(fGone) && (!c.Broker.isKafka() || int(s.M[sl.Msg-1].Part) == part) {
			inLane++
		}
	}
	return inAll < maxSlots && inLane < c.Hold
}

// add puts a delivery at the end of its lane.
func (s *State) add(c *Config, p int, sl slot) {
	s.arrange(c)
	all := &s.P[p].S
	free := -1
	for i := range all {
		x := &all[i]
		if x.Ph == none {
			if free < 0 {
				free = i
			}
			continue
		}
		if s.laneOf(c, x) == s.laneOf(c, &sl) && c.token(s, x) == c.token(s, &sl) && x.Ph != marked && x.Ph != left {
			sl.F |= fPrev
		}
	}
	all[free] = sl
}

// kafka is what happens between a process and a partition.
func (w *world) kafka(s *State, p, part int) {
	c, g := w.c, w.c.Procs[p]
	me := uint8(p) + 1
	pr := &s.P[p]
	owner := s.Owner[g][part]
	l := label{p: int8(p)}
	if owner == 0 && !pr.Stop {
		l.what = "is assigned the partition"
		w.step(s, l, func(n *State) {
			n.Owner[g][part] = me
			n.P[p].Pos[part] = n.Offset[g][part]
			if c.Broker == KafkaGroup {
				n.dropAssignment(p, part)
				n.P[p].Last[part] = 0
			}
		})
	}
	if owner == me {
		l.what = "loses the partition"
		w.fault(Rebalance, s, l, func(n *State) { n.Owner[g][part] = 0 })
		if m := s.nextIn(part, pr.Pos[part]); m < s.NM && !pr.Stop && s.room(c, p, part) {
			l.msg, l.what = m+1, "fetched"
			w.step(s, l, func(n *State) {
				q := &n.P[p]
				if m+1 <= q.Last[part] {
					n.dropAssignment(p, part)
				}
				q.Last[part], q.Pos[part] = m+1, m+1
				n.add(c, p, slot{Msg: m + 1, Ph: queued})
			})
			l.msg = 0
		}
	} else if c.Broker == KafkaGroup && s.anyOf(p, part) {
		l.what = "learns that the partition is lost"
		w.step(s, l, func(n *State) { n.dropAssignment(p, part) })
	}
	if next := pr.Next[part]; next > 0 {
		if c.Broker == KafkaGroup && owner != me && c.Bug != CommitsAnyGeneration {
			return
		}
		l.what = "commits its offset"
		w.step(s, l, func(n *State) {
			n.P[p].Next[part] = 0
			if next < n.Offset[g][part] && c.Broker == KafkaGroup {
				w.breach("a late commit moved the offset back")
			}
			for m := n.Offset[g][part]; m < next; m++ {
				if int(n.M[m].Part) == part {
					w.acked(n, g, m)
				}
			}
			n.Offset[g][part] = next
		})
	}
}

// nextIn is the first message of a partition from an offset on.
func (s *State) nextIn(part int, from uint8) uint8 {
	for m := from; m < s.NM; m++ {
		if int(s.M[m].Part) == part {
			return m
		}
	}
	return s.NM
}

func (s *State) anyOf(p, part int) bool {
	for i := range s.P[p].S {
		if sl := &s.P[p].S[i]; sl.Ph != none && !sl.is(fGone) && int(s.M[sl.Msg-1].Part) == part {
			return true
		}
	}
	return s.P[p].Next[part] > 0
}

// dropAssignment ends the lanes of a partition: what is done of it later changes nothing.
func (s *State) dropAssignment(p, part int) {
	for i := range s.P[p].S {
		sl := &s.P[p].S[i]
		if sl.Ph == none || int(s.M[sl.Msg-1].Part) != part {
			continue
		}
		if sl.Ph == marked || sl.Ph == left {
			*sl = slot{}
			continue
		}
		sl.F |= fGone
	}
	s.P[p].Next[part] = 0
}

// markDone marks a message, and moves what is to be committed over the prefix of what is
// done.
func (s *State) markDone(c *Config, p, i int) {
	all := &s.P[p].S
	part := int(s.M[all[i].Msg-1].Part)
	all[i] = slot{Msg: all[i].Msg, Ph: marked}
	if c.Bug == CommitsOverGap {
		s.P[p].Next[part] = max(s.P[p].Next[part], all[i].Msg)
		all[i] = slot{}
		return
	}
	for {
		first := -1
		for k := range all {
			x := &all[k]
			if x.Ph != none && !x.is(fGone) && int(s.M[x.Msg-1].Part) == part && (first < 0 || x.Msg < all[first].Msg) {
				first = k
			}
		}
		if first < 0 || all[first].Ph != marked {
			return
		}
		s.P[p].Next[part] = all[first].Msg
		all[first] = slot{}
	}
}

// acked looks at whether the broker may pass a message over.
func (w *world) acked(n *State, g int, m uint8) {
	if !n.Cause[g][n.M[m].Item] {
		w.breach("a message was acked without a cause")
	}
}

// settle acks, as far as the broker takes it, and ends the process's part.
func (w *world) settle(n *State, p, i int) {
	c, g := w.c, w.c.Procs[p]
	sl := &n.P[p].S[i]
	m := sl.Msg - 1
	w.outcome(n, p, i)
	switch {
	case c.Broker.isKafka():
		if !sl.is(fGone) {
			n.markDone(c, p, i)
			return
		}
	case c.Broker == RabbitMQ && sl.is(fGone):
		if c.Bug == SettlesAnywhere {
			for o := range n.B[g] {
				if n.B[g][o] == uint8(p)+1 {
					w.acked(n, g, uint8(o))
					n.B[g][o] = acked
					break
				}
			}
		}
	case n.B[g][m] != acked:
		w.acked(n, g, m)
		n.B[g][m] = acked
	}
	*sl = slot{}
}

// outcome tells the same token's next delivery in the lane what became of this one.
func (w *world) outcome(n *State, p, i int) {
	all := &n.P[p].S
	sl := &all[i]
	if !sl.is(fCompleted) && w.c.Bug != SharedOutcome {
		return
	}
	for k := i + 1; k < len(all); k++ {
		x := &all[k]
		if x.Ph != none && x.is(fPrev) && n.laneOf(w.c, x) == n.laneOf(w.c, sl) && w.c.token(n, x) == w.c.token(n, sl) {
			if n.M[x.Msg-1].N <= n.M[sl.Msg-1].N || w.c.Bug == SharedOutcome {
				x.F |= fPrevDone
			}
			return
		}
	}
}

// leave ends the process's part without settling.
func (w *world) leave(n *State, p, i int) {
	sl := &n.P[p].S[i]
	g, m := w.c.Procs[p], int(sl.Msg)-1
	if w.c.Broker.isKafka() && !sl.is(fGone) {
		*sl = slot{Msg: sl.Msg, Ph: left}
		return
	}
	if !w.c.Broker.isKafka() && !sl.is(fGone) {
		switch b := n.B[g][m]; {
		case w.c.Broker == JetStream && b != acked && b != dropped:
			w.c.back(n, g, m) // a Nak counts whoever has it now
		case b == uint8(p)+1:
			w.c.back(n, g, m)
		}
	}
	*sl = slot{}
}
