package torture

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/idemq/idemq/e2e/history"
	"github.com/idemq/idemq/e2e/torture/role"
	"github.com/idemq/idemq/internal/child"
)

// drainLimit is how long a consumer process may take to end after SIGTERM.
const drainLimit = 45 * time.Second

// maxFailures is after how many processes that ended by themselves no more are started.
const maxFailures = 10

// fleet is the consumer processes of a round. Each slot has one at a time; the last slot
// is that of the process that comes and goes. It is safe for concurrent use.
type fleet struct {
	bin    string
	dir    string // of histories and logs
	config role.Config
	named  bool // processes of a slot share the name of an instance
	spared int  // slots, from the first on, that a deploy leaves alone
	record func(history.Event)
	slots  []*slot
	wg     sync.WaitGroup

	joining sync.Mutex // held while there is one process more

	mu       sync.Mutex
	started  uint16
	failures []string
}

// slot is the place of a process.
type slot struct {
	name string

	mu     sync.Mutex // held by whoever starts or ends its process
	now    *process   // nil: none is to run
	ending bool
}

// process is one consumer process.
type process struct {
	*child.Process
	cmd    *exec.Cmd
	number uint16
	log    string // file of what it wrote
	meant  atomic.Bool
	stdin  io.WriteCloser
}

// newFleet starts a process in each of n slots.
func newFleet(bin, dir string, n int, named bool, config role.Config, record func(history.Event)) (*fleet, error) {
	f := &fleet{bin: bin, dir: dir, config: config, named: named, record: record}
	for i := range n + 1 {
		f.slots = append(f.slots, &slot{name: fmt.Sprintf("consumer-%d", i)})
	}
	for _, s := range f.slots[:n] {
		if err := f.start(s); err != nil {
			f.stop()
			return nil, err
		}
	}
	return f, nil
}

func (f *fleet) extra() *slot { return f.slots[len(f.slots)-1] }

// start is called by those who may start a process of s.
func (f *fleet) start(s *slot) error {
	f.mu.Lock()
	f.started++
	number := f.started
	f.mu.Unlock()

	config := f.config
	config.Number = number
	config.History = filepath.Join(f.dir, fmt.Sprintf("consumer-%04d.hist", number))
	if f.named {
		config.Instance = s.name
	}
	told, err := json.Marshal(config)
	if err != nil {
		return err
	}
	p := &process{number: number, log: filepath.Join(f.dir, fmt.Sprintf("consumer-%04d.log", number))}
	log, err := os.Create(p.log)
	if err != nil {
		return err
	}
	defer log.Close() // the child has its own
	p.cmd = exec.Command(f.bin)
	p.cmd.Env = append(os.Environ(), role.Env+"="+string(told))
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return err
	}
	if p.Process, err = child.Start(p.cmd); err != nil {
		return fmt.Errorf("starting a consumer: %w", err)
	}
	s.now = p
	f.wg.Go(func() { f.watch(s, p) })
	return nil
}

// watch notes that p ended by itself, and starts another one.
func (f *fleet) watch(s *slot, p *process) {
	<-p.Done()
	if p.meant.Load() {
		return
	}
	ended := history.Now()
	n := f.fail("consumer %d ended by itself: %v: %s", p.number, p.cmd.ProcessState, p.tail())
	f.record(history.Event{Kind: history.Fault, Op: uint8(Kill), Process: p.number, At: ended, Until: ended})
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now != p || s.ending || n > maxFailures {
		return
	}
	if err := f.start(s); err != nil {
		f.fail("%v", err)
	}
}

// fail notes what should not have happened, and returns how much that is by now.
func (f *fleet) fail(format string, args ...any) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failures = append(f.failures, fmt.Sprintf(format, args...))
	return len(f.failures)
}

// tail is the end of what a process wrote.
func (p *process) tail() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(child.Tail(text)))
}

// command writes a line to the standard input of the process of a slot.
func (s *slot) command(name string, d time.Duration) (number uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now == nil {
		return 0
	}
	_, _ = fmt.Fprintf(s.now.stdin, "%s %v\n", name, d) // one that died has no use for it
	return s.now.number
}

// kill ends the process of a slot with SIGKILL and starts another one after a while, or
// at the end of ctx. It reports whether there was one, as the next ones do.
func (f *fleet) kill(ctx context.Context, s *slot, after time.Duration) (happened bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now == nil {
		return false
	}
	s.now.meant.Store(true)
	sent := history.Now()
	s.now.Kill()
	if state := s.now.cmd.ProcessState; state.Exited() {
		f.fail("consumer %d ended by itself: %v: %s", s.now.number, state, s.now.tail())
	}
	f.record(history.Event{Kind: history.Fault, Op: uint8(Kill), Process: s.now.number, At: sent, Until: history.Now()})
	pass(ctx, after)
	f.again(s)
	return true
}

// again starts the next process of a slot, with its mutex held.
func (f *fleet) again(s *slot) {
	s.now = nil
	if s.ending {
		return
	}
	if err := f.start(s); err != nil {
		f.fail("%v", err)
	}
}

// pause stops the process of a slot for d, also when ctx ends before: a shorter one would leave
// it its leases.
func (f *fleet) pause(ctx context.Context, s *slot, d time.Duration) (happened bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now == nil || ctx.Err() != nil {
		return false
	}
	_ = s.now.Signal(syscall.SIGSTOP) // of one that ended, watch tells
	// What the process does is before or after this span, however busy the machine is: it
	// is stopped during all of it.
	stopped := history.Now()
	pass(context.WithoutCancel(ctx), d)
	until := history.Now()
	_ = s.now.Signal(syscall.SIGCONT)
	f.record(history.Event{Kind: history.Fault, Op: uint8(Pause), Process: s.now.number, At: stopped, Until: until})
	return true
}

// deploy replaces the processes, one after another.
func (f *fleet) deploy(ctx context.Context, between time.Duration) (happened bool) {
	for _, s := range f.slots[f.spared : len(f.slots)-1] {
		s.mu.Lock()
		if s.now != nil {
			f.end(s.now, Deploy)
			f.again(s)
			happened = true
		}
		s.mu.Unlock()
		pass(ctx, between)
	}
	return happened
}

// join has one more process for d, or until ctx ends.
func (f *fleet) join(ctx context.Context, d time.Duration) (happened bool) {
	f.joining.Lock() // the one before may still be draining
	defer f.joining.Unlock()
	if ctx.Err() != nil {
		return false
	}
	s := f.extra()
	s.mu.Lock()
	err := f.start(s)
	s.mu.Unlock()
	if err != nil {
		f.fail("%v", err)
		return false
	}
	pass(ctx, d)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now != nil {
		f.end(s.now, Rebalance)
		s.now = nil
	}
	return true
}

// end tells a process to stop, and waits until it has.
func (f *fleet) end(p *process, why Kind) {
	p.meant.Store(true)
	began := history.Now()
	_ = p.Signal(syscall.SIGTERM)
	t := time.NewTimer(drainLimit)
	defer t.Stop()
	select {
	case <-p.Done():
		if !p.cmd.ProcessState.Success() && p.DiedOf() != syscall.SIGTERM { // of which it dies before it catches it
			f.fail("consumer %d was told to stop, and ended with %v: %s", p.number, p.cmd.ProcessState, p.tail())
		}
	case <-t.C:
		p.dump()
		p.Kill()
		f.fail("consumer %d did not end within %v of SIGTERM; its goroutines are in %s", p.number, drainLimit, filepath.Base(p.log))
	}
	f.record(history.Event{Kind: history.Fault, Op: uint8(why), Process: p.number, At: began, Until: history.Now()})
}

// dump has a process write its goroutines to its log, and ends it.
func (p *process) dump() {
	p.meant.Store(true)
	_ = p.Signal(syscall.SIGQUIT)
	t := time.NewTimer(5 * time.Second)
	defer t.Stop()
	select {
	case <-p.Done():
	case <-t.C:
	}
}

// dump has all processes write their goroutines to their logs, which ends them.
func (f *fleet) dump() {
	for _, s := range f.slots {
		s.mu.Lock()
		if s.ending = true; s.now != nil {
			s.now.dump()
			s.now.Kill()
			s.now = nil
		}
		s.mu.Unlock()
	}
}

// stop ends all processes, side by side, and waits for them.
func (f *fleet) stop() {
	var wg sync.WaitGroup
	for _, s := range f.slots {
		wg.Go(func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.ending = true
			if s.now != nil {
				f.end(s.now, Deploy)
				s.now = nil
			}
		})
	}
	wg.Wait()
	f.wg.Wait()
}

// abandon ends all processes, for a round that is given up.
func (f *fleet) abandon() {
	for _, s := range f.slots {
		s.mu.Lock()
		s.ending = true
		if s.now != nil {
			s.now.meant.Store(true)
			s.now.Kill()
			s.now = nil
		}
		s.mu.Unlock()
	}
	f.wg.Wait()
}

// failed lists what should not have happened.
func (f *fleet) failed() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.failures
}

// pass waits for d, or for the end of ctx. It reports whether d has passed.
func pass(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
