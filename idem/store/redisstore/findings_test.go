package redisstore_test

import (
	"context"
	"errors"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/redis/go-redis/v9"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/redisstore"
	"github.com/idemq/idemq/internal/redistest"
	"github.com/idemq/idemq/internal/testenv"
)

// ids are the findings' names, sorted. Each finding must be three sentences.
func ids(t *testing.T, findings []store.Finding) []string {
	t.Helper()
	var all []string
	for _, f := range findings {
		all = append(all, f.ID)
		for _, s := range []string{f.What, f.Consequence, f.Cure} {
			if s == "" || !unicode.IsUpper(rune(s[0])) || !strings.HasSuffix(s, ".") || strings.Contains(s, "%!") {
				t.Errorf("%s: not a sentence: %q", f.ID, s)
			}
		}
	}
	slices.Sort(all)
	return all
}

// finds holds Verify to exactly these findings.
func finds(t *testing.T, s store.Store, want ...string) []store.Finding {
	t.Helper()
	findings, err := s.Verify(context.Background(), "p")
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(want)
	if got := ids(t, findings); !slices.Equal(got, want) {
		t.Errorf("found %q, want %q: %v", got, want, findings)
	}
	return findings
}

// durable are the options of a server that forgets nothing.
var durable = []string{"--appendonly", "yes", "--repl-diskless-sync-delay", "0"}

func start(t *testing.T, args ...string) (*redistest.Server, *redis.Client) {
	t.Helper()
	s := redistest.Start(t, slices.Concat(durable, args)...)
	return s, s.Client(t)
}

func set(t *testing.T, c *redis.Client, name, value string) {
	t.Helper()
	if err := c.ConfigSet(context.Background(), name, value).Err(); err != nil {
		t.Fatalf("CONFIG SET %s %s: %v", name, value, err)
	}
}

func infoOf(t *testing.T, c *redis.Client, name string) string {
	t.Helper()
	text, err := c.Info(context.Background(), "everything").Result()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(text) {
		if v, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// A server that is set up well is not complained of, whatever its shape.
func TestNoFindings(t *testing.T) {
	t.Parallel()
	for _, v := range redistest.Versions(t) {
		t.Run(v.Name, func(t *testing.T) {
			t.Parallel()
			s := redisstore.New(v.Start(t, durable...).Client(t))
			finds(t, s)
			apply(t, s, batch("p", op(store.Begin, "t", "a")))
			finds(t, s)
		})
	}
	t.Run("maxmemory", func(t *testing.T) {
		t.Parallel()
		_, c := start(t, "--maxmemory", "64mb", "--maxmemory-policy", "noeviction", "--appendfsync", "always", "--save", "900 1")
		finds(t, redisstore.New(c))
	})
	t.Run("replica", func(t *testing.T) {
		t.Parallel()
		s, c := start(t)
		s.StartReplica(t, durable...)
		finds(t, redisstore.New(c, redisstore.WithReplicas(1, time.Second)))
		set(t, c, "min-replicas-to-write", "1")
		testenv.Await(t, "the primary to count its replica", func() bool { return infoOf(t, c, "min_slaves_good_slaves") == "1" })
		finds(t, redisstore.New(c))
	})
	t.Run("Sentinel", func(t *testing.T) {
		t.Parallel()
		c := redistest.StartSentinel(t, 1, durable...).Client(t)
		finds(t, redisstore.New(c, redisstore.WithReplicas(1, time.Second)))
	})
	t.Run("Cluster", func(t *testing.T) {
		t.Parallel()
		c := redistest.StartReplicatedCluster(t, "--appendonly", "yes").Client(t)
		finds(t, redisstore.New(c, redisstore.WithReplicas(1, time.Second)))
	})
}

func TestFindings(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		args []string // behind durable
		ids  []string
		word string
	}{
		{"no persistence", []string{"--appendonly", "no"}, []string{"redis-no-persistence"}, "saves nothing"},
		{"snapshots only", []string{"--appendonly", "no", "--save", "900 1"}, []string{"redis-snapshots-only"}, `"900 1"`},
		{"appendfsync", []string{"--appendfsync", "no"}, []string{"redis-appendfsync"}, "appendfsync no"},
		{"eviction", []string{"--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru"}, []string{"redis-eviction"}, "At its maxmemory of 67108864 bytes"},
		{"eviction, no limit", []string{"--maxmemory-policy", "volatile-ttl"}, []string{"redis-eviction"}, "Once a maxmemory is set"},
		{
			"two at once",
			[]string{"--appendonly", "no", "--maxmemory-policy", "volatile-ttl"},
			[]string{"redis-eviction", "redis-no-persistence"},
			"volatile-ttl",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, c := start(t, tt.args...)
			f := finds(t, redisstore.New(c), tt.ids...)
			if len(f) == 0 || !strings.Contains(f[0].String(), tt.word) {
				t.Errorf("no %q in %v", tt.word, f)
			}
		})
	}
}

func TestFindingMemory(t *testing.T) {
	t.Parallel()
	_, c := start(t)
	ctx := context.Background()
	for i := range 1000 {
		if err := c.Set(ctx, strconv.Itoa(i), strings.Repeat("x", 16<<10), 0).Err(); err != nil {
			t.Fatal(err)
		}
	}
	// On a busy disk what waits to be written counts for a while.
	testenv.Await(t, "the append-only file to be written", func() bool { return infoOf(t, c, "aof_buffer_length") == "0" })
	fill := func(percent int) {
		t.Helper()
		used, err := strconv.Atoi(infoOf(t, c, "used_memory"))
		if err != nil {
			t.Fatal(err)
		}
		set(t, c, "maxmemory", strconv.Itoa(used*100/percent))
	}
	s := redisstore.New(c)
	fill(80)
	finds(t, s)
	fill(95)
	finds(t, s, "redis-memory")
}

// rotten takes a server's folder away: what it has open goes on, what it opens fails.
func rotten(t *testing.T, c *redis.Client) {
	t.Helper()
	dir := c.ConfigGet(context.Background(), "dir").Val()["dir"]
	if dir == "" {
		t.Fatal("the server does not say what its folder is")
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
}

func TestFindingSaveFailing(t *testing.T) {
	t.Parallel()
	_, c := start(t, "--save", "900 1", "--stop-writes-on-bgsave-error", "no")
	ctx := context.Background()
	s := redisstore.New(c)
	apply(t, s, batch("p", op(store.Begin, "t", "a")))
	finds(t, s)
	rotten(t, c)
	_ = c.BgSave(ctx)
	testenv.Await(t, "the snapshot to fail", func() bool { return infoOf(t, c, "rdb_last_bgsave_status") == "err" })
	finds(t, s, "redis-save-failing")
	// A server that stops writes then cannot be used at all.
	set(t, c, "stop-writes-on-bgsave-error", "yes")
	if _, err := s.Verify(ctx, "p"); err == nil || errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "disk") {
		t.Errorf("Verify of a server that takes no writes: %v", err)
	}
}

func TestFindingRewrite(t *testing.T) {
	t.Parallel()
	_, c := start(t)
	s := redisstore.New(c)
	apply(t, s, batch("p", op(store.Begin, "t", "a")))
	rotten(t, c)
	_ = c.BgRewriteAOF(context.Background())
	testenv.Await(t, "the rewrite to fail", func() bool { return infoOf(t, c, "aof_last_bgrewrite_status") == "err" })
	finds(t, s, "redis-aof-rewrite")
}

func TestFindingReplicas(t *testing.T) {
	t.Parallel()
	server, c := start(t)
	finds(t, redisstore.New(c, redisstore.WithReplicas(1, time.Second)), "redis-too-few-replicas")
	server.StartReplica(t)
	finds(t, redisstore.New(c), "redis-min-replicas")
	finds(t, redisstore.New(c, redisstore.WithReplicas(2, time.Second)), "redis-too-few-replicas")

	// A second replica that waits for its first copy.
	set(t, c, "repl-diskless-sync-delay", "600")
	host, port, _ := strings.Cut(server.Addr(), ":")
	redistest.Start(t, "--replicaof", host, port)
	testenv.Await(t, "the replica", func() bool {
		return strings.Contains(infoOf(t, c, "slave0")+infoOf(t, c, "slave1"), "state=wait_bgsave")
	})
	finds(t, redisstore.New(c), "redis-min-replicas", "redis-replica-lag")
	finds(t, redisstore.New(c, redisstore.WithReplicas(2, time.Second)), "redis-replica-lag", "redis-too-few-replicas")
}

func TestFindingNoReplica(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartCluster(t)
	for _, n := range cluster.Nodes {
		set(t, n.Client(t), "appendonly", "yes")
	}
	finds(t, redisstore.New(cluster.Client(t)), "redis-no-replica", "redis-no-replica", "redis-no-replica")
	s := redistest.StartSentinel(t, 0, durable...)
	if f := finds(t, redisstore.New(s.Client(t)), "redis-no-replica"); !strings.HasPrefix(f[0].What, "The primary that Sentinel names ") {
		t.Errorf("%q", f[0].What)
	}
}

func TestFindingClock(t *testing.T) {
	t.Parallel()
	_, c := start(t)
	for off, word := range map[time.Duration]string{
		-time.Hour: "ahead of", time.Hour: "behind", -30 * time.Second: "", 30 * time.Second: "",
	} {
		s := redisstore.New(c)
		redisstore.SetClock(s, func() time.Time { return time.Now().Add(off) })
		if word == "" {
			finds(t, s)
		} else if f := finds(t, s, "redis-clock"); !strings.Contains(f[0].What, "1h0m0s "+word) {
			t.Errorf("this process is off by %v: %q", off, f[0].What)
		}
	}
}

func TestFindingClient(t *testing.T) {
	t.Parallel()
	server, _ := start(t)
	o := server.Options()
	o.ContextTimeoutEnabled = false
	ring := &redis.RingOptions{Addrs: map[string]string{"a": server.Addr()}, DisableIdentity: true}
	for name, c := range map[string]redis.UniversalClient{
		"client": redis.NewClient(o), "ring": redis.NewRing(ring),
	} {
		t.Cleanup(func() { _ = c.Close() })
		if f := finds(t, redisstore.New(c), "redis-client-timeout"); !strings.Contains(f[0].Consequence, " times") {
			t.Errorf("%s: %q", name, f[0].Consequence)
		}
	}
}

// docs/redis.md has each finding, and none that there is not.
func TestFindingsAreDocumented(t *testing.T) {
	name := regexp.MustCompile("[`\"](redis-[a-z-]+)[`\"]")
	named := func(path string) []string {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, m := range name.FindAllSubmatch(text, -1) {
			all = append(all, string(m[1]))
		}
		slices.Sort(all)
		return slices.Compact(all)
	}
	if code, doc := named("findings.go"), named(documentation); !slices.Equal(code, doc) || len(code) < 10 {
		t.Errorf("the code has %q, docs/redis.md %q", code, doc)
	}
}
