package torture

import (
	"testing"
	"time"
)

// A site's fixed seed is the same in every run, whatever the fresh seed and whatever is free.
func TestFixedSeeds(t *testing.T) {
	all, err := places("")
	if err != nil {
		t.Fatal(err)
	}
	fixed, fresh := map[string]uint64{}, map[uint64]bool{}
	const runs = 10
	for run := range uint64(runs) {
		r := &runner{o: Options{Seed: 1_000_000_000 * (run + 2), Fixed: fixedSeed, Duration: time.Hour, Once: true}, began: time.Now(), places: all}
		lent := ""
		for n := 0; ; n++ {
			p, seed, found, more := r.draw(func(p place) bool { return p.broker.kind != lent || n%3 > 0 })
			if !more {
				break
			}
			if !found {
				lent = ""
				n--
				continue
			}
			lent = p.broker.kind
			switch name := p.String(); {
			case n%2 == 1:
				fresh[seed] = true
			case fixed[name] == 0:
				fixed[name] = seed
			case fixed[name] != seed:
				t.Errorf("%s: fixed seed %d, and %d in another run", name, fixed[name], seed)
			}
		}
	}
	if len(fresh) != runs*len(all)/2 || len(fixed) < len(all)*9/10 {
		t.Errorf("%d fresh seeds in %d runs, fixed ones of %d of %d sites", len(fresh), runs, len(fixed), len(all))
	}
}
