package kafkatest

import (
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"go.uber.org/goleak"

	"github.com/idemq/idemq/internal/child"
	"github.com/idemq/idemq/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(Main(m)) }

// write writes one message of each value, to the partition that its place says.
func write(tb testing.TB, s *Server, topic string, partitions int, values ...string) {
	tb.Helper()
	transport := &kafka.Transport{}
	defer transport.CloseIdleConnections()
	w := &kafka.Writer{
		Addr: kafka.TCP(s.Addr()), Topic: topic, RequiredAcks: kafka.RequireAll, BatchTimeout: time.Millisecond, Transport: transport,
		Balancer: kafka.BalancerFunc(func(m kafka.Message, _ ...int) int { return int(m.Key[0]-'0') % partitions }),
	}
	defer w.Close()
	var msgs []kafka.Message
	for i, v := range values {
		msgs = append(msgs, kafka.Message{Key: fmt.Append(nil, i%partitions), Value: []byte(v), Headers: []kafka.Header{{Key: "H", Value: []byte(v)}}})
	}
	if err := w.WriteMessages(tb.Context(), msgs...); err != nil {
		tb.Fatal(err)
	}
}

// read reads n messages in a group and commits them.
func read(tb testing.TB, s *Server, group, topic string, n int) {
	tb.Helper()
	r := kafka.NewReader(kafka.ReaderConfig{
		Brokers: []string{s.Addr()}, GroupID: group, Topic: topic, MaxWait: 100 * time.Millisecond, StartOffset: kafka.FirstOffset,
		JoinGroupBackoff: 100 * time.Millisecond,
	})
	defer r.Close()
	ctx, cancel := context.WithTimeout(tb.Context(), time.Minute)
	defer cancel()
	for range n {
		m, err := r.FetchMessage(ctx)
		if err != nil {
			tb.Fatal(err)
		}
		if err := r.CommitMessages(ctx, m); err != nil {
			tb.Fatal(err)
		}
	}
}

func wantOffsets(t *testing.T, what string, got, want map[int]int64) {
	t.Helper()
	if !maps.Equal(got, want) {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

// tour is what the broker and the fake both have to do.
func tour(t *testing.T, s *Server) {
	t.Helper()
	s.CreateTopic(t, "orders", 2, "retention.ms=3600000")
	if all := s.All(t, "orders"); len(all) != 0 {
		t.Errorf("%d messages in a new topic", len(all))
	}
	wantOffsets(t, "ends of a new topic", s.Ends(t, "orders"), map[int]int64{0: 0, 1: 0})
	wantOffsets(t, "committed by nobody", s.Committed(t, "nobody", "orders"), map[int]int64{})

	write(t, s, "orders", 2, "a", "b", "c")
	wantOffsets(t, "ends", s.Ends(t, "orders"), map[int]int64{0: 2, 1: 1})
	var got []string
	for _, m := range s.All(t, "orders") {
		got = append(got, fmt.Sprintf("%s %d/%d %s %s=%s", m.Topic, m.Partition, m.Offset, m.Value, m.Headers[0].Key, m.Headers[0].Value))
	}
	if fmt.Sprint(got) != "[orders 0/0 a H=a orders 0/1 c H=c orders 1/0 b H=b]" {
		t.Errorf("all messages: %q", got)
	}
	read(t, s, "billing", "orders", 3)
	wantOffsets(t, "committed", s.Committed(t, "billing", "orders"), map[int]int64{0: 2, 1: 1})
}

// Clients that come by the second listener are told to stay there.
func TestStartBehind(t *testing.T) {
	t.Parallel()
	var forwarded string
	s := StartBehind(t, func(upstream string) string {
		forwarded = upstream
		return "127.0.0.1:1"
	})
	for addr, want := range map[string]string{s.Addr(): s.Addr(), forwarded: "127.0.0.1:1"} {
		c, done := client(addr)
		defer done()
		meta, err := c.Metadata(t.Context(), &kafka.MetadataRequest{})
		if err != nil {
			t.Fatal(err)
		}
		b := meta.Brokers[0]
		if got := net.JoinHostPort(b.Host, strconv.Itoa(b.Port)); got != want {
			t.Errorf("who asks %s is sent to %s, want %s", addr, got, want)
		}
	}
	if v := s.Version(); !strings.Contains(v, ".") {
		t.Errorf("version %q", v)
	}
}

func TestStart(t *testing.T) {
	t.Parallel()
	tour(t, Start(t))
}

// TestShared: two tests, one broker, and neither may kill it.
func TestShared(t *testing.T) {
	t.Parallel()
	var addrs []string
	for _, name := range []string{"first", "second"} {
		t.Run(name, func(t *testing.T) {
			s := Shared(t)
			s.CreateTopic(t, fresh(name), 1)
			addrs = append(addrs, s.Addr())
		})
	}
	if len(addrs) != 2 || addrs[0] != addrs[1] {
		t.Errorf("brokers at %q", addrs)
	}
}

// recorder is a testing.TB that notes how a test was ended.
type recorder struct {
	testing.TB
	failed string
}

func (r *recorder) Helper() {}
func (r *recorder) Fatalf(format string, args ...any) {
	r.failed = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

// TestNotYours: no verb reaches a fake, nor a broker that others use.
func TestNotYours(t *testing.T) {
	t.Parallel()
	for what, s := range map[string]*Server{"a fake": StartFake(t), "a broker that other tests use": Shared(t)} {
		for verb, f := range map[string]func(*Server){
			"kill": (*Server).Kill, "restart": (*Server).Restart, "pause": (*Server).Pause, "resume": (*Server).Resume,
		} {
			r := &recorder{}
			copied := *s
			copied.tb = r
			done := make(chan struct{})
			go func() {
				defer close(done)
				f(&copied)
			}()
			<-done
			if want := "cannot " + verb + " " + what + ": use kafkatest.Start"; r.failed != want {
				t.Errorf("failed with %q, want %q", r.failed, want)
			}
		}
		s.CreateTopic(t, fresh("not-yours"), 1) // it still answers
	}
}

// fresh is a name that no earlier run of the tests in this process has used.
func fresh(name string) string { return fmt.Sprintf("%s-%d", name, time.Now().UnixNano()) }

func TestFake(t *testing.T) {
	t.Parallel()
	tour(t, StartFake(t))
}

// TestRestart: what was written and committed before a SIGKILL is there after it.
func TestRestart(t *testing.T) {
	t.Parallel()
	s := Start(t)
	s.CreateTopic(t, "orders", 2)
	write(t, s, "orders", 2, "a", "b", "c")
	read(t, s, "billing", "orders", 3)
	addr := s.Addr()
	s.Kill()
	if conn, err := net.Dial("tcp", addr); err == nil {
		conn.Close()
		t.Fatal("a killed broker answers")
	}
	began := time.Now()
	s.Restart()
	t.Logf("restarted in %v", time.Since(began).Round(time.Millisecond))
	if s.Addr() != addr {
		t.Errorf("%s after a restart, %s before", s.Addr(), addr)
	}
	if all := s.All(t, "orders"); len(all) != 3 {
		t.Errorf("%d messages after a restart, want 3", len(all))
	}
	wantOffsets(t, "committed before the restart", s.Committed(t, "billing", "orders"), map[int]int64{0: 2, 1: 1})
	write(t, s, "orders", 2, "d")
	wantOffsets(t, "ends", s.Ends(t, "orders"), map[int]int64{0: 3, 1: 1})
}

// A commit that goes back is not all that a group ever committed.
func TestFurthest(t *testing.T) {
	t.Parallel()
	s := Start(t)
	s.CreateTopic(t, "orders", 2)
	write(t, s, "orders", 2, "a", "b", "c")
	read(t, s, "billing", "orders", 3)
	read(t, s, "other", "orders", 1)
	c, done := client(s.Addr())
	defer done()
	resp, err := c.OffsetCommit(t.Context(), &kafka.OffsetCommitRequest{GroupID: "billing", GenerationID: -1, Topics: map[string][]kafka.OffsetCommit{"orders": {{Partition: 0, Offset: 1}}}})
	if err != nil || resp.Topics["orders"][0].Error != nil {
		t.Fatal(resp, err)
	}
	wantOffsets(t, "committed", s.Committed(t, "billing", "orders"), map[int]int64{0: 1, 1: 1})
	wantOffsets(t, "furthest", s.Furthest(t, "billing", "orders"), map[int]int64{0: 2, 1: 1})
	wantOffsets(t, "furthest of nobody", s.Furthest(t, "nobody", "orders"), map[int]int64{})
}

func TestPause(t *testing.T) {
	t.Parallel()
	s := Start(t)
	s.CreateTopic(t, "orders", 1)
	s.Pause()
	if err := ready(s.Addr()); err == nil {
		t.Error("a paused broker answers")
	}
	s.Resume()
	testenv.Await(t, "the broker answers", func() bool { return ready(s.Addr()) == nil })
	write(t, s, "orders", 1, "a")
	wantOffsets(t, "ends", s.Ends(t, "orders"), map[int]int64{0: 1})
}

// TestProps: a test's settings win, and a broker that cannot start says why.
func TestProps(t *testing.T) {
	t.Parallel()
	s := Start(t, "auto.create.topics.enable=true", "num.partitions=3")
	transport := &kafka.Transport{}
	defer transport.CloseIdleConnections()
	w := &kafka.Writer{Addr: kafka.TCP(s.Addr()), Topic: "made", AllowAutoTopicCreation: true, BatchTimeout: time.Millisecond, Transport: transport}
	defer w.Close()
	testenv.Await(t, "the topic", func() bool { return w.WriteMessages(t.Context(), kafka.Message{Value: []byte("a")}) == nil })
	if n := len(s.Ends(t, "made")); n != 3 {
		t.Errorf("%d partitions, want 3", n)
	}

	s.props = append(s.props, "num.partitions=none")
	if err := s.format(); err == nil || !strings.Contains(err.Error(), "num.partitions") {
		t.Errorf("formatted with a bad setting: %v", err)
	}
}

// TestEndsAtOnce: the error has the end of the broker's log.
func TestEndsAtOnce(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := &Server{tb: t, lib: jars(t), dir: t.TempDir(), addr: l.Addr().String()}
	s.controller = child.FreeAddr(t)
	if err := s.format(); err != nil {
		t.Fatal(err)
	}
	if err := s.run(); err == nil || !strings.Contains(err.Error(), "ended at once") || !strings.Contains(err.Error(), "Address already in use") {
		t.Errorf("on a port that is taken: %v", err)
	}
}

// TestDiesWithParent kills a test process that has started a broker.
func TestDiesWithParent(t *testing.T) {
	const envHelper = "IDEM_KAFKATEST_HELPER"
	if path := os.Getenv(envHelper); path != "" {
		s := Start(t)
		if err := os.WriteFile(path+".tmp", []byte(s.Addr()), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".tmp", path); err != nil {
			t.Fatal(err)
		}
		select {}
	}
	t.Parallel()
	if !child.DiesWithParent {
		t.Skip("brokers outlive a killed test on this system")
	}
	jars(t)
	path := filepath.Join(t.TempDir(), "addr")
	helper := exec.Command(os.Args[0], "-test.run=^TestDiesWithParent$")
	// The folders that the helper cannot remove lie in this test's.
	helper.Env = append(os.Environ(), envHelper+"="+path, "TMPDIR="+t.TempDir())
	proc, err := child.Start(helper)
	if err != nil {
		t.Fatal(err)
	}
	defer proc.Kill()
	var addr []byte
	testenv.Await(t, "the helper's broker", func() bool {
		addr, err = os.ReadFile(path)
		return err == nil
	})
	answers := func() bool {
		conn, err := net.Dial("tcp", string(addr))
		if err != nil {
			return false
		}
		conn.Close()
		return true
	}
	if !answers() {
		t.Fatal("the helper's broker does not answer")
	}
	proc.Kill()
	testenv.Await(t, "the broker's end", func() bool { return !answers() })
}
