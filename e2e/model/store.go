package model

import (
	"time"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/rules"
)

// The store's clock stands still: that time passes is a step of its own.
const (
	now       rules.Instant = 1 << 50
	lease                   = time.Minute
	retention               = time.Hour
	overdue                 = now - rules.Instant(lease/2)
)

// names are claim ids, owners, and fingerprints.
var names = func() (all [maxClaims]string) {
	for i := 1; i < maxClaims; i++ {
		all[i] = string([]byte{byte(i)})
	}
	return all
}()

func number(name string) uint8 {
	if name == "" {
		return 0
	}
	return name[0]
}

func (r *record) rules() rules.Record {
	x := rules.Record{
		State: store.State(r.St), Claim: names[r.Claim], Attempt: int(r.Attempt),
		Spent: int(r.Spent), Expiries: int(r.Expiries), Redrive: int(r.Redrive),
		Fence: int(r.Fence), ForgotBy: names[r.ForgotBy], BySpend: r.BySpend,
		Owner: names[r.Owner], Incarnation: uint64(r.Inc), Fingerprint: names[r.FP],
		Expires: now.Plus(retention),
	}
	if r.running() {
		x.Lease, x.Renewed = lease, now
		switch r.Lease {
		case missed:
			x.Renewed = overdue
		case over:
			x.Renewed = now - rules.Instant(lease)
		}
	}
	return x
}

// take is the other way. Counts beyond what anything depends on are cut off.
func (r *record) take(x *rules.Record, c *Config) {
	*r = record{
		St: uint8(x.State), Claim: number(x.Claim), Attempt: uint8(x.Attempt),
		Spent:    uint8(min(x.Spent, int(c.Budget)+1)),
		Expiries: uint8(min(x.Expiries, int(c.maxExpiries()))),
		Redrive:  uint8(x.Redrive), Fence: uint8(x.Fence), ForgotBy: number(x.ForgotBy), BySpend: x.BySpend,
		Owner: number(x.Owner), Inc: uint8(x.Incarnation), FP: number(x.Fingerprint),
	}
	if x.State != store.Running {
		return
	}
	switch x.Renewed {
	case now:
		r.Lease = fresh
	case overdue:
		r.Lease = missed
	default:
		r.Lease = over
	}
}

// apply has the store execute an operation on token t in group g, and looks at what it
// did.
func (w *world) apply(s *State, g, t int, op store.Op, owner, inc uint8) store.Reply {
	r, i := &s.Rec[g][t], &s.Issued[t]
	before := *r
	if reply, is := w.wrong(s, g, t, &op); is {
		return reply
	}
	x := r.rules()
	reg := rules.Issued{Known: i.Known, CheckBy: now.Plus(retention), CheckedBy: names[i.CheckedBy], Expires: now.Plus(retention)}
	if i.Over {
		reg.CheckBy = now
	}
	w.batch.IssuedOnly = w.c.IssuedOnly
	w.batch.Owner, w.batch.Incarnation = names[owner], uint64(inc)
	reply, changed := w.exec.Do(&op, &x, &reg)
	if !changed {
		return reply
	}
	if record, registration := rules.Needs(&op, &w.batch); record {
		r.take(&x, w.c)
		w.changed(s, g, t, &before, &op)
	} else if registration {
		*i = issued{Known: reg.Known, Over: reg.CheckBy <= now, CheckedBy: number(reg.CheckedBy)}
	}
	return reply
}

// changed holds what an operation did to a record to the promise.
func (w *world) changed(s *State, g, t int, before *record, op *store.Op) {
	r := &s.Rec[g][t]
	id := number(op.Claim)
	switch op.Kind {
	case store.Begin, store.Spend:
		if before.Claim == id && before.St == r.St {
			return // a repeat
		}
		if r.Attempt <= s.Given[g][t] {
			w.breach("an attempt number was given again, or a lower one")
		}
		s.Given[g][t] = r.Attempt
		if before.running() && before.Lease != over {
			w.mark(s, g, t, before.Claim, stolen)
			s.blame(w.c, g, t)
		}
		if r.Spent > s.Blame[g][t] {
			w.breach("more budget is spent than handlers failed and claims expired")
		}
		if op.Kind == store.Spend {
			s.Done[g][t] = true
		}
	case store.Commit:
		if before.running() && before.Claim != id {
			w.breach("a Commit was taken while another held the claim")
		}
		s.Done[g][t] = true
	case store.Release:
		if before.Claim != id {
			w.breach("a Release was taken that is not the holder's")
		}
	case store.Bury:
		s.Done[g][t] = false // a redrive may start it again
	case store.Forget:
		s.lost(w, g, t, before.Claim, fenced)
	}
	if r.Attempt < before.Attempt {
		w.breach("the attempt number went down")
	}
}

// lost notes that the store knows nothing any more of what it acknowledged.
func (s *State) lost(w *world, g, t int, claim, how uint8) {
	s.Done[g][t] = false
	s.Why[g][t] |= wForgot
	w.mark(s, g, t, claim, how)
}

// mark notes why a claim is not its holder's any more.
func (w *world) mark(s *State, g, t int, claim, how uint8) {
	if claim == 0 {
		return
	}
	for p := range w.c.Procs {
		if w.c.Procs[p] != g {
			continue
		}
		for i := range s.P[p].S {
			if sl := &s.P[p].S[i]; sl.Ph != none && sl.C == claim && w.c.token(s, sl) == t {
				sl.How = how
				if how == stolen {
					s.Why[g][t] |= wStolen
				}
			}
		}
	}
}

func (s *State) blame(c *Config, g, t int) {
	s.Blame[g][t] = min(s.Blame[g][t]+1, c.Budget+1)
}

// wrong answers for a store with a bug.
func (w *world) wrong(s *State, g, t int, op *store.Op) (store.Reply, bool) {
	r := &s.Rec[g][t]
	own := r.Claim == number(op.Claim)
	switch w.c.Bug {
	case ReleaseUnfenced:
		if op.Kind == store.Release && r.running() && !own {
			before := *r
			r.St = uint8(store.Released)
			w.changed(s, g, t, &before, op)
			return store.Reply{Status: store.OK}, true
		}
	case CommitUnfenced:
		if op.Kind == store.Commit && r.running() && !own {
			before := *r
			*r = record{St: uint8(store.Done), Claim: number(op.Claim), Attempt: r.Attempt, Redrive: r.Redrive}
			w.changed(s, g, t, &before, op)
			return store.Reply{Status: store.OK}, true
		}
	case RepeatRefused:
		switch {
		case op.Kind == store.Begin && r.running() && own:
			return store.Reply{Status: store.InProgress}, true
		case op.Kind == store.Spend && r.St == uint8(store.Done) && own:
			return store.Reply{Status: store.Duplicate}, true
		case op.Kind == store.Check && s.Issued[t].CheckedBy == number(op.Claim):
			return store.Reply{Status: store.Lost}, true
		}
	case AttemptRestarts:
		if op.Kind == store.Begin && r.St == uint8(store.Released) {
			r.Attempt = 0
		}
	case ReleaseCountsTwice:
		if op.Kind == store.Release && r.St == uint8(store.Released) && own && op.Counted {
			r.Spent = min(r.Spent+1, w.c.Budget+1)
		}
	case ForgetUnfenced:
		if op.Kind == store.Commit && r.St == uint8(store.Forgotten) {
			r.St, r.Fence = uint8(store.Absent), 0
		}
	case CheckTwice:
		if op.Kind == store.Check {
			s.Issued[t].CheckedBy = 0
		}
	case SolitudeIgnored:
		op.MaxExpiries = 0
	}
	return store.Reply{}, false
}
