package redisstore_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

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
		return err == nil
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
			if err := s.Apply(context.Background(), lost); !errors.Is(err, store.ErrUnavailable) {
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

			slot := cluster.Slot(t, "p:{0}:e")
			home := cluster.Owner(t, slot)
			to := cluster.Nodes[0]
			if home == to {
				to = cluster.Nodes[2]
			}
			m := cluster.Open(t, slot, to)
			begins, commits = everywhere("on the way")
			for range 2 { // nothing was moved, all was
				if err := s.Apply(context.Background(), begins); !errors.Is(err, store.ErrUnavailable) {
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
