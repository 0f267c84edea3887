package idem_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/internal/redistest"
	"github.com/idemq/idemq/internal/storefault"
)

// BenchmarkDo is Do with a fresh token and an empty handler beside the two commands that
// people write by hand, and without a store behind it. An operation is a message.
func BenchmarkDo(b *testing.B) {
	opts := redistest.Start(b).Options()
	opts.PoolSize = 256
	c := redis.NewClient(opts)
	defer func() { _ = c.Close() }()
	guarded := func(opt idem.Option) func(context.Context) error {
		g := idem.New(opt).Group("bench")
		return func(ctx context.Context) error { return g.Do(ctx, idem.NewToken(), handled) }
	}
	for _, bc := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"by hand", func(ctx context.Context) error {
			key := "seen:" + idem.NewToken()
			if err := c.SetNX(ctx, key, "held", 10*time.Second).Err(); err != nil {
				return err
			}
			return c.Set(ctx, key, "done", 24*time.Hour).Err()
		}},
		{"redis", guarded(idem.WithRedis(c))},
		{"no store", guarded(idem.WithStore(amnesiac{}))},
	} {
		for _, callers := range []int{1, 256} {
			b.Run(fmt.Sprintf("%s/callers=%d", bc.name, callers), func(b *testing.B) {
				b.ReportAllocs()
				var wg sync.WaitGroup
				for i := range callers {
					wg.Go(func() {
						for range (b.N + i) / callers {
							if err := bc.do(b.Context()); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
			})
		}
	}
}

// BenchmarkLetGo has callers whose contexts end while the store does not answer. What is
// measured is how long it takes until all are gone, for each of them.
func BenchmarkLetGo(b *testing.B) {
	for _, callers := range []int{1_000, 32_000} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			s := storefault.New(amnesiac{})
			s.Set(storefault.Hang)
			var gone time.Duration
			for b.Loop() {
				g := idem.New(idem.WithStore(s), idem.WithLease(time.Minute)).Group("bench")
				ctx, letGo := context.WithCancel(b.Context())
				var wg, waiting sync.WaitGroup
				for i := range callers {
					waiting.Add(1)
					wg.Go(func() {
						_ = g.Do(&asked{Context: ctx, first: sync.OnceFunc(waiting.Done)}, fmt.Sprint(i), handled)
					})
				}
				waiting.Wait()
				began := time.Now()
				letGo()
				wg.Wait()
				gone += time.Since(began)
			}
			b.ReportMetric(float64(gone.Nanoseconds())/float64(b.N*callers), "ns/caller")
		})
	}
}

// asked is a context that tells when somebody is about to wait for its end.
type asked struct {
	context.Context
	first func()
}

func (a *asked) Done() <-chan struct{} {
	a.first()
	return a.Context.Done()
}
