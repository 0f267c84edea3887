package torture

import (
	"runtime"
	"strings"
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
	if len(fresh) != runs*(len(all)/2) || len(fixed) < len(all)*9/10 {
		t.Errorf("%d fresh seeds in %d runs, fixed ones of %d of %d sites", len(fresh), runs, len(fixed), len(all))
	}
}

// quiet is a test that ends without failing the one it is part of.
type quiet struct {
	testing.TB
	skipped bool
}

func (t *quiet) Errorf(string, ...any) {}
func (t *quiet) Fatal(...any)          { runtime.Goexit() }
func (t *quiet) Skip(...any)           { t.skipped = true; runtime.Goexit() }
func (t *quiet) Skipped() bool         { return t.skipped }

// reluctant is a broker of a server that does not do what it is told.
type reluctant struct {
	owing
	tb   testing.TB
	skip bool
}

func (b *reluctant) Round(string) {
	if b.skip {
		b.tb.Skip("there is none")
	}
	b.tb.Fatal("it does not start")
}

func (b *reluctant) Version() string { return "1" }

// A round that ends in a Fatal has failed, and its servers are not used again.
func TestRoundsWithoutAnEnd(t *testing.T) {
	for _, skip := range []bool{false, true} {
		made := 0
		p := place{
			maker[Broker]{"nats", func(tb testing.TB) Broker {
				made++
				return &reluctant{tb: tb, skip: skip}
			}},
			maker[Store]{"redis", func(testing.TB) Store { return &redisStore{} }},
		}
		r := &runner{o: Options{Dir: t.TempDir(), Round: time.Second}, lab: newLab(t), running: map[*Round]bool{}}
		for range 2 {
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				r.round(&quiet{TB: t}, p, 7)
			}()
			<-ended
		}
		switch {
		case skip && len(r.results) > 0:
			t.Errorf("a round that was skipped: %+v", r.results)
		case !skip && (len(r.results) != 2 || r.results[1].Passed() || !strings.Contains(r.results[1].Again, "SEED=7 SITE=nats/redis")):
			t.Errorf("the results are %+v", r.results)
		case !skip && made != 2:
			t.Errorf("%d servers were started", made)
		}
	}
}
