package torture

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/shirou/gopsutil/v4/mem"

	"github.com/idemq/idemq/e2e/checker"
	"github.com/idemq/idemq/e2e/history"
	"github.com/idemq/idemq/e2e/torture/role"
	"github.com/idemq/idemq/internal/redistest"
	"github.com/idemq/idemq/internal/testenv"
)

// SoakOptions say what a soak is: several brokers at once for long, with one Redis. What
// is zero has a default.
type SoakOptions struct {
	Seed     uint64
	Duration time.Duration
	Rate     int      // messages a second of all sites, copies included
	Brokers  []string // kinds; nil: kafka-group, nats, amqp-quorum
	Dir      string   // of all files
	Bin      string   // the consumer program, whose clock can be stepped
}

// The defaults of a soak of an hour. One that is shorter has what is in proportion.
const (
	soakRate      = 2250
	soakRetention = 3 * time.Minute
	soakJudged    = 10 * time.Minute // from then on
	soakSample    = 10 * time.Second
	soakFault     = time.Minute
	soakLease     = 5 * time.Second

	leastFault = 2 * time.Second

	// soakPartitions are as many for each consumer when two, three or four share them: what a
	// consumer uses depends on how many it has.
	soakPartitions = 12

	// leastRetention is longer than a message can be on its way: what comes again after
	// that is handled again, rightly.
	leastRetention = 2 * time.Minute
)

// The files of a soak, in its folder.
const (
	SoakResultFile  = "soak.json"
	SoakSamplesFile = "samples.jsonl"
)

// SoakResult is what became of a soak.
type SoakResult struct {
	Time      time.Time     `json:"time"`
	Command   string        `json:"command"`
	Seed      uint64        `json:"seed"`
	Duration  time.Duration `json:"duration"`
	Rate      int           `json:"rate"`
	Retention time.Duration `json:"retention"`
	Judged    time.Duration `json:"judged"` // from then on
	Sampled   time.Duration `json:"sampled"`
	FaultsAt  time.Duration `json:"faults_at"` // from one to the next, of a site

	Library string `json:"library,omitempty"`
	Go      string `json:"go"`
	Redis   string `json:"redis"`
	CPUs    int    `json:"cpus"`
	Memory  uint64 `json:"memory"` // bytes

	Sites  []Result    `json:"sites"`
	Faults []SoakFault `json:"faults"`
	Trends []Trend     `json:"trends"`
	// Handled is how many handlers the veteran of each site has started while it was judged.
	Handled map[string]int `json:"handled"`

	Failures []string `json:"failures,omitempty"` // of the sites, and of the trends
}

// SoakFault is a fault that a site had.
type SoakFault struct {
	Seconds float64 `json:"seconds"` // since the beginning
	Site    string  `json:"site"`
	Kind    string  `json:"kind"`
}

// veteran is the number of the process that each site has from the beginning to the end.
const veteran = 1

// soak is one at work.
type soak struct {
	o     SoakOptions
	res   *SoakResult
	sites []*soakSite
	redis *redis.Client // the harness's own
	began int64         // as history.Now
}

// soakSite is one of its sites.
type soakSite struct {
	Site
	round    *Round
	plan     []Fault
	recorder *history.Recorder
	stuck    string
	err      error
}

// Soak runs one. What it finds is in the result, which is also in a file of its folder, and
// no failure of the test: that is for whoever called it to judge. The histories of sites
// that failed are left there.
func Soak(t *testing.T, o SoakOptions) *SoakResult {
	t.Helper()
	s := newSoak(t, o)
	defer s.abandon()
	if err := s.open(t); err != nil {
		t.Fatal(err)
	}
	if err := s.live(t); err != nil {
		t.Fatal(err)
	}
	for _, site := range s.sites {
		if err := s.verdict(t, site); err != nil {
			t.Fatalf("%s: there is no verdict: %v", site, err)
		}
	}
	samples, err := ReadSamples(filepath.Join(s.o.Dir, SoakSamplesFile))
	if err != nil {
		t.Fatal(err)
	}
	s.res.judgeAll(samples)
	text, err := json.MarshalIndent(s.res, "", "\t")
	if err == nil {
		err = os.WriteFile(filepath.Join(s.o.Dir, SoakResultFile), append(text, '\n'), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	return s.res
}

func newSoak(t *testing.T, o SoakOptions) *soak {
	t.Helper()
	if o.Rate == 0 {
		o.Rate = soakRate
	}
	if o.Brokers == nil {
		o.Brokers = []string{"kafka-group", "nats", "amqp-quorum"}
	}
	memory, err := mem.VirtualMemory()
	if err != nil {
		t.Fatal(err)
	}
	return &soak{o: o, res: &SoakResult{
		Time: time.Now().UTC().Truncate(time.Second), Seed: o.Seed, Duration: o.Duration, Rate: o.Rate,
		Command:   fmt.Sprintf("make soak DURATION=%s SEED=%d", brief(o.Duration), o.Seed),
		Retention: min(soakRetention, max(o.Duration/6, leastRetention)), Judged: min(soakJudged, o.Duration/2),
		Sampled: min(soakSample, o.Duration/60), FaultsAt: min(soakFault, max(o.Duration/12, leastFault)),
		Library: testenv.Commit("."), Go: runtime.Version(), CPUs: runtime.NumCPU(), Memory: memory.Total, Handled: map[string]int{},
	}}
}

// brief writes a duration as people do on a command line.
func brief(d time.Duration) string {
	s := d.String()
	for _, none := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(s, none) {
			s = s[:len(s)-2]
		}
	}
	return s
}

// open starts the servers and makes the sites.
func (s *soak) open(t *testing.T) error {
	t.Helper()
	if err := os.MkdirAll(s.o.Dir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(s.o.Dir, ".gitignore"), []byte("*\n"), 0o644); err != nil {
		return err
	}
	server := redistest.Start(t, redisArgs...)
	s.redis = server.Client(t)
	info, err := s.redis.Info(t.Context(), "server").Result()
	if err != nil {
		return err
	}
	s.res.Redis = redisVersion(info)
	var restarts sync.Mutex
	for i, kind := range s.o.Brokers {
		at := slices.IndexFunc(brokers, func(m maker[Broker]) bool { return m.kind == kind })
		if at < 0 {
			return fmt.Errorf("there is no broker %q: there is %s", kind, kinds(brokers))
		}
		store := &redisStore{tb: t, primary: server, proxy: NewProxy(t, server.Addr()), version: s.res.Redis}
		broker := brokers[at].make(t)
		if k, is := broker.(*kafkaBroker); is {
			k.size = soakPartitions
		}
		site := &soakSite{}
		tell := func(e history.Event) {
			for _, other := range s.sites {
				if other != site {
					other.recorder.Add(e)
				}
			}
		}
		site.Site = Site{Broker: broker, Store: &sharedRedis{redisStore: store, restarts: &restarts, tell: tell}}
		site.plan = soakPlan(s.o.Seed, uint64(i), s.o.Duration, s.res.FaultsAt)
		site.round = &Round{
			Seed: s.o.Seed + uint64(i), Length: s.o.Duration, Rate: s.o.Rate / len(s.o.Brokers), Bin: s.o.Bin,
			Dir:    filepath.Join(s.o.Dir, kind),
			Config: role.Config{Lease: soakLease, Retention: s.res.Retention, StatsEvery: s.res.Sampled / 2, Concurrency: 4},
		}
		site.round.withDefaults()
		s.sites = append(s.sites, site)
	}
	for i, site := range s.sites {
		if err := site.open(i%2 == 0); err != nil {
			return fmt.Errorf("%s: %w", site, err)
		}
	}
	return nil
}

// sharedRedis is one site's way to a Redis that the others have too.
type sharedRedis struct {
	*redisStore
	restarts *sync.Mutex
	tell     func(history.Event) // the other sites
}

// Round implements Store: the others' records stay.
func (s *sharedRedis) Round(run string) { s.prefix = run }

// Restart implements Store. It hits all sites.
func (s *sharedRedis) Restart() {
	s.restarts.Lock()
	defer s.restarts.Unlock()
	e := history.Event{Kind: history.Fault, Op: uint8(StoreRestart), At: history.Now()}
	s.redisStore.Restart()
	e.Until = history.Now()
	s.tell(e)
}

// open makes everything for the round, and starts its consumers.
func (s *soakSite) open(named bool) (err error) {
	r := s.round
	if err := os.MkdirAll(r.Dir, 0o755); err != nil {
		return err
	}
	if err := r.writePlan(s.Site, s.plan); err != nil {
		return err
	}
	if s.recorder, err = history.Create(filepath.Join(r.Dir, "harness"+history.Suffix)); err != nil {
		return err
	}
	r.begin(s.Site)
	r.pub = newPublisher(s.Broker, r.Seed, r.Rate, s.recorder.Add)
	fl, err := newFleet(r.Bin, r.Dir, Slots, named, r.Config, s.recorder.Add)
	if err != nil {
		return err
	}
	fl.spared = 1
	r.faults = &faults{site: s.Site, fleet: fl, record: s.recorder.Add, done: map[Kind]int{}}
	return nil
}

// live has all sites work, fail and settle, and takes the samples.
func (s *soak) live(t *testing.T) error {
	t.Helper()
	out, err := os.Create(filepath.Join(s.o.Dir, SoakSamplesFile))
	if err != nil {
		return err
	}
	defer out.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	began := time.Now()
	s.began = history.Now()
	var wg sync.WaitGroup
	for _, site := range s.sites {
		for _, f := range site.plan {
			s.res.Faults = append(s.res.Faults, SoakFault{Seconds: f.At.Seconds(), Site: site.Broker.Kind(), Kind: f.Kind.String()})
		}
		wg.Go(func() {
			r := site.round
			r.since = began
			site.stuck, site.err = r.live(ctx, site.plan)
			if site.stuck != "" {
				r.faults.fleet.dump()
			}
			r.faults.fleet.stop()
		})
	}
	if err := s.sample(t, began, out); err != nil {
		cancel()
		wg.Wait()
		return err
	}
	wg.Wait()
	for _, site := range s.sites {
		if site.err != nil {
			return fmt.Errorf("%s: %w", site, site.err)
		}
	}
	return nil
}

// ReadSoak reads a result file.
func ReadSoak(path string) (*SoakResult, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r := new(SoakResult)
	if err := json.Unmarshal(text, r); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

// verdict holds what a site did to the promise. The histories of an hour are large: one
// site at a time has its own in memory.
func (s *soak) verdict(t *testing.T, site *soakSite) error {
	t.Helper()
	r := site.round
	if err := r.collect(t.Context(), site.Site, site.recorder); err != nil {
		return err
	}
	if err := site.recorder.Close(); err != nil {
		return err
	}
	events, err := readAll(r.Dir)
	if err != nil {
		return err
	}
	for i := range events {
		if e := &events[i]; e.Kind == history.Started && e.Process == veteran && e.At-s.began > int64(s.res.Judged) {
			s.res.Handled[site.Broker.Kind()]++
		}
	}
	began := time.Now()
	v := checker.Check(checker.Run{
		Events: events, Ordered: site.Broker.Ordered(), Lease: r.Config.Lease, Budget: r.Config.Budget, Faults: faultEffects(),
		FaultName: func(op uint8) string { return Kind(op).String() },
	})
	t.Logf("%s: %d events checked in %v", site, len(events), time.Since(began).Round(time.Millisecond))
	res := r.result(site.Site, &v)
	res.Time, res.Seconds = s.res.Time, s.o.Duration.Seconds()
	if site.stuck != "" {
		res.Failures = append(res.Failures, site.stuck)
	}
	res.Failures = append(res.Failures, r.faults.fleet.failed()...)
	for _, f := range res.Failures {
		s.res.Failures = append(s.res.Failures, fmt.Sprintf("%s: %s", site, f))
	}
	s.res.Sites = append(s.res.Sites, *res)
	if !res.Passed() {
		return nil
	}
	return os.RemoveAll(r.Dir) // some gigabytes an hour
}

// readAll returns the events of a folder's files in no order: sorting is the checker's.
func readAll(dir string) ([]history.Event, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*"+history.Suffix))
	if err != nil {
		return nil, err
	}
	var bytes int64
	for _, file := range files {
		info, err := os.Stat(file)
		if err != nil {
			return nil, err
		}
		bytes += info.Size()
	}
	all := make([]history.Event, 0, bytes/slotBytes)
	for _, file := range files {
		for e, err := range history.Read(file) {
			if err != nil {
				return nil, err
			}
			all = append(all, e)
		}
	}
	return all, nil
}

// slotBytes is about what an event takes in a file.
const slotBytes = 56

// abandon ends the consumers of a soak that is given up.
func (s *soak) abandon() {
	for _, site := range s.sites {
		if site.round.faults != nil {
			site.round.faults.fleet.abandon()
		}
	}
}
