package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/shirou/gopsutil/v4/process"

	idemkafka "github.com/idemq/idemq/consumers/kafka"
	"github.com/idemq/idemq/internal/kafkatest"
)

// Soak is what the memory of a process with a consumer does over many messages.
type Soak struct {
	Messages int      `json:"messages"`
	Points   []Sample `json:"points"`
	Failed   string   `json:"failed,omitempty"`
}

// Sample is taken at each million, and at the end.
type Sample struct {
	Handled int     `json:"handled"`
	Seconds float64 `json:"seconds"`
	Heap    uint64  `json:"heap"` // bytes that live on the Go heap, after a collection
	RSS     uint64  `json:"rss"`  // bytes of the process
}

const (
	sampleEvery = 1_000_000
	// soakAhead is how many messages the producer may be ahead, which bounds the topic's share
	// of the disk together with its retention.
	soakAhead = 200_000
	soakChunk = 2000
)

// effects are a bit for each token, made before the clock starts: they are the harness's, and
// do not grow.
type effects struct {
	mu            sync.Mutex
	bits          []uint64
	done, doubled int
}

func (e *effects) add(n uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.bits[n/64]&(1<<(n%64)) != 0 {
		e.doubled++
		return
	}
	e.bits[n/64] |= 1 << (n % 64)
	e.done++
}

func (e *effects) count() (done, doubled int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.done, e.doubled
}

// soakMessage is the i-th message: every tenth repeats the one before it.
func soakMessage(i int) message {
	n := i
	if i%copyEvery == copyAt {
		n--
	}
	w := Work{partitions: partitions}
	return w.message(n, fmt.Sprintf("00000000-0000-7000-8000-%012d", n))
}

// measureSoak has our Kafka consumer with the compact layout consume messages that are
// published while it does.
func (res *Result) measureSoak(t *testing.T, messages int) {
	t.Helper()
	messages -= messages % copyEvery
	if messages <= 0 {
		t.Fatal("the soak needs a number of messages")
	}
	// What was consumed goes from the disk soon.
	k := &kafkaServer{Server: kafkatest.Start(t, "log.retention.check.interval.ms=5000")}
	k.CreateTopic(t, "soak", partitions, "retention.bytes=67108864", "segment.bytes=16777216", "segment.jitter.ms=0")
	b := newBed(t)
	s := &Soak{Messages: messages}
	e := &effects{bits: make([]uint64, messages/64+1)}
	site := &Site{Addr: k.Addr(), Source: "soak", Group: "soak", Partitions: partitions}
	distinct := messages - messages/copyEvery

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	guard := b.guard(compactLayout(messages))
	c, err := idemkafka.NewGroupConsumer(site.reader(), guard, func(_ context.Context, m kafka.Message) error {
		n, err := numberOf(m.Value)
		if err == nil {
			e.add(n)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var failed atomic.Pointer[error]
	stop := func(err error) {
		if err != nil && !errors.Is(err, context.Canceled) {
			failed.CompareAndSwap(nil, &err)
			cancel()
		}
	}
	var both sync.WaitGroup
	both.Go(func() { stop(c.Run(ctx)) })
	p := k.producer(t, "soak")
	defer p.close()
	both.Go(func() { stop(soakPublish(ctx, p, e, messages)) })

	begun := time.Now()
	for next := min(sampleEvery, distinct); ; next = min(next+sampleEvery, distinct) {
		if await(ctx, func() bool { done, _ := e.count(); return done >= next }) != nil {
			break
		}
		sample, err := takeSample(next, begun)
		if err != nil {
			t.Fatal(err)
		}
		s.Points = append(s.Points, sample)
		t.Logf("%s handled in %.0f s: heap %s, RSS %s", grouped(next), sample.Seconds, megabytes(sample.Heap), megabytes(sample.RSS))
		if next == distinct {
			break
		}
	}
	cancel()
	both.Wait()
	done, doubled := e.count()
	switch err := failed.Load(); {
	case err != nil:
		t.Fatal(*err)
	case done != distinct || doubled > 0:
		t.Fatalf("%d of %d tokens had their effect, %d effects too many", done, distinct, doubled)
	}
	if s.Failed = s.grows(); s.Failed != "" {
		t.Error(s.Failed)
	}
	res.Soak = s
}

// soakPublish keeps a bounded number of messages ahead of the consumer.
func soakPublish(ctx context.Context, p producer, e *effects, messages int) error {
	for i := 0; i < messages; {
		some := make([]message, 0, soakChunk)
		for ; i < messages && len(some) < soakChunk; i++ {
			some = append(some, soakMessage(i))
		}
		if err := errors.Join(p.send(ctx, some...), p.flush(ctx)); err != nil {
			return err
		}
		sent := i - i/copyEvery
		if err := await(ctx, func() bool { done, _ := e.count(); return sent-done < soakAhead }); err != nil {
			return err
		}
	}
	return nil
}

func takeSample(handled int, begun time.Time) (s Sample, err error) {
	s = Sample{Handled: handled, Seconds: time.Since(begun).Seconds()}
	self, err := process.NewProcess(int32(os.Getpid()))
	if err != nil {
		return s, err
	}
	memory, err := self.MemoryInfo()
	if err != nil {
		return s, err
	}
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	s.Heap, s.RSS = m.HeapAlloc, memory.RSS
	return s, nil
}

// grown is how much more than at the first sample may live on the heap at the last one: the
// number of messages that are under way is not the same.
const grown = 32 << 20

// grows says that the heap does, or nothing.
func (s *Soak) grows() string {
	if len(s.Points) < 2 {
		return ""
	}
	first, last := s.Points[0], s.Points[len(s.Points)-1]
	if last.Heap <= first.Heap+grown {
		return ""
	}
	return fmt.Sprintf("the heap grows: %s at %s messages, %s at %s", megabytes(first.Heap), grouped(first.Handled), megabytes(last.Heap), grouped(last.Handled))
}

func megabytes(n uint64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }

func soakSection(s *Soak) string {
	var b strings.Builder
	fmt.Fprintf(&b, "`idemkafka.NewGroupConsumer`, compact, over %s messages that are published while it consumes; the process has the producer and the harness in it, too.", grouped(s.Messages))
	rows := [][]string{{"handled", "seconds", "Go heap", "RSS"}}
	for _, p := range s.Points {
		rows = append(rows, []string{grouped(p.Handled), fmt.Sprintf("%.0f", p.Seconds), megabytes(p.Heap), megabytes(p.RSS)})
	}
	fmt.Fprintf(&b, "\n\n%s", markdown(rows))
	return b.String()
}
