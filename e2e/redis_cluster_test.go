package e2e_test

import (
	"context"
	"fmt"
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

	idemnats "github.com/idemq/idemq/consumers/nats"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store/redisstore"
	"github.com/idemq/idemq/internal/redistest"
	"github.com/idemq/idemq/internal/testenv"
)

const (
	clusterLease   = 10 * time.Second
	replicaTimeout = 200 * time.Millisecond
	tagsOfPrefix   = 64
)

// clusterSite is a broker, and the records in a Redis Cluster of three primaries and
// three replicas.
type clusterSite struct {
	*site
	cluster *redistest.Cluster
	waits   bool // completions wait for a replica
	journal clusterJournal
	crash   crash
}

// crash is what is known of the SIGKILL of a primary whose replica lagged.
type crash struct {
	severed    time.Time           // from then on the replica saw nothing
	killed     time.Time           // before SIGKILL was sent
	unpromoted time.Time           // when the replica was last seen to be one
	promoted   time.Time           // and when it was a primary for all
	owned      func(slot int) bool // the slots of the killed primary
	waited     int                 // completions that stood on it and were not acknowledged
	stood      map[string]string   // records on it, read just before
	survived   map[string]string   // records on the replica, read between SIGKILL and promotion
}

// run is one claim of a token, and what came of it.
type run struct {
	token     string
	consumer  int
	attempt   int
	claimed   time.Time
	started   time.Time
	ended     time.Time
	effect    bool
	committed time.Time // when the store had acknowledged the completion
}

// clusterJournal is the runs by token, in the order of their claims.
type clusterJournal struct {
	mu      sync.Mutex
	runs    map[string][]*run
	effects int
	commits int
	downs   int // outages begun
	away    time.Duration
	notices []string
	lost    int       // leases
	last    time.Time // claim or completion
	lagging bool
	held    int // handlers that outlast the promotion
}

// latest is the last run of a token by a consumer.
func (j *clusterJournal) latest(consumer int, token string) *run {
	for _, r := range slices.Backward(j.runs[token]) {
		if r.consumer == consumer {
			return r
		}
	}
	return &run{}
}

func (j *clusterJournal) observer(consumer int) idem.Observer {
	return idem.ObserverFunc(func(ev idem.Event) {
		now := time.Now()
		j.mu.Lock()
		defer j.mu.Unlock()
		switch ev.Kind {
		case idem.EventClaimed:
			j.runs[ev.Token] = append(j.runs[ev.Token], &run{token: ev.Token, consumer: consumer, attempt: ev.Attempt, claimed: now})
			j.last = now
		case idem.EventCommitted:
			j.latest(consumer, ev.Token).committed = now
			j.commits++
			j.last = now
		case idem.EventStoreDown:
			j.downs++
		case idem.EventStoreUp:
			j.away = max(j.away, ev.Wait)
		case idem.EventStoreNotice:
			if strings.Contains(ev.Text, "came back without") {
				j.notices = append(j.notices, ev.Text)
			}
		case idem.EventLeaseLost:
			j.lost++
		}
	})
}

// handler takes a moment, and a second for one token in forty, so that claims are held
// while the cluster changes. Of those that start while a replica lags, some take longer
// than the promotion.
func (j *clusterJournal) handler(consumer int) idemnats.Handler {
	return func(ctx context.Context, _ jetstream.Msg) error {
		c, _ := idem.FromContext(ctx)
		j.mu.Lock()
		r := j.latest(consumer, c.Token())
		r.started = time.Now()
		work := 2 * time.Millisecond
		switch order := orderOf(c.Token()); {
		case j.lagging && order%20 == 0 && j.held < 24:
			work = 7 * time.Second
			j.held++
		case order%40 == 0:
			work = time.Second
		}
		j.mu.Unlock()
		var err error
		select {
		case <-time.After(work):
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		j.mu.Lock()
		defer j.mu.Unlock()
		r.ended, r.effect = time.Now(), err == nil
		if r.effect {
			j.effects++
		}
		return err
	}
}

// orderOf is the number in an orderToken.
func orderOf(token string) (n int) {
	_, _ = fmt.Sscanf(token, "order-%d", &n)
	return n
}

// read calls f with the journal held.
func (j *clusterJournal) read(f func(*clusterJournal) bool) func() bool {
	return func() bool {
		j.mu.Lock()
		defer j.mu.Unlock()
		return f(j)
	}
}

// Messages flow while slots of the cluster that has the records move away and back, a
// primary is killed whose replica lags, and another is made a replica. Nothing is lost;
// what the killed primary had acknowledged, and its replica had not seen, happens again,
// and nothing else does; with WAIT no completion is among it. Afterwards every message is
// sent once more: whatever takes effect again was forgotten.
func TestRedisCluster(t *testing.T) {
	n, perSecond := 5_000, 400
	if isFull() {
		n, perSecond = 50_000, 1_500
	}
	for _, v := range []struct {
		name  string
		waits bool
	}{{"without WAIT", false}, {"with WAIT", true}} {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			s := &clusterSite{cluster: redistest.StartReplicatedCluster(t), site: newBroker(t, 5*time.Second), waits: v.waits}
			s.journal.runs = map[string][]*run{}
			began := time.Now()
			var stops []func()
			for i := range 3 {
				stops = append(stops, s.consume(s.clusterGuard(i), s.journal.handler(i), idemnats.Concurrency(32)))
			}
			var may atomic.Int64
			may.Store(int64(n * 45 / 100))
			published := s.flow(n, perSecond, &may)
			testenv.Await(t, "the first messages", s.journal.read(func(j *clusterJournal) bool { return j.effects > n/10 }))
			s.moveSlots()
			may.Store(int64(n * 85 / 100))
			s.killPrimary(n)
			s.failOver()
			may.Store(int64(n))
			copies := <-published
			s.settled()
			flowed := time.Since(began)
			for some := range slices.Chunk(orders(n), 1000) { // no more than the client lets be under way
				s.publish(some...)
			}
			s.settled()
			for _, stop := range stops {
				stop()
			}
			t.Logf("%d messages and %d copies in %v, then each once more", n, copies, flowed.Round(time.Second/10))
			s.account(n)
		})
	}
}

func orders(n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = orderToken(i)
	}
	return all
}

// clusterGuard is a guard on a client of its own, as a user would make it.
func (s *clusterSite) clusterGuard(consumer int) *idem.Guard {
	rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: s.cluster.Addrs(), ContextTimeoutEnabled: true})
	s.t.Cleanup(func() { _ = rdb.Close() })
	var opts []redisstore.Option
	if s.waits {
		opts = append(opts, redisstore.WithReplicas(1, replicaTimeout))
	}
	return idem.New(idem.WithStore(redisstore.New(rdb, opts...)), idem.WithPrefix(prefix), idem.WithLease(clusterLease),
		idem.WithObserver(s.journal.observer(consumer)))
}

// flow publishes n messages, no more than it may at the time, so that there are some for
// each thing that happens; and one in five of them again a little later. published
// receives how many were copies.
func (s *clusterSite) flow(n, perSecond int, may *atomic.Int64) (published chan int) {
	const ticksPerSecond = 20
	published = make(chan int, 1)
	publish := func(i int) {
		msg := nats.NewMsg(subject)
		idemnats.SetToken(msg, orderToken(i))
		if _, err := s.js.PublishMsgAsync(msg, jetstream.WithStallWait(time.Minute)); err != nil {
			s.t.Errorf("publish: %v", err)
		}
	}
	go func() {
		tick := time.NewTicker(time.Second / ticksPerSecond)
		defer tick.Stop()
		var again [ticksPerSecond / 4][]int // by the tick at which it is due
		copies := 0
		for i, ticks := 0, 0; i < n || slices.ContainsFunc(again[:], func(l []int) bool { return len(l) > 0 }); ticks++ {
			due := &again[ticks%len(again)]
			for _, k := range *due {
				publish(k)
				copies++
			}
			*due = (*due)[:0]
			for end := min(i+perSecond/ticksPerSecond, int(may.Load())); i < end; i++ {
				publish(i)
				if i%5 == 0 {
					*due = append(*due, i)
				}
			}
			<-tick.C
		}
		<-s.js.PublishAsyncComplete()
		published <- copies
	}()
	return published
}

func (s *clusterSite) settled() {
	s.t.Helper()
	testenv.Await(s.t, "all are settled", seldom(func() bool { return s.owed() == 0 }))
}

// slotsOf are the slots of a node that have records, in order.
func (s *clusterSite) slotsOf(node *redistest.Server) (all []int) {
	s.t.Helper()
	has := s.cluster.Slots(s.t, node)
	for tag := range tagsOfPrefix {
		if slot := s.slotOf(fmt.Sprint(tag)); has(slot) {
			all = append(all, slot)
		}
	}
	slices.Sort(all)
	return all
}

func (s *clusterSite) slotOf(tag string) int {
	s.t.Helper()
	return s.cluster.Slot(s.t, prefix+":{"+tag+"}:%e")
}

// moveSlots moves ranges of slots, one slot of each of which has records, away and back.
func (s *clusterSite) moveSlots() {
	s.t.Helper()
	home, away := s.cluster.Nodes[2], s.cluster.Nodes[0]
	began := time.Now()
	slots := s.slotsOf(home)
	slots = slots[:min(4, len(slots))]
	for _, to := range []*redistest.Server{away, home} {
		for _, slot := range slots {
			s.cluster.Move(s.t, slot-4, slot+4, to)
		}
	}
	s.t.Logf("nine slots around each of %v moved away and back in %v", slots, time.Since(began).Round(time.Millisecond))
}

// killPrimary kills a primary whose replica has seen nothing for a while.
func (s *clusterSite) killPrimary(n int) {
	t, c, x := s.t, s.cluster, &s.crash
	t.Helper()
	primary := c.Nodes[1]
	x.owned = c.Slots(t, primary)
	before := 0
	s.journal.read(func(j *clusterJournal) bool {
		before, j.lagging = j.commits, true
		return true
	})()
	x.severed = time.Now()
	replica := c.Sever(t, primary)
	if s.waits {
		testenv.Await(t, "completions to wait for the replica", seldom(func() bool {
			x.stood = s.records(primary)
			return s.waiting() > 0 && time.Since(x.severed) > 5*replicaTimeout
		}))
	} else {
		testenv.Await(t, "completions that the replica does not see", s.journal.read(func(j *clusterJournal) bool { return j.commits > before+n/20 }))
	}
	x.stood = s.records(primary)
	x.waited = s.waiting()
	x.killed = time.Now()
	c.Kill(t, primary)
	s.journal.read(func(j *clusterJournal) bool { j.lagging = false; return true })()
	replica.Resume()
	x.survived = s.records(replica)
	testenv.Await(t, "the promotion", func() bool {
		now := time.Now()
		if c.IsPrimary(replica) {
			return true
		}
		x.unpromoted = now
		return false
	})
	if x.unpromoted.IsZero() {
		t.Fatal("the replica was promoted before its records were read: the test shows nothing")
	}
	c.AwaitPromotion(t, replica)
	x.promoted = time.Now()
	if s.waits {
		c.Rejoin(t, primary) // nothing completes without it
	}
	testenv.Await(t, "work to go on", s.journal.read(func(j *clusterJournal) bool { return j.last.After(x.promoted) }))
	t.Logf("SIGKILL %v after the replica saw nothing more; promotion %v later; work goes on %v after that",
		x.killed.Sub(x.severed).Round(time.Millisecond), x.promoted.Sub(x.killed).Round(time.Millisecond), time.Since(x.promoted).Round(time.Millisecond))
	if !s.waits {
		c.Rejoin(t, primary)
	}
}

// failOver makes a primary a replica, by CLUSTER FAILOVER.
func (s *clusterSite) failOver() {
	s.t.Helper()
	commits := func() (n int) {
		s.journal.read(func(j *clusterJournal) bool { n = j.commits; return true })()
		return n
	}
	began := time.Now()
	s.cluster.Failover(s.t, s.cluster.Partner(s.cluster.Nodes[0]))
	before := commits()
	testenv.Await(s.t, "work after CLUSTER FAILOVER", func() bool { return commits() > before })
	s.t.Logf("CLUSTER FAILOVER: work goes on after %v", time.Since(began).Round(time.Millisecond))
}

// records reads the records of a node, a replica included, by token.
func (s *clusterSite) records(node *redistest.Server) map[string]string {
	s.t.Helper()
	ctx := s.t.Context()
	rdb := redis.NewClient(node.Options())
	defer rdb.Close()
	conn := rdb.Conn()
	defer conn.Close()
	if err := conn.Do(ctx, "READONLY").Err(); err != nil {
		s.t.Fatal(err)
	}
	keys, err := conn.Keys(ctx, prefix+":{*}:[^%]*").Result()
	if err != nil {
		s.t.Fatal(err)
	}
	all := make(map[string]string, len(keys))
	if len(keys) == 0 {
		return all
	}
	cmds, err := conn.Pipelined(ctx, func(p redis.Pipeliner) error {
		for _, k := range keys {
			p.Get(ctx, k)
		}
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	for i, k := range keys {
		v, _ := cmds[i].(*redis.StringCmd).Result()
		all[tokenOf(k)] = v
	}
	return all
}

// tokenOf is the token in a record's key, e2e:{tag}:group:token.
func tokenOf(key string) string { return key[strings.LastIndex(key, ":")+1:] }

// isDone knows both forms of a record that is done; see package redisstore.
func isDone(record string) bool {
	_, err := strconv.ParseUint(record, 10, 64)
	return err == nil || strings.HasPrefix(record, "1d|")
}

// waiting is how many completions stand on the primary and are not acknowledged.
func (s *clusterSite) waiting() (n int) {
	s.journal.mu.Lock()
	defer s.journal.mu.Unlock()
	for token, record := range s.crash.stood {
		if isDone(record) && !slices.ContainsFunc(s.journal.runs[token], func(r *run) bool { return !r.committed.IsZero() }) {
			n++
		}
	}
	return n
}

// slots are the slots of all tokens, as the cluster has them in the end.
func (s *clusterSite) slots() map[string]int {
	s.t.Helper()
	byTag, all := map[string]int{}, map[string]int{}
	for _, node := range s.cluster.Nodes {
		if !s.cluster.IsPrimary(node) {
			continue
		}
		keys, err := node.Client(s.t).Keys(s.t.Context(), prefix+":{*}:[^%]*").Result()
		if err != nil {
			s.t.Fatal(err)
		}
		for _, k := range keys {
			tag := k[strings.Index(k, "{")+1 : strings.Index(k, "}")]
			if _, ok := byTag[tag]; !ok {
				byTag[tag] = s.slotOf(tag)
			}
			all[tokenOf(k)] = byTag[tag]
		}
	}
	return all
}

// account holds the journal of n orders to the promise.
func (s *clusterSite) account(n int) {
	t, x, j := s.t, &s.crash, &s.journal
	t.Helper()
	slots := s.slots()
	var lost, effects, forgotten, completions, claims, leases, broken, overlaps int
	for _, token := range orders(n) {
		onKilled := x.owned(slots[token])
		var took []*run
		var before *run
		for _, r := range j.runs[token] {
			if before != nil && !r.started.IsZero() && r.started.Before(before.ended) {
				overlaps++
				if why := s.explain(before, r, onKilled); why != forgotClaim && why != leaseRanOut {
					t.Errorf("%s: two handlers at once, unexplained\n\t%+v\n\t%+v\n\ton the replica: %q", token, *before, *r, x.survived[token])
				}
			}
			if !r.started.IsZero() && (before == nil || r.ended.After(before.ended)) {
				before = r
			}
			if r.effect {
				took = append(took, r)
			}
			if !r.committed.IsZero() && r.committed.Before(x.unpromoted) && onKilled && !isDone(x.survived[token]) {
				forgotten++
				if r.committed.Before(x.severed) {
					t.Errorf("%s: acknowledged %v before the replica was severed, and not there", token, x.severed.Sub(r.committed))
				}
			}
		}
		effects += len(took)
		if len(took) == 0 {
			lost++
			t.Errorf("%s is lost", token)
		}
		for i := 1; i < len(took); i++ {
			switch s.explain(took[i-1], took[i], onKilled) {
			case forgotCompletion:
				completions++
			case forgotClaim:
				claims++
			case leaseRanOut:
				leases++
			default:
				broken++
				t.Errorf("%s (slot %d): took effect twice, unexplained\n\t%+v\n\t%+v\n\ton the killed primary: %q\n\ton the replica: %q",
					token, slots[token], *took[i-1], *took[i], x.stood[token], x.survived[token])
			}
		}
	}
	t.Logf("%d messages, %d effects, %d lost; %d completions acknowledged by the killed primary were not on its replica; doubled: %d for these, %d for a claim that was not on it, %d for a lease that ran out, %d unexplained; %d times two handlers at once; %d completions stood on the killed primary and were not acknowledged; %d outages seen by 3 consumers, the longest %v; %d leases lost",
		n, effects, lost, forgotten, completions, claims, leases, broken, overlaps, x.waited, j.downs, j.away.Round(time.Millisecond), j.lost)
	if len(j.notices) > 0 {
		t.Errorf("a failover was taken for a store that came back empty: %q", j.notices)
	}
	if letters := len(s.letters()); letters > 0 {
		t.Errorf("%d dead letters", letters)
	}
	switch {
	case completions != forgotten:
		t.Errorf("%d completions were forgotten, and %d took effect again: each message was sent again", forgotten, completions)
	case s.waits && forgotten > 0:
		t.Errorf("%d completions were acknowledged without the replica", forgotten)
	case !s.waits && forgotten == 0, s.waits && x.waited == 0:
		t.Error("nothing was at stake when the primary was killed: the test shows nothing")
	}
}

// The reasons for which an effect may happen again.
type reason int

const (
	unexplained      reason = iota
	forgotCompletion        // the killed primary had acknowledged it, its replica had not seen it
	forgotClaim             // the same of a claim that was not completed
	leaseRanOut             // the store was away for longer
)

// explain says why a token was handled again after before.
func (s *clusterSite) explain(before, again *run, onKilled bool) reason {
	x := &s.crash
	inWindow := func(at time.Time) bool { return at.After(x.severed) && at.Before(x.unpromoted) }
	acknowledged := !before.committed.IsZero() && before.committed.Before(again.claimed)
	switch {
	case acknowledged && onKilled && inWindow(before.committed) && !isDone(x.survived[before.token]) && again.claimed.After(x.unpromoted):
		return forgotCompletion
	case !acknowledged && onKilled && inWindow(before.claimed) && x.survived[before.token] == "" && again.claimed.After(x.unpromoted):
		return forgotClaim
	case !acknowledged && again.attempt > before.attempt && again.claimed.Sub(before.claimed) > clusterLease:
		return leaseRanOut
	}
	return unexplained
}
