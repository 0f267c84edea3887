package redistest

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/idemq/idemq/internal/testenv"
)

const (
	// primaryName is what the Sentinels call the primary.
	primaryName = "primary"
	sentinels   = 3
	quorum      = 2

	// downAfter is after how long without an answer a server is taken for dead.
	downAfter = time.Second
	// failoverTimeout is half of the time after which a failover that failed is tried again.
	failoverTimeout = 3 * time.Second
)

// Sentinel is a primary and its replicas, watched by three Sentinels. Its methods are
// called from the test's own goroutine.
type Sentinel struct {
	// Servers are the primary, as it was started, and its replicas.
	Servers []*Server

	watchers []*Server
}

// StartSentinel runs a primary with that many replicas, and Sentinels that know them
// all. args are options for the primary and the replicas. The program is the one of
// [Start].
func StartSentinel(tb testing.TB, replicas int, args ...string) *Sentinel {
	tb.Helper()
	return Versions(tb)[0].StartSentinel(tb, replicas, args...)
}

// StartSentinel is the function [StartSentinel] for this program.
func (v Version) StartSentinel(tb testing.TB, replicas int, args ...string) *Sentinel {
	tb.Helper()
	if v.bin == "" {
		v.Start(tb) // ends the test, unless it gives a shared server
		needsProgram(tb)
	}
	primary := v.Start(tb, append([]string{"--repl-diskless-sync-delay", "0"}, args...)...)
	s := &Sentinel{Servers: []*Server{primary}}
	for range replicas {
		s.Servers = append(s.Servers, primary.StartReplica(tb, args...))
	}
	for range sentinels {
		s.watchers = append(s.watchers, startServer(&Server{tb: tb, bin: v.bin, sentinel: func(int) string {
			return fmt.Sprintf("sentinel monitor %[1]s 127.0.0.1 %[2]d %[3]d\n"+
				"sentinel down-after-milliseconds %[1]s %[4]d\nsentinel failover-timeout %[1]s %[5]d\n",
				primaryName, primary.port, quorum, downAfter.Milliseconds(), failoverTimeout.Milliseconds())
		}}))
	}
	ctx := context.Background()
	for _, w := range s.watchers {
		c := s.watcher(tb, w)
		testenv.Await(tb, "a Sentinel to know the servers and the other Sentinels", func() bool {
			m, err := c.Master(ctx, primaryName).Result()
			return err == nil && m["num-slaves"] == fmt.Sprint(replicas) && m["num-other-sentinels"] == fmt.Sprint(sentinels-1) &&
				m["flags"] == "master"
		})
	}
	return s
}

func (s *Sentinel) watcher(tb testing.TB, w *Server) *redis.SentinelClient {
	tb.Helper()
	c := redis.NewSentinelClient(w.Options())
	tb.Cleanup(func() { _ = c.Close() })
	return c
}

// Options are the settings of [Sentinel.Client].
func (s *Sentinel) Options() *redis.FailoverOptions {
	o := clientOptions("")
	addrs := make([]string, len(s.watchers))
	for i, w := range s.watchers {
		addrs[i] = w.Addr()
	}
	return &redis.FailoverOptions{
		MasterName:            primaryName,
		SentinelAddrs:         addrs,
		DialTimeout:           o.DialTimeout,
		ReadTimeout:           o.ReadTimeout,
		WriteTimeout:          o.WriteTimeout,
		ContextTimeoutEnabled: true,
		DisableIdentity:       true,
	}
}

// Client is a client of the primary, whichever it is, closed when tb ends.
func (s *Sentinel) Client(tb testing.TB) *redis.Client {
	tb.Helper()
	c := redis.NewFailoverClient(s.Options())
	tb.Cleanup(func() { _ = c.Close() })
	return c
}

// Failover has the Sentinels make a replica the primary, and returns it when all of them
// say so. The old primary becomes its replica.
func (s *Sentinel) Failover(tb testing.TB) *Server {
	tb.Helper()
	old := s.primary(tb)
	c := s.watcher(tb, s.watchers[0])
	testenv.Await(tb, "a Sentinel to start a failover", func() bool {
		return c.Failover(context.Background(), primaryName).Err() == nil
	})
	return s.AwaitFailover(tb, old)
}

// AwaitFailover returns the new primary when all Sentinels agree on one that is not old,
// and it takes writes.
func (s *Sentinel) AwaitFailover(tb testing.TB, old *Server) *Server {
	tb.Helper()
	var now *Server
	testenv.Await(tb, "the Sentinels to agree on another primary", func() bool {
		now = s.primary(tb)
		return now != nil && now != old
	})
	c := now.Client(tb)
	testenv.Await(tb, "the new primary", func() bool {
		text, _ := c.Info(context.Background(), "replication").Result()
		return field(text, "role") == "master"
	})
	return now
}

// primary is what all Sentinels call the primary; nil while they disagree.
func (s *Sentinel) primary(tb testing.TB) *Server {
	tb.Helper()
	named := ""
	for _, w := range s.watchers {
		c := redis.NewSentinelClient(w.Options())
		at, err := c.GetMasterAddrByName(context.Background(), primaryName).Result()
		_ = c.Close()
		if err != nil || len(at) != 2 {
			return nil
		}
		addr := net.JoinHostPort(at[0], at[1])
		if named != "" && named != addr {
			return nil
		}
		named = addr
	}
	for _, server := range s.Servers {
		if server.Addr() == named {
			return server
		}
	}
	return nil
}
