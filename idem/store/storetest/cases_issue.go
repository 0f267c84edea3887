package storetest

import "github.com/idemq/idemq/idem/store"

var issueCases = []testCase{
	{
		"once",
		"Check on an issued token is Claimed once, and Lost to everybody after that: a form that is sent twice is accepted once.",
		func(e *env) {
			e.want(store.OK, issue("t"))
			e.want(store.Claimed, check("t", "k1"))
			e.want(store.Lost, check("t", "k2"))
			e.want(store.Lost, check("t", "k3"))
		},
	},
	{
		"repeat",
		"A repeated Check under the same claim id is Claimed again, also after others were refused: the first reply was lost, and a Lost now would refuse the one who was first.",
		func(e *env) {
			e.want(store.OK, issue("t"))
			e.want(store.Claimed, check("t", "k1"))
			e.want(store.Claimed, check("t", "k1"))
			e.want(store.Lost, check("t", "k2"))
			e.want(store.Claimed, check("t", "k1"))
		},
	},
	{
		"repeat after the deadline",
		"A repeat of the Check that passed is Claimed also after the token's own deadline, for at least CheckMemory; for others the token stays spent.",
		func(e *env) {
			e.want(store.OK, issue("t"), checkWithin(10*e.unit))
			e.want(store.Claimed, check("t", "k1"))
			e.wait(12 * e.unit)
			e.want(store.Claimed, check("t", "k1"))
			e.want(store.Lost, check("t", "k2"))
		},
	},
	{
		"unknown",
		"Check on a token that was never issued is Lost, and does not register it.",
		func(e *env) {
			e.want(store.Lost, check("t", "k1"))
			e.want(store.Lost, check("t", "k1"))
			e.want(store.OK, issue("t"))
			e.want(store.Claimed, check("t", "k2"))
		},
	},
	{
		"deadline",
		"Check is Lost once the token has waited for longer than CheckWithin.",
		func(e *env) {
			e.want(store.OK, issue("t"), checkWithin(e.unit))
			e.runOut()
			e.want(store.Lost, check("t", "k1"))
			e.want(store.Lost, check("t", "k1"))
		},
	},
	{
		"deadline of a token that is kept longer",
		"Under IssuedOnly a token is kept for the retention, but its Check has the deadline CheckWithin all the same.",
		func(e *env) {
			e.want(store.OK, issue("t"), issuedOnly, checkWithin(e.unit))
			e.runOut()
			e.want(store.Lost, check("t", "k1"), issuedOnly)
			e.claims(1, 0, 0, 0, begin("t", "c1"), issuedOnly)
		},
	},
	{
		"issued again",
		"Issue on a token that still waits starts its time anew.",
		func(e *env) {
			e.want(store.OK, issue("t"), checkWithin(e.unit))
			e.want(store.OK, issue("t"))
			e.runOut()
			e.want(store.Claimed, check("t", "k1"))
		},
	},
	{
		"issued again when spent",
		"Issue on a token that was checked is OK and leaves it spent: a repeated Issue must not make it pass twice.",
		func(e *env) {
			e.want(store.OK, issue("t"))
			e.want(store.Claimed, check("t", "k1"))
			e.want(store.OK, issue("t"))
			e.want(store.Lost, check("t", "k2"))
			e.want(store.Claimed, check("t", "k1"))
		},
	},
	{
		"no group",
		"An issued token belongs to the prefix: Issue and Check look at no group, and two groups cannot both pass its Check.",
		func(e *env) {
			op := func(op store.Op, g string) store.Op { op.Group = g; return op }
			e.want(store.OK, op(issue("t"), "a"))
			e.want(store.Claimed, op(check("t", "k1"), "b"))
			e.want(store.Lost, op(check("t", "k2"), "a"))
			e.want(store.Lost, op(check("t", "k3"), ""))
			e.want(store.Claimed, op(check("t", "k1"), ""))
		},
	},
	{
		"apart from claims",
		"Issue and Check do not touch the records of groups, nor Begin, Commit and Forget a registration: a token may be used both ways.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"))
			e.unchanged("t", func() { e.want(store.Lost, check("t", "k1")) })
			e.want(store.OK, issue("t"))
			e.want(store.OK, commit("t", "c1", 1))
			e.want(store.Claimed, check("t", "k1"))
			e.duplicates(false, begin("t", "c2"))
			e.want(store.OK, forget("t", "f1"))
			e.want(store.Lost, check("t", "k2"))
			if r := e.inspect("t"); !r.Issued || !r.Checked {
				e.failf("issued %v and checked %v after Forget, want true and true", r.Issued, r.Checked)
			}
		},
	},
}

var issuedOnlyCases = []testCase{
	{
		"never issued",
		"Under IssuedOnly, Begin and Spend on a token that was never issued are Unknown and make no record: whoever invents tokens gets nothing handled.",
		func(e *env) {
			e.want(store.Unknown, begin("t", "c1"), issuedOnly)
			e.want(store.Unknown, spend("t", "c2", fingerprint("x")), issuedOnly)
			e.state("t", store.Absent)
			e.claims(1, 0, 0, 0, begin("t", "c1"))
		},
	},
	{
		"issued",
		"Under IssuedOnly, an issued token is admitted, in every group, and before or after its Check.",
		func(e *env) {
			e.want(store.OK, issue("t"), issuedOnly)
			e.claims(1, 0, 0, 0, begin("t", "c1"), issuedOnly)
			e.claims(1, 0, 0, 0, begin("t", "c1", inGroup("elsewhere")), issuedOnly)
			e.want(store.Claimed, check("t", "k1"), issuedOnly)
			e.claims(1, 0, 0, 0, spend("t", "c1", inGroup("a third")), issuedOnly)
			e.claims(1, 0, 0, 0, begin("t", "c1", inGroup("")), issuedOnly)
		},
	},
	{
		"payload",
		"Under IssuedOnly the first claim keeps the fingerprint of its payload, as it does without.",
		func(e *env) {
			if e.caps.NoFingerprints {
				e.Skip("the driver keeps no fingerprints")
			}
			e.want(store.OK, issue("t"), issuedOnly)
			e.claims(1, 0, 0, 0, begin("t", "c1", fingerprint("x")), issuedOnly)
			e.want(store.Conflict, begin("t", "c2", fingerprint("y")), issuedOnly)
			e.want(store.InProgress, begin("t", "c3", fingerprint("x")), issuedOnly)
		},
	},
	{
		"has a record",
		"Under IssuedOnly, a token that has a record in the group passes, whatever its state: it was admitted once, and its registration may have expired since.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("live", "c1"))
			e.want(store.InProgress, begin("live", "c2"), issuedOnly)
			e.claims(1, 0, 0, 0, begin("released", "c1"))
			e.want(store.OK, release("released", "c1"))
			e.claims(2, 0, 0, 0, begin("released", "c2"), issuedOnly)
			e.claims(1, 0, 0, 0, begin("forgotten", "c1"))
			e.want(store.OK, bury("forgotten", "c1"))
			e.duplicates(true, begin("forgotten", "c2"), issuedOnly)
			e.want(store.OK, forget("forgotten", "f1"))
			e.claims(2, 0, 0, 0, spend("forgotten", "c3"), issuedOnly)
			e.duplicates(false, begin("forgotten", "c4"), issuedOnly)
			e.want(store.Unknown, begin("live", "c3", inGroup("elsewhere")), issuedOnly)
		},
	},
	{
		"redriven",
		"Under IssuedOnly, a redriven token passes: a dead letter may come back long after its registration expired.",
		func(e *env) {
			e.claims(1, 0, 0, 1, begin("t", "c1", redrive(1)), issuedOnly)
			e.claims(1, 0, 0, 2, spend("u", "c1", redrive(2)), issuedOnly)
		},
	},
	{
		"kept for the retention",
		"Under IssuedOnly a registration lives for the longer of CheckWithin and Retention, checked or not: a message may be consumed long after it was made.",
		func(e *env) {
			for _, token := range []string{"long retention", "checked"} {
				e.want(store.OK, issue(token), issuedOnly, checkWithin(e.unit))
			}
			e.want(store.Claimed, check("checked", "k1"), issuedOnly)
			e.want(store.OK, issue("long check"), issuedOnly, retention(e.unit))
			e.runOut()
			for _, token := range []string{"long retention", "checked", "long check"} {
				e.claims(1, 0, 0, 0, begin(token, "c1"), issuedOnly)
			}
		},
	},
	{
		"registration expired",
		"Under IssuedOnly, a token whose registration has expired is Unknown.",
		func(e *env) {
			e.want(store.OK, issue("t"), issuedOnly, checkWithin(e.unit), retention(e.unit))
			e.runOut()
			e.want(store.Unknown, begin("t", "c1"), issuedOnly)
		},
	},
	{
		"others",
		"IssuedOnly is about Begin and Spend: Commit and the rest go by the record alone, for a claim that was made must be able to end.",
		func(e *env) {
			e.want(store.OK, commit("absent", "c1", 1), issuedOnly)
			e.claims(1, 0, 0, 0, begin("t", "c1"))
			e.want(store.OK, renew("t", "c1"), issuedOnly)
			e.want(store.OK, release("t", "c1"), issuedOnly)
			e.want(store.OK, forget("t", "f1"), issuedOnly)
		},
	},
}
