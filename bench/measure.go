package bench

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/shirou/gopsutil/v4/process"

	"github.com/idemq/idemq/internal/redistest"
)

const (
	// runLimit bounds one run of a row, joining its group included.
	runLimit = 5 * time.Minute
	// askEvery is how often the broker is asked what it still owes, and so how exactly the
	// end of a run is known.
	askEvery = time.Millisecond
)

// Record is one run of a row.
type Record struct {
	Broker string `json:"broker"`
	Row    string `json:"row"`
	Round  int    `json:"round"`

	Seconds   float64 `json:"seconds"`    // on the clock
	Handled   float64 `json:"handled"`    // seconds until the last token had its effect
	ClientCPU float64 `json:"client_cpu"` // seconds
	RedisCPU  float64 `json:"redis_cpu"`  // seconds
	BrokerCPU float64 `json:"broker_cpu"` // seconds
	Commands  int64   `json:"commands"`   // that Redis executed
	Trips     int64   `json:"trips"`      // round trips to Redis
	Mallocs   uint64  `json:"mallocs"`

	Missing int `json:"missing"` // tokens without an effect
	Doubled int `json:"doubled"` // effects beyond a token's first

	// Failed says why there is no measurement.
	Failed string `json:"failed,omitempty"`
}

// lab is what all rows of a broker share.
type lab struct {
	broker Broker
	server server
	redis  *redistest.Server
	own    *redis.Client // the harness's
	runs   int

	away time.Duration // of the rows' clients from Redis
}

// newLab starts a broker, and a Redis that nobody else has: it is emptied.
func newLab(tb testing.TB, b Broker) *lab {
	tb.Helper()
	l := &lab{broker: b, server: b.open(tb)}
	l.redis = redistest.Start(tb, ownServer...)
	l.own = l.redis.Client(tb)
	return l
}

// measure runs a row once, on work published for it alone.
func (l *lab) measure(tb testing.TB, row Row, w *Work, round int) Record {
	tb.Helper()
	ctx := tb.Context()
	rec := Record{Broker: l.broker.Name, Row: row.Name, Round: round}
	if err := emptied(ctx, l.own); err != nil {
		tb.Fatal(err)
	}
	s, counted, discard := l.site(tb, w.partitions)
	defer discard()
	if err := l.publish(tb, s, w); err != nil {
		tb.Fatalf("publishing to %s: %v", s.Source, err)
	}

	if row.warm != nil {
		var err error
		if row.consume, err = row.warm(tb, s, w); err != nil {
			rec.Failed = err.Error()
			return rec
		}
		if err := emptied(ctx, l.own); err != nil {
			tb.Fatal(err)
		}
	}
	runtime.GC()
	before, err := useOf(ctx, l.own)
	if err != nil {
		tb.Fatal(err)
	}
	brokerBefore, err := cpuOf(ctx, l.server.pid())
	if err != nil {
		tb.Fatal(err)
	}
	r := newRun(w)
	ended, err := l.run(ctx, row, s, r)
	if err != nil {
		rec.Failed = err.Error()
	}
	after, err := useOf(ctx, l.own)
	if err != nil {
		tb.Fatal(err)
	}
	brokerAfter, err := cpuOf(ctx, l.server.pid())
	if err != nil {
		tb.Fatal(err)
	}
	rec.Missing, rec.Doubled = r.tally()
	if rec.Failed != "" {
		return rec
	}
	rec.Seconds = ended.at.Sub(r.begun.at).Seconds()
	rec.Handled = r.at.Sub(r.begun.at).Seconds()
	rec.ClientCPU = (ended.cpu - r.begun.cpu).Seconds()
	rec.Mallocs = ended.mallocs - r.begun.mallocs
	if r.foreign != nil {
		rec.ClientCPU, rec.Mallocs = r.foreign.Seconds(), 0
	}
	rec.RedisCPU, rec.BrokerCPU = (after.cpu - before.cpu).Seconds(), brokerAfter-brokerBefore
	rec.Commands, rec.Trips = after.commands-before.commands, counted.n.Load()
	if r.foreign != nil {
		rec.Trips = rec.Commands // its client is not ours to count; it pipelines nothing
	}
	return rec
}

// cpuOf is how many seconds of CPU time a process has used, with those that it started, as far
// as they run.
func cpuOf(ctx context.Context, pid int) (seconds float64, err error) {
	p, err := process.NewProcessWithContext(ctx, int32(pid))
	if err != nil {
		return 0, fmt.Errorf("process %d: %w", pid, err)
	}
	times, err := p.TimesWithContext(ctx)
	if err != nil {
		return 0, fmt.Errorf("the CPU time of process %d: %w", pid, err)
	}
	children, err := p.ChildrenWithContext(ctx)
	if err != nil {
		return 0, fmt.Errorf("the children of process %d: %w", pid, err)
	}
	seconds = times.User + times.System
	for _, c := range children {
		if more, err := cpuOf(ctx, int(c.Pid)); err == nil { // else it has ended meanwhile
			seconds += more
		}
	}
	return seconds, nil
}

// site makes a source for one run, and a client of Redis whose trips are counted. The caller
// discards both.
func (l *lab) site(tb testing.TB, partitions int) (s *Site, counted *trips, discard func()) {
	tb.Helper()
	l.runs++
	s = &Site{Source: fmt.Sprintf("bench-%d", l.runs), Group: fmt.Sprintf("bench-group-%d", l.runs), Partitions: partitions}
	s.Addr = l.server.create(tb, s.Source, partitions)
	s.Redis, counted = countedClient(l.redis, workers+1, l.away)
	return s, counted, func() {
		_ = s.Redis.Close()
		l.server.discard(tb, s.Source)
	}
}

// countedClient is a client of so many connections, to a server that is so far away, whose
// round trips are counted.
func countedClient(server *redistest.Server, connections int, away time.Duration) (*redis.Client, *trips) {
	options := server.Options()
	options.PoolSize = connections
	moveAway(options, away)
	c, counted := redis.NewClient(options), new(trips)
	c.AddHook(counted)
	return c, counted
}

// publishBatch is how many messages are handed to a client at once.
const publishBatch = 10_000

// publish puts all of the work into a site's source.
func (l *lab) publish(tb testing.TB, s *Site, w *Work) error {
	tb.Helper()
	p := l.server.producer(tb, s.Source)
	defer p.close()
	ctx := tb.Context()
	some := make([]message, 0, publishBatch)
	for i := range w.Messages() {
		if some = append(some, w.at(i)); len(some) == publishBatch || i == w.Messages()-1 {
			if err := p.send(ctx, some...); err != nil {
				return err
			}
			some = some[:0]
		}
	}
	s.Messages = w.Messages()
	return p.flush(ctx)
}

// run lets a row consume until every token has had its effect and, unless the row is late
// with it, until the broker has seen everything settled. It returns what had been used then.
func (l *lab) run(ctx context.Context, row Row, s *Site, r *Run) (ended usage, err error) {
	ctx, cancel := context.WithTimeout(ctx, runLimit)
	defer cancel()
	over := make(chan error, 1)
	go func() { over <- row.consume(ctx, s, r) }()
	select {
	case <-r.handled:
	case err = <-over:
		select {
		case <-r.handled:
			over <- err
		default:
			return ended, orElse(err, "it ended before everything was handled")
		}
	case <-ctx.Done():
		return ended, orElse(<-over, fmt.Sprintf("not everything was handled within %v", runLimit))
	}
	if row.Late {
		ended = use()
		close(r.over)
	}
	settled := l.settled(ctx, s)
	if !row.Late {
		ended = use()
		close(r.over)
	}
	if settled != nil {
		cancel()
	}
	return ended, errors.Join(settled, <-over)
}

// settled returns when the broker owes nothing.
func (l *lab) settled(ctx context.Context, s *Site) error {
	var owed int
	var failed error
	err := await(ctx, func() bool {
		owed, failed = l.server.owed(ctx, s)
		return failed != nil || owed == 0
	})
	switch {
	case failed != nil:
		return failed
	case err != nil:
		return fmt.Errorf("%d messages were not settled: %w", owed, err)
	}
	return nil
}

// await returns when cond, which is asked again and again, is true.
func await(ctx context.Context, cond func() bool) error {
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// orElse is err, or otherwise where there is none.
func orElse(err error, otherwise string) error {
	if err != nil {
		return err
	}
	return errors.New(otherwise)
}
