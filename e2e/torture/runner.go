package torture

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/idemq/idemq/e2e/torture/role"
	"github.com/idemq/idemq/internal/testenv"
)

// Options say what a run of many rounds is. What is zero has a default.
type Options struct {
	Seed     uint64        // of the first round; the next one has the next number
	Fixed    uint64        // not zero: every other round has a seed that this and its site alone decide
	Duration time.Duration // of all rounds; those that run then are finished
	Round    time.Duration // the faults of one
	Parallel int           // sites at a time
	Sites    string        // see places; empty for all
	Once     bool          // ends when each site has had its round, and not before
	Rate     int           // messages a second of a site at most
	Choices  Choices       // of the consumers' settings
	Dir      string        // of the results file, and of what rounds that fail leave
	Bin      string        // the consumer program
}

const (
	defaultRound = 20 * time.Second
	leastRound   = 2*roundLease + time.Second // a pause is longer than a lease, and one takes over after it
	roundTakes   = 12 * time.Second           // besides its faults: until messages flow, and until all are settled
	roundLimit   = 10 * time.Minute           // the same, at most
)

// roundLease is longer than DefaultLease: one call of the store may take a third of it, and
// where that is not enough to connect, as on a machine with many times more to do than it
// has cores, consumers stand still.
const roundLease = 4 * time.Second

// ResultsFile is the name of the results file.
const ResultsFile = "results.jsonl"

// runner runs rounds one after another, some at a time.
type runner struct {
	o       Options
	lab     *lab
	began   time.Time
	library string

	mu      sync.Mutex
	places  []place // all of them
	queue   []place // that come next
	rounds  int     // that were begun
	running map[*Round]bool
	results []Result
}

// Run runs rounds until the time is over. Each is a subtest, and what it finds is its
// failure.
func Run(t *testing.T, o Options) []Result {
	t.Helper()
	all, err := places(o.Sites)
	if err != nil {
		t.Fatal(err)
	}
	o.Parallel = max(o.Parallel, 1)
	if o.Round == 0 {
		share := o.Duration*time.Duration(o.Parallel)/time.Duration(len(all)) - roundTakes
		o.Round = min(max(share.Truncate(time.Second), leastRound), defaultRound)
	}
	o.Round = min(o.Round, o.Duration)
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(o.Dir, ".gitignore"), []byte("*\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	r := &runner{o: o, lab: newLab(t), began: time.Now(), places: all, running: map[*Round]bool{}, library: testenv.Commit(".")}
	t.Logf("seed %d: %d sites, %d at a time, %v of faults a round", o.Seed, len(all), o.Parallel, o.Round)

	ended := make(chan struct{})
	var telling, working sync.WaitGroup
	telling.Go(func() { r.tell(t, ended) })
	for range o.Parallel {
		working.Go(func() {
			for r.next(t) {
			}
		})
	}
	working.Wait()
	close(ended)
	telling.Wait()
	if !t.Failed() {
		t.Log(r.progress())
	}
	t.Log("\n" + table(r.results) + "\n" + settingsTable(r.results))
	return r.results
}

// next has one round happen. It reports false when there are to be no more.
func (r *runner) next(t *testing.T) bool {
	var seed uint64
	p, found := r.lab.reserve(func(free func(place) bool) (p place, found, more bool) {
		p, seed, found, more = r.draw(free)
		return p, found, more
	})
	if !found {
		return false
	}
	defer r.lab.giveBack(p)
	t.Run(fmt.Sprintf("%s/%d", p, seed), func(t *testing.T) { r.round(t, p, seed) })
	return true
}

// draw takes the next place that is free, and a seed for it. Sites come in an order that the
// seed decides; when all have had their turn, they begin anew.
func (r *runner) draw(free func(place) bool) (p place, seed uint64, found, more bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	over := time.Since(r.began) >= r.o.Duration && r.rounds > 0
	switch {
	case r.o.Once && r.rounds >= len(r.places), over && !r.o.Once:
		return p, 0, false, false
	case len(r.queue) == 0:
		r.queue = slices.Clone(r.places)
		random := rand.New(rand.NewPCG(r.o.Seed, uint64(r.rounds)))
		random.Shuffle(len(r.queue), func(i, j int) { r.queue[i], r.queue[j] = r.queue[j], r.queue[i] })
	}
	for i, p := range r.queue {
		if free(p) {
			r.queue = slices.Delete(r.queue, i, i+1)
			r.rounds++
			return p, r.seed(p, r.rounds-1), true, true
		}
	}
	return p, 0, false, true
}

// seed is that of the nth round, which is at p. A fixed one is the site's own: which sites come
// when is up to the fresh seed, and to what is free.
func (r *runner) seed(p place, n int) uint64 {
	switch {
	case r.o.Fixed == 0:
		return r.o.Seed + uint64(n)
	case n%2 == 1:
		return r.o.Seed + uint64(n/2)
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(p.String()))
	return r.o.Fixed + uint64(h.Sum32()%1_000_000) + uint64(n/len(r.places))
}

// round has a round happen. One that ends in a Fatal, of a server that did not do what it was
// told, leaves a result as well.
func (r *runner) round(t testing.TB, p place, seed uint64) {
	again := fmt.Sprintf("make torture SEED=%d SITE=%s DURATION=%v ROUND=%[3]v%s", seed, p, r.o.Round, r.o.Choices)
	settings := r.o.Choices.draw(seed, p)
	none := func(why any) *Result {
		r.lab.drop(p)
		return &Result{
			Site: p.String(), Seed: seed, Settings: settings, Length: r.o.Round.String(), Time: time.Now().UTC().Truncate(time.Second),
			Failures: []string{fmt.Sprintf("there is no verdict: %v", why)},
		}
	}
	kept := false
	keep := func(res *Result) error {
		kept = true
		res.Again, res.Library = again, r.library
		return r.keep(res)
	}
	defer func() {
		if kept || t.Skipped() {
			return
		}
		if err := keep(none("a server did not do what it was told to, or the harness failed")); err != nil {
			t.Error(err)
		}
	}()
	site := r.lab.site(t, p)
	round := &Round{
		Seed: seed, Length: r.o.Round, Rate: r.o.Rate, Bin: r.o.Bin, Clock: true, Config: role.Config{Lease: roundLease}, Settings: settings,
		Dir: filepath.Join(r.o.Dir, strings.ReplaceAll(fmt.Sprintf("%s-%d", p, seed), "/", "-")),
	}
	r.enlist(round, true)
	defer r.enlist(round, false)
	if err := os.RemoveAll(round.Dir); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), r.o.Round+roundLimit)
	defer cancel()
	res, err := round.Run(ctx, site)
	if err != nil {
		res = none(err)
	}
	if err := keep(res); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatalf("%s\nagain: %s", res.Failures[0], again)
	}
	if res.Passed() {
		if err := os.RemoveAll(round.Dir); err != nil {
			t.Error(err)
		}
		return
	}
	if err := round.writeVerdict(res); err != nil {
		t.Error(err)
	}
	t.Errorf("%s\n%s; histories, schedule and logs are in %s\nagain: %s", strings.Join(res.Failures, "\n\n"), round.Settings, round.Dir, again)
}

func (r *runner) enlist(round *Round, runs bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if runs {
		r.running[round] = true
	} else {
		delete(r.running, round)
	}
}

// keep appends a result to the results file.
func (r *runner) keep(res *Result) error {
	line, err := json.Marshal(res)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.results = append(r.results, *res)
	f, err := os.OpenFile(filepath.Join(r.o.Dir, ResultsFile), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if _, err := f.Write(append(line, '\n')); err != nil {
		return err
	}
	return f.Close()
}

// tell logs the progress every few seconds.
func (r *runner) tell(t *testing.T, ended <-chan struct{}) {
	ticker := time.NewTicker(10 * time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			t.Log(r.progress())
		case <-ended:
			return
		}
	}
}

func (r *runner) progress() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	sum := totals(r.results)
	messages, faults := sum.Messages, sum.faults()
	for round := range r.running {
		m, f := round.Progress()
		messages, faults = messages+m, faults+f
	}
	return fmt.Sprintf("%v: %d rounds over, %d running; %d messages, %d faults; of the rounds that are over %d lost, %d doubled in a window, %d elsewhere, %d rounds failed",
		time.Since(r.began).Round(time.Second), len(r.results), len(r.running), messages, faults, sum.Lost, sum.windows(), sum.Elsewhere, sum.failed)
}
