package redistest

import (
	"context"
	"crypto/tls"
	"os"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/idemq/idemq/internal/testenv"
)

func TestVersions(t *testing.T) {
	for _, v := range Versions(t) {
		t.Run(v.Name, func(t *testing.T) {
			s := v.Start(t)
			text, err := s.Client(t).Info(context.Background(), "server").Result()
			if err != nil {
				t.Fatal(err)
			}
			if v.bin != "" && versionOf(t, s.bin) != v.Name {
				t.Errorf("%s was started: %s", v.Name, text)
			}
		})
	}
	if n := len(Versions(t)); n != 3 {
		t.Errorf("%d versions", n)
	}
}

func TestSentinel(t *testing.T) {
	for _, v := range Versions(t) {
		t.Run(v.Name, func(t *testing.T) {
			t.Parallel()
			s := v.StartSentinel(t, 1)
			c := s.Client(t)
			ctx := context.Background()
			if err := c.Set(ctx, "k", "v", 0).Err(); err != nil {
				t.Fatal(err)
			}
			if now := s.Failover(t); now != s.Servers[1] {
				t.Fatal("the primary is the same")
			}
			testenv.Await(t, "the client to find the new primary", func() bool { return c.Set(ctx, "l", "v", 0).Err() == nil })
			if n, err := c.Exists(ctx, "k", "l").Result(); err != nil || n != 2 {
				t.Errorf("%d of two keys are on the new primary, %v", n, err)
			}
		})
	}
}

func TestSentinelAfterKill(t *testing.T) {
	t.Parallel()
	s := StartSentinel(t, 2)
	ctx := context.Background()
	c := s.Servers[0].Client(t)
	if err := c.Set(ctx, "k", "v", 0).Err(); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Wait(ctx, 2, 0).Result(); err != nil || n != 2 {
		t.Fatalf("%d replicas, %v", n, err)
	}
	s.Servers[0].Kill()
	if v, err := s.AwaitFailover(t, s.Servers[0]).Client(t).Get(ctx, "k").Result(); err != nil || v != "v" {
		t.Errorf("%q, %v", v, err)
	}
}

func TestSever(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s := Start(t, "--repl-diskless-sync-delay", "0")
	r := s.StartReplica(t, "--appendonly", "yes", "--appendfsync", "no")
	c, rc := s.Client(t), r.Client(t)
	if err := c.Set(ctx, "before", "v", 0).Err(); err != nil {
		t.Fatal(err)
	}
	testenv.Await(t, "replication", func() bool { return rc.Get(ctx, "before").Val() == "v" })
	s.Sever(t, r)
	if err := c.Set(ctx, "after", "v", 0).Err(); err != nil {
		t.Fatal(err)
	}
	s.Discard()
	if _, err := os.Stat(s.dir); !os.IsNotExist(err) {
		t.Errorf("the folder of a discarded server: %v", err)
	}
	r.Promote(t)
	r.Restart()
	if n, err := rc.Exists(ctx, "before", "after").Result(); err != nil || n != 1 {
		t.Errorf("%d of two keys are on the replica, %v", n, err)
	}
	if err := rc.Set(ctx, "later", "v", 0).Err(); err != nil {
		t.Errorf("a promoted replica that was started again: %v", err)
	}
}

func TestTLS(t *testing.T) {
	t.Parallel()
	s := StartTLS(t)
	ctx := context.Background()
	if err := s.Client(t).Set(ctx, "k", "v", 0).Err(); err != nil {
		t.Fatal(err)
	}
	for what, config := range map[string]*tls.Config{
		"no TLS":         nil,
		"no certificate": {RootCAs: s.tls.RootCAs, MinVersion: tls.VersionTLS12},
		"no authority":   {Certificates: s.tls.Certificates, MinVersion: tls.VersionTLS12},
	} {
		o := s.Options()
		o.TLSConfig, o.MaxRetries = config, -1
		c := redis.NewClient(o)
		if err := c.Get(ctx, "k").Err(); err == nil {
			t.Errorf("%s: the server answered", what)
		}
		_ = c.Close()
	}
	s.Restart()
	if err := s.Client(t).Ping(ctx).Err(); err != nil {
		t.Error(err)
	}
}
