package idem_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/internal/storefault"
)

// transacting has transactions for handlers, too.
type transacting struct{ store.Store }

func (transacting) Enlist(ctx context.Context, _ *store.Batch, _ func()) (context.Context, store.Tx) {
	return ctx, nil
}

func requests(prefix string, n int) []idem.Request {
	reqs := make([]idem.Request, n)
	for i := range reqs {
		reqs[i] = idem.Request{Token: fmt.Sprint(prefix, i), Patient: true}
	}
	return reqs
}

// claimAtOnce claims so many tokens together, and abandons them.
func claimAtOnce(t *testing.T, g *idem.Guard, n int) (took time.Duration) {
	t.Helper()
	began := time.Now()
	for _, b := range g.Group("g").BeginAll(t.Context(), requests("", n)) {
		if b.Err != nil {
			t.Fatal(b.Err)
		}
		b.Claim.Abandon()
	}
	return time.Since(began)
}

// timed is a store whose trips take so long, and which knows how many overlapped.
type timed struct {
	amnesiac
	take  time.Duration
	quick time.Duration // the first trip, unless zero

	mu              sync.Mutex
	under, together int
	trips           int
	largest         int // operations of one
}

func (s *timed) Apply(ctx context.Context, b *store.Batch) error {
	s.mu.Lock()
	s.under++
	s.trips++
	s.together, s.largest = max(s.together, s.under), max(s.largest, len(b.Ops))
	take := s.take
	if s.trips == 1 && s.quick > 0 {
		take = s.quick
	}
	s.mu.Unlock()
	time.Sleep(take)
	s.mu.Lock()
	s.under--
	s.mu.Unlock()
	return s.amnesiac.Apply(ctx, b)
}

// What is asked for at once goes out in batches, of which more overlap the longer a trip takes.
func TestFlights(t *testing.T) {
	const many = 20 * 256
	for _, tt := range []struct {
		trip      time.Duration
		known     bool // trips were made before
		transacts bool
		calls     int
		together  int
		takes     time.Duration
		reason    string
	}{
		{time.Second, true, false, 1, 1, time.Second, "nothing else waits"},
		{time.Second, true, false, 256, 1, time.Second, "they are one batch"},
		{time.Second, false, false, 257, 2, time.Second, "one batch has no room for them"},
		{time.Second, false, false, 5 * 256, 4, 2 * time.Second, "how long a trip takes is not known yet"},
		{100 * time.Microsecond, true, false, many, 4, 500 * time.Microsecond, "the store is near"},
		{2100 * time.Microsecond, true, false, many, 5, 4 * 2100 * time.Microsecond, "five, so that departures are 400 µs apart on the average"},
		{time.Second, true, false, many, 16, 2 * time.Second, "more would take connections from everybody else"},
		{time.Second, true, true, many, 2, 10 * time.Second, "handlers need connections of the store's"},
	} {
		t.Run(fmt.Sprintf("%d calls, %v, known %v, transactions %v", tt.calls, tt.trip, tt.known, tt.transacts), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				counted := &timed{take: tt.trip}
				var s store.Store = counted
				if tt.transacts {
					s = transacting{s}
				}
				g := idem.New(idem.WithStore(s))
				if tt.known {
					for range 100 {
						claimAtOnce(t, g, 1)
					}
				}
				if took := claimAtOnce(t, g, tt.calls); took != tt.takes || counted.together != tt.together || counted.largest > 256 {
					t.Errorf("took %v, %d trips at a time, of up to %d operations; want %v and %d, since %s",
						took, counted.together, counted.largest, tt.takes, tt.together, tt.reason)
				}
			})
		})
	}
}

// A trip that waits in a busy store is no longer one. But where all take long for two seconds
// the store is far: it may have moved.
func TestBusyIsNotFar(t *testing.T) {
	const near, trip, many = 100 * time.Microsecond, 100 * time.Millisecond, 20 * 256
	synctest.Test(t, func(t *testing.T) {
		counted := &timed{take: trip, quick: near}
		g := idem.New(idem.WithStore(counted))
		claimAtOnce(t, g, 1)
		claimAtOnce(t, g, 1)
		time.Sleep(time.Second)
		claimAtOnce(t, g, 1)
		if claimAtOnce(t, g, many); counted.together != 4 {
			t.Errorf("%d flights to a busy store nearby, want 4", counted.together)
		}
		for range 3 * int(time.Second/trip) {
			claimAtOnce(t, g, 1)
		}
		if claimAtOnce(t, g, many); counted.together != 16 {
			t.Errorf("%d flights to a store that is as far since three seconds, want 16", counted.together)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		counted := &timed{take: trip, quick: near}
		g := idem.New(idem.WithStore(counted))
		claimAtOnce(t, g, 1)
		time.Sleep(time.Hour)
		claimAtOnce(t, g, 1)
		if claimAtOnce(t, g, many); counted.together != 16 {
			t.Errorf("%d flights to a store that was near an hour ago, want 16", counted.together)
		}
	})
}

// Callers who wait for an answer each share the flights out among them, so that the store and
// they are busy at the same time.
func TestCallersShareFlights(t *testing.T) {
	for _, tt := range []struct {
		callers, largest, trips int
		reason                  string
	}{
		{64, 64, 1, "they are few, whom one flight carries"},
		{252, 64, 4, "four flights carry them"},
		{505, 127, 4, "four flights carry them"},
		{5000, 256, 20, "a batch takes no more"},
	} {
		t.Run(fmt.Sprint(tt.callers), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				counted := &timed{take: 100 * time.Microsecond}
				g := idem.New(idem.WithStore(counted)).Group("g")
				var wg sync.WaitGroup
				var mu sync.Mutex
				var begun []*idem.Claim
				call := func() {
					wg.Go(func() {
						c, err := g.Begin(t.Context(), idem.NewToken())
						if err != nil {
							t.Error(err)
							return
						}
						mu.Lock()
						defer mu.Unlock()
						begun = append(begun, c)
					})
				}
				for range 4 { // flights, and the callers come while all are under way
					call()
					synctest.Wait()
				}
				for range tt.callers {
					call()
				}
				wg.Wait()
				if counted.largest != tt.largest || counted.trips != 4+tt.trips {
					t.Errorf("%d trips with up to %d, want %d with %d: %s",
						counted.trips-4, counted.largest, tt.trips, tt.largest, tt.reason)
				}
				for _, c := range begun {
					c.Abandon()
				}
			})
		})
	}
}

// Those who were answered together, and ask again, travel together: nobody waits for a trip
// before its own.
func TestCallersKeepTogether(t *testing.T) {
	const callers, rounds, trip = 64, 10, 10 * time.Millisecond
	synctest.Test(t, func(t *testing.T) {
		counted := &timed{take: trip}
		g := idem.New(idem.WithStore(counted)).Group("g")
		began := time.Now()
		var wg sync.WaitGroup
		for i := range callers {
			wg.Go(func() {
				for j := range rounds {
					if err := g.Do(t.Context(), fmt.Sprint(i, j), handled); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		if took, want := time.Since(began), 2*rounds*trip; took > want*5/4 {
			t.Errorf("took %v, want %v and little more", took, want)
		}
	})
}

// Batches that fail together are one failure: the wait until the next try doubles from try to
// try, however many calls wait.
func TestWaitDoubles(t *testing.T) {
	for _, calls := range []int{1, 1024} {
		t.Run(fmt.Sprintf("%d calls", calls), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := storefault.New(amnesiac{})
				s.Set(storefault.Away)
				time.AfterFunc(200*time.Millisecond, func() { s.Set(storefault.None) })
				took := claimAtOnce(t, idem.New(idem.WithStore(s)), calls)
				// 50, 100 and 200 ms, and up to a quarter of each again at random.
				if most := 5 * 350 * time.Millisecond / 4; took > most {
					t.Errorf("answered after %v, want %v at most", took, most)
				}
			})
		})
	}
}

// crowded is a guard with a claim that is to be renewed, and its store, whose second trip
// comes back when the gate opens. Until then its flights stay where they let others run before
// they take what is queued.
type crowded struct {
	amnesiac
	guard *idem.Guard
	gate  chan struct{}

	mu     sync.Mutex
	yields int
	trips  [][]store.Kind
}

func (c *crowded) Apply(ctx context.Context, b *store.Batch) error {
	var kinds []store.Kind
	for _, op := range b.Ops {
		kinds = append(kinds, op.Kind)
	}
	c.mu.Lock()
	c.trips = append(c.trips, kinds)
	trip := len(c.trips)
	c.mu.Unlock()
	if trip == 2 {
		<-c.gate
	}
	return c.amnesiac.Apply(ctx, b)
}

func crowd(t *testing.T) *crowded {
	t.Helper()
	c := &crowded{gate: make(chan struct{})}
	c.guard = idem.New(idem.WithStore(c)).Group("g")
	held, err := c.guard.Begin(t.Context(), "held")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(held.Abandon)
	synctest.Wait()
	c.guard.Yields(func() {
		c.mu.Lock()
		c.yields++
		c.mu.Unlock()
		<-c.gate
	})
	c.begin(t, "under way")
	return c
}

// begin has callers, one for each token and one after the other, wait for claims.
func (c *crowded) begin(t *testing.T, tokens ...string) {
	for _, token := range tokens {
		go func() {
			claim, err := c.guard.Begin(context.WithoutCancel(t.Context()), token)
			if err != nil {
				t.Error(err)
				return
			}
			claim.Abandon()
		}()
		synctest.Wait()
	}
}

func (c *crowded) open() {
	close(c.gate)
	synctest.Wait()
}

// While one flight is about to take what is queued, no other is: they would share it out, in
// smaller batches.
func TestOneFlightBoards(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := crowd(t)
		c.begin(t, "one", "two", "three", "four", "five")
		if c.yields != 1 {
			t.Errorf("%d flights are about to take what five callers queued, want 1", c.yields)
		}
		c.open()
		if len(c.trips) != 3 || len(c.trips[2]) != 5 {
			t.Errorf("trips of %v, want a third one for five", c.trips)
		}
	})
}

// A claim is kept in time, whatever waits for more callers.
func TestRenewalDoesNotBoard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := crowd(t)
		c.begin(t, "waits")
		time.Sleep(idem.DefaultLease / 3)
		synctest.Wait()
		if !slices.ContainsFunc(c.trips, func(kinds []store.Kind) bool { return slices.Contains(kinds, store.Renew) }) {
			t.Errorf("trips of %v: no claim is renewed while a flight waits for callers", c.trips)
		}
		c.open()
	})
}

// There is nothing to wait for where a batch is full.
func TestFullBatchDoesNotBoard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := crowd(t)
		c.begin(t, "waits")
		go func() {
			for _, b := range c.guard.BeginAll(t.Context(), requests("", 256)) {
				b.Claim.Abandon()
			}
		}()
		synctest.Wait()
		if len(c.trips) != 3 || len(c.trips[2]) != 256 {
			t.Errorf("trips of %v, want a third one for 256", c.trips)
		}
		c.open()
	})
}
