package idem_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/memstore"
)

// forgetful is a store that comes back empty when it is told to.
type forgetful struct {
	store.Store
	mu   sync.Mutex
	lost bool
	asks int // claims that were asked for
}

func (f *forgetful) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.Store, f.lost = memstore.New(), true
}

func (f *forgetful) Apply(ctx context.Context, b *store.Batch) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, op := range b.Ops {
		if op.Kind == store.Begin {
			f.asks++
		}
	}
	err := f.Store.Apply(ctx, b)
	if f.lost && err == nil {
		f.lost, b.Notice = false, "The store came back empty."
	}
	return err
}

// What a store that lost its records makes of a completed message: handled again by
// default, and not claimed where somebody is to look first.
func TestDataLoss(t *testing.T) {
	for _, halt := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s := &forgetful{Store: memstore.New()}
			notices := 0
			opts := []idem.Option{idem.WithStore(s), idem.WithObserver(idem.ObserverFunc(func(e idem.Event) {
				if e.Kind == idem.EventStoreNotice {
					notices++
				}
			}))}
			if halt {
				opts = append(opts, idem.WithHaltOnDataLoss())
			}
			g := idem.New(opts...).Group("g")
			handled := 0
			handle := func(context.Context) error { handled++; return nil }
			if err := g.Do(t.Context(), "a", handle); err != nil {
				t.Fatal(err)
			}
			held, err := g.Begin(t.Context(), "held")
			if err != nil {
				t.Fatal(err)
			}
			s.forget()
			first, second := g.Do(t.Context(), "a", handle), g.Do(t.Context(), "b", handle)
			want, times := error(nil), 3
			if halt {
				want, times = idem.ErrDataLoss, 1
			}
			if !errors.Is(first, want) || !errors.Is(second, want) || handled != times {
				t.Errorf("halt %v: %v, %v, handled %d times; want %v, %d times", halt, first, second, handled, want, times)
			}
			if f := s.asks; halt && f != 3 {
				t.Errorf("asked for %d claims, want 3: none after the loss was told", f)
			}
			if err := held.Commit(t.Context()); err != nil {
				t.Errorf("halt %v: what is held is not recorded: %v", halt, err)
			}
			if notices != 1 {
				t.Errorf("halt %v: told %d times", halt, notices)
			}
			synctest.Wait()
			if r, err := g.Inspect(t.Context(), "a"); halt && (err != nil || r.State != store.Released || r.Spent != 0) {
				t.Errorf("what was claimed by mistake is %+v (%v), want given back", r, err)
			}
			if err := idem.New(opts...).Group("g").Do(t.Context(), "b", handle); halt && err != nil {
				t.Errorf("a new guard: %v", err)
			}
		})
	}
}

// At most once, what was spent when the loss was noticed is handled: refused, it would
// never be.
func TestDataLossSpares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &forgetful{Store: memstore.New()}
		g := idem.New(idem.WithStore(s), idem.WithHaltOnDataLoss()).Group("g")
		if _, err := g.Spend(t.Context(), "before"); err != nil {
			t.Fatal(err)
		}
		s.forget()
		if _, err := g.Spend(t.Context(), "a"); err != nil {
			t.Errorf("spent, and refused: %v", err)
		}
		if _, err := g.Spend(t.Context(), "b"); !errors.Is(err, idem.ErrDataLoss) {
			t.Errorf("after it was noticed: %v", err)
		}
	})
}

// counting is a store that counts its losses, as those in servers do.
type counting struct {
	store.Store
	mu     sync.Mutex
	losses int
}

func (c *counting) Apply(ctx context.Context, b *store.Batch) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.Store.Apply(ctx, b)
	if b.Losses = c.losses; b.Losses > 0 {
		b.Notice = "The store came back empty."
	}
	return err
}

// Each guard over a store is told of each loss once, but for those before its own time.
func TestEachGuardIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &counting{Store: memstore.New()}
		told := make(map[string]int)
		guard := func(name string) *idem.Guard {
			return idem.New(idem.WithStore(s), idem.WithObserver(idem.ObserverFunc(func(e idem.Event) {
				if e.Kind == idem.EventStoreNotice {
					told[name]++
				}
			}))).Group("g")
		}
		ask := func(guards ...*idem.Guard) {
			for range 2 {
				for _, g := range guards {
					if _, err := g.Inspect(t.Context(), "a"); err != nil {
						t.Error(err)
					}
				}
			}
		}
		a, b := guard("a"), guard("b")
		ask(a, b)
		s.losses++
		c := guard("c")
		ask(a, b, c)
		s.losses++
		ask(a, c)
		if told["a"] != 2 || told["b"] != 1 || told["c"] != 1 {
			t.Errorf("told %v, want a twice, b and c once", told)
		}
	})
}

// What a full memory store forgets for one guard may be what another has completed: that one is
// told, and nobody whose records are all there.
func TestMemoryForgetsForAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memstore.New(memstore.WithMaxRecords(1))
		told := make(map[string]int)
		guard := func(prefix string) *idem.Guard {
			return idem.New(idem.WithStore(s), idem.WithPrefix(prefix), idem.WithHaltOnDataLoss(), idem.WithObserver(idem.ObserverFunc(func(e idem.Event) {
				if e.Kind == idem.EventStoreNotice {
					told[prefix]++
				}
			}))).Group("g")
		}
		loses, forgets := guard("loses"), guard("forgets")
		handle := func(context.Context) error { return nil }
		if err := loses.Do(t.Context(), "a", handle); err != nil {
			t.Fatal(err)
		}
		if err := forgets.Do(t.Context(), "b", handle); err != nil {
			t.Errorf("told of what is another's: %v", err)
		}
		for range 2 {
			if err := loses.Do(t.Context(), "a", handle); !errors.Is(err, idem.ErrDataLoss) {
				t.Errorf("what was handled and forgotten: %v, want ErrDataLoss", err)
			}
		}
		if told["loses"] != 1 {
			t.Errorf("told %v", told)
		}
	})
}
