package torture

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/idemq/idemq/e2e/checker"
)

// maxTries is how many rounds have to find a planted bug: one to three do where the test runs
// alone, but on a machine that has much to do no fault may come when it would show.
const maxTries = 12

// Each planted bug is found, in a round that passes without it. Where not all is asked for
// (IDEM_E2E_FULL=1, make torture REPORT=1), those are left out that chance has a part in,
// and the rounds without a bug: TestTorture's are of that kind.
func TestPlantedBugs(t *testing.T) {
	if testing.Short() {
		t.Skip("this builds a consumer for each bug")
	}
	full := *flagReport != "" || os.Getenv("IDEM_E2E_FULL") == "1"
	bugs := Bugs()
	if !full {
		t.Parallel() // the report of all is TestTorture's, which comes before what is parallel
		bugs = slices.DeleteFunc(bugs, func(b Bug) bool { return b.Chance })
	}
	dir := outDir(t)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}

	labs := make(chan *lab, 2) // two rounds at a time, each with servers of its own
	for range cap(labs) {
		labs <- newLab(t)
	}
	var wg sync.WaitGroup
	run := func(name string, f func(t *testing.T, l *lab)) {
		wg.Go(func() {
			l := <-labs
			defer func() { labs <- l }()
			t.Run(name, func(t *testing.T) { f(t, l) })
		})
	}
	whole := ""
	if full {
		whole = BuildConsumer(t, BuildOptions{})
	}
	var mu sync.Mutex
	var found []Caught
	for _, bug := range bugs {
		run(bug.Name, func(t *testing.T, l *lab) {
			began := time.Now()
			bin := BuildConsumer(t, BuildOptions{Replace: bug.Replace})
			trial := bug.Trial
			res, tries := l.try(t, trial, bin), 1
			words := res.finding(bug.Rules)
			for ; words == "" && tries < maxTries; words = res.finding(bug.Rules) {
				trial.Seed += 1000
				res, tries = l.try(t, trial, bin), tries+1
			}
			if words == "" {
				t.Fatalf("%s, seed %d: nothing of %q was found in %d messages with %d effects and these faults: %v; else: %q", res.Site, res.Seed, bug.Rules, res.Messages, res.Effects, res.Faults, res.Failures)
			}
			t.Logf("bug: %s\nseed: %d, %s, round %d\nfound: %s", bug.What, res.Seed, res.Site, tries, words)
			seconds := time.Since(began).Seconds()
			if full {
				if res := l.try(t, trial, whole); !res.Passed() {
					t.Errorf("without the bug the round fails:\n%s", strings.Join(res.Failures, "\n\n"))
				}
			}
			mu.Lock()
			defer mu.Unlock()
			found = append(found, Caught{Bug: bug.Name, What: bug.What, Site: res.Site, Seed: res.Seed, Tries: tries, Words: words, Seconds: seconds})
		})
	}
	wg.Wait()
	if t.Failed() || !full {
		return
	}
	if err := WriteCaught(filepath.Join(dir, CaughtFile), found); err != nil {
		t.Fatal(err)
	}
}

// A replacement that fits nowhere, because the library has changed, is an error.
func TestBugsFitTheLibrary(t *testing.T) {
	for _, bug := range Bugs() {
		for _, r := range bug.Replace {
			source, err := os.ReadFile(filepath.Join("..", "..", r.File))
			if err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(string(source), r.Old); n != 1 {
				t.Errorf("%s: what is to be replaced is %d times in %s, want once: adapt the bug to the source", bug.Name, n, r.File)
			}
			if r.Old == r.New {
				t.Errorf("%s: nothing is changed", bug.Name)
			}
		}
	}
}

// try has a trial's round happen.
func (l *lab) try(t *testing.T, trial Trial, bin string) *Result {
	t.Helper()
	all, err := places(trial.Site)
	if err != nil {
		t.Fatal(err)
	}
	round := &Round{
		Seed: trial.Seed, Length: trial.Length, Every: trial.Every, Rate: trial.Rate, Only: trial.Only, Config: trial.Config,
		Bin: bin, Dir: t.TempDir(),
	}
	res, err := round.Run(t.Context(), l.site(t, all[0]))
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// A bug is caught by a rule that it breaks: what else there is may be another bug's.
func TestFinding(t *testing.T) {
	r := Result{found: []checker.Violation{
		{Rule: checker.Lost, Token: 1, Text: "short"}, {Rule: checker.OutOfOrder, Token: 2, Text: "this is longer"}, {Rule: checker.OutOfOrder, Token: 3, Text: "this one is longer"},
	}}
	if got := r.finding([]checker.Rule{checker.Doubled}); got != "" {
		t.Errorf("found %q", got)
	}
	if got, want := r.finding([]checker.Rule{checker.Doubled, checker.OutOfOrder}), r.found[1].String(); got != want {
		t.Errorf("found %q, want %q", got, want)
	}
	for _, bug := range Bugs() {
		if len(bug.Rules) == 0 {
			t.Errorf("%s breaks no rule", bug.Name)
		}
	}
}

func TestCaughtIsKept(t *testing.T) {
	want := []Caught{{Bug: "a", What: "b", Site: "nats/redis", Seed: 1, Words: "c\nd", Seconds: 2}}
	path := filepath.Join(t.TempDir(), "caught.json")
	if got, err := ReadCaught(path); err != nil || got != nil {
		t.Errorf("without a file: %v, %v", got, err)
	}
	if err := WriteCaught(path, want); err != nil {
		t.Fatal(err)
	}
	got, err := ReadCaught(path)
	if err != nil || len(got) != 1 || got[0] != want[0] {
		text, _ := json.Marshal(got)
		t.Errorf("got %s, %v", text, err)
	}
}
