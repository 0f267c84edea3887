package idem_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store/redisstore"
	"github.com/idemq/idemq/internal/redistest"
	"github.com/idemq/idemq/internal/storefault"
)

// layouts are the ways to keep records in Redis.
var layouts = map[string][]redisstore.Option{
	"records": nil,
	"compact": {redisstore.WithCompact(redisstore.Compact{Tokens: 100_000, Retention: idem.DefaultRetention})},
}

// A storm of duplicates makes no trip to Redis, and what they are told is what Redis says.
func TestNearCacheStorm(t *testing.T) {
	c := redistest.Start(t).Client(t)
	for layout, opts := range layouts {
		t.Run(layout, func(t *testing.T) {
			s := storefault.New(redisstore.New(c, opts...))
			guard := func(opts ...idem.Option) *idem.Guard {
				return idem.New(append(opts, idem.WithStore(s), idem.WithPrefix(layout))...).Group("billing")
			}
			g := guard(idem.WithNearCache(20_000, time.Hour))
			const tokens, batch = 10_000, 500
			reqs := make([]idem.Request, tokens)
			for i := range reqs {
				reqs[i].Token = fmt.Sprint("message ", i)
			}
			for chunk := range slices.Chunk(reqs, batch) {
				var claims []*idem.Claim
				for _, b := range g.BeginAll(t.Context(), chunk) {
					if b.Err != nil {
						t.Fatal(b.Err)
					}
					claims = append(claims, b.Claim)
				}
				for _, err := range g.CommitAll(t.Context(), claims) {
					if err != nil {
						t.Fatal(err)
					}
				}
			}
			trips := s.Trips()
			var wg sync.WaitGroup
			for chunk := range slices.Chunk(reqs, batch) {
				wg.Go(func() {
					for _, r := range chunk {
						if _, err := g.Begin(t.Context(), r.Token); !errors.Is(err, idem.ErrDuplicate) {
							t.Errorf("%q: %v", r.Token, err)
						}
					}
				})
			}
			wg.Wait()
			for i, b := range g.BeginAll(t.Context(), reqs) {
				if !errors.Is(b.Err, idem.ErrDuplicate) {
					t.Errorf("%q: %v", reqs[i].Token, b.Err)
				}
			}
			if n := s.Trips() - trips; n != 0 {
				t.Errorf("%d trips for %d duplicates, want none", n, 2*tokens)
			}
			near, said := duplicate(t, g, reqs[0].Token), duplicate(t, guard(), reqs[0].Token)
			if late := near.At.Sub(said.At); near.Attempt != said.Attempt || near.At.IsZero() != said.At.IsZero() || late < 0 || late > time.Minute {
				t.Errorf("answered %+v, and Redis says %+v", near, said)
			}
			// What Redis itself was asked for is kept word for word.
			other := guard(idem.WithNearCache(1, 0))
			if first, again := duplicate(t, other, "message 7"), duplicate(t, other, "message 7"); !reflect.DeepEqual(first, again) {
				t.Errorf("Redis said %+v, and then %+v was answered", first, again)
			}
		})
	}
}

// What another process forgets is seen when the ttl is over, by the clock of this one.
func TestNearCacheForgottenElsewhere(t *testing.T) {
	c := redistest.Start(t).Client(t)
	g := idem.New(idem.WithRedis(c), idem.WithNearCache(10, 200*time.Millisecond)).Group("billing")
	complete(t, g, "t")
	if err := idem.New(idem.WithRedis(c)).Group("billing").Forget(t.Context(), "t"); err != nil {
		t.Fatal(err)
	}
	for start := time.Now(); ; {
		err := g.Do(t.Context(), "t", handled)
		if err == nil {
			break
		}
		if !errors.Is(err, idem.ErrDuplicate) || time.Since(start) > 30*time.Second {
			t.Fatalf("after %v: %v", time.Since(start), err)
		}
		runtime.Gosched()
	}
}

// BenchmarkDuplicate is a duplicate that Redis answers beside one that the near cache
// answers, each alone and in batches of 100.
func BenchmarkDuplicate(b *testing.B) {
	c := redistest.Start(b).Client(b)
	for _, size := range []int{1, 100} {
		reqs := make([]idem.Request, size)
		for i := range reqs {
			reqs[i].Token = uuid.NewString()
		}
		for _, bc := range []struct {
			name string
			opts []idem.Option
		}{{name: "redis"}, {name: "near", opts: []idem.Option{idem.WithNearCache(1000, 0)}}} {
			b.Run(fmt.Sprintf("%s/batch=%d", bc.name, size), func(b *testing.B) {
				g := idem.New(append(bc.opts, idem.WithRedis(c))...).Group("billing")
				for _, r := range reqs {
					if err := g.Do(context.Background(), r.Token, handled); !idem.Done(err) {
						b.Fatal(err)
					}
				}
				b.ReportAllocs()
				for b.Loop() {
					for _, got := range g.BeginAll(context.Background(), reqs) {
						if !errors.Is(got.Err, idem.ErrDuplicate) {
							b.Fatal(got.Err)
						}
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*size), "ns/token")
			})
		}
	}
}

// BenchmarkNearCacheMemory is what an entry takes of the heap.
func BenchmarkNearCacheMemory(b *testing.B) {
	const tokens = 200_000
	var bytes int
	for b.Loop() {
		g := idem.New(idem.WithStore(amnesiac{}), idem.WithNearCache(tokens, time.Hour)).Group("billing")
		reqs := make([]idem.Request, 500)
		before := inUse()
		for range tokens / len(reqs) {
			claims := make([]*idem.Claim, len(reqs))
			for i := range reqs {
				reqs[i].Token = uuid.NewString()
			}
			for i, got := range g.BeginAll(context.Background(), reqs) {
				claims[i] = got.Claim
			}
			g.CommitAll(context.Background(), claims)
		}
		bytes = inUse() - before
		runtime.KeepAlive(g)
	}
	b.ReportMetric(float64(bytes)/tokens, "B/token")
}
