package bench

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/idemq/idemq/internal/redistest"
)

// Load is what a number of goroutines did that called the same thing again and again.
type Load struct {
	Name       string  `json:"name"`
	Goroutines int     `json:"goroutines"`
	Seconds    float64 `json:"seconds"`
	Done       int64   `json:"done"` // operations: tokens claimed and completed, or found done

	Latency   Quantiles `json:"latency"` // of a call
	ClientCPU float64   `json:"client_cpu"`
	RedisCPU  float64   `json:"redis_cpu"` // of all masters together
	Commands  int64     `json:"commands"`
	Trips     int64     `json:"trips"`
	PerSecond []int64   `json:"per_second,omitempty"` // of whole seconds
}

// Rate is operations a second.
func (l *Load) Rate() float64 { return float64(l.Done) / l.Seconds }

// Limit is how many operations a second one core gives that Redis has to itself.
func (l *Load) Limit() float64 { return float64(l.Done) / l.RedisCPU }

// bed is a Redis that nobody else has, or several, and a client whose trips are counted.
type bed struct {
	masters []*redis.Client // the harness's
	client  redis.UniversalClient
	trips   *trips
}

// mostCallers is how many goroutines talk to Redis at once, each over a connection.
const mostCallers = 256

// ownServer is a setting that has redistest start a server, in place of a shared one.
var ownServer = []string{"--maxmemory-policy", "noeviction"}

// newBed starts one Redis.
func newBed(tb testing.TB) *bed { return bedOn(tb, redistest.Start(tb, ownServer...), 0) }

// bedOn is on a server that is so far away.
func bedOn(tb testing.TB, server *redistest.Server, away time.Duration) *bed {
	tb.Helper()
	c, counted := countedClient(server, mostCallers+1, away)
	tb.Cleanup(func() { _ = c.Close() })
	return &bed{masters: []*redis.Client{server.Client(tb)}, client: c, trips: counted}
}

// newClusterBed starts a cluster of three masters.
func newClusterBed(tb testing.TB) *bed {
	tb.Helper()
	cluster := redistest.StartCluster(tb)
	b, c := &bed{trips: new(trips)}, cluster.Client(tb)
	for _, node := range cluster.Nodes {
		b.masters = append(b.masters, node.Client(tb))
	}
	c.OnNewNode(func(node *redis.Client) { node.AddHook(b.trips) })
	b.client = c
	return b
}

// use is what all masters have used together.
func (b *bed) use(ctx context.Context) (all redisUse, err error) {
	for _, m := range b.masters {
		u, err := useOf(ctx, m)
		if err != nil {
			return all, err
		}
		all.cpu += u.cpu
		all.commands += u.commands
	}
	return all, nil
}

// empty forgets everything.
func (b *bed) empty(tb testing.TB) {
	tb.Helper()
	for _, m := range b.masters {
		if err := emptied(tb.Context(), m); err != nil {
			tb.Fatal(err)
		}
	}
}

// calling is a load to be run.
type calling struct {
	name       string
	goroutines int
	length     time.Duration
	warm       time.Duration // before the clock starts
	// call does some operations and returns how many. Each goroutine has its own number.
	call func(ctx context.Context, goroutine int) (int, error)
}

// warmed is how long loads run before they are measured: connections are made, and scripts
// loaded.
const warmed = 500 * time.Millisecond

// run calls from all goroutines, once at least, until the time is over.
func (b *bed) run(ctx context.Context, c calling) (*Load, error) {
	if c.warm > 0 {
		first := c
		first.length, first.warm = c.warm, 0
		if _, err := b.run(ctx, first); err != nil {
			return nil, err
		}
	}
	l := &Load{Name: c.name, Goroutines: c.goroutines}
	before, err := b.use(ctx)
	if err != nil {
		return nil, err
	}
	tripsBefore, perSecond := b.trips.n.Load(), make([]atomic.Int64, int(c.length/time.Second))
	var done atomic.Int64
	var counted [8]*histogram // each of some goroutines: one would hold them up, and one for each is large
	for i := range counted {
		counted[i] = newHistogram()
	}
	begun := use()
	g, ctx := errgroup.WithContext(ctx)
	for i := range c.goroutines {
		g.Go(func() error {
			own := counted[i%len(counted)]
			for at := time.Now(); ctx.Err() == nil; {
				n, err := c.call(ctx, i)
				if err != nil {
					return fmt.Errorf("%s: %w", c.name, err)
				}
				now := time.Now()
				own.record(now.Sub(at))
				done.Add(int64(n))
				if second := int(now.Sub(begun.at) / time.Second); second < len(perSecond) {
					perSecond[second].Add(int64(n))
				}
				if at = now; now.Sub(begun.at) >= c.length {
					break
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	ended := use()
	after, err := b.use(context.WithoutCancel(ctx))
	if err != nil {
		return nil, err
	}
	all := newHistogram()
	for _, h := range counted {
		all.merge(h)
	}
	l.Seconds, l.Done, l.Latency = ended.at.Sub(begun.at).Seconds(), done.Load(), all.quantiles()
	l.ClientCPU, l.RedisCPU = (ended.cpu - begun.cpu).Seconds(), (after.cpu - before.cpu).Seconds()
	l.Commands, l.Trips = after.commands-before.commands, b.trips.n.Load()-tripsBefore
	for i := range perSecond {
		l.PerSecond = append(l.PerSecond, perSecond[i].Load())
	}
	return l, nil
}
