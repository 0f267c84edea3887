package storetest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"

	"github.com/idemq/idemq/idem/store"
)

func (e *env) incarnation(name string) uint64 {
	e.Helper()
	n, err := e.s.Incarnation(context.Background(), e.prefix, name)
	if err != nil {
		e.failf("Incarnation: %v", err)
	}
	return n
}

var storeCases = []testCase{
	{
		"Incarnation rises",
		"Each incarnation of a name is higher than all drawn before, and none is zero: two processes with one number would not know which of them is the older.",
		func(e *env) {
			for _, name := range []string{"pod", "", "a:b{c}\x00\xff"} {
				last := uint64(0)
				for range 50 {
					n := e.incarnation(name)
					if n <= last {
						e.failf("%d was drawn after %d", n, last)
					}
					last = n
				}
				e.wait(e.unit)
				if n := e.incarnation(name); n <= last {
					e.failf("%d was drawn after %d", n, last)
				}
			}
		},
	},
	{
		"Incarnation at once",
		"Incarnations that are drawn at once are all different.",
		func(e *env) {
			var wg sync.WaitGroup
			drawn := make([]uint64, racers)
			for i := range drawn {
				wg.Go(func() {
					n, err := e.s.Incarnation(context.Background(), e.prefix, "pod")
					if err != nil {
						e.Errorf("%s\n\tIncarnation: %v", e.rule, err)
					}
					drawn[i] = n
				})
			}
			wg.Wait()
			slices.Sort(drawn)
			if len(slices.Compact(drawn)) != racers {
				e.failf("some were drawn twice: %v", drawn)
			}
		},
	},
	{
		"Verify",
		"Verify says that the store can be used, changes nothing, and what it finds is said in full sentences: they are shown to operators.",
		func(e *env) {
			e.claims(1, 0, 0, 0, begin("t", "c1"))
			e.unchanged("t", func() {
				findings, err := e.s.Verify(context.Background(), e.prefix)
				if err != nil {
					e.failf("Verify: %v", err)
				}
				for _, f := range findings {
					for _, s := range []string{f.What, f.Consequence, f.Cure} {
						if f.ID == "" || !strings.HasSuffix(s, ".") || !strings.Contains(s, " ") {
							e.failf("the finding %q says %q, which is no sentence", f.ID, s)
						}
					}
				}
			})
		},
	},
}

// damage makes a record, damages it and tries op on it, between two neighbours.
func (e *env) damage(how Corruption, want error) {
	e.Helper()
	if e.h.Corrupt == nil {
		e.Skip("the harness cannot corrupt records")
	}
	e.claims(1, 0, 0, 0, begin("bad", "c1"))
	e.h.Corrupt(e.T, e.s, e.prefix, group, "bad", how)
	inspect := store.Op{Kind: store.Inspect, Group: group, Token: "bad"}
	for i, op := range []store.Op{
		begin("bad", "c1"), begin("bad", "c2"), commit("bad", "c1", 1), release("bad", "c1"), renew("bad", "c1"),
		bury("bad", "c1"), spend("bad", "c3"), forget("bad", "f1"), inspect, begin("bad", "c1"),
	} {
		before, after := "before"+string(rune('a'+i)), "after"+string(rune('a'+i))
		replies := e.apply(e.batch(begin(before, "c1"), op, begin(after, "c1")))
		for _, n := range []int{0, 2} {
			if replies[n].Err != nil || replies[n].Status != store.Claimed {
				e.failf("a neighbour of %s on a damaged record (%v) was answered %s with error %v",
					show(op), how, statusName(replies[n].Status), replies[n].Err)
			}
		}
		if r := replies[1]; !errors.Is(r.Err, want) || r.Status != 0 {
			e.failf("%s on a damaged record (%v) was answered status %d with error %v, want no status and %v",
				show(op), how, r.Status, r.Err, want)
		}
	}
}

const damageRule = "A record that cannot be read is its own operation's error, never its neighbours', and is left as it is: "

var corruptionCases = []testCase{
	{
		"wrong type", damageRule + "what stands there may be somebody else's.",
		func(e *env) { e.damage(WrongType, store.ErrUnreadable) },
	},
	{
		"garbage", damageRule + "taken for an absent one it would have its message handled twice.",
		func(e *env) { e.damage(Garbage, store.ErrUnreadable) },
	},
	{
		"newer version", damageRule + "a newer process knows what it means, and an older one must not overwrite it.",
		func(e *env) { e.damage(NewerVersion, store.ErrNewer) },
	},
}
