package redisstore_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/redisstore"
	"github.com/idemq/idemq/internal/redistest"
	"github.com/idemq/idemq/internal/testenv"
)

// withoutFailover starts three primaries; what one that is away keeps stays away, and the
// others work on.
func withoutFailover(t *testing.T) *redistest.Cluster {
	t.Helper()
	ignore := goleak.IgnoreCurrent()
	t.Cleanup(func() { testenv.Await(t, "the clients to end", func() bool { return goleak.Find(ignore) == nil }) })
	c := redistest.StartCluster(t)
	for _, node := range c.Nodes {
		set(t, node.Client(t), "cluster-require-full-coverage", "no")
		set(t, node.Client(t), "cluster-node-timeout", "60000")
	}
	return c
}

func clusterClient(t *testing.T, c *redistest.Cluster) *redis.ClusterClient {
	t.Helper()
	client := redis.NewClusterClient(&redis.ClusterOptions{Addrs: c.Addrs(), ContextTimeoutEnabled: true, DisableIdentity: true})
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// on tells which operations of a batch of [everywhere] are on a node.
func on(t *testing.T, c *redistest.Cluster, node *redistest.Server, client *redis.ClusterClient, b *store.Batch) map[int]bool {
	t.Helper()
	found := make(map[int]bool)
	keys := make(map[string]bool)
	for _, key := range node.Client(t).Keys(context.Background(), "*").Val() {
		keys[key] = true
	}
	for i, o := range b.Ops {
		for key := range keys {
			if strings.HasSuffix(key, ":"+o.Token) {
				found[i] = true
			}
		}
	}
	if len(found) < len(b.Ops)/5 || len(found) > len(b.Ops)/2 {
		t.Fatalf("%d of %d tokens are on one node of three", len(found), len(b.Ops))
	}
	return found
}

// A node that is dead, or hangs, holds up what it keeps: the others' calls are answered
// within half the time, and once it is known to be silent, at once.
func TestSilentNode(t *testing.T) {
	for _, v := range []struct {
		name string
		opts []redisstore.Option
		away func(*redistest.Server)
	}{
		{"killed", nil, (*redistest.Server).Kill},
		{"hung", nil, (*redistest.Server).Pause},
		{"hung, with WAIT", []redisstore.Option{redisstore.WithReplicas(1, 100*time.Millisecond)}, (*redistest.Server).Pause},
	} {
		t.Run(v.name, func(t *testing.T) {
			c := withoutFailover(t)
			if v.opts != nil {
				c = replicated(t)
				for _, node := range c.Nodes {
					set(t, node.Client(t), "cluster-require-full-coverage", "no")
					set(t, node.Client(t), "cluster-node-timeout", "60000")
				}
			}
			client := clusterClient(t, c)
			s := redisstore.New(client, v.opts...)
			begins, commits := everywhere("x")
			until(t, s, "claims", begins)
			there := on(t, c, c.Nodes[1], client, begins)
			v.away(c.Nodes[1])
			if v.name != "killed" {
				defer c.Nodes[1].Resume()
			}
			const limit = time.Second
			try := func(within time.Duration, b *store.Batch) {
				t.Helper()
				ctx, cancel := context.WithTimeout(context.Background(), limit)
				defer cancel()
				began := time.Now()
				if err := s.Apply(ctx, b); err != nil {
					t.Errorf("all is held up: %v", err)
				}
				if took := time.Since(began); took > within {
					t.Errorf("it took %v", took)
				}
				for i, r := range b.Replies {
					if there[i] != errors.Is(r.Err, store.ErrUnavailable) || !there[i] && r.Status != store.OK {
						t.Fatalf("operation %d, on the silent node: %v: %+v", i, there[i], r)
					}
				}
			}
			try(limit*3/4, commits)
			for range 3 {
				try(limit/5, commits)
			}

			// What is for the silent node only asks it.
			var ops []store.Op
			for i := range there {
				ops = append(ops, commits.Ops[i])
			}
			only := batch("p", ops...)
			ctx, cancel := context.WithTimeout(context.Background(), limit)
			defer cancel()
			if err := s.Apply(ctx, only); err != nil {
				t.Errorf("calls for the silent node alone: %v", err)
			}
			for i, r := range only.Replies {
				if !errors.Is(r.Err, store.ErrUnavailable) {
					t.Fatalf("operation %d: %+v", i, r)
				}
			}
			try(limit/5, commits)
			if v.name == "killed" {
				return
			}
			c.Nodes[1].Resume()
			testenv.Await(t, "the node's answer", func() bool {
				ctx, cancel := context.WithTimeout(context.Background(), limit)
				defer cancel()
				return s.Apply(ctx, only) == nil && only.Replies[0].Status == store.OK
			})
			// Not: await. The first batch after an answer has everything.
			for i, r := range apply(t, s, commits) {
				if r.Status != store.OK || r.Err != nil {
					t.Fatalf("operation %d, the node is back: %+v", i, r)
				}
			}
		})
	}
}

// One primary refuses: the others work on, and its calls say why.
func TestOneNodeRefuses(t *testing.T) {
	c := redistest.StartCluster(t)
	client := clusterClient(t, c)
	s := redisstore.New(client)
	begins, commits := everywhere("x")
	until(t, s, "claims", begins)
	there := on(t, c, c.Nodes[2], client, begins)
	admin := c.Nodes[2].Client(t)
	for _, v := range []struct {
		word       string
		begin, end func()
	}{
		{"NOREPLICAS", func() { set(t, admin, "min-replicas-to-write", "1") }, func() { set(t, admin, "min-replicas-to-write", "0") }},
		{"lacks +set", func() { do(t, admin, "ACL", "SETUSER", "default", "-set") }, func() { do(t, admin, "ACL", "SETUSER", "default", "+@all") }},
	} {
		v.begin()
		if err := s.Apply(t.Context(), commits); err != nil {
			t.Fatalf("%s of one node stops all: %v", v.word, err)
		}
		for i, r := range commits.Replies {
			switch {
			case there[i] && (!errors.Is(r.Err, store.ErrRefused) || errors.Is(r.Err, store.ErrUnavailable) || !strings.Contains(r.Err.Error(), v.word)):
				t.Fatalf("operation %d, refused: %+v", i, r)
			case !there[i] && r.Status != store.OK:
				t.Fatalf("operation %d: %+v", i, r)
			}
		}
		v.end()
	}
	for i, r := range apply(t, s, commits) {
		if r.Status != store.OK || r.Err != nil {
			t.Fatalf("operation %d, afterwards: %+v", i, r)
		}
	}
}

// A loss is counted, so that each guard on the store learns of it.
func TestLossesAreCounted(t *testing.T) {
	server := redistest.Start(t, private...)
	s := redisstore.New(server.Client(t))
	ask := func() *store.Batch {
		b := batch("p", op(store.Begin, "t", "a"))
		apply(t, s, b)
		return b
	}
	if b := ask(); b.Losses != 0 || b.Notice != "" {
		t.Fatalf("at first: %d, %q", b.Losses, b.Notice)
	}
	for n := 1; n < 3; n++ {
		do(t, server.Client(t), "FLUSHALL")
		for range 2 {
			if b := ask(); b.Losses != n || !strings.Contains(b.Notice, "can be handled again") {
				t.Errorf("loss %d: %d, %q", n, b.Losses, b.Notice)
			}
		}
	}
	b := batch("other", op(store.Begin, "t", "a"))
	if apply(t, s, b); b.Losses != 0 || b.Notice != "" {
		t.Errorf("another prefix: %d, %q", b.Losses, b.Notice)
	}
}

// A client that its owner closed comes back by itself never.
func TestClosedClient(t *testing.T) {
	server := redistest.Start(t)
	single := server.Client(t)
	cluster := clusterClient(t, redistest.StartCluster(t))
	for _, v := range []struct {
		name   string
		client redis.UniversalClient
		opts   []redisstore.Option
	}{
		{"single", single, nil},
		{"cluster", cluster, nil},
		{"cluster, with WAIT", clusterClient(t, redistest.StartCluster(t)), []redisstore.Option{redisstore.WithReplicas(1, 10*time.Millisecond)}},
	} {
		s := redisstore.New(v.client, v.opts...)
		begins, commits := everywhere("x")
		apply(t, s, begins)
		_ = v.client.Close()
		err := applied(s, commits)
		if err == nil || errors.Is(err, store.ErrUnavailable) || !errors.Is(err, redis.ErrClosed) || !strings.Contains(err.Error(), "closed by this program") {
			t.Errorf("%s: %v", v.name, err)
		}
	}
}

// While a node hangs, a guard keeps the claims that stand on the others.
func TestClaimsBesideASilentNode(t *testing.T) {
	for _, v := range []struct {
		name string
		away func(*redistest.Server)
	}{{"killed", (*redistest.Server).Kill}, {"hung", (*redistest.Server).Pause}} {
		t.Run(v.name, func(t *testing.T) {
			c := withoutFailover(t)
			s := redisstore.New(clusterClient(t, c))
			const lease = 3 * time.Second
			g := idem.New(idem.WithStore(s), idem.WithLease(lease)).Group("g")
			held := make(map[string]*idem.Claim)
			for i := range 60 {
				token := fmt.Sprint("held", i)
				begun := g.BeginAll(t.Context(), []idem.Request{{Token: token, Patient: true}})[0]
				if begun.Err != nil {
					t.Fatal(begun.Err)
				}
				held[token] = begun.Claim
			}
			keys := strings.Join(c.Nodes[1].Client(t).Keys(t.Context(), "*").Val(), " ") + " "
			v.away(c.Nodes[1])
			if v.name == "hung" {
				defer c.Nodes[1].Resume()
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*lease)
			defer cancel()
			var mu sync.Mutex
			var answered int
			var slowest time.Duration
			var wg sync.WaitGroup
			for w := range 16 {
				wg.Go(func() {
					for i := 0; ctx.Err() == nil; i++ {
						one, stop := context.WithTimeout(ctx, lease/2)
						began := time.Now()
						begun := g.BeginAll(one, []idem.Request{{Token: fmt.Sprint("new", w, "-", i), Patient: true}})[0]
						if begun.Err == nil {
							_ = begun.Claim.Commit(one)
							mu.Lock()
							answered++
							slowest = max(slowest, time.Since(began))
							mu.Unlock()
						}
						stop()
					}
				})
			}
			wg.Wait()
			lost := 0
			for token, claim := range held {
				if claim.Context().Err() != nil {
					lost++
				}
				if there := strings.Contains(keys, ":"+token+" "); there != (claim.Context().Err() != nil) {
					t.Errorf("%s, on the silent node: %v: %v", token, there, claim.Context().Err())
				}
			}
			t.Logf("%d new claims, the slowest after %v; of %d held ones %d were lost", answered, slowest, len(held), lost)
			if lost == 0 || lost > len(held)/2 {
				t.Errorf("%d of %d claims were lost; a third of them stands on the node that is away", lost, len(held))
			}
			if answered < 20 {
				t.Errorf("%d new claims in %v", answered, 2*lease)
			}
		})
	}
}

// Claims outlive a moment in which their node hangs, also where nothing but renewals asks for it.
func TestClaimsOnANodeThatHungForAMoment(t *testing.T) {
	c := withoutFailover(t)
	const lease = 4 * time.Second
	lost := make(chan string, 60)
	told := idem.ObserverFunc(func(e idem.Event) {
		if e.Kind == idem.EventLeaseLost {
			lost <- e.Token
		}
	})
	g := idem.New(idem.WithStore(redisstore.New(clusterClient(t, c))), idem.WithLease(lease), idem.WithObserver(told)).Group("g")
	for i := range cap(lost) {
		begun := g.BeginAll(t.Context(), []idem.Request{{Token: fmt.Sprint("held", i)}})[0]
		if begun.Err != nil {
			t.Fatal(begun.Err)
		}
		defer begun.Claim.Abandon()
	}
	c.Nodes[1].Pause()
	resume := time.AfterFunc(lease*3/8, c.Nodes[1].Resume) // longer than a renewal waits for a node, a sixth
	defer resume.Stop()
	select {
	case token := <-lost:
		t.Errorf("%s is lost", token)
	case <-time.After(2 * lease):
	}
}

// A node came back empty, and the one that keeps the descriptor is away, or refuses: the others
// work on.
func TestDescriptorOnALostNode(t *testing.T) {
	for _, v := range []struct {
		name string
		lose func(*testing.T, *redistest.Cluster, *redistest.Server)
	}{
		{"away", func(t *testing.T, c *redistest.Cluster, node *redistest.Server) { c.Kill(t, node) }},
		{"refuses", func(t *testing.T, _ *redistest.Cluster, node *redistest.Server) { refuse(t, node) }},
		{"came back empty, and refuses", func(t *testing.T, _ *redistest.Cluster, node *redistest.Server) {
			do(t, node.Client(t), "FLUSHALL")
			refuse(t, node)
		}},
	} {
		t.Run(v.name, func(t *testing.T) {
			c := withoutFailover(t)
			s := redisstore.New(clusterClient(t, c))
			begins, commits := everywhere("x")
			until(t, s, "claims", begins)
			home := c.Owner(t, c.Slot(t, "p:{0}:%d"))
			empty := c.Nodes[0]
			if home == empty {
				empty = c.Nodes[1]
			}
			do(t, empty.Client(t), "FLUSHALL")
			until(t, s, "completions", commits)
			if commits.Losses == 0 {
				t.Fatal("the loss was not noticed")
			}
			v.lose(t, c, home)
			const limit = time.Second
			for try := range 4 {
				ctx, cancel := context.WithTimeout(context.Background(), limit)
				began := time.Now()
				err := s.Apply(ctx, commits)
				took := time.Since(began)
				cancel()
				n := 0
				for _, r := range commits.Replies {
					if r.Err == nil && r.Status != 0 {
						n++
					}
				}
				if err != nil || n < len(commits.Ops)/2 || try > 0 && took > limit/5 {
					t.Errorf("try %d: %d of %d answered after %v, %v", try, n, len(commits.Ops), took, err)
				}
			}
		})
	}
}

// refuse has a node take no writes.
func refuse(t *testing.T, node *redistest.Server) {
	t.Helper()
	set(t, node.Client(t), "min-replicas-to-write", "1")
}

// A program that starts while the node that keeps its prefix's descriptor, and its instance's
// number, refuses writes: it works on the other nodes.
func TestStartBesideARefusingNode(t *testing.T) {
	c := redistest.StartCluster(t)
	client := clusterClient(t, c)
	apply(t, redisstore.New(client), batch("p"))
	home := c.Owner(t, c.Slot(t, "p:{0}:%d"))
	instance := ""
	for i := 0; instance == ""; i++ {
		name := fmt.Sprint("pod-", i)
		if _, err := redisstore.New(client).Incarnation(t.Context(), "p", name); err != nil {
			t.Fatal(err)
		}
		if len(home.Client(t).Keys(t.Context(), "*:%o:"+name).Val()) > 0 {
			instance = name
		}
	}
	refuse(t, home)
	s := redisstore.New(client)
	if _, err := s.Incarnation(t.Context(), "p", instance); !errors.Is(err, store.ErrRefused) || errors.Is(err, store.ErrUnavailable) ||
		!strings.Contains(err.Error(), "NOREPLICAS") {
		t.Errorf("the number of an instance: %v", err)
	}
	begins, commits := everywhere("x")
	for _, b := range []*store.Batch{begins, commits} {
		answered, refused := 0, 0
		for _, r := range apply(t, s, b) {
			switch {
			case r.Err == nil:
				answered++
			case errors.Is(r.Err, store.ErrRefused):
				refused++
			}
		}
		if n := len(b.Ops); answered < n/2 || refused < n/5 || answered+refused != n {
			t.Errorf("of %d operations %d were answered, and %d refused", n, answered, refused)
		}
	}
}

// Slots that have moved: their calls are answered by where they went to, at once; with WAIT,
// completions are when they are asked for again.
func TestMovedSlots(t *testing.T) {
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			c := replicated(t)
			s := redisstore.New(c.Client(t), v.opts...)
			begins, commits := everywhere("x")
			until(t, s, "claims", begins)
			until(t, s, "a completion", batch("p", commits.Ops[0]))
			slot := c.Slot(t, "p:{0}:%e")
			to := c.Nodes[0]
			if c.Owner(t, slot) == to {
				to = c.Nodes[1]
			}
			c.Move(t, slot, slot, to)
			apply(t, s, commits)
			away := 0
			for i, r := range commits.Replies {
				switch {
				case errors.Is(r.Err, store.ErrUnavailable) && v.opts != nil:
					away++
				case r.Err != nil || r.Status != store.OK:
					t.Fatalf("operation %d: %+v", i, r)
				}
			}
			if v.opts != nil && (away == 0 || away > len(commits.Ops)/10) {
				t.Errorf("%d of %d completions were not answered; one slot has moved", away, len(commits.Ops))
			}
			until(t, s, "completions", commits)
		})
	}
}

// Two guards on one store, and one prefix, are both told of a loss, once.
func TestEachGuardIsTold(t *testing.T) {
	server := redistest.Start(t, private...)
	s := redisstore.New(server.Client(t))
	var told [2]atomic.Int32
	var groups [2]*idem.Guard
	for i := range groups {
		groups[i] = idem.New(idem.WithStore(s), idem.WithObserver(idem.ObserverFunc(func(e idem.Event) {
			if e.Kind == idem.EventStoreNotice {
				told[i].Add(1)
			}
		}))).Group("g")
	}
	ask := func(when string) {
		t.Helper()
		for i, g := range groups {
			if err := g.Do(t.Context(), fmt.Sprint(when, i), func(context.Context) error { return nil }); err != nil {
				t.Fatal(err)
			}
		}
	}
	ask("before")
	for n := int32(1); n < 3; n++ {
		do(t, server.Client(t), "FLUSHALL")
		ask(fmt.Sprint("after loss ", n))
		ask(fmt.Sprint("later than loss ", n))
		for i := range told {
			if told[i].Load() != n {
				t.Errorf("guard %d was told %d times of %d losses", i, told[i].Load(), n)
			}
		}
	}
}
