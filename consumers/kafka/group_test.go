package idemkafka_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/idemq/idemq/consumers"
	idemkafka "github.com/idemq/idemq/consumers/kafka"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/internal/testenv"
)

// to writes messages with these tokens to one partition.
func (v *env) to(partition int, tokens ...string) {
	v.t.Helper()
	w := v.writer()
	w.Balancer = kafka.BalancerFunc(func(kafka.Message, ...int) int { return partition })
	msgs := make([]kafka.Message, len(tokens))
	for i, token := range tokens {
		msgs[i] = kafka.Message{Topic: v.topic, Key: []byte(token), Value: []byte(token)}
		idemkafka.SetToken(&msgs[i], token)
	}
	if err := w.WriteMessages(v.t.Context(), msgs...); err != nil {
		v.t.Fatal(err)
	}
}

// A membership of its own reads partitions one by one: one that stands still, with more
// behind it than is ever held, holds up no other.
func TestPartitionsAreIndependent(t *testing.T) {
	t.Parallel()
	v := setup(t, 2)
	blocked := make(chan struct{})
	var started, others atomic.Int32
	r := v.run("group", func(_ context.Context, msg kafka.Message) error {
		if msg.Partition == 0 {
			started.Add(1)
			<-blocked
		} else {
			others.Add(1)
		}
		return nil
	}, idemkafka.Buffer(50, 1<<20))
	v.to(0, series("a", 2000)...)
	v.to(1, series("b", 2000)...)
	testenv.Await(t, "the other partition", func() bool { return others.Load() == 2000 })
	testenv.Await(t, "its offset", func() bool { return v.srv.Committed(t, v.group, v.topic)[1] == 2000 })
	if n := started.Load(); n != 1 {
		t.Errorf("%d messages of the partition that stands still were started", n)
	}
	testenv.Await(t, "to be told", func() bool { return v.events.has(idem.EventWaiting, "partition 0 of topic "+v.topic) })
	close(blocked)
	v.settled()
	r.mustStop()
	if n := started.Load(); n != 2000 {
		t.Errorf("%d messages were handled, want 2000", n)
	}
}

// Handlers that were fast let much be claimed ahead: bytes bound that too.
func TestBytesOfABlockedPartition(t *testing.T) {
	t.Parallel()
	for _, way := range ways {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			v := setup(t, 1)
			blocked := make(chan struct{})
			release := sync.OnceFunc(func() { close(blocked) })
			defer release()
			r := v.run(way, func(_ context.Context, msg kafka.Message) error {
				if msg.Offset == 1000 {
					<-blocked
				}
				return nil
			}, idemkafka.Buffer(1000, 100<<10))
			all := make([]kafka.Message, 2000)
			for i, token := range series("a", len(all)) {
				all[i] = kafka.Message{Value: make([]byte, 10<<10)}
				idemkafka.SetToken(&all[i], token)
			}
			v.send(all...)
			fetched := func() (n int, found bool) {
				for _, ev := range v.events.of(idem.EventWaiting) {
					text := ev.Err.Error()
					if _, rest, found := strings.Cut(text, "offset 1000 is not done, and "); found {
						_, err := fmt.Sscan(rest, &n)
						return n, err == nil
					}
				}
				return 0, false
			}
			testenv.Await(t, "to be told", func() bool { _, found := fetched(); return found })
			if n, _ := fetched(); n != 8 {
				t.Errorf("%d messages of 10 KiB are held behind one that stands still, want 8: 100 KiB", n)
			}
			release()
			v.settled()
			r.mustStop()
		})
	}
}

// With dead letters, and room for nothing, all is settled.
func TestDeadLettersOfLargeMessages(t *testing.T) {
	t.Parallel()
	for _, way := range ways {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			v := setup(t, 2)
			r := v.run(way, func(_ context.Context, msg kafka.Message) error {
				if msg.Offset%10 == 0 {
					return idem.Permanent(errTest)
				}
				return nil
			}, idemkafka.Buffer(1, 1), idemkafka.Concurrency(2), v.deadLetter())
			v.to(0, series("a", 100)...)
			v.to(1, series("b", 100)...)
			v.settled()
			r.mustStop()
			if n := len(v.letters()); n != 20 {
				t.Errorf("%d dead letters, want 20", n)
			}
		})
	}
}

// A rebalance: what is nearly done is finished, what takes longer is cancelled and
// handled by the next owner, and neither spends budget.
func TestRebalance(t *testing.T) {
	t.Parallel()
	v := setup(t, 2)
	var mu sync.Mutex
	causes := map[string]error{}
	starts := map[string]int{}
	attempts := map[string]int{}
	both := make(chan struct{}, 10)
	handle := func(ctx context.Context, msg kafka.Message) error {
		c, _ := idem.FromContext(ctx)
		mu.Lock()
		starts[string(msg.Value)]++
		first := starts[string(msg.Value)] == 1
		attempts[string(msg.Value)] = c.Attempt()
		if c.Spent() != 0 {
			t.Errorf("%s: a rebalance spent budget", msg.Value)
		}
		mu.Unlock()
		if !first {
			return nil
		}
		both <- struct{}{}
		end := ctx.Done()
		var finish <-chan time.Time
		if string(msg.Value) == "quick" {
			timer := time.NewTimer(2 * time.Second)
			defer timer.Stop()
			finish = timer.C
		}
		select {
		case <-end:
			mu.Lock()
			causes[string(msg.Value)] = context.Cause(ctx)
			mu.Unlock()
			return ctx.Err()
		case <-finish:
			return nil
		}
	}
	config := v.config()
	config.SessionTimeout, config.RebalanceTimeout = 10*time.Second, 10*time.Second // 2.5 s for handlers
	first := v.runWith("group", config, handle)
	v.to(0, "quick")
	v.to(1, "slow")
	<-both
	<-both
	second := v.runWith("group", config, handle) // joins: everybody's partitions are given out anew
	v.settled()
	first.mustStop()
	second.mustStop()
	mu.Lock()
	defer mu.Unlock()
	if starts["quick"] != 1 {
		t.Errorf("the handler that was nearly done was started %d times", starts["quick"])
	}
	if starts["slow"] != 2 || attempts["slow"] != 2 || !errors.Is(causes["slow"], kafka.ErrGenerationEnded) {
		t.Errorf("the slow one: %d starts, attempt %d, cancelled by %v", starts["slow"], attempts["slow"], causes["slow"])
	}
	if n := len(v.events.of(idem.EventLeaseLost)); n != 0 {
		t.Errorf("%d leases were lost", n)
	}
}

// A handler that minds nothing does not hold the group up: others get the partitions,
// and wait for that message alone.
func TestStuckHandlerInARebalance(t *testing.T) {
	t.Parallel()
	v := setup(t, 2)
	stuck, started := make(chan struct{}), make(chan struct{})
	var once sync.Once
	var j journal
	handle := func(_ context.Context, msg kafka.Message) error {
		if string(msg.Value) == "stuck" {
			once.Do(func() { close(started) })
			<-stuck
		}
		j.add(string(msg.Value))
		return nil
	}
	config := v.config()
	config.SessionTimeout, config.RebalanceTimeout = 40*time.Second, 40*time.Second // when the broker would go on without it
	first := v.runWith("group", config, handle)
	v.to(0, "stuck")
	<-started
	joining := time.Now()
	second := v.runWith("group", config, handle)
	v.awaitMembers(2)
	v.to(0, series("behind", 5)...)
	v.to(1, series("other", 5)...)
	testenv.Await(t, "the other partition", func() bool { return v.srv.Committed(t, v.group, v.topic)[1] == 5 })
	if took := time.Since(joining); took > 30*time.Second {
		t.Errorf("the group stood still for %v", took)
	}
	if got := v.srv.Committed(t, v.group, v.topic); got[0] != 0 {
		t.Errorf("committed %v, and the first message is not done", got)
	}
	close(stuck)
	v.settled()
	first.mustStop()
	second.mustStop()
	j.wantEach(t, append(append(series("behind", 5), series("other", 5)...), "stuck")...)
}

// awaitMembers waits until the group has n members, and has given out its partitions.
func (v *env) awaitMembers(n int) {
	v.t.Helper()
	c := &kafka.Client{Addr: kafka.TCP(v.srv.Addr()), Transport: v.w.Transport}
	testenv.Await(v.t, "the rebalance", func() bool {
		resp, err := c.DescribeGroups(v.t.Context(), &kafka.DescribeGroupsRequest{GroupIDs: []string{v.group}})
		return err == nil && len(resp.Groups) == 1 && resp.Groups[0].GroupState == "Stable" && len(resp.Groups[0].Members) == n
	})
}

// Run that is told to end while the group is being formed does not wait for that.
func TestStopWhileJoining(t *testing.T) {
	t.Parallel()
	v := setup(t, 1)
	config := v.config()
	config.SessionTimeout, config.RebalanceTimeout = 60*time.Second, 60*time.Second
	config.HeartbeatInterval = time.Hour // the first member does not hear of the second
	var j journal
	first := v.runWith("group", config, j.handle)
	v.to(0, "a")
	testenv.Await(t, "the first member", func() bool { return j.len() == 1 })
	second := v.runWith("group", config, j.handle)
	c := &kafka.Client{Addr: kafka.TCP(v.srv.Addr()), Transport: v.w.Transport}
	testenv.Await(t, "the second member to join", func() bool {
		resp, err := c.DescribeGroups(t.Context(), &kafka.DescribeGroupsRequest{GroupIDs: []string{v.group}})
		return err == nil && resp.Groups[0].GroupState == "PreparingRebalance"
	})
	begun := time.Now()
	second.mustStop()
	if took := time.Since(begun); took > 35*time.Second {
		t.Errorf("Run took %v to end", took)
	}
	first.mustStop()
}

// One token in two topics of one group, which is how a message is forwarded: it is
// handled in each.
func TestTopicsHaveGroupsOfTheirOwn(t *testing.T) {
	t.Parallel()
	for _, way := range ways {
		v := setup(t, 1)
		other := unique("refunds")
		v.srv.CreateTopic(t, other, 1)
		var mu sync.Mutex
		var topics []string
		config := v.config()
		config.Topic, config.GroupTopics = "", []string{v.topic, other}
		r := v.runWith(way, config, func(_ context.Context, msg kafka.Message) error {
			mu.Lock()
			defer mu.Unlock()
			topics = append(topics, msg.Topic)
			return nil
		})
		v.publish("a", "a")
		msg := kafka.Message{Topic: other, Value: []byte("a")}
		idemkafka.SetToken(&msg, "a")
		if err := v.w.WriteMessages(t.Context(), msg, msg); err != nil {
			t.Fatal(err)
		}
		testenv.Await(t, "both topics", func() bool {
			return v.owed() == 0 && v.srv.Committed(t, v.group, other)[0] == 2
		})
		r.mustStop()
		slices.Sort(topics)
		want := []string{v.topic, other}
		slices.Sort(want)
		if !slices.Equal(topics, want) {
			t.Errorf("%s: handled in %q, want once in each of %q", way, topics, want)
		}
		for _, topic := range want {
			if rec, err := v.guard.Group(v.group+"/"+topic).Inspect(t.Context(), "a"); err != nil || rec.Attempt != 1 {
				t.Errorf("%s: %+v, %v", topic, rec, err)
			}
		}
	}
}

// A group that begins at the end commits where that is: what arrives while nobody is
// there is handled by whoever comes next.
func TestLastOffset(t *testing.T) {
	t.Parallel()
	v := setup(t, 2)
	v.to(0, "old")
	config := v.config()
	config.StartOffset = kafka.LastOffset
	var j journal
	r := v.runWith("group", config, j.handle)
	testenv.Await(t, "where the group begins", func() bool {
		got := v.srv.Committed(t, v.group, v.topic)
		return len(got) == 2 && got[0] == 1 && got[1] == 0
	})
	r.mustStop()
	v.to(0, "new")
	v.to(1, "first")
	r = v.runWith("group", config, j.handle)
	v.settled()
	r.mustStop()
	j.wantEach(t, "new", "first")
}

func (v *env) deleteBefore(offset int64) {
	v.t.Helper()
	deleteBefore(v.t, v.srv.Addr(), v.topic, offset)
}

// Partitions that are added while Run is at work are read, if that is watched for.
func TestPartitionsAreAdded(t *testing.T) {
	t.Parallel()
	for _, way := range ways {
		v := setup(t, 1)
		config := v.config()
		config.WatchPartitionChanges, config.PartitionWatchInterval = true, 100*time.Millisecond
		var j journal
		r := v.runWith(way, config, j.handle)
		v.to(0, "a")
		v.settled()
		c := &kafka.Client{Addr: kafka.TCP(v.srv.Addr()), Transport: v.w.Transport}
		resp, err := c.CreatePartitions(t.Context(), &kafka.CreatePartitionsRequest{Topics: []kafka.TopicPartitionsConfig{{Name: v.topic, Count: 2}}})
		if err != nil || resp.Errors[v.topic] != nil {
			t.Fatal(resp, err)
		}
		testenv.Await(t, "the partition's leader", func() bool { return len(v.srv.Ends(t, v.topic)) == 2 })
		v.to(1, "b")
		testenv.Await(t, "the message in the new partition", func() bool { return j.len() == 2 })
		v.settled()
		r.mustStop()
		j.want(t, "a", "b")
	}
}

// deleteBefore deletes the messages of partition 0 before an offset, as a topic's
// retention does. kafka-go cannot.
func deleteBefore(t *testing.T, addr, name string, offset int64) {
	t.Helper()
	c, err := kgo.NewClient(kgo.SeedBrokers(addr))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	req := kmsg.NewDeleteRecordsRequest()
	topic := kmsg.NewDeleteRecordsRequestTopic()
	topic.Topic = name
	topic.Partitions = []kmsg.DeleteRecordsRequestTopicPartition{{Partition: 0, Offset: offset}}
	req.Topics, req.TimeoutMillis = append(req.Topics, topic), 5000
	resp, err := req.RequestWith(t.Context(), c)
	if err != nil || resp.Topics[0].Partitions[0].ErrorCode != 0 {
		t.Fatalf("deleting records: %+v, %v", resp, err)
	}
}

// A committed offset beyond the end: the topic was made again. Going on would pass over
// what it has now; Run ends, and stays ended.
func TestOffsetBeyondTheEnd(t *testing.T) {
	t.Parallel()
	for _, way := range ways {
		v := setup(t, 1)
		v.to(0, series("m", 10)...)
		v.commit(15)
		var j journal
		err := v.run(way, j.handle).result()
		if err == nil || !strings.Contains(err.Error(), "is 15, beyond its end at 10") || !strings.Contains(err.Error(), "--reset-offsets") {
			t.Errorf("%s: Run: %v", way, err)
		}
		if n := j.len(); n != 0 {
			t.Errorf("%d messages were handled", n)
		}
	}
}

// commit sets the group's offset of partition 0.
func (v *env) commit(offset int64) {
	v.t.Helper()
	c := &kafka.Client{Addr: kafka.TCP(v.srv.Addr()), Transport: v.w.Transport}
	resp, err := c.OffsetCommit(v.t.Context(), &kafka.OffsetCommitRequest{GroupID: v.group, GenerationID: -1, Topics: map[string][]kafka.OffsetCommit{v.topic: {{Partition: 0, Offset: offset}}}})
	if err != nil || resp.Topics[v.topic][0].Error != nil {
		v.t.Fatal(resp, err)
	}
}

// What the topic's retention deleted before it was handled is said, and holds up nobody:
// Strict could not bring it back.
func TestDeletedByRetention(t *testing.T) {
	t.Parallel()
	for _, way := range ways {
		v := setup(t, 1)
		v.to(0, series("m", 10)...)
		v.commit(0)
		v.deleteBefore(4)
		strict := consumers.Strict("memory-forgets", "kafka-out-of-range", "kafka-retention")
		found, err := v.preflight(way, v.config(), strict)
		if err != nil || len(found) == 0 || !strings.Contains(found[len(found)-1].What, "offsets 0 to 3 were deleted") {
			t.Errorf("%s: Preflight: %v, %v", way, found, err)
		}
		var j journal
		r := v.run(way, j.handle, strict)
		v.settled()
		r.mustStop()
		j.want(t, series("m", 10)[4:]...)
		if !v.events.has(idem.EventFinding, "offsets 0 to 3 were deleted") {
			t.Errorf("%s: findings %v", way, v.events.of(idem.EventFinding))
		}
	}
}

// And so is what was deleted while Run was at work: kafka-go's reader goes on behind it, and
// tells nobody. What is missing for another reason is not.
func TestDeletedWhileReading(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name      string
		committed int64 // by the group, when the gap is met; -1: nothing
		fetch     []int64
		want      string
	}{
		{name: "deleted", committed: -1, fetch: []int64{4, 5, 9}, want: "offsets 6 to 7 were deleted"},
		{name: "compacted", committed: -1, fetch: []int64{9, 11}},
		{name: "handled by another member, and deleted", committed: 9, fetch: []int64{4, 5, 9}},
		{name: "in part handled by another member, and deleted", committed: 7, fetch: []int64{4, 5, 9}, want: "offsets 7 to 7 were deleted"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			a := newAsked(t)
			deleteBefore(t, a.addrs[0], "orders", 8)
			s, stop := a.asks(t, (&journal{}).handle)
			a.is(standing{offset: c.committed})
			for _, offset := range c.fetch {
				s.msgs <- at(0, offset, fmt.Sprint("m-", offset))
			}
			last := c.fetch[len(c.fetch)-1]
			testenv.Await(t, "the commit", func() bool { return s.offsets()[0] == last+1 })
			stop()
			told := a.events.of(idem.EventFinding)
			if !a.events.has(idem.EventFinding, c.want) || c.want == "" && a.events.has(idem.EventFinding, "were deleted") {
				t.Errorf("findings %v", told)
			}
		})
	}
}

// What was deleted is asked for beside the fetching, and the end of Run does not wait for the
// answer. Until it comes no offset behind the gap is committed: else what was lost could not be
// told from what another member handled.
func TestQuestionAboutAGapHoldsUpNothing(t *testing.T) {
	t.Parallel()
	const soon = 3 * time.Second // a question lasts for 5
	a := newAsked(t)
	var j journal
	s, stop := a.asks(t, j.handle)
	a.beMute()
	began := time.Now()
	for i, offset := range []int64{4, 9, 10, 11} {
		s.msgs <- at(0, offset, fmt.Sprint("m-", offset))
		s.msgs <- at(1, int64(i), fmt.Sprint("n-", i))
	}
	testenv.Await(t, "the other partition", func() bool { return j.len() == 8 && s.offsets()[1] == 4 })
	if took := time.Since(began); took > soon {
		t.Errorf("messages behind a gap, and those of another partition, took %v", took)
	}
	testenv.Await(t, "the question", func() bool { return a.muteTimes() > 0 })
	if got := s.offsets(); got[0] > 5 {
		t.Errorf("committed %v while it is not known what is missing", got)
	}
	began = time.Now()
	stop()
	if took := time.Since(began); took > soon {
		t.Errorf("the end took %v", took)
	}
	if got := s.offsets(); got[0] != 12 {
		t.Errorf("committed %v at the end", got)
	}
}

// A consumer that stops leaves the group, with its offsets committed, in a moment: the
// next has the partitions long before a session would have timed out.
func TestStopLeavesTheGroup(t *testing.T) {
	t.Parallel()
	v := setup(t, 1)
	config := v.config()
	config.SessionTimeout, config.RebalanceTimeout = 60*time.Second, 60*time.Second
	var j journal
	v.to(0, "a")
	r := v.runWith("group", config, j.handle, idemkafka.CommitEvery(1000, time.Hour))
	testenv.Await(t, "the first", func() bool { return j.len() == 1 })
	r.mustStop()
	if got := v.srv.Committed(t, v.group, v.topic); got[0] != 1 {
		t.Errorf("committed %v at the stop", got)
	}
	begun := time.Now()
	v.to(0, "b")
	r = v.runWith("group", config, j.handle)
	v.settled()
	if took := time.Since(begun); took > 30*time.Second {
		t.Errorf("the next consumer began after %v", took)
	}
	r.mustStop()
	j.want(t, "a", "b")
}

// A loop of the user's own: nil means commit, an error means stop.
func TestWrap(t *testing.T) {
	t.Parallel()
	v := setup(t, 1)
	v.publish("a", "a", "fails", "bad", "last")
	var j journal
	fails := 2
	handle, err := idemkafka.Wrap(v.guard.Group("mine"), func(ctx context.Context, msg kafka.Message) error {
		j.add(string(msg.Value))
		switch c, _ := idem.FromContext(ctx); string(msg.Value) {
		case "fails":
			if c.Attempt() <= fails {
				return errTest
			}
		case "bad":
			return idem.Permanent(errTest)
		case "last":
			return nil
		}
		return nil
	}, v.deadLetter(), consumers.Backoff(time.Millisecond, 2*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	for _, msg := range v.srv.All(t, v.topic) {
		if err := handle(t.Context(), msg); err != nil {
			t.Errorf("%s: %v", msg.Value, err)
		}
	}
	j.want(t, "a", "fails", "fails", "fails", "bad", "last")
	if n := len(v.letters()); n != 1 {
		t.Errorf("%d letters", n)
	}
	strict, err := idemkafka.Wrap(v.guard.Group("strict"), func(context.Context, kafka.Message) error { return idem.Permanent(errTest) })
	if err != nil {
		t.Fatal(err)
	}
	msg := v.srv.All(t, v.topic)[0]
	if err := strict(t.Context(), msg); err == nil || !strings.Contains(err.Error(), "dead-letter destination") || !strings.Contains(err.Error(), "offset 0") {
		t.Errorf("without a dead-letter topic: %v", err)
	}
	loop, err := idemkafka.Wrap(v.guard.Group("loop"), func(context.Context, kafka.Message) error { return idem.Permanent(errTest) }, idemkafka.DeadLetter(v.w, v.topic))
	if err != nil {
		t.Fatal(err)
	}
	if err := loop(t.Context(), msg); !errors.Is(err, consumers.ErrUndeliverable) || !strings.Contains(err.Error(), "would come back") {
		t.Errorf("dead letters to the message's own topic: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := strict(ctx, msg); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v", err)
	}
}

func TestRunTwice(t *testing.T) {
	t.Parallel()
	v := setup(t, 1)
	for _, way := range ways {
		c, end, err := v.consumer(way, v.config(), v.guard, (&journal{}).handle)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := c.Run(ctx); err != nil {
			t.Errorf("Run that is told to stop before it began: %v", err)
		}
		if err := c.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "twice") {
			t.Errorf("a second Run: %v", err)
		}
		end()
	}
}

// After an error only a new Reader brings again what was fetched and not handled.
func TestRestartOverAReader(t *testing.T) {
	t.Parallel()
	v := setup(t, 1)
	v.publish("fails", "b", "c")
	reader := kafka.NewReader(v.config())
	defer reader.Close()
	first, err := idemkafka.NewConsumer(reader, v.guard, func(context.Context, kafka.Message) error { return idem.Permanent(errTest) })
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "dead-letter destination") {
		t.Fatalf("the first Run: %v", err)
	}
	var j journal
	second, err := idemkafka.NewConsumer(reader, v.guard, j.handle)
	if err != nil {
		t.Fatal(err)
	}
	v.publish("d")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second) // if it is not refused it commits past "fails"
	defer cancel()
	if err := second.Run(ctx); err == nil || !strings.Contains(err.Error(), "new kafka.Reader") {
		t.Errorf("Run over the Reader of another consumer: %v", err)
	}
	if n := v.owed(); n != 4 {
		t.Errorf("%d messages are owed, want all 4: the others were passed over", n)
	}
	j.want(t)
	if err := reader.Close(); err != nil {
		t.Error(err)
	}
	r := v.run("reader", j.handle)
	v.settled()
	r.mustStop()
	j.want(t, "fails", "b", "c", "d")
}
