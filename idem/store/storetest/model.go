package storetest

import (
	"time"

	"github.com/idemq/idemq/idem/store"
)

// This file is the text of package store once more, as a function: what one
// operation does to one record at one time, and what it is answered. It is
// written to be read beside that text, and knows nothing of expiry, which
// histories stay clear of.

// modelRecord is what a store must know of a token in a group. The zero value is
// an absent one.
type modelRecord struct {
	state                             store.State
	claim                             string
	attempt, spent, expiries, redrive int
	at                                time.Time
	renewed                           time.Time
	lease                             time.Duration
	owner                             string
	incarnation                       uint64
	fingerprint, result               string
	spender                           bool   // done, by Spend
	spentBefore                       int    // done by Spend: what its answer said
	forgetter                         string // the claim id of the last Forget
	fence                             int    // attempts that were made before it, or before a redrive of another payload
	changed                           time.Time
}

// modelToken is what a store must know of an issued token.
type modelToken struct {
	issued  bool
	checker string // the claim id of the Check that spent it; empty if none did
}

func (r *modelRecord) leaseLeft(now time.Time) time.Duration { return r.renewed.Add(r.lease).Sub(now) }

func (r *modelRecord) live(now time.Time) bool {
	return r.state == store.Running && r.leaseLeft(now) > 0
}

// step executes op, of batch b, at the time now.
func step(r modelRecord, t modelToken, b *store.Batch, op *store.Op, now time.Time) (modelRecord, modelToken, store.Reply) {
	var status store.Status
	switch op.Kind {
	case store.Begin:
		r, rep := stepBegin(r, t, b, op, now)
		return r, t, rep
	case store.Spend:
		r, rep := stepSpend(r, t, b, op, now)
		return r, t, rep
	case store.Forget:
		r, rep := stepForget(r, op, now)
		return r, t, rep
	case store.Commit:
		r, status = stepCommit(r, op, now)
	case store.Release:
		r, status = stepRelease(r, op, now)
	case store.Renew:
		r, status = stepRenew(r, b, op, now)
	case store.Bury:
		r, status = stepBury(r, op, now)
	case store.Issue:
		t.issued, status = true, store.OK
	case store.Check:
		t, status = stepCheck(t, op)
	case store.Inspect:
		status = store.OK
	}
	return r, t, store.Reply{Status: status}
}

func stepBegin(old modelRecord, t modelToken, b *store.Batch, op *store.Op, now time.Time) (modelRecord, store.Reply) {
	if b.IssuedOnly && old.state == store.Absent && op.Redrive == 0 && !t.issued {
		return old, store.Reply{Status: store.Unknown}
	}
	r := old
	own := r.claim == op.Claim
	if own && r.state == store.Running {
		r.renewed, r.lease, r.changed = now, b.Lease, now
		return r, claimedReply(&r)
	}
	if own && (r.state == store.Released || r.state == store.Forgotten) {
		return old, store.Reply{Status: store.Lost}
	}

	// A claim that is live for this batch, and what it is answered.
	live, wait := r.live(now), store.Reply{Status: store.InProgress, RetryAfter: r.leaseLeft(now)}
	if live && b.Owner != "" && b.Owner == r.owner {
		switch untilTakeover := r.renewed.Add(store.TakeoverAfter(r.lease)).Sub(now); {
		case b.Incarnation > r.incarnation && untilTakeover < 0:
			live = false
		case b.Incarnation > r.incarnation:
			wait.RetryAfter = untilTakeover
		case b.Incarnation < r.incarnation:
			wait.Status = store.Superseded
		}
	}

	accepted := op.Redrive > r.redrive && !live && r.state != store.Done
	if differ(op, &old) && !accepted {
		return old, store.Reply{Status: store.Conflict}
	}
	if r.state == store.Done || r.state == store.Dead && !accepted {
		return old, duplicateReply(&old)
	}
	if live {
		return old, wait
	}
	if accepted {
		r.redrive, r.spent, r.expiries = op.Redrive, 0, 0
	} else if r.state == store.Running {
		r.spent, r.expiries = r.spent+1, r.expiries+1
	}
	if op.MaxExpiries != 0 && r.expiries >= op.MaxExpiries {
		return old, store.Reply{Status: store.NeedAlone, Spent: r.spent, Expiries: r.expiries, Redrive: r.redrive}
	}
	if differ(op, &old) {
		r.fence = r.attempt
	}
	r.state, r.claim, r.attempt = store.Running, op.Claim, r.attempt+1
	r.owner, r.incarnation = b.Owner, b.Incarnation
	r.renewed, r.lease, r.changed = now, b.Lease, now
	if op.Fingerprint != "" {
		r.fingerprint = op.Fingerprint
	}
	return r, claimedReply(&r)
}

func stepSpend(old modelRecord, t modelToken, b *store.Batch, op *store.Op, now time.Time) (modelRecord, store.Reply) {
	if b.IssuedOnly && old.state == store.Absent && op.Redrive == 0 && !t.issued {
		return old, store.Reply{Status: store.Unknown}
	}
	r := old
	if r.state == store.Done && r.spender && r.claim == op.Claim {
		return old, store.Reply{Status: store.Claimed, Attempt: r.attempt, Spent: r.spentBefore, Redrive: r.redrive}
	}
	if r.state == store.Forgotten && r.claim == op.Claim {
		return old, store.Reply{Status: store.Lost}
	}
	accepted := op.Redrive > r.redrive && !r.live(now) && r.state != store.Done
	if differ(op, &old) && !accepted {
		return old, store.Reply{Status: store.Conflict}
	}
	if r.state == store.Done || r.state == store.Dead && !accepted {
		return old, duplicateReply(&old)
	}
	if r.live(now) {
		return old, store.Reply{Status: store.InProgress, RetryAfter: r.leaseLeft(now)}
	}
	before := r.spent
	if r.state == store.Running {
		before++
	}
	if accepted {
		before, r.redrive = 0, op.Redrive
	}
	if differ(op, &old) {
		r.fence = r.attempt
	}
	r = complete(r, store.Done, op.Claim, now)
	r.spender, r.spentBefore = true, before
	r.attempt++
	if op.Fingerprint != "" {
		r.fingerprint = op.Fingerprint
	}
	return r, store.Reply{Status: store.Claimed, Attempt: r.attempt, Spent: before, Redrive: r.redrive}
}

func stepCommit(r modelRecord, op *store.Op, now time.Time) (modelRecord, store.Status) {
	own := r.claim == op.Claim
	nobodys := r.state == store.Absent || r.state == store.Released || r.state == store.Dead
	switch {
	case own && r.state == store.Done:
		return r, store.OK
	case op.Attempt > r.fence && (own && r.state == store.Running || nobodys):
		r = complete(r, store.Done, op.Claim, now)
		r.attempt = max(r.attempt, op.Attempt)
		r.result = string(op.Result)
		return r, store.OK
	}
	return r, store.Lost
}

func stepRelease(r modelRecord, op *store.Op, now time.Time) (modelRecord, store.Status) {
	switch own := r.claim == op.Claim; {
	case own && r.state == store.Running:
		r.state, r.changed = store.Released, now
		if op.Counted {
			r.spent++
		}
		return r, store.OK
	case own && r.state == store.Released:
		return r, store.OK
	}
	return r, store.Lost
}

func stepRenew(r modelRecord, b *store.Batch, op *store.Op, now time.Time) (modelRecord, store.Status) {
	if r.claim == op.Claim && r.state == store.Running {
		r.renewed, r.lease, r.changed = now, b.Lease, now
		return r, store.OK
	}
	return r, store.Lost
}

func stepBury(r modelRecord, op *store.Op, now time.Time) (modelRecord, store.Status) {
	switch own := r.claim == op.Claim; {
	case own && r.state == store.Running, own && r.state == store.Done && r.spender:
		return complete(r, store.Dead, op.Claim, now), store.OK
	case own && r.state == store.Dead:
		return r, store.OK
	}
	return r, store.Lost
}

func stepForget(r modelRecord, op *store.Op, now time.Time) (modelRecord, store.Reply) {
	switch {
	case r.state == store.Absent, r.forgetter == op.Claim:
		return r, store.Reply{Status: store.OK}
	case r.live(now):
		return r, store.Reply{Status: store.InProgress, RetryAfter: r.leaseLeft(now)}
	}
	return modelRecord{
		state: store.Forgotten, claim: r.claim, attempt: r.attempt, redrive: r.redrive,
		forgetter: op.Claim, fence: r.attempt, changed: now,
	}, store.Reply{Status: store.OK}
}

func stepCheck(t modelToken, op *store.Op) (modelToken, store.Status) {
	if !t.issued || t.checker != "" && t.checker != op.Claim {
		return t, store.Lost
	}
	t.checker = op.Claim
	return t, store.Claimed
}

func complete(r modelRecord, s store.State, claim string, now time.Time) modelRecord {
	r.state, r.claim, r.at, r.changed = s, claim, now, now
	r.spent, r.expiries, r.result, r.spender = 0, 0, "", false
	return r
}

// differ reports whether op is of another payload than the record, and no repeat.
func differ(op *store.Op, r *modelRecord) bool {
	return op.Fingerprint != "" && r.fingerprint != "" && op.Fingerprint != r.fingerprint && op.Claim != r.claim
}

func claimedReply(r *modelRecord) store.Reply {
	return store.Reply{Status: store.Claimed, Attempt: r.attempt, Spent: r.spent, Expiries: r.expiries, Redrive: r.redrive}
}

func duplicateReply(r *modelRecord) store.Reply {
	return store.Reply{
		Status: store.Duplicate, At: r.at, Attempt: r.attempt, Dead: r.state == store.Dead,
		Redrive: r.redrive, Result: []byte(r.result),
	}
}
