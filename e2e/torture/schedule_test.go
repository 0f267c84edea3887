package torture

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/idemq/idemq/e2e/checker"
)

var everything = Offer{Slots: 3, Lease: 2 * time.Second, Every: time.Second, Clock: true, StoreProxy: true, Forgets: true, Fills: true}

func TestPlanRepeats(t *testing.T) {
	first, second := Plan(7, time.Minute, everything), Plan(7, time.Minute, everything)
	if len(first) == 0 || !slices.Equal(first, second) {
		t.Errorf("the same seed gives %d faults, and then %d, not the same", len(first), len(second))
	}
	short := Plan(7, 20*time.Second, everything)
	if len(short) == 0 || !slices.Equal(short, first[:len(short)]) {
		t.Error("a shorter round does not begin like a longer one of its seed")
	}
	if slices.Equal(first, Plan(8, time.Minute, everything)) {
		t.Error("another seed gives the same schedule")
	}
	// A seed that somebody noted down has to give the same faults next year.
	const want = `   0.250s  pause of consumer 2 for 2.251s
   0.892s  store failover
   1.385s  broker latency of 131ms for 2.149s
   1.654s  pause of consumer 0 for 3.546s
   2.914s  kill of consumer 1 for 43ms
`
	var got strings.Builder
	for _, f := range first[:5] {
		fmt.Fprintln(&got, f)
	}
	if got.String() != want {
		t.Errorf("seed 7 begins with\n%s\nwant\n%s", got.String(), want)
	}
}

// Kinds come up in proportion to their weights, and about one fault begins a second.
func TestPlanDrawsAll(t *testing.T) {
	const length = time.Hour
	plan := Plan(1, length, everything)
	if n, want := len(plan), int(length/everything.Every); n < want*8/10 || n > want*12/10 {
		t.Errorf("%d faults in %v, want about %d", n, length, want)
	}
	drawn := map[Kind]int{}
	for _, f := range plan {
		drawn[f.Kind]++
	}
	sum := 0
	for _, k := range Kinds() {
		sum += traits[k].weight
	}
	for _, k := range Kinds() {
		if want := len(plan) * traits[k].weight / sum; drawn[k] < want*7/10 || drawn[k] > want*13/10 {
			t.Errorf("%s: %d times, want about %d", k, drawn[k], want)
		}
	}
}

func TestPlanKeepsToTheOffer(t *testing.T) {
	plan := Plan(1, time.Hour, Offer{Slots: 1, Lease: time.Second, Every: time.Second})
	for _, f := range plan {
		if f.Kind >= StoreReset || f.Kind == Clock {
			t.Fatalf("%s: the site does not offer that", f)
		}
		if f.Slot != 0 {
			t.Fatalf("%s: there is one slot", f)
		}
	}
	late := everything
	late.RestartAfter = 30 * time.Minute
	for _, f := range Plan(1, time.Hour, late) {
		if f.Kind == BrokerRestart && f.At < late.RestartAfter {
			t.Fatalf("%s: the broker is not to be restarted before %v", f, late.RestartAfter)
		}
	}
	only := everything
	only.Only = []Kind{Kill, StoreSwallow}
	drawn := map[Kind]int{}
	for _, f := range Plan(1, time.Hour, only) {
		drawn[f.Kind]++
	}
	if len(drawn) != 2 || drawn[Kill] == 0 || drawn[StoreSwallow] == 0 {
		t.Errorf("only kills and lost replies were asked for, and drawn were %v", drawn)
	}
}

// Two faults never hit the same thing at a time, and different things they do.
func TestPlanOverlaps(t *testing.T) {
	overlaps := false
	plan := Plan(1, time.Hour, everything)
	for i, f := range plan {
		for _, g := range plan[i+1:] {
			if g.At >= f.At+f.For {
				break
			}
			overlaps = true
			a, b := traits[f.Kind].hits, traits[g.Kind].hits
			slots := a == hitsSlot && b == hitsSlot && f.Slot == g.Slot || a == hitsSlots && b == hitsSlot || a == hitsSlot && b == hitsSlots
			if slots || a == b && a != hitsSlot {
				t.Errorf("%s\n%s: both hit the same", f, g)
			}
		}
	}
	if !overlaps {
		t.Error("no two faults overlap")
	}
	for _, f := range plan {
		if f.Kind == Pause && f.For <= everything.Lease {
			t.Errorf("%s: no longer than the lease of %v", f, everything.Lease)
		}
	}
}

// What a fault can do to a claim is said of each: those of the store, and no others of a server.
func TestFaultEffects(t *testing.T) {
	for kind, does := range faultEffects() {
		k := Kind(kind)
		if onStore := strings.HasPrefix(k.String(), "store "); onStore != (does == checker.HitsStore) || strings.HasPrefix(k.String(), "broker ") {
			t.Errorf("%s: effect %b", k, does)
		}
	}
	if n := len(faultEffects()); n != 4+int(kindsEnd-StoreReset) {
		t.Errorf("%d kinds have an effect", n)
	}
}
