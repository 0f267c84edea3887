package redisstore_test

import (
	"context"
	"crypto/rand"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/redisstore"
	"github.com/idemq/idemq/internal/redistest"
)

// A token that is done is known for a retention from its completion, and longer by no more
// than a lease, and that only where a lease is little beside it. There are two of each kind:
// the script may see at the first how it goes on.
func TestExpiryOfDone(t *testing.T) {
	const lease = 30 * time.Second
	const little, much = 30 * time.Hour, 10 * time.Minute // is the lease, of these retentions
	two := func(k store.Kind, claim string) []store.Op { return []store.Op{op(k, "t", claim), op(k, "u", claim)} }
	begins := func(claim string) []store.Op { return two(store.Begin, claim) }
	commits := func(claim string, attempt int) []store.Op {
		ops := two(store.Commit, claim)
		ops[0].Attempt, ops[1].Attempt = attempt, attempt
		return ops
	}
	for _, tt := range []struct {
		name      string
		retention time.Duration
		before    [][]store.Op
		lease     time.Duration // of the claims before
		aged      bool          // their lease has run out, long ago
		last      []store.Op
		more      time.Duration // than a retention
	}{
		{"little", little, [][]store.Op{begins("a-000001")}, lease, false, commits("a-000001", 1), 30 * time.Second},
		{"much", much, [][]store.Op{begins("a-000001")}, lease, false, commits("a-000001", 1), 0},
		{"other terms", little, [][]store.Op{begins("a-000001")}, lease / 2, false, commits("a-000001", 1), 0},
		{"past its lease", little, [][]store.Op{begins("a-000001")}, lease, true, commits("a-000001", 1), 0},
		{"renewed and past its lease", little, [][]store.Op{begins("a-000001"), two(store.Renew, "a-000001")}, lease, true, commits("a-000001", 1), 0},
		{"released before", little, [][]store.Op{begins("a-000001"), two(store.Release, "a-000001")}, lease, false, commits("a-000001", 1), 0},
		{"second attempt", little, [][]store.Op{begins("a-000001"), two(store.Release, "a-000001"), begins("b-000002")}, lease, false, commits("b-000002", 2), 0},
		{"absent", little, nil, lease, false, commits("a-000001", 1), 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := redistest.Start(t).Client(t)
			s, prefix := redisstore.New(c), rand.Text()
			do := func(lease time.Duration, ops []store.Op) {
				t.Helper()
				b := batch(prefix, ops...)
				b.Lease, b.Retention = lease, tt.retention
				for _, r := range apply(t, s, b) {
					if r.Err != nil || r.Status != store.OK && r.Status != store.Claimed {
						t.Fatalf("%+v was answered %+v", ops, r)
					}
				}
			}
			for _, ops := range tt.before {
				do(tt.lease, ops)
			}
			if tt.aged {
				for _, key := range keysOf(t, c, prefix, ":g:") {
					age(t, c, key, time.Hour)
				}
			}
			do(lease, tt.last)
			all := keysOf(t, c, prefix, ":g:")
			if len(all) != len(tt.last) {
				t.Errorf("%d records of %d tokens", len(all), len(tt.last))
			}
			for _, key := range all {
				left := c.PTTL(context.Background(), key).Val()
				const slow = 20 * time.Second // this test's own time
				if left > tt.retention+tt.more || left <= tt.retention+tt.more-slow {
					t.Errorf("%q is kept for %v, want %v and %v more", key, left, tt.retention, tt.more)
				}
			}
		})
	}
}

// age makes a record in progress as old as if it had been written that long ago.
func age(t *testing.T, c *redis.Client, key string, by time.Duration) {
	t.Helper()
	ctx := t.Context()
	was, err := c.Get(ctx, key).Result()
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Split(was, "|")
	deadline, err := strconv.ParseInt(fields[9], 10, 64)
	if err != nil || fields[0] != "1p" {
		t.Fatalf("%q: %v", was, err)
	}
	fields[9] = strconv.FormatInt(deadline-by.Microseconds(), 10)
	if err := c.Set(ctx, key, strings.Join(fields, "|"), c.PTTL(ctx, key).Val()-by).Err(); err != nil {
		t.Fatal(err)
	}
}

// What is not the completing claim's stays as it was, its expiry too.
func TestStrangersCompletionChangesNothing(t *testing.T) {
	c := redistest.Start(t).Client(t)
	ctx := context.Background()
	s, prefix := redisstore.New(c), rand.Text()
	do := func(status store.Status, ops ...store.Op) {
		t.Helper()
		b := batch(prefix, ops...)
		b.Retention = 100 * time.Hour
		for i, r := range apply(t, s, b) {
			if r.Err != nil || r.Status != status {
				t.Fatalf("%+v was answered %+v, want %d", ops[i], r, status)
			}
		}
	}
	do(store.Claimed, op(store.Begin, "held", "a"), op(store.Begin, "done", "a"), op(store.Begin, "late", "a"))
	do(store.OK, op(store.Commit, "done", "a"))
	type found struct {
		value string
		goes  time.Duration
	}
	look := func() map[string]found {
		all := make(map[string]found)
		for _, k := range keysOf(t, c, prefix, ":g:") {
			all[k] = found{c.Get(ctx, k).Val(), c.PExpireTime(ctx, k).Val()}
		}
		return all
	}
	before := look()
	// The first in a call, and those behind it, which the script treats otherwise.
	do(store.Lost, op(store.Commit, "held", "b"), op(store.Commit, "done", "b"), op(store.Commit, "held", "b"), op(store.Commit, "done", "b"))
	do(store.Lost, op(store.Commit, "done", "b"))
	after := look()
	if len(before) != 3 {
		t.Fatalf("%d records", len(before))
	}
	for k, was := range before {
		if after[k] != was {
			t.Errorf("%q is %+v, was %+v", k, after[k], was)
		}
	}
	do(store.OK, op(store.Commit, "held", "a"), op(store.Commit, "late", "a"))
}
