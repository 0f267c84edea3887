package storetest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"testing"
	"time"

	"github.com/idemq/idemq/idem/store"
)

// env is what a case works with: the store, a prefix of its own, and batches
// whose leases and retentions do not end while a case runs unless it says so.
type env struct {
	*testing.T
	h      Harness
	s      store.Store
	caps   store.Capabilities
	prefix string
	rule   string
	unit   time.Duration
	now    time.Time // the store's clock at the last batch
}

func newEnv(t *testing.T, h Harness, s store.Store, rule string) *env {
	return &env{
		T: t, h: h, s: s, caps: s.Capabilities(),
		prefix: "storetest-" + rand.Text(), rule: rule, unit: h.unit(),
	}
}

// failf ends the case: the rule first, then what was seen.
func (e *env) failf(format string, args ...any) {
	e.Helper()
	e.Fatalf("%s\n\t%s", e.rule, fmt.Sprintf(format, args...))
}

// batch returns a batch that nothing in a case outlasts.
func (e *env) batch(ops ...store.Op) *store.Batch {
	return &store.Batch{
		Prefix:      e.prefix,
		Lease:       1000 * e.unit,
		Retention:   100_000 * e.unit,
		CheckWithin: 100_000 * e.unit,
		Ops:         ops,
	}
}

// term changes the terms of a batch.
type term func(*store.Batch)

func lease(d time.Duration) term       { return func(b *store.Batch) { b.Lease = d } }
func retention(d time.Duration) term   { return func(b *store.Batch) { b.Retention = d } }
func checkWithin(d time.Duration) term { return func(b *store.Batch) { b.CheckWithin = d } }
func issuedOnly(b *store.Batch)        { b.IssuedOnly = true }
func owner(name string, incarnation uint64) term {
	return func(b *store.Batch) { b.Owner, b.Incarnation = name, incarnation }
}

// apply executes b and holds the driver to what is true of every batch.
func (e *env) apply(b *store.Batch) []store.Reply {
	e.Helper()
	if err := apply(e.s, b); err != nil {
		e.failf("Apply: %v", err)
	}
	if len(b.Replies) != len(b.Ops) {
		e.failf("%d operations were given, and %d replies came", len(b.Ops), len(b.Replies))
	}
	if b.Now.IsZero() {
		e.failf("Apply did not set Now")
	}
	e.now = b.Now
	return b.Replies
}

// patience is how often a batch is sent of which something is not known.
const patience = 20

// apply executes b, again and again while it says that nothing is known of an operation,
// or of all: that is safe under the same claim ids.
func apply(s store.Store, b *store.Batch) (err error) {
	away := func(r store.Reply) bool { return errors.Is(r.Err, store.ErrUnavailable) }
	for try := range patience {
		if try > 0 {
			<-time.After(min(10*time.Millisecond<<(try-1), 100*time.Millisecond))
		}
		err = s.Apply(context.Background(), b)
		if !errors.Is(err, store.ErrUnavailable) && (err != nil || !slices.ContainsFunc(b.Replies, away)) {
			return err
		}
	}
	return err
}

// try executes one operation and returns its reply.
func (e *env) try(op store.Op, terms ...term) store.Reply {
	e.Helper()
	b := e.batch(op)
	for _, t := range terms {
		t(b)
	}
	return e.apply(b)[0]
}

// want executes one operation, which must be answered with the status.
func (e *env) want(status store.Status, op store.Op, terms ...term) store.Reply {
	e.Helper()
	r := e.try(op, terms...)
	if r.Err != nil {
		e.failf("%s was answered with the error %v, want %s", show(op), r.Err, statusName(status))
	}
	if r.Status != status {
		e.failf("%s was answered %s, want %s", show(op), statusName(r.Status), statusName(status))
	}
	if positive := r.RetryAfter > 0; positive != (status == store.InProgress || status == store.Superseded) {
		e.failf("%s was answered %s with RetryAfter %v", show(op), statusName(status), r.RetryAfter)
	}
	return r
}

// answers executes a batch and fails unless its operations are answered with these statuses.
func (e *env) answers(b *store.Batch, want ...store.Status) {
	e.Helper()
	for i, r := range e.apply(b) {
		if r.Status != want[i] || r.Err != nil {
			e.failf("operation %d, %s, was answered %s with error %v, want %s", i, show(b.Ops[i]), statusName(r.Status), r.Err, statusName(want[i]))
		}
	}
}

// claims executes one operation, which must claim with these counts.
func (e *env) claims(attempt, spent, expiries, redrive int, op store.Op, terms ...term) {
	e.Helper()
	r := e.want(store.Claimed, op, terms...)
	got := [...]int{r.Attempt, r.Spent, r.Expiries, r.Redrive}
	if op.Kind == store.Spend {
		expiries = r.Expiries // means nothing to whoever spends
	}
	if want := [...]int{attempt, spent, expiries, redrive}; got != want {
		e.failf("%s claimed with attempt, spent, expiries, redrive %v, want %v", show(op), got, want)
	}
}

// duplicates executes one operation, which must meet a done token, or a dead one.
func (e *env) duplicates(dead bool, op store.Op, terms ...term) store.Reply {
	e.Helper()
	r := e.want(store.Duplicate, op, terms...)
	if r.Dead != dead {
		e.failf("%s was answered Duplicate with Dead %v, want %v", show(op), r.Dead, dead)
	}
	return r
}

// inspect reads a record.
func (e *env) inspect(token string) *store.Record {
	e.Helper()
	r := e.want(store.OK, store.Op{Kind: store.Inspect, Group: group, Token: token})
	if r.Record == nil {
		e.failf("Inspect was answered without a Record")
	}
	return r.Record
}

// state wants a record to be in a state.
func (e *env) state(token string, s store.State) *store.Record {
	e.Helper()
	r := e.inspect(token)
	if r.State != s {
		e.failf("the record is %v, want %v", r.State, s)
	}
	return r
}

// unchanged runs fn, which must leave the record as it is.
func (e *env) unchanged(token string, fn func()) {
	e.Helper()
	before, start, now := e.inspect(token), time.Now(), e.now
	fn()
	passed := time.Since(start)
	after := e.inspect(token)
	// What is left of times has shrunk by what passed between the two, at least: by the
	// clock of here, since a store may read its own a while after it looked at the record,
	// and by the store's, which may be one that stands still.
	passed = min(passed, e.now.Sub(now))
	const grain = 5 * time.Millisecond
	if after.Lease > max(0, before.Lease-passed)+grain || after.Expires > max(0, before.Expires-passed)+grain {
		e.failf("the record's lease or expiry was renewed: %v and %v left, %v later %v and %v",
			before.Lease, before.Expires, passed, after.Lease, after.Expires)
	}
	before.Lease, before.Expires, after.Lease, after.Expires = 0, 0, 0, 0
	if a, b := fmt.Sprintf("%+v", *before), fmt.Sprintf("%+v", *after); a != b {
		e.failf("the record was changed:\n\tfrom %s\n\tto   %s", a, b)
	}
}

// wait lets time pass on the store's clock.
func (e *env) wait(d time.Duration) {
	e.Helper()
	e.h.Wait(e.T, d)
}

// brief is the lease of claims that are to run out, and runOut waits for it.
func (e *env) brief() term { return lease(e.unit) }
func (e *env) runOut()     { e.Helper(); e.wait(e.unit + e.unit/2) }

// group is the group of operations that name no other.
const group = "group"

// setting changes an operation.
type setting func(*store.Op)

func inGroup(g string) setting      { return func(op *store.Op) { op.Group = g } }
func redrive(n int) setting         { return func(op *store.Op) { op.Redrive = n } }
func maxExpiries(n int) setting     { return func(op *store.Op) { op.MaxExpiries = n } }
func fingerprint(fp string) setting { return func(op *store.Op) { op.Fingerprint = fp } }
func result(b string) setting       { return func(op *store.Op) { op.Result = []byte(b) } }
func counted(op *store.Op)          { op.Counted = true }

// id is a claim id as package idem makes them.
func id(name string) string {
	if name == "" {
		return "" // of operations that have none
	}
	return fmt.Sprintf("%s-%06d", name, crc32.ChecksumIEEE([]byte(name))%1_000_000)
}

// names reports whether a record is of a claim.
func names(r *store.Record, claim string) bool {
	return r.Claim == claim || r.State == store.Done && len(claim) >= 6 && r.Claim == "~"+claim[len(claim)-6:]
}

func operation(k store.Kind, token, claim string, settings []setting) store.Op {
	op := store.Op{Kind: k, Group: group, Token: token, Claim: id(claim)}
	for _, s := range settings {
		s(&op)
	}
	return op
}

func begin(token, claim string, s ...setting) store.Op {
	return operation(store.Begin, token, claim, s)
}

// commit is by a claim that was made with the attempt.
func commit(token, claim string, attempt int, s ...setting) store.Op {
	op := operation(store.Commit, token, claim, s)
	op.Attempt = attempt
	return op
}

func release(token, claim string, s ...setting) store.Op {
	return operation(store.Release, token, claim, s)
}

func renew(token, claim string) store.Op { return operation(store.Renew, token, claim, nil) }
func bury(token, claim string) store.Op  { return operation(store.Bury, token, claim, nil) }

func spend(token, claim string, s ...setting) store.Op {
	return operation(store.Spend, token, claim, s)
}

func forget(token, claim string) store.Op { return operation(store.Forget, token, claim, nil) }
func issue(token string) store.Op         { return operation(store.Issue, token, "", nil) }
func check(token, claim string) store.Op  { return operation(store.Check, token, claim, nil) }

var kindNames = [...]string{
	store.Begin: "Begin", store.Commit: "Commit", store.Release: "Release", store.Renew: "Renew",
	store.Bury: "Bury", store.Spend: "Spend", store.Forget: "Forget", store.Inspect: "Inspect",
	store.Issue: "Issue", store.Check: "Check",
}

var statusNames = [...]string{
	store.OK: "OK", store.Claimed: "Claimed", store.Duplicate: "Duplicate", store.InProgress: "InProgress",
	store.NeedAlone: "NeedAlone", store.Superseded: "Superseded", store.Unknown: "Unknown",
	store.Conflict: "Conflict", store.Lost: "Lost",
}

func statusName(s store.Status) string {
	if s == 0 || int(s) >= len(statusNames) {
		return fmt.Sprintf("no known status (%d)", s)
	}
	return statusNames[s]
}

// show writes an operation as failures show it.
func show(op store.Op) string {
	s := fmt.Sprintf("%s(%.40q", kindNames[op.Kind], op.Token)
	if op.Claim != "" {
		s += ", claim " + op.Claim
	}
	if op.Group != group {
		s += fmt.Sprintf(", group %q", op.Group)
	}
	for _, f := range [...]struct {
		name string
		n    int
	}{{"attempt", op.Attempt}, {"redrive", op.Redrive}, {"max expiries", op.MaxExpiries}} {
		if f.n != 0 {
			s += fmt.Sprintf(", %s %d", f.name, f.n)
		}
	}
	if op.Fingerprint != "" {
		s += fmt.Sprintf(", fingerprint %q", op.Fingerprint)
	}
	if op.Counted {
		s += ", counted"
	}
	if len(op.Result) > 0 {
		s += fmt.Sprintf(", result %.20q", op.Result)
	}
	return s + ")"
}
