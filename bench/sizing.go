package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/shirou/gopsutil/v4/mem"

	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/internal/redistest"
)

// The parts of the sizing, in the order in which they are measured and told.
const (
	partTokens     = "tokens"
	partPartitions = "partitions"
	partHandlers   = "handlers"
	partDuplicates = "duplicates"
	partMasters    = "masters"
	partServers    = "servers"
)

// SizingParts are all of them.
var SizingParts = []string{partTokens, partServers, partPartitions, partHandlers, partDuplicates, partMasters}

// SizingFile has the Sizing, in the folder of the options.
const SizingFile = "sizing.json"

// Sizing is what throughput and memory are against the numbers that grow.
type Sizing struct {
	Machine Result         `json:"machine"` // what it ran on; no records
	Ran     map[string]Ran `json:"ran"`

	Tokens     []Remembered `json:"tokens"`
	Allocator  string       `json:"allocator"` // of Redis
	Cliffs     []Cliff      `json:"cliffs"`
	Servers    []Remembered `json:"servers"`
	Partitions []Sized      `json:"partitions"`
	Handlers   []Sized      `json:"handlers"`
	Duplicates []Sized      `json:"duplicates"`
	Masters    []Sized      `json:"masters"`
}

// Remembered is a Redis that holds a number of tokens.
type Remembered struct {
	Server    string `json:"server,omitempty"`
	Allocator string `json:"allocator,omitempty"`

	Layout string `json:"layout"`
	Tokens int    `json:"tokens"` // of one retention
	Older  int    `json:"older"`  // compact: of the generation before, that are still there
	Used   int64  `json:"used"`   // bytes more than when it was empty
	RSS    int64  `json:"rss"`
	// AtOnce says that buckets were filled whole: RSS is then less than where tokens come one
	// at a time.
	AtOnce bool  `json:"at_once"`
	Load   *Load `json:"load,omitempty"` // of Do, on top
}

// Bytes are those of a token of one retention.
func (r *Remembered) Bytes() float64 { return float64(r.Used) / float64(r.Tokens) }

// Sized is the load at one value of what was changed.
type Sized struct {
	Layout string  `json:"layout"`
	Value  float64 `json:"value"`
	Load
	Failed string `json:"failed,omitempty"`
}

// SizingOptions are what a sizing is asked for.
type SizingOptions struct {
	Options
	Records, Compact []int // tokens to be remembered, lowest first
}

// Size measures parts; the others stay as they were in its folder's records.
func Size(t *testing.T, o SizingOptions) *Sizing {
	t.Helper()
	var last Sizing
	z := &Sizing{}
	if there, err := load(o.Dir, SizingFile, &last); err != nil {
		t.Fatal(err)
	} else if there && !o.Quick {
		z = &last
	}
	if slices.Contains(o.Parts, partPage) {
		return z
	}
	servers := z.Machine.Servers
	z.Machine = *describe(t, o.Options)
	z.Machine.Servers = servers
	if z.Ran == nil {
		z.Ran = map[string]Ran{}
	}
	length := pick(o.Options, 4*time.Second, time.Second/2)
	for _, part := range o.Parts {
		begun := time.Now()
		whole(t, part, func(t *testing.T) {
			switch part {
			case partTokens:
				z.sizeTokens(t, o, length)
			case partPartitions:
				z.sizePartitions(t, pick(o.Options, 100_000, 2000), pick(o.Options, []int{1, 4, 16, 64, 256}, []int{1, 16}))
			case partHandlers:
				z.sizeHandlers(t, length)
			case partDuplicates:
				z.sizeDuplicates(t, length)
			case partMasters:
				z.sizeMasters(t, length)
			case partServers:
				z.sizeServers(t, pick(o.Options, costTokens, 10_000), length)
			}
		})
		if t.Failed() {
			t.FailNow()
		}
		z.Ran[part] = z.Machine.ranNow(o.Options, begun)
		if err := save(o.Dir, SizingFile, z); err != nil {
			t.Fatal(err)
		}
		t.Logf("part %s: %.0f s", part, time.Since(begun).Seconds())
	}
	return z
}

// atFull is Do from many goroutines.
func atFull(b *bed, l layout, length time.Duration) calling {
	return calling{name: l.name, goroutines: loadGoroutines, length: length, warm: min(warmed, length), call: doing(b.guard(l))}
}

// oneAtATimeUpTo is how many tokens of the compact layout come one at a time.
const oneAtATimeUpTo = 20_000_000

// sizeTokens fills a fresh Redis for each number of tokens, and has Do work on top.
func (z *Sizing) sizeTokens(t *testing.T, o SizingOptions, length time.Duration) {
	t.Helper()
	z.Tokens, z.Cliffs = nil, nil
	for i, n := range o.Records {
		whole(t, fmt.Sprint("records ", n), func(t *testing.T) {
			roomFor(t, n, recordRoom)
			b := z.bed(t)
			f, empty := fillable(t, b)
			most, begun := i == len(o.Records)-1, time.Now()
			pings, err := watched(t.Context(), b, most, func(ctx context.Context) error { return f.records(ctx, n) })
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("filled in %.0f s", time.Since(begun).Seconds())
			if most {
				z.Cliffs = cliffs(pings)
				t.Logf("%+v", z.Cliffs)
			}
			r := Remembered{Layout: "records", Tokens: n}
			r.measure(t, b, empty, atFull(b, layouts()[0], length))
			z.Tokens, z.Allocator = append(z.Tokens, r), empty.allocator
		})
	}
	for _, n := range o.Compact {
		whole(t, fmt.Sprint("compact ", n), func(t *testing.T) {
			roomFor(t, n+n/2, compactRoom)
			b := z.bed(t)
			f, empty := fillable(t, b)
			one, begun := n <= oneAtATimeUpTo, time.Now()
			if err := f.compact(t.Context(), n, n, 0, one); err != nil {
				t.Fatal(err)
			}
			t.Logf("filled in %.0f s", time.Since(begun).Seconds())
			l := compactLayout(n)
			within := Remembered{Layout: "compact", Tokens: n, AtOnce: !one}
			within.measure(t, b, empty, calling{})
			z.Tokens, z.Allocator = append(z.Tokens, within), empty.allocator
			// Half of the generation before is what there is on average.
			within.Older = n / 2
			if err := f.compact(t.Context(), within.Older, n, 1, one); err != nil {
				t.Fatal(err)
			}
			within.measure(t, b, empty, atFull(b, l, length))
			z.Tokens = append(z.Tokens, within)
		})
	}
}

// sizeServers fills each server that the store is tested on with so many tokens, in both
// layouts, the half of a generation before included, and has Do work on top.
func (z *Sizing) sizeServers(t *testing.T, n int, length time.Duration) {
	t.Helper()
	z.Servers = nil
	for _, v := range redistest.Versions(t) {
		for _, l := range []layout{layouts()[0], compactLayout(n)} {
			whole(t, v.Name+" "+l.name, func(t *testing.T) {
				roomFor(t, n, recordRoom)
				b := bedOn(t, v.Start(t, ownServer...), 0)
				f, empty := fillable(t, b)
				r := Remembered{Server: redisVersion(t, b.masters[0]), Allocator: empty.allocator, Layout: l.name, Tokens: n}
				var err error
				if l.store == nil {
					err = f.records(t.Context(), n)
				} else {
					r.Older = n / 2
					err = errors.Join(f.compact(t.Context(), n, n, 0, true), f.compact(t.Context(), r.Older, n, 1, true))
				}
				if err != nil {
					t.Fatal(err)
				}
				r.measure(t, b, empty, atFull(b, l, length))
				z.Servers = append(z.Servers, r)
			})
		}
	}
}

// bed is a Redis, whose version is noted.
func (z *Sizing) bed(t *testing.T) *bed {
	t.Helper()
	b := newBed(t)
	z.Machine.know(redisVersion(t, b.masters[0]))
	return b
}

// What a token takes at most, its share of the growing table included, and what is left for
// all else.
const (
	recordRoom  = 200
	compactRoom = 16
	otherRoom   = 2_000_000_000
)

// roomFor ends the test where the machine has no memory for so many tokens.
func roomFor(t *testing.T, tokens, bytes int) {
	t.Helper()
	memory, err := mem.VirtualMemory()
	if err != nil {
		t.Fatal(err)
	}
	if need := uint64(tokens)*uint64(bytes) + otherRoom; memory.Available < need {
		t.Fatalf("%s tokens need %s of memory, and %s are available: ask for fewer (RECORDS=1M,10M COMPACT=1M,10M)",
			grouped(tokens), gigabytes(int64(need)), gigabytes(int64(memory.Available)))
	}
}

// fillable is what fills an empty bed.
func fillable(t *testing.T, b *bed) (f *filler, empty redisMemory) {
	t.Helper()
	empty, err := memoryOf(t.Context(), b.masters[0])
	if err != nil {
		t.Fatal(err)
	}
	return newFiller(b.masters[0].Options().Addr), empty
}

// watched asks a server again and again while work is done, if it is to.
func watched(ctx context.Context, b *bed, is bool, work func(context.Context) error) (pings []ping, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var asking sync.WaitGroup
	watching, stop := context.WithCancel(ctx)
	defer stop()
	if is {
		asking.Go(func() { pings = watch(watching, b.masters[0]) })
	}
	err = work(ctx)
	stop()
	asking.Wait()
	return pings, err
}

// measure notes what the bed's memory has become, and the load, if there is one to run.
func (r *Remembered) measure(t *testing.T, b *bed, empty redisMemory, c calling) {
	t.Helper()
	full, err := memoryOf(t.Context(), b.masters[0])
	if err != nil {
		t.Fatal(err)
	}
	r.Used, r.RSS = full.used-empty.used, full.rss-empty.rss
	if c.call != nil {
		if r.Load, err = b.run(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s, %s tokens: %.1f bytes a token, %.0f/s", r.Layout, grouped(r.Tokens), r.Bytes(), r.Load.Rate())
	}
}

// sizePartitions has our Kafka consumer read topics of so many partitions.
func (z *Sizing) sizePartitions(t *testing.T, messages int, partitions []int) {
	t.Helper()
	z.Partitions = nil
	var kafkaRows []Row
	for _, row := range kafkaOurs() {
		if row.flood > 0 {
			kafkaRows = append(kafkaRows, row)
		}
	}
	l := z.Machine.lab(t, Brokers()[0])
	for i, row := range kafkaRows {
		for _, n := range partitions {
			w, err := NewWork(messages, 1)
			if err != nil {
				t.Fatal(err)
			}
			w.partitions = n
			rec := l.measure(t, row, w, 1)
			s := Sized{Layout: layouts()[i].name, Value: float64(n), Failed: rec.Failed}
			if rec.Failed == "" && (rec.Missing > 0 || rec.Doubled > 0) {
				s.Failed = fmt.Sprintf("%d tokens without an effect, %d effects too many", rec.Missing, rec.Doubled)
			}
			s.Load = Load{
				Name: row.Name, Seconds: rec.Seconds, Done: int64(messages), ClientCPU: rec.ClientCPU,
				RedisCPU: rec.RedisCPU, Commands: rec.Commands, Trips: rec.Trips,
			}
			z.Partitions = append(z.Partitions, s)
			t.Logf("%s, %d partitions: %s", row.Name, n, rec.brief(messages))
		}
	}
}

// each measures a load for each layout and value, on an emptied Redis.
func each(t *testing.T, b *bed, all []layout, values []float64, load func(l layout, value float64) calling) (sized []Sized) {
	t.Helper()
	for _, l := range all {
		for _, v := range values {
			b.empty(t)
			c := load(l, v)
			c.name, c.warm = l.name, min(warmed, c.length)
			got, err := b.run(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			got.PerSecond = nil
			sized = append(sized, Sized{Layout: l.name, Value: v, Load: *got})
			t.Logf("%s, %v: %.0f/s", l.name, v, got.Rate())
		}
	}
	return sized
}

// handling is how long handlers take, where they take any time.
const handling = time.Millisecond

func (z *Sizing) sizeHandlers(t *testing.T, length time.Duration) {
	t.Helper()
	b := z.bed(t)
	z.Handlers = each(t, b, layouts(), []float64{1, 16, 64, 256, 1024}, func(l layout, n float64) calling {
		g := b.guard(l)
		return calling{goroutines: int(n), length: length, call: func(ctx context.Context, _ int) (int, error) {
			return 1, g.Do(ctx, idem.NewToken(), func(ctx context.Context) error {
				select {
				case <-time.After(handling):
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			})
		}}
	})
}

// known is how many tokens are done before duplicates come, an equal part of them for each
// goroutine: two that ask for one token at a time are in each other's way.
const (
	knownOfEach = 8
	known       = knownOfEach * loadGoroutines
)

func (z *Sizing) sizeDuplicates(t *testing.T, length time.Duration) {
	t.Helper()
	b := z.bed(t)
	z.Duplicates = each(t, b, layouts(), []float64{1, 10, 50, 90, 99}, func(l layout, share float64) calling {
		g := b.guard(l)
		done := make([]string, known)
		for i := range done {
			done[i] = idem.NewToken()
		}
		for _, err := range doneAll(t.Context(), g, done) {
			if err != nil {
				t.Fatal(err)
			}
		}
		calls := make([]int, loadGoroutines)
		return calling{goroutines: loadGoroutines, length: length, call: func(ctx context.Context, i int) (int, error) {
			calls[i]++
			// So many of each hundred, evenly spread.
			if n := calls[i] * 37; n%100 < int(share) {
				err := g.Do(ctx, done[i*knownOfEach+n%knownOfEach], func(context.Context) error {
					return errors.New("a duplicate was handled")
				})
				if errors.Is(err, idem.ErrDuplicate) {
					err = nil
				}
				return 1, err
			}
			return doing(g)(ctx, i)
		}}
	})
}

// doneAll claims tokens and commits them.
func doneAll(ctx context.Context, g *idem.Guard, tokens []string) (errs []error) {
	for some := range slices.Chunk(tokens, 500) {
		var claims []*idem.Claim
		requests := make([]idem.Request, len(some))
		for i, token := range some {
			requests[i] = idem.Request{Token: token}
		}
		for _, begun := range g.BeginAll(ctx, requests) {
			errs = append(errs, begun.Err)
			if begun.Err == nil {
				claims = append(claims, begun.Claim)
			}
		}
		errs = append(errs, g.CommitAll(ctx, claims)...)
	}
	return errs
}

// fewTags is a number of hash tags that leaves three masters some each.
const fewTags = 12

// sizeMasters compares one Redis with a cluster of three masters, which share the machine, and
// there the usual number of hash tags with few.
func (z *Sizing) sizeMasters(t *testing.T, length time.Duration) {
	t.Helper()
	z.Masters = nil
	measure := func(b *bed, all []layout) {
		z.Masters = append(z.Masters, each(t, b, all, []float64{float64(len(b.masters))}, func(l layout, _ float64) calling {
			return atFull(b, l, length)
		})...)
	}
	measure(z.bed(t), layouts())
	var few []layout
	for _, l := range layouts() {
		few = append(few, l.divided(fewTags))
	}
	measure(newClusterBed(t), slices.Concat(layouts(), few))
}
