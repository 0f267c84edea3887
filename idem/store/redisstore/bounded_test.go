package redisstore_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/redisstore"
	"github.com/idemq/idemq/internal/redistest"
)

// A store says that it keeps to deadlines where its client does, and then does it: while
// the server hangs, from the first call on, and where all connections are taken.
func TestBounded(t *testing.T) {
	server := redistest.Start(t, private...)
	options := server.Options()
	options.ContextTimeoutEnabled, options.PoolSize, options.ReadTimeout, options.DialTimeout = true, 1, time.Minute, time.Minute
	client := func() *redis.Client {
		c := redis.NewClient(options)
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	bounded, fresh := client(), redisstore.New(client())
	options.ContextTimeoutEnabled = false
	var none *redis.Client
	for name, tc := range map[string]struct {
		client redis.UniversalClient
		want   bool
	}{
		"bounded": {bounded, true}, "not bounded": {client(), false}, "none": {none, false},
	} {
		if got := redisstore.New(tc.client).Bounded(); got != tc.want {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
	s := redisstore.New(bounded)
	apply(t, s, batch("bounded"))
	server.Pause()
	for name, s := range map[string]*redisstore.Store{"one that knows the server": s, "one that does not": fresh} {
		done := make(chan error, 2)
		for range cap(done) { // there is one connection
			go func() {
				ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
				defer cancel()
				began, b := time.Now(), batch("bounded")
				b.Ops = append(b.Ops, op(store.Begin, "a", "a"))
				err := s.Apply(ctx, b)
				if took := time.Since(began); took > 30*time.Second { // the client alone would take minutes
					t.Errorf("%s: Apply took %v of the 300 ms that it had", name, took)
				}
				done <- err
			}()
		}
		for range cap(done) {
			if err := <-done; !errors.Is(err, store.ErrUnavailable) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}
