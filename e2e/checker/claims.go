package checker

import (
	"cmp"
	"context"
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
//
// Answers that ask to come back later prove nothing, and are not looked at: stores may
// give them without having looked at the record. Nor are those about issued tokens and
// payloads, which histories do not tell of.

// slack is how exact times are held to be: stores count in milliseconds, and some read
// their clock a moment before they look at the record.
const slack = rules.Instant(5 * time.Millisecond)

// searchTimeout bounds the search for an order of the operations on one token, which takes
// exponential time at worst.
const searchTimeout = 2 * time.Second

// request is an operation that was sent.
type request struct {
	op       store.Op
	claim    uint64
	owner    int32 // in model.names, as is the claim
	id       int32
	process  uint16
	at       int64
	earliest rules.Instant // when the store can have executed it
	batch    store.Batch
}

// operation is one that was answered, or that the store forgot.
type operation struct {
	*request
	answer   *history.Event
	latest   rules.Instant // when the store can have executed it
	call, re int64         // when it was sent, and when the answer was there

	forgets, all bool // instead: what came lately, or everything

	loose []*request // what may have been executed before it, at any time, any number of times
}

// claims checks the operations on one token.
func (c *check) claims(l *life, v *Verdict) {
	m := c.newModel(l)
	if len(m.ops) == 0 {
		return
	}
	// Clients send a command again whose reply was lost, and the first one may come late:
	// that every operation was executed once more is looked at only where it has to be.
	result := m.check(false)
	if result == porcupine.Illegal {
		if result = m.check(true); result == porcupine.Illegal {
			at, text := c.explain(l, m)
			c.violate(v, NotLinearizable, l, at, "%s", text)
		}
	}
	if result == porcupine.Unknown {
		v.Undecided++
	}
}

// newModel reads what was asked and answered.
func (c *check) newModel(l *life) *model {
	m := &model{Execution: rules.Execution{Time: func(rules.Instant) time.Time { return time.Time{} }}, lease: c.Lease, forgetful: c.NoDoneDetails, questions: c.Transactional}
	var open []*request
	for i := range l.events {
		e := &l.events[i]
		if e.Kind != history.Asked && e.Kind != history.Answered || store.Kind(e.Op) == store.Inspect || store.Kind(e.Op) >= store.Issue {
			continue
		}
		if e.Kind == history.Asked {
			r := m.request(e, c)
			open = append(open, r)
			m.sent = append(m.sent, r)
			continue
		}
		n := slices.IndexFunc(open, func(r *request) bool {
			return r.process == e.Process && r.claim == e.Claim && r.op.Kind == store.Kind(e.Op)
		})
		if n < 0 {
			continue
		}
		r := open[n]
		open = slices.Delete(open, n, n+1)
		for _, other := range open { // the answer may have been to either
			if other.process == r.process && other.claim == r.claim && other.op.Kind == r.op.Kind {
				other.at, other.earliest = r.at, r.earliest
			}
		}
		status := store.Status(e.Status)
		switch {
		case e.Has(history.Failed):
			m.unanswered = append(m.unanswered, r)
			continue
		case status == store.InProgress, status == store.Superseded, status == store.NeedAlone, status == store.Unknown, status == store.Conflict:
			continue
		case status == store.Claimed:
			m.attempts = max(m.attempts, int(e.Attempt))
		}
		op := operation{request: r, answer: e, call: r.at, re: e.At, latest: rules.Instant(e.At+c.ahead) + slack}
		if e.Store != 0 {
			op.latest = rules.Instant(e.Store) + slack
		}
		op.latest = max(op.latest, r.earliest)
		m.ops = append(m.ops, op)
	}
	m.unanswered = append(m.unanswered, open...)
	if len(m.ops) == 0 {
		return m
	}
	slices.SortStableFunc(m.unanswered, func(a, b *request) int { return cmp.Compare(a.at, b.at) })
	slices.SortStableFunc(m.sent, func(a, b *request) int { return cmp.Compare(a.at, b.at) })
	first := m.ops[0].call
	for _, op := range m.ops {
		first = min(first, op.call)
	}
	for _, f := range c.Forgot {
		if f.Until >= first {
			m.ops = append(m.ops, operation{forgets: true, all: f.Since == 0, call: f.At, re: f.Until, latest: rules.Instant(f.Until+c.ahead) + slack})
		}
	}
	slices.SortStableFunc(m.ops, func(a, b operation) int { return cmp.Compare(a.call, b.call) })
	return m
}

func (m *model) request(e *history.Event, c *check) *request {
	r := &request{
		claim: e.Claim, id: m.intern(e.Claim), process: e.Process, at: e.At, earliest: rules.Instant(e.At+c.behind) - slack,
		op: store.Op{Kind: store.Kind(e.Op), Attempt: int(e.Attempt), Counted: e.Has(history.Counted), MaxExpiries: int(e.Until)},
	}
	if e.Key != 0 {
		r.owner = m.intern(uint64(e.Key)<<32 | 1) // no claim's, as good as surely
	}
	r.op.Claim = m.names[r.id]
	r.batch = store.Batch{Lease: m.lease, Retention: time.Hour, Owner: m.names[r.owner], Incarnation: uint64(e.Store)}
	m.attempts = max(m.attempts, r.op.Attempt)
	m.expiries = max(m.expiries, r.op.MaxExpiries)
	return r
}

// check looks for an order of the operations that explains their answers. Resent:
// each may have been executed more than once.
func (m *model) check(resent bool) porcupine.CheckResult {
	m.prepare(resent)
	if m.isSequential() {
		if _, n := m.followed(); n < len(m.ops) {
			return m.verdict(porcupine.Illegal)
		}
		return porcupine.Ok
	}
	return m.verdict(porcupine.CheckOperationsTimeout(m.porcupine(), m.operations(), searchTimeout))
}

func (m *model) verdict(r porcupine.CheckResult) porcupine.CheckResult {
	if m.gaveUp && r == porcupine.Illegal {
		return porcupine.Unknown
	}
	return r
}

// prepare tells each operation what may have been executed before it.
func (m *model) prepare(resent bool) {
	loose := m.unanswered
	if resent {
		loose = m.sent
	}
	for i := range m.ops {
		op := &m.ops[i]
		if op.forgets {
			op.loose = before(m.sent, op.re)
		} else {
			op.loose = before(loose, op.re)
		}
	}
}

// before are the requests that were sent before a time, each claim's of one kind once.
func before(sent []*request, until int64) (some []*request) {
	for _, r := range sent {
		if r.at < until && !slices.ContainsFunc(some, func(s *request) bool {
			return s.id == r.id && s.op.Kind == r.op.Kind && s.op.MaxExpiries == r.op.MaxExpiries && s.op.Attempt == r.op.Attempt
		}) {
			some = append(some, r)
		}
	}
	return some
}

// isSequential reports whether no operation was sent before the one before it was
// answered: then there is one order only.
func (m *model) isSequential() bool {
	for i := range m.ops {
		if i > 0 && m.ops[i].call <= m.ops[i-1].re {
			return false
		}
	}
	return true
}

// followed executes the operations in their order, and returns the states before the
// first that does not fit, and its index.
func (m *model) followed() (states, int) {
	s := states{{}}
	for i := range m.ops {
		next := m.step(context.Background(), s, &m.ops[i])
		if len(next) == 0 {
			return s, i
		}
		s = next
	}
	return s, len(m.ops)
}

func (m *model) operations() []porcupine.Operation {
	ops := make([]porcupine.Operation, len(m.ops))
	for i := range m.ops {
		ops[i] = porcupine.Operation{ClientId: i, Input: &m.ops[i], Call: m.ops[i].call, Return: m.ops[i].re}
	}
	return ops
}

func (m *model) porcupine() porcupine.Model {
	return porcupine.Model{
		Init: func() any { return states{{}} },
		StepContext: func(ctx context.Context, s, op, _ any) (bool, any) {
			next := m.step(ctx, s.(states), op.(*operation))
			return len(next) > 0, next
		},
		Equal: func(a, b any) bool { return slices.Equal(a.(states), b.(states)) },
	}
}

// oddOne is the first operation whose answer fits in no order, and the states before it.
func (m *model) oddOne() (states, *operation) {
	m.prepare(false)
	if m.isSequential() {
		s, n := m.followed()
		if n == len(m.ops) {
			return nil, nil
		}
		return s, &m.ops[n]
	}
	_, info := porcupine.CheckOperationsVerbose(m.porcupine(), m.operations(), searchTimeout)
	var longest []porcupine.Operation
	for _, part := range info.PartialLinearizationsOperations() {
		for _, order := range part {
			if len(order) > len(longest) {
				longest = order
			}
		}
	}
	s := states{{}}
	done := map[*operation]bool{}
	for i := range longest {
		op := longest[i].Input.(*operation)
		done[op] = true
		s = m.step(context.Background(), s, op)
	}
	var odd *operation
	for i := range m.ops {
		if op := &m.ops[i]; !done[op] && !op.forgets && (odd == nil || op.re < odd.re) {
			odd = op
		}
	}
	return s, odd
}
