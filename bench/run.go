package bench

import (
	"context"
	"encoding/binary"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Run is one row at work: what its handler did, and what that took.
type Run struct {
	work    *Work
	effects []atomic.Uint32 // by token
	done    atomic.Int64    // tokens that had an effect

	once    sync.Once
	begun   usage
	handled chan struct{} // closed at the last token's first effect
	at      time.Time     // then
	over    chan struct{} // closed when the row may end

	legs []*histogram // from when a message was due until it was handled; see stamp

	foreign *time.Duration // CPU time of the process that the row ran in, where that is another
}

func newRun(w *Work) *Run {
	return &Run{work: w, effects: make([]atomic.Uint32, w.Distinct()), handled: make(chan struct{}), over: make(chan struct{})}
}

// Begin starts the clock, once: at the first message that the row is seen to have.
func (r *Run) Begin() { r.once.Do(func() { r.begun = use() }) }

// Handle is the handler of every row: an effect that costs next to nothing.
func (r *Run) Handle(payload []byte) error {
	n, err := numberOf(payload)
	if err != nil {
		return err
	}
	if n >= uint64(len(r.effects)) {
		return fmt.Errorf("a message of token %d, of %d", n, len(r.effects))
	}
	if leg := payload[legAt]; leg > 0 && int(leg) <= len(r.legs) {
		due := time.Duration(binary.BigEndian.Uint64(payload[dueAt:]))
		r.legs[leg-1].record(time.Since(started) - due)
	}
	if r.effects[n].Add(1) == 1 && r.done.Add(1) == int64(len(r.effects)) {
		r.at = time.Now()
		close(r.handled)
	}
	return nil
}

// What a payload has behind its token: when the message was due, by the clock of this process,
// and in which leg.
const (
	dueAt = 8
	legAt = 16
)

var started = time.Now()

// stamp writes when a message is due. Legs are counted from 1.
func (m *message) stamp(leg int, due time.Time) {
	binary.BigEndian.PutUint64(m.payload[dueAt:], uint64(due.Sub(started)))
	m.payload[legAt] = byte(leg)
}

// elsewhere is Handle's end for a row that runs in a process of its own, which used so much
// CPU time. It has to count the effects as well, before it is through.
func (r *Run) elsewhere(cpu time.Duration) {
	r.at, r.foreign = time.Now(), &cpu
	close(r.handled)
}

// Over is closed when the broker has seen everything settled, or, for a row that is late
// with it, when every token has had its effect. A row that closed its connection earlier
// might take acks with it that are under way in the broker: a quorum queue's are.
func (r *Run) Over() <-chan struct{} { return r.over }

// Until is a context that ends when the run is over: for consumers that run until they are
// told to end.
func (r *Run) Until(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, stop := context.WithCancel(ctx)
	go func() {
		select {
		case <-r.over:
			stop()
		case <-ctx.Done():
		}
	}()
	return ctx, stop
}

// tally counts tokens that had no effect, and effects beyond the first.
func (r *Run) tally() (missing, doubled int) {
	for i := range r.effects {
		switch n := int(r.effects[i].Load()); n {
		case 0:
			missing++
		default:
			doubled += n - 1
		}
	}
	return missing, doubled
}

// usage is what this process had used at a time.
type usage struct {
	at      time.Time
	cpu     time.Duration
	mallocs uint64
}

func use() usage {
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	return usage{at: time.Now(), cpu: cpuTime(), mallocs: mem.Mallocs}
}

// cpuTime is the time that this process has spent on CPUs.
func cpuTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
