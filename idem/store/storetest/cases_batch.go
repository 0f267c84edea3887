package storetest

import (
	"bytes"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/idemq/idemq/idem/store"
)

var batchCases = []testCase{
	{
		"order",
		"Operations on one record take effect in the order they are listed in: a retry in place sends a Release and the next Begin together.",
		func(e *env) {
			b := e.batch(
				begin("t", "c1"), release("t", "c1", counted), begin("t", "c2"), begin("u", "c1"),
				renew("t", "c2"), begin("t", "c3"), release("t", "c2", counted), release("t", "c2", counted),
				begin("t", "c4"), commit("t", "c4", 3), begin("t", "c5"), commit("u", "c1", 1), begin("u", "c2"),
				issue("v"), check("v", "k1"), check("v", "k2"),
			)
			want := []store.Status{
				store.Claimed, store.OK, store.Claimed, store.Claimed,
				store.OK, store.InProgress, store.OK, store.OK,
				store.Claimed, store.OK, store.Duplicate, store.OK, store.Duplicate,
				store.OK, store.Claimed, store.Lost,
			}
			e.answers(b, want...)
			if r := b.Replies[8]; r.Attempt != 3 || r.Spent != 2 {
				e.failf("the last Begin has attempt %d and spent %d, want 3 and 2", r.Attempt, r.Spent)
			}
		},
	},
	{
		"some lost",
		"Of completions in one batch, whose claims were made in one too, some may be lost: that tells nothing of those before and behind them.",
		func(e *env) {
			e.answers(e.batch(begin("a", "c1"), begin("t", "c1"), begin("b", "c1"), begin("u", "c1"), begin("c", "c1")),
				store.Claimed, store.Claimed, store.Claimed, store.Claimed, store.Claimed)
			e.answers(e.batch(release("t", "c1", counted), begin("t", "c2")), store.OK, store.Claimed)
			e.answers(e.batch(commit("a", "c1", 1), commit("t", "c1", 1), commit("b", "c1", 1), commit("u", "c3", 1), commit("c", "c1", 1)),
				store.OK, store.Lost, store.OK, store.Lost, store.OK)
			for token, want := range map[string]store.Status{
				"a": store.Duplicate, "t": store.InProgress, "b": store.Duplicate, "u": store.InProgress, "c": store.Duplicate,
			} {
				e.want(want, begin(token, "c4"))
			}
		},
	},
	{
		"large",
		"A batch may hold thousands of operations, and each reply stands where its operation stands: a driver whose protocol has a limit splits the batch.",
		func(e *env) {
			const n = 5000
			token := func(i int) string { return fmt.Sprintf("t%d", i) }
			b := e.batch()
			round := func(op func(i int) store.Op, ok func(i int, r *store.Reply) bool) {
				e.Helper()
				b.Ops = b.Ops[:0]
				for i := range n {
					b.Ops = append(b.Ops, op(i))
				}
				for i, r := range e.apply(b) {
					if r.Err != nil || !ok(i, &r) {
						e.failf("reply %d of %d, to %s, is %+v", i, n, show(b.Ops[i]), r)
					}
				}
			}
			round(func(i int) store.Op { return begin(token(i), "c1", redrive(i)) },
				func(i int, r *store.Reply) bool { return r.Status == store.Claimed && r.Redrive == i })
			round(func(i int) store.Op { return commit(token(i), "c1", 1, result(token(i))) },
				func(i int, r *store.Reply) bool { return r.Status == store.OK })
			round(func(i int) store.Op { return begin(token(n-1-i), "c2") },
				func(i int, r *store.Reply) bool {
					return r.Status == store.Duplicate && (e.caps.NoDoneDetails || string(r.Result) == token(n-1-i))
				})
			// The same few records over and over keep their order across any split.
			round(func(i int) store.Op {
				claim := fmt.Sprintf("d%d", i/8)
				if i%8 < 4 {
					return begin(fmt.Sprintf("u%d", i%4), claim)
				}
				return release(fmt.Sprintf("u%d", i%4), claim, counted)
			}, func(i int, r *store.Reply) bool {
				if i%8 < 4 {
					return r.Status == store.Claimed && r.Attempt == i/8+1 && r.Spent == i/8
				}
				return r.Status == store.OK
			})
		},
	},
	{
		"empty",
		"A batch without operations is no error, and tells the time.",
		func(e *env) { e.apply(e.batch()) },
	},
	{
		"room for replies",
		"Apply overwrites the replies that it finds, whole: a batch is used again and again, and a field left over from before would be taken for an answer.",
		func(e *env) {
			stale := store.Reply{
				Status: store.Conflict, Err: store.ErrFull, Attempt: 9, Spent: 9, Expiries: 9, Redrive: 9, At: time.Unix(9, 0),
				Dead: true, Result: []byte("stale"), RetryAfter: time.Hour, Record: &store.Record{},
			}
			b := e.batch(begin("t", "c1"), commit("t", "c1", 1), begin("t", "c2"), begin("u", "c1"))
			b.Replies = []store.Reply{stale, stale, stale, stale, stale, stale}[:0]
			b.Notice = "stale"
			for i, r := range e.apply(b) {
				if r.Err != nil || r.Dead || r.Record != nil || string(r.Result) == "stale" || r.RetryAfter != 0 || r.Redrive != 0 {
					e.failf("reply %d, to %s, is %+v", i, show(b.Ops[i]), r)
				}
			}
			if b.Notice == "stale" {
				e.failf("the Notice of an earlier batch was left")
			}
		},
	},
	{
		"keeps no reference",
		"What the caller does to a batch after Apply returned changes no record, and what the caller does to a reply changes none either.",
		func(e *env) {
			if e.caps.NoDoneDetails {
				e.Skip("the driver keeps no results")
			}
			e.claims(1, 0, 0, 0, begin("t", "c1"))
			op := commit("t", "c1", 1, result("result"))
			e.want(store.OK, op)
			copy(op.Result, "xxxxxx")
			r := e.duplicates(false, begin("t", "c2"))
			if string(r.Result) != "result" {
				e.failf("the result became %q when the caller used its buffer again", r.Result)
			}
			copy(r.Result, "yyyyyy")
			seen := e.state("t", store.Done).Result
			if string(seen) != "result" {
				e.failf("the result became %q when a caller changed its reply", seen)
			}
			copy(seen, "zzzzzz")
			if r := e.duplicates(false, begin("t", "c3")); !bytes.Equal(r.Result, []byte("result")) {
				e.failf("the result became %q when a caller changed its Record", r.Result)
			}
		},
	},
	{
		"now",
		"Now is the store's clock: it does not go back between batches, and moves on by what passes.",
		func(e *env) {
			e.apply(e.batch())
			first := e.now
			e.apply(e.batch(begin("t", "c1")))
			if e.now.Before(first) {
				e.failf("the clock went back from %v to %v", first, e.now)
			}
			e.wait(5 * e.unit)
			e.apply(e.batch(begin("t", "c1")))
			if passed := e.now.Sub(first); passed < 5*e.unit-5*time.Millisecond {
				e.failf("%v passed by Now while %v passed on the store's clock", passed, 5*e.unit)
			}
		},
	},
}

// racers is how many goroutines meet on one token.
const racers = 32

// race applies one operation from each racer at once and returns the replies.
func (e *env) race(op func(i int) store.Op) []store.Reply {
	e.Helper()
	var wg sync.WaitGroup
	start := make(chan struct{})
	replies, errs := make([]store.Reply, racers), make([]error, racers)
	for i := range racers {
		wg.Go(func() {
			b := e.batch(op(i))
			<-start
			if errs[i] = apply(e.s, b); errs[i] == nil {
				replies[i] = b.Replies[0]
			}
		})
	}
	close(start)
	wg.Wait()
	for i, err := range errs {
		if err == nil {
			err = replies[i].Err
		}
		if err != nil {
			e.failf("%s: %v", show(op(i)), err)
		}
	}
	return replies
}

// one wants exactly one of the replies to be Claimed, and all else to be other.
func (e *env) one(replies []store.Reply, other store.Status) {
	e.Helper()
	n := 0
	for _, r := range replies {
		switch r.Status {
		case store.Claimed:
			n++
		case other:
		default:
			e.failf("one of %d at once was answered %s, want Claimed or %s", racers, statusName(r.Status), statusName(other))
		}
	}
	if n != 1 {
		e.failf("%d of %d at once were Claimed, want exactly one", n, racers)
	}
}

var concurrencyCases = []testCase{
	{
		"Begin",
		"Of many Begins at once on one token exactly one is Claimed: this is what the library is for.",
		func(e *env) {
			e.one(e.race(func(i int) store.Op { return begin("t", fmt.Sprintf("c%d", i)) }), store.InProgress)
			e.claims(1, 0, 0, 0, begin("u", "c0"), e.brief())
			e.runOut()
			e.one(e.race(func(i int) store.Op { return begin("u", fmt.Sprintf("d%d", i)) }), store.InProgress)
			if r := e.state("u", store.Running); r.Attempt != 2 || r.Spent != 1 || r.Expiries != 1 {
				e.failf("an expiry was counted by more than one: %+v", *r)
			}
		},
	},
	{
		"Spend",
		"Of many Spends at once on one token exactly one is Claimed.",
		func(e *env) {
			e.one(e.race(func(i int) store.Op { return spend("t", fmt.Sprintf("c%d", i)) }), store.Duplicate)
		},
	},
	{
		"Check",
		"Of many Checks at once on one issued token exactly one passes, whatever their groups.",
		func(e *env) {
			e.want(store.OK, issue("t"))
			e.one(e.race(func(i int) store.Op {
				op := check("t", fmt.Sprintf("k%d", i))
				op.Group = fmt.Sprint(i % 3)
				return op
			}), store.Lost)
		},
	},
	{
		"counts",
		"Repeats of one counted Release at once count once, and Begins by one claim at once are one claim.",
		func(e *env) {
			for i, r := range e.race(func(int) store.Op { return begin("t", "c1") }) {
				if r.Status != store.Claimed || r.Attempt != 1 {
					e.failf("repeat %d of Begin was answered %s with attempt %d", i, statusName(r.Status), r.Attempt)
				}
			}
			for i, r := range e.race(func(int) store.Op { return release("t", "c1", counted) }) {
				if r.Status != store.OK {
					e.failf("repeat %d of Release was answered %s", i, statusName(r.Status))
				}
			}
			e.claims(2, 1, 0, 0, begin("t", "c2"))
		},
	},
	{
		"takeover",
		"Of a Begin that takes a run-out claim over and what that claim's holder, or an operator, does at the same moment one comes first, and the other is answered accordingly: a driver that looks, and writes later, undoes the claim of a handler that is at work.",
		func(e *env) {
			const tokens = racers / 2
			type rival struct {
				op    store.Op
				late  store.Status // its answer where the Begin comes first
				begin store.Status // the Begin's answer where it comes second
				state store.State  // then
			}
			rivals := []rival{
				{commit("commit", "c1", 1), store.Lost, store.Duplicate, store.Done},
				{renew("renew", "c1"), store.Lost, store.InProgress, store.Running},
				{release("release", "c1"), store.Lost, store.Claimed, store.Running},
				{bury("bury", "c1"), store.Lost, store.Duplicate, store.Dead},
				{forget("forget", "f1"), store.InProgress, store.Claimed, store.Running},
			}
			token := func(r *rival, i int) string { return fmt.Sprint(r.op.Token, i) }
			b := e.batch()
			e.brief()(b)
			for i := range rivals {
				for k := range tokens {
					b.Ops = append(b.Ops, begin(token(&rivals[i], k), "c1"))
				}
			}
			e.answers(b, slices.Repeat([]store.Status{store.Claimed}, len(b.Ops))...)
			e.runOut()
			for _, r := range rivals {
				replies := e.race(func(i int) store.Op {
					op := r.op
					if op.Token = token(&r, i/2); i%2 == 0 {
						return begin(op.Token, "c2")
					}
					return op
				})
				for k := range tokens {
					begun, other, op := replies[2*k], replies[2*k+1], r.op
					op.Token = token(&r, k)
					wantBegun, wantOther, state, claim := store.Claimed, r.late, store.Running, "c2"
					if begun.Status != store.Claimed || begun.Expiries == 0 {
						wantBegun, wantOther, state = r.begin, store.OK, r.state
					}
					if wantBegun != store.Claimed {
						claim = "c1"
					}
					if begun.Status != wantBegun || other.Status != wantOther {
						e.failf("Begin was answered %s with %d expiries, and %s at once %s; want %s and %s",
							statusName(begun.Status), begun.Expiries, show(op), statusName(other.Status), statusName(wantBegun), statusName(wantOther))
					}
					rec := e.state(op.Token, state)
					if known := state != store.Done || !e.caps.NoDoneDetails; known && !names(rec, id(claim)) {
						e.failf("after a Begin, answered %s, and %s at once, the claim is %s, want %s",
							statusName(begun.Status), show(op), rec.Claim, id(claim))
					}
					if wantBegun == store.Claimed {
						e.want(store.OK, commit(op.Token, "c2", begun.Attempt))
					}
				}
			}
		},
	},
}
