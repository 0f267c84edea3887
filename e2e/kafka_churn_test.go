package e2e_test

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/idemq/idemq/internal/testenv"
)

// fleet is consumer processes that come and go: each slot has one at a time.
type fleet struct {
	t      *testing.T
	calm   chan struct{} // closed: those that run stay
	ending chan struct{} // closed: those that run are asked to stop
	wg     sync.WaitGroup

	mu     sync.Mutex
	killed map[int]killing // by process id
	kills  []int           // by slot
	starts int
}

// killing is when a process was sent SIGKILL, and when it was dead.
type killing struct{ sent, dead time.Time }

// launch starts as many slots as there are, each of whose processes lives for about
// life. Every other end is by SIGKILL, the first one included, the others by SIGTERM. The
// processes of the first slot handle messages of a partition side by side.
func (r kafkaRole) launch(t *testing.T, slots int, life time.Duration) *fleet {
	t.Helper()
	f := &fleet{t: t, calm: make(chan struct{}), ending: make(chan struct{}), killed: map[int]killing{}, kills: make([]int, slots)}
	t.Cleanup(f.wg.Wait) // after the processes were killed
	for slot := range slots {
		r := r
		if slot == 0 {
			r.Concurrency = 4
		}
		first := mustSpawn(t, kafkaRoleEnv, r)
		f.wg.Go(func() { f.run(r, slot, first, life+life*time.Duration(slot)/time.Duration(slots)) })
	}
	return f
}

func (f *fleet) run(r kafkaRole, slot int, p process, life time.Duration) {
	for n := 0; ; n++ {
		f.mu.Lock()
		f.starts++
		f.mu.Unlock()
		timer := time.NewTimer(life)
		select {
		case <-p.Done():
			f.t.Errorf("consumer process %d ended by itself: %v", p.Pid(), p.cmd.ProcessState)
			return
		case <-timer.C:
			if n%2 == 0 {
				f.kill(slot, p)
			} else if err := p.terminate(); err != nil {
				f.t.Error(err)
				return
			}
		case <-f.calm:
			select {
			case <-f.ending:
				if err := p.terminate(); err != nil {
					f.t.Error(err)
				}
			case <-p.Done():
				f.t.Errorf("consumer process %d ended by itself: %v", p.Pid(), p.cmd.ProcessState)
			}
			return
		}
		var err error
		if p, err = spawn(f.t, kafkaRoleEnv, r, nil); err != nil {
			f.t.Error(err)
			return
		}
	}
}

// join adds a process, which stays to the end. The fleet has to be calm.
func (f *fleet) join(r kafkaRole) {
	f.t.Helper()
	p := mustSpawn(f.t, kafkaRoleEnv, r)
	f.wg.Go(func() { f.run(r, 0, p, time.Hour) })
}

func (f *fleet) kill(slot int, p process) {
	sent := time.Now()
	p.Kill()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.killed[p.Pid()] = killing{sent, time.Now()}
	f.kills[slot]++
}

// leastKilled is how often the slot was killed that was killed least.
func (f *fleet) leastKilled() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Min(f.kills)
}

// stop ends the processes that are left.
func (f *fleet) stop() {
	close(f.ending)
	f.wg.Wait()
}

// Consumer processes come and go while messages flow, some of them twice, some failing
// at first: every message takes effect, and again only where its process was killed
// between the effect and the record of it.
func TestKafkaChurn(t *testing.T) {
	t.Parallel()
	const slots = 3
	n, perSecond := 10_000, 600
	if isFull() {
		n, perSecond = 100_000, 1500
	}
	servers := newKafkaSite(t)
	t.Run("constructors", func(t *testing.T) { // side by side: they mostly wait for sessions to end
		for _, c := range constructors {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				s := servers.with(t, "churn-"+c.name, 8)
				r := s.role(c.owns)
				r.Session, r.Lease, r.FailFirst = 2*time.Second, 3*time.Second, 20
				began := time.Now()
				f := r.launch(t, slots, 5*time.Second)
				<-s.flow(n, perSecond)
				testenv.Await(t, "each slot was killed", func() bool { return f.leastKilled() > 0 || t.Failed() })
				close(f.calm)
				if !c.owns {
					s.settleReaders(n, f, r)
				}
				s.awaitSettled()
				f.stop()
				s.account(n, f, time.Since(began))
			})
		}
	})
}

// settleReaders waits until n orders took effect (or all are committed: account names what
// is lost then), and has another process join if offsets are owed long after. Over a Reader
// that may be: a commit that crosses one of the partition's next owner moves the offset
// back, and nobody has anything to commit then, until there are messages or a rebalance. An
// offset that was never committed to the end has not been moved back: it is held up.
func (s *kafkaSite) settleReaders(n int, f *fleet, r kafkaRole) {
	s.t.Helper()
	testenv.Await(s.t, "all orders took effect", seldom(func() bool { return s.once() == n || s.owed() == 0 }))
	const soon = 15 * time.Second // many times what recording and committing takes
	began := time.Now()
	testenv.Await(s.t, "all offsets are committed, or long owed", seldom(func() bool { return s.owed() == 0 || time.Since(began) > soon }))
	owed, text := s.owing()
	if owed == 0 {
		return
	}
	furthest := s.kafka.Furthest(s.t, s.group, s.topic)
	for p, end := range s.kafka.Ends(s.t, s.topic) {
		if furthest[p] < end {
			s.t.Errorf("partition %d is committed to %d of %d, and was never further, %v after all was handled", p, furthest[p], end, soon)
		}
	}
	s.t.Logf("%d offsets are owed %v after all was handled, another process joins: %s", owed, soon, text)
	f.join(r)
}

func orderToken(i int) string { return fmt.Sprintf("order-%06d", i) }

// flow publishes n messages, one in ten of them again a little later: some into the
// same partition, some into another.
func (s *kafkaSite) flow(n, perSecond int) (published chan struct{}) {
	const ticksPerSecond = 5
	w, ctx := s.writer(), s.t.Context()
	published = make(chan struct{})
	go func() {
		defer close(published)
		tick := time.NewTicker(time.Second / ticksPerSecond)
		defer tick.Stop()
		var again []kafka.Message
		for i := 0; i < n || len(again) > 0; <-tick.C {
			msgs := again
			again = nil
			for end := min(i+perSecond/ticksPerSecond, n); i < end; i++ {
				msg := s.order(orderToken(i))
				msgs = append(msgs, msg)
				switch i % 20 {
				case 5:
					again = append(again, msg)
				case 15:
					msg.Key = append([]byte("other-"), msg.Key...)
					again = append(again, msg)
				}
			}
			if err := w.WriteMessages(ctx, msgs...); err != nil {
				s.t.Errorf("publish: %v", err)
				return
			}
		}
	}()
	return published
}

// account holds the journal of n orders to the promise.
func (s *kafkaSite) account(n int, f *fleet, took time.Duration) {
	t := s.t
	t.Helper()
	all := make([]string, n)
	for i := range all {
		all[i] = orderToken(i)
	}
	sum := s.tally(all, f.killed)
	once := s.once()
	t.Logf("%d messages, %d effects, %d lost, %d doubled by SIGKILL between effect and record, %d doubled otherwise, %d idempotent effects; %d processes, SIGKILLs by slot %v; from effect to record %v in the median, %v at most; %v",
		n, sum.effects, sum.lost, sum.windows, sum.broken, once, f.starts, f.kills, sum.lags[len(sum.lags)/2], sum.lags[len(sum.lags)-1], took.Round(time.Second/10))
	if sum.lost > 0 || sum.broken > 0 || once != n || sum.tokens != n {
		t.Errorf("%d messages: effects of %d, %d lost, %d doubled outside the window; %d idempotent effects", n, sum.tokens, sum.lost, sum.broken, once)
	}
	if letters := s.kafka.Ends(t, s.dead)[0]; letters != 0 {
		t.Errorf("%d dead letters", letters)
	}
}

// tally is what became of messages.
type tally struct {
	tokens  int // that took effect
	effects int
	lost    int
	windows int             // effects that happened again, in the named window
	broken  int             // and outside it
	lags    []time.Duration // from effect to record, sorted
}

// longestLag is how long after its effect a completion is recorded at the latest. It is
// milliseconds; two seconds were measured on a machine with five times more to do than
// it had cores.
const longestLag = 5 * time.Second

// tally counts the effects of messages. An effect may happen again in one window: its
// process was killed soon after the effect, had not recorded it, and only then was the
// message handled again, by a later attempt of another process.
func (s *kafkaSite) tally(tokens []string, killed map[int]killing) (sum tally) {
	t := s.t
	t.Helper()
	effects := map[string][]note{}
	recorded := map[string]map[int]bool{} // by token and process
	took := map[string]time.Time{}
	for _, e := range s.journal() {
		switch e.What {
		case noteEffect:
			effects[e.Token] = append(effects[e.Token], e)
			took[e.Token] = e.At
		case noteCommit:
			if recorded[e.Token] == nil {
				recorded[e.Token] = map[int]bool{}
			}
			recorded[e.Token][e.PID] = true
			sum.lags = append(sum.lags, e.At.Sub(took[e.Token]))
		}
	}
	slices.Sort(sum.lags)
	sum.tokens = len(effects)
	for _, token := range tokens {
		of := effects[token]
		sum.effects += len(of)
		if len(of) == 0 {
			sum.lost++
			t.Logf("%s is lost", token)
			continue
		}
		for i := 1; i < len(of); i++ {
			before, again := of[i-1], of[i]
			kill, wasKilled := killed[before.PID]
			if wasKilled && !recorded[token][before.PID] && before.At.Before(kill.dead) && kill.sent.Sub(before.At) < longestLag && again.At.After(kill.sent) &&
				again.PID != before.PID && again.Attempt > before.Attempt {
				sum.windows++
				t.Logf("%s: attempt %d took effect %v before SIGKILL and was not recorded; attempt %d took effect %v after",
					token, before.Attempt, kill.sent.Sub(before.At), again.Attempt, again.At.Sub(kill.sent))
				continue
			}
			sum.broken++
			t.Errorf("%s: attempt %d of process %d took effect at %v (recorded: %v; SIGKILL: %v at %v), and attempt %d of process %d at %v",
				token, before.Attempt, before.PID, before.At, recorded[token][before.PID], wasKilled, kill.sent, again.Attempt, again.PID, again.At)
		}
	}
	return sum
}
