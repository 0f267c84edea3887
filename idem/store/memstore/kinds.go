package memstore

import (
	"bytes"
	"fmt"
	"time"

	"github.com/idemq/idemq/idem/store"
)

// execution is one batch being executed at one instant, under the store's lock.
// Each operation works on a copy of its record and saves it, or leaves it alone.
type execution struct {
	s    *Store
	b    *store.Batch
	now  instant
	lost []Forgotten
}

func (x *execution) do(op *store.Op) store.Reply {
	switch op.Kind {
	case store.Begin:
		return x.begin(op)
	case store.Commit:
		return x.commit(op)
	case store.Release:
		return x.release(op)
	case store.Renew:
		return x.renew(op)
	case store.Bury:
		return x.bury(op)
	case store.Spend:
		return x.spend(op)
	case store.Forget:
		return x.forget(op)
	case store.Inspect:
		return x.inspect(op)
	case store.Issue:
		return x.issue(op)
	default:
		return x.check(op)
	}
}

func (x *execution) begin(op *store.Op) store.Reply {
	r := x.load(op)
	if r.state == store.Absent && x.barred(op) {
		return store.Reply{Status: store.Unknown}
	}
	if r.claim == op.Claim {
		switch r.state {
		case store.Running:
			x.startLease(&r)
			return x.saved(op, r, claimed(&r))
		case store.Released:
			return store.Reply{Status: store.Lost}
		}
	}

	held := r.state == store.Running && !x.runOut(&r) && !x.mayTakeOver(&r)
	redriven := op.Redrive > r.redrive && r.state != store.Done && !held
	if !redriven && conflicts(op, &r) {
		return store.Reply{Status: store.Conflict}
	}
	switch {
	case r.state == store.Done, r.state == store.Dead && !redriven:
		return x.duplicate(&r)
	case held:
		return x.inProgress(&r)
	case redriven:
		r.redrive, r.spent, r.expiries = op.Redrive, 0, 0
	case r.state == store.Running:
		r.spent++
		r.expiries++
	}
	if op.MaxExpiries > 0 && r.expiries >= op.MaxExpiries {
		return store.Reply{Status: store.NeedAlone, Spent: r.spent, Expiries: r.expiries, Redrive: r.redrive}
	}

	r.state, r.claim = store.Running, op.Claim
	r.attempt++
	r.owner, r.incarnation = x.b.Owner, x.b.Incarnation
	if op.Fingerprint != "" {
		r.fingerprint = op.Fingerprint
	}
	x.startLease(&r)
	return x.saved(op, r, claimed(&r))
}

func (x *execution) commit(op *store.Op) store.Reply {
	r := x.load(op)
	own := r.claim == op.Claim
	switch r.state {
	case store.Running:
		if !own {
			return store.Reply{Status: store.Lost}
		}
	case store.Absent, store.Released, store.Dead:
		if op.Attempt <= r.fence {
			return store.Reply{Status: store.Lost}
		}
	case store.Done:
		if own {
			return store.Reply{Status: store.OK}
		}
		return store.Reply{Status: store.Lost}
	default:
		return store.Reply{Status: store.Lost}
	}
	x.end(&r, store.Done, op.Claim)
	r.attempt = max(r.attempt, op.Attempt)
	r.result = bytes.Clone(op.Result)
	return x.saved(op, r, store.Reply{Status: store.OK})
}

func (x *execution) release(op *store.Op) store.Reply {
	r := x.load(op)
	if r.claim == op.Claim && r.state == store.Released {
		return store.Reply{Status: store.OK}
	}
	if r.claim != op.Claim || r.state != store.Running {
		return store.Reply{Status: store.Lost}
	}
	r.state = store.Released
	if op.Counted {
		r.spent++
	}
	return x.saved(op, r, store.Reply{Status: store.OK})
}

func (x *execution) renew(op *store.Op) store.Reply {
	r := x.load(op)
	if r.claim != op.Claim || r.state != store.Running {
		return store.Reply{Status: store.Lost}
	}
	x.startLease(&r)
	return x.saved(op, r, store.Reply{Status: store.OK})
}

func (x *execution) bury(op *store.Op) store.Reply {
	r := x.load(op)
	switch own := r.claim == op.Claim; {
	case own && r.state == store.Dead:
		return store.Reply{Status: store.OK}
	case own && r.state == store.Running, own && r.state == store.Done && r.bySpend:
		x.end(&r, store.Dead, op.Claim)
		return x.saved(op, r, store.Reply{Status: store.OK})
	}
	return store.Reply{Status: store.Lost}
}

func (x *execution) spend(op *store.Op) store.Reply {
	r := x.load(op)
	if r.state == store.Absent && x.barred(op) {
		return store.Reply{Status: store.Unknown}
	}
	if r.state == store.Done && r.bySpend && r.claim == op.Claim {
		return claimed(&r)
	}

	held := r.state == store.Running && !x.runOut(&r)
	redriven := op.Redrive > r.redrive && r.state != store.Done && !held
	if !redriven && conflicts(op, &r) {
		return store.Reply{Status: store.Conflict}
	}
	switch {
	case r.state == store.Done, r.state == store.Dead && !redriven:
		return x.duplicate(&r)
	case held:
		return store.Reply{Status: store.InProgress, RetryAfter: x.now.until(r.leaseEnd)}
	case redriven:
		r.redrive, r.spent, r.expiries = op.Redrive, 0, 0
	case r.state == store.Running:
		r.spent++
		r.expiries++
	}

	spent, expiries := r.spent, r.expiries
	x.end(&r, store.Done, op.Claim)
	r.spent, r.expiries, r.bySpend = spent, expiries, true
	r.attempt++
	if op.Fingerprint != "" {
		r.fingerprint = op.Fingerprint
	}
	return x.saved(op, r, claimed(&r))
}

func (x *execution) forget(op *store.Op) store.Reply {
	r := x.load(op)
	switch {
	case r.state == store.Absent, r.forgotBy != "" && r.forgotBy == op.Claim:
		return store.Reply{Status: store.OK}
	case r.state == store.Running && !x.runOut(&r):
		return store.Reply{Status: store.InProgress, RetryAfter: x.now.until(r.leaseEnd)}
	}
	return x.saved(op, record{
		state:    store.Forgotten,
		claim:    r.claim,
		attempt:  r.attempt,
		redrive:  r.redrive,
		fence:    r.attempt,
		forgotBy: op.Claim,
	}, store.Reply{Status: store.OK})
}

func (x *execution) inspect(op *store.Op) store.Reply {
	rec := &store.Record{}
	if e := x.s.table.get(x.key(op), x.now); e != nil {
		r := &e.record
		*rec = store.Record{
			State: r.state, Claim: r.claim, Attempt: r.attempt, Redrive: r.redrive,
			Fingerprint: r.fingerprint, Result: bytes.Clone(r.result),
			Expires: x.now.until(e.expires),
		}
		switch r.state {
		case store.Done, store.Dead:
			rec.At = x.s.start.Add(time.Duration(r.at))
		default:
			rec.Spent, rec.Expiries = r.spent, r.expiries
		}
		if r.state == store.Running {
			rec.Lease = x.now.until(r.leaseEnd)
			rec.Owner, rec.Incarnation = r.owner, r.incarnation
		}
	}
	if e := x.s.table.get(x.issuedKey(op), x.now); e != nil {
		rec.Issued, rec.Checked = true, e.checkedBy != ""
	}
	return store.Reply{Status: store.OK, Record: rec}
}

func (x *execution) issue(op *store.Op) store.Reply {
	k := x.issuedKey(op)
	e := x.s.table.get(k, x.now)
	if e == nil {
		var err error
		if e, err = x.add(k); err != nil {
			return store.Reply{Err: err}
		}
	}
	keep := x.now.plus(x.b.CheckWithin)
	if e.checkedBy == "" {
		e.checkBy = keep
	}
	if x.b.IssuedOnly {
		keep = max(keep, x.now.plus(x.b.Retention))
	}
	x.s.table.schedule(e, max(keep, e.expires))
	return store.Reply{Status: store.OK}
}

func (x *execution) check(op *store.Op) store.Reply {
	e := x.s.table.get(x.issuedKey(op), x.now)
	switch {
	case e == nil:
		return store.Reply{Status: store.Lost}
	case e.checkedBy == op.Claim:
		return store.Reply{Status: store.Claimed}
	case e.checkedBy != "", e.checkBy <= x.now:
		return store.Reply{Status: store.Lost}
	}
	e.checkedBy = op.Claim
	x.s.table.schedule(e, max(e.expires, x.now.plus(store.CheckMemory)))
	return store.Reply{Status: store.Claimed}
}

// Parts of the operations.

func (x *execution) key(op *store.Op) key {
	return key{prefix: x.b.Prefix, group: op.Group, token: op.Token}
}

func (x *execution) issuedKey(op *store.Op) key {
	return key{prefix: x.b.Prefix, token: op.Token, issued: true}
}

func (x *execution) load(op *store.Op) record {
	if e := x.s.table.get(x.key(op), x.now); e != nil {
		return e.record
	}
	return record{}
}

// saved keeps r as op's record and returns the reply, or an error if there is no
// room for a new record.
func (x *execution) saved(op *store.Op, r record, reply store.Reply) store.Reply {
	k := x.key(op)
	e := x.s.table.entries[k]
	if e == nil {
		var err error
		if e, err = x.add(k); err != nil {
			return store.Reply{Err: err}
		}
	}
	e.record = r
	expires := x.now.plus(x.b.Retention)
	if r.state == store.Running {
		expires = expires.plus(x.b.Lease)
	}
	x.s.table.schedule(e, expires)
	return reply
}

func (x *execution) add(k key) (*entry, error) {
	e, f := x.s.table.add(k)
	if e == nil {
		return nil, fmt.Errorf("%w: the memory store holds %d records, all in progress or released; raise WithMaxRecords",
			store.ErrFull, x.s.table.max)
	}
	if f != nil {
		x.lost = append(x.lost, Forgotten{
			Prefix: f.key.prefix, Group: f.key.group, Token: f.key.token,
			State: f.state, Issued: f.key.issued, Early: x.now.until(f.expires),
		})
	}
	return e, nil
}

// barred reports whether op, whose token has no record, is not admitted.
func (x *execution) barred(op *store.Op) bool {
	return x.b.IssuedOnly && op.Redrive == 0 && x.s.table.get(x.issuedKey(op), x.now) == nil
}

func conflicts(op *store.Op, r *record) bool {
	return op.Fingerprint != "" && r.fingerprint != "" && op.Fingerprint != r.fingerprint && op.Claim != r.claim
}

func (x *execution) startLease(r *record) {
	r.renewed, r.lease, r.leaseEnd = x.now, x.b.Lease, x.now.plus(x.b.Lease)
}

func (x *execution) runOut(r *record) bool { return r.leaseEnd <= x.now }

// takeoverAt is when a higher incarnation of r's owner may take r over.
func takeoverAt(r *record) instant { return r.renewed.plus(store.TakeoverAfter(r.lease)) }

func (x *execution) sameOwner(r *record) bool { return r.owner != "" && r.owner == x.b.Owner }

func (x *execution) mayTakeOver(r *record) bool {
	return x.sameOwner(r) && r.incarnation < x.b.Incarnation && takeoverAt(r) < x.now
}

// inProgress answers a Begin that meets somebody else's live claim.
func (x *execution) inProgress(r *record) store.Reply {
	reply := store.Reply{Status: store.InProgress, RetryAfter: x.now.until(r.leaseEnd)}
	if x.sameOwner(r) {
		switch {
		case r.incarnation < x.b.Incarnation:
			reply.RetryAfter = x.now.until(takeoverAt(r) + 1)
		case r.incarnation > x.b.Incarnation:
			reply.Status = store.Superseded
		}
	}
	return reply
}

// end makes r a completed record, done or dead, under a claim.
func (x *execution) end(r *record, s store.State, claim string) {
	r.state, r.claim, r.at = s, claim, x.now
	r.spent, r.expiries, r.bySpend, r.result = 0, 0, false, nil
	r.owner, r.incarnation = "", 0
}

func claimed(r *record) store.Reply {
	return store.Reply{Status: store.Claimed, Attempt: r.attempt, Spent: r.spent, Expiries: r.expiries, Redrive: r.redrive}
}

func (x *execution) duplicate(r *record) store.Reply {
	return store.Reply{
		Status: store.Duplicate, Attempt: r.attempt, Redrive: r.redrive,
		At: x.s.start.Add(time.Duration(r.at)), Dead: r.state == store.Dead, Result: bytes.Clone(r.result),
	}
}
