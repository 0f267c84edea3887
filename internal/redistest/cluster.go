package redistest

import (
	"context"
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/idemq/idemq/internal/child"
)

const slots = 16384

// Cluster is a Redis Cluster of three primaries.
type Cluster struct {
	Nodes []*Server
}

// StartCluster runs a cluster of the test's own and returns when every node
// calls it whole. The servers come from where [Start] finds them; a server that
// was started elsewhere does not serve.
func StartCluster(tb testing.TB) *Cluster {
	tb.Helper()
	const size = 3
	c := &Cluster{}
	busPorts := make([]int, size)
	for i := range size {
		// The default bus port, 10000 higher, may be no port at all.
		busPorts[i] = child.FreePort(tb)
		c.Nodes = append(c.Nodes, Start(tb,
			"--cluster-enabled", "yes", "--cluster-port", strconv.Itoa(busPorts[i]), "--cluster-node-timeout", "5000"))
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	for i, node := range c.Nodes {
		rdb := redis.NewClient(node.Options())
		defer rdb.Close()
		do := func(args ...any) {
			tb.Helper()
			if err := rdb.Do(ctx, args...).Err(); err != nil {
				tb.Fatalf("making a cluster: %v: %v", args, err)
			}
		}
		do("CLUSTER", "SET-CONFIG-EPOCH", i+1)
		do("CLUSTER", "ADDSLOTSRANGE", i*slots/size, (i+1)*slots/size-1)
		if i > 0 {
			host, port, _ := net.SplitHostPort(c.Nodes[0].Addr())
			do("CLUSTER", "MEET", host, port, busPorts[0])
		}
	}
	for _, node := range c.Nodes {
		c.awaitWhole(ctx, tb, node, size)
	}
	return c
}

func (c *Cluster) awaitWhole(ctx context.Context, tb testing.TB, node *Server, size int) {
	tb.Helper()
	rdb := redis.NewClient(node.Options())
	defer rdb.Close()
	for {
		info, err := rdb.ClusterInfo(ctx).Result()
		if err == nil && field(info, "cluster_state") == "ok" && field(info, "cluster_slots_ok") == strconv.Itoa(slots) &&
			field(info, "cluster_known_nodes") == strconv.Itoa(size) {
			return
		}
		select {
		case <-ctx.Done():
			tb.Fatalf("the cluster did not come up: %v\n%s", err, info)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Addrs are the nodes' hosts and ports.
func (c *Cluster) Addrs() []string {
	addrs := make([]string, len(c.Nodes))
	for i, n := range c.Nodes {
		addrs[i] = n.Addr()
	}
	return addrs
}

// Client is a client of the cluster, closed when tb ends.
func (c *Cluster) Client(tb testing.TB) *redis.ClusterClient {
	tb.Helper()
	o := clientOptions("")
	rdb := redis.NewClusterClient(&redis.ClusterOptions{
		Addrs:                 c.Addrs(),
		DialTimeout:           o.DialTimeout,
		ReadTimeout:           o.ReadTimeout,
		WriteTimeout:          o.WriteTimeout,
		ContextTimeoutEnabled: true,
		DisableIdentity:       true,
	})
	tb.Cleanup(func() { _ = rdb.Close() })
	return rdb
}
