package storetest

import (
	"math"
	"time"

	"github.com/idemq/idemq/idem/store"
)

var beginCases = []testCase{
	{
		"absent",
		"Begin on a token that was never seen is Claimed with attempt 1 and nothing spent: a store that answers anything else loses the message or miscounts its attempts.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"))
			r := e.state("t", store.Running)
			if !names(r, id("c1")) || r.Attempt != 1 {
				e.failf("the record is %+v", *r)
			}
		},
	},
	{
		"repeat",
		"A repeated Begin under the record's own claim id is Claimed with the same counts: the first reply was lost, and a second count, or InProgress, would spend the budget or stall the message for its own claim.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"))
			e.claims(1, 0, 0, 0, begin("t", "c1"))
			e.claims(1, 0, 0, 0, begin("t", "c1"))
			if r := e.state("t", store.Running); r.Attempt != 1 || r.Spent != 0 || r.Expiries != 0 {
				e.failf("the record counted repeats: %+v", *r)
			}
		},
	},
	{
		"repeat after the lease ran out",
		"A repeated Begin under the record's own claim id starts the lease anew, run out or not, and counts nothing: nobody took over, so nothing expired.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"), e.brief())
			e.runOut()
			e.claims(1, 0, 0, 0, begin("t", "c1"))
			e.want(store.InProgress, begin("t", "c2"))
		},
	},
	{
		"in progress",
		"Begin under somebody else's live claim is InProgress, says after how long to ask again, and changes nothing: two handlers of one message must not overlap.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"))
			e.unchanged("t", func() {
				if r := e.want(store.InProgress, begin("t", "c2")); r.RetryAfter > 1000*e.unit {
					e.failf("RetryAfter is %v, longer than the lease of %v", r.RetryAfter, 1000*e.unit)
				}
			})
		},
	},
	{
		"run out",
		"Begin on a claim whose lease has run out takes it over and raises attempt, spent and expiries by one: a message that kills its consumer each time must be counted, or it circles for ever.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"), e.brief())
			e.runOut()
			e.claims(2, 1, 1, 0, begin("t", "c2"), e.brief())
			e.runOut()
			e.claims(3, 2, 2, 0, begin("t", "c3"))
			if r := e.state("t", store.Running); !names(r, id("c3")) || r.Attempt != 3 || r.Spent != 2 || r.Expiries != 2 {
				e.failf("the record is %+v", *r)
			}
		},
	},
	{
		"released",
		"Begin on a released token is Claimed, the attempt goes up, and spent is what counted releases made it: counts survive, or the budget never ends.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"))
			e.want(store.OK, release("t", "c1", counted))
			e.claims(2, 1, 0, 0, begin("t", "c2"))
			e.want(store.OK, release("t", "c2"))
			e.claims(3, 1, 0, 0, begin("t", "c3"), e.brief())
			e.runOut()
			e.want(store.OK, release("t", "c3", counted))
			e.claims(4, 2, 0, 0, begin("t", "c4"), e.brief())
			e.runOut()
			e.claims(5, 3, 1, 0, begin("t", "c5"))
			e.want(store.OK, release("t", "c5"))
			e.claims(6, 3, 1, 0, begin("t", "c6"))
		},
	},
	{
		"released claim does not come back",
		"Begin under the claim id that released the token is Lost: it is a late repeat of a Begin that was answered, and a claim made by it would belong to nobody and hold the message for a lease.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"))
			e.want(store.OK, release("t", "c1"))
			e.unchanged("t", func() { e.want(store.Lost, begin("t", "c1")) })
			e.claims(2, 0, 0, 0, begin("t", "c2"))
		},
	},
	{
		"forgotten",
		"Begin on a forgotten token is Claimed with nothing spent, and the attempt goes on from where it was: attempts tell claims before the Forget from those after it.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"))
			e.want(store.OK, release("t", "c1", counted))
			e.want(store.OK, forget("t", "f1"))
			e.claims(2, 0, 0, 0, begin("t", "c2"))
		},
	},
	{
		"done",
		"Begin on a done token is Duplicate, with when and on which attempt it was completed and with its result: a completed message is not processed again.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"))
			e.want(store.OK, release("t", "c1", counted))
			e.claims(2, 1, 0, 0, begin("t", "c2"))
			e.want(store.OK, commit("t", "c2", 2, result("res")))
			at := e.now
			for _, claim := range []string{"c3", "c2", "c1"} {
				e.unchanged("t", func() {
					r := e.duplicates(false, begin("t", claim))
					if e.caps.NoDoneDetails {
						return
					}
					if r.Attempt != 2 || string(r.Result) != "res" {
						e.failf("attempt %d and result %q, want 2 and %q", r.Attempt, r.Result, "res")
					}
					if d := r.At.Sub(at).Abs(); d > e.unit {
						e.failf("At is %v away from the clock of the Commit's batch", d)
					}
				})
			}
		},
	},
	{
		"dead",
		"Begin on a dead token is Duplicate with Dead, and with the record's redrive number: the dead-letter copy exists, and a stray redelivery must not start over.",
		func(e *env) {
			e.claims(1, 0, 0, 3, begin("t", "c1", redrive(3)))
			e.want(store.OK, bury("t", "c1"))
			at := e.now
			e.unchanged("t", func() {
				r := e.duplicates(true, begin("t", "c2"))
				if r.Attempt != 1 || r.Redrive != 3 {
					e.failf("attempt %d and redrive %d, want 1 and 3", r.Attempt, r.Redrive)
				}
				if d := r.At.Sub(at).Abs(); d > e.unit {
					e.failf("At is %v away from the clock of the Bury's batch", d)
				}
			})
			e.duplicates(true, begin("t", "c1", redrive(3)))
		},
	},
	{
		"usurped claim asks again",
		"A Begin under a claim id that was taken over is a Begin like any other: InProgress while the new claim is live; it must not steal the token back.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"), e.brief())
			e.runOut()
			e.claims(2, 1, 1, 0, begin("t", "c2"))
			e.unchanged("t", func() { e.want(store.InProgress, begin("t", "c1")) })
		},
	},
}

var redriveCases = []testCase{
	{
		"highest",
		"The highest redrive number is kept exactly, by each way in, and the one below it is not higher: read as another number it would let a stray redelivery start over, or refuse the completion.",
		func(e *env) {
			const highest = min(store.MaxRedrive, math.MaxInt)
			e.claims(1, 0, 0, highest, begin("t", "c1", redrive(highest)))
			e.want(store.OK, bury("t", "c1"))
			if r := e.state("t", store.Dead); r.Redrive != highest {
				e.failf("the record is %+v", *r)
			}
			e.duplicates(true, begin("t", "c2", redrive(highest)))
			e.claims(1, 0, 0, highest-1, begin("u", "c3", redrive(highest-1)))
			e.want(store.OK, release("u", "c3", counted))
			e.claims(2, 0, 0, highest, begin("u", "c4", redrive(highest)))
			e.want(store.OK, commit("u", "c4", 2))
			e.claims(1, 0, 0, highest, spend("v", "c5", redrive(highest)))
			e.duplicates(false, begin("v", "c6", redrive(highest)))
		},
	},
	{
		"absent",
		"A redrive number on a token without a record is taken into the record: the next dead-letter copy counts on from it.",
		func(e *env) { e.claims(1, 0, 0, 2, begin("t", "c1", redrive(2))) },
	},
	{
		"released",
		"A higher redrive number on a released token sets spent and expiries to zero, not the attempt: an operator asked for a fresh budget.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"), e.brief())
			e.runOut()
			e.claims(2, 1, 1, 0, begin("t", "c2"))
			e.want(store.OK, release("t", "c2", counted))
			e.claims(3, 0, 0, 1, begin("t", "c3", redrive(1)))
		},
	},
	{
		"not higher",
		"A redrive number that is not higher than the record's sets nothing back: a redelivery of the same redriven message would never reach its budget.",
		func(e *env) {
			e.claims(1, 0, 0, 2, begin("t", "c1", redrive(2)))
			e.want(store.OK, release("t", "c1", counted))
			e.claims(2, 1, 0, 2, begin("t", "c2", redrive(2)))
			e.want(store.OK, release("t", "c2", counted))
			e.claims(3, 2, 0, 2, begin("t", "c3", redrive(1)))
		},
	},
	{
		"forgotten",
		"A redrive number outlives a Forget, and a higher one is taken over: with a lower one a stray copy could be taken for a new redrive.",
		func(e *env) {
			e.claims(1, 0, 0, 2, begin("t", "c1", redrive(2)))
			e.want(store.OK, bury("t", "c1"))
			e.want(store.OK, forget("t", "f1"))
			e.claims(2, 0, 0, 2, begin("t", "c2"))
			e.want(store.OK, bury("t", "c2"))
			e.duplicates(true, begin("t", "c3", redrive(2)))
			e.want(store.OK, forget("t", "f2"))
			e.claims(3, 0, 0, 5, begin("t", "c4", redrive(5)))
		},
	},
	{
		"dead",
		"A higher redrive number on a dead token is Claimed in that same step, with the budget set back; an equal or lower one is a Duplicate: moving a dead letter back works, and a stray redelivery does not.",
		func(e *env) {
			e.claims(1, 0, 0, 1, begin("t", "c1", redrive(1)))
			e.want(store.OK, release("t", "c1", counted))
			e.claims(2, 1, 0, 1, begin("t", "c2", redrive(1)))
			e.want(store.OK, bury("t", "c2"))
			e.duplicates(true, begin("t", "c3", redrive(1)))
			e.duplicates(true, begin("t", "c3"))
			e.claims(3, 0, 0, 2, begin("t", "c4", redrive(2)))
			e.claims(3, 0, 0, 2, begin("t", "c4", redrive(2)))
			e.want(store.InProgress, begin("t", "c5", redrive(2)))
			if r := e.state("t", store.Running); !names(r, id("c4")) || r.Redrive != 2 {
				e.failf("the record is %+v", *r)
			}
		},
	},
	{
		"run out",
		"A higher redrive number on a claim that has run out sets the counts to zero, and that claim is not counted: else a budget of one would dead-letter each redrive without a start.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"))
			e.want(store.OK, release("t", "c1", counted))
			e.claims(2, 1, 0, 0, begin("t", "c2"), e.brief())
			e.runOut()
			e.claims(3, 0, 0, 1, begin("t", "c3", redrive(1)))
		},
	},
	{
		"live",
		"A higher redrive number changes nothing under somebody else's live claim: that claim's budget is its own.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"))
			e.unchanged("t", func() { e.want(store.InProgress, begin("t", "c2", redrive(1))) })
		},
	},
	{
		"done",
		"A higher redrive number on a done token is a Duplicate, always: another group may have completed the very message that this one buried.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"))
			e.want(store.OK, commit("t", "c1", 1))
			e.unchanged("t", func() { e.duplicates(false, begin("t", "c2", redrive(9))) })
		},
	},
}

var aloneCases = []testCase{
	{
		"expiry that this Begin finds",
		"Begin that would bring the expiries to MaxExpiries is NeedAlone, tells the counts as they would have been, and changes nothing: a message that kills its consumer must not take its neighbours along.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"), e.brief())
			e.runOut()
			e.unchanged("t", func() {
				r := e.want(store.NeedAlone, begin("t", "c2", maxExpiries(1)))
				if r.Spent != 1 || r.Expiries != 1 || r.Redrive != 0 {
					e.failf("spent %d, expiries %d, redrive %d; want 1, 1, 0", r.Spent, r.Expiries, r.Redrive)
				}
			})
			e.claims(2, 1, 1, 0, begin("t", "c2", maxExpiries(2)), e.brief())
			e.runOut()
			e.unchanged("t", func() { e.want(store.NeedAlone, begin("t", "c3", maxExpiries(2))) })
			e.claims(3, 2, 2, 0, begin("t", "c3"))
		},
	},
	{
		"expiries of before",
		"Expiries outlive a Release, and Begin on a released token is NeedAlone too where they reach MaxExpiries.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"), e.brief())
			e.runOut()
			e.claims(2, 1, 1, 0, begin("t", "c2"))
			e.want(store.OK, release("t", "c2", counted))
			e.unchanged("t", func() {
				r := e.want(store.NeedAlone, begin("t", "c3", maxExpiries(1)))
				if r.Spent != 2 || r.Expiries != 1 {
					e.failf("spent %d and expiries %d, want 2 and 1", r.Spent, r.Expiries)
				}
			})
			e.claims(3, 2, 1, 0, begin("t", "c3", maxExpiries(2)))
		},
	},
	{
		"redrive",
		"A higher redrive number sets the counts back, and the run-out claim that it finds counts no more either: an operator moved the message back after the cause was mended, so it starts afresh.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"), e.brief())
			e.runOut()
			e.claims(2, 1, 1, 0, begin("t", "c2"))
			e.want(store.OK, release("t", "c2"))
			e.claims(3, 0, 0, 1, begin("t", "c3", redrive(1), maxExpiries(1)), e.brief())
			e.runOut()
			e.claims(4, 0, 0, 2, begin("t", "c4", redrive(2), maxExpiries(1)))
		},
	},
	{
		"own claim",
		"A repeat under the record's own claim id is Claimed, whatever MaxExpiries says: it finds no expiry.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1", maxExpiries(1)), e.brief())
			e.runOut()
			e.claims(1, 0, 0, 0, begin("t", "c1", maxExpiries(1)))
		},
	},
}

// takeoverLease is long enough for a few batches between its third and its end.
func (e *env) takeoverLease() time.Duration { return 20 * e.unit }

var takeoverCases = []testCase{
	{
		"before a renewal was missed",
		"A higher incarnation of the same owner that comes before TakeoverAfter is InProgress, and RetryAfter is the time until then: the lower one may be alive, and overlap.",
		func(e *env) {
			lease := lease(1000 * e.unit)
			e.claims(1, 0, 0, 0, begin("t", "c1"), owner("pod", 1), lease)
			e.unchanged("t", func() {
				r := e.want(store.InProgress, begin("t", "c2"), owner("pod", 2), lease)
				if limit := store.TakeoverAfter(1000*e.unit) + time.Millisecond; r.RetryAfter > limit {
					e.failf("RetryAfter is %v, want at most %v", r.RetryAfter, limit)
				}
			})
		},
	},
	{
		"after a renewal was missed",
		"A higher incarnation of the same owner takes a claim over once that has missed a renewal, and it counts as an expiry: after a crash the restarted process need not wait for its own old leases.",
		func(e *env) {
			l := e.takeoverLease()
			e.claims(1, 0, 0, 0, begin("t", "c1"), owner("pod", 1), lease(l))
			e.wait(store.TakeoverAfter(l) + e.unit/2)
			e.claims(2, 1, 1, 0, begin("t", "c2"), owner("pod", 2), lease(1000*e.unit))
			if r := e.state("t", store.Running); r.Owner != "pod" || r.Incarnation != 2 {
				e.failf("owner %q, incarnation %d; want the taker's, %q and 2", r.Owner, r.Incarnation, "pod")
			}
			e.want(store.Superseded, begin("t", "c1"), owner("pod", 1))
		},
	},
	{
		"renewal puts it off",
		"TakeoverAfter counts from the last renewal: who renews is alive.",
		func(e *env) {
			l := e.takeoverLease()
			e.claims(1, 0, 0, 0, begin("t", "c1"), owner("pod", 1), lease(l))
			e.wait(store.TakeoverAfter(l) + e.unit/2)
			e.want(store.OK, renew("t", "c1"), owner("pod", 1), lease(l))
			start := e.now
			r := e.try(begin("t", "c2"), owner("pod", 2), lease(l))
			if e.within(start, store.TakeoverAfter(l)) && r.Status != store.InProgress {
				e.failf("right after a renewal the higher incarnation was answered %s, want InProgress", statusName(r.Status))
			}
		},
	},
	{
		"renewal keeps the owner",
		"Renew leaves owner and incarnation as they are.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"), owner("pod", 3))
			e.want(store.OK, renew("t", "c1"), owner("pod", 3))
			if r := e.state("t", store.Running); r.Owner != "pod" || r.Incarnation != 3 {
				e.failf("owner %q, incarnation %d; want %q and 3", r.Owner, r.Incarnation, "pod")
			}
		},
	},
	{
		"superseded",
		"A lower incarnation that meets a live claim of a higher one is Superseded: of two processes with one name the older one must learn that it is not alone, and stop.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"), owner("pod", 5))
			e.unchanged("t", func() { e.want(store.Superseded, begin("t", "c2"), owner("pod", 4)) })
		},
	},
	{
		"lower after the lease",
		"A claim that has run out is taken over by anybody, a lower incarnation included: Superseded is about live claims.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"), owner("pod", 5), e.brief())
			e.runOut()
			e.claims(2, 1, 1, 0, begin("t", "c2"), owner("pod", 4))
		},
	},
	{
		"others",
		"Only a higher incarnation of the same, named owner takes over before the lease's end: the same incarnation, another name, and no name wait for it.",
		func(e *env) {
			l := lease(100 * e.unit)
			e.claims(1, 0, 0, 0, begin("named", "c1"), owner("pod", 1), l)
			e.claims(1, 0, 0, 0, begin("nameless", "c1"), owner("", 1), l)
			e.wait(store.TakeoverAfter(100*e.unit) + e.unit)
			e.want(store.InProgress, begin("named", "c2"), owner("pod", 1))
			e.want(store.InProgress, begin("named", "c3"), owner("other", 2))
			e.want(store.InProgress, begin("named", "c4"), owner("", 2))
			e.want(store.InProgress, begin("nameless", "c5"), owner("", 2))
			e.want(store.InProgress, begin("nameless", "c6"), owner("", 0))
			e.want(store.InProgress, begin("nameless", "c7"), owner("pod", 2))
		},
	},
	{
		"large incarnations",
		"Incarnations are compared as 64-bit integers: drawn from a clock they differ in their last digits only, which a floating-point number drops.",
		func(e *env) {
			const n = 1<<63 + 1
			l := e.takeoverLease()
			e.claims(1, 0, 0, 0, begin("t", "c1"), owner("pod", n), lease(1000*e.unit))
			e.want(store.Superseded, begin("t", "c2"), owner("pod", n-1))
			if r := e.state("t", store.Running); r.Incarnation != n {
				e.failf("the record's incarnation is %d, want %d", r.Incarnation, uint64(n))
			}
			e.claims(1, 0, 0, 0, begin("u", "c1"), owner("pod", n), lease(l))
			e.wait(store.TakeoverAfter(l) + e.unit/2)
			e.claims(2, 1, 1, 0, begin("u", "c2"), owner("pod", n+1))
		},
	},
	{
		"any bytes in a name",
		"An owner's name may hold any bytes, and comes back as it was.",
		func(e *env) {
			name := "a|b:c{d}\x00\n%_\xff"
			e.claims(1, 0, 0, 0, begin("t", "c1"), owner(name, 2))
			if r := e.state("t", store.Running); r.Owner != name {
				e.failf("the owner is %q, want %q", r.Owner, name)
			}
			e.want(store.Superseded, begin("t", "c2"), owner(name, 1))
			e.want(store.InProgress, begin("t", "c3"), owner("a", 1))
		},
	},
}

var fingerprintCases = []testCase{
	{
		"conflict",
		"Begin with another fingerprint than the record's is Conflict in every state and changes nothing: answered as a duplicate, a message would be dropped that nobody handled.",
		func(e *env) {
			if e.caps.NoFingerprints {
				e.Skip("the driver keeps no fingerprints")
			}
			for _, s := range []struct {
				name string
				end  func(token string)
			}{
				{"live", func(string) {}},
				{"released", func(tok string) { e.want(store.OK, release(tok, "c1")) }},
				{"done", func(tok string) { e.want(store.OK, commit(tok, "c1", 1)) }},
				{"dead", func(tok string) { e.want(store.OK, bury(tok, "c1")) }},
			} {
				e.claims(1, 0, 0, 0, begin(s.name, "c1", fingerprint("x")))
				s.end(s.name)
				e.unchanged(s.name, func() {
					e.want(store.Conflict, begin(s.name, "c2", fingerprint("y")))
					e.want(store.Conflict, spend(s.name, "c3", fingerprint("y")))
				})
			}
			e.claims(1, 0, 0, 0, begin("run out", "c1", fingerprint("x")), e.brief())
			e.runOut()
			e.unchanged("run out", func() { e.want(store.Conflict, begin("run out", "c2", fingerprint("y"), maxExpiries(1))) })
			e.want(store.Conflict, begin("done", "c4", fingerprint("y"), redrive(1)))
			e.want(store.Conflict, begin("live", "c4", fingerprint("y"), redrive(1)))
		},
	},
	{
		"same or none",
		"The same fingerprint, and none on either side, is no conflict; an accepted claim without one keeps the record's.",
		func(e *env) {
			if e.caps.NoFingerprints {
				e.Skip("the driver keeps no fingerprints")
			}
			e.claims(1, 0, 0, 0, begin("t", "c1"))
			e.want(store.InProgress, begin("t", "c2", fingerprint("x")))
			e.want(store.OK, release("t", "c1"))
			e.claims(2, 0, 0, 0, begin("t", "c3", fingerprint("x")))
			e.want(store.OK, release("t", "c3"))
			e.claims(3, 0, 0, 0, begin("t", "c4"))
			if r := e.state("t", store.Running); r.Fingerprint != "x" {
				e.failf("the record's fingerprint is %q, want %q", r.Fingerprint, "x")
			}
			e.want(store.Conflict, begin("t", "c5", fingerprint("y")))
			e.want(store.OK, commit("t", "c4", 3))
			e.duplicates(false, begin("t", "c6", fingerprint("x")))
			e.duplicates(false, begin("t", "c7"))
			e.want(store.Conflict, begin("t", "c8", fingerprint("y")))
		},
	},
	{
		"redrive or Forget",
		"A redrive number that is accepted replaces the fingerprint, and Forget drops it: whoever mends a payload by hand may hand it in.",
		func(e *env) {
			if e.caps.NoFingerprints {
				e.Skip("the driver keeps no fingerprints")
			}
			e.claims(1, 0, 0, 0, begin("t", "c1", fingerprint("x")))
			e.want(store.OK, bury("t", "c1"))
			e.want(store.Conflict, begin("t", "c2", fingerprint("y")))
			e.claims(2, 0, 0, 1, begin("t", "c3", fingerprint("y"), redrive(1)))
			e.want(store.Conflict, begin("t", "c4", fingerprint("x")))
			e.want(store.OK, release("t", "c3"))
			e.want(store.OK, forget("t", "f1"))
			e.claims(3, 0, 0, 1, begin("t", "c5", fingerprint("z")))
		},
	},
	{
		"redrive fences",
		"A claim of the payload from before a redrive of another one cannot commit: what it has done is not what the token stands for now, and the other payload would be dropped.",
		func(e *env) {
			if e.caps.NoFingerprints {
				e.Skip("the driver keeps no fingerprints")
			}
			lost := func(token string) {
				e.Helper()
				e.unchanged(token, func() { e.want(store.Lost, commit(token, "c1", 1)) })
			}
			e.claims(1, 0, 0, 0, begin("t", "c1", fingerprint("x")), e.brief())
			e.claims(1, 0, 0, 0, begin("u", "c1", fingerprint("x")), e.brief())
			e.runOut()
			e.claims(2, 0, 0, 1, begin("t", "c2", fingerprint("y"), redrive(1)))
			e.want(store.OK, release("t", "c2"))
			lost("t")
			e.claims(3, 0, 0, 1, begin("t", "c3", fingerprint("y")))
			e.want(store.OK, bury("t", "c3"))
			lost("t")
			e.want(store.OK, commit("t", "c2", 2))

			e.claims(2, 0, 0, 1, spend("u", "c2", fingerprint("y"), redrive(1)))
			e.want(store.OK, bury("u", "c2"))
			lost("u")

			// The same payload's may: it is what was asked for.
			e.claims(1, 0, 0, 0, begin("v", "c1", fingerprint("x")), e.brief())
			e.runOut()
			e.claims(2, 0, 0, 1, begin("v", "c2", fingerprint("x"), redrive(1)))
			e.want(store.OK, release("v", "c2"))
			e.want(store.OK, commit("v", "c1", 1))
		},
	},
	{
		"not kept",
		"A driver that declares NoFingerprints compares none: to it every payload of a token is the same.",
		func(e *env) {
			if !e.caps.NoFingerprints {
				e.Skip("the driver keeps fingerprints")
			}
			e.claims(1, 0, 0, 0, begin("t", "c1", fingerprint("x")))
			e.want(store.OK, release("t", "c1"))
			e.claims(2, 0, 0, 0, begin("t", "c2", fingerprint("y")))
		},
	},
}
