package rules

import (
	"bytes"
	"fmt"
	"time"

	"github.com/idemq/idemq/idem/store"
)

// Needs tells what an operation reads, and may change: the record of its token in its
// group, the registration of its token in the prefix, or both.
func Needs(op *store.Op, b *store.Batch) (record, issued bool) {
	switch op.Kind {
	case store.Issue, store.Check:
		return false, true
	case store.Inspect:
		return true, true
	case store.Begin, store.Spend:
		return true, b.IssuedOnly
	}
	return true, false
}

// Execution is a batch being executed at one instant.
type Execution struct {
	Batch *store.Batch // its terms; Ops and Replies are not looked at
	Now   Instant      // the store's clock
	// Time turns an Instant of the driver's into a time.
	Time func(Instant) time.Time
}

// Do executes op on its record and its registration, which were read as [Needs] says,
// are not expired at x.Now, and may be zero; what is not needed may be nil. If it
// reports a change, the driver has to write what op needs back before it answers with
// the reply; otherwise nothing was changed. Slices are copied, strings are shared.
func (x *Execution) Do(op *store.Op, r *Record, i *Issued) (reply store.Reply, changed bool) {
	switch op.Kind {
	case store.Begin:
		return x.begin(op, r, i)
	case store.Commit:
		return x.commit(op, r)
	case store.Release:
		return x.release(op, r)
	case store.Renew:
		return x.renew(op, r)
	case store.Bury:
		return x.bury(op, r)
	case store.Spend:
		return x.spend(op, r, i)
	case store.Forget:
		return x.forget(op, r)
	case store.Inspect:
		return x.inspect(r, i), false
	case store.Issue:
		return x.issue(i)
	case store.Check:
		return x.check(op, i)
	default:
		return store.Reply{Err: fmt.Errorf("there is no operation of kind %d", op.Kind)}, false
	}
}

func answer(s store.Status) (store.Reply, bool) { return store.Reply{Status: s}, false }

func (x *Execution) begin(op *store.Op, r *Record, i *Issued) (store.Reply, bool) {
	if x.barred(op, r, i) {
		return answer(store.Unknown)
	}
	if r.Claim == op.Claim {
		switch r.State {
		case store.Running:
			x.startLease(r)
			return x.saved(r, claimed(r))
		case store.Released, store.Forgotten:
			return answer(store.Lost)
		}
	}

	held := r.State == store.Running && !x.runOut(r) && !x.mayTakeOver(r)
	redriven := op.Redrive > r.Redrive && r.State != store.Done && !held
	if !redriven && conflicts(op, r) {
		return answer(store.Conflict)
	}
	spent, expiries, redrive := r.Spent, r.Expiries, r.Redrive
	switch {
	case r.State == store.Done, r.State == store.Dead && !redriven:
		return x.duplicate(r), false
	case held:
		return x.inProgress(r), false
	case redriven:
		redrive, spent, expiries = op.Redrive, 0, 0
	case r.State == store.Running:
		spent++
		expiries++
	}
	if op.MaxExpiries > 0 && expiries >= op.MaxExpiries {
		return store.Reply{Status: store.NeedAlone, Spent: spent, Expiries: expiries, Redrive: redrive}, false
	}

	take(op, r)
	r.Spent, r.Expiries, r.Redrive = spent, expiries, redrive
	r.State, r.Claim = store.Running, op.Claim
	r.Owner, r.Incarnation = x.Batch.Owner, x.Batch.Incarnation
	x.startLease(r)
	return x.saved(r, claimed(r))
}

func (x *Execution) commit(op *store.Op, r *Record) (store.Reply, bool) {
	own := r.Claim == op.Claim
	switch r.State {
	case store.Running:
		if !own || op.Attempt <= r.Fence {
			return answer(store.Lost)
		}
	case store.Absent, store.Released, store.Dead:
		if op.Attempt <= r.Fence {
			return answer(store.Lost)
		}
	case store.Done:
		if own {
			return answer(store.OK)
		}
		return answer(store.Lost)
	default:
		return answer(store.Lost)
	}
	x.end(r, store.Done, op.Claim)
	r.Attempt = max(r.Attempt, op.Attempt)
	r.Result = bytes.Clone(op.Result)
	return x.saved(r, store.Reply{Status: store.OK})
}

func (x *Execution) release(op *store.Op, r *Record) (store.Reply, bool) {
	if r.Claim == op.Claim && r.State == store.Released {
		return answer(store.OK)
	}
	if r.Claim != op.Claim || r.State != store.Running {
		return answer(store.Lost)
	}
	r.State = store.Released
	if op.Counted {
		r.Spent++
	}
	return x.saved(r, store.Reply{Status: store.OK})
}

func (x *Execution) renew(op *store.Op, r *Record) (store.Reply, bool) {
	if r.Claim != op.Claim || r.State != store.Running {
		return answer(store.Lost)
	}
	x.startLease(r)
	return x.saved(r, store.Reply{Status: store.OK})
}

func (x *Execution) bury(op *store.Op, r *Record) (store.Reply, bool) {
	switch own := r.Claim == op.Claim; {
	case own && r.State == store.Dead:
		return answer(store.OK)
	case own && r.State == store.Running, own && r.State == store.Done && r.BySpend:
		x.end(r, store.Dead, op.Claim)
		return x.saved(r, store.Reply{Status: store.OK})
	}
	return answer(store.Lost)
}

func (x *Execution) spend(op *store.Op, r *Record, i *Issued) (store.Reply, bool) {
	if x.barred(op, r, i) {
		return answer(store.Unknown)
	}
	if r.Claim == op.Claim {
		switch {
		case r.State == store.Done && r.BySpend:
			return claimed(r), false
		case r.State == store.Forgotten:
			return answer(store.Lost)
		}
	}

	held := r.State == store.Running && !x.runOut(r)
	redriven := op.Redrive > r.Redrive && r.State != store.Done && !held
	if !redriven && conflicts(op, r) {
		return answer(store.Conflict)
	}
	spent, expiries := r.Spent, r.Expiries
	switch {
	case r.State == store.Done, r.State == store.Dead && !redriven:
		return x.duplicate(r), false
	case held:
		return store.Reply{Status: store.InProgress, RetryAfter: x.Now.Until(r.LeaseEnd())}, false
	case redriven:
		r.Redrive, spent, expiries = op.Redrive, 0, 0
	case r.State == store.Running:
		spent++
		expiries++
	}

	take(op, r)
	x.end(r, store.Done, op.Claim)
	r.Spent, r.Expiries, r.BySpend = spent, expiries, true
	return x.saved(r, claimed(r))
}

func (x *Execution) forget(op *store.Op, r *Record) (store.Reply, bool) {
	switch {
	case r.State == store.Absent, r.ForgotBy != "" && r.ForgotBy == op.Claim:
		return answer(store.OK)
	case r.State == store.Running && !x.runOut(r):
		return store.Reply{Status: store.InProgress, RetryAfter: x.Now.Until(r.LeaseEnd())}, false
	}
	*r = Record{
		State:    store.Forgotten,
		Claim:    r.Claim,
		Attempt:  r.Attempt,
		Redrive:  r.Redrive,
		Fence:    r.Attempt,
		ForgotBy: op.Claim,
	}
	return x.saved(r, store.Reply{Status: store.OK})
}

func (x *Execution) inspect(r *Record, i *Issued) store.Reply {
	rec := &store.Record{
		State: r.State, Claim: r.Claim, Attempt: r.Attempt, Redrive: r.Redrive,
		Fingerprint: r.Fingerprint, Result: bytes.Clone(r.Result),
	}
	if r.State != store.Absent {
		rec.Expires = x.Now.Until(r.Expires)
	}
	switch r.State {
	case store.Done, store.Dead:
		rec.At = x.Time(r.At)
	default:
		rec.Spent, rec.Expiries = r.Spent, r.Expiries
	}
	if r.State == store.Running {
		rec.Lease = x.Now.Until(r.LeaseEnd())
		rec.Owner, rec.Incarnation = r.Owner, r.Incarnation
	}
	rec.Issued, rec.Checked = i.Known, i.CheckedBy != ""
	return store.Reply{Status: store.OK, Record: rec}
}

func (x *Execution) issue(i *Issued) (store.Reply, bool) {
	i.Known = true
	keep := x.Now.Plus(x.Batch.CheckWithin)
	if i.CheckedBy == "" {
		i.CheckBy = keep
	}
	if x.Batch.IssuedOnly {
		keep = max(keep, x.Now.Plus(x.Batch.Retention))
	}
	i.Expires = max(keep, i.Expires)
	return store.Reply{Status: store.OK}, true
}

func (x *Execution) check(op *store.Op, i *Issued) (store.Reply, bool) {
	switch {
	case !i.Known:
		return answer(store.Lost)
	case i.CheckedBy == op.Claim:
		return answer(store.Claimed)
	case i.CheckedBy != "", i.CheckBy <= x.Now:
		return answer(store.Lost)
	}
	i.CheckedBy = op.Claim
	i.Expires = max(i.Expires, x.Now.Plus(store.CheckMemory))
	return store.Reply{Status: store.Claimed}, true
}

// saved keeps the changed record for as long as its state wants.
func (x *Execution) saved(r *Record, reply store.Reply) (store.Reply, bool) {
	r.Expires = x.Now.Plus(x.Batch.Retention)
	if r.State == store.Running {
		r.Expires = r.Expires.Plus(x.Batch.Lease)
	}
	return reply, true
}

// barred reports whether op, whose token has no record, is not admitted.
func (x *Execution) barred(op *store.Op, r *Record, i *Issued) bool {
	return x.Batch.IssuedOnly && r.State == store.Absent && op.Redrive == 0 && !i.Known
}

// take counts the claim that op is granted, of its payload. Claims of another payload are
// fenced off: what they complete is not this one.
func take(op *store.Op, r *Record) {
	if conflicts(op, r) {
		r.Fence = r.Attempt
	}
	if op.Fingerprint != "" {
		r.Fingerprint = op.Fingerprint
	}
	r.Attempt++
}

func conflicts(op *store.Op, r *Record) bool {
	return op.Fingerprint != "" && r.Fingerprint != "" && op.Fingerprint != r.Fingerprint && op.Claim != r.Claim
}

func (x *Execution) startLease(r *Record) { r.Renewed, r.Lease = x.Now, x.Batch.Lease }

func (x *Execution) runOut(r *Record) bool { return r.LeaseEnd() <= x.Now }

// takeoverAt is when a higher incarnation of r's owner may take r over.
func takeoverAt(r *Record) Instant { return r.Renewed.Plus(store.TakeoverAfter(r.Lease)) }

func (x *Execution) sameOwner(r *Record) bool { return r.Owner != "" && r.Owner == x.Batch.Owner }

func (x *Execution) mayTakeOver(r *Record) bool {
	return x.sameOwner(r) && r.Incarnation < x.Batch.Incarnation && takeoverAt(r) < x.Now
}

// inProgress answers a Begin that meets somebody else's live claim.
func (x *Execution) inProgress(r *Record) store.Reply {
	reply := store.Reply{Status: store.InProgress, RetryAfter: x.Now.Until(r.LeaseEnd())}
	if x.sameOwner(r) {
		switch {
		case r.Incarnation < x.Batch.Incarnation:
			reply.RetryAfter = x.Now.Until(takeoverAt(r) + 1)
		case r.Incarnation > x.Batch.Incarnation:
			reply.Status = store.Superseded
		}
	}
	return reply
}

// end makes r a completed record, done or dead, under a claim.
func (x *Execution) end(r *Record, s store.State, claim string) {
	r.State, r.Claim, r.At = s, claim, x.Now
	r.Spent, r.Expiries, r.BySpend, r.Result = 0, 0, false, nil
	r.Owner, r.Incarnation = "", 0
}

func claimed(r *Record) store.Reply {
	return store.Reply{Status: store.Claimed, Attempt: r.Attempt, Spent: r.Spent, Expiries: r.Expiries, Redrive: r.Redrive}
}

func (x *Execution) duplicate(r *Record) store.Reply {
	return store.Reply{
		Status: store.Duplicate, Attempt: r.Attempt, Redrive: r.Redrive,
		At: x.Time(r.At), Dead: r.State == store.Dead, Result: bytes.Clone(r.Result),
	}
}
