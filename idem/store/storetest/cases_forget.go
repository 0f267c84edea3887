package storetest

import (
	"time"

	"github.com/idemq/idemq/idem/store"
)

var forgetCases = []testCase{
	{
		"states",
		"Forget is OK on released, run out, done, dead and forgotten tokens; spent and expiries are zero then, attempt and redrive stay, and the token can be claimed.",
		func(e *env) {
			for token, last := range map[string]store.Op{
				"released": release("released", "c2", counted),
				"done":     commit("done", "c2", 2),
				"dead":     bury("dead", "c2"),
				"run out":  renew("run out", "c2"),
			} {
				if token == "done" && e.caps.NoDoneDetails {
					continue
				}
				e.claims(1, 0, 0, 3, begin(token, "c1", redrive(3)))
				e.want(store.OK, release(token, "c1", counted))
				e.claims(2, 1, 0, 3, begin(token, "c2"))
				e.want(store.OK, last, e.brief())
				if token == "run out" {
					e.runOut()
				}
				for _, claim := range []string{"f1", "f2"} {
					e.want(store.OK, forget(token, claim))
					r := e.state(token, store.Forgotten)
					if r.Attempt != 2 || r.Redrive != 3 || r.Spent != 0 || r.Expiries != 0 || r.Fingerprint != "" || len(r.Result) != 0 {
						e.failf("the record of %q is %+v", token, *r)
					}
				}
				e.claims(3, 0, 0, 3, begin(token, "c3"))
			}
		},
	},
	{
		"done",
		"Forget on a done token lets it be handled again: that is what it is for.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"))
			e.want(store.OK, commit("t", "c1", 1))
			e.want(store.OK, forget("t", "f1"))
			e.want(store.Claimed, begin("t", "c2"))
			e.want(store.InProgress, begin("t", "c3"))
		},
	},
	{
		"live",
		"Forget under a live claim is InProgress and changes nothing: the handler at work would be doubled.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"))
			e.unchanged("t", func() { e.want(store.InProgress, forget("t", "f1")) })
		},
	},
	{
		"absent",
		"Forget on a token without a record is OK and keeps nothing.",
		func(e *env) {
			e.want(store.OK, forget("t", "f1"))
			e.state("t", store.Absent)
			e.claims(1, 0, 0, 0, begin("t", "c1"))
		},
	},
	{
		"repeat",
		"A repeated Forget under its own claim id is OK and changes nothing, whatever came of the record since: its first reply was lost, and it must not forget the work that was done after it.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"))
			e.want(store.OK, bury("t", "c1"))
			again := func(s store.State) {
				e.Helper()
				e.unchanged("t", func() { e.want(store.OK, forget("t", "f1")) })
				e.state("t", s)
			}
			e.want(store.OK, forget("t", "f1"))
			again(store.Forgotten)
			e.claims(2, 0, 0, 0, begin("t", "c2"))
			again(store.Running)
			e.want(store.OK, release("t", "c2", counted))
			again(store.Released)
			e.claims(3, 1, 0, 0, begin("t", "c3"), e.brief())
			e.runOut()
			again(store.Running)
			e.claims(4, 2, 1, 0, begin("t", "c4"))
			e.want(store.OK, bury("t", "c4"))
			again(store.Dead)
			if e.caps.NoDoneDetails {
				return
			}
			e.want(store.OK, commit("t", "c4", 4))
			again(store.Done)
		},
	},
	{
		"fences commits",
		"A claim made before a Forget cannot commit after it: not on the forgotten token, not while another claim holds it, and not after that one gave back or was dead-lettered. The operator asked for it to be handled again, and a late commit would drop it.",
		func(e *env) {
			lost := func() {
				e.Helper()
				e.unchanged("t", func() { e.want(store.Lost, commit("t", "c1", 1)) })
			}
			e.claims(1, 0, 0, 0, begin("t", "c1"), e.brief())
			e.runOut()
			e.want(store.OK, forget("t", "f1"))
			lost()
			e.unchanged("t", func() { e.want(store.Lost, commit("t", "c0", 99)) })
			e.claims(2, 0, 0, 0, begin("t", "c2"))
			lost()
			e.want(store.OK, release("t", "c2"))
			lost()
			e.claims(3, 0, 0, 0, begin("t", "c3"))
			e.want(store.OK, bury("t", "c3"))
			lost()
			e.claims(4, 0, 0, 1, begin("t", "c4", redrive(1)))
			e.want(store.OK, release("t", "c4"))
			lost()
			// Those made after the Forget may.
			e.want(store.OK, commit("t", "c2", 2))
			e.duplicates(false, begin("t", "c5"))
		},
	},
	{
		"fences late repeats",
		"A Begin or Spend that is executed late once more, after its token was forgotten, is Lost, and where it comes later still, and claims, its holder cannot commit: the operator asked for it to be handled again, and the claim is from before.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"), e.brief())
			e.runOut()
			e.want(store.OK, forget("t", "f1"))
			e.unchanged("t", func() { e.want(store.Lost, begin("t", "c1")) })
			e.claims(2, 0, 0, 0, begin("t", "c2"))
			e.want(store.OK, release("t", "c2"))
			e.claims(3, 0, 0, 0, begin("t", "c1"))
			e.unchanged("t", func() { e.want(store.Lost, commit("t", "c1", 1)) })

			if e.caps.NoDoneDetails {
				return
			}
			e.claims(1, 0, 0, 0, spend("u", "c1"))
			e.want(store.OK, forget("u", "f1"))
			e.unchanged("u", func() { e.want(store.Lost, spend("u", "c1")) })
			e.want(store.Claimed, begin("u", "c2"))
		},
	},
	{
		"fences all attempts so far",
		"Forget fences every claim made before it, the latest attempt included, also where a late commit of a low attempt completed the token in between.",
		func(e *env) {
			if e.caps.NoDoneDetails {
				e.Skip("the driver does not know the attempts of a done token")
			}
			e.claims(1, 0, 0, 0, begin("t", "c1"), e.brief())
			e.runOut()
			e.claims(2, 1, 1, 0, begin("t", "c2"), e.brief())
			e.runOut()
			e.claims(3, 2, 2, 0, begin("t", "c3"))
			e.want(store.OK, release("t", "c3"))
			e.want(store.OK, commit("t", "c1", 1))
			e.want(store.OK, forget("t", "f1"))
			e.claims(4, 0, 0, 0, begin("t", "c4"))
			e.want(store.OK, release("t", "c4"))
			e.unchanged("t", func() {
				for i, claim := range []string{"c1", "c2", "c3"} {
					e.want(store.Lost, commit("t", claim, i+1))
				}
			})
			e.want(store.OK, commit("t", "c4", 4))
		},
	},
	{
		"fences the rest",
		"A claim made before a Forget can neither renew, release nor bury after it.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"), e.brief())
			e.runOut()
			e.want(store.OK, forget("t", "f1"))
			e.unchanged("t", func() {
				e.want(store.Lost, renew("t", "c1"))
				e.want(store.Lost, release("t", "c1", counted))
				e.want(store.Lost, bury("t", "c1"))
			})
		},
	},
	{
		"a second Forget",
		"A second Forget, under its own id, fences what was claimed after the first.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"))
			e.want(store.OK, release("t", "c1"))
			e.want(store.OK, forget("t", "f1"))
			e.claims(2, 0, 0, 0, begin("t", "c2"))
			e.want(store.OK, release("t", "c2"))
			e.want(store.OK, forget("t", "f2"))
			e.claims(3, 0, 0, 0, begin("t", "c3"))
			e.want(store.OK, release("t", "c3"))
			e.unchanged("t", func() {
				e.want(store.Lost, commit("t", "c2", 2))
				e.want(store.OK, forget("t", "f2"))
			})
		},
	},
	{
		"spent",
		"Forget on a token that Spend made done lets it be spent again, by a new claim.",
		func(e *env) {
			e.claims(1, 0, 0, 0, spend("t", "c1"))
			e.want(store.OK, forget("t", "f1"))
			e.want(store.Lost, bury("t", "c1"))
			e.want(store.Claimed, spend("t", "c2"))
			e.duplicates(false, spend("t", "c3"))
		},
	},
}

var inspectCases = []testCase{
	{
		"absent",
		"Inspect on a token without a record is OK with an empty Record: not knowing is no error.",
		func(e *env) {
			if r := e.state("t", store.Absent); r.Attempt != 0 || r.Claim != "" || r.Expires != 0 || r.Issued || r.Checked {
				e.failf("the record is %+v", *r)
			}
		},
	},
	{
		"in progress",
		"Inspect shows who holds a token, for how long, and what it has cost so far: an operator decides by it.",
		func(e *env) {
			fp := "x"
			if e.caps.NoFingerprints {
				fp = ""
			}
			e.claims(1, 0, 0, 1, begin("t", "c1", redrive(1), fingerprint(fp)), owner("pod", 7))
			r := e.state("t", store.Running)
			if !names(r, id("c1")) || r.Attempt != 1 || r.Redrive != 1 || r.Owner != "pod" || r.Incarnation != 7 || r.Fingerprint != fp {
				e.failf("the record is %+v", *r)
			}
			if r.Lease <= 0 || r.Lease > 1000*e.unit || r.Expires < r.Lease {
				e.failf("the lease has %v left of %v, the record %v", r.Lease, 1000*e.unit, r.Expires)
			}
			e.want(store.OK, renew("t", "c1"), e.brief())
			e.runOut()
			if r := e.state("t", store.Running); r.Lease > 0 {
				e.failf("the lease of a claim that has run out has %v left", r.Lease)
			}
		},
	},
	{
		"expiry",
		"Inspect says how long a record is still kept: a done one for the rest of its retention, others at least a retention from their last change.",
		func(e *env) {
			all := 100_000 * e.unit
			near := func(d time.Duration) bool { return d > all-100*e.unit && d <= all+e.unit }
			e.claims(1, 0, 0, 0, begin("t", "c1"))
			if r := e.inspect("t"); r.Expires <= all-100*e.unit {
				e.failf("in progress: goes in %v", r.Expires)
			}
			e.want(store.OK, release("t", "c1"))
			if r := e.inspect("t"); r.Expires <= all-100*e.unit {
				e.failf("released: goes in %v", r.Expires)
			}
			e.claims(2, 0, 0, 0, begin("t", "c2"))
			e.want(store.OK, bury("t", "c2"))
			if r := e.inspect("t"); !near(r.Expires) {
				e.failf("dead: goes in %v, want about %v", r.Expires, all)
			}
			e.want(store.OK, commit("t", "c2", 2))
			if r := e.inspect("t"); !e.caps.NoDoneDetails && !near(r.Expires) {
				e.failf("done: goes in %v, want about %v", r.Expires, all)
			}
		},
	},
	{
		"changes nothing",
		"Inspect renews nothing and counts nothing.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"), e.brief())
			e.runOut()
			e.unchanged("t", func() { e.inspect("t"); e.inspect("t") })
			e.claims(2, 1, 1, 0, begin("t", "c2"))
		},
	},
	{
		"issued",
		"Inspect shows whether a token is registered and whether it was checked, in every group and beside any record.",
		func(e *env) {
			e.want(store.OK, issue("t"))
			if r := e.state("t", store.Absent); !r.Issued || r.Checked {
				e.failf("issued %v and checked %v, want true and false", r.Issued, r.Checked)
			}
			e.claims(1, 0, 0, 0, begin("t", "c1"))
			e.want(store.Claimed, check("t", "k1"))
			if r := e.state("t", store.Running); !r.Issued || !r.Checked {
				e.failf("issued %v and checked %v, want true and true", r.Issued, r.Checked)
			}
			r := e.want(store.OK, store.Op{Kind: store.Inspect, Group: "elsewhere", Token: "t"})
			if r.Record == nil || r.Record.State != store.Absent || !r.Record.Issued || !r.Record.Checked {
				e.failf("in another group: %+v", r.Record)
			}
		},
	},
}
