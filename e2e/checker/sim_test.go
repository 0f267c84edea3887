package checker_test

import (
	"cmp"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/idemq/idemq/e2e/checker"
	"github.com/idemq/idemq/e2e/history"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/rules"
)

// bug is one that is planted in a sim.
type bug int

const (
	none bug = iota
	ackBeforeCommit
	ackInProgress
	ackAfterLostReply
	runInProgress
	runAfterDone
	runTwice
	runGivenBack
	releaseWhileRunning
	releaseAfterEffect
	dropMessage
	storeHalvesLeases
	storeFencesNoRelease
	storeFencesNoCommit
	storeRepeatsAttempts
	storeForgets
	storeCommitsTwice
)

// sim is a run of consumer processes that do as the library does, over a network that
// delays, loses and doubles what is sent to a store that keeps the rules, on a virtual
// clock. It has its faults: processes are killed and stopped, and the store forgets where
// it is told to.
type sim struct {
	bug bug

	mu      sync.Mutex
	r       *rand.Rand
	began   time.Time
	events  []history.Event
	records map[uint32]*rules.Record
	claims  uint64
	started uint16
	procs   []*proc
	forgot  []checker.Forgot
}

// proc is a consumer process, number of its instance's.
type proc struct {
	s        *sim
	number   uint16
	instance uint32
	dead     bool
	until    int64 // it stands still
	busy     map[uint32]bool
}

const (
	simTokens   = 40
	simTimeout  = 700 * time.Millisecond // of the client
	simAttempts = 6
)

// simulate makes the history of a run.
func simulate(t *testing.T, seed uint64, b bug, forgets bool) *sim {
	s := &sim{bug: b, r: rand.New(rand.NewPCG(seed, 1)), records: map[uint32]*rules.Record{}}
	synctest.Test(t, func(*testing.T) {
		s.began = time.Now()
		for i := range 3 {
			s.procs = append(s.procs, s.newProc(uint32(i+1)))
		}
		var messages, faults sync.WaitGroup
		done := make(chan struct{})
		for n := range uint32(simTokens) {
			messages.Go(func() {
				s.sleep(5 * time.Second)
				s.add(history.Event{Kind: history.Published, Token: n + 1, Key: n, Seq: 1})
				s.deliver(n + 1)
			})
		}
		faults.Go(func() { s.breakProcesses(done) })
		if forgets {
			s.forget()
		}
		messages.Wait()
		close(done)
		faults.Wait()
		pass(time.Minute) // what is still under way
	})
	slices.SortStableFunc(s.events, func(a, b history.Event) int { return cmp.Compare(a.At, b.At) })
	return s
}

func (s *sim) check() checker.Verdict {
	return checker.Check(checker.Run{Events: slices.Clone(s.events), Lease: lease, Faults: effects, Forgot: s.forgot})
}

func (s *sim) now() int64 { return int64(time.Since(s.began) + time.Second) }

// pass lets virtual time pass.
func pass(d time.Duration) { <-time.After(d) }

// upTo draws a time.
func (s *sim) upTo(d time.Duration) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Duration(s.r.Int64N(int64(d)))
}

func (s *sim) sleep(most time.Duration) { pass(s.upTo(most)) }

// one draws: true one time in so many.
func (s *sim) one(in int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.r.IntN(in) == 0
}

func (s *sim) add(e history.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.At == 0 {
		e.At = s.now()
	}
	s.events = append(s.events, e)
}

func (s *sim) newProc(instance uint32) *proc {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.started++
	return &proc{s: s, number: s.started, instance: instance, busy: map[uint32]bool{}}
}

func (s *sim) breakProcesses(done <-chan struct{}) {
	for {
		select {
		case <-done:
			return
		case <-time.After(s.upTo(time.Second)):
		}
		i := int(s.upTo(3))
		p := s.procs[i]
		at := s.now()
		if s.one(2) {
			s.mu.Lock()
			p.dead = true
			s.mu.Unlock()
			pass(time.Millisecond)
			next := s.newProc(p.instance)
			s.mu.Lock()
			s.procs[i] = next
			s.mu.Unlock()
			s.add(history.Event{Kind: history.Fault, Op: kill, Process: p.number, At: at, Until: s.now()})
		} else {
			d := lease/2 + s.upTo(lease)
			s.mu.Lock()
			p.until = at + int64(d)
			s.mu.Unlock()
			pass(d)
			s.add(history.Event{Kind: history.Fault, Op: pause, Process: p.number, At: at, Until: s.now()})
		}
	}
}

// forget has the store lose what it acknowledged, all or some, twice.
func (s *sim) forget() {
	for range 2 {
		pass(time.Second)
		saved, since := map[uint32]rules.Record{}, int64(0)
		if s.one(2) {
			s.mu.Lock()
			since = s.now()
			for token, r := range s.records {
				saved[token] = *r
			}
			s.mu.Unlock()
			s.sleep(time.Second)
		}
		at := s.now()
		s.sleep(100 * time.Millisecond)
		s.mu.Lock()
		clear(s.records)
		for token, r := range saved {
			s.records[token] = &r
		}
		s.mu.Unlock()
		s.sleep(100 * time.Millisecond)
		s.forgot = append(s.forgot, checker.Forgot{Since: since, At: at, Until: s.now()})
	}
}

// step is called before a process does something: it may be dead, or stand still.
func (p *proc) step() {
	for {
		p.s.mu.Lock()
		dead, wait := p.dead, p.until-p.s.now()
		p.s.mu.Unlock()
		switch {
		case dead:
			runtime.Goexit()
		case wait <= 0:
			return
		}
		pass(time.Duration(wait))
	}
}

func (p *proc) add(e history.Event) {
	p.step()
	e.Process = p.number
	p.s.add(e)
}

// deliver delivers a message until it is acked, now and then before the delivery that
// went before came to an end.
func (s *sim) deliver(token uint32) {
	acked := make(chan struct{}, 1000)
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		s.mu.Lock()
		p := s.procs[s.r.IntN(len(s.procs))]
		s.mu.Unlock()
		ended := make(chan struct{})
		wg.Go(func() {
			defer close(ended)
			h := &handling{proc: p, token: token}
			h.handle()
			acked <- struct{}{}
		})
		again := time.Hour
		if s.one(4) {
			again = s.upTo(3 * time.Second)
		}
		select {
		case <-ended:
		case <-time.After(again):
		}
		select {
		case <-acked:
			return
		default:
		}
	}
}

// handling is a delivery in a process.
type handling struct {
	*proc
	token    uint32
	claim    uint64
	attempt  int
	leaseEnd int64
}

func (h *handling) event(k history.Kind, f history.Flags) {
	h.add(history.Event{Kind: k, Token: h.token, Attempt: uint16(h.attempt), Flags: f})
}

// handle returns when the delivery may be acked.
func (h *handling) handle() {
	s := h.s
	for !h.alone() {
		pass(50 * time.Millisecond)
		h.step()
	}
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		h.busy[h.token] = false
	}()
	for h.claim = h.newClaim(); ; {
		asked := s.now()
		reply, ok := h.ask(store.Op{Kind: store.Begin})
		switch {
		case !ok && s.bug == ackAfterLostReply && s.one(2):
			h.event(history.Acked, 0)
			return
		case !ok:
			continue
		}
		switch reply.Status {
		case store.Claimed:
		case store.Duplicate:
			if s.bug == runAfterDone {
				h.attempt = reply.Attempt + 1
				h.run()
			}
			h.event(history.Acked, 0)
			return
		case store.InProgress, store.Superseded:
			if s.bug == ackInProgress {
				h.event(history.Acked, 0)
				return
			}
			if s.bug == runInProgress {
				h.attempt = 77
				h.run()
			}
			pass(min(reply.RetryAfter, 300*time.Millisecond))
			h.step()
			fallthrough
		default:
			h.claim = h.newClaim()
			continue
		}
		h.attempt, h.leaseEnd = reply.Attempt, asked+int64(lease)
		h.step()
		if h.s.now() >= h.leaseEnd || s.one(15) { // or made ahead, and given back
			h.release(false)
			if s.bug == runGivenBack {
				h.run()
			}
			h.claim = h.newClaim()
			continue
		}
		if s.bug == ackBeforeCommit && s.one(3) {
			h.event(history.Acked, 0)
		}
		if !h.run() {
			if h.attempt >= simAttempts {
				s.add(history.Event{Kind: history.DeadLettered, Token: h.token})
				if h.untilAnswered(store.Op{Kind: store.Bury}).Status == store.OK {
					h.event(history.Acked, 0)
					return
				}
			} else {
				h.release(true)
			}
			h.claim = h.newClaim()
			continue
		}
		if s.bug == releaseAfterEffect && s.one(3) {
			h.release(false)
			h.claim = h.newClaim()
			continue
		}
		if s.bug == runTwice && s.one(3) {
			h.run()
		}
		if h.untilAnswered(store.Op{Kind: store.Commit, Attempt: h.attempt}).Status == store.OK {
			h.event(history.Acked, 0)
			return
		}
		h.claim = h.newClaim()
	}
}

// alone: a process handles a token once at a time.
func (h *handling) alone() bool {
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	if h.busy[h.token] {
		return false
	}
	h.busy[h.token] = true
	return true
}

func (h *handling) release(counted bool) {
	h.untilAnswered(store.Op{Kind: store.Release, Counted: counted})
}

func (h *handling) newClaim() uint64 {
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	h.s.claims++
	return h.s.claims
}

// run is one run of the handler, during which the lease is renewed; it returns whether
// there was an effect. Now and then the handler does not look at its context.
func (h *handling) run() bool {
	s := h.s
	h.event(history.Started, 0)
	work := s.upTo(20 * time.Millisecond)
	if s.one(6) {
		work = s.upTo(2 * lease)
	}
	fails, deaf := s.one(5), s.one(2)
	for end := s.now() + int64(work); s.now() < end; h.step() {
		wait := min(time.Duration(end-s.now()), lease/3)
		pass(wait)
		if wait == lease/3 {
			h.step()
			asked := s.now()
			if reply, ok := h.ask(store.Op{Kind: store.Renew}); ok {
				h.leaseEnd = asked + int64(lease)
				if reply.Status == store.Lost {
					h.leaseEnd = 0
				}
			}
		}
	}
	if s.bug == releaseWhileRunning && s.one(3) {
		h.release(false)
	}
	if fails || s.bug == dropMessage && s.one(10) || !deaf && s.now() >= h.leaseEnd {
		h.event(history.Returned, history.Failed)
		return s.bug == dropMessage
	}
	h.event(history.Effect, 0)
	h.event(history.Returned, 0)
	return true
}

func (h *handling) untilAnswered(op store.Op) store.Reply {
	for {
		if reply, ok := h.ask(op); ok {
			return reply
		}
	}
}

// ask sends an operation to the store, and waits for its answer, for as long as a client
// does. What is sent may be executed late, twice, or not at all.
func (h *handling) ask(op store.Op) (store.Reply, bool) {
	s := h.s
	h.add(history.Event{
		Kind: history.Asked, Op: uint8(op.Kind), Token: h.token, Claim: h.claim, Attempt: uint16(op.Attempt),
		Key: h.instance, Store: int64(h.number),
	})
	type answer struct {
		history.Event
		reply store.Reply
	}
	answers := make(chan answer, 2)
	copies := 1
	if s.one(10) {
		copies = 2
	}
	claim := h.claim
	for range copies {
		there, back := s.upTo(5*time.Millisecond), s.upTo(5*time.Millisecond)
		if s.one(15) {
			there = s.upTo(2 * simTimeout)
		}
		if s.one(15) {
			back = s.upTo(2 * simTimeout)
		}
		lostThere, lostBack := s.one(20), s.one(20)
		shown := s.upTo(back + 1)
		go func() {
			pass(there)
			if lostThere {
				return
			}
			s.mu.Lock()
			r, now := s.execute(h, op, claim)
			s.mu.Unlock()
			pass(back)
			if lostBack {
				return
			}
			answers <- answer{history.Event{Status: uint8(r.Status), Attempt: uint16(r.Attempt), Store: (now + int64(shown)) / 1e6 * 1e6}, r}
		}()
	}
	a := answer{Event: history.Event{Flags: history.Failed}}
	select {
	case a = <-answers:
	case <-time.After(simTimeout):
	}
	a.Kind, a.Op, a.Token, a.Claim = history.Answered, uint8(op.Kind), h.token, claim
	h.add(a.Event)
	return a.reply, !a.Has(history.Failed)
}

// execute executes an operation, with mu held, and returns the store's clock.
func (s *sim) execute(h *handling, op store.Op, claim uint64) (store.Reply, int64) {
	r := s.records[h.token]
	if r == nil {
		r = &rules.Record{}
		s.records[h.token] = r
	}
	op.Claim = string(rune(claim))
	now := s.now() + epoch
	x := rules.Execution{
		Batch: &store.Batch{Lease: lease, Retention: time.Hour, Owner: string(rune(h.instance)), Incarnation: uint64(h.number)},
		Now:   rules.Instant(now),
		Time:  func(rules.Instant) time.Time { return time.Time{} },
	}
	if op.Kind == store.Begin && r.State == store.Done && s.r.IntN(10) == 0 {
		return store.Reply{Status: store.InProgress, RetryAfter: time.Millisecond}, now // locked, say
	}
	switch {
	case s.bug == storeHalvesLeases && op.Kind == store.Begin && r.State == store.Running && r.Claim != op.Claim:
		r.Lease = lease / 2
	case s.bug == storeFencesNoRelease && op.Kind == store.Release && r.State == store.Running,
		s.bug == storeFencesNoCommit && op.Kind == store.Commit && r.State == store.Running:
		r.Claim = op.Claim
	case s.bug == storeRepeatsAttempts && op.Kind == store.Begin && r.State == store.Released && r.Claim != op.Claim:
		r.Attempt--
	case s.bug == storeForgets && s.r.IntN(200) == 0:
		*r = rules.Record{}
	case s.bug == storeCommitsTwice && op.Kind == store.Commit && r.State == store.Done:
		return store.Reply{Status: store.OK}, now
	}
	reply, _ := x.Do(&op, r, nil)
	return reply, now
}
