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

	"github.com/idemq/idemq/internal/testenv"
)

// StartReplica runs a replica of the server, by the same program, and returns when it
// has what the server has. The server copies its data without delay where it was started
// with "--repl-diskless-sync-delay", "0".
func (s *Server) StartReplica(tb testing.TB, args ...string) *Server {
	tb.Helper()
	s.needsProcess("replicate")
	host, port, _ := net.SplitHostPort(s.addr)
	r := startServer(&Server{tb: tb, bin: s.bin, args: append([]string{"--replicaof", host, port}, args...)})
	c := redis.NewClient(s.Options())
	defer c.Close()
	ctx := context.Background()
	// Something to confirm, which leaves no key.
	if err := c.Publish(ctx, "redistest", "").Err(); err != nil {
		tb.Fatalf("writing for a replica: %v", err)
	}
	testenv.Await(tb, "the replica to be in step", func() bool {
		_ = c.Wait(ctx, 1, 10*time.Millisecond) // has the replica say how far it is
		text, _ := c.Info(ctx, "replication").Result()
		return hasReplica(text, r.port)
	})
	return r
}

// hasReplica tells whether INFO shows a replica at a port that has said that it has all.
func hasReplica(text string, port int) bool {
	r := replicaAt(text, port)
	return r["state"] == "online" && r["offset"] == field(text, "master_repl_offset") && r["offset"] != "0"
}

// replicaAt is what INFO shows of the replica at a port; nil if there is none.
func replicaAt(text string, port int) map[string]string {
	for i := 0; ; i++ {
		line := field(text, "slave"+strconv.Itoa(i))
		if line == "" {
			return nil
		}
		r := make(map[string]string)
		for part := range strings.SplitSeq(line, ",") {
			k, v, _ := strings.Cut(part, "=")
			r[k] = v
		}
		if r["port"] == strconv.Itoa(port) {
			return r
		}
	}
}

// Sever pauses a replica and ends its link: what the server acknowledges from now on, the
// replica never sees, should the server die before [Server.Resume]. (A pause alone does
// not do it: what was sent to a paused replica waits in its socket.)
func (s *Server) Sever(tb testing.TB, replica *Server) {
	tb.Helper()
	replica.Pause()
	c := redis.NewClient(s.Options())
	defer c.Close()
	ctx := context.Background()
	if err := c.ClientKillByFilter(ctx, "TYPE", "replica").Err(); err != nil {
		tb.Fatalf("ending a replica's link: %v", err)
	}
	testenv.Await(tb, "the replica's link to end", func() bool {
		text, _ := c.Info(ctx, "replication").Result()
		return text != "" && replicaAt(text, replica.port) == nil
	})
}

// Promote ends a Pause of a replica, which Sever has begun, and makes it a primary, also
// after a Restart. What its primary had not sent to it, it does not have.
func (s *Server) Promote(tb testing.TB) {
	tb.Helper()
	s.Resume()
	c := redis.NewClient(s.Options())
	defer c.Close()
	if err := c.ReplicaOf(context.Background(), "NO", "ONE").Err(); err != nil {
		tb.Fatalf("promoting a replica: %v", err)
	}
	if i := slices.Index(s.args, "--replicaof"); i >= 0 {
		s.args = slices.Delete(s.args, i, i+3)
	}
}
