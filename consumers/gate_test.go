package consumers

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store/memstore"
)

// Who waits for the end of solitude is told of it, however it ends: a lane that leaves its next
// messages to be claimed ahead would stand still until another came.
func TestEndOfSolitudeIsTold(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(ctx context.Context, g *gate)
	}{
		{"it was had", func(ctx context.Context, g *gate) {
			if err := g.enterAlone(ctx); err != nil {
				t.Error(err)
			}
			g.leave(true)
		}},
		{"it was waited for in vain", func(ctx context.Context, g *gate) {
			g.tryEnter(1)
			ctx, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			if err := g.enterAlone(ctx); err == nil {
				t.Error("alone beside a claim")
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var g *gate
				var told []bool
				g = newGate(func() { told = append(told, g.wanted()) })
				tt.end(t.Context(), g)
				if len(told) != 2 || !told[0] || told[1] {
					t.Errorf("told, while solitude was wanted: %v; want once, and once after", told)
				}
			})
		})
	}
}

type tried struct {
	event
	token string
}

func (d tried) Header(name string) []string {
	if name == idem.Header {
		return []string{d.token}
	}
	return nil
}
func (tried) Handle(context.Context) error                   { return nil }
func (tried) Ack(context.Context) error                      { return nil }
func (tried) Terminate(context.Context) error                { return nil }
func (tried) Redeliver(context.Context, time.Duration) error { return nil }
func (tried) DeadLetter(context.Context, Letter) error       { return nil }
func (tried) Extend(context.Context) error                   { return nil }
func (tried) Final() bool                                    { return false }

// A lane is lost when its worker has taken two messages whose claims were made ahead, and one of
// these has run out: the other is given back, and is not renewed for ever.
func TestLaneIsLostBeforeItsBatchStarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := idem.New(idem.WithStore(memstore.New())).Group("g")
		all := func(context.Context, []Delivery) []error { t.Error("handled"); return nil }
		e, err := New(g, Broker{HandleAll: all, MaxBatch: 2}, Policy{})
		if err != nil {
			t.Fatal(err)
		}
		run, end := context.WithCancel(t.Context())
		err = e.Run(run, func(ctx context.Context) error {
			partition, lose := context.WithCancel(context.WithoutCancel(ctx))
			l := e.Lane(partition)
			taken := []*entry{l.newEntry(tried{token: "a"}), l.newEntry(tried{token: "b"})}
			l.mu.Lock()
			for _, en := range taken { // as claimAhead and take do
				en.claim, en.shared = g.BeginAll(ctx, []idem.Request{en.request()})[0].Claim, true
				e.hold(en)
			}
			e.gate.tryEnter(len(taken))
			l.held, l.working = len(taken), len(taken)
			l.mu.Unlock()
			lose()
			synctest.Wait()
			taken[0].claim.Abandon()
			l.process(taken)
			l.Wait()
			end()
			return nil
		})
		if err != nil || e.gate.claims != 0 {
			t.Errorf("%v, and the gate counts %d claims", err, e.gate.claims)
		}
		other, err := idem.New(idem.WithStore(g.Settings().Store)).Group("g").Begin(t.Context(), "b")
		if err != nil {
			t.Fatalf("asked for by another process: %v", err)
		}
		other.Abandon()
	})
}

// Who waits at the gate is not woken by each claim that ends, only where that may matter.
func TestGateWakesForAReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(func() {})
		g.tryEnter(3)
		changed, shut := g.shutting()
		if shut {
			t.Fatal("solitude is asked for")
		}
		g.leave(false)
		select {
		case <-changed:
			t.Error("woken by a claim's end")
		default:
		}
		alone := make(chan error, 1)
		go func() { alone <- g.enterAlone(t.Context()) }()
		synctest.Wait()
		select {
		case <-changed:
		default:
			t.Error("not woken though solitude is asked for")
		}
		g.leave(false)
		g.leave(false)
		if err := <-alone; err != nil {
			t.Error(err)
		}
		entered := make(chan error, 1)
		go func() { entered <- g.enter(t.Context()) }()
		synctest.Wait()
		g.leave(true)
		if err := <-entered; err != nil {
			t.Error(err)
		}
	})
}

// What has stood longer than the broker allows is left to its turn: asked for ahead, with a
// deadline that is over, it would take the others with it.
func TestHeldLongIsNotAskedAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := idem.New(idem.WithStore(memstore.New())).Group("g")
		e, err := New(g, Broker{HoldLimit: time.Minute}, Policy{ahead: 11})
		if err != nil {
			t.Fatal(err)
		}
		l := &Lane{e: e, guard: g, ph: &phases{run: t.Context()}}
		l.cond = sync.NewCond(&l.mu)
		for _, token := range []string{"old", "new", "newer"} {
			en := l.newEntry(tried{token: token})
			e.hold(en)
			l.queue = append(l.queue, en)
			time.Sleep(50 * time.Second)
		}
		var asked []string
		for _, en := range l.claimable() {
			asked = append(asked, en.token)
		}
		if !slices.Equal(asked, []string{"newer"}) {
			t.Errorf("asked ahead for %q, want what may still be held", asked)
		}
		if l.leavesToAhead() {
			t.Error("its worker leaves the first to be claimed ahead")
		}
	})
}
