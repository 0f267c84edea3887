package natstest

import (
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/idemq/idemq/internal/child"
	"github.com/idemq/idemq/internal/testenv"
)

// Cluster is a JetStream cluster of one test.
type Cluster struct {
	tb testing.TB
	// Servers are its members. Each may be stopped and restarted by itself.
	Servers []*Server
}

// StartCluster runs a cluster of n servers, on free ports of 127.0.0.1, and returns when
// it has a leader and all are current, which takes some seconds: JetStream's elections
// do. Each edit may change each server's options.
func StartCluster(tb testing.TB, n int, edit ...func(*server.Options)) *Cluster {
	tb.Helper()
	var routes []*url.URL
	ports := make([]int, n)
	for i := range ports {
		ports[i] = child.FreePort(tb)
		routes = append(routes, &url.URL{Scheme: "nats", Host: fmt.Sprintf("127.0.0.1:%d", ports[i])})
	}
	c := &Cluster{tb: tb}
	for i := range n {
		member := func(o *server.Options) {
			o.ServerName = fmt.Sprintf("n%d", i+1)
			o.Cluster = server.ClusterOpts{Name: "natstest", Host: "127.0.0.1", Port: ports[i]}
			o.Routes = routes
		}
		c.Servers = append(c.Servers, Start(tb, append([]func(*server.Options){member}, edit...)...))
	}
	c.Await()
	return c
}

// Await returns when the cluster has a leader that has heard of all servers that run, and
// those are current.
func (c *Cluster) Await() {
	c.tb.Helper()
	testenv.Await(c.tb, "the JetStream cluster to be whole", func() bool {
		running, known, current := 0, 0, true
		for _, s := range c.Servers {
			if s.srv != nil {
				running++
				known = max(known, len(s.srv.JetStreamClusterPeers())) // the leader's; others have none
				current = current && s.srv.JetStreamIsCurrent()
			}
		}
		return known >= running && current
	})
}

// URL is where clients connect: every server.
func (c *Cluster) URL() string {
	urls := make([]string, len(c.Servers))
	for i, s := range c.Servers {
		urls[i] = s.URL()
	}
	return strings.Join(urls, ",")
}

// Connect connects a client as [Server.Connect] does, to any of the servers.
func (c *Cluster) Connect(tb testing.TB, opts ...nats.Option) *nats.Conn {
	tb.Helper()
	return connect(tb, c.URL(), opts...)
}

// JetStream connects a client and returns its JetStream context.
func (c *Cluster) JetStream(tb testing.TB, opts ...nats.Option) jetstream.JetStream {
	tb.Helper()
	return newJetStream(tb, c.Connect(tb, opts...))
}

// Leader is the server that leads a stream of the global account, or nil.
func (c *Cluster) Leader(stream string) *Server {
	for _, s := range c.Servers {
		if s.srv != nil && s.srv.JetStreamIsStreamLeader(server.DEFAULT_GLOBAL_ACCOUNT, stream) {
			return s
		}
	}
	return nil
}
