package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/redis/go-redis/v9"

	"github.com/idemq/idemq/consumers"
	idemnats "github.com/idemq/idemq/consumers/nats"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/internal/natstest"
	"github.com/idemq/idemq/internal/redistest"
	"github.com/idemq/idemq/internal/testenv"
)

const (
	stream  = "ORDERS"
	subject = "orders.new"
	dead    = "orders-dead"
	durable = "billing"
	prefix  = "e2e"
	group   = stream + "/" + durable
)

// site is a real NATS server and a real Redis, with a stream, a durable consumer and a
// dead-letter stream.
type site struct {
	t     *testing.T
	nats  *natstest.Server
	redis *redistest.Server
	js    jetstream.JetStream
	rdb   *redis.Client
	cons  jetstream.Consumer
}

func newSite(t *testing.T, ackWait time.Duration) *site {
	t.Helper()
	rs := redistest.Start(t)
	s := newBroker(t, ackWait)
	s.redis, s.rdb = rs, rs.Client(t)
	return s
}

// newBroker is a site without a Redis.
func newBroker(t *testing.T, ackWait time.Duration) *site {
	t.Helper()
	s := &site{t: t, nats: natstest.Start(t)}
	s.js = s.nats.JetStream(t)
	for _, cfg := range []jetstream.StreamConfig{
		{Name: stream, Subjects: []string{subject}, Duplicates: 100 * time.Millisecond},
		{Name: "DEAD", Subjects: []string{dead}},
	} {
		if _, err := s.js.CreateStream(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	s.cons, err = s.js.CreateConsumer(t.Context(), stream, jetstream.ConsumerConfig{
		Durable: durable, AckPolicy: jetstream.AckExplicitPolicy, AckWait: ackWait, MaxDeliver: -1, MaxAckPending: 5000,
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *site) publish(tokens ...string) {
	s.t.Helper()
	for _, token := range tokens {
		msg := nats.NewMsg(subject)
		msg.Data = []byte("order " + token)
		idemnats.SetToken(msg, token)
		if _, err := s.js.PublishMsgAsync(msg, jetstream.WithStallWait(time.Minute)); err != nil {
			s.t.Fatal(err)
		}
	}
	<-s.js.PublishAsyncComplete()
}

// owed counts what is stored and not settled. The server tells a consumer of a message a
// moment after it has stored it: NumPending may lag.
func (s *site) owed() int {
	s.t.Helper()
	orders, err := s.js.Stream(s.t.Context(), stream)
	if err != nil {
		s.t.Fatal(err)
	}
	info, err := s.cons.Info(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	last := orders.CachedInfo().State.LastSeq
	untold := last - min(info.Delivered.Stream, last)
	return max(int(info.NumPending), int(untold)) + info.NumAckPending
}

func (s *site) redelivered() int {
	s.t.Helper()
	info, err := s.cons.Info(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	return info.NumRedelivered
}

// letters returns the dead-letter copies.
func (s *site) letters() []*jetstream.RawStreamMsg {
	s.t.Helper()
	d, err := s.js.Stream(s.t.Context(), "DEAD")
	if err != nil {
		s.t.Fatal(err)
	}
	var all []*jetstream.RawStreamMsg
	for seq := uint64(1); seq <= d.CachedInfo().State.LastSeq; seq++ {
		m, err := d.GetMsg(s.t.Context(), seq)
		if err != nil {
			s.t.Fatal(err)
		}
		all = append(all, m)
	}
	return all
}

func (s *site) guard(addr string, opts ...idem.Option) *idem.Guard {
	s.t.Helper()
	c := redis.NewClient(&redis.Options{
		Addr: addr, ContextTimeoutEnabled: true, DialTimeout: 200 * time.Millisecond, ReadTimeout: 500 * time.Millisecond,
	})
	s.t.Cleanup(func() { _ = c.Close() })
	opts = append([]idem.Option{idem.WithRedis(c), idem.WithPrefix(prefix), idem.WithLease(time.Second)}, opts...)
	return idem.New(opts...)
}

// consume runs a consumer in this process until stop is called.
func (s *site) consume(g *idem.Guard, h idemnats.Handler, opts ...idemnats.Option) (stop func()) {
	s.t.Helper()
	opts = append([]idemnats.Option{idemnats.DeadLetter(s.js, dead), consumers.Backoff(time.Millisecond, 20*time.Millisecond)}, opts...)
	c, err := idemnats.NewConsumer(s.cons, g, h, opts...)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				s.t.Errorf("Run: %v", err)
			}
		})
	}
	s.t.Cleanup(stop)
	return stop
}

// ledger counts effects by token.
type ledger struct {
	mu sync.Mutex
	n  map[string]int
}

func (l *ledger) add(token string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.n == nil {
		l.n = map[string]int{}
	}
	l.n[token]++
}

// count is how many tokens had an effect.
func (l *ledger) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.n)
}

func (l *ledger) handler(ctx context.Context, _ jetstream.Msg) error {
	c, _ := idem.FromContext(ctx)
	l.add(c.Token())
	return nil
}

func (l *ledger) wantOnce(t *testing.T, tokens []string) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, token := range tokens {
		if l.n[token] != 1 {
			t.Errorf("%s: %d effects, want 1", token, l.n[token])
		}
	}
	if len(l.n) != len(tokens) {
		t.Errorf("effects of %d tokens, want %d", len(l.n), len(tokens))
	}
}

func tokens(name string, n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf("%s-%03d", name, i)
	}
	return all
}

// A process that is killed in the handler, again and again: the message comes back
// with attempt 2, 3, …, and is dead-lettered when its budget is used up. Messages
// claimed ahead behind it, and those handled beside it, are all handled.
func TestPoison(t *testing.T) {
	t.Parallel()
	for _, concurrency := range []int{1, 8} {
		t.Run(fmt.Sprintf("concurrency %d", concurrency), func(t *testing.T) {
			t.Parallel()
			s := newSite(t, 2*time.Second)
			innocent := tokens("innocent", 100)
			s.publish("poison-1")
			s.publish(innocent[:40]...)
			s.publish("poison-2")
			s.publish(innocent[40:]...)
			r := role{
				NATS: s.nats.URL(), Redis: s.redis.Addr(), Stream: stream, Durable: durable, Prefix: prefix, DeadTo: dead,
				Poison: []string{"poison-1", "poison-2"}, Work: time.Millisecond, Lease: time.Second, Budget: 4, Ahead: 100,
				Concurrency: concurrency,
			}
			stop := keepAlive(t, roleEnv, r)
			testenv.Await(t, "all are settled", func() bool { return s.owed() == 0 })
			killed := stop()

			effects, err := s.rdb.HGetAll(t.Context(), ledgerKey(prefix)).Result()
			if err != nil {
				t.Fatal(err)
			}
			again := 0
			for _, token := range innocent {
				n, _ := strconv.Atoi(effects[token])
				if n == 0 {
					t.Errorf("%s is lost", token)
				}
				again += max(n-1, 0)
			}
			attempts, err := s.rdb.LRange(t.Context(), attemptsKey(prefix), 0, -1).Result()
			if err != nil {
				t.Fatal(err)
			}
			last := map[string]int{}
			for _, a := range attempts {
				token, n, _ := strings.Cut(a, " ")
				attempt, _ := strconv.Atoi(n)
				if attempt <= last[token] {
					t.Errorf("%s started on attempt %d after %d", token, attempt, last[token])
				}
				last[token] = attempt
			}
			letters := s.letters()
			var buried []string
			for _, l := range letters {
				buried = append(buried, l.Header.Get(idem.Header))
				if reason := l.Header.Get(consumers.HeaderReason); reason != consumers.ReasonBudget {
					t.Errorf("reason %q", reason)
				}
			}
			slices.Sort(buried)
			if !slices.Equal(buried, r.Poison) {
				t.Fatalf("dead letters %q, want %q", buried, r.Poison)
			}
			t.Logf("%d processes killed; starts of the poison: %q; effects that happened again because their process was killed before they were recorded: %d of 100", killed, attempts, again)

			// Moved back by the broker's own means: published to the subject with its
			// headers. The cause is mended meanwhile.
			first := letters[0]
			token := first.Header.Get(idem.Header)
			r.Poison = nil
			stop = keepAlive(t, roleEnv, r)
			defer stop()
			s.publish(token) // a stray redelivery of the original
			testenv.Await(t, "the stray one is settled", func() bool { return s.owed() == 0 })
			if n, _ := s.rdb.HGet(t.Context(), ledgerKey(prefix), token).Int(); n != 0 {
				t.Errorf("a stray redelivery was handled")
			}
			back := nats.NewMsg(subject)
			back.Header, back.Data = first.Header, first.Data
			back.Header.Del(jetstream.MsgIDHeader)
			if _, err := s.js.PublishMsg(t.Context(), back); err != nil {
				t.Fatal(err)
			}
			testenv.Await(t, "the copy is settled", func() bool { return s.owed() == 0 })
			if n, _ := s.rdb.HGet(t.Context(), ledgerKey(prefix), token).Int(); n != 1 {
				t.Errorf("the copy that was moved back had %d effects, want 1", n)
			}
		})
	}
}

// The store away for ten times AckWait while messages wait and are handled.
func TestStoreAwayForLong(t *testing.T) {
	const ackWait = 500 * time.Millisecond
	s := newSite(t, ackWait)
	proxy := redistest.NewProxy(t, s.redis.Addr())
	all := tokens("order", 60)
	s.publish(all[:30]...)
	var l ledger
	var handled atomic.Int32
	stop := s.consume(s.guard(proxy.Addr()), func(ctx context.Context, m jetstream.Msg) error {
		if handled.Add(1) == 10 {
			proxy.Cut() // with this one in the handler, and others claimed
		}
		return l.handler(ctx, m)
	}, consumers.Budget(1))
	testenv.Await(t, "the store is away", func() bool { return handled.Load() >= 10 })
	s.publish(all[30:]...)
	requests, conns, began := proxy.Requests(), proxy.Conns(), time.Now()
	deadline := time.NewTimer(10 * ackWait)
	<-deadline.C
	if s.owed() == 0 {
		t.Error("everything is settled though the store is away")
	}
	down := time.Since(began)
	t.Logf("in %v without the store: %d connections tried, %d requests, %d handlers started", down.Round(time.Millisecond), proxy.Conns()-conns, proxy.Requests()-requests, handled.Load())
	if n := proxy.Conns() - conns; n > int(down/(20*time.Millisecond)) {
		t.Errorf("%d connections tried in %v: it spins", n, down)
	}
	proxy.Restore()
	testenv.Await(t, "all are settled", func() bool { return s.owed() == 0 })
	stop()
	l.wantOnce(t, all)
	if n := len(s.letters()); n != 0 {
		t.Errorf("%d dead letters: an outage spent a budget of one", n)
	}
	if n := s.redelivered(); n != 0 {
		t.Errorf("%d messages redelivered: AckWait passed", n)
	}
}

// Replies that get lost on their way from Redis, one after another, while messages are
// handled, duplicates among them.
func TestLostRepliesOnTheRoad(t *testing.T) {
	s := newSite(t, 5*time.Second)
	proxy := redistest.NewProxy(t, s.redis.Addr())
	all := tokens("order", 200)
	s.publish(all...)
	s.publish(all[:50]...)
	var l ledger
	lost := 0
	stop := s.consume(s.guard(proxy.Addr()), func(ctx context.Context, m jetstream.Msg) error {
		c, _ := idem.FromContext(ctx)
		if n := c.Attempt(); n != 1 {
			t.Errorf("%s: attempt %d, want 1: a lost reply was counted", c.Token(), n)
		}
		if lost%5 == 0 {
			proxy.SwallowReply("evalsha")
		}
		lost++
		return l.handler(ctx, m)
	}, consumers.WorkAhead(3))
	testenv.Await(t, "all are settled", func() bool { return s.owed() == 0 })
	stop()
	l.wantOnce(t, all)
}

// Each operation of a guard in turn, with the reply of its command lost once.
func TestLostReplyOfEachOperation(t *testing.T) {
	s := newSite(t, time.Minute)
	proxy := redistest.NewProxy(t, s.redis.Addr())
	g := s.guard(proxy.Addr()).Group("g")
	ctx := t.Context()
	lose := func(what string, f func()) {
		t.Helper()
		proxy.SwallowReply("evalsha")
		f()
		select {
		case <-proxy.Swallowed():
		default:
			t.Errorf("%s: no reply was lost: the test shows nothing", what)
		}
	}
	token, err := g.Token(ctx)
	if err != nil {
		t.Fatal(err)
	}
	lose("Check", func() {
		if pass, err := g.Check(ctx, token); !pass || err != nil {
			t.Errorf("Check: %v, %v, want true", pass, err)
		}
	})
	if pass, err := g.Check(ctx, token); pass || err != nil {
		t.Errorf("second Check: %v, %v", pass, err)
	}
	var c *idem.Claim
	lose("Begin", func() {
		if c, err = g.Begin(ctx, "a"); err != nil || c.Attempt() != 1 {
			t.Fatalf("Begin: %v, %v", c, err)
		}
	})
	lose("Release", func() {
		if err := c.Release(ctx); err != nil {
			t.Errorf("Release: %v", err)
		}
	})
	if c, err = g.Begin(ctx, "a"); err != nil || c.Spent() != 1 || c.Attempt() != 2 {
		t.Fatalf("after Release: %+v, %v", c, err)
	}
	proxy.SwallowReply("evalsha")
	select { // a renewal, which comes by itself
	case <-proxy.Swallowed():
	case <-time.After(10 * time.Second):
		t.Fatal("no renewal")
	}
	renewed := time.Now()
	testenv.Await(t, "two leases have passed", func() bool { return time.Since(renewed) > 2*time.Second })
	if err := context.Cause(c.Context()); err != nil {
		t.Errorf("the lease went with one lost reply: %v", err)
	}
	lose("Commit", func() {
		if err := c.Commit(ctx); err != nil {
			t.Errorf("Commit: %v", err)
		}
	})
	if _, err := g.Begin(ctx, "a"); !errors.Is(err, idem.ErrDuplicate) {
		t.Errorf("after Commit: %v", err)
	}
	lose("Spend", func() {
		if _, err := g.Spend(ctx, "b"); err != nil {
			t.Errorf("Spend: %v: the first was taken for a duplicate", err)
		}
	})
	if c, err = g.Begin(ctx, "c"); err != nil {
		t.Fatal(err)
	}
	lose("Bury", func() {
		if err := c.Bury(ctx); err != nil {
			t.Errorf("Bury: %v", err)
		}
	})
	lose("Forget", func() {
		if err := g.Forget(ctx, "a"); err != nil {
			t.Errorf("Forget: %v", err)
		}
	})
}

// A handler that outlives its lease while its renewals are cut off: the message is
// handled by the one who took over, and the loser acks nothing.
func TestLoserOfALeaseAcksNothing(t *testing.T) {
	t.Parallel()
	s := newSite(t, time.Minute)
	proxy := redistest.NewProxy(t, s.redis.Addr())
	s.publish("a")
	g := s.guard(s.redis.Addr()).Group(group)
	cause := make(chan error, 1)
	stop := s.consume(s.guard(proxy.Addr()), func(ctx context.Context, _ jetstream.Msg) error {
		proxy.Cut()
		<-ctx.Done()
		cause <- context.Cause(ctx)
		return nil // it pays no heed
	})
	if err := <-cause; !errors.Is(err, idem.ErrLeaseLost) {
		t.Errorf("cause %v, want ErrLeaseLost", err)
	}
	var winner *idem.Claim
	testenv.Await(t, "the winner has the claim", func() bool {
		c, err := g.Begin(t.Context(), "a")
		winner = c
		return err == nil
	})
	proxy.Restore()
	settled := time.Now()
	testenv.Await(t, "the loser has asked again", func() bool { return time.Since(settled) > 3*time.Second })
	if n := s.owed(); n != 1 {
		t.Errorf("the broker owes %d messages: the loser settled it", n)
	}
	if err := winner.Commit(t.Context()); err != nil {
		t.Errorf("the winner's commit: %v", err)
	}
	testenv.Await(t, "it is acked as a duplicate", func() bool { return s.owed() == 0 })
	stop()
	rec, err := g.Inspect(t.Context(), "a")
	if err != nil || rec.State != store.Done || rec.Attempt != 2 {
		t.Errorf("record %+v, %v, want done by attempt 2", rec, err)
	}
}

// Records that cannot be read, tokens of every kind: none is lost, and no neighbour
// suffers.
func TestBadInput(t *testing.T) {
	s := newSite(t, time.Minute)
	g := s.guard(s.redis.Addr())
	long := strings.Repeat("x", idem.MaxTokenLen)
	odd := []string{long, "a\x00b", "{" + group + "}:a", "%7B:|", "\xff\xfe", "g:" + group + ":fine"}
	for _, token := range odd {
		c, err := g.Group(group).Begin(t.Context(), token)
		if err != nil {
			t.Errorf("Begin(%q): %v", token, err)
			continue
		}
		if err := c.Release(t.Context()); err != nil {
			t.Error(err)
		}
	}
	// Their records are found by their names, which end with the token.
	spoil := func(token string, set func(key string)) {
		c, err := g.Group(group).Begin(t.Context(), token)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		keys, err := s.rdb.Keys(t.Context(), "*:"+token).Result()
		if err != nil || len(keys) != 1 {
			t.Fatalf("keys of %q: %q, %v", token, keys, err)
		}
		set(keys[0])
	}
	spoil("wrong-type", func(key string) { s.rdb.Del(t.Context(), key); s.rdb.LPush(t.Context(), key, "x") })
	spoil("garbage", func(key string) { s.rdb.Set(t.Context(), key, "not a record", 0) })
	var bad []*nats.Msg
	for _, values := range [][]string{{""}, {strings.Repeat("x", 256)}, {"a", "b"}} {
		m := nats.NewMsg(subject)
		m.Header[idem.Header] = values
		bad = append(bad, m)
	}
	for _, m := range bad {
		if _, err := s.js.PublishMsg(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	s.publish("wrong-type", "garbage")
	fine := append([]string{"fine"}, long, "{"+group+"}:a", "%7B:|", "g:"+group+":fine")
	s.publish(fine...)
	var l ledger
	stop := s.consume(g, l.handler)
	testenv.Await(t, "all are settled", func() bool { return s.owed() == 0 })
	l.wantOnce(t, fine)
	var reasons []string
	for _, m := range s.letters() {
		reasons = append(reasons, m.Header.Get(consumers.HeaderReason))
	}
	slices.Sort(reasons)
	want := []string{consumers.ReasonToken, consumers.ReasonToken, consumers.ReasonToken, consumers.ReasonRecord, consumers.ReasonRecord}
	slices.Sort(want)
	if !slices.Equal(reasons, want) {
		t.Errorf("dead letters %q, want %q", reasons, want)
	}
	stop()

	// A newer version's record says that this process is out of date: it stops.
	spoil("newer", func(key string) {
		v, _ := s.rdb.Get(t.Context(), key).Result()
		s.rdb.Set(t.Context(), key, "9"+v[1:], 0)
	})
	s.publish("newer")
	c, err := idemnats.NewConsumer(s.cons, g, l.handler, idemnats.DeadLetter(s.js, dead))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := c.Run(ctx); !errors.Is(err, store.ErrNewer) {
		t.Errorf("Run: %v, want ErrNewer", err)
	}
	if n := s.owed(); n != 1 {
		t.Errorf("the broker owes %d messages, want the one that was not understood", n)
	}
}

// What a message and a duplicate cost in Redis commands.
func TestRedisCommands(t *testing.T) {
	const n = 5000
	s := newSite(t, time.Minute)
	g := s.guard(s.redis.Addr(), idem.WithLease(time.Minute))
	all := tokens("order", n)
	var l ledger
	count := func(what string, opts ...idemnats.Option) {
		before := s.scripts()
		s.publish(all...)
		stop := s.consume(g, l.handler, opts...)
		testenv.Await(t, what+" settled", func() bool { return s.owed() == 0 })
		stop()
		calls := s.scripts() - before
		t.Logf("%s: %d script calls for %d messages, %.3f each", what, calls, n, float64(calls)/n)
		if calls > 2*n {
			t.Errorf("%s: %d script calls, more than two a message", what, calls)
		}
	}
	count("handled messages")
	count("dropped duplicates")
	l.wantOnce(t, all)

	// One message at a time, nothing made ahead: the dearest way.
	all = tokens("single", n/10)
	before := s.scripts()
	l = ledger{}
	stop := s.consume(g, l.handler, consumers.WorkAhead(0))
	for i, token := range all {
		s.publish(token)
		testenv.Await(t, "one is settled", func() bool { return l.count() == i+1 && s.owed() == 0 })
	}
	stop()
	calls := s.scripts() - before
	t.Logf("one at a time: %d script calls for %d messages, %.3f each", calls, len(all), float64(calls)/float64(len(all)))
	if calls > 2*len(all)+4 { // a few are the start's
		t.Errorf("%d script calls for %d messages, want a claim and a completion each", calls, len(all))
	}
	l.wantOnce(t, all)
}

var scriptCalls = regexp.MustCompile(`cmdstat_(?:eval|evalsha|fcall):calls=(\d+)`)

// scripts counts the script calls that Redis has executed.
func (s *site) scripts() (n int) {
	s.t.Helper()
	info, err := s.rdb.Info(s.t.Context(), "commandstats").Result()
	if err != nil {
		s.t.Fatal(err)
	}
	for _, m := range scriptCalls.FindAllStringSubmatch(info, -1) {
		k, _ := strconv.Atoi(m[1])
		n += k
	}
	return n
}
