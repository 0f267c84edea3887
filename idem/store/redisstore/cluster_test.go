package redisstore_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/redisstore"
	"github.com/idemq/idemq/internal/redistest"
	"github.com/idemq/idemq/internal/testenv"
)

// replicated starts a cluster with replicas. A client that could not reach a node goes
// on trying, in the background, for a second after it was closed.
func replicated(t *testing.T) *redistest.Cluster {
	t.Helper()
	ignore := goleak.IgnoreCurrent()
	t.Cleanup(func() { testenv.Await(t, "the clients to end", func() bool { return goleak.Find(ignore) == nil }) })
	return redistest.StartReplicatedCluster(t)
}

// variants are the two roads of a completion through a cluster.
var variants = []struct {
	name string
	opts []redisstore.Option
}{
	{"without WAIT", nil},
	{"with WAIT", []redisstore.Option{redisstore.WithReplicas(1, 100*time.Millisecond)}},
}

// everywhere begins, and completes, a token of nearly each tag under a claim id of its own.
func everywhere(name string) (begins, commits *store.Batch) {
	var b, c []store.Op
	for i := range 300 {
		token := fmt.Sprint(name, i)
		b, c = append(b, op(store.Begin, token, name)), append(c, op(store.Commit, token, name))
	}
	return batch("p", b...), batch("p", c...)
}

// applied is the first error of a batch, or of one of its operations.
func applied(s store.Store, b *store.Batch) error {
	err := s.Apply(context.Background(), b)
	for i := 0; err == nil && i < len(b.Replies); i++ {
		err = b.Replies[i].Err
	}
	return err
}

// until resends a batch until it is answered. Each error must be an outage.
func until(t *testing.T, s store.Store, what string, b *store.Batch) (tries int) {
	t.Helper()
	testenv.Await(t, what, func() bool {
		tries++
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		err := s.Apply(ctx, b)
		if err != nil && !errors.Is(err, store.ErrUnavailable) {
			t.Fatalf("%s: no outage: %v", what, err)
		}
		return err == nil && !slices.ContainsFunc(b.Replies, func(r store.Reply) bool { return errors.Is(r.Err, store.ErrUnavailable) })
	})
	for i, r := range b.Replies {
		if r.Status != store.OK && r.Status != store.Claimed {
			t.Fatalf("%s: operation %d: %+v", what, i, r)
		}
	}
	return tries
}

// A primary dies, one is made a replica, slots move: the store is away, and back with the
// cluster, not with the client's next look at it, a minute later.
func TestClusterComesBack(t *testing.T) {
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			cluster := replicated(t)
			s := redisstore.New(cluster.Client(t), v.opts...)
			begins, commits := everywhere("before")
			until(t, s, "claims", begins)
			until(t, s, "completions", commits)
			works := func(when string) {
				t.Helper()
				began := time.Now()
				begins, commits := everywhere(when)
				n := until(t, s, "claims after "+when, begins) + until(t, s, "completions after "+when, commits)
				took := time.Since(began)
				t.Logf("%s: back after %v, %d calls", when, took.Round(time.Millisecond), n)
				if took > 5*time.Second {
					t.Errorf("%s: the cluster was whole, and the store was away for %v", when, took)
				}
			}

			primary := cluster.Nodes[1]
			cluster.Kill(t, primary)
			lost, lostCommits := everywhere("outage")
			if err := applied(s, lost); !errors.Is(err, store.ErrUnavailable) {
				t.Errorf("a dead primary: %v", err)
			}
			cluster.AwaitPromotion(t, cluster.Partner(primary))
			promoted := time.Now()
			n := until(t, s, "claims after SIGKILL", lost)
			took := time.Since(promoted)
			t.Logf("SIGKILL: back %v after the promotion, %d calls", took.Round(time.Millisecond), n)
			if took > 5*time.Second {
				t.Errorf("the cluster was whole, and the store was away for %v", took)
			}
			cluster.Rejoin(t, primary)
			until(t, s, "completions of claims from before", lostCommits)

			cluster.Failover(t, primary)
			works("CLUSTER FAILOVER")

			slot := cluster.Slot(t, "p:{0}:%e")
			home := cluster.Owner(t, slot)
			to := cluster.Nodes[0]
			if home == to {
				to = cluster.Nodes[2]
			}
			m := cluster.Open(t, slot, to)
			begins, commits = everywhere("on the way")
			for range 2 { // nothing was moved, all was
				if err := applied(s, begins); !errors.Is(err, store.ErrUnavailable) {
					t.Errorf("claims in a slot on its way: %v", err)
				}
				m.Keys()
			}
			for m.Keys() > 0 {
				continue
			}
			m.Finish()
			cluster.AwaitWhole(t)
			until(t, s, "claims in a slot that has moved", begins)
			until(t, s, "completions in a slot that has moved", commits)
			works("migration")
			if rec := inspect(t, s, "p", "before0"); rec.State != store.Done {
				t.Errorf("what was done before is %v", rec.State)
			}
		})
	}
}

// A node that is away, or whose replicas do not confirm, holds up what it keeps and
// nothing else, also where more operations on its tokens follow in the batch.
func TestOneNodeAway(t *testing.T) {
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			cluster := replicated(t)
			for _, node := range cluster.Nodes {
				if err := node.Client(t).ConfigSet(t.Context(), "cluster-require-full-coverage", "no").Err(); err != nil {
					t.Fatal(err)
				}
			}
			s := redisstore.New(cluster.Client(t), v.opts...)
			begins, commits := everywhere("held")
			until(t, s, "claims", begins)
			cluster.Kill(t, cluster.Partner(cluster.Nodes[0])) // the replica: nothing confirms any more
			if v.opts == nil {
				cluster.Kill(t, cluster.Nodes[0])
			}
			// The same claim ids, so that a try without an answer changes nothing.
			commits.Ops = append(commits.Ops, commits.Ops...)
			var answered, away int
			testenv.Await(t, "the other nodes to answer", func() bool {
				ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
				defer cancel()
				if err := s.Apply(ctx, commits); err != nil {
					if !errors.Is(err, store.ErrUnavailable) {
						t.Fatal(err)
					}
					return false
				}
				answered, away = 0, 0
				for _, r := range commits.Replies {
					switch {
					case r.Status == store.OK && r.Err == nil:
						answered++
					case r.Status == 0 && errors.Is(r.Err, store.ErrUnavailable):
						away++
					default:
						t.Fatalf("%+v", r)
					}
				}
				return true
			})
			if n := len(commits.Ops); answered < n/2 || away < n/5 || answered+away != n {
				t.Errorf("of %d operations %d were answered and %d were not; a third of the slots is away", n, answered, away)
			}
			half := len(commits.Ops) / 2
			for i, r := range commits.Replies[:half] {
				if again := commits.Replies[half+i]; (r.Err == nil) != (again.Err == nil) {
					t.Errorf("operation %d: %v, and its repeat in the same batch: %v", i, r.Err, again.Err)
				}
			}
		})
	}
}

// A client may read from replicas, which can lag: what the descriptor is, the primary is asked.
func TestDescriptorIsThePrimarys(t *testing.T) {
	cluster := replicated(t)
	apply(t, redisstore.New(cluster.Client(t)), batch("p"))
	home := cluster.Owner(t, cluster.Slot(t, "p:{0}:%d"))
	if n, err := home.Client(t).Wait(t.Context(), 1, 0).Result(); err != nil || n != 1 {
		t.Fatal(n, err)
	}
	do(t, home.Client(t), "ACL", "SETUSER", "default", "-psync", "-sync") // the replica serves on, and learns nothing more
	do(t, home.Client(t), "CLIENT", "KILL", "TYPE", "replica")
	do(t, home.Client(t), "FLUSHALL")

	reader := redis.NewClusterClient(&redis.ClusterOptions{Addrs: cluster.Addrs(), ReadOnly: true, ContextTimeoutEnabled: true, DisableIdentity: true})
	t.Cleanup(func() { _ = reader.Close() })
	testenv.Await(t, "the client to read from the replica", func() bool {
		reader.ReloadState(t.Context())
		return reader.Get(t.Context(), "p:{0}:%d").Val() != ""
	})
	s := redisstore.New(reader, redisstore.WithTags(7))
	if _, err := s.Verify(t.Context(), "p"); err != nil {
		t.Errorf("Verify was told of what the primary has lost: %v", err)
	}
	if err := s.Apply(t.Context(), batch("p")); err != nil {
		t.Errorf("the replica was asked: %v", err)
	}
	if v := home.Client(t).Get(t.Context(), "p:{0}:%d").Val(); !strings.Contains(v, "|7|") {
		t.Errorf("the primary's descriptor is %q", v)
	}
}
