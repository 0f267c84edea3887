package redistest

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"github.com/idemq/idemq/internal/testenv"
)

// counting increments counters, of one slot each, through a cluster client, until the
// function that it returns is called; that says how many increments were acknowledged.
func counting(t *testing.T, rdb *redis.ClusterClient, tag string, counters int) (acked *atomic.Int64, stop func()) {
	t.Helper()
	acked = new(atomic.Int64)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ctx.Err() == nil; i++ {
			if err := rdb.Incr(ctx, fmt.Sprintf("{%s}:%d", tag, i%counters)).Err(); err == nil {
				acked.Add(1)
			}
		}
	}()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return acked, stop
}

func sum(t *testing.T, rdb *redis.ClusterClient, tag string, counters int) (total int64) {
	t.Helper()
	for i := range counters {
		n, err := rdb.Get(context.Background(), fmt.Sprintf("{%s}:%d", tag, i)).Int64()
		if err != nil {
			t.Fatal(err)
		}
		total += n
	}
	return total
}

func TestMoveWhileClientsWork(t *testing.T) {
	const counters = 1000
	c := StartReplicatedCluster(t)
	rdb := c.Client(t)
	slot := c.Slot(t, "{a}")
	home := c.Owner(t, slot)
	to := c.Nodes[0]
	if to == home {
		to = c.Nodes[1]
	}
	acked, stop := counting(t, rdb, "a", counters)
	testenv.Await(t, "all counters", func() bool { return acked.Load() > counters })
	for _, to := range []*Server{to, home} {
		before := acked.Load()
		c.Move(t, slot-20, slot+20, to)
		if owner := c.Owner(t, slot); owner != to {
			t.Fatalf("slot %d is at %s, want %s", slot, owner.Addr(), to.Addr())
		}
		if n := c.admin[to].DBSize(context.Background()).Val(); n != counters {
			t.Errorf("%d keys came, want %d", n, counters)
		}
		if acked.Load() == before {
			t.Error("no client worked while the slots were moved")
		}
	}
	stop()
	if got := sum(t, rdb, "a", counters); got < acked.Load() {
		t.Errorf("the counters come to %d, and %d were acknowledged", got, acked.Load())
	}
}

func TestMigrationAsks(t *testing.T) {
	c := StartCluster(t)
	ctx := context.Background()
	slot := c.Slot(t, "{a}")
	home := c.Owner(t, slot)
	to := c.Nodes[0]
	if to == home {
		to = c.Nodes[1]
	}
	at := c.admin[home]
	if err := at.Set(ctx, "{a}1", "v", 0).Err(); err != nil {
		t.Fatal(err)
	}
	m := c.Open(t, slot, to)
	if err := at.Get(ctx, "{a}2").Err(); !redis.HasErrorPrefix(err, "ASK") {
		t.Errorf("a key that is not there: %v", err)
	}
	if err := at.MGet(ctx, "{a}1", "{a}2").Err(); !redis.HasErrorPrefix(err, "TRYAGAIN") {
		t.Errorf("two keys, one of which is not there: %v", err)
	}
	if n := m.Keys(); n != 1 {
		t.Errorf("%d keys moved", n)
	}
	m.Finish()
	c.AwaitWhole(t)
	if err := at.Get(ctx, "{a}1").Err(); !redis.HasErrorPrefix(err, "MOVED") {
		t.Errorf("at the old home: %v", err)
	}
}

func TestFailovers(t *testing.T) {
	const counters = 10
	// A client that could not reach a node goes on trying for a second after it was closed.
	t.Cleanup(func() { testenv.Await(t, "the clients to end", func() bool { return goleak.Find() == nil }) })
	c := StartReplicatedCluster(t)
	rdb := c.Client(t)
	ctx := context.Background()
	slot := c.Slot(t, "{a}")
	home := c.Owner(t, slot)

	// On demand: nothing is lost.
	acked, stop := counting(t, rdb, "a", counters)
	testenv.Await(t, "all counters", func() bool { return acked.Load() > counters })
	c.Failover(t, c.Partner(home))
	if owner := c.Owner(t, slot); owner != c.Partner(home) {
		t.Fatal("the replica has not taken over")
	}
	before := acked.Load()
	testenv.Await(t, "clients to work on", func() bool { return acked.Load() > before })
	stop()
	if got := sum(t, rdb, "a", counters); got < acked.Load() {
		t.Errorf("the counters come to %d, and %d were acknowledged", got, acked.Load())
	}

	// By SIGKILL, with a replica that lags: what it did not see is lost.
	primary := c.Owner(t, slot)
	if err := rdb.Set(ctx, "{a}early", "v", 0).Err(); err != nil {
		t.Fatal(err)
	}
	testenv.Await(t, "the replica to have it", func() bool {
		return c.replication(primary, "master_repl_offset") == c.replication(c.Partner(primary), "master_repl_offset")
	})
	replica := c.Sever(t, primary)
	if err := rdb.Set(ctx, "{a}late", "v", 0).Err(); err != nil {
		t.Fatal(err)
	}
	c.Kill(t, primary)
	replica.Resume()
	c.AwaitPromotion(t, replica)
	testenv.Await(t, "the client to find the new primary", func() bool {
		rdb.ReloadState(ctx)
		return rdb.Get(ctx, "{a}early").Val() == "v"
	})
	if n, err := rdb.Exists(ctx, "{a}late").Result(); n != 0 || err != nil {
		t.Errorf("what the replica did not see: %d, %v", n, err)
	}
	c.Rejoin(t, primary)
	if info := c.admin[primary].Info(ctx, "replication").Val(); !strings.Contains(info, "role:slave") {
		t.Errorf("back as\n%s", info)
	}
	if c.Owner(t, slot) != replica || c.Slots(t, primary)(slot) || !c.Slots(t, replica)(slot) {
		t.Error("it took its slots back")
	}
}
