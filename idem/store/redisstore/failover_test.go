package redisstore_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/redisstore"
	"github.com/idemq/idemq/internal/child"
	"github.com/idemq/idemq/internal/redistest"
	"github.com/idemq/idemq/internal/testenv"
)

// eventually resends a batch until it is answered, as the guard does.
func eventually(t *testing.T, s store.Store, b *store.Batch) []store.Reply {
	t.Helper()
	testenv.Await(t, "an answer", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		err := s.Apply(ctx, b)
		if err != nil && !errors.Is(err, store.ErrUnavailable) {
			t.Fatalf("a failover is no refusal: %v", err)
		}
		return err == nil
	})
	return b.Replies
}

// After a failover through Sentinel: what the promoted replica had acknowledged is there,
// and what it had not is as it was before. The completion that it forgot leaves a claim in
// progress: a repeat waits for its lease and is handled again, as attempt 2. The claim
// that it forgot is no obstacle to its holder. An effect that was acknowledged and
// forgotten is not noticed otherwise: the epoch was replicated long before.
func TestSentinelFailover(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		opts []redisstore.Option
	}{
		{"without WAIT", nil},
		{"with WAIT", []redisstore.Option{redisstore.WithReplicas(1, 100*time.Millisecond)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := redistest.StartSentinel(t, 1)
			primary, replica := s.Servers[0], s.Servers[1]
			guarded := redisstore.New(s.Client(t), tt.opts...)
			for _, token := range []string{"safe", "lost"} {
				want(t, guarded, "p", store.Claimed, op(store.Begin, token, "a"))
			}
			want(t, guarded, "p", store.OK, op(store.Commit, "safe", "a"))
			if _, err := primary.Client(t).Wait(context.Background(), 1, 0).Result(); err != nil {
				t.Fatal(err)
			}

			primary.Sever(t, replica)
			lost := batch("p", op(store.Commit, "lost", "a"))
			err := guarded.Apply(context.Background(), lost)
			if waits := tt.opts != nil; waits != errors.Is(err, store.ErrUnavailable) || !waits && err != nil {
				t.Fatalf("a completion that the replica does not get: %v", err)
			}
			want(t, guarded, "p", store.Claimed, op(store.Begin, "forgotten claim", "a"))
			primary.Kill()
			replica.Resume()
			if now := s.AwaitFailover(t, primary); now != replica {
				t.Fatal("the replica was not promoted")
			}

			// The holder of the unconfirmed completion resends it; where it was
			// acknowledged, its message is gone, and only a repeat asks.
			plain := redisstore.New(s.Client(t))
			if r := eventually(t, plain, batch("p", op(store.Begin, "safe", "b")))[0]; r.Status != store.Duplicate {
				t.Errorf("a completion that the replica had: %+v", r)
			}
			if tt.opts != nil {
				eventually(t, plain, lost)
				if rec := inspect(t, plain, "p", "lost"); rec.State != store.Done || rec.Attempt != 1 {
					t.Errorf("a completion that was not confirmed, resent: %+v", rec)
				}
			} else {
				if r := want(t, plain, "p", store.InProgress, op(store.Begin, "lost", "b")); r.RetryAfter <= 0 {
					t.Errorf("a completion that the replica did not have: %+v", r)
				}
				want(t, plain, "p", store.OK, op(store.Release, "lost", "a")) // the lease's end, without the wait
				if r := want(t, plain, "p", store.Claimed, op(store.Begin, "lost", "b")); r.Attempt != 2 {
					t.Errorf("its repeat: %+v", r)
				}
			}
			b := batch("p", op(store.Commit, "forgotten claim", "a"))
			if r := eventually(t, plain, b)[0]; r.Status != store.OK || b.Notice != "" {
				t.Errorf("the holder of a forgotten claim: %+v, %q", r, b.Notice)
			}
		})
	}
}

// A planned failover: the old primary refuses writes for a moment, which is an outage.
func TestSentinelPlannedFailover(t *testing.T) {
	t.Parallel()
	s := redistest.StartSentinel(t, 1)
	guarded := redisstore.New(s.Client(t))
	want(t, guarded, "p", store.Claimed, op(store.Begin, "t", "a"))
	if n, err := s.Servers[0].Client(t).Wait(context.Background(), 1, 0).Result(); err != nil || n != 1 {
		t.Fatal(n, err)
	}
	s.Failover(t)
	if r := eventually(t, guarded, batch("p", op(store.Commit, "t", "a")))[0]; r.Status != store.OK {
		t.Errorf("%+v", r)
	}
	if rec := inspect(t, guarded, "p", "t"); rec.State != store.Done || rec.Attempt != 1 {
		t.Errorf("%+v", rec)
	}
}

// A demoted primary that Sentinel still names refuses writes: that passes by itself.
func TestSentinelNamesAReplica(t *testing.T) {
	t.Parallel()
	s := redistest.StartSentinel(t, 1)
	o := s.Options()
	o.MaxRetries = -1
	c := redis.NewFailoverClient(o)
	t.Cleanup(func() { _ = c.Close() })
	guarded := redisstore.New(c)
	want(t, guarded, "p", store.Claimed, op(store.Begin, "t", "a"))
	do(t, s.Servers[0].Client(t), "REPLICAOF", "127.0.0.1", child.FreePort(t))
	err := guarded.Apply(context.Background(), batch("p", op(store.Commit, "t", "a")))
	if !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "READONLY") {
		t.Errorf("a demoted primary: %v", err)
	}
}
