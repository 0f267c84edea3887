package e2e_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/idemq/idemq/internal/testenv"
)

// fromOutside is a SIGKILL that comes at any time.
const fromOutside spot = "at any time, from outside"

var inboxSpots = []spot{
	beforeBegin, afterFirst, afterLast, beforeCompletion, beforeCommit, duringCommit, afterCommit, beforeAck, afterAck,
	fromOutside, fromOutside, fromOutside,
}

// hangman says where each consumer process dies. It is safe for concurrent use.
type hangman struct {
	within int // messages of a process

	mu     sync.Mutex
	random *rand.Rand
	left   int
	deck   []spot // each comes up as often as the others
	died   map[spot]int
}

// draw is the fate of the next process.
func (h *hangman) draw() (d doom) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.left == 0 {
		return d
	}
	h.left--
	if len(h.deck) == 0 {
		for _, i := range h.random.Perm(len(inboxSpots)) {
			h.deck = append(h.deck, inboxSpots[i])
		}
	}
	last := len(h.deck) - 1
	drawn := h.deck[last]
	h.deck = h.deck[:last]
	return doom{
		Spot: drawn, Nth: 1 + h.random.IntN(h.within), Signal: syscall.SIGKILL,
		Delay: time.Duration(h.random.Int64N(int64(time.Millisecond))),
	}
}

// pause is a part of d.
func (h *hangman) pause(d time.Duration) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return time.Duration(h.random.Int64N(int64(d)))
}

func (h *hangman) note(s spot) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.died[s]++
}

// report lists the deaths, and returns how many there were.
func (h *hangman) report() (text string, n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var b strings.Builder
	said := map[spot]bool{}
	for _, s := range inboxSpots {
		if !said[s] {
			said[s] = true
			fmt.Fprintf(&b, "\n\t%4d %s", h.died[s], s)
			n += h.died[s]
		}
	}
	return b.String(), n
}

// keepDying starts processes again as they die, until ending is closed.
func (r inboxRole) keepDying(t *testing.T, h *hangman, ending <-chan struct{}) {
	for {
		r.Doom = h.draw()
		p, out, err := r.spawn(t)
		if err != nil {
			t.Error(err)
			return
		}
		if r.Doom.Spot == fromOutside {
			select {
			case <-out.working:
				timer := time.NewTimer(h.pause(150 * time.Millisecond))
				select {
				case <-timer.C:
					p.Kill()
				case <-ending:
				}
				timer.Stop()
			case <-p.Done():
			case <-ending:
			}
		}
		select {
		case <-ending:
			if err := p.terminate(); err != nil && p.DiedOf() != syscall.SIGKILL {
				t.Error(err)
			}
			return
		case <-p.Done():
			if p.DiedOf() != syscall.SIGKILL || r.Doom.Spot == "" {
				t.Errorf("%s ended by itself: %v", r.Instance, p.cmd.ProcessState)
				return
			}
			h.note(r.Doom.Spot)
		}
	}
}

func inboxSeed(t *testing.T) uint64 {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("IDEM_E2E_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	return seed
}

// Consumer processes book payments, most of which were published twice, and die of SIGKILL
// at drawn places of the transaction, before it and after it. Each payment is booked once.
// IDEM_E2E_SEED repeats a run's draws.
func TestInboxKills(t *testing.T) {
	for _, test := range []struct {
		sqlEngine
		n, kills    int
		full, fulls int // those of the full run
		concurrency int
	}{
		{onPostgres, 1000, 25, 20_000, 500, 4},
		{onMariaDB, 300, 12, 4000, 100, 4},
		{onSQLite, 200, 12, 2000, 100, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			n, kills := test.n, test.kills
			if isFull() {
				n, kills = test.full, test.fulls
			} else {
				t.Parallel() // they wait most of the time
			}
			seed := inboxSeed(t)
			random := rand.New(rand.NewPCG(seed, 0))
			s := newBroker(t, time.Second)
			// Some are published once: a second copy would make up for one that was acked too early.
			once := n / 2
			b := newBank(t, test.database(t), n+once)
			messages := append(payments(n+once), payments(n)...)
			random.Shuffle(len(messages), func(i, j int) { messages[i], messages[j] = messages[j], messages[i] })
			for some := range slices.Chunk(messages, 500) {
				s.publish(some...)
			}
			if owed := s.owed(); owed != len(messages) {
				t.Fatalf("the broker has %d messages, want %d", owed, len(messages))
			}

			const replicas = 3
			h := &hangman{random: random, left: kills, died: map[spot]int{}, within: max(1, n*replicas/kills/6)}
			r := inboxRole{
				NATS: s.nats.URL(), Stream: stream, Durable: durable, Database: b.database, Lease: 2 * time.Second, IsInstance: true,
				Concurrency: test.concurrency,
			}
			began := time.Now()
			ending := make(chan struct{})
			var wg sync.WaitGroup
			for i := range replicas {
				consumer := r
				consumer.Instance = fmt.Sprintf("consumer-%d", i)
				wg.Go(func() { consumer.keepDying(t, h, ending) })
			}
			for left := len(messages); left > 0; {
				last := left
				testenv.Await(t, "messages to be settled", seldom(func() bool { left = s.owed(); return left < last }))
			}
			took := time.Since(began)
			close(ending)
			wg.Wait()
			where, died := h.report()
			t.Logf("seed %d: %d payments published twice and %d once, in %v (%.0f messages a second) with %d consumers; killed:%s",
				seed, n, once, took.Round(time.Millisecond), float64(len(messages))/took.Seconds(), replicas, where)
			b.audit()
			if died < kills {
				t.Errorf("%d processes were killed, want %d: the test shows less than it says", died, kills)
			}
		})
	}
}
