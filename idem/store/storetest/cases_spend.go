package storetest

import "github.com/idemq/idemq/idem/store"

var spendCases = []testCase{
	{
		"absent",
		"Spend on a token that was never seen is Claimed and makes it done at once: at most once means that nobody gets it again, whatever becomes of the handler.",
		func(e *env) {
			e.claims(1, 0, 0, 0, spend("t", "c1"))
			e.state("t", store.Done)
			e.duplicates(false, spend("t", "c2"))
			e.duplicates(false, begin("t", "c3"))
		},
	},
	{
		"repeat",
		"A repeated Spend under the same claim id is Claimed with the same counts, not Duplicate: the first reply was lost, and nobody else would ever start the handler.",
		func(e *env) {
			e.claims(1, 0, 0, 2, spend("t", "c1", redrive(2)))
			e.claims(1, 0, 0, 2, spend("t", "c1", redrive(2)))
			e.duplicates(false, spend("t", "c2"))
			e.claims(1, 0, 0, 2, spend("t", "c1", redrive(2)))
		},
	},
	{
		"released",
		"Spend on a released token is Claimed, and Spent, the same on a repeat, tells that an earlier handler may have started: without it, at most once would be twice.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"))
			e.want(store.OK, release("t", "c1", counted))
			for range 2 {
				e.claims(2, 1, 0, 0, spend("t", "c2"))
			}
			if r := e.state("t", store.Done); r.Spent != 0 || r.Expiries != 0 {
				e.failf("spent %d and expiries %d of a done record, want 0 and 0", r.Spent, r.Expiries)
			}
		},
	},
	{
		"run out",
		"Spend on a claim that has run out is Claimed with Spent one higher, on a repeat too: the handler may have started under the lost claim. That claim can no longer commit.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"), e.brief())
			e.runOut()
			for range 2 {
				e.claims(2, 1, 0, 0, spend("t", "c2"))
			}
			if !e.caps.NoDoneDetails {
				e.unchanged("t", func() { e.want(store.Lost, commit("t", "c1", 1)) })
			}
		},
	},
	{
		"in progress",
		"Spend under somebody else's live claim is InProgress and changes nothing, of whatever incarnation that is.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"), owner("pod", 5))
			e.unchanged("t", func() {
				e.want(store.InProgress, spend("t", "c2"))
				e.want(store.InProgress, spend("t", "c3", redrive(1)), owner("pod", 4))
			})
		},
	},
	{
		"done",
		"Spend on a token that Begin and Commit completed is Duplicate with its result, also under the claim id that committed it.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"))
			e.want(store.OK, commit("t", "c1", 1, result("res")))
			e.unchanged("t", func() {
				r := e.duplicates(false, spend("t", "c2", redrive(1)))
				if !e.caps.NoDoneDetails && (string(r.Result) != "res" || r.Attempt != 1) {
					e.failf("result %q and attempt %d, want %q and 1", r.Result, r.Attempt, "res")
				}
			})
		},
	},
	{
		"forgotten",
		"Spend on a forgotten token is Claimed, and the attempt goes on.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"))
			e.want(store.OK, release("t", "c1", counted))
			e.want(store.OK, forget("t", "f1"))
			e.claims(2, 0, 0, 0, spend("t", "c2"))
		},
	},
	{
		"buried by its spender",
		"Bury by the claim that spent the token makes it dead, and a repeat of that is OK; a higher redrive number then spends it anew, and an equal one does not.",
		func(e *env) {
			e.claims(1, 0, 0, 0, spend("t", "c1"))
			e.want(store.Lost, bury("t", "c2"))
			e.want(store.OK, bury("t", "c1"))
			e.want(store.OK, bury("t", "c1"))
			e.state("t", store.Dead)
			e.duplicates(true, spend("t", "c2"))
			r := e.want(store.Claimed, spend("t", "c3", redrive(1)))
			if r.Spent != 0 || r.Redrive != 1 || (r.Attempt != 2 && !e.caps.NoDoneDetails) {
				e.failf("attempt %d, spent %d, redrive %d; want 2, 0, 1", r.Attempt, r.Spent, r.Redrive)
			}
			e.duplicates(false, spend("t", "c4", redrive(1)))
			e.state("t", store.Done)
		},
	},
	{
		"not buried by another",
		"Bury is Lost on a token that another claim spent: only the spender may turn done into dead.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"), e.brief())
			e.runOut()
			e.claims(2, 1, 0, 0, spend("t", "c2"))
			e.unchanged("t", func() { e.want(store.Lost, bury("t", "c1")) })
		},
	},
	{
		"redrive",
		"A higher redrive number sets Spent to zero, on a released token and on one whose claim ran out: an operator asked for another start.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("released", "c1"))
			e.want(store.OK, release("released", "c1", counted))
			e.claims(2, 0, 0, 1, spend("released", "c2", redrive(1)))
			e.claims(1, 0, 0, 0, begin("run out", "c1"), e.brief())
			e.runOut()
			e.claims(2, 0, 0, 1, spend("run out", "c2", redrive(1)))
			e.claims(1, 0, 0, 4, spend("absent", "c1", redrive(4)))
		},
	},
	{
		"fingerprint",
		"Spend keeps its fingerprint, and another payload's Begin or Spend is then a Conflict; its own repeat is none.",
		func(e *env) {
			if e.caps.NoFingerprints {
				e.Skip("the driver keeps no fingerprints")
			}
			e.claims(1, 0, 0, 0, spend("t", "c1", fingerprint("x")))
			e.unchanged("t", func() {
				e.want(store.Conflict, spend("t", "c2", fingerprint("y")))
				e.want(store.Conflict, begin("t", "c3", fingerprint("y")))
			})
			e.claims(1, 0, 0, 0, spend("t", "c1", fingerprint("x")))
			e.duplicates(false, spend("t", "c4", fingerprint("x")))
		},
	},
}
