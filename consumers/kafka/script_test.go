package idemkafka_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/idemq/idemq/consumers"
	idemkafka "github.com/idemq/idemq/consumers/kafka"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store/memstore"
)

// script is a Reader that brings what a test says: what a real one does rarely, or only
// between two moments.
type script struct {
	config kafka.ReaderConfig
	msgs   chan kafka.Message
	errs   chan error

	mu        sync.Mutex
	fetched   int
	committed map[int]int64
	history   []int64 // of partition 0
	commitErr error
	hang      bool
}

func newScript() *script {
	return &script{
		config: kafka.ReaderConfig{GroupID: "billing", Topic: "orders"}, msgs: make(chan kafka.Message),
		errs: make(chan error), committed: map[int]int64{},
	}
}

func (s *script) Config() kafka.ReaderConfig { return s.config }

func (s *script) FetchMessage(ctx context.Context) (kafka.Message, error) {
	select {
	case m := <-s.msgs:
		s.mu.Lock()
		defer s.mu.Unlock()
		s.fetched++
		return m, nil
	case err := <-s.errs:
		return kafka.Message{}, err
	case <-ctx.Done():
		return kafka.Message{}, ctx.Err()
	}
}

func (s *script) CommitMessages(ctx context.Context, msgs ...kafka.Message) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hang {
		s.mu.Unlock()
		<-ctx.Done()
		s.mu.Lock()
		return ctx.Err()
	}
	if s.commitErr != nil {
		return s.commitErr
	}
	for _, m := range msgs {
		s.committed[m.Partition] = m.Offset + 1
		if m.Partition == 0 {
			s.history = append(s.history, m.Offset+1)
		}
	}
	return nil
}

func (s *script) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *script) offsets() map[int]int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.committed)
}

func at(partition int, offset int64, token string) kafka.Message {
	m := kafka.Message{Topic: "orders", Partition: partition, Offset: offset, Key: []byte(token), Value: []byte(token), Time: time.Now()}
	idemkafka.SetToken(&m, token)
	return m
}

// scripted runs a consumer of a script in a bubble.
func scripted(t *testing.T, h idemkafka.Handler, opts []idemkafka.Option, play func(s *script, ev *events, end func() error)) {
	t.Helper()
	scriptedBy(t, newScript, h, opts, play)
}

func scriptedBy(t *testing.T, source func() *script, h idemkafka.Handler, opts []idemkafka.Option, play func(s *script, ev *events, end func() error)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s, ev := source(), &events{}
		opts := append([]idemkafka.Option{consumers.Backoff(time.Millisecond, 10*time.Millisecond), idemkafka.CommitEvery(1000, time.Second)}, opts...)
		g := idem.New(idem.WithStore(memstore.New()), idem.WithObserver(ev))
		c, err := idemkafka.NewConsumer(s, g, h, opts...)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		done := startRun(ctx, c)
		play(s, ev, func() error { cancel(); return <-done })
	})
}

func startRun(ctx context.Context, c *idemkafka.Consumer) chan error {
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	return done
}

// A partition that moves away and comes back begins anew, lower: what its old
// assignment finishes late moves nothing, and nothing of the new one is passed over.
func TestRewind(t *testing.T) {
	var slow chan struct{} // made in the bubble
	var j journal
	handle := func(_ context.Context, msg kafka.Message) error {
		if j.add(string(msg.Value)) == 1 {
			<-slow
		}
		return nil
	}
	scripted(t, handle, nil, func(s *script, _ *events, end func() error) {
		slow = make(chan struct{})
		for i := range int64(5) {
			s.msgs <- at(0, 10+i, series("m", 20)[i]) // 10 is at work, and the others wait
		}
		time.Sleep(5 * time.Second)
		s.msgs <- at(0, 8, "earlier") // back, from where another member had committed
		s.msgs <- at(0, 9, "earlier still")
		time.Sleep(5 * time.Second)
		if got := s.offsets(); got[0] != 10 {
			t.Errorf("committed %v, want 10: what was fetched anew is done, and no more", got)
		}
		s.msgs <- at(0, 10, series("m", 20)[0])
		time.Sleep(5 * time.Second)
		if got := s.offsets(); got[0] != 10 {
			t.Errorf("committed %v while offset 10 is at work", got)
		}
		close(slow) // the old assignment's handler
		time.Sleep(5 * time.Second)
		if got := s.offsets(); got[0] != 11 {
			t.Errorf("committed %v, want 11: 10 is a duplicate by now", got)
		}
		for i := int64(1); i < 5; i++ {
			s.msgs <- at(0, 10+i, series("m", 20)[i])
		}
		time.Sleep(5 * time.Second)
		if err := end(); err != nil {
			t.Error(err)
		}
		if got := s.offsets(); got[0] != 15 {
			t.Errorf("committed %v, want 15", got)
		}
		s.set(func() {
			if !slices.IsSorted(s.history) {
				t.Errorf("offsets were committed in the order %v", s.history)
			}
		})
	})
	j.wantEach(t, append(series("m", 5), "earlier", "earlier still")...)
}

// What waited in an assignment that is over makes room.
func TestRewindMakesRoom(t *testing.T) {
	var blocked chan struct{} // made in the bubble
	var j journal
	handle := func(_ context.Context, msg kafka.Message) error {
		<-blocked
		j.add(string(msg.Value))
		return nil
	}
	scripted(t, handle, []idemkafka.Option{idemkafka.Buffer(1000, 100*300)}, func(s *script, _ *events, end func() error) {
		blocked = make(chan struct{})
		for range 3 {
			for i := range int64(60) {
				select {
				case s.msgs <- at(0, i, series("m", 60)[i]):
				case <-time.After(time.Hour):
					t.Fatalf("offset %d is not fetched: what was dropped takes room", i)
				}
			}
		}
		close(blocked)
		time.Sleep(time.Minute)
		if err := end(); err != nil {
			t.Error(err)
		}
		if got := s.offsets(); got[0] != 60 {
			t.Errorf("committed %v", got)
		}
	})
	j.wantEach(t, series("m", 60)...)
}

// What a blocked partition holds is bounded, and said: fetching stops. Over a Reader the
// other partitions stop with it, and go on when it does. The bytes bound it too where
// handlers were fast, or messages failed or came again, and so much is claimed ahead.
func TestBlockedPartitionOverAReader(t *testing.T) {
	var blocked chan struct{} // made in the bubble
	var j journal
	var until int64 // no handler stands still before this offset
	handle := func(_ context.Context, msg kafka.Message) error {
		if msg.Partition == 0 && msg.Offset >= until {
			<-blocked
		}
		if n := j.add(string(msg.Value)); msg.Offset < until && n%7 == 0 {
			return errTest
		}
		return nil
	}
	const takes = 330 // bytes, each message
	for _, c := range []struct {
		name  string
		opt   idemkafka.Option
		fast  int64
		most  int
		least int
	}{
		// Beside the buffer: what the engine claims ahead, and the message in the fetcher's hand.
		{"by messages", idemkafka.Buffer(100, 1<<30), 0, 100 + 3 + 1, 100},
		{"by bytes", idemkafka.Buffer(1000, 100*takes), 0, 100 + 1, 90},
		{"by messages, after fast ones", idemkafka.Buffer(100, 1<<30), 600, 100 + 1 + 2*384 + 1, 100 + 384},
		{"by bytes, after fast ones", idemkafka.Buffer(1000, 100*takes), 600, 100 + 1, 90},
		{"by bytes that are none, after fast ones", idemkafka.Buffer(1000, 1), 600, 2 + 1, 2 + 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			scripted(t, handle, []idemkafka.Option{c.opt}, func(s *script, ev *events, end func() error) {
				blocked, until = make(chan struct{}), c.fast
				tokens := series("a", 2000)
				for i := range c.fast { // each is handled, and comes again
					s.msgs <- at(0, i, tokens[i/2])
				}
				time.Sleep(time.Minute)
				if got := s.offsets(); got[0] != c.fast {
					t.Fatalf("committed %v, want %d", got, c.fast)
				}
				go func() {
					for i := c.fast; i < 2000; i++ {
						select {
						case s.msgs <- at(0, i, tokens[i]):
						case <-blocked:
							return
						}
					}
				}()
				time.Sleep(time.Minute)
				s.set(func() {
					if n := s.fetched - int(c.fast); n > c.most || n < c.least {
						t.Errorf("%d messages were fetched, the first of which stands still: want %d to %d", n, c.least, c.most)
					}
				})
				if !ev.has(idem.EventWaiting, "partition 0 of topic orders") || !ev.has(idem.EventWaiting, fmt.Sprintf("offset %d is not done", c.fast)) {
					t.Errorf("nobody is told which partition holds up fetching: %v", ev.of(idem.EventWaiting))
				}
				close(blocked)
				time.Sleep(time.Minute)
				s.msgs <- at(1, 7, "other"+c.name)
				time.Sleep(time.Minute)
				if err := end(); err != nil {
					t.Error(err)
				}
				if got := s.offsets(); got[1] != 8 {
					t.Errorf("committed %v", got)
				}
			})
		})
	}
}

// No bound of bytes, and no message larger than it, holds up what could go on: what fails,
// what comes again, and lines that wait for a key that is slow.
func TestBufferOfNoBytes(t *testing.T) {
	for _, lines := range []int{1, 4} {
		var mu sync.Mutex
		starts, running, most := map[string]int{}, 0, 0
		handle := func(_ context.Context, msg kafka.Message) error {
			mu.Lock()
			starts[string(msg.Value)]++
			n := starts[string(msg.Value)]
			running++
			most = max(most, running)
			mu.Unlock()
			time.Sleep(time.Duration(1+msg.Offset%5) * time.Millisecond)
			mu.Lock()
			running--
			mu.Unlock()
			if n == 1 && msg.Offset%3 == 0 {
				return errTest
			}
			return nil
		}
		scripted(t, handle, []idemkafka.Option{idemkafka.Concurrency(lines), idemkafka.Buffer(2, 1)}, func(s *script, _ *events, end func() error) {
			for i := range int64(300) {
				for p := range 2 {
					m := at(p, i, fmt.Sprint(p, i-i%5/4)) // each fifth is its neighbour again
					m.Key = m.Key[:3]
					select {
					case s.msgs <- m:
					case <-time.After(time.Hour):
						t.Fatalf("offset %d of partition %d is not fetched", i, p)
					}
				}
			}
			time.Sleep(time.Minute)
			if err := end(); err != nil {
				t.Error(err)
			}
			if got := s.offsets(); got[0] != 300 || got[1] != 300 {
				t.Errorf("with %d lines: committed %v", lines, got)
			}
		})
		if most < 2 || len(starts) != 2*240 {
			t.Errorf("with %d lines: %d messages were handled, %d at a time", lines, len(starts), most)
		}
	}
}

// With Concurrency messages of one key are handled in order, others go on past a key
// that stands still, and the offset does not: the skip trap.
func TestSkipTrap(t *testing.T) {
	var blocked chan struct{} // made in the bubble
	var j journal
	handle := func(_ context.Context, msg kafka.Message) error {
		if string(msg.Value) == "n" {
			<-blocked
		}
		j.add(string(msg.Value))
		return nil
	}
	scripted(t, handle, []idemkafka.Option{idemkafka.Concurrency(8)}, func(s *script, _ *events, end func() error) {
		blocked = make(chan struct{})
		s.msgs <- at(0, 0, "before")
		s.msgs <- at(0, 1, "n")
		for i := int64(2); i < 302; i++ {
			s.msgs <- at(0, i, series("m", 302)[i])
		}
		time.Sleep(time.Minute)
		if got := s.offsets(); got[0] != 1 {
			t.Errorf("committed %v, and offset 1 is not done", got)
		}
		if n := j.len(); n < 200 || n > 300 {
			t.Errorf("%d messages of other keys were handled", n)
		}
		close(blocked)
		time.Sleep(time.Minute)
		if err := end(); err != nil {
			t.Error(err)
		}
		if got := s.offsets(); got[0] != 302 {
			t.Errorf("committed %v, want 302", got)
		}
	})
	if n := j.len(); n != 302 {
		t.Errorf("%d handled", n)
	}
}

func TestOrderOfAKey(t *testing.T) {
	var mu sync.Mutex
	last, busy := map[string]int64{}, map[string]bool{}
	running, most := 0, 0
	handle := func(_ context.Context, msg kafka.Message) error {
		mu.Lock()
		running++
		most = max(most, running)
		if msg.Key != nil && (msg.Offset <= last[string(msg.Key)] || busy[string(msg.Key)]) {
			t.Errorf("offset %d of key %s after %d, and beside another: %v", msg.Offset, msg.Key, last[string(msg.Key)], busy[string(msg.Key)])
		}
		last[string(msg.Key)] = msg.Offset
		busy[string(msg.Key)] = true
		mu.Unlock()
		time.Sleep(time.Duration(1+msg.Offset*7%5) * time.Millisecond)
		mu.Lock()
		running--
		busy[string(msg.Key)] = false
		mu.Unlock()
		return nil
	}
	scripted(t, handle, []idemkafka.Option{idemkafka.Concurrency(4)}, func(s *script, _ *events, end func() error) {
		for i := int64(1); i <= 400; i++ {
			m := at(0, i, series("m", 401)[i])
			if m.Key = []byte(series("key", 7)[i%7]); i%5 == 0 {
				m.Key = nil
			}
			s.msgs <- m
		}
		time.Sleep(time.Minute)
		if err := end(); err != nil {
			t.Error(err)
		}
		if got := s.offsets(); got[0] != 401 {
			t.Errorf("committed %v", got)
		}
	})
	if most < 2 || most > 4 {
		t.Errorf("%d handlers ran at a time, want up to 4", most)
	}
}

// A commit that fails, or hangs, as it does between generations, holds up nobody, and
// is made up for.
func TestCommitFails(t *testing.T) {
	var j journal
	scripted(t, j.handle, nil, func(s *script, ev *events, end func() error) {
		s.set(func() { s.commitErr = errTest })
		s.msgs <- at(0, 0, "a")
		time.Sleep(3 * time.Second)
		if !ev.has(idem.EventSettleFailed, "committing offsets: test") {
			t.Errorf("events %v", ev.of(idem.EventSettleFailed))
		}
		s.set(func() { s.commitErr, s.hang = nil, true })
		s.msgs <- at(0, 1, "b")
		time.Sleep(3 * time.Second)
		s.msgs <- at(0, 2, "c")
		time.Sleep(20 * time.Second)
		j.want(t, "a", "b", "c")
		s.set(func() { s.hang = false })
		time.Sleep(20 * time.Second)
		if got := s.offsets(); got[0] != 3 {
			t.Errorf("committed %v, want 3", got)
		}
		s.set(func() { s.hang = true })
		s.msgs <- at(0, 3, "d")
		time.Sleep(time.Second)
		begun := time.Now()
		if err := end(); err != nil {
			t.Error(err)
		}
		if took := time.Since(begun); took > 11*time.Second {
			t.Errorf("Run took %v to end: a commit that hangs held it up", took)
		}
	})
}

// Fetch errors are waited out; a Reader that was closed ends Run.
func TestFetchErrors(t *testing.T) {
	var j journal
	scripted(t, j.handle, nil, func(s *script, ev *events, end func() error) {
		begun := time.Now()
		for range 10 {
			s.errs <- kafka.LeaderNotAvailable
		}
		s.msgs <- at(0, 0, "a")
		if took := time.Since(begun); took < 5*time.Second {
			t.Errorf("ten failures in %v: it spins", took)
		}
		if !ev.has(idem.EventWaiting, "fetching from Kafka") {
			t.Errorf("events %v", ev.of(idem.EventWaiting))
		}
		time.Sleep(10 * time.Millisecond) // it is handled, and not committed yet
		s.errs <- io.EOF                  // a broker's, which closed a connection
		time.Sleep(time.Second)
		s.msgs <- at(0, 1, "b")
		time.Sleep(10 * time.Millisecond)
		s.errs <- io.EOF
		s.errs <- io.EOF // at once: the Reader was closed
		time.Sleep(time.Minute)
		err := end()
		if !errors.Is(err, io.EOF) || !strings.Contains(err.Error(), "close it after Run") {
			t.Errorf("Run: %v", err)
		}
		if got := s.offsets(); got[0] != 2 {
			t.Errorf("committed %v: what was done before is not", got)
		}
	})
}

// A group that begins at the end commits where that is before anything is done: else
// whoever comes next begins at an end further on.
func TestLastOffsetOverAReader(t *testing.T) {
	var begun chan struct{} // made in the bubble
	handle := func(ctx context.Context, _ kafka.Message) error {
		close(begun)
		<-ctx.Done()
		return ctx.Err()
	}
	latest := func() *script {
		s := newScript()
		s.config.StartOffset = kafka.LastOffset
		return s
	}
	scriptedBy(t, latest, handle, []idemkafka.Option{consumers.DrainTimeout(time.Second)}, func(s *script, _ *events, end func() error) {
		begun = make(chan struct{})
		s.msgs <- at(0, 0, "a")
		<-begun
		time.Sleep(time.Second)
		if got, found := s.offsets()[0]; !found || got != 0 {
			t.Errorf("committed %v, %v, want 0: a new member would pass over the message", got, found)
		}
		_ = end()
		if got := s.offsets()[0]; got != 0 {
			t.Errorf("committed %v", got)
		}
	})
}

// The end of Run: what has started is finished and committed, what has not is not.
func TestDrain(t *testing.T) {
	var started, finish chan struct{} // made in the bubble
	var j journal
	handle := func(_ context.Context, msg kafka.Message) error {
		if j.add(string(msg.Value)) == 2 {
			close(started)
			<-finish
		}
		return nil
	}
	scripted(t, handle, nil, func(s *script, _ *events, end func() error) {
		started, finish = make(chan struct{}), make(chan struct{})
		for i := range int64(50) {
			s.msgs <- at(0, i, series("m", 50)[i])
		}
		<-started
		go func() { time.Sleep(10 * time.Second); close(finish) }()
		if err := end(); err != nil {
			t.Error(err)
		}
		if got := s.offsets(); got[0] != 2 {
			t.Errorf("committed %v, want 2", got)
		}
	})
	j.want(t, series("m", 2)...)
}

// A Reader that says that its offset is out of range reads that partition no more.
func TestOutOfRangeOverAReader(t *testing.T) {
	scripted(t, (&journal{}).handle, nil, func(s *script, _ *events, end func() error) {
		s.errs <- kafka.OffsetOutOfRange
		time.Sleep(time.Second)
		if err := end(); !errors.Is(err, kafka.OffsetOutOfRange) || !strings.Contains(err.Error(), "--reset-offsets") {
			t.Errorf("Run: %v", err)
		}
	})
}

// CommitEvery's count holds under load, and a commit that fails is not tried again at
// the pace of the messages.
func TestCommitsPerMessage(t *testing.T) {
	for _, c := range []struct {
		err  error
		most int
	}{{nil, 21}, {errTest, 4}} { // a commit for each thousand, one beside it for what was done meanwhile, and the tick
		var j journal
		scripted(t, j.handle, []idemkafka.Option{idemkafka.CommitEvery(1000, time.Second)}, func(s *script, ev *events, end func() error) {
			s.set(func() { s.commitErr = c.err })
			for i := range int64(10_000) {
				s.msgs <- at(0, i, series("m", 1)[0])
			}
			time.Sleep(time.Second)
			s.set(func() {
				if n := len(s.history) + len(ev.of(idem.EventSettleFailed)); n > c.most {
					t.Errorf("%d commits of 10,000 messages (%v), want %d at most", n, c.err, c.most)
				}
				s.commitErr = nil
			})
			if err := end(); err != nil {
				t.Error(err)
			}
		})
	}
}

// Where all that was fetched is done, its offset is committed soon, and not for each message.
func TestCommitsWhenIdle(t *testing.T) {
	var j journal
	scripted(t, j.handle, []idemkafka.Option{idemkafka.CommitEvery(1000, time.Minute)}, func(s *script, _ *events, end func() error) {
		wantCommitted := func(offset int64, commits int) {
			t.Helper()
			s.set(func() {
				if s.committed[0] != offset || len(s.history) != commits {
					t.Errorf("after %d messages: committed %v", offset, s.history)
				}
			})
		}
		for i := range int64(20) {
			s.msgs <- at(0, i, series("m", 20)[i])
			time.Sleep(time.Second)
			if i == 0 {
				wantCommitted(1, 1)
			}
		}
		time.Sleep(6 * time.Second)
		wantCommitted(20, 5) // at once, and each six seconds
		if err := end(); err != nil {
			t.Error(err)
		}
	})
}

// Markers are passed over where that is asked for, and the offset goes on; what only
// resembles them is handled.
func TestSkipTransactionMarkers(t *testing.T) {
	marker := func(offset int64, kind byte) kafka.Message {
		return kafka.Message{Topic: "orders", Offset: offset, Key: []byte{0, 0, 0, kind}, Value: []byte{0, 0, 0, 0, 0, 7}}
	}
	for _, c := range []struct {
		opts []idemkafka.Option
		want int
	}{{nil, 5}, {[]idemkafka.Option{idemkafka.SkipTransactionMarkers()}, 3}} {
		var j journal
		scripted(t, j.handle, c.opts, func(s *script, _ *events, end func() error) {
			stamped := marker(1, 1)
			idemkafka.SetToken(&stamped, "stamped")
			s.msgs <- at(0, 0, "a")
			s.msgs <- stamped
			s.msgs <- marker(2, 2) // no kind that there is
			s.msgs <- marker(3, 0)
			s.msgs <- marker(4, 1)
			time.Sleep(5 * time.Second)
			if err := end(); err != nil {
				t.Error(err)
			}
			if got := s.offsets(); got[0] != 5 {
				t.Errorf("committed %v", got)
			}
		})
		if n := j.len(); n != c.want {
			t.Errorf("%d handled, want %d", n, c.want)
		}
	}
}

// A Reader that a consumer fetches from, or has fetched from, is no other consumer's: it
// would commit past what the first one did not handle.
func TestSecondConsumerOfAReader(t *testing.T) {
	for _, c := range []struct {
		name  string
		drain bool // the first Run ends by its context, else by the message that it must not pass over
		while bool // it is at work
	}{{name: "after an error"}, {name: "after a stop", drain: true}, {name: "beside", while: true}} {
		t.Run(c.name, func(t *testing.T) {
			var begun chan struct{} // made in the bubble
			first := func(ctx context.Context, _ kafka.Message) error {
				close(begun)
				if !c.drain && !c.while {
					return idem.Permanent(errTest)
				}
				<-ctx.Done()
				return ctx.Err()
			}
			scripted(t, first, []idemkafka.Option{consumers.DrainTimeout(time.Second)}, func(s *script, _ *events, end func() error) {
				begun = make(chan struct{})
				s.msgs <- at(0, 0, "a")
				<-begun
				if c.drain {
					_ = end()
				}
				time.Sleep(5 * time.Second)
				var j journal
				second, err := idemkafka.NewConsumer(s, idem.New(idem.WithStore(memstore.New())), j.handle)
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context())) // of the bubble
				defer cancel()
				done := startRun(ctx, second)
				time.Sleep(5 * time.Second)
				select {
				case err := <-done:
					if err == nil || !strings.Contains(err.Error(), "run by another consumer") || !strings.Contains(err.Error(), "new kafka.Reader") {
						t.Errorf("Run over a Reader that was run before: %v", err)
					}
				default:
					t.Error("Run over a Reader that was run before goes on")
					for i := range int64(10) { // beside the first each gets some
						s.msgs <- at(0, 1+i, series("m", 10)[i])
					}
					time.Sleep(5 * time.Second)
					cancel()
					if err := <-done; err != nil {
						t.Error(err)
					}
				}
				s.set(func() {
					if s.fetched != 1 {
						t.Errorf("%d messages were fetched, want the first consumer's", s.fetched)
					}
				})
				if got := s.offsets()[0]; got != 0 {
					t.Errorf("committed %d, and offset 0 was never handled: it is lost", got)
				}
				j.want(t)
				if !c.drain {
					_ = end()
				}
			})
		})
	}
}

// A Run that ended before it fetched leaves the Reader to another consumer.
func TestReaderIsGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript()
		var j journal
		g := idem.New(idem.WithStore(memstore.New()))
		strict, err := idemkafka.NewConsumer(s, g, j.handle, consumers.Strict())
		if err != nil {
			t.Fatal(err)
		}
		if err := strict.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "Strict") {
			t.Errorf("Run that Strict does not let begin: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for range 2 {
			c, err := idemkafka.NewConsumer(s, g, j.handle)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Run(ctx); err != nil {
				t.Errorf("Run that is told to stop before it began: %v", err)
			}
			if err := c.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "twice") || !strings.Contains(err.Error(), "new kafka.Reader") {
				t.Errorf("a second Run: %v", err)
			}
		}
		c, err := idemkafka.NewConsumer(s, g, j.handle)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel = context.WithCancel(t.Context())
		defer cancel()
		done := startRun(ctx, c)
		select {
		case err := <-done:
			t.Fatalf("Run over a Reader that nothing was fetched from: %v", err)
		case s.msgs <- at(0, 0, "a"):
		}
		time.Sleep(5 * time.Second)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		j.want(t, "a")
		if got := s.offsets(); got[0] != 1 {
			t.Errorf("committed %v", got)
		}
	})
}
