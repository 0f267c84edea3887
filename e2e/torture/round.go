package torture

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/idemq/idemq/e2e/checker"
	"github.com/idemq/idemq/e2e/history"
	"github.com/idemq/idemq/e2e/torture/role"
	"github.com/idemq/idemq/idem/store"
)

// Round is one site under the faults of one seed. What is zero has a default.
type Round struct {
	Seed     uint64
	Length   time.Duration // of the faults; what is left is handled in the calm after it
	Rate     int           // messages a second at most
	Bin      string        // the consumer program
	Dir      string        // of the round's files
	Clock    bool          // the program can step its clock
	Every    time.Duration // from fault to fault
	Only     []Kind        // of faults
	Config   role.Config   // what differs from the default
	Settings Settings      // of consumers; what is missing is as usual

	faults *faults
	pub    *publisher
	phases []Phase
	since  time.Time // the phase before ended
	nudges int

	// The same, for those who look on.
	faultsNow atomic.Pointer[faults]
	pubNow    atomic.Pointer[publisher]
}

// The defaults of a round.
const (
	Slots        = 3
	DefaultLease = 2 * time.Second
	DefaultEvery = time.Second
	DefaultRate  = 4000

	minBacklog = 400
	maxBacklog = 6000
)

// Progress is how many messages and faults there have been so far.
func (r *Round) Progress() (messages, faults int) {
	f, pub := r.faultsNow.Load(), r.pubNow.Load()
	if f == nil || pub == nil {
		return 0, 0
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range f.done {
		faults += n
	}
	return int(pub.messages.Load()), faults
}

// phase notes that one has ended.
func (r *Round) phase(name string) {
	now := time.Now()
	r.phases = append(r.phases, Phase{name, math.Round(now.Sub(r.since).Seconds()*100) / 100})
	r.since = now
}

// plan is the round's schedule on a site.
func (r *Round) plan(s Site) []Fault {
	o := s.offer()
	o.Slots, o.Lease, o.Every, o.Clock, o.Only = Slots, r.Config.Lease, r.Every, r.Clock, r.Only
	return Plan(r.Seed, r.Length, o)
}

// withDefaults fills in what is zero. Half of what a consumer can be told is drawn from
// the seed.
func (r *Round) withDefaults() {
	def := func(d *time.Duration, to time.Duration) {
		if *d == 0 {
			*d = to
		}
	}
	def(&r.Every, DefaultEvery)
	def(&r.Config.Lease, DefaultLease)
	if r.Rate == 0 {
		r.Rate = DefaultRate
		if r.Settings["work"] {
			r.Rate = workRate
		}
	}
	c := &r.Config
	if c.Concurrency == 0 {
		c.Concurrency = 1
		if r.Seed%2 == 1 {
			c.Concurrency = 4
		}
	}
	if c.Budget == 0 {
		c.Budget = 10
	}
	if c.FailEvery == 0 {
		c.FailEvery = 100
	}
	if c.PoisonEvery == 0 {
		c.PoisonEvery = 10_000
	}
	r.Settings.apply(c)
}

// runs makes the names of runs different.
var runs atomic.Int64

// begin makes everything new for the round.
func (r *Round) begin(s Site) {
	r.Config.Run = fmt.Sprintf("run%dx%d", r.Seed, runs.Add(1))
	s.Broker.Round(r.Config.Run)
	s.Store.Round(r.Config.Run)
	r.Config.Broker, r.Config.Store = s.Broker.Role(), s.Store.Role()
}

// Run has the round happen: it publishes while faults come, lets what is left be
// handled, and holds the histories to the promise. The error says why there is no
// verdict.
func (r *Round) Run(ctx context.Context, s Site) (*Result, error) {
	r.withDefaults()
	began := time.Now()
	r.since = began
	if err := os.MkdirAll(r.Dir, 0o755); err != nil {
		return nil, err
	}
	plan := r.plan(s)
	if err := r.writePlan(s, plan); err != nil {
		return nil, err
	}
	recorder, err := history.Create(filepath.Join(r.Dir, "harness.hist"))
	if err != nil {
		return nil, err
	}
	defer recorder.Close()
	r.begin(s)
	fl, err := newFleet(r.Bin, r.Dir, Slots, r.Seed%4 < 2, r.Config, recorder.Add)
	if err != nil {
		return nil, err
	}
	defer fl.abandon()
	r.faults = &faults{site: s, fleet: fl, record: recorder.Add, done: map[Kind]int{}}
	r.pub = newPublisher(s.Broker, r.Seed, r.Rate, recorder.Add)
	r.faultsNow.Store(r.faults)
	r.pubNow.Store(r.pub)
	r.phase("start")
	stuck, err := r.live(ctx, plan)
	if err != nil {
		return nil, err
	}
	if stuck != "" {
		fl.dump()
	}
	r.phase("calm")
	fl.stop()
	r.phase("stop")
	if err := r.collect(ctx, s, recorder); err != nil {
		return nil, err
	}
	r.phase("collect")
	if err := recorder.Close(); err != nil {
		return nil, err
	}
	v, err := r.check(s)
	if err != nil {
		return nil, err
	}
	r.phase("check")
	res := r.result(s, v)
	res.Time, res.Seconds = began.UTC().Truncate(time.Second), time.Since(began).Seconds()
	if stuck != "" {
		res.Failures = append(res.Failures, stuck)
	}
	res.Failures = append(res.Failures, fl.failed()...)
	return res, nil
}

// live is the part of the round in which consumers run.
func (r *Round) live(ctx context.Context, plan []Fault) (stuck string, err error) {
	final, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	publishing, stop := context.WithCancel(final)
	defer stop()
	faulty, calm := context.WithCancel(final)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer giveUp(nil)
	defer calm()

	published := make(chan error, 1)
	wg.Go(func() { published <- r.pub.run(publishing, final) })
	w := &watcher{round: r}
	if stuck, err := w.until(final, "nothing is settled, before the first fault", func() bool { return r.pub.settled.Load() > 0 }); stuck != "" || err != nil {
		return stuck, err
	}
	r.phase("first settled")
	faultsDone := make(chan struct{})
	wg.Go(func() {
		defer close(faultsDone)
		r.faults.run(faulty, plan, giveUp)
	})
	for end := time.Now().Add(r.Length); time.Now().Before(end); {
		if err := w.look(final); err != nil {
			return "", err
		}
	}
	calm()
	for over := false; !over; { // pauses go on
		select {
		case <-faultsDone:
			over = true
		default:
			if err := w.look(final); err != nil {
				return "", err
			}
		}
	}
	r.phase("faults")
	stop()
	if err := <-published; err != nil {
		return "", fmt.Errorf("publishing: %w", err)
	}
	return w.settle(final)
}

// collect records what is in the dead-letter destination and, for a transactional store,
// in the database.
func (r *Round) collect(ctx context.Context, s Site, to *history.Recorder) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	dead, err := s.Broker.DeadLetters(ctx)
	if err != nil {
		return fmt.Errorf("reading the dead letters: %w", err)
	}
	for _, token := range dead {
		to.Add(history.Event{Kind: history.DeadLettered, Token: token})
	}
	database, is := s.Store.(Transactional)
	if !is {
		return nil
	}
	rows, err := database.Effects(ctx)
	if err != nil {
		return fmt.Errorf("reading the effects: %w", err)
	}
	for _, row := range rows {
		to.Add(history.Event{Kind: history.Stored, Token: row.Token, Attempt: row.Attempt, Process: row.Process})
	}
	return nil
}

// faultEffects is what each kind of fault can do to claims.
func faultEffects() map[uint8]checker.Effect {
	all := map[uint8]checker.Effect{uint8(Kill): checker.Ends, uint8(Pause): checker.Holds, uint8(Deploy): checker.Drains, uint8(Rebalance): checker.Drains}
	for _, k := range Kinds() {
		if traits[k].hits == hitsStore {
			all[uint8(k)] = checker.HitsStore
		}
	}
	return all
}

func (r *Round) check(s Site) (*checker.Verdict, error) {
	events, err := history.ReadDir(r.Dir)
	if err != nil {
		return nil, err
	}
	_, transactional := s.Store.(Transactional)
	v := checker.Check(checker.Run{
		Events: events, Ordered: s.Broker.Ordered(), Transactional: transactional, NoDoneDetails: lacks(s.Store).NoDoneDetails,
		Lease: r.Config.Lease, Budget: r.Config.Budget, Faults: faultEffects(), Forgot: r.faults.forgot,
		FaultName: func(op uint8) string { return Kind(op).String() },
	})
	return &v, nil
}

// lacks is what the driver of a store cannot do.
func lacks(s Store) (c store.Capabilities) {
	if limited, is := s.(Limited); is {
		c = limited.Capabilities()
	}
	return c
}

func (r *Round) writePlan(s Site, plan []Fault) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, seed %d, %v of faults; %s\n", s, r.Seed, r.Length, r.Settings)
	for _, f := range plan {
		fmt.Fprintln(&b, f)
	}
	return os.WriteFile(filepath.Join(r.Dir, "schedule.txt"), []byte(b.String()), 0o644)
}
