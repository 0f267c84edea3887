package redistest

import (
	"context"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/idemq/idemq/internal/child"
	"github.com/idemq/idemq/internal/testenv"
)

const (
	slots     = 16384
	primaries = 3

	// nodeTimeout is after how many milliseconds a node of a cluster with replicas is
	// taken for dead. The promotion comes one to two seconds later.
	nodeTimeout = 2000
)

// Cluster is a Redis Cluster of three primaries, and of a replica of each where it was
// started with replicas. Its methods are called from the test's own goroutine; they
// end the test when the cluster does not become what it is told to.
type Cluster struct {
	// Nodes are the primaries, as the cluster was started, then a replica of each in
	// the same order.
	Nodes []*Server

	admin map[*Server]*redis.Client
	down  map[*Server]bool
}

// StartCluster runs a cluster of the test's own and returns when every node
// calls it whole. The servers come from where [Start] finds them; a server that
// was started elsewhere does not serve.
func StartCluster(tb testing.TB) *Cluster {
	tb.Helper()
	return startCluster(tb, primaries, "--cluster-node-timeout", "5000")
}

// StartReplicatedCluster is [StartCluster] with a replica of each primary, and returns
// when each has what its primary has. args are options for all servers.
func StartReplicatedCluster(tb testing.TB, args ...string) *Cluster {
	tb.Helper()
	return startCluster(tb, 2*primaries, append([]string{
		"--cluster-node-timeout", strconv.Itoa(nodeTimeout), "--repl-diskless-sync-delay", "0",
	}, args...)...)
}

func startCluster(tb testing.TB, size int, args ...string) *Cluster {
	tb.Helper()
	c := &Cluster{admin: make(map[*Server]*redis.Client), down: make(map[*Server]bool)}
	busPorts := make([]int, size)
	for i := range size {
		// The default bus port, 10000 higher, may be no port at all.
		busPorts[i] = child.FreePort(tb)
		node := Start(tb, append([]string{"--cluster-enabled", "yes", "--cluster-port", strconv.Itoa(busPorts[i])}, args...)...)
		c.Nodes = append(c.Nodes, node)
		c.admin[node] = node.Client(tb)
	}
	for i, node := range c.Nodes {
		c.do(tb, node, "CLUSTER", "SET-CONFIG-EPOCH", i+1)
		if i < primaries {
			c.do(tb, node, "CLUSTER", "ADDSLOTSRANGE", i*slots/primaries, (i+1)*slots/primaries-1)
		}
		for j, other := range c.Nodes[:i] {
			host, port, _ := net.SplitHostPort(other.Addr())
			c.do(tb, node, "CLUSTER", "MEET", host, port, busPorts[j])
		}
	}
	testenv.Await(tb, "the nodes to know each other", func() bool {
		return !slices.ContainsFunc(c.Nodes, func(n *Server) bool { return c.info(n, "cluster_known_nodes") != strconv.Itoa(size) })
	})
	for i, node := range c.Nodes[primaries:] {
		c.do(tb, node, "CLUSTER", "REPLICATE", c.id(tb, c.Nodes[i]))
	}
	c.AwaitWhole(tb)
	return c
}

// do executes a command on one node.
func (c *Cluster) do(tb testing.TB, node *Server, args ...any) any {
	tb.Helper()
	v, err := c.admin[node].Do(context.Background(), args...).Result()
	if err != nil {
		tb.Fatalf("cluster: %v: %v", args, err)
	}
	return v
}

func (c *Cluster) info(node *Server, name string) string {
	text, _ := c.admin[node].ClusterInfo(context.Background()).Result()
	return field(text, name)
}

func (c *Cluster) replication(node *Server, name string) string {
	text, _ := c.admin[node].Info(context.Background(), "replication").Result()
	return field(text, name)
}

func (c *Cluster) id(tb testing.TB, node *Server) string {
	tb.Helper()
	return c.do(tb, node, "CLUSTER", "MYID").(string)
}

// living are the nodes that were not killed.
func (c *Cluster) living() []*Server {
	return slices.DeleteFunc(slices.Clone(c.Nodes), func(n *Server) bool { return c.down[n] })
}

// AwaitWhole returns when all nodes that were not killed call the cluster whole, agree
// on each other's role and slots, and each replica has what its primary has.
func (c *Cluster) AwaitWhole(tb testing.TB) {
	tb.Helper()
	testenv.Await(tb, "the cluster to be whole", func() bool {
		var all []string
		for _, node := range c.living() {
			if c.info(node, "cluster_state") != "ok" || c.info(node, "cluster_slots_ok") != strconv.Itoa(slots) ||
				c.replication(node, "role") == "slave" && c.replication(node, "master_link_status") != "up" {
				return false
			}
			all = append(all, strings.Join(c.view(tb, node), "\n"))
		}
		return len(slices.Compact(all)) == 1
	})
}

// view is how a node sees those that were not killed: a line each, of id, flags,
// primary and slots.
func (c *Cluster) view(tb testing.TB, node *Server) (all []string) {
	tb.Helper()
	text, _ := c.admin[node].ClusterNodes(context.Background()).Result()
	for line := range strings.Lines(text) {
		f := strings.Fields(line) // id, address, flags, primary, ping, pong, epoch, link, slots
		if len(f) < 8 || slices.ContainsFunc(c.Nodes, func(n *Server) bool { return c.down[n] && strings.HasPrefix(f[1], n.Addr()+"@") }) {
			continue
		}
		of := slices.DeleteFunc(f[8:], func(s string) bool { return strings.HasPrefix(s, "[") })
		all = append(all, f[0]+" "+strings.TrimPrefix(f[2], "myself,")+" "+f[3]+" "+strings.Join(of, " "))
	}
	slices.Sort(all)
	return all
}

// ranges are the slots that a node says it has: "0-100 200 300-400".
func (c *Cluster) ranges(tb testing.TB, node *Server) string {
	tb.Helper()
	id := c.id(tb, node)
	for _, line := range c.view(tb, node) {
		if f := strings.SplitN(line, " ", 4); f[0] == id {
			return f[3]
		}
	}
	return ""
}

// Slot is the slot of a key.
func (c *Cluster) Slot(tb testing.TB, key string) int {
	tb.Helper()
	return int(c.do(tb, c.living()[0], "CLUSTER", "KEYSLOT", key).(int64))
}

// Owner is the primary of a slot.
func (c *Cluster) Owner(tb testing.TB, slot int) *Server {
	tb.Helper()
	var owner *Server
	testenv.Await(tb, "slot "+strconv.Itoa(slot)+" to have one owner", func() bool {
		owner = nil
		for _, node := range c.living() {
			if holds(c.ranges(tb, node), slot) {
				if owner != nil {
					return false
				}
				owner = node
			}
		}
		return owner != nil
	})
	return owner
}

// Slots tells which slots a node has.
func (c *Cluster) Slots(tb testing.TB, node *Server) func(slot int) bool {
	tb.Helper()
	ranges := c.ranges(tb, node)
	return func(slot int) bool { return holds(ranges, slot) }
}

// holds tells whether "0-100 200 300-400" has slot.
func holds(ranges string, slot int) bool {
	for r := range strings.FieldsSeq(ranges) {
		first, last, ok := strings.Cut(r, "-")
		if !ok {
			last = first
		}
		from, _ := strconv.Atoi(first)
		to, _ := strconv.Atoi(last)
		if from <= slot && slot <= to {
			return true
		}
	}
	return false
}

// Partner is the replica of a primary, or the primary of a replica.
func (c *Cluster) Partner(node *Server) *Server {
	i := slices.Index(c.Nodes, node)
	return c.Nodes[(i+primaries)%len(c.Nodes)]
}

// Sever pauses the replica of a primary and ends its link: what the primary
// acknowledges from now on, the replica never sees, should the primary die. (A pause
// alone does not do it: what was sent to a paused replica waits in its socket.)
func (c *Cluster) Sever(tb testing.TB, primary *Server) (replica *Server) {
	tb.Helper()
	replica = c.Partner(primary)
	replica.Pause()
	c.do(tb, primary, "CLIENT", "KILL", "TYPE", "replica")
	testenv.Await(tb, "the replica's link to end", func() bool { return c.replication(primary, "connected_slaves") == "0" })
	return replica
}

// Kill ends a node with SIGKILL.
func (c *Cluster) Kill(tb testing.TB, node *Server) {
	tb.Helper()
	c.down[node] = true
	node.Kill()
}

// AwaitPromotion returns when a replica whose primary was killed is the primary for
// all that live.
func (c *Cluster) AwaitPromotion(tb testing.TB, replica *Server) {
	tb.Helper()
	testenv.Await(tb, "the replica to be promoted", func() bool { return c.IsPrimary(replica) })
	c.AwaitWhole(tb)
}

// IsPrimary tells what a node says of itself.
func (c *Cluster) IsPrimary(node *Server) bool { return c.replication(node, "role") == "master" }

// Rejoin starts a killed node again, with the data that it saved, if any, and returns
// when it is a replica that has what its primary has.
func (c *Cluster) Rejoin(tb testing.TB, node *Server) {
	tb.Helper()
	node.Restart()
	delete(c.down, node)
	testenv.Await(tb, "the node to come back as a replica", func() bool { return c.replication(node, "role") == "slave" })
	c.AwaitWhole(tb)
}

// Failover makes a replica the primary, by CLUSTER FAILOVER, which loses nothing.
func (c *Cluster) Failover(tb testing.TB, replica *Server) {
	tb.Helper()
	primary := c.Partner(replica)
	c.do(tb, replica, "CLUSTER", "FAILOVER")
	testenv.Await(tb, "the replica to take over", func() bool { return c.IsPrimary(replica) && !c.IsPrimary(primary) })
	c.AwaitWhole(tb)
}

// Move moves the slots from first to last, which one primary has, to another, while
// clients work.
func (c *Cluster) Move(tb testing.TB, first, last int, to *Server) {
	tb.Helper()
	from := c.Owner(tb, first)
	for slot := first; slot <= last; slot++ {
		m := c.open(tb, slot, from, to)
		for m.Keys() > 0 {
			continue
		}
		m.Finish()
	}
	c.AwaitWhole(tb)
}

// Migration is a slot on its way from one primary to another. While it is, keys are
// on either of them; a command for one that its old home does not have is answered ASK,
// one for several that are not together TRYAGAIN.
type Migration struct {
	c        *Cluster
	tb       testing.TB
	slot     int
	from, to *Server
}

// Open begins to move a slot.
func (c *Cluster) Open(tb testing.TB, slot int, to *Server) *Migration {
	tb.Helper()
	return c.open(tb, slot, c.Owner(tb, slot), to)
}

func (c *Cluster) open(tb testing.TB, slot int, from, to *Server) *Migration {
	tb.Helper()
	if from == to {
		tb.Fatalf("cluster: slot %d is where it is to go", slot)
	}
	c.do(tb, to, "CLUSTER", "SETSLOT", slot, "IMPORTING", c.id(tb, from))
	c.do(tb, from, "CLUSTER", "SETSLOT", slot, "MIGRATING", c.id(tb, to))
	return &Migration{c, tb, slot, from, to}
}

// Keys moves up to 100 keys and returns how many there were.
func (m *Migration) Keys() int {
	m.tb.Helper()
	keys, _ := m.c.do(m.tb, m.from, "CLUSTER", "GETKEYSINSLOT", m.slot, 100).([]any)
	if len(keys) == 0 {
		return 0
	}
	host, port, _ := net.SplitHostPort(m.to.Addr())
	m.c.do(m.tb, m.from, append([]any{"MIGRATE", host, port, "", 0, (5 * time.Second).Milliseconds(), "KEYS"}, keys...)...)
	return len(keys)
}

// Finish gives the slot, whose keys have all been moved, to its new home.
func (m *Migration) Finish() {
	m.tb.Helper()
	id := m.c.id(m.tb, m.to)
	m.c.do(m.tb, m.to, "CLUSTER", "SETSLOT", m.slot, "NODE", id)
	m.c.do(m.tb, m.from, "CLUSTER", "SETSLOT", m.slot, "NODE", id)
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
