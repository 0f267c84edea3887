package idemkafka_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	idemkafka "github.com/idemq/idemq/consumers/kafka"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store/memstore"
	"github.com/idemq/idemq/internal/testenv"
)

// standing is what a fake broker answers about the offset of partition 0.
type standing struct {
	offset         int64 // -1: none
	partition, all *kerr.Error
	silent         bool
	closes         int // connections that are closed, instead of an answer
}

// asked is a fake broker with a topic of twenty messages, which is asked for a group's
// offset.
type asked struct {
	addrs  []string
	events *events

	mu     sync.Mutex
	answer standing
	n      int
	ends   int // questions about the ends of a partition while mute
	mute   bool
}

func newAsked(t *testing.T) *asked {
	t.Helper()
	fake, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "orders"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fake.Close)
	a := &asked{addrs: fake.ListenAddrs(), events: &events{}, answer: standing{offset: -1}}
	transport := &kafka.Transport{}
	w := &kafka.Writer{Addr: kafka.TCP(a.addrs...), Topic: "orders", RequiredAcks: kafka.RequireAll, BatchTimeout: time.Millisecond, Transport: transport}
	defer func() { _ = w.Close(); transport.CloseIdleConnections() }()
	if err := w.WriteMessages(t.Context(), make([]kafka.Message, 20)...); err != nil {
		t.Fatal(err)
	}
	fake.ControlKey(int16(kmsg.OffsetFetch), func(req kmsg.Request) (kmsg.Response, error, bool) {
		fake.KeepControl()
		a.mu.Lock()
		defer a.mu.Unlock()
		a.n++
		resp, ok := req.ResponseKind().(*kmsg.OffsetFetchResponse)
		if !ok || a.answer.silent {
			return nil, nil, ok
		}
		if a.answer.closes > 0 {
			a.answer.closes--
			return nil, errTest, true
		}
		p := kmsg.NewOffsetFetchResponseTopicPartition()
		p.Offset = a.answer.offset
		if e := a.answer.partition; e != nil {
			p.ErrorCode = e.Code
		}
		if e := a.answer.all; e != nil {
			resp.ErrorCode = e.Code
		}
		topic := kmsg.NewOffsetFetchResponseTopic()
		topic.Topic, topic.Partitions = "orders", append(topic.Partitions, p)
		resp.Topics = append(resp.Topics, topic)
		return resp, nil, true
	})
	fake.ControlKey(int16(kmsg.ListOffsets), func(kmsg.Request) (kmsg.Response, error, bool) {
		fake.KeepControl()
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.mute {
			a.ends++
		}
		return nil, nil, a.mute
	})
	return a
}

func (a *asked) is(s standing) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answer, a.n = s, 0
}

// beMute answers no question about the ends of a partition any more.
func (a *asked) beMute() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mute = true
}

func (a *asked) muteTimes() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ends
}

func (a *asked) times() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.n
}

// asks runs a consumer over a scripted Reader that names a's brokers. Run fetches when it
// returns.
func (a *asked) asks(t *testing.T, h idemkafka.Handler) (s *script, stop func()) {
	t.Helper()
	s = newScript()
	s.config.Brokers = a.addrs
	g := idem.New(idem.WithStore(memstore.New()), idem.WithObserver(a.events))
	c, err := idemkafka.NewConsumer(s, g, h, idemkafka.CommitEvery(1000, 20*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := startRun(ctx, c)
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	select {
	case s.errs <- errTest:
	case err := <-done:
		t.Fatal(err)
	}
	return s, stop
}

func (s *script) commits() (history []int64) {
	s.set(func() { history = slices.Clone(s.history) })
	return history
}

// What the group has committed is not moved back, unless nobody can have committed it:
// and whatever the brokers answer holds up no commit for long.
func TestCommitsBehindTheGroup(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		answer standing
		fetch  []int64 // each is done, and committed or left out, before the next
		want   []int64
	}{
		{name: "none", answer: standing{offset: -1}, fetch: []int64{4, 5}, want: []int64{5, 6}},
		{name: "behind", answer: standing{offset: 3}, fetch: []int64{4, 5}, want: []int64{5, 6}},
		{name: "as far", answer: standing{offset: 5}, fetch: []int64{4, 5}, want: []int64{6}},
		{name: "further", answer: standing{offset: 10}, fetch: []int64{4}},
		{name: "further, and messages come still", answer: standing{offset: 10}, fetch: []int64{4, 5, 6, 9, 10}, want: []int64{7, 11}},
		{name: "at the end", answer: standing{offset: 20}, fetch: []int64{4, 19}},
		{name: "beyond the end: of a topic of the same name", answer: standing{offset: 21}, fetch: []int64{4, 5}, want: []int64{5, 6}},
		{name: "its own, of an earlier assignment", answer: standing{offset: 5}, fetch: []int64{5, 2}, want: []int64{6, 3}},
		{name: "an error of the partition", answer: standing{offset: 10, partition: kerr.UnknownTopicOrPartition}, fetch: []int64{4}, want: []int64{5}},
		{name: "further, over connections that were closed", answer: standing{offset: 10, closes: 2}, fetch: []int64{4}},
		{name: "an error", answer: standing{offset: 10, all: kerr.NotCoordinator}, fetch: []int64{4}, want: []int64{5}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			a := newAsked(t)
			s, stop := a.asks(t, (&journal{}).handle)
			for i, offset := range c.fetch {
				a.is(c.answer)
				s.msgs <- at(0, offset, series("m", len(c.fetch))[i])
				testenv.Await(t, "the question", func() bool { return a.times() > 0 })
			}
			testenv.Await(t, "the commits", func() bool { return len(s.commits()) >= len(c.want) })
			stop()
			if got := s.commits(); !slices.Equal(got, c.want) {
				t.Errorf("committed %v, want %v", got, c.want)
			}
		})
	}
}

// Brokers that do not answer hold up one commit, for two seconds, and not each; that is
// told once.
func TestSilentBrokers(t *testing.T) {
	t.Parallel()
	a := newAsked(t)
	s, stop := a.asks(t, (&journal{}).handle)
	a.is(standing{silent: true})
	begun := time.Now()
	for i := range int64(10) {
		s.msgs <- at(0, i, series("m", 10)[i])
		testenv.Await(t, "the commit", func() bool { return s.offsets()[0] == i+1 })
	}
	if took := time.Since(begun); took > 8*time.Second {
		t.Errorf("10 commits took %v", took)
	}
	stop()
	if n := a.times(); n != 1 {
		t.Errorf("%d questions for 10 commits, the first of which was not answered", n)
	}
	if told := a.unanswered(); told != 1 {
		t.Errorf("told %d times, want once: %v", told, a.events.of(idem.EventWaiting))
	}
}

// unanswered is how often it was told that a question got no answer.
func (a *asked) unanswered() (n int) {
	for _, ev := range a.events.of(idem.EventWaiting) {
		if strings.Contains(ev.Err.Error(), "how far the group has committed") {
			n++
		}
	}
	return n
}

// That questions are not answered is told once an outage.
func TestUnansweredIsTold(t *testing.T) {
	t.Parallel()
	a := newAsked(t)
	s, stop := a.asks(t, (&journal{}).handle)
	next := int64(0)
	until := func(what string, done func() bool) {
		testenv.Await(t, what, func() bool {
			if done() {
				return true
			}
			s.msgs <- at(0, next, fmt.Sprint("m-", next)) // each gives a reason to ask
			next++
			return false
		})
	}
	for outages := range 2 {
		a.is(standing{offset: -1, closes: 1 << 30})
		until("several failures", func() bool { return a.times() > 10 })
		if told := a.unanswered(); told != outages+1 {
			t.Errorf("told %d times of %d outages", told, outages+1)
		}
		a.is(standing{offset: -1})
		until("an answer", func() bool { return a.times() > 0 })
	}
	testenv.Await(t, "the commit", func() bool { return s.offsets()[0] == next })
	stop()
}

// What was to be committed of an assignment that ended during the question is not: its
// partition is read from a lower offset by now, in a topic that was made again perhaps.
func TestRewindDuringTheQuestion(t *testing.T) {
	t.Parallel()
	a := newAsked(t)
	held := make(chan struct{})
	release := sync.OnceFunc(func() { close(held) })
	t.Cleanup(release)
	s, stop := a.asks(t, func(_ context.Context, msg kafka.Message) error {
		if msg.Offset == 3 {
			<-held
		}
		return nil
	})
	a.is(standing{silent: true})
	s.msgs <- at(0, 10, "old")
	testenv.Await(t, "the question", func() bool { return a.times() > 0 })
	s.msgs <- at(0, 2, "new")
	s.msgs <- at(0, 3, "new, at work")
	testenv.Await(t, "a commit", func() bool { return len(s.commits()) > 0 })
	if got := s.commits(); !slices.Equal(got, []int64{3}) {
		t.Errorf("committed %v while offset 3 is at work", got)
	}
	release()
	testenv.Await(t, "the commit of what was at work", func() bool { return s.offsets()[0] == 4 })
	stop()
}

// unsure is a Reader whose first commits fail, once they may.
type unsure struct {
	*kafka.Reader
	tried, fail chan struct{}

	mu      sync.Mutex
	offsets []int64 // that were committed after that
}

func (u *unsure) CommitMessages(ctx context.Context, msgs ...kafka.Message) error {
	select {
	case <-u.fail:
	case u.tried <- struct{}{}:
		<-u.fail
		return errTest
	}
	u.mu.Lock()
	for _, m := range msgs {
		u.offsets = append(u.offsets, m.Offset+1)
	}
	u.mu.Unlock()
	return u.Reader.CommitMessages(ctx, msgs...)
}

// toLast gives all partitions to the member whose name is last.
type toLast string

func (toLast) ProtocolName() string        { return "last" }
func (n toLast) UserData() ([]byte, error) { return []byte(n), nil }
func (toLast) AssignGroups(members []kafka.GroupMember, partitions []kafka.Partition) kafka.GroupMemberAssignments {
	last := slices.MaxFunc(members, func(a, b kafka.GroupMember) int { return slices.Compare(a.UserData, b.UserData) })
	all := map[string][]int{}
	for _, p := range partitions {
		all[p.Topic] = append(all[p.Topic], p.ID)
	}
	return kafka.GroupMemberAssignments{last.ID: all}
}

// A commit that comes late, when the partition has gone to another member, does not move
// back what that one has committed; and when the partition is back, commits go on.
func TestLateCommitOverAReader(t *testing.T) {
	t.Parallel()
	v := setup(t, 1)
	config := func(name string) kafka.ReaderConfig {
		c := v.config()
		c.GroupBalancers = []kafka.GroupBalancer{toLast(name)}
		return c
	}
	late := &unsure{Reader: kafka.NewReader(config("a")), tried: make(chan struct{}), fail: make(chan struct{})}
	var j journal
	c, err := idemkafka.NewConsumer(late, v.guard, j.handle, idemkafka.CommitEvery(1000, 20*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	first := &running{t, cancel, make(chan error, 1)}
	go func() {
		err := c.Run(ctx)
		_ = late.Close()
		first.done <- err
	}()
	fail := sync.OnceFunc(func() { close(late.fail) })
	t.Cleanup(func() { fail(); _ = first.stop() })

	v.to(0, series("m", 6)...)
	testenv.Await(t, "the first", func() bool { return j.len() == 6 })
	<-late.tried
	second := v.runWith("reader", config("b"), j.handle)
	v.awaitMembers(2)
	v.to(0, series("n", 4)...)
	v.settled() // by the second
	fail()
	testenv.Await(t, "the commit that failed", func() bool { return v.events.has(idem.EventSettleFailed, errTest.Error()) })
	second.mustStop()
	v.awaitMembers(1)
	if got := v.srv.Committed(t, v.group, v.topic); got[0] != 10 {
		t.Errorf("committed %v, want 10", got)
	}
	v.to(0, "last")
	v.settled()
	first.mustStop()
	late.mu.Lock()
	defer late.mu.Unlock()
	if !slices.Equal(late.offsets, []int64{11}) {
		t.Errorf("the first consumer committed %v, want 11 alone: the second had committed 10", late.offsets)
	}
	j.wantEach(t, append(append(series("m", 6), series("n", 4)...), "last")...)
}
