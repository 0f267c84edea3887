package storetest

import "github.com/idemq/idemq/idem/store"

var commitCases = []testCase{
	{
		"own claim",
		"Commit under the record's claim id is OK and makes the token done, with the result: this is what keeps a message from being handled again.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"))
			e.want(store.OK, release("t", "c1", counted))
			e.claims(2, 1, 0, 0, begin("t", "c2", redrive(0)))
			e.want(store.OK, commit("t", "c2", 2, result("res")))
			r := e.state("t", store.Done)
			if e.caps.NoDoneDetails {
				return
			}
			if !names(r, id("c2")) || r.Attempt != 2 || r.Spent != 0 || r.Expiries != 0 || string(r.Result) != "res" || r.At.IsZero() {
				e.failf("the record is %+v", *r)
			}
		},
	},
	{
		"own claim run out",
		"Commit under the record's claim id is OK after the lease ran out: nobody took over, and a refusal would have the handler run again for nothing.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"), e.brief())
			e.runOut()
			e.want(store.OK, commit("t", "c1", 1))
			e.duplicates(false, begin("t", "c2"))
		},
	},
	{
		"repeat",
		"A repeated Commit is OK and changes nothing, neither the result nor the time: its first reply was lost.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"))
			e.want(store.OK, commit("t", "c1", 1, result("one")))
			if e.caps.NoDoneDetails {
				e.state("t", store.Done)
				return
			}
			e.unchanged("t", func() {
				e.wait(e.unit)
				e.want(store.OK, commit("t", "c1", 1, result("two")))
			})
		},
	},
	{
		"absent",
		"Commit on a token whose record is gone is OK: the effect happened, and nobody else holds the token.",
		func(e *env) {
			e.want(store.OK, commit("t", "c7", 7))
			r := e.duplicates(false, begin("t", "c8"))
			if !e.caps.NoDoneDetails && r.Attempt != 7 {
				e.failf("the attempt is %d, want the Commit's, 7", r.Attempt)
			}
		},
	},
	{
		"others claimed and gave back",
		"Commit is OK on a released token, whoever held it last: the effect of the claim whose lease ran out happened, and nobody works on the token.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"), e.brief())
			e.runOut()
			e.claims(2, 1, 1, 0, begin("t", "c2"))
			e.want(store.OK, release("t", "c2", counted))
			e.want(store.OK, commit("t", "c1", 1, result("late")))
			r := e.duplicates(false, begin("t", "c3"))
			if e.caps.NoDoneDetails {
				return
			}
			if string(r.Result) != "late" || r.Attempt != 2 {
				e.failf("result %q and attempt %d, want %q and 2: attempts never go down", r.Result, r.Attempt, "late")
			}
			if r := e.state("t", store.Done); !names(r, id("c1")) || r.Spent != 0 || r.Expiries != 0 {
				e.failf("the record is %+v", *r)
			}
		},
	},
	{
		"own Release",
		"Commit by the claim that released the token is OK: that Release came from a caller who did not know of the effect.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"))
			e.want(store.OK, release("t", "c1"))
			e.want(store.OK, commit("t", "c1", 1))
			e.duplicates(false, begin("t", "c2"))
		},
	},
	{
		"others claimed and buried",
		"Commit on a dead token is OK: the effect happened, so that a redrive of the dead letter must be a duplicate.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"), e.brief())
			e.runOut()
			e.claims(2, 1, 1, 0, begin("t", "c2"))
			e.want(store.OK, bury("t", "c2"))
			e.want(store.OK, commit("t", "c1", 1))
			e.duplicates(false, begin("t", "c3", redrive(1)))
		},
	},
	{
		"others hold it",
		"Commit is Lost while the token is in progress under another claim id, live or run out, and changes nothing: that claim's own outcome is still to come.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"), e.brief())
			e.runOut()
			e.claims(2, 1, 1, 0, begin("t", "c2"))
			e.unchanged("t", func() { e.want(store.Lost, commit("t", "c1", 1)) })
			e.want(store.OK, renew("t", "c2"), e.brief())
			e.runOut()
			e.unchanged("t", func() { e.want(store.Lost, commit("t", "c1", 1)) })
			e.want(store.OK, commit("t", "c2", 2))

			e.claims(1, 0, 0, 0, begin("anew", "c2")) // what c1 had is forgotten
			e.unchanged("anew", func() { e.want(store.Lost, commit("anew", "c1", 1)) })
			e.want(store.OK, commit("anew", "c2", 1))
		},
	},
	{
		"done by another",
		"Commit is Lost on a token that another claim completed, and the result stays the first one's.",
		func(e *env) {
			if e.caps.NoDoneDetails {
				e.Skip("the driver does not know who completed a token")
			}
			e.claims(1, 0, 0, 0, begin("t", "c1"), e.brief())
			e.runOut()
			e.claims(2, 1, 1, 0, begin("t", "c2"))
			e.want(store.OK, commit("t", "c2", 2, result("two")))
			e.unchanged("t", func() { e.want(store.Lost, commit("t", "c1", 1, result("one"))) })
		},
	},
	{
		"result of any bytes",
		"A result comes back byte for byte; no result comes back as an empty one.",
		func(e *env) {
			if e.caps.NoDoneDetails {
				e.Skip("the driver keeps no results")
			}
			large := make([]byte, 64<<10)
			for i := range large {
				large[i] = byte(i * 7)
			}
			for token, res := range map[string]string{
				"none": "", "zero": "\x00", "bytes": "a|b:c{d}\x00\r\n%\xff\xfe", "digits": "0012", "large": string(large),
			} {
				e.claims(1, 0, 0, 0, begin(token, "c1"))
				e.want(store.OK, commit(token, "c1", 1, result(res)))
				if r := e.duplicates(false, begin(token, "c2")); string(r.Result) != res {
					e.failf("the result of %q has %d bytes and is %.40q, want %d bytes, %.40q", token, len(r.Result), r.Result, len(res), res)
				}
				if r := e.state(token, store.Done); string(r.Result) != res {
					e.failf("the inspected result of %q is %.40q, want %.40q", token, r.Result, res)
				}
			}
		},
	},
}

var releaseCases = []testCase{
	{
		"own claim",
		"Release under the record's claim id is OK, run out or not, and the token can be claimed at once; counted, it raises spent by one.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"))
			e.want(store.OK, release("t", "c1", counted))
			if r := e.state("t", store.Released); !names(r, id("c1")) || r.Attempt != 1 || r.Spent != 1 {
				e.failf("the record is %+v", *r)
			}
			e.claims(2, 1, 0, 0, begin("t", "c2"), e.brief())
			e.runOut()
			e.want(store.OK, release("t", "c2"))
			e.claims(3, 1, 0, 0, begin("t", "c3"))
		},
	},
	{
		"repeat",
		"A repeated Release is OK and counts nothing: its first reply was lost, and counted twice it would cost the message half its budget.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"))
			e.want(store.OK, release("t", "c1", counted))
			e.want(store.OK, release("t", "c1", counted))
			e.claims(2, 1, 0, 0, begin("t", "c2"))
		},
	},
	{
		"repeat after the next claim",
		"A Release that is repeated after the token was claimed again is Lost: it must not give back somebody else's claim.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"))
			e.want(store.OK, release("t", "c1", counted))
			e.claims(2, 1, 0, 0, begin("t", "c2"))
			e.unchanged("t", func() { e.want(store.Lost, release("t", "c1", counted)) })
		},
	},
	{
		"all else",
		"Release of a token that the claim does not hold is Lost and changes nothing: absent, taken over, released by another, done, dead or forgotten.",
		func(e *env) {
			e.unchanged("absent", func() { e.want(store.Lost, release("absent", "c1", counted)) })
			e.notHolder(func(token, claim string) store.Op { return release(token, claim, counted) })
		},
	},
}

// notHolder tries an operation, that only the holder may do, on each state that
// a token can be in without it. The claims c1 and other do not hold it.
func (e *env) notHolder(op func(token, claim string) store.Op) {
	e.Helper()
	end := map[string]store.Op{
		"taken over": renew("taken over", "c2"),
		"released":   release("released", "c2"),
		"done":       commit("done", "c2", 2),
		"dead":       bury("dead", "c2"),
	}
	for token := range end {
		e.claims(1, 0, 0, 0, begin(token, "c1"), e.brief())
	}
	e.claims(1, 0, 0, 0, begin("forgotten", "c1"), e.brief())
	e.runOut()
	e.want(store.OK, forget("forgotten", "f1"))
	e.unchanged("forgotten", func() { e.want(store.Lost, op("forgotten", "c1")) })
	for token, last := range end {
		e.claims(2, 1, 1, 0, begin(token, "c2"))
		e.want(store.OK, last)
		e.unchanged(token, func() {
			e.want(store.Lost, op(token, "c1"))
			e.want(store.Lost, op(token, "other"))
		})
	}
}

var renewCases = []testCase{
	{
		"own claim",
		"Renew under the record's claim id starts the lease anew, run out or not, and counts nothing: a slow handler keeps its message.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"), e.brief())
			e.want(store.OK, renew("t", "c1"), e.brief())
			e.runOut()
			e.want(store.OK, renew("t", "c1"))
			e.want(store.InProgress, begin("t", "c2"))
			if r := e.state("t", store.Running); r.Attempt != 1 || r.Expiries != 0 || r.Lease <= e.unit {
				e.failf("the record is %+v", *r)
			}
		},
	},
	{
		"own claim ended",
		"Renew of a claim that was released, committed or buried is Lost: a renewal that is under way must not bring a claim back.",
		func(e *env) {
			for token, end := range map[string]store.Op{
				"released": release("released", "c1"),
				"done":     commit("done", "c1", 1),
				"dead":     bury("dead", "c1"),
			} {
				e.claims(1, 0, 0, 0, begin(token, "c1"))
				e.want(store.OK, end)
				e.unchanged(token, func() { e.want(store.Lost, renew(token, "c1")) })
			}
		},
	},
	{
		"all else",
		"Renew of a token that the claim does not hold is Lost and changes nothing: this is how a lost lease is learnt.",
		func(e *env) {
			e.unchanged("absent", func() { e.want(store.Lost, renew("absent", "c1")) })
			e.notHolder(renew)
		},
	},
}

var buryCases = []testCase{
	{
		"own claim",
		"Bury under the record's claim id is OK, run out or not: the token is dead, and its counts are set to zero.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"))
			e.want(store.OK, release("t", "c1", counted))
			e.claims(2, 1, 0, 0, begin("t", "c2"), e.brief())
			e.runOut()
			e.claims(3, 2, 1, 0, begin("t", "c3"), e.brief())
			e.runOut()
			e.want(store.OK, bury("t", "c3"))
			r := e.state("t", store.Dead)
			if !names(r, id("c3")) || r.Attempt != 3 || r.Spent != 0 || r.Expiries != 0 || r.At.IsZero() {
				e.failf("the record is %+v", *r)
			}
			e.duplicates(true, begin("t", "c4"))
		},
	},
	{
		"repeat",
		"A repeated Bury is OK and changes nothing: refused, the message would be dead-lettered a second time.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"))
			e.want(store.OK, bury("t", "c1"))
			e.unchanged("t", func() { e.want(store.OK, bury("t", "c1")) })
		},
	},
	{
		"repeat after a redrive",
		"A Bury that is repeated after the token was redriven is Lost: it must not bury the redriven message, which has no dead-letter copy yet.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"))
			e.want(store.OK, bury("t", "c1"))
			e.claims(2, 0, 0, 1, begin("t", "c2", redrive(1)))
			e.unchanged("t", func() { e.want(store.Lost, bury("t", "c1")) })
		},
	},
	{
		"own claim ended",
		"Bury of a claim that was released or committed is Lost: a completed effect is not turned into a dead letter.",
		func(e *env) {
			for token, end := range map[string]store.Op{
				"released": release("released", "c1"),
				"done":     commit("done", "c1", 1),
			} {
				e.claims(1, 0, 0, 0, begin(token, "c1"))
				e.want(store.OK, end)
				e.unchanged(token, func() { e.want(store.Lost, bury(token, "c1")) })
			}
		},
	},
	{
		"all else",
		"Bury of a token that the claim does not hold is Lost and changes nothing: somebody else decides what becomes of it.",
		func(e *env) {
			e.unchanged("absent", func() { e.want(store.Lost, bury("absent", "c1")) })
			e.notHolder(bury)
		},
	},
}
