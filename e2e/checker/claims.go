package checker

import (
	"cmp"
	"encoding/binary"
	"math"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/idemq/idemq/e2e/history"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/rules"
)

// At most one claim is live at a time, and every answer of the store is one that the rules
// of package rules allow: the operations on a token are linearizable. An operation
// without an answer may have been executed at any time after it was sent, or never, or
// more than once.

// slack is how exact the times of answers are held to be: stores count in milliseconds,
// and some read their clock a moment before they look at the record.
const slack = rules.Instant(5 * time.Millisecond)

// searchTimeout bounds the search for an order of the operations on one token, which takes
// exponential time at worst.
const searchTimeout = 2 * time.Second

// operation is the input of the model: what was asked and answered, or that the store
// forgot.
type operation struct {
	asked, answer history.Event
	forgets       bool
	all           bool    // forgets everything
	loose         []loose // what may have been executed before it
}

// loose is an operation that may be executed at any time from earliest on, any number of
// times: nobody knows of its answer.
type loose struct {
	asked    history.Event
	earliest rules.Instant
}

// record is a rules.Record without what the answers here do not depend on, so that it can
// be compared.
type record struct {
	state                             store.State
	claim                             uint64
	attempt, spent, expiries, redrive int
	renewed                           rules.Instant
	lease                             time.Duration
	owner                             uint32
	incarnation                       uint64
}

// state is one that the store may be in.
type state struct {
	record
	// The lease was started at renewed at the earliest: by an operation whose time is not
	// known.
	uncertain bool
	past      *past // where stores forget
}

// past is the states before.
type past struct {
	record
	before *past
}

// claims checks the operations on one token.
func (c *check) claims(l *life, v *Verdict) {
	m := model{lease: c.Lease}
	if slices.ContainsFunc(c.Forgot, func(f Forgot) bool { return f.Since != 0 }) {
		m.pasts = map[past]*past{}
	}
	result := porcupine.Illegal
	// Clients send a command again whose reply was lost, and the first one may come late:
	// that every operation was executed once more is looked at only where it has to be.
	for _, resent := range []bool{false, true} {
		ops := c.operations(l, resent)
		if isSequential(ops) {
			if m.followsFrom(ops) {
				return
			}
			continue
		}
		result = porcupine.CheckOperationsTimeout(m.porcupine(), ops, searchTimeout)
		if result == porcupine.Ok {
			return
		}
	}
	if result == porcupine.Unknown {
		v.Undecided++
		return
	}
	v.violate(NotLinearizable, l, l.events[0].At, "no order of its operations explains all answers: two claims were live at a time, or the end of one was taken for another's")
}

// followsFrom executes the operations in their order.
func (m model) followsFrom(ops []porcupine.Operation) bool {
	states := []state{{}}
	for i := range ops {
		var next []state
		for _, s := range states {
			next = m.step(next, s, ops[i].Input.(*operation))
		}
		states = next
	}
	return len(states) > 0
}

// operations are those that were answered, and what the store forgot.
func (c *check) operations(l *life, resent bool) []porcupine.Operation {
	type key struct {
		process uint16
		op      uint8
		claim   uint64
	}
	var ops []porcupine.Operation
	var asked []history.Event // not answered, as far as one knows
	open := map[key][]history.Event{}
	for i := range l.events {
		e := &l.events[i]
		k := key{e.Process, e.Op, e.Claim}
		switch e.Kind {
		case history.Asked:
			open[k] = append(open[k], *e)
		case history.Answered:
			if len(open[k]) == 0 {
				continue
			}
			from := open[k][0]
			open[k] = open[k][1:]
			if e.Has(history.Failed) || resent {
				asked = append(asked, from)
			}
			if !e.Has(history.Failed) {
				ops = append(ops, porcupine.Operation{Input: &operation{asked: from, answer: *e}, Call: from.At, Return: e.At})
			}
		}
	}
	for _, left := range open {
		asked = append(asked, left...)
	}
	if len(ops) == 0 {
		return nil
	}
	for _, f := range c.Forgot {
		if f.Until >= ops[0].Call {
			ops = append(ops, porcupine.Operation{Input: &operation{forgets: true, all: f.Since == 0}, Call: f.At, Return: f.Until})
		}
	}
	slices.SortStableFunc(ops, func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
	for i := range ops {
		ops[i].ClientId = i
		op := ops[i].Input.(*operation)
		for _, e := range asked {
			if e.At < ops[i].Return && !op.forgets {
				op.add(loose{e, rules.Instant(e.At+c.offset) - slack})
			}
		}
	}
	return ops
}

// add adds what is loose, unless the same was sent before.
func (op *operation) add(x loose) {
	for i := range op.loose {
		if y := &op.loose[i]; y.asked.Claim == x.asked.Claim && y.asked.Op == x.asked.Op && y.asked.Flags == x.asked.Flags {
			y.earliest = min(y.earliest, x.earliest)
			return
		}
	}
	op.loose = append(op.loose, x)
}

// isSequential reports whether no operation was sent before the one before it was
// answered: then there is one order only.
func isSequential(ops []porcupine.Operation) bool {
	for i := range ops {
		if i > 0 && ops[i].Call <= ops[i-1].Return {
			return false
		}
	}
	return true
}

// model is how a store answers operations on one token.
type model struct {
	lease time.Duration
	pasts map[past]*past // where past states may come back: those there are, each once, so that pointers compare
}

func (m model) porcupine() porcupine.Model {
	nondeterministic := porcupine.NondeterministicModel{
		Init: func() []any { return []any{state{}} },
		Step: func(from, input, _ any) []any {
			next := m.step(nil, from.(state), input.(*operation))
			out := make([]any, len(next))
			for i, s := range next {
				out[i] = s
			}
			return out
		},
		Equal: func(a, b any) bool { return a.(state) == b.(state) },
	}
	return nondeterministic.ToModel()
}

// step appends the states that the store may be in after op to next, those that do not
// fit its answer left out.
func (m model) step(next []state, s state, op *operation) []state {
	if op.forgets {
		next = insert(next, state{})
		if op.all {
			return next
		}
		next = insert(next, s)
		for p := s.past; p != nil; p = p.before {
			next = insert(next, state{record: p.record})
		}
		return next
	}
	for _, now := range op.times() {
		for _, before := range m.reach(s, op.loose, now) {
			for _, from := range before.at(now) {
				to, reply, changed := m.do(from.record, &op.asked, now)
				if uint8(reply.Status) != op.answer.Status || reply.Status == store.Claimed && uint16(reply.Attempt) != op.answer.Attempt {
					continue
				}
				if !changed {
					next = insert(next, from)
					continue
				}
				next = insert(next, m.follow(&from, to, false))
			}
		}
	}
	return next
}

// follow is the state after from in which the record is to.
func (m model) follow(from *state, to record, uncertain bool) state {
	s := state{record: to, uncertain: uncertain, past: from.past}
	if m.pasts == nil || to == from.record {
		return s
	}
	p := past{from.record, from.past}
	if m.pasts[p] == nil {
		m.pasts[p] = &p
	}
	s.past = m.pasts[p]
	return s
}

// reach returns the states that s may have become by what is loose.
func (m model) reach(s state, all []loose, now rules.Instant) []state {
	states := []state{s}
	for i := 0; i < len(states); i++ {
		from := states[i]
		for j := range all {
			x := &all[j]
			for _, at := range x.times(&from, now) {
				if to, _, changed := m.do(from.record, &x.asked, at); changed {
					if to.state == store.Running && from.uncertain && to.claim == from.claim && from.renewed <= to.renewed {
						continue // that lease may have begun then already
					}
					states = insert(states, m.follow(&from, to, to.state == store.Running))
				}
			}
		}
	}
	return states
}

// insert adds a state, unless it is there.
func insert(all []state, s state) []state {
	for i := range all {
		a := &all[i]
		if a.uncertain && s.uncertain { // the earlier of two beginnings says more
			later, earlier := s, *a
			later.renewed, earlier.renewed = 0, 0
			if later == earlier && a.renewed <= s.renewed {
				return all
			}
		}
		if *a == s {
			return all
		}
	}
	return append(all, s)
}

// times are those at which an operation may have been executed.
func (op *operation) times() []rules.Instant {
	now := rules.Instant(op.answer.Store)
	switch {
	case now == 0: // a completion in a transaction: the time does not matter
		return []rules.Instant{math.MaxInt64 / 2}
	case store.Kind(op.asked.Op) != store.Begin:
		return []rules.Instant{now}
	}
	return []rules.Instant{now, now - slack, now + slack}
}

// at is what s may be at a time: a lease whose beginning is not known may have begun
// just now.
func (s state) at(now rules.Instant) []state {
	if !s.uncertain || s.state != store.Running || now <= s.renewed {
		return []state{s}
	}
	late := s
	late.renewed = now
	return []state{s, late}
}

// times are those, until now, at which what becomes of x may change.
func (x *loose) times(s *state, now rules.Instant) []rules.Instant {
	at := []rules.Instant{x.earliest}
	if s.state == store.Running && store.Kind(x.asked.Op) == store.Begin {
		for _, d := range []time.Duration{store.TakeoverAfter(s.lease) + 1, s.lease} {
			at = append(at, max(x.earliest, s.renewed.Plus(d)))
		}
	}
	return slices.DeleteFunc(at, func(t rules.Instant) bool { return t > now+slack })
}

func (m model) do(r record, asked *history.Event, now rules.Instant) (record, store.Reply, bool) {
	x := rules.Execution{
		Batch: &store.Batch{Lease: m.lease, Retention: time.Hour, Owner: ownerName(asked.Key), Incarnation: uint64(asked.Store)},
		Now:   now,
		Time:  func(rules.Instant) time.Time { return time.Time{} },
	}
	rec := rules.Record{
		State: r.state, Claim: claimName(r.claim), Attempt: r.attempt, Spent: r.spent, Expiries: r.expiries, Redrive: r.redrive,
		Renewed: r.renewed, Lease: r.lease, Owner: ownerName(r.owner), Incarnation: r.incarnation,
	}
	reply, changed := x.Do(&store.Op{
		Kind: store.Kind(asked.Op), Claim: claimName(asked.Claim), Attempt: int(asked.Attempt), Counted: asked.Has(history.Counted),
		MaxExpiries: int(asked.Until),
	}, &rec, &rules.Issued{})
	if !changed {
		return r, reply, false
	}
	to := record{
		state: rec.State, attempt: rec.Attempt, spent: rec.Spent, expiries: rec.Expiries, redrive: rec.Redrive,
		renewed: rec.Renewed, lease: rec.Lease, owner: r.owner, incarnation: rec.Incarnation, claim: r.claim,
	}
	if rec.Claim == claimName(asked.Claim) {
		to.claim = asked.Claim
	}
	switch rec.Owner {
	case "":
		to.owner = 0
	case ownerName(asked.Key):
		to.owner = asked.Key
	}
	return to, reply, true
}

func claimName(id uint64) string {
	if id == 0 {
		return ""
	}
	return string(binary.BigEndian.AppendUint64(nil, id))
}

func ownerName(hash uint32) string {
	if hash == 0 {
		return ""
	}
	return string(binary.BigEndian.AppendUint32(nil, hash))
}
