package checker

import (
	"cmp"
	"context"
	"encoding/binary"
	"slices"
	"time"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/rules"
)

// model is how a store answers operations on one token.
type model struct {
	rules.Execution
	lease      time.Duration
	forgetful  bool // who completed a token is not known
	questions  bool // a Commit may ask what became of a handler's transaction
	ops        []operation
	sent       []*request
	unanswered []*request // of those sent

	// No answer tells of more attempts and expiries than these: beyond them all are the same.
	attempts, expiries int

	hashes []uint64 // of names
	names  []string // of claims and owners; the first is none
	gaveUp bool

	moments [3]rules.Instant // what times returns
}

// record is a rules.Record without what the answers here do not depend on, so that it can
// be compared.
type record struct {
	state    store.State
	bySpend  bool
	claim    int32 // in names, as the next two
	owner    int32
	forgotBy int32
	attempt  int
	fence    int
	expiries int
	// Since when, at the earliest, the lease runs. Nobody knows more: answers come after
	// what they answer. So a claim is proven to be live only as long as it was from then on.
	renewed     rules.Instant
	incarnation uint64
}

// states are those that the store may be in, in the order of compare. Of records that
// differ in renewed alone there is the one that is the earliest: it can become all that
// the others can.
type states []record

// maxStates is where the model gives up.
const maxStates = 3000

func compare(a, b record) int {
	return cmp.Or(cmp.Compare(a.state, b.state), cmp.Compare(a.claim, b.claim), cmp.Compare(a.attempt, b.attempt), cmp.Compare(a.expiries, b.expiries),
		cmp.Compare(a.owner, b.owner), cmp.Compare(a.incarnation, b.incarnation), cmp.Compare(a.fence, b.fence), cmp.Compare(a.forgotBy, b.forgotBy),
		compareBool(a.bySpend, b.bySpend))
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// insert adds a record, unless there is one that is as good, and reports whether it did.
func (s *states) insert(r record) bool {
	i, is := slices.BinarySearchFunc(*s, r, compare)
	switch {
	case !is:
		*s = slices.Insert(*s, i, r)
	case (*s)[i].renewed <= r.renewed:
		return false
	default:
		(*s)[i] = r
	}
	return true
}

// step returns the states that the store may be in after op.
func (m *model) step(ctx context.Context, s states, op *operation) (next states) {
	if op.forgets {
		if op.all {
			return states{{}}
		}
		from := slices.Clone(s)
		from.insert(record{})
		return m.reach(ctx, from, op.loose, op.latest)
	}
	for _, from := range m.reach(ctx, s, op.loose, op.latest) {
		if m.questions && op.learnsOfRollback(&from) {
			next.insert(from)
			continue
		}
		for _, at := range m.times(&from, op.request, op.latest) {
			to, reply, _ := m.do(from, op.request, at)
			if op.answeredBy(&reply) {
				next.insert(to)
				break // later ones become no more
			}
		}
	}
	return next
}

// learnsOfRollback reports whether op is a Commit that was answered as where the handler's
// transaction is not there, and the claim not held any more: a Commit on its own would complete
// what is released, and this one has nothing to complete.
func (op *operation) learnsOfRollback(r *record) bool {
	held := r.claim == op.id && (r.state == store.Running || r.state == store.Done)
	return op.op.Kind == store.Commit && store.Status(op.answer.Status) == store.Lost && !held
}

func (op *operation) answeredBy(r *store.Reply) bool {
	return uint8(r.Status) == op.answer.Status && (r.Status != store.Claimed || uint16(r.Attempt) == op.answer.Attempt)
}

// reach returns the states that s may have become by what is loose, until a time.
func (m *model) reach(ctx context.Context, s states, loose []*request, until rules.Instant) states {
	if len(loose) == 0 {
		return s
	}
	all := slices.Clone(s)
	for todo := slices.Clone(s); len(todo) > 0; todo = todo[1:] {
		if len(all) > maxStates || ctx.Err() != nil {
			m.gaveUp = true
			return nil
		}
		for _, r := range loose {
			if from := &todo[0]; from.state == store.Running && from.claim == r.id && (r.op.Kind == store.Begin || r.op.Kind == store.Renew) {
				continue // a lease that begins later only makes less possible
			}
			for _, at := range m.times(&todo[0], r, until) {
				if to, _, changed := m.do(todo[0], r, at); changed {
					if all.insert(to) {
						todo = append(todo, to)
					}
					break // later ones become no more
				}
			}
		}
	}
	return all
}

// times are those, in their order, from which on a request may be answered otherwise.
func (m *model) times(s *record, r *request, until rules.Instant) []rules.Instant { // valid until the next call
	at := append(m.moments[:0], r.earliest)
	if s.state == store.Running && s.claim != r.id {
		for _, d := range [...]time.Duration{store.TakeoverAfter(m.lease) + 1, m.lease} {
			if t := s.renewed.Plus(d); t > r.earliest && t <= until {
				at = append(at, t)
			}
		}
	}
	return at
}

// do executes a request.
func (m *model) do(r record, req *request, now rules.Instant) (record, store.Reply, bool) {
	if m.forgetful && r.state == store.Done && req.op.Kind == store.Commit {
		return r, store.Reply{Status: store.OK}, false
	}
	m.Batch, m.Now = &req.batch, now
	rec := rules.Record{
		State: r.state, Claim: m.names[r.claim], Attempt: r.attempt, Expiries: r.expiries, Fence: r.fence, ForgotBy: m.names[r.forgotBy], BySpend: r.bySpend,
		Renewed: r.renewed, Lease: m.lease, Owner: m.names[r.owner], Incarnation: r.incarnation,
	}
	reply, changed := m.Do(&req.op, &rec, nil)
	if !changed {
		return r, reply, false
	}
	to := record{
		state: rec.State, bySpend: rec.BySpend, claim: r.claim, owner: r.owner, forgotBy: r.forgotBy,
		attempt: min(rec.Attempt, m.attempts+1), fence: rec.Fence, expiries: min(rec.Expiries, m.expiries),
	}
	if rec.Claim == req.op.Claim {
		to.claim = req.id
	}
	if rec.ForgotBy == req.op.Claim {
		to.forgotBy = req.id
	}
	if rec.State == store.Running { // else they do not matter any more
		to.renewed, to.incarnation = rec.Renewed, rec.Incarnation
		if rec.Owner == req.batch.Owner {
			to.owner = req.owner
		}
	} else {
		to.owner = 0
	}
	return to, reply, true
}

// intern gives what is hashed a number, and a name that is as long.
func (m *model) intern(hash uint64) int32 {
	if len(m.names) == 0 {
		m.hashes, m.names = []uint64{0}, []string{""}
	}
	if i := slices.Index(m.hashes[1:], hash); i >= 0 {
		return int32(i + 1)
	}
	m.hashes = append(m.hashes, hash)
	m.names = append(m.names, string(binary.BigEndian.AppendUint64(nil, hash)))
	return int32(len(m.names) - 1)
}
