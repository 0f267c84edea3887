package redisstore_test

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/redisstore"
	"github.com/idemq/idemq/idem/store/storetest"
	"github.com/idemq/idemq/internal/redistest"
	"github.com/idemq/idemq/internal/testenv"
)

var documentation = filepath.Join("..", "..", "..", "docs", "redis.md")

// documented are the lists of rights in docs/redis.md: in its block of ACL SETUSER, each
// line's rules, by the word that the comment above it ends with.
func documented(t *testing.T) map[string][]string {
	t.Helper()
	text, err := os.ReadFile(documentation)
	if err != nil {
		t.Fatal(err)
	}
	lists := make(map[string][]string)
	what := ""
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if rules, ok := strings.CutPrefix(line, "ACL SETUSER orders "); ok {
			lists[what] = strings.Fields(rules)
		} else if strings.HasPrefix(line, "# ") {
			what = line[strings.LastIndex(line, " ")+1:]
		}
	}
	if what := slices.Sorted(maps.Keys(lists)); !slices.Equal(what, []string{"Preflight", "cluster", "compact", "replicas", "store"}) {
		t.Fatalf("docs/redis.md lists %v", what)
	}
	return lists
}

// The list in docs/redis.md, the one in the package's doc, and what the code asks for
// are one.
func TestRightsAreDocumented(t *testing.T) {
	lists := documented(t)
	store := lists["store"]
	if want := []string{"on", ">secret", redisstore.KeyPattern("idempotent")}; !slices.Equal(store[:len(want)], want) {
		t.Errorf("docs/redis.md makes the user %v, want %v", store, want)
	}
	code, err := os.ReadFile("redisstore.go")
	if err != nil {
		t.Fatal(err)
	}
	for what, rules := range redisstore.Rights() {
		if !slices.Equal(lists[what][len(lists[what])-len(rules):], rules) {
			t.Errorf("docs/redis.md says for %s: %v, want %v", what, lists[what], rules)
		}
		if !strings.Contains(string(code), strings.Join(rules, " ")) {
			t.Errorf("the package's doc does not have %v for %s", rules, what)
		}
	}
	if want := strings.Join(lists["Preflight"], " "); !strings.Contains(string(code), want) {
		t.Errorf("the package's doc does not have %s for Preflight", want)
	}
}

// grant gives the user of that name the rules on a server.
func grant(t *testing.T, admin *redis.Client, rules ...string) {
	t.Helper()
	args := []any{"ACL", "SETUSER", "orders"}
	for _, r := range rules {
		args = append(args, r)
	}
	if err := admin.Do(context.Background(), args...).Err(); err != nil {
		t.Fatalf("%v: %v", args, err)
	}
}

func poorClient(t *testing.T, s *redistest.Server) *redis.Client {
	t.Helper()
	o := s.Options()
	o.Username, o.Password = "orders", "secret"
	c := redis.NewClient(o)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func poorClusterClient(t *testing.T, cluster *redistest.Cluster) *redis.ClusterClient {
	t.Helper()
	o := cluster.Nodes[0].Options()
	c := redis.NewClusterClient(&redis.ClusterOptions{
		Addrs: cluster.Addrs(), Username: "orders", Password: "secret", ReadTimeout: o.ReadTimeout, WriteTimeout: o.WriteTimeout,
		ContextTimeoutEnabled: true, DisableIdentity: true,
	})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// The suite passes with exactly the rights that docs/redis.md lists, but that it draws
// its prefixes, so keys of any are allowed.
func TestStoreWithLeastRights(t *testing.T) {
	t.Parallel()
	lists := documented(t)
	lists["store"][2] = strings.Replace(lists["store"][2], "idempotent", "*", 1)
	suite := func(t *testing.T, name string, admin redis.UniversalClient, s store.Store) {
		h := named(t, harness(admin, unit), name, admin)
		h.Open = func(testing.TB) store.Store { return s }
		storetest.Run(t, h)
	}
	first := redistest.Versions(t)[0].Name
	t.Run("single", func(t *testing.T) {
		t.Parallel()
		server := redistest.Start(t, private...)
		grant(t, server.Client(t), lists["store"]...)
		suite(t, first+", least rights", server.Client(t), redisstore.New(poorClient(t, server)))
	})
	t.Run("WithReplicas", func(t *testing.T) {
		t.Parallel()
		server, admin := start(t)
		server.StartReplica(t)
		grant(t, admin, slices.Concat(lists["store"], lists["replicas"])...)
		suite(t, first+", WithReplicas, least rights", admin, redisstore.New(poorClient(t, server), redisstore.WithReplicas(1, time.Second)))
	})
	t.Run("Cluster", func(t *testing.T) {
		t.Parallel()
		cluster := redistest.StartCluster(t)
		for _, n := range cluster.Nodes {
			grant(t, n.Client(t), slices.Concat(lists["store"], lists["cluster"])...)
		}
		suite(t, first+", Cluster, least rights", cluster.Client(t), redisstore.New(poorClusterClient(t, cluster)))
	})
	t.Run("compact", func(t *testing.T) {
		t.Parallel()
		server := redistest.Start(t, private...)
		grant(t, server.Client(t), slices.Concat(lists["store"], lists["compact"])...)
		suite(t, first+", compact, least rights", server.Client(t), redisstore.New(poorClient(t, server), redisstore.WithCompact(roomy)))
	})
}

// works uses all that a store does, and returns the first error.
func works(s store.Store, prefix string) error {
	ctx := context.Background()
	commit := op(store.Commit, "t", "a")
	for _, b := range []*store.Batch{
		batch(prefix, op(store.Begin, "t", "a"), op(store.Issue, "i", "")),
		batch(prefix, commit, op(store.Check, "i", "a"), op(store.Issue, "i", ""), op(store.Inspect, "t", "")),
		batch(prefix, op(store.Forget, "t", "f")),
	} {
		if err := s.Apply(ctx, b); err != nil {
			return err
		}
	}
	_, err := s.Incarnation(ctx, prefix, "n")
	return err
}

// Without any one of the rights the store says which, in its work and in Verify.
func TestMissingRights(t *testing.T) {
	t.Parallel()
	lists := documented(t)
	lists["store"][2] = redisstore.KeyPattern("p")
	lack := func(t *testing.T, err error, right string) {
		t.Helper()
		if err == nil || errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "lacks "+right+":") {
			t.Errorf("without %s: %v", right, err)
		}
	}
	for _, v := range redistest.Versions(t) {
		t.Run(v.Name, func(t *testing.T) {
			t.Parallel()
			server := v.Start(t, durable...)
			admin := server.Client(t)
			server.StartReplica(t)
			all := slices.Concat(lists["store"], lists["replicas"], lists["Preflight"])
			only := func(rules []string, opts ...redisstore.Option) *redisstore.Store {
				t.Helper()
				if err := errors.Join(admin.Do(context.Background(), "ACL", "DELUSER", "orders").Err(),
					admin.ScriptFlush(context.Background()).Err(), admin.FlushAll(context.Background()).Err()); err != nil {
					t.Fatal(err)
				}
				grant(t, admin, rules...)
				return redisstore.New(poorClient(t, server), append(opts, redisstore.WithReplicas(1, time.Second))...)
			}
			s := only(all)
			if err := works(s, "p"); err != nil {
				t.Fatalf("with all rights: %v", err)
			}
			finds(t, s)
			for _, right := range slices.Concat(lists["store"][3:], lists["replicas"]) {
				s := only(without(all, right))
				lack(t, works(s, "p"), right)
				_, err := s.Verify(context.Background(), "p")
				lack(t, err, right)
			}
			for _, right := range lists["compact"] {
				s := only(slices.Concat(all, without(lists["compact"], right)), redisstore.WithCompact(redisstore.Compact{}))
				lack(t, works(s, "p"), right)
				_, err := s.Verify(context.Background(), "p")
				lack(t, err, right)
			}
			for right, id := range map[string]string{"+info": "redis-info-denied", "+config|get": "redis-config-denied"} {
				s := only(without(all, right))
				if err := works(s, "p"); err != nil {
					t.Errorf("without %s: %v", right, err)
				}
				if f := finds(t, s, id); len(f) == 0 || !strings.Contains(f[0].Cure, right) {
					t.Errorf("without %s: %v", right, f)
				}
			}
			// The keys of other prefixes are not allowed; those of this one are, whatever
			// stands in it.
			for _, prefix := range []string{"p", `a*b?c[d]e\f`, "{x}%", "ü"} {
				pattern := redisstore.KeyPattern(prefix)
				rules := slices.Concat([]string{"on", ">secret", pattern}, all[3:])
				s := only(rules)
				if err := works(s, prefix); err != nil {
					t.Errorf("%q with %s: %v", prefix, pattern, err)
				}
				for _, other := range []string{"axbxcde\\f", prefix + "x", "other"} {
					lack(t, works(s, other), redisstore.KeyPattern(other))
					_, err := s.Verify(context.Background(), other)
					lack(t, err, redisstore.KeyPattern(other))
				}
			}
		})
	}
	t.Run("Cluster", func(t *testing.T) {
		t.Parallel()
		cluster := redistest.StartCluster(t)
		all := slices.Concat(lists["store"], lists["cluster"])
		only := func(rules []string) *redisstore.Store {
			for _, n := range cluster.Nodes {
				admin := n.Client(t)
				if err := admin.Do(context.Background(), "ACL", "DELUSER", "orders").Err(); err != nil {
					t.Fatal(err)
				}
				grant(t, admin, rules...)
			}
			return redisstore.New(poorClusterClient(t, cluster))
		}
		for _, right := range lists["cluster"] {
			s := only(without(all, right))
			_, err := s.Verify(context.Background(), "p")
			lack(t, err, right)
			if right == "+cluster|slots" {
				lack(t, works(s, "p"), right)
			}
		}

		// What ASKING is for: a slot on its way.
		s := only(without(all, "+asking"))
		slot := cluster.Slot(t, "p:{0}:%e")
		from := cluster.Owner(t, slot)
		to := cluster.Nodes[0]
		if to == from {
			to = cluster.Nodes[1]
		}
		m := cluster.Open(t, slot, to)
		for m.Keys() > 0 {
			continue
		}
		if err := works(s, "p"); err == nil || !strings.Contains(err.Error(), "asking") {
			t.Errorf("without +asking, while a slot moves: %v", err)
		}
		s = only(all)
		testenv.Await(t, "the store, while a slot moves", func() bool { return works(s, "p") == nil })
		m.Finish()
		if err := works(s, "p"); err != nil {
			t.Error(err)
		}
	})
}

func without(rules []string, one string) []string {
	return slices.DeleteFunc(slices.Clone(rules), func(r string) bool { return r == one })
}
