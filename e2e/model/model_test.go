package model

import (
	"flag"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/idemq/idemq/idem/store"
)

var states = flag.Int("model.states", 0, "explore up to so many `states` of each configuration; 0 is a number that takes half a minute for all, -1 is all of them")

// limit is how many states of one configuration are explored.
func limit() int {
	switch {
	case *states < 0:
		return 0
	case *states > 0:
		return *states
	case raced:
		return 1500
	}
	return 10_000
}

// TestPromise explores the configurations, to a bounded number of states.
func TestPromise(t *testing.T) {
	total, steps, whole := 0, 0, 0
	configs := Configs()
	for _, c := range configs {
		t.Run(c.Name, func(t *testing.T) {
			r := Explore(&c, Limits{States: limit()}, nil)
			total += r.States
			steps += r.Steps
			if r.Complete {
				whole++
			}
			for _, b := range r.Breaches {
				t.Errorf("%s\n%s, in %d steps:\n\t%s", c.Says, b.What, b.Steps, strings.Join(b.Trace, "\n\t"))
			}
		})
	}
	t.Logf("%d configurations, %d of them whole: %d states, %d steps", len(configs), whole, total, steps)
}

// TestBugs plants each bug, and expects the check that is there for it to find it.
func TestBugs(t *testing.T) {
	if raced {
		t.Skip("takes minutes under the race detector; TestPromise runs the same code")
	}
	planted := map[Bug]bool{}
	for _, c := range Bugs() {
		planted[c.Bug] = true
		t.Run(c.Name, func(t *testing.T) { expect(t, &c) })
	}
	for b := AckBeforeCommit; b < bugs; b++ {
		if !planted[b] {
			t.Errorf("bug %d is in no configuration", b)
		}
	}
}

func expect(t *testing.T, c *Config) {
	t.Helper()
	r := Explore(c, Limits{States: 400_000, AtBreach: true}, nil)
	for _, b := range r.Breaches {
		if slices.Contains(c.Findings, b.What) {
			if len(b.Trace) == 0 || slices.Contains(b.Trace, "") {
				t.Errorf("%s: the trace has gaps: %q", b.What, b.Trace)
			}
			return
		}
	}
	t.Errorf("%s\nof %q nothing was found, but: %v", c.Says, c.Findings, r.Breaches)
}

// TestDeterministic: the same worlds, whoever explores them.
func TestDeterministic(t *testing.T) {
	c := named(t, "one-G")
	one := Explore(&c, Limits{States: 3000, Workers: 1}, nil)
	two := Explore(&c, Limits{States: 3000, Workers: 1}, nil)
	if one.States != two.States || one.Steps != two.Steps || one.Depth != two.Depth {
		t.Errorf("%d states, %d steps, depth %d; then %d, %d, %d", one.States, one.Steps, one.Depth, two.States, two.Steps, two.Depth)
	}
	c = named(t, "once-calm-J")
	one, two = Explore(&c, Limits{Workers: 1}, nil), Explore(&c, Limits{Workers: 3}, nil)
	if one.States != two.States || one.Steps != two.Steps || !one.Complete || !two.Complete {
		t.Errorf("one worker: %d states, %d steps; three: %d, %d", one.States, one.Steps, two.States, two.Steps)
	}
}

func named(t *testing.T, name string) Config {
	t.Helper()
	all := Configs()
	i := slices.IndexFunc(all, func(c Config) bool { return c.Name == name })
	if i < 0 {
		t.Fatalf("there is no configuration %s", name)
	}
	return all[i]
}

// TestNames: a name is one configuration's.
func TestNames(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range slices.Concat(Configs(), Bugs()) {
		if seen[c.Name] || c.Says == "" {
			t.Errorf("%s is there twice, or says nothing", c.Name)
		}
		seen[c.Name] = true
	}
}

// TestRecord: what the model keeps of a record is all that the rules read of it.
func TestRecord(t *testing.T) {
	c := (&Config{Procs: []int{0}, Budget: 3}).prepared()
	for _, want := range []record{
		{},
		{St: uint8(store.Running), Claim: 3, Attempt: 4, Spent: 1, Expiries: 1, Redrive: 2, Fence: 2, Lease: fresh, Owner: 1, Inc: 2, FP: 1},
		{St: uint8(store.Running), Claim: 3, Attempt: 4, Lease: missed},
		{St: uint8(store.Running), Claim: 3, Attempt: 4, Lease: over},
		{St: uint8(store.Forgotten), Claim: 3, Attempt: 4, Fence: 4, ForgotBy: 7},
		{St: uint8(store.Done), Claim: 3, Attempt: 4, Spent: 2, BySpend: true},
	} {
		x := want.rules()
		var got record
		if got.take(&x, c); got != want {
			t.Errorf("%+v became %+v", want, got)
		}
	}
}

// TestAttempts: numbers that are renumbered keep their order, and whether they are equal
// or neighbours.
func TestAttempts(t *testing.T) {
	c := (&Config{Procs: []int{0}, Items: []Item{{}}}).prepared()
	s := c.initial()
	s.Rec[0][0] = record{Attempt: 9, Fence: 3}
	s.Given[0][0] = 9
	s.P[0].S[0] = slot{Msg: 1, Ph: returned, C: 1, A: 8}
	s.P[0].S[1] = slot{Msg: 1, Ph: returned, C: 2, A: 3}
	s.renumber(c)
	got := map[string]uint8{"attempt": s.Rec[0][0].Attempt, "fence": s.Rec[0][0].Fence, "given": s.Given[0][0], "first": s.P[0].S[0].A, "second": s.P[0].S[1].A}
	if want := map[string]uint8{"attempt": 5, "fence": 2, "given": 5, "first": 4, "second": 2}; !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
