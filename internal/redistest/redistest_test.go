package redistest

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/idemq/idemq/internal/child"
	"github.com/idemq/idemq/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestKillForgets(t *testing.T) {
	s := Start(t, "--maxmemory", "64mb")
	c := s.Client(t)
	ctx := context.Background()
	if v, err := c.ConfigGet(ctx, "maxmemory").Result(); err != nil || v["maxmemory"] != "67108864" {
		t.Fatalf("maxmemory is %v, %v", v, err)
	}
	if err := c.Set(ctx, "k", "v", 0).Err(); err != nil {
		t.Fatal(err)
	}
	s.Kill()
	if err := c.Ping(ctx).Err(); err == nil {
		t.Fatal("a killed server answers")
	}
	s.Restart()
	if n, err := c.Exists(ctx, "k").Result(); err != nil || n != 0 {
		t.Fatalf("after a restart without persistence: %d keys, %v", n, err)
	}
}

func TestRestartKeepsWhatWasSaved(t *testing.T) {
	s := Start(t, "--appendonly", "yes", "--appendfsync", "always")
	c := s.Client(t)
	ctx := context.Background()
	if err := c.Set(ctx, "k", "v", 0).Err(); err != nil {
		t.Fatal(err)
	}
	s.Restart()
	if v, err := c.Get(ctx, "k").Result(); err != nil || v != "v" {
		t.Fatalf("after a restart with an append-only file: %q, %v", v, err)
	}
}

func TestPause(t *testing.T) {
	s := Start(t, "--maxclients", "100")
	c := s.Client(t)
	s.Pause()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := c.Ping(ctx).Err(); err == nil {
		t.Fatal("a paused server answers")
	}
	s.Resume()
	if err := c.Ping(context.Background()).Err(); err != nil {
		t.Fatal(err)
	}
}

func TestCluster(t *testing.T) {
	c := StartCluster(t).Client(t)
	ctx := context.Background()
	for _, k := range []string{"a", "b", "c", "d", "e", "f"} {
		if err := c.Set(ctx, k, k, 0).Err(); err != nil {
			t.Fatalf("SET %s: %v", k, err)
		}
	}
}

// TestDiesWithParent kills a test process that has started a server.
func TestDiesWithParent(t *testing.T) {
	const envHelper = "IDEM_REDISTEST_HELPER"
	if path := os.Getenv(envHelper); path != "" {
		s := Start(t, "--maxclients", "100")
		if err := os.WriteFile(path+".tmp", []byte(s.Addr()), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".tmp", path); err != nil {
			t.Fatal(err)
		}
		select {}
	}
	if !child.DiesWithParent {
		t.Skip("servers outlive a killed test on this system")
	}
	if binary(t) == "" {
		missing(t)
	}
	path := filepath.Join(t.TempDir(), "addr")
	helper := exec.Command(os.Args[0], "-test.run=^TestDiesWithParent$")
	helper.Env = append(os.Environ(), envHelper+"="+path)
	proc, err := child.Start(helper)
	if err != nil {
		t.Fatal(err)
	}
	defer proc.Kill()
	var addr []byte
	testenv.Await(t, "the helper's server", func() bool {
		addr, err = os.ReadFile(path)
		return err == nil && answers(string(addr))
	})
	proc.Kill()
	testenv.Await(t, "the server's end", func() bool { return !answers(string(addr)) })
}
