package idem_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/memstore"
	"github.com/idemq/idemq/idem/store/redisstore"
	"github.com/idemq/idemq/internal/redistest"
)

func TestWithCompact(t *testing.T) {
	c := redistest.Start(t).Client(t)
	ctx := t.Context()
	g := idem.New(idem.WithCompact(redisstore.Compact{Tokens: 1000}), idem.WithRedis(c), idem.WithPrefix("p"), idem.WithRetention(48*time.Hour))
	runs := 0
	handle := func(ctx context.Context) error {
		runs++
		claim, _ := idem.FromContext(ctx)
		claim.SetResult([]byte("result"))
		return nil
	}
	if err := g.Do(ctx, "t", handle); err != nil {
		t.Fatal(err)
	}
	var dup *idem.DuplicateError
	if err := g.Do(ctx, "t", handle); !errors.As(err, &dup) || runs != 1 {
		t.Fatalf("%d runs, %v", runs, err)
	}
	if !dup.At.IsZero() || dup.Attempt != 0 || dup.Dead || len(dup.Result) != 0 || !strings.HasSuffix(dup.Error(), "already handled") {
		t.Errorf("the duplicate knows %+v: %v", dup, dup)
	}
	if rec, err := g.Inspect(ctx, "t"); err != nil || rec.State != store.Done || rec.Expires < 48*time.Hour || rec.Expires > 97*time.Hour {
		t.Errorf("the record is %+v, %v", rec, err)
	}
	if err := g.Forget(ctx, "t"); err != nil {
		t.Fatal(err)
	}
	if err := g.Do(ctx, "t", handle); err != nil || runs != 2 {
		t.Errorf("after Forget: %d runs, %v", runs, err)
	}

	if _, err := g.Begin(ctx, "u", idem.WithPayload([]byte("10 EUR"))); !errors.Is(err, idem.ErrNoFingerprints) {
		t.Errorf("a payload to compare: %v", err)
	}
	if _, err := g.Spend(ctx, "u", idem.WithPayload(nil)); !errors.Is(err, idem.ErrNoFingerprints) {
		t.Errorf("an empty payload to compare: %v", err)
	}
	if err := g.Do(ctx, "u", handle); err != nil {
		t.Errorf("what was refused is held: %v", err)
	}

	other := idem.New(idem.WithRedis(c), idem.WithCompact(redisstore.Compact{Tokens: 1000}), idem.WithPrefix("p"))
	if err := other.Verify(ctx); err == nil || !strings.Contains(err.Error(), "48h0m0s") || !strings.Contains(err.Error(), "24h0m0s") {
		t.Errorf("another retention: %v", err)
	}
}

func TestWithCompactOptions(t *testing.T) {
	c := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	defer c.Close()
	for word, opts := range map[string][]idem.Option{
		"WithStore":               {idem.WithRedis(c), idem.WithStore(memstore.New()), idem.WithCompact(redisstore.Compact{})},
		"-3 Tokens":               {idem.WithRedis(c), idem.WithCompact(redisstore.Compact{Tokens: -3})},
		"a Retention of 1h0m0s":   {idem.WithRedis(c), idem.WithCompact(redisstore.Compact{Retention: time.Hour})},
		"the lease, 10s":          {idem.WithRedis(c), idem.WithRetention(time.Second), idem.WithCompact(redisstore.Compact{})},
		"WithRetention is 24h0m0": {idem.WithCompact(redisstore.Compact{Retention: time.Hour})},
	} {
		if err := idem.New(opts...).Err(); err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%s: %v", word, err)
		}
	}
	// A later option wins, and without a client there is no store.
	g := idem.New(idem.WithStore(memstore.New()), idem.WithRedis(c), idem.WithCompact(redisstore.Compact{Retention: idem.DefaultRetention}))
	if s, ok := g.Settings().Store.(*redisstore.Store); g.Err() != nil || !ok || !s.Capabilities().NoDoneDetails {
		t.Errorf("%T, %v", g.Settings().Store, g.Err())
	}
	none := idem.New(idem.WithRedis(nil), idem.WithCompact(redisstore.Compact{}))
	if _, err := none.Token(t.Context()); !errors.Is(err, idem.ErrRedisNotEnabled) {
		t.Errorf("without a client: %v", err)
	}
	if s := idem.New(idem.WithRedis(c), idem.WithStore(memstore.New())).Settings().Store; s.Capabilities().NoDoneDetails {
		t.Errorf("%T", s)
	} else if _, ok := s.(*memstore.Store); !ok {
		t.Errorf("the store is a %T, want the later one", s)
	}
}
