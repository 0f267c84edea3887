package redisstore_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/redisstore"
	"github.com/idemq/idemq/internal/redistest"
	"github.com/idemq/idemq/internal/testenv"
)

// TestLostReplies executes each operation twice under one claim id, as a client does
// whose reply was lost, and once without the loss: the answers must be the same.
func TestLostReplies(t *testing.T) {
	t.Run("records", func(t *testing.T) { testLostReplies(t) })
	t.Run("compact", func(t *testing.T) { testLostReplies(t, redisstore.WithCompact(roomy)) })
}

func testLostReplies(t *testing.T, opts ...redisstore.Option) {
	server := redistest.Start(t)
	direct := redisstore.New(server.Client(t), opts...)
	proxy := redistest.NewProxy(t, server.Addr())
	o := server.Options()
	o.Addr = proxy.Addr()
	o.MaxRetries = 1
	c := redis.NewClient(o)
	t.Cleanup(func() { _ = c.Close() })
	lossy := redisstore.New(c, opts...)

	begin := op(store.Begin, "t", "a")
	again := op(store.Begin, "t", "b")
	again.Fingerprint, again.Redrive = "fp", 3
	counted := op(store.Release, "t", "a")
	counted.Counted = true
	commit := op(store.Commit, "t", "a")
	commit.Result = []byte("a|result\nof bytes\x00")
	spendAfterError := op(store.Spend, "t", "b")
	cases := []struct {
		name  string
		setup []store.Op
		op    store.Op
	}{
		{"Begin", nil, begin},
		{"Begin after a counted release", []store.Op{begin, counted}, op(store.Begin, "t", "b")},
		{"Begin with redrive and fingerprint", []store.Op{begin, op(store.Bury, "t", "a")}, again},
		{"Begin in progress", []store.Op{op(store.Begin, "t", "other")}, begin},
		{"Begin done", []store.Op{begin, commit}, op(store.Begin, "t", "b")},
		{"Commit", []store.Op{begin}, commit},
		{"Commit absent", nil, commit},
		{"Commit dead", []store.Op{op(store.Begin, "t", "b"), op(store.Bury, "t", "b")}, commit},
		{"Release", []store.Op{begin}, op(store.Release, "t", "a")},
		{"Release counted", []store.Op{begin}, counted},
		{"Renew", []store.Op{begin}, op(store.Renew, "t", "a")},
		{"Bury", []store.Op{begin}, op(store.Bury, "t", "a")},
		{"Bury spent", []store.Op{op(store.Spend, "t", "a")}, op(store.Bury, "t", "a")},
		{"Spend", nil, op(store.Spend, "t", "a")},
		{"Spend after an error", []store.Op{begin, counted}, spendAfterError},
		{"Forget", []store.Op{begin, commit}, op(store.Forget, "t", "f")},
		{"Inspect", []store.Op{begin}, op(store.Inspect, "t", "")},
		{"Issue", nil, op(store.Issue, "t", "")},
		{"Check", []store.Op{op(store.Issue, "t", "")}, op(store.Check, "t", "a")},
		{"Check spent", []store.Op{op(store.Issue, "t", ""), op(store.Check, "t", "b")}, op(store.Check, "t", "a")},
	}
	for _, tt := range cases {
		t.Run(tt.name, func(t *testing.T) {
			type outcome struct {
				reply  store.Reply
				record store.Record
			}
			run := func(s store.Store, lose bool) outcome {
				prefix := rand.Text()
				apply(t, s, batch(prefix, tt.setup...))
				if lose {
					proxy.SwallowReply("evalsha")
				}
				got := outcome{reply: apply(t, s, batch(prefix, tt.op))[0]}
				if lose {
					<-proxy.Swallowed()
				}
				got.record = *inspect(t, s, prefix, "t")
				for _, r := range []*store.Record{&got.record, got.reply.Record} {
					if r != nil {
						r.At, r.Lease, r.Expires = time.Time{}, r.Lease.Round(time.Minute), r.Expires.Round(time.Minute)
						if r.State == store.Done && s.Capabilities().NoDoneDetails {
							r.Expires = 0 // which depends on its bucket, and so on the prefix
						}
					}
				}
				got.reply.At, got.reply.RetryAfter = time.Time{}, got.reply.RetryAfter.Round(time.Minute)
				return got
			}
			if got, want := run(lossy, true), run(direct, false); !reflect.DeepEqual(got, want) {
				t.Errorf("with a lost reply\n\t%+v, else\n\t%+v", got, want)
			}
		})
	}
}

// TestLostReplyWithoutRetry: what is not known is an error, and the caller's
// repeat answers it.
func TestLostReplyWithoutRetry(t *testing.T) {
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr())
	o := server.Options()
	o.Addr = proxy.Addr()
	o.MaxRetries = -1
	c := redis.NewClient(o)
	t.Cleanup(func() { _ = c.Close() })
	s := redisstore.New(c)
	prefix := rand.Text()
	apply(t, s, batch(prefix))
	proxy.SwallowReply("evalsha")
	b := batch(prefix, op(store.Begin, "t", "a"))
	if err := s.Apply(context.Background(), b); !errors.Is(err, store.ErrUnavailable) {
		t.Fatalf("a lost reply: %v", err)
	}
	<-proxy.Swallowed()
	if r := apply(t, s, b)[0]; r.Status != store.Claimed || r.Attempt != 1 {
		t.Fatalf("the repeat: %+v", r)
	}
}

func TestUnreachable(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr())
	o := server.Options()
	o.Addr = proxy.Addr()
	o.DialerRetries = 1
	c := redis.NewClient(o)
	t.Cleanup(func() { _ = c.Close() })
	s := redisstore.New(c)
	prefix := rand.Text()
	fails := func(when string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
		defer cancel()
		if err := s.Apply(ctx, batch(prefix, op(store.Begin, "t", "a"))); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("%s: Apply: %v", when, err)
		}
		if _, err := s.Verify(ctx, prefix); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("%s: Verify: %v", when, err)
		}
		if _, err := s.Incarnation(ctx, prefix, "n"); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("%s: Incarnation: %v", when, err)
		}
	}
	proxy.Cut()
	fails("cut before first use")
	proxy.Restore()
	apply(t, s, batch(prefix))
	proxy.Cut()
	fails("cut")
	proxy.Restore()
	apply(t, s, batch(prefix))
	proxy.Hold()
	fails("held")
	proxy.Unhold()
	if r := apply(t, s, batch(prefix, op(store.Begin, "t", "a")))[0]; r.Status != store.Claimed || r.Attempt != 1 {
		t.Errorf("afterwards: %+v", r)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, "--requirepass", "secret")
	admin := func() *redis.Client {
		o := server.Options()
		o.Password = "secret"
		c := redis.NewClient(o)
		t.Cleanup(func() { _ = c.Close() })
		return c
	}()
	ctx := context.Background()
	refused := func(what string, s store.Store, prefix, word string) {
		t.Helper()
		err := s.Apply(ctx, batch(prefix, op(store.Begin, "t", "a")))
		if err == nil || errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), word) {
			t.Errorf("%s: %v", what, err)
		}
	}
	refused("no password", redisstore.New(server.Client(t)), "p", "password")

	if err := admin.Do(ctx, "ACL", "SETUSER", "poor", "on", ">poor", "~mine:*", "+@all", "-config", "-info").Err(); err != nil {
		t.Fatal(err)
	}
	o := server.Options()
	o.Username, o.Password = "poor", "poor"
	poor := redis.NewClient(o)
	t.Cleanup(func() { _ = poor.Close() })
	s := redisstore.New(poor)
	refused("another's keys", s, "other", "~other:{*}:*")
	apply(t, s, batch("mine", op(store.Begin, "t", "a")))
	findings, err := s.Verify(ctx, "mine")
	if err != nil || len(findings) != 1 || !strings.Contains(findings[0].String(), "does not allow INFO") {
		t.Errorf("INFO is forbidden: %q, %v", findings, err)
	}

	full := redisstore.New(admin)
	apply(t, full, batch("p"))
	other := redistest.Start(t, private...)
	host, port, _ := strings.Cut(other.Addr(), ":")
	if err := admin.Do(ctx, "REPLICAOF", host, port).Err(); err != nil {
		t.Fatal(err)
	}
	testenv.Await(t, "the replica", func() bool {
		info, err := admin.Info(ctx, "replication").Result()
		return err == nil && strings.Contains(info, "master_link_status:up")
	})
	refused("a replica", full, "p", "primary")
	if _, err := full.Verify(ctx, "p"); err == nil || !strings.Contains(err.Error(), "replica") {
		t.Errorf("Verify of a replica: %v", err)
	}
}

func TestCameBackEmpty(t *testing.T) {
	server := redistest.Start(t, private...)
	c := server.Client(t)
	a, b := redisstore.New(c), redisstore.New(server.Client(t))
	ctx := context.Background()
	prefixes := []string{"p", "q"}
	type knower struct {
		s      store.Store
		prefix string
	}
	known := make(map[knower]int)
	notice := func(s store.Store, prefix string, token string) string { // if it is new
		t.Helper()
		x := batch(prefix, op(store.Begin, token, "a"))
		x.Notice, x.Losses = "left over", 100
		apply(t, s, x)
		k := knower{s, prefix}
		if (x.Losses == 0) != (x.Notice == "") {
			t.Errorf("%d losses, notice %q", x.Losses, x.Notice)
		}
		if x.Losses == known[k] {
			return ""
		}
		known[k] = x.Losses
		return x.Notice
	}
	quiet := func(when string) {
		t.Helper()
		for _, s := range []store.Store{a, b} {
			for _, p := range prefixes {
				if n := notice(s, p, "t"); n != "" {
					t.Errorf("%s, prefix %s: %s", when, p, n)
				}
			}
		}
	}
	alarmed := func(when string) {
		t.Helper()
		for i, s := range []store.Store{a, b} {
			for _, p := range prefixes {
				if n := notice(s, p, "t"); !strings.Contains(n, "can be handled again") || !strings.Contains(n, strconv.Quote(p)) {
					t.Errorf("%s, process %d, prefix %s: %q", when, i, p, n)
				}
			}
		}
		quiet("after the alarm, " + when)
		if n := c.Exists(ctx, "p:{0}:%d", "q:{0}:%d").Val(); n != 2 {
			t.Errorf("%s: %d descriptors were made again", when, n)
		}
	}
	quiet("first contact")
	quiet("second contact")
	if err := c.FlushAll(ctx).Err(); err != nil {
		t.Fatal(err)
	}
	alarmed("after FLUSHALL")
	server.Restart()
	alarmed("after a restart")
	if n := notice(redisstore.New(c), "p", "t"); n != "" {
		t.Errorf("a process that has seen nothing: %s", n)
	}
}

func TestClusterNodeCameBackEmpty(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartCluster(t)
	s := redisstore.New(cluster.Client(t))
	var ops []store.Op
	for i := range 300 {
		ops = append(ops, op(store.Inspect, fmt.Sprint(i), ""))
	}
	x := batch("p", ops...)
	for range 2 {
		if apply(t, s, x); x.Notice != "" {
			t.Fatal(x.Notice)
		}
	}
	if err := cluster.Nodes[2].Client(t).FlushAll(context.Background()).Err(); err != nil {
		t.Fatal(err)
	}
	if apply(t, s, x); x.Notice == "" {
		t.Error("one node of three lost its data in silence")
	}
	losses := x.Losses
	if apply(t, s, x); x.Losses != losses {
		t.Errorf("counted again: %d, then %d", losses, x.Losses)
	}
}

// A process that asks an emptied server first, having seen nothing of what it lost, hides the loss
// from nobody.
func TestANewcomerHidesNoLoss(t *testing.T) {
	server := redistest.Start(t, private...)
	cluster := redistest.StartCluster(t)
	for _, v := range []struct {
		name          string
		old, newcomer store.Store
		lose          func()
	}{
		{"one server", redisstore.New(server.Client(t)), redisstore.New(server.Client(t)), func() { do(t, server.Client(t), "FLUSHALL") }},
		{"a node beside the descriptor's", redisstore.New(cluster.Client(t)), redisstore.New(cluster.Client(t)), func() {
			home := cluster.Owner(t, cluster.Slot(t, "p:{0}:%d"))
			for _, node := range cluster.Nodes {
				if node != home {
					do(t, node.Client(t), "FLUSHALL")
					return
				}
			}
		}},
	} {
		begins, _ := everywhere("x")
		if apply(t, v.old, begins); begins.Losses != 0 {
			t.Fatalf("%s: at first: %s", v.name, begins.Notice)
		}
		v.lose()
		if apply(t, v.newcomer, begins); begins.Losses != 0 {
			t.Errorf("%s: the newcomer lost nothing: %s", v.name, begins.Notice)
		}
		if apply(t, v.old, begins); begins.Losses == 0 {
			t.Errorf("%s: the loss was hidden", v.name)
		}
	}
}

// A process whose call set a tag's epoch, and whose answer was lost, does not set the same one
// again on a server that came back empty: others have seen it there.
func TestALostAnswerHidesNoLoss(t *testing.T) {
	server := redistest.Start(t, private...)
	proxy := redistest.NewProxy(t, server.Addr())
	o := server.Options()
	o.Addr, o.MaxRetries = proxy.Addr(), -1
	far := redis.NewClient(o)
	t.Cleanup(func() { _ = far.Close() })
	unlucky, other := redisstore.New(far), redisstore.New(server.Client(t))
	apply(t, other, batch("q", op(store.Begin, "t", "a")))                // the script is loaded
	if _, err := unlucky.Incarnation(t.Context(), "p", "n"); err != nil { // the descriptor, and no epoch, is made
		t.Fatal(err)
	}

	begin := batch("p", op(store.Begin, "t", "a"))
	proxy.SwallowReply("evalsha")
	if err := unlucky.Apply(t.Context(), begin); !errors.Is(err, store.ErrUnavailable) {
		t.Fatal(err)
	}
	<-proxy.Swallowed()
	if apply(t, other, begin); begin.Losses != 0 {
		t.Fatalf("at first: %s", begin.Notice)
	}
	do(t, server.Client(t), "FLUSHALL")
	if apply(t, unlucky, begin); begin.Losses != 0 {
		t.Errorf("who has seen nothing lost nothing: %s", begin.Notice)
	}
	if apply(t, other, begin); begin.Losses == 0 {
		t.Error("the loss was hidden")
	}
}

func TestVerifyChangesNothing(t *testing.T) {
	c := redistest.Start(t, private...).Client(t)
	if _, err := redisstore.New(c).Verify(context.Background(), "p"); err != nil {
		t.Fatal(err)
	}
	if n := c.DBSize(context.Background()).Val(); n != 0 {
		t.Errorf("Verify made %d keys", n)
	}
}

func TestReplicas(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	primary := redistest.Start(t, "--repl-diskless-sync-delay", "0")
	host, port, _ := strings.Cut(primary.Addr(), ":")
	replica := redistest.Start(t, "--replicaof", host+" "+port)
	c := primary.Client(t)
	testenv.Await(t, "the replica", func() bool {
		info, err := c.Info(ctx, "replication").Result()
		return err == nil && strings.Contains(info, "state=online")
	})
	s := redisstore.New(c, redisstore.WithReplicas(1, 100*time.Millisecond))
	want(t, s, "p", store.Claimed, op(store.Begin, "t", "a"))
	first := batch("p", op(store.Commit, "t", "a"))
	testenv.Await(t, "the replica's first word", func() bool { return s.Apply(ctx, first) == nil })

	want(t, s, "p", store.Claimed, op(store.Begin, "u", "a"))
	replica.Pause()
	commit := batch("p", op(store.Commit, "u", "a"))
	// The second finds the token done and must not take that for an answer, not
	// on a connection that has written nothing either.
	for range 2 {
		if err := s.Apply(ctx, commit); !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "0 of 1 replicas") {
			t.Fatalf("while the replica is away: %v", err)
		}
	}
	other := redisstore.New(primary.Client(t), redisstore.WithReplicas(1, 100*time.Millisecond))
	if err := other.Apply(ctx, commit); !errors.Is(err, store.ErrUnavailable) {
		t.Fatalf("on another connection while the replica is away: %v", err)
	}
	want(t, s, "p", store.Claimed, op(store.Begin, "v", "a")) // claims do not wait
	// Whoever is told that it is done acks: then it must not be forgotten.
	told := batch("p", op(store.Begin, "u", "b"))
	if err := s.Apply(ctx, told); err != nil || !errors.Is(told.Replies[0].Err, store.ErrRefused) {
		t.Errorf("it holds up everything else: %v, %v", err, told.Replies)
	}
	told = batch("p", op(store.Begin, "w", "a"), op(store.Begin, "u", "b"))
	if err := s.Apply(ctx, told); err != nil {
		t.Fatal(err)
	}
	if fresh, done := told.Replies[0], told.Replies[1]; fresh.Status != store.Claimed || !errors.Is(done.Err, store.ErrRefused) || errors.Is(done.Err, store.ErrUnavailable) {
		t.Errorf("while the replica is away: a fresh token %+v, one whose completion was not confirmed %+v", fresh, done)
	}
	replica.Resume()
	testenv.Await(t, "the completion", func() bool { return s.Apply(ctx, commit) == nil })
	want(t, s, "p", store.Duplicate, op(store.Begin, "u", "b"))
	// WAIT is promised for writes of its own connection: a repeat is one too.
	if err := c.ConfigResetStat(ctx).Err(); err != nil {
		t.Fatal(err)
	}
	apply(t, s, commit)
	if info := c.Info(ctx, "commandstats").Val(); !strings.Contains(info, "cmdstat_set:calls=1,") {
		t.Errorf("a repeated completion wrote nothing:\n%s", info)
	}
	if n := replica.Client(t).DBSize(ctx).Val(); n < 5 {
		t.Errorf("%d keys on the replica", n)
	}
}

// What a failover must not undo is answered when replicas have it, also where it is repeated.
func TestReplicasConfirm(t *testing.T) {
	t.Parallel()
	primary := redistest.Start(t, "--repl-diskless-sync-delay", "0")
	replica := primary.StartReplica(t)
	s := redisstore.New(primary.Client(t), redisstore.WithReplicas(1, 100*time.Millisecond))
	begin, commit := op(store.Begin, "t", "a"), op(store.Commit, "t", "a")
	issue := op(store.Issue, "t", "")
	cases := []struct {
		name  string
		setup []store.Op
		op    store.Op
		waits bool
	}{
		{"Begin", nil, begin, false},
		{"Renew", []store.Op{begin}, op(store.Renew, "t", "a"), false},
		{"Release", []store.Op{begin}, op(store.Release, "t", "a"), false},
		{"Inspect", []store.Op{begin}, op(store.Inspect, "t", ""), false},
		{"Commit", []store.Op{begin}, commit, true},
		{"Bury", []store.Op{begin}, op(store.Bury, "t", "a"), true},
		{"Spend", nil, op(store.Spend, "t", "a"), true},
		{"Forget", []store.Op{begin, commit}, op(store.Forget, "t", "f"), true},
		{"Issue", nil, issue, true},
		{"Check", []store.Op{issue}, op(store.Check, "t", "a"), true},
	}
	for _, tt := range cases {
		testenv.Await(t, "the replica to confirm "+tt.name+"'s setup", func() bool {
			return s.Apply(t.Context(), batch(tt.name, tt.setup...)) == nil
		})
	}
	replica.Pause()
	defer replica.Resume()
	for _, tt := range cases {
		for range 2 {
			err := s.Apply(t.Context(), batch(tt.name, tt.op))
			if waits := errors.Is(err, store.ErrUnavailable); waits != tt.waits || !waits && err != nil {
				t.Errorf("%s while the replica is away: %v", tt.name, err)
			}
		}
	}
}

func TestReplicasOnACluster(t *testing.T) {
	t.Parallel()
	s := redisstore.New(redistest.StartCluster(t).Client(t), redisstore.WithReplicas(1, 10*time.Millisecond))
	var begins, commits []store.Op
	for i := range 100 {
		begins = append(begins, op(store.Begin, fmt.Sprint(i), "a"))
		commits = append(commits, op(store.Commit, fmt.Sprint(i), "a"))
	}
	apply(t, s, batch("p", begins...))
	for i, r := range apply(t, s, batch("p", commits...)) {
		if !errors.Is(r.Err, store.ErrUnavailable) || !strings.Contains(r.Err.Error(), "0 of 1 replicas") {
			t.Fatalf("operation %d, without replicas: %v", i, r.Err)
		}
	}
	if rec := inspect(t, s, "p", "7"); rec.State != store.Done {
		t.Errorf("the completion stands on the primary as %v", rec.State)
	}
}

func TestRing(t *testing.T) {
	ring := redis.NewRing(&redis.RingOptions{Addrs: map[string]string{
		"a": redistest.Start(t, private...).Addr(), "b": redistest.Start(t, private...).Addr(),
	}})
	t.Cleanup(func() { _ = ring.Close() })
	s := redisstore.New(ring)
	var ops []store.Op
	for i := range 200 {
		ops = append(ops, op(store.Begin, fmt.Sprint(i), "a"))
	}
	for _, status := range []store.Status{store.Claimed, store.Claimed} {
		for _, r := range apply(t, s, batch("p", ops...)) {
			if r.Status != status || r.Attempt != 1 {
				t.Fatalf("%+v", r)
			}
		}
	}
	if _, err := s.Verify(context.Background(), "p"); err != nil {
		t.Error(err)
	}
}
