package checker

import (
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
// without an answer may have been executed at any time after it was sent, or never.

// slack is how exact the times of answers are held to be: stores count in milliseconds,
// and some read their clock a moment before they look at the record.
const slack = 5 * time.Millisecond

// operation is the input of the model: what was asked, and what is known of the answer.
type operation struct {
	asked    history.Event
	answered bool
	answer   history.Event
	earliest rules.Instant // not answered: when it was executed, at the earliest
	forgets  bool          // the store forgets, instead
	all      bool          // everything
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
	// The lease was started at renewed at the earliest: by an operation whose answer, and
	// so whose time, is not known.
	uncertain bool
	clock     rules.Instant // no earlier than what was assumed of operations without an answer
	past      *past         // where stores forget
}

// past is the states before.
type past struct {
	record
	before *past
}

// claims checks the operations on one token.
func (c *check) claims(l *life, v *Verdict) {
	ops := c.operations(l)
	if len(ops) == 0 {
		return
	}
	m := model{lease: c.Lease, remembers: len(c.Forgot) > 0}
	if isSequential(ops) && m.followsFrom(ops) {
		return
	}
	result := porcupine.CheckOperationsTimeout(m.porcupine(), ops, searchTimeout)
	if result == porcupine.Illegal {
		result = porcupine.CheckOperationsTimeout(m.porcupine(), resent(ops), searchTimeout)
	}
	switch result {
	case porcupine.Illegal:
		v.violate(NotLinearizable, l, ops[0].Call, "no order of its %d operations explains all answers: two claims were live at a time, or the end of one was taken for another's", len(ops))
	case porcupine.Unknown:
		v.violate(NotLinearizable, l, ops[0].Call, "whether an order of its %d operations explains all answers was not found out within %v", len(ops), searchTimeout)
	}
}

// searchTimeout bounds the search for an order, which takes exponential time at worst.
const searchTimeout = 30 * time.Second

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

// resent adds that each operation may have been executed once more, at any time after it
// was sent: clients send a command again whose reply was lost, and the first one may
// come late.
func resent(ops []porcupine.Operation) []porcupine.Operation {
	all := slices.Clone(ops)
	for _, op := range ops {
		in := op.Input.(*operation)
		if in.forgets || !in.answered {
			continue
		}
		again := *in
		again.answered = false
		all = append(all, porcupine.Operation{ClientId: len(all), Input: &again, Call: op.Call, Return: math.MaxInt64})
	}
	return all
}

// operations pairs what was asked with what was answered.
func (c *check) operations(l *life) []porcupine.Operation {
	var ops []porcupine.Operation
	type key struct {
		process uint16
		op      uint8
		claim   uint64
	}
	open := map[key][]int{}
	for i := range l.events {
		e := &l.events[i]
		k := key{e.Process, e.Op, e.Claim}
		switch e.Kind {
		case history.Asked:
			open[k] = append(open[k], len(ops))
			op := &operation{asked: *e, earliest: rules.Instant(e.At + c.offset - int64(slack))}
			ops = append(ops, porcupine.Operation{ClientId: len(ops), Input: op, Call: e.At, Return: math.MaxInt64})
		case history.Answered:
			if len(open[k]) == 0 {
				continue
			}
			at := open[k][0]
			open[k] = open[k][1:]
			if !e.Has(history.Failed) {
				op := ops[at].Input.(*operation)
				op.answered, op.answer = true, *e
				ops[at].Return = e.At
			}
		}
	}
	if len(ops) == 0 {
		return nil
	}
	for _, f := range c.Forgot {
		if f.Until >= ops[0].Call {
			op := &operation{forgets: true, all: f.Since == 0}
			ops = append(ops, porcupine.Operation{ClientId: len(ops), Input: op, Call: f.At, Return: f.Until})
		}
	}
	slices.SortStableFunc(ops, func(a, b porcupine.Operation) int { return int(min(max(a.Call-b.Call, -1), 1)) })
	return ops
}

// isSequential reports whether all operations were answered, none before the one before
// it: then there is one order only.
func isSequential(ops []porcupine.Operation) bool {
	for i := range ops {
		op := ops[i].Input.(*operation)
		if !op.answered && !op.forgets || i > 0 && ops[i].Call <= ops[i-1].Return {
			return false
		}
	}
	return true
}

// model is how a store answers operations on one token.
type model struct {
	lease     time.Duration
	remembers bool // past states may come back
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
	add := func(to state) {
		if m.remembers && to.record != s.record {
			to.past = &past{s.record, s.past}
		}
		if !slices.Contains(next, to) {
			next = append(next, to)
		}
	}
	switch {
	case op.forgets:
		next = append(next, state{})
		if op.all {
			return next
		}
		add(s)
		for p := s.past; p != nil; p = p.before {
			add(state{record: p.record})
		}
		return next
	case !op.answered:
		add(s) // it was never executed
		for _, at := range m.turns(&s, op) {
			if to, _, changed := m.do(s.record, op, at); changed {
				add(state{record: to, uncertain: to.state == store.Running, clock: at, past: s.past})
			}
		}
		return next
	}
	for _, at := range op.times() {
		if at < s.clock {
			continue
		}
		for _, from := range s.at(at) {
			to, reply, changed := m.do(from.record, op, at)
			if uint8(reply.Status) != op.answer.Status || reply.Status == store.Claimed && uint16(reply.Attempt) != op.answer.Attempt {
				continue
			}
			if !changed {
				add(from)
				continue
			}
			add(state{record: to, clock: s.clock, past: s.past})
		}
	}
	return next
}

// times are those at which an answered operation may have been executed.
func (op *operation) times() []rules.Instant {
	now := rules.Instant(op.answer.Store)
	if now == 0 {
		now = op.earliest // it does not matter
	}
	return []rules.Instant{now, now - rules.Instant(slack), now + rules.Instant(slack)}
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

// turns are the times at which the outcome of an operation without an answer may change,
// from when it was sent on.
func (m model) turns(s *state, op *operation) []rules.Instant {
	from := max(op.earliest, s.clock)
	at := []rules.Instant{from}
	if s.state == store.Running && store.Kind(op.asked.Op) == store.Begin {
		for _, d := range []time.Duration{store.TakeoverAfter(s.lease) + 1, s.lease} {
			at = append(at, max(from, s.renewed.Plus(d)))
		}
	}
	return at
}

func (m model) do(r record, op *operation, now rules.Instant) (record, store.Reply, bool) {
	asked := &op.asked
	x := rules.Execution{
		Batch: &store.Batch{Lease: m.lease, Retention: time.Hour, Owner: ownerName(asked.Key), Incarnation: uint64(asked.Seq)},
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
