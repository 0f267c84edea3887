package model

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/rules"
)

// world makes the steps of a configuration. It is for one goroutine.
type world struct {
	c     *Config
	batch store.Batch
	exec  rules.Execution

	// emit takes each successor, with what breached and what windows were entered on the
	// way there. One that is not calm is a fault, a failure, or somebody's whim: nothing
	// that has to happen for messages to be handled.
	emit     func(n *State, l label, calm bool)
	breaches []string
	windows  []string
}

func newWorld(c *Config, emit func(*State, label, bool)) *world {
	w := &world{c: c, emit: emit}
	w.batch = store.Batch{Lease: lease, Retention: retention, CheckWithin: retention}
	w.exec = rules.Execution{Batch: &w.batch, Now: now, Time: func(rules.Instant) time.Time { return time.Time{} }}
	return w
}

// label says what a step was.
type label struct {
	p     int8 // process; -1: none
	msg   uint8
	claim uint8
	what  string
}

func (l label) String() string {
	var b strings.Builder
	if l.p >= 0 {
		fmt.Fprintf(&b, "process %d: ", l.p+1)
	}
	if l.msg > 0 {
		fmt.Fprintf(&b, "message %d: ", l.msg)
	}
	b.WriteString(l.what)
	if l.claim > 0 {
		fmt.Fprintf(&b, " (claim %d)", l.claim)
	}
	return b.String()
}

func (w *world) breach(what string) { w.breaches = append(w.breaches, what) }
func (w *world) window(what string) { w.windows = append(w.windows, what) }

func (w *world) send(s *State, l label, calm bool, f func(n *State)) {
	n := *s
	w.breaches, w.windows = w.breaches[:0], w.windows[:0]
	f(&n)
	w.emit(&n, l, calm)
}

// step is what goes on by itself.
func (w *world) step(s *State, l label, f func(n *State)) { w.send(s, l, true, f) }

// whim is what may happen, as often as the state lets it, and does not have to.
func (w *world) whim(s *State, l label, f func(n *State)) { w.send(s, l, false, f) }

// fault is one of the configuration's number, if it is among its kinds.
func (w *world) fault(kind Faults, s *State, l label, f func(n *State)) {
	if !w.c.may(kind) || s.Faults >= w.c.Faults {
		return
	}
	w.send(s, l, false, func(n *State) {
		n.Faults++
		f(n)
	})
}

// successors makes every step from s.
func (w *world) successors(s *State) {
	w.leases(s)
	w.forgetting(s)
	w.operator(s)
	w.lateCommands(s)
	w.checkers(s)
	for p := range w.c.Procs {
		w.process(s, p)
	}
}

// each calls f for the records of the configuration.
func (w *world) each(f func(g, t int)) {
	for g := range w.c.groups {
		for t := range w.c.tokens {
			f(g, t)
		}
	}
}

// renewer finds the slot whose process renews a claim.
func (w *world) renewer(s *State, g, t int) (p, i int, found bool) {
	id := s.Rec[g][t].Claim
	for p := range w.c.Procs {
		if w.c.Procs[p] != g {
			continue
		}
		for i := range s.P[p].S {
			if sl := &s.P[p].S[i]; sl.C == id && sl.Ph != none && w.c.token(s, sl) == t && renewed(sl) {
				return p, i, true
			}
		}
	}
	return 0, 0, false
}

func renewed(sl *slot) bool {
	switch sl.Ph {
	case claimed, running, backoff, retrying, returned, releasing, posting, burying:
		return !sl.is(fLost)
	}
	return false
}

// asked tells whether a claim's request is sent again, or given back, before its lease
// has run out, where nothing else comes in between.
func (w *world) asked(s *State, g, t int) bool {
	id := s.Rec[g][t].Claim
	for p := range w.c.Procs {
		if w.c.Procs[p] != g {
			continue
		}
		for i := range s.P[p].S {
			if sl := &s.P[p].S[i]; sl.Ph == asking && sl.C == id || sl.Ph == retrying && sl.C2 == id {
				return true
			}
		}
	}
	for i := range s.Late {
		if l := &s.Late[i]; l.Op == uint8(store.Release) && l.C == id {
			return true
		}
	}
	return false
}

// leases run out, at once where nobody renews them, else by a fault.
func (w *world) leases(s *State) {
	w.each(func(g, t int) {
		r := &s.Rec[g][t]
		if !r.running() {
			return
		}
		p, i, held := w.renewer(s, g, t)
		passes := func(what string, f func(n *State)) {
			l := label{p: -1, claim: r.Claim, what: what}
			if held {
				l.p, l.msg = int8(p), s.P[p].S[i].Msg
			}
			if held || w.asked(s, g, t) {
				w.fault(Lapse, s, l, f)
				return
			}
			w.step(s, l, f)
		}
		if r.Lease == fresh && w.c.Names != nil {
			passes("a renewal of the lease is overdue", func(n *State) { n.Rec[g][t].Lease = missed })
		}
		if r.Lease != over {
			passes("the lease runs out", func(n *State) {
				n.Rec[g][t].Lease = over
				n.blame(w.c, g, t)
				for p := range n.P {
					for i := range n.P[p].S {
						if sl := &n.P[p].S[i]; w.c.inGroup(p, g) && sl.Ph != none && sl.C == r.Claim && w.c.token(n, sl) == t {
							sl.F |= gOver
						}
					}
				}
			})
		}
		if held && r.Lease != fresh {
			w.step(s, label{p: int8(p), msg: s.P[p].S[i].Msg, claim: r.Claim, what: "the lease is renewed, late"}, func(n *State) {
				w.apply(n, g, t, store.Op{Kind: store.Renew, Claim: names[r.Claim]}, 0, 0)
				n.P[p].S[i].F &^= gOver
			})
		}
	})
}

func (c *Config) inGroup(p, g int) bool { return p < len(c.Procs) && c.Procs[p] == g }

// forgetting is a store that loses what it acknowledged: everything, or what its replica
// had not been given.
func (w *world) forgetting(s *State) {
	if s.Failovers >= w.c.Failovers {
		return
	}
	if w.c.Lagging && !s.Lags {
		w.whim(s, label{p: -1, what: "the store's replica lags behind from here on"}, func(n *State) {
			n.Lags, n.Snap = true, n.Rec
		})
		return
	}
	what := "the store forgets everything"
	if w.c.Lagging {
		what = "the replica becomes the store: what came after is forgotten"
	}
	w.whim(s, label{p: -1, what: what}, func(n *State) {
		n.Failovers++
		w.each(func(g, t int) {
			if n.Rec[g][t] != n.Snap[g][t] {
				n.lost(w, g, t, n.Rec[g][t].Claim, forgot)
				n.Rec[g][t] = n.Snap[g][t]
			}
			n.Given[g][t] = n.Rec[g][t].Attempt
			n.Snap[g][t] = record{}
			if !w.c.Lagging {
				n.Issued[t] = issued{}
			}
		})
		n.Lags = false
	})
}

// operator moves dead letters back, and has tokens forgotten.
func (w *world) operator(s *State) {
	if s.Forgets < w.c.Forgets {
		w.each(func(g, t int) {
			if r := &s.Rec[g][t]; r.St == uint8(store.Absent) || r.running() && r.Lease != over {
				return
			}
			w.whim(s, label{p: -1, what: fmt.Sprintf("the operator has token %d forgotten in group %d", t+1, g+1)}, func(n *State) {
				n.Forgets++
				w.apply(n, g, t, store.Op{Kind: store.Forget, Claim: names[n.newClaim()]}, 0, 0)
			})
		})
	}
	if s.Redrives < w.c.Redrives && int(s.NM) < maxMsgs {
		for g := range w.c.groups {
			for i := range w.c.Items {
				for k := range uint8(maxN) {
					if s.Dlq[g][i][k] == 0 {
						continue
					}
					w.whim(s, label{p: -1, msg: s.NM + 1, what: fmt.Sprintf("the operator moves a dead letter of message %d back, redrive number %d", i+1, k)}, func(n *State) {
						n.Dlq[g][i][k]--
						n.M[n.NM] = message{uint8(i), k, uint8(w.c.Items[i].Part)}
						n.NM++
						n.Redrives++
						n.Starts[g][i] = 0
					})
				}
			}
		}
	}
	if w.c.may(Expire) {
		for t := range w.c.tokens {
			if s.Issued[t].Known && !s.Issued[t].Over {
				w.fault(Expire, s, label{p: -1, what: fmt.Sprintf("the registration of token %d expires", t+1)}, func(n *State) {
					n.Issued[t] = issued{Over: true}
				})
			}
		}
	}
}

// lateCommands executes what was on its way for long.
func (w *world) lateCommands(s *State) {
	for i := range s.Late {
		l := &s.Late[i]
		if l.Op == 0 {
			continue
		}
		op := store.Op{
			Kind: store.Kind(l.Op), Claim: names[l.C], Attempt: int(l.A), Redrive: int(l.N),
			Fingerprint: names[l.FP], MaxExpiries: int(l.Max), Counted: l.Counted != 0,
		}
		w.step(s, label{p: -1, claim: l.C, what: "a late " + verbs[op.Kind] + " is executed"}, func(n *State) {
			n.Late[i] = late{}
			if r := &n.Rec[l.G][l.T]; op.Kind == store.Begin && r.Claim != l.C && !n.asks(l.C) {
				n.blame(w.c, int(l.G), int(l.T))
				w.window(winPhantom)
			}
			reply := w.apply(n, int(l.G), int(l.T), op, l.Owner, l.Inc)
			if op.Kind == store.Spend && reply.Status == store.Claimed || op.Kind == store.Commit && reply.Status == store.OK {
				n.Cause[l.G][l.Item] = true
			}
		})
	}
}

var verbs = map[store.Kind]string{
	store.Begin: "Begin", store.Commit: "Commit", store.Release: "Release", store.Renew: "Renew",
	store.Bury: "Bury", store.Spend: "Spend", store.Forget: "Forget", store.Check: "Check",
}

// delay leaves a command on its way, where there is room for one more.
func (s *State) delay(l late) {
	for i := range s.Late {
		if s.Late[i].Op == 0 {
			s.Late[i] = l
			return
		}
	}
}

func (s *State) mayDelay() bool {
	return slices.ContainsFunc(s.Late[:], func(l late) bool { return l.Op == 0 })
}

// winPhantom: the store remembers the last claim only, so it may grant an earlier one
// again. Nobody knows of it: it expires, or is released again, and that spends budget.
const winPhantom = "budget: a late Begin may claim under an id whose claim has ended"

// asks tells whether somebody waits for the answer to a claim's request.
func (s *State) asks(id uint8) bool {
	for p := range s.P {
		for i := range s.P[p].S {
			if sl := &s.P[p].S[i]; sl.Ph == asking && sl.C == id || sl.Ph == retrying && sl.C2 == id {
				return true
			}
		}
	}
	return false
}

// What a caller of Check has reached.
const (
	checkAsks = 1 + iota
	checkPassed
	checkRefused
)

// checkers ask for the first token, each until it has an answer.
func (w *world) checkers(s *State) {
	if !w.c.Checkers {
		return
	}
	for k := range s.Check {
		ch := &s.Check[k]
		l := label{p: int8(k), claim: ch.C, what: "Check"}
		exec := func(n *State) bool {
			was := n.Issued[0].CheckedBy
			reply := w.apply(n, 0, 0, store.Op{Kind: store.Check, Claim: names[n.Check[k].C]}, 0, 0)
			if was != 0 && was != n.Check[k].C && reply.Status == store.Claimed {
				w.breach("Check passed twice")
			}
			return reply.Status == store.Claimed
		}
		ask := func(n *State) {
			if n.Check[k].C == 0 {
				n.Check[k] = checker{checkAsks, n.newClaim()}
			}
		}
		if ch.Ph > checkAsks {
			continue
		}
		w.step(s, l, func(n *State) {
			ask(n)
			n.Check[k].Ph = checkRefused
			if exec(n) {
				n.Check[k].Ph = checkPassed
				if n.Passed++; n.Passed > 1 {
					w.breach("Check passed twice")
				}
			}
		})
		lost := l
		lost.what = "Check is executed, its answer is lost"
		w.fault(LostReply, s, lost, func(n *State) {
			ask(n)
			exec(n)
		})
		if ch.Ph == checkAsks {
			l.what = "the caller of Check gives up: it knows nothing"
			w.fault(Delay, s, l, func(n *State) {
				n.Check[k] = checker{Ph: checkRefused}
				n.Gave = true
			})
		}
	}
}
