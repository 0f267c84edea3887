package storetest

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/idemq/idemq/idem/store"
)

// Histories runs random histories of all operations, over a few tokens, groups
// and processes, and compares every reply and the records after every batch with
// a model of package store. Operations are repeated under their claim ids, early
// and late; leases run out; several operations of a batch meet on one record.
// The flags of pgregory.net/rapid apply: -rapid.checks is the number of histories,
// each of which waits for some ten units of Lease. EnvHistories sets it for all packages.
//
// The model takes the time from Batch.Now. Where a lease ends, or a takeover
// begins, closer to that than batches take, both outcomes are right.
func Histories(t *testing.T, h Harness) {
	if errHistories != nil {
		t.Fatal(errHistories)
	}
	s := h.Open(t)
	rapid.Check(t, func(rt *rapid.T) {
		newHistory(t, rt, h, s).run()
	})
}

// EnvHistories names the environment variable that holds the number of histories of
// Histories, where -rapid.checks is not given: a flag that only some packages have cannot
// be given to all. Without either it is 100. It holds for all properties that a binary with
// this package in it checks by rapid.
const EnvHistories = "IDEM_HISTORIES"

// errHistories says why it could not be set, which happens before tests run side by side,
// and before flags are parsed.
var errHistories = setHistories()

func setHistories() error {
	n := os.Getenv(EnvHistories)
	if n == "" {
		return nil
	}
	if err := flag.Set("rapid.checks", n); err != nil {
		return fmt.Errorf("%s=%s: %w", EnvHistories, n, err)
	}
	return nil
}

// process is who sends a batch.
type process struct {
	owner       string
	incarnation uint64
}

// actor is a claim id, and what its operations always carry.
type actor struct {
	store.Op         // Begin or Spend
	process  process // whose it is
	attempt  int     // as last answered; zero if it never claimed
}

// place is where a record is.
type place struct{ group, token string }

type history struct {
	outer *testing.T
	t     *rapid.T
	h     Harness
	s     store.Store
	caps  store.Capabilities
	b     store.Batch

	records map[place]modelRecord
	tokens  map[string]modelToken
	actors  []*actor
	forgets map[place]string // the id that was used last
	checks  map[string][]string
	ids     int
	now     time.Time
	slow    time.Duration // the longest batch so far
}

func newHistory(outer *testing.T, t *rapid.T, h Harness, s store.Store) *history {
	e := newEnv(outer, h, s, "")
	return &history{
		outer: outer, t: t, h: h, s: s, caps: e.caps, b: *e.batch(),
		records: map[place]modelRecord{}, tokens: map[string]modelToken{},
		forgets: map[place]string{}, checks: map[string][]string{},
	}
}

func (h *history) run() {
	unit := h.h.unit()
	h.t.Repeat(map[string]func(*rapid.T){
		"batch":      func(*rapid.T) { h.batch() },
		"more":       func(*rapid.T) { h.batch() },
		"still more": func(*rapid.T) { h.batch() },
		"and more":   func(*rapid.T) { h.batch() },
		"wait": func(t *rapid.T) {
			// Past TakeoverAfter and past the end, of the short lease and of the long one.
			d := rapid.SampledFrom([]time.Duration{unit * 3 / 5, unit * 13 / 10, unit * 13 / 10, unit * 11 / 5, unit * 9 / 2}).Draw(t, "wait")
			h.h.Wait(h.outer, d)
		},
		"": func(*rapid.T) { h.inspect() },
	})
}

// Who sends, and what it is about: few, so that they meet.
var (
	processes = []process{{}, {"", 2}, {"pod", 1}, {"pod", 2}, {"pod", 3}, {"other", 2}}
	places    = []place{{"", "t"}, {"g", "t"}, {"g", "u"}}
)

func draw[V any](h *history, label string, from ...V) V {
	return rapid.SampledFrom(from).Draw(h.t, label)
}

func (h *history) id(kind string) string {
	h.ids++
	return fmt.Sprintf("%s-%06d", kind, h.ids)
}

// batch sends a few operations of one process.
func (h *history) batch() {
	p := draw(h, "process", processes...)
	b := &h.b
	b.Owner, b.Incarnation = p.owner, p.incarnation
	b.Lease = time.Duration(draw(h, "lease", 1, 4)) * h.h.unit()
	b.IssuedOnly = draw(h, "issued only", false, false, false, true)
	b.Ops = b.Ops[:0]
	met := map[place]bool{}
	for range rapid.IntRange(1, 5).Draw(h.t, "operations") {
		op, ok := h.operation(p)
		at := place{op.Group, op.Token}
		if !ok || h.caps.NoDoneDetails && h.unknowable(op, met[at]) {
			continue
		}
		met[at] = true
		b.Ops = append(b.Ops, op)
	}
	if len(b.Ops) == 0 {
		return
	}
	slack := h.apply(b)
	for i := range b.Ops {
		h.compare(b, i, slack)
	}
}

// unknowable reports whether op may need what a driver with NoDoneDetails does
// not know of a done token.
func (h *history) unknowable(op store.Op, met bool) bool {
	if op.Kind != store.Forget && op.Kind != store.Bury {
		return false
	}
	return met || h.records[place{op.Group, op.Token}].state == store.Done
}

func (h *history) operation(p process) (store.Op, bool) {
	switch kind := draw(h, "kind",
		store.Begin, store.Begin, store.Begin, store.Begin, store.Begin, store.Commit, store.Commit, store.Release,
		store.Release, store.Renew, store.Bury, store.Spend, store.Forget, store.Inspect, store.Issue, store.Check); kind {
	case store.Begin, store.Spend:
		return h.start(p, kind)
	case store.Commit, store.Release, store.Renew, store.Bury:
		return h.settle(kind)
	default:
		return h.other(kind), true
	}
}

// start asks for a claim under a new claim id, or repeats what an id of this
// process asked.
func (h *history) start(p process, kind store.Kind) (store.Op, bool) {
	if rapid.IntRange(0, 2).Draw(h.t, "repeat") == 0 {
		a := h.actor(func(a *actor) bool { return a.process == p && a.Kind == kind })
		if a == nil {
			return store.Op{}, false
		}
		return a.Op, true
	}
	at := draw(h, "place", places...)
	a := &actor{process: p, Op: store.Op{
		Kind: kind, Group: at.group, Token: at.token, Claim: h.id("c"),
		Redrive:     draw(h, "redrive", 0, 0, 0, 0, 1, 1, 2, 3),
		Fingerprint: draw(h, "fingerprint", "", "", "", "x", "x", "x", "y"),
	}}
	if kind == store.Begin {
		a.MaxExpiries = draw(h, "max expiries", 0, 0, 0, 1, 2)
	}
	h.actors = append(h.actors, a)
	return a.Op, true
}

// settle ends or renews a claim that is current, or any that there was.
func (h *history) settle(kind store.Kind) (store.Op, bool) {
	current := draw(h, "current", true, true, false)
	a := h.actor(func(a *actor) bool {
		if kind == store.Commit && (a.attempt == 0 || h.starts(a)) {
			return false // nobody commits before the claim is answered
		}
		return !current || h.records[place{a.Group, a.Token}].claim == a.Claim
	})
	if a == nil {
		return store.Op{}, false
	}
	op := store.Op{Kind: kind, Group: a.Group, Token: a.Token, Claim: a.Claim}
	switch kind {
	case store.Commit:
		op.Attempt = a.attempt
		op.Result = []byte(draw(h, "result", "", "r", "\x00|:"))
	case store.Release:
		op.Counted = draw(h, "counted", true, true, false)
	}
	return op, true
}

// starts reports whether the batch that is being made asks for a's claim.
func (h *history) starts(a *actor) bool {
	return slices.ContainsFunc(h.b.Ops, func(op store.Op) bool { return op.Claim == a.Claim && op.Kind == a.Kind })
}

func (h *history) actor(fits func(*actor) bool) *actor {
	var some []*actor
	for _, a := range h.actors {
		if fits(a) {
			some = append(some, a)
		}
	}
	if len(some) == 0 {
		return nil
	}
	// The later ones are the more likely to meet.
	some = some[max(0, len(some)-6):]
	return some[rapid.IntRange(0, len(some)-1).Draw(h.t, "claim")]
}

func (h *history) other(kind store.Kind) store.Op {
	at := draw(h, "place", places...)
	op := store.Op{Kind: kind, Group: at.group, Token: at.token}
	switch kind {
	case store.Forget:
		// A store remembers its last Forget: only that one is repeated.
		if h.forgets[at] == "" || draw(h, "new", true, false) {
			h.forgets[at] = h.id("f")
		}
		op.Claim = h.forgets[at]
	case store.Check:
		if ids := h.checks[at.token]; len(ids) > 0 && draw(h, "new", true, false) {
			op.Claim = ids[rapid.IntRange(0, len(ids)-1).Draw(h.t, "check")]
		} else {
			op.Claim = h.id("k")
			h.checks[at.token] = append(ids, op.Claim)
		}
	}
	return op
}

// apply executes b and returns how far times that were taken from two batches may
// be from those at which their operations were executed.
func (h *history) apply(b *store.Batch) (slack time.Duration) {
	start := time.Now()
	if err := apply(h.s, b); err != nil {
		h.t.Fatalf("Apply: %v", err)
	}
	h.slow = max(h.slow, time.Since(start))
	slack = 2*h.slow + 3*time.Millisecond
	if len(b.Replies) != len(b.Ops) {
		h.t.Fatalf("%d operations were given, and %d replies came", len(b.Ops), len(b.Replies))
	}
	if b.Now.Before(h.now.Add(-slack)) {
		h.t.Fatalf("the store's clock went back from %v to %v", h.now, b.Now)
	}
	h.now = b.Now
	return slack
}

// compare holds reply i of b against the model, and moves the model on.
func (h *history) compare(b *store.Batch, i int, slack time.Duration) {
	op, got := &b.Ops[i], &b.Replies[i]
	at := place{op.Group, op.Token}
	known := *op
	if h.caps.NoFingerprints {
		known.Fingerprint = ""
	}
	if got.Err != nil {
		h.t.Fatalf("%s of %+v was answered with the error %v", show(*op), terms(b), got.Err)
	}
	wrong := ""
	for _, d := range []time.Duration{0, -slack, slack} {
		now := b.Now.Add(d)
		rec, tok, want := step(h.records[at], h.tokens[op.Token], b, &known, now)
		problem := h.difference(op, got, &want, slack)
		if problem == "" && op.Kind == store.Inspect {
			problem = h.recordDifference(got.Record, &rec, tok, now, slack)
		}
		if problem == "" {
			h.records[at], h.tokens[op.Token] = rec, tok
			h.answered(op, got)
			return
		}
		if wrong == "" {
			wrong = problem
		}
	}
	h.t.Fatalf("operation %d of the batch, %s, terms %s,\non the record %+v,\ntoken %+v, at %v:\n%s",
		i, show(*op), terms(b), h.records[at], h.tokens[op.Token], b.Now, wrong)
}

func terms(b *store.Batch) string {
	return fmt.Sprintf("{owner %q, incarnation %d, lease %v, issued only %v}", b.Owner, b.Incarnation, b.Lease, b.IssuedOnly)
}

func (h *history) answered(op *store.Op, r *store.Reply) {
	if r.Status != store.Claimed || op.Kind != store.Begin && op.Kind != store.Spend {
		return
	}
	for _, a := range h.actors {
		if a.Claim == op.Claim {
			a.attempt = r.Attempt
		}
	}
}

// difference says in what a reply is not what the model wants.
func (h *history) difference(op *store.Op, got, want *store.Reply, slack time.Duration) string {
	if got.Status != want.Status {
		if h.caps.NoDoneDetails && op.Kind == store.Commit && h.records[place{op.Group, op.Token}].state == store.Done {
			// Who completed it is not known: OK and Lost are both right.
			if got.Status == store.OK || got.Status == store.Lost {
				return ""
			}
		}
		return fmt.Sprintf("answered %s, want %s", statusName(got.Status), statusName(want.Status))
	}
	var d diffs
	switch want.Status {
	case store.Claimed:
		if op.Kind == store.Check {
			break
		}
		diff(&d, "Attempt", got.Attempt, want.Attempt)
		diff(&d, "Spent", got.Spent, want.Spent)
		diff(&d, "Redrive", got.Redrive, want.Redrive)
		if op.Kind == store.Begin {
			diff(&d, "Expiries", got.Expiries, want.Expiries)
		}
	case store.NeedAlone:
		diff(&d, "Spent", got.Spent, want.Spent)
		diff(&d, "Expiries", got.Expiries, want.Expiries)
		diff(&d, "Redrive", got.Redrive, want.Redrive)
	case store.Duplicate:
		diff(&d, "Dead", got.Dead, want.Dead)
		if h.caps.NoDoneDetails && !want.Dead {
			break
		}
		diff(&d, "Attempt", got.Attempt, want.Attempt)
		diff(&d, "Redrive", got.Redrive, want.Redrive)
		diff(&d, "Result", string(got.Result), string(want.Result))
		d.near("At", got.At.Sub(want.At), 0, slack)
	case store.InProgress, store.Superseded:
		if got.RetryAfter <= 0 {
			d = append(d, fmt.Sprintf("RetryAfter is %v, want a positive one", got.RetryAfter))
		}
		d.near("RetryAfter", got.RetryAfter, want.RetryAfter, slack)
	}
	if want.Status != store.Duplicate && (got.Dead || len(got.Result) > 0) {
		d = append(d, "Dead or Result is set on what is no Duplicate")
	}
	if (got.Record != nil) != (op.Kind == store.Inspect) {
		d = append(d, "Record is set if and only if this is an Inspect: it is not so")
	}
	return d.String()
}

// inspect compares all records with the model.
func (h *history) inspect() {
	b := h.b
	b.Ops, b.Replies = nil, nil
	for _, at := range places {
		b.Ops = append(b.Ops, store.Op{Kind: store.Inspect, Group: at.group, Token: at.token})
	}
	slack := h.apply(&b)
	for i := range b.Ops {
		h.compare(&b, i, slack)
	}
}

// recordDifference says in what a record is not the model's.
func (h *history) recordDifference(got *store.Record, want *modelRecord, tok modelToken, now time.Time, slack time.Duration) string {
	var d diffs
	diff(&d, "State", got.State, want.state)
	diff(&d, "Issued", got.Issued, tok.issued)
	diff(&d, "Checked", got.Checked, tok.checker != "")
	if got.State == store.Absent || h.caps.NoDoneDetails && got.State == store.Done {
		return d.String()
	}
	diff(&d, "Attempt", got.Attempt, want.attempt)
	diff(&d, "Spent", got.Spent, want.spent)
	diff(&d, "Expiries", got.Expiries, want.expiries)
	diff(&d, "Redrive", got.Redrive, want.redrive)
	diff(&d, "Fingerprint", got.Fingerprint, want.fingerprint)
	if got.State != store.Forgotten && !names(got, want.claim) {
		diff(&d, "Claim", got.Claim, want.claim)
	}
	expires := want.changed.Add(h.b.Retention).Sub(now)
	switch got.State {
	case store.Running:
		diff(&d, "Owner", got.Owner, want.owner)
		diff(&d, "Incarnation", got.Incarnation, want.incarnation)
		if left := want.leaseLeft(now); left > 0 || got.Lease > 0 {
			d.near("Lease", got.Lease, left, slack)
		}
	case store.Done, store.Dead:
		diff(&d, "Result", string(got.Result), want.result)
		d.near("At", got.At.Sub(want.at), 0, slack)
		if longest := expires + h.b.Retention/1000; got.Expires > longest+2*slack {
			d = append(d, fmt.Sprintf("Expires is %v, want at most %v", got.Expires, longest))
		}
	}
	if got.Expires < expires-2*slack {
		d = append(d, fmt.Sprintf("Expires is %v, want at least %v", got.Expires, expires))
	}
	return d.String()
}

// diffs are the differences between what came and what the model wants.
type diffs []string

func diff[V comparable](d *diffs, name string, got, want V) {
	if got != want {
		*d = append(*d, fmt.Sprintf("%s is %#v, want %#v", name, got, want))
	}
}

func (d *diffs) near(name string, got, want, slack time.Duration) {
	if (got - want).Abs() > 2*slack {
		*d = append(*d, fmt.Sprintf("%s is %v, want %v", name, got, want))
	}
}

func (d diffs) String() string {
	s := ""
	for i, x := range d {
		if i > 0 {
			s += "; "
		}
		s += x
	}
	return s
}
