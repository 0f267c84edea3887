package torture

import (
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// What make torture sets. Without them TestTorture is a short pass.
var (
	flagDuration = flag.Duration("torture.duration", 0, "how long rounds are begun; zero: IDEM_TORTURE_DURATION, else 20s")
	flagRound    = flag.Duration("torture.round", 0, "the faults of one round; zero: what lets each site have one, 20s at most")
	flagSeed     = flag.Uint64("torture.seed", 0, "of the first round; zero: a fresh one")
	flagSite     = flag.String("torture.site", "", "sites, as in kafka-*/redis,nats/*; empty: all")
	flagParallel = flag.Int("torture.parallel", 2, "sites at a time")
	flagRate     = flag.Int("torture.rate", 0, "messages a second of a site at most; zero: as many as it takes")
	flagDir      = flag.String("torture.dir", "", "of the results, and of what failing rounds leave; empty: e2e/.torture")
	flagReport   = flag.String("torture.report", "", "file that the page of all results in torture.dir is written to")
)

var flagChoices = choiceFlags()

// choiceFlags has a flag for each setting.
func choiceFlags() Choices {
	c := Choices{}
	for _, s := range settings {
		c[s.name] = Drawn
		flag.Func("torture."+s.name, s.what+": on, off, or drawn from a round's seed", func(text string) error {
			choice, err := parseChoice(text)
			c[s.name] = choice
			return err
		})
	}
	return c
}

// fixedSeed decides, with their sites, the seeds of half of the rounds of a pass without a seed.
const fixedSeed = 1

// Consumers of every broker with every store keep the promise under faults.
func TestTorture(t *testing.T) {
	if testing.Short() {
		t.Skip("this takes a while")
	}
	o := Options{
		Seed: *flagSeed, Duration: *flagDuration, Round: *flagRound, Parallel: *flagParallel,
		Sites: *flagSite, Rate: *flagRate, Dir: outDir(t), Choices: flagChoices,
	}
	if o.Duration == 0 {
		o.Duration = 20 * time.Second
		if text := os.Getenv("IDEM_TORTURE_DURATION"); text != "" {
			d, err := time.ParseDuration(text)
			if err != nil {
				t.Fatalf("IDEM_TORTURE_DURATION: %v", err)
			}
			o.Duration, o.Once = d, true
		}
	}
	if o.Seed == 0 {
		o.Seed = uint64(time.Now().UnixNano()) % 1_000_000_000
		if *flagDuration == 0 {
			o.Fixed = fixedSeed
		}
	}
	o.Bin = BuildConsumer(t, BuildOptions{})
	if results := Run(t, o); len(results) == 0 {
		t.Skip("no site could be had")
	}
	report(t, o.Dir)
}

// outDir is the folder of the results, and of what failing rounds leave.
func outDir(t *testing.T) string {
	t.Helper()
	dir := *flagDir
	if dir == "" {
		dir = filepath.Join("..", ".torture")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// report writes the page, where one is wanted.
func report(t *testing.T, dir string) {
	t.Helper()
	if *flagReport == "" {
		return
	}
	all, err := ReadResults(filepath.Join(dir, ResultsFile))
	if err != nil {
		t.Fatal(err)
	}
	caught, err := ReadCaught(filepath.Join(dir, CaughtFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(*flagReport, []byte(Report(all, caught)), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Logf("wrote %s, of %d rounds", *flagReport, len(all))
}
