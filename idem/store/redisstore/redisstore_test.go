package redisstore_test

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/redisstore"
	"github.com/idemq/idemq/internal/redistest"
	"github.com/idemq/idemq/internal/testenv"
)

// The tests wait, for leases to run out and replicas to come, far more than they compute.
func TestMain(m *testing.M) {
	if err := flag.Set("test.parallel", "8"); err != nil { // the command line's comes later, and wins
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

// private has the server be the test's own: an option that changes nothing.
var private = []string{"--maxclients", "200"}

const group = "g"

func batch(prefix string, ops ...store.Op) *store.Batch {
	return &store.Batch{
		Prefix: prefix, Lease: time.Minute, Retention: time.Hour, CheckWithin: time.Minute, Ops: ops,
	}
}

// op is an operation under a claim id like a guard's, which ends in a count.
func op(k store.Kind, token, claim string) store.Op {
	if claim != "" && len(claim) < 6 {
		claim = fmt.Sprintf("%s-%06d", claim, claim[0])
	}
	return store.Op{Kind: k, Group: group, Token: token, Claim: claim, Attempt: 1}
}

// apply executes operations and returns the replies.
func apply(t testing.TB, s store.Store, b *store.Batch) []store.Reply {
	t.Helper()
	if err := s.Apply(context.Background(), b); err != nil {
		t.Fatal(err)
	}
	return b.Replies
}

// want executes one operation.
func want(t testing.TB, s store.Store, prefix string, status store.Status, o store.Op) store.Reply {
	t.Helper()
	r := apply(t, s, batch(prefix, o))[0]
	if r.Err != nil || r.Status != status {
		t.Fatalf("kind %d of %q was answered %d, %v; want %d", o.Kind, o.Token, r.Status, r.Err, status)
	}
	return r
}

func inspect(t testing.TB, s store.Store, prefix, token string) *store.Record {
	t.Helper()
	return want(t, s, prefix, store.OK, op(store.Inspect, token, "")).Record
}

func TestNilClient(t *testing.T) {
	var typed *redis.Client
	for name, s := range map[string]*redisstore.Store{"nil": redisstore.New(nil), "typed nil": redisstore.New(typed)} {
		if err := s.Apply(context.Background(), batch("p")); err == nil || !strings.Contains(err.Error(), "client is nil") {
			t.Errorf("%s: Apply: %v", name, err)
		}
		if _, err := s.Incarnation(context.Background(), "p", "n"); err == nil {
			t.Errorf("%s: Incarnation succeeded", name)
		}
		if _, err := s.Verify(context.Background(), "p"); err == nil || errors.Is(err, store.ErrUnavailable) {
			t.Errorf("%s: Verify: %v", name, err)
		}
	}
}

func TestSettings(t *testing.T) {
	c := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	defer c.Close()
	ring := redis.NewRing(&redis.RingOptions{})
	defer ring.Close()
	for _, tt := range []struct {
		s    *redisstore.Store
		word string
	}{
		{redisstore.New(c, redisstore.WithTags(0)), "WithTags(0)"},
		{redisstore.New(c, redisstore.WithReplicas(1, 0)), "WithReplicas(1, 0s)"},
		{redisstore.New(c, redisstore.WithReplicas(-1, time.Second)), "WithReplicas(-1, 1s)"},
		{redisstore.New(ring, redisstore.WithReplicas(1, time.Second)), "*redis.Ring"},
	} {
		err := tt.s.Apply(context.Background(), batch("p"))
		if err == nil || !strings.Contains(err.Error(), tt.word) || errors.Is(err, store.ErrUnavailable) {
			t.Errorf("%s: %v", tt.word, err)
		}
	}
}

func TestManyOperations(t *testing.T) {
	s := redisstore.New(redistest.Start(t).Client(t))
	prefix := rand.Text()
	const tokens = 1700
	var ops []store.Op
	for i := range tokens {
		token := fmt.Sprint("token ", i)
		ops = append(ops, op(store.Begin, token, "a"), op(store.Release, token, "a"))
	}
	// The second claims are in other calls than the first.
	for i := range tokens {
		ops = append(ops, op(store.Begin, fmt.Sprint("token ", i), "b"))
	}
	for i, r := range apply(t, s, batch(prefix, ops...)) {
		switch {
		case i >= 2*tokens:
			if r.Status != store.Claimed || r.Attempt != 2 {
				t.Fatalf("reply %d: %+v", i, r)
			}
		case i%2 == 0:
			if r.Status != store.Claimed || r.Attempt != 1 {
				t.Fatalf("reply %d: %+v", i, r)
			}
		case r.Status != store.OK:
			t.Fatalf("reply %d: %+v", i, r)
		}
	}
}

func TestEmptyBatchReadsTheClock(t *testing.T) {
	s := redisstore.New(redistest.Start(t).Client(t))
	b := batch(rand.Text())
	b.Replies = make([]store.Reply, 3)
	apply(t, s, b)
	if b.Now.IsZero() || len(b.Replies) != 0 {
		t.Fatalf("now %v, %d replies", b.Now, len(b.Replies))
	}
}

// The record of a token done at its first attempt is a number, which Redis keeps without a
// string. What it has left of the claim id is enough for the claim's own repeats, also once the
// token is forgotten.
func TestRecordsAreShort(t *testing.T) {
	c := redistest.Start(t).Client(t)
	s := redisstore.New(c)
	ctx := context.Background()
	const (
		first, second, other = "aaaaaaaaaaaa1000001", "bbbbbbbbbbbb1000002", "cccccccccccc1000003"
		likeFirst            = "dddddddddddd2000001"
	)
	for _, tt := range []struct {
		name   string
		before []store.Op // the last completes the token
		claim  string     // as Inspect shows it
		number bool
	}{
		{"the usual", []store.Op{op(store.Begin, "t", first), op(store.Commit, "t", first)}, "~000001", true},
		{"released in between", []store.Op{op(store.Begin, "t", first), op(store.Release, "t", first), op(store.Commit, "t", first)}, "~000001", true},
		{"never claimed here", []store.Op{op(store.Commit, "t", first)}, "~000001", true},
		{"five digits", []store.Op{op(store.Begin, "t", "a00001"), op(store.Commit, "t", "a00001")}, "a00001", false},
		{"five digits and a sign", []store.Op{op(store.Begin, "t", "a-00001"), op(store.Commit, "t", "a-00001")}, "a-00001", false},
		{"spent, which is asked for again by the whole id", []store.Op{op(store.Spend, "t", first)}, first, false},
	} {
		// Of the longer one the lease is so little that the completion is one command.
		for _, retention := range []time.Duration{time.Hour, 100 * time.Hour} {
			t.Run(fmt.Sprintf("%s, kept for %v", tt.name, retention), func(t *testing.T) {
				prefix := rand.Text()
				own := tt.before[0].Claim
				for _, o := range tt.before {
					b := batch(prefix, o)
					b.Retention = retention
					if r := apply(t, s, b)[0]; r.Err != nil || r.Status != store.Claimed && r.Status != store.OK {
						t.Fatalf("kind %d: %+v", o.Kind, r)
					}
				}
				key := keysOf(t, c, prefix, ":g:")[0]
				if encoding := c.ObjectEncoding(ctx, key).Val(); (encoding == "int") != tt.number {
					t.Errorf("%q is kept as %s", c.Get(ctx, key).Val(), encoding)
				}
				if r := inspect(t, s, prefix, "t"); r.State != store.Done || r.Claim != tt.claim || time.Since(r.At).Abs() > time.Minute {
					t.Errorf("%+v", r)
				}
				want(t, s, prefix, store.OK, op(store.Commit, "t", own))
				want(t, s, prefix, store.Lost, op(store.Commit, "t", second))
				if tt.number { // nothing but its end is known
					want(t, s, prefix, store.OK, op(store.Commit, "t", likeFirst))
				}
				if r := want(t, s, prefix, store.Duplicate, op(store.Begin, "t", second)); r.Attempt != 1 || time.Since(r.At).Abs() > time.Minute {
					t.Errorf("%+v", r)
				}
				want(t, s, prefix, store.OK, op(store.Forget, "t", other))
				want(t, s, prefix, store.Lost, op(store.Begin, "t", own))
				if tt.number {
					want(t, s, prefix, store.Lost, op(store.Begin, "t", likeFirst))
				}
				if r := want(t, s, prefix, store.Claimed, op(store.Begin, "t", second)); r.Attempt != 2 {
					t.Errorf("%+v", r)
				}
			})
		}
	}
}

// keysOf lists a prefix's keys that contain part.
func keysOf(t testing.TB, c *redis.Client, prefix, part string) []string {
	t.Helper()
	all, err := c.Keys(context.Background(), prefix+":*").Result()
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, k := range all {
		if strings.Contains(k, part) {
			found = append(found, k)
		}
	}
	return found
}

func TestDescriptorDisagrees(t *testing.T) {
	c := redistest.Start(t).Client(t)
	prefix := rand.Text()
	want(t, redisstore.New(c), prefix, store.Claimed, op(store.Begin, "t", "a"))
	other := redisstore.New(c, redisstore.WithTags(16))
	err := other.Apply(context.Background(), batch(prefix, op(store.Begin, "t", "b")))
	if err == nil || errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "64 tags") ||
		!strings.Contains(err.Error(), "16 tags") {
		t.Errorf("Apply with other tags: %v", err)
	}
	if _, err := other.Verify(context.Background(), prefix); err == nil {
		t.Error("Verify with other tags succeeded")
	}
	if _, err := other.Incarnation(context.Background(), prefix, "n"); err == nil {
		t.Error("Incarnation with other tags succeeded")
	}
	if err := c.Set(context.Background(), prefix+":{0}:%d", "2|new|x", 0).Err(); err != nil {
		t.Fatal(err)
	}
	err = redisstore.New(c).Apply(context.Background(), batch(prefix))
	if !errors.Is(err, store.ErrNewer) {
		t.Errorf("with a newer descriptor: %v", err)
	}
}

func TestTTL(t *testing.T) {
	c := redistest.Start(t).Client(t)
	s := redisstore.New(c)
	prefix := rand.Text()
	ctx := context.Background()
	want(t, s, prefix, store.Claimed, op(store.Begin, "t", "a"))
	want(t, s, prefix, store.OK, op(store.Issue, "i", ""))
	if d := c.PTTL(ctx, keysOf(t, c, prefix, ":g:")[0]).Val(); d < time.Hour || d > time.Hour+time.Minute {
		t.Errorf("in progress: kept for %v", d)
	}
	want(t, s, prefix, store.OK, op(store.Commit, "t", "a"))
	if d := c.PTTL(ctx, keysOf(t, c, prefix, ":g:")[0]).Val(); d < time.Hour-time.Minute || d > time.Hour {
		t.Errorf("done: kept for %v", d)
	}
	if d := c.PTTL(ctx, keysOf(t, c, prefix, ":%i:")[0]).Val(); d < 50*time.Second || d > time.Minute {
		t.Errorf("issued: kept for %v", d)
	}
	want(t, s, prefix, store.Claimed, op(store.Check, "i", "a"))
	if d := c.PTTL(ctx, keysOf(t, c, prefix, ":%i:")[0]).Val(); d < store.CheckMemory-10*time.Second {
		t.Errorf("spent: kept for %v", d)
	}
	if d := c.PTTL(ctx, prefix+":{0}:%d").Val(); d != -1 {
		t.Errorf("the descriptor expires: %v", d)
	}
}

func TestCommandsPerMessage(t *testing.T) {
	c := redistest.Start(t, private...).Client(t)
	s := redisstore.New(c)
	ctx := context.Background()
	want(t, s, "p", store.Claimed, op(store.Begin, "warm", "a"))
	want(t, s, "p", store.OK, op(store.Commit, "warm", "a"))
	if err := c.ConfigResetStat(ctx).Err(); err != nil {
		t.Fatal(err)
	}
	const n = 100
	for _, retention := range []time.Duration{time.Hour, 100 * time.Hour} {
		var begins, commits []store.Op
		for i := range n {
			token := fmt.Sprint(retention, i)
			begins = append(begins, op(store.Begin, token, "a-000001"))
			commits = append(commits, op(store.Commit, token, "a-000001"))
		}
		for _, ops := range [][]store.Op{begins, commits} {
			b := batch("p", ops...)
			b.Retention = retention
			apply(t, s, b)
		}
	}
	info, err := c.Info(ctx, "commandstats").Result()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"cmdstat_evalsha:calls=4,",
		"cmdstat_set:calls=400,", // a Begin is one SET
		"cmdstat_get:calls=104,", // a Commit is a GET and a SET, and where a lease is little a SET; the epoch four times
		"cmdstat_time:calls=4,",
	} {
		if !strings.Contains(info, want) {
			t.Errorf("no %q in\n%s", want, info)
		}
	}
}

func TestNoScript(t *testing.T) {
	t.Parallel()
	t.Run("single", func(t *testing.T) {
		c := redistest.Start(t, private...).Client(t)
		s := redisstore.New(c)
		flushScripts(t, c)
		want(t, s, "p", store.Claimed, op(store.Begin, "t", "a"))
		flushScripts(t, c)
		want(t, s, "p", store.OK, op(store.Commit, "t", "a"))
		flushScripts(t, c)
		if _, err := s.Incarnation(context.Background(), "p", "n"); err != nil {
			t.Error(err)
		}
		flushScripts(t, c)
		if _, err := s.Verify(context.Background(), "p"); err != nil {
			t.Error(err)
		}
	})
	t.Run("cluster", func(t *testing.T) {
		cluster := redistest.StartCluster(t)
		s := redisstore.New(cluster.Client(t))
		var ops []store.Op
		for i := range 200 {
			ops = append(ops, op(store.Begin, fmt.Sprint(i), "a"))
		}
		for _, r := range apply(t, s, batch("p", ops...)) {
			if r.Status != store.Claimed {
				t.Fatalf("%+v", r)
			}
		}
		flushScripts(t, cluster.Nodes[1].Client(t))
		for _, r := range apply(t, s, batch("p", ops...)) {
			if r.Status != store.Claimed || r.Attempt != 1 {
				t.Fatalf("one node has lost its scripts: %+v", r)
			}
		}
	})
}

func flushScripts(t *testing.T, c *redis.Client) {
	t.Helper()
	if err := c.ScriptFlush(context.Background()).Err(); err != nil {
		t.Fatal(err)
	}
}

func TestCrossSlot(t *testing.T) {
	t.Parallel()
	// A client of one node, of a cluster of one node.
	server := redistest.Start(t, "--cluster-enabled", "yes")
	c := server.Client(t)
	ctx := context.Background()
	if err := c.Do(ctx, "CLUSTER", "ADDSLOTSRANGE", 0, 16383).Err(); err != nil {
		t.Fatal(err)
	}
	testenv.Await(t, "the cluster", func() bool {
		return c.Set(ctx, "k", "v", 0).Err() == nil
	})
	s := redisstore.New(c)
	for range 2 {
		var ops []store.Op
		for i := range 100 {
			ops = append(ops, op(store.Begin, fmt.Sprint(i), "a"))
		}
		for _, r := range apply(t, s, batch("p", ops...)) {
			if r.Status != store.Claimed || r.Attempt != 1 {
				t.Fatalf("%+v", r)
			}
		}
	}
}

func TestFull(t *testing.T) {
	c := redistest.Start(t, "--maxmemory-policy", "noeviction").Client(t)
	s := redisstore.New(c)
	ctx := context.Background()
	for _, token := range []string{"commit", "release", "renew", "bury", "again"} {
		want(t, s, "p", store.Claimed, op(store.Begin, token, "a"))
	}
	want(t, s, "p", store.OK, op(store.Issue, "check", ""))
	if err := c.ConfigSet(ctx, "maxmemory", "1").Err(); err != nil {
		t.Fatal(err)
	}
	ops := []store.Op{
		op(store.Begin, "new", "b"),
		op(store.Commit, "commit", "a"),
		op(store.Release, "again", "a"),
		op(store.Begin, "again", "b"),
		op(store.Release, "release", "a"),
		op(store.Renew, "renew", "a"),
		op(store.Bury, "bury", "a"),
		op(store.Check, "check", "b"),
		op(store.Spend, "spent", "b"),
		op(store.Issue, "issued", ""),
		op(store.Inspect, "new", ""),
	}
	for i, r := range apply(t, s, batch("p", ops...)) {
		full := i == 0 || i == 3 || i == 8 || i == 9
		if errors.Is(r.Err, store.ErrFull) != full || !full && r.Status != store.OK && r.Status != store.Claimed {
			t.Errorf("operation %d at maxmemory: %+v", i, r)
		}
	}
	if r := apply(t, s, batch("p", op(store.Begin, "alone", "b")))[0]; !errors.Is(r.Err, store.ErrFull) {
		t.Errorf("a claim alone at maxmemory: %+v", r)
	}
	want(t, s, "p", store.OK, op(store.Release, "renew", "a"))
	// A process that starts now can still complete what it holds.
	want(t, redisstore.New(c), "fresh", store.OK, op(store.Commit, "t", "a"))
	if _, err := s.Incarnation(ctx, "p", "n"); err != nil {
		t.Error(err)
	}
	if err := c.ConfigSet(ctx, "maxmemory", "0").Err(); err != nil {
		t.Fatal(err)
	}
	for token, state := range map[string]store.State{
		"new": store.Absent, "commit": store.Done, "again": store.Released, "release": store.Released,
		"renew": store.Released, "bury": store.Dead, "spent": store.Absent,
	} {
		if rec := inspect(t, s, "p", token); rec.State != state {
			t.Errorf("%s is %v, want %v", token, rec.State, state)
		}
	}
	want(t, s, "p", store.Claimed, op(store.Begin, "again", "b"))
}

func TestUnreadable(t *testing.T) {
	c := redistest.Start(t).Client(t)
	s := redisstore.New(c)
	ctx := context.Background()
	kinds := []store.Kind{
		store.Begin, store.Commit, store.Release, store.Renew, store.Bury, store.Spend, store.Forget, store.Inspect,
	}
	own := op(store.Commit, "bad", "a").Claim
	damage := map[string]struct {
		do  func(key string) error
		err error
	}{
		"list":    {func(k string) error { c.Del(ctx, k); return c.LPush(ctx, k, "x").Err() }, store.ErrUnreadable},
		"garbage": {func(k string) error { return c.Set(ctx, k, "hello", 0).Err() }, store.ErrUnreadable},
		"empty":   {func(k string) error { return c.Set(ctx, k, "", 0).Err() }, store.ErrUnreadable},
		"cut":     {func(k string) error { return c.Set(ctx, k, "1p|a|1|0", 0).Err() }, store.ErrUnreadable},
		"state":   {func(k string) error { return c.Set(ctx, k, "1z|a|1", 0).Err() }, store.ErrUnreadable},
		"plain, newer": {func(k string) error {
			return c.Set(ctx, k, "2p|"+own+"|1|0|0|0||||1700000000000000|60000000|0|", 0).Err()
		}, store.ErrNewer},
		"newer": {func(k string) error { return c.Set(ctx, k, "2p|a|whatever", 0).Err() }, store.ErrNewer},
	}
	for name, d := range damage {
		t.Run(name, func(t *testing.T) {
			prefix := rand.Text()
			want(t, s, prefix, store.Claimed, op(store.Begin, "bad", "a"))
			key := keysOf(t, c, prefix, ":g:")[0]
			if err := d.do(key); err != nil {
				t.Fatal(err)
			}
			for _, k := range kinds {
				for _, only := range []bool{false, true} {
					b := batch(prefix, op(store.Begin, "before", "a"), op(k, "bad", "a"), op(store.Begin, "after", "a"))
					b.IssuedOnly = only
					if only {
						b.Ops = append([]store.Op{op(store.Issue, "before", ""), op(store.Issue, "after", "")}, b.Ops...)
					}
					r := apply(t, s, b)
					r = r[len(r)-3:]
					if !errors.Is(r[1].Err, d.err) || !strings.Contains(fmt.Sprint(r[1].Err), key) {
						t.Errorf("kind %d: %+v", k, r[1])
					}
					if r[0].Status != store.Claimed || r[2].Status != store.Claimed {
						t.Errorf("kind %d: its neighbours: %+v, %+v", k, r[0], r[2])
					}
				}
			}

			want(t, s, prefix, store.OK, op(store.Issue, "tok", ""))
			ikey := keysOf(t, c, prefix, ":%i:tok")[0]
			if err := d.do(ikey); err != nil {
				t.Fatal(err)
			}
			for _, k := range []store.Kind{store.Issue, store.Check, store.Inspect, store.Begin, store.Spend} {
				b := batch(prefix, op(k, "tok", "a"))
				b.IssuedOnly = true
				if r := apply(t, s, b)[0]; !errors.Is(r.Err, d.err) || !strings.Contains(fmt.Sprint(r.Err), ikey) {
					t.Errorf("kind %d of a bad issued token: %+v", k, r)
				}
			}
		})
	}
}

func TestIncarnation(t *testing.T) {
	c := redistest.Start(t, private...).Client(t)
	s := redisstore.New(c)
	ctx := context.Background()
	draw := func() uint64 {
		t.Helper()
		n, err := s.Incarnation(ctx, "p", "name")
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	first := draw()
	second := draw()
	if err := c.FlushAll(ctx).Err(); err != nil {
		t.Fatal(err)
	}
	if third := draw(); first >= second || second >= third {
		t.Errorf("%d, %d, and after the loss of all data %d", first, second, third)
	}
	key := keysOf(t, c, "p", ":%o:name")[0]
	if err := c.Set(ctx, key, "9000000000000000", 0).Err(); err != nil {
		t.Fatal(err)
	}
	if n := draw(); n != 9000000000000001 {
		t.Errorf("%d does not follow what was drawn", n)
	}
}
