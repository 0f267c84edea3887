package torture

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/idemq/idemq/e2e/history"
	"github.com/idemq/idemq/e2e/torture/role"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/internal/redistest"
)

// forgetFor is for how long what a store acknowledges is forgotten at a failover.
const forgetFor = 400 * time.Millisecond

type redisStore struct {
	tb               testing.TB
	primary, replica *redistest.Server
	proxy            *Proxy
	version, prefix  string
	compact          bool // its layout
}

// redisArgs are options of servers that lose nothing which they have acknowledged when they
// are killed: what is appended is written before the answer. (With everysec, a slow disk
// has answers precede the writes for up to two seconds.)
var redisArgs = []string{"--appendonly", "yes", "--appendfsync", "no", "--repl-diskless-sync-delay", "0"}

// NewRedis starts a Redis with a replica. It is a Forgetter and a Filler.
func NewRedis(tb testing.TB) Store {
	tb.Helper()
	return newRedis(tb, false)
}

// NewCompactRedis is NewRedis, for consumers that use the compact layout.
func NewCompactRedis(tb testing.TB) Store {
	tb.Helper()
	return newRedis(tb, true)
}

func newRedis(tb testing.TB, compact bool) Store {
	tb.Helper()
	s := &redisStore{tb: tb, primary: redistest.Start(tb, redisArgs...), compact: compact}
	s.proxy = NewProxy(tb, s.primary.Addr())
	s.do(func(ctx context.Context, c *redis.Client) error {
		text, err := c.Info(ctx, "server").Result()
		s.version = redisVersion(text)
		return err
	})
	s.attach()
	return s
}

// redisVersion is what INFO says.
func redisVersion(info string) string {
	v := map[string]string{}
	for line := range strings.Lines(info) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		v[key] = value
	}
	if v["valkey_version"] != "" {
		return "Valkey " + v["valkey_version"]
	}
	return "Redis " + v["redis_version"]
}

func (s *redisStore) attach() {
	s.tb.Helper()
	s.replica = s.primary.StartReplica(s.tb, redisArgs...)
}

func (s *redisStore) do(f func(ctx context.Context, c *redis.Client) error) {
	s.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	c := redis.NewClient(s.primary.Options())
	defer c.Close()
	if err := f(ctx, c); err != nil {
		s.tb.Fatalf("%s at %s: %v", s.version, s.primary.Addr(), err)
	}
}

func (s *redisStore) Kind() string {
	if s.compact {
		return "redis-compact"
	}
	return "redis"
}

func (s *redisStore) Version() string { return s.version }
func (s *redisStore) Proxy() *Proxy   { return s.proxy }

// Capabilities implements Limited.
func (s *redisStore) Capabilities() store.Capabilities {
	return store.Capabilities{NoDoneDetails: s.compact, NoFingerprints: s.compact}
}

func (s *redisStore) Role() role.Store {
	return role.Store{Kind: s.Kind(), Addr: s.proxy.Addr(), Prefix: s.prefix}
}

func (s *redisStore) Round(run string) {
	s.tb.Helper()
	s.prefix = run
	s.do(func(ctx context.Context, c *redis.Client) error { return c.FlushAll(ctx).Err() })
}

func (s *redisStore) Restart() { s.primary.Restart() }

// RestartEmpty implements Forgetter.
func (s *redisStore) RestartEmpty() {
	s.tb.Helper()
	s.replica.Discard()
	s.primary.Discard()
	s.primary = redistest.Start(s.tb, redisArgs...)
	s.proxy.SetUpstream(s.primary.Addr())
	s.attach()
}

// FailOver implements Forgetter.
func (s *redisStore) FailOver() (since int64) {
	s.tb.Helper()
	since = s.inStep()
	s.primary.Sever(s.tb, s.replica)
	wait(forgetFor, nil)
	s.primary.Discard()
	s.replica.Promote(s.tb)
	s.primary = s.replica
	s.proxy.SetUpstream(s.primary.Addr())
	s.attach()
	return since
}

// inStep returns a moment of which the replica has all that was acknowledged before.
func (s *redisStore) inStep() (at int64) {
	s.tb.Helper()
	s.do(func(ctx context.Context, c *redis.Client) error {
		conn := c.Conn() // WAIT asks for what its own connection has written
		defer conn.Close()
		for {
			at = history.Now()
			if err := conn.Publish(ctx, "torture", "").Err(); err != nil {
				return err
			}
			if n, err := conn.Wait(ctx, 1, 100*time.Millisecond).Result(); n > 0 || err != nil {
				return err
			}
		}
	})
	return at
}

// Fill implements Filler: with the limit of its memory, Redis takes no more claims.
func (s *redisStore) Fill() { s.setMaxMemory("1") }

// Empty implements Filler.
func (s *redisStore) Empty() { s.setMaxMemory("0") }

func (s *redisStore) setMaxMemory(bytes string) {
	s.tb.Helper()
	s.do(func(ctx context.Context, c *redis.Client) error { return c.ConfigSet(ctx, "maxmemory", bytes).Err() })
}
