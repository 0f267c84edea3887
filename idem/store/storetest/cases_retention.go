package storetest

import (
	"time"

	"github.com/idemq/idemq/idem/store"
)

// short is a retention that ends while a case runs.
func (e *env) short() term { return retention(8 * e.unit) }

// within reports whether less than d passed on the store's clock since start; a
// slow machine may make a case pointless, not red.
func (e *env) within(start time.Time, d time.Duration) bool {
	e.Helper()
	if passed := e.now.Sub(start); passed >= d {
		e.Logf("not judged: %v passed on the store's clock, the case had %v", passed, d)
		return false
	}
	return true
}

// completed tries that a token which is done, or dead, is known for the
// retention and, where the driver is exact, not after it.
func (e *env) completed(dead bool, complete func()) {
	e.Helper()
	complete()
	start := e.now
	e.wait(6 * e.unit)
	r := e.try(begin("t", "late"), e.short())
	if !e.within(start, 8*e.unit) {
		return // it may have been claimed, which is right then
	}
	if r.Status != store.Duplicate || r.Dead != dead {
		e.failf("%v after it was completed, with a retention of %v, Begin was answered %s with Dead %v",
			e.now.Sub(start), 8*e.unit, statusName(r.Status), r.Dead)
	}
	if e.caps.NoDoneDetails && !dead {
		return // may remember for longer
	}
	e.wait(3 * e.unit)
	e.state("t", store.Absent)
	e.claims(1, 0, 0, 0, begin("t", "again"), e.short())
}

var retentionCases = []testCase{
	{
		"done",
		"A done token is known for the retention, counted from its completion, and not longer: forgotten earlier, a message is handled twice; kept for ever, the store fills up. Duplicates do not prolong it.",
		func(e *env) {
			e.completed(false, func() {
				e.claims(1, 0, 0, 0, begin("t", "c1"), e.short())
				e.want(store.OK, commit("t", "c1", 1), e.short())
			})
		},
	},
	{
		"spent",
		"A token that Spend made done is known for the retention, and not longer.",
		func(e *env) { e.completed(false, func() { e.claims(1, 0, 0, 0, spend("t", "c1"), e.short()) }) },
	},
	{
		"dead",
		"A dead token is known for the retention, and not longer: forgotten earlier, a redelivery is dead-lettered again.",
		func(e *env) {
			e.completed(true, func() {
				e.claims(1, 0, 0, 0, begin("t", "c1"), e.short())
				e.want(store.OK, bury("t", "c1"), e.short())
			})
		},
	},
	{
		"released",
		"A released record keeps its counts for at least a retention after its last change: on a broker that redelivers slowly the budget would never end.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"), e.short())
			e.wait(5 * e.unit)
			e.want(store.OK, release("t", "c1", counted), e.short())
			start := e.now
			e.wait(6 * e.unit)
			if r := e.inspect("t"); e.within(start, 8*e.unit) && (r.State != store.Released || r.Attempt != 1 || r.Spent != 1) {
				e.failf("the record is %+v", *r)
			}
		},
	},
	{
		"in progress",
		"A record in progress keeps its counts for at least a retention after its last change, long after its lease has run out: the crash is still to be counted.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"), e.brief(), e.short())
			claimed := e.now
			e.wait(5 * e.unit)
			r := e.try(renew("t", "c1"), e.brief(), e.short())
			if !e.within(claimed, 8*e.unit) {
				return
			}
			if r.Status != store.OK {
				e.failf("Renew was answered %s", statusName(r.Status))
			}
			start := e.now
			e.wait(6 * e.unit)
			if r := e.inspect("t"); e.within(start, 8*e.unit) && (r.State != store.Running || r.Attempt != 1 || r.Lease > 0) {
				e.failf("the record is %+v", *r)
			}
		},
	},
	{
		"forgotten",
		"A forgotten record keeps its counts, and so its fence, for at least a retention.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"), e.short())
			e.want(store.OK, release("t", "c1"), e.short())
			released := e.now
			e.wait(5 * e.unit)
			e.want(store.OK, forget("t", "f1"), e.short())
			if !e.within(released, 8*e.unit) {
				return // nothing was left to forget
			}
			start := e.now
			e.wait(6 * e.unit)
			r := e.try(commit("t", "c1", 1), e.short())
			if e.within(start, 8*e.unit) && r.Status != store.Lost {
				e.failf("a fenced Commit was answered %s", statusName(r.Status))
			}
		},
	},
	{
		"lease longer than the retention",
		"A live claim is not dropped when the retention is shorter than its lease: somebody else would be given the message beside it.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"), retention(e.unit))
			e.runOut()
			e.want(store.InProgress, begin("t", "c2"), retention(e.unit))
			e.want(store.OK, commit("t", "c1", 1))
		},
	},
}
