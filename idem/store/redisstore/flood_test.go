package redisstore_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"testing"

	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/internal/redistest"
)

// A flood of fresh tokens costs the server what SECURITY.md says for each, and fills a Redis
// that evicts nothing; then new tokens are refused, and nothing else: what was done stays
// done, and what is held can be completed.
func TestFlood(t *testing.T) {
	const most = 300 // bytes a token of 36 characters
	c := redistest.Start(t, append([]string{"--maxmemory-policy", "noeviction"}, private...)...).Client(t)
	g := idem.New(idem.WithRedis(c)).Group("billing")
	ctx := t.Context()
	memory := func() int {
		info, err := c.InfoMap(ctx, "memory").Result()
		if err != nil {
			t.Fatal(err)
		}
		n, err := strconv.Atoi(info["Memory"]["used_memory"])
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	nothing := func(context.Context) error { return nil }
	if err := g.Do(ctx, "before", nothing); err != nil {
		t.Fatal(err)
	}
	held, err := g.Begin(ctx, "held")
	if err != nil {
		t.Fatal(err)
	}
	flood := func(from, n int) error {
		for end := from + n; from < end; {
			reqs := make([]idem.Request, 256)
			for i := range reqs {
				reqs[i].Token = fmt.Sprintf("flood-%030d", from)
				from++
			}
			var claims []*idem.Claim
			var failed error
			for _, b := range g.BeginAll(ctx, reqs) {
				if b.Err != nil {
					failed = b.Err
					continue
				}
				claims = append(claims, b.Claim)
			}
			for _, err := range g.CommitAll(ctx, claims) {
				if err != nil {
					t.Errorf("completing a claim that was granted: %v", err)
				}
			}
			if failed != nil {
				return failed
			}
		}
		return nil
	}
	if err := flood(0, 256); err != nil { // tables that are grown once
		t.Fatal(err)
	}
	before, keys := memory(), c.DBSize(ctx).Val()
	if err := flood(256, 1<<15); err != nil {
		t.Fatal(err)
	}
	used, n := memory()-before, c.DBSize(ctx).Val()-keys
	t.Logf("%d bytes a token", used/int(n))
	if n != 1<<15 || used/int(n) > most {
		t.Errorf("%d tokens took %d keys and %d bytes each, want a key and %d bytes at most", 1<<15, n, used/int(n), most)
	}

	if err := c.ConfigSet(ctx, "maxmemory", strconv.Itoa(memory()+1<<20)).Err(); err != nil {
		t.Fatal(err)
	}
	if err := flood(1<<16, 1<<16); !errors.Is(err, store.ErrFull) {
		t.Fatalf("at maxmemory a new token is answered %v, want store.ErrFull", err)
	}
	if err := held.Commit(ctx); err != nil {
		t.Errorf("what was held before the flood: %v", err)
	}
	if err := c.ConfigSet(ctx, "maxmemory", "0").Err(); err != nil {
		t.Fatal(err)
	}
	for _, token := range []string{"before", "held"} {
		if err := g.Do(ctx, token, nothing); !errors.Is(err, idem.ErrDuplicate) {
			t.Errorf("%q, done before the flood, is answered %v, want a duplicate", token, err)
		}
	}
}
