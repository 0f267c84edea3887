package idem_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
)

// leisurely is a store whose trips take a second each.
type leisurely struct {
	amnesiac

	mu              sync.Mutex
	under, together int // trips under way, and the most at a time
	largest         int // batch
}

func (s *leisurely) Apply(ctx context.Context, b *store.Batch) error {
	s.mu.Lock()
	s.under++
	s.together, s.largest = max(s.together, s.under), max(s.largest, len(b.Ops))
	s.mu.Unlock()
	time.Sleep(time.Second)
	s.mu.Lock()
	s.under--
	s.mu.Unlock()
	return s.amnesiac.Apply(ctx, b)
}

// transacting has transactions for handlers, too.
type transacting struct{ *leisurely }

func (transacting) Enlist(ctx context.Context, _ *store.Batch, _ func()) (context.Context, store.Tx) {
	return ctx, nil
}

// What is asked for at once goes out in batches, of which more overlap while many calls wait.
func TestFlights(t *testing.T) {
	for _, tt := range []struct {
		calls     int
		transacts bool
		together  int
		takes     time.Duration
		reason    string
	}{
		{1, false, 1, time.Second, "nothing else waits"},
		{256, false, 1, time.Second, "they are one batch"},
		{257, false, 2, time.Second, "two may always overlap"},
		{2*256 + 127, false, 2, 2 * time.Second, "what waits behind two is no crowd"},
		{2*256 + 128, false, 3, time.Second, "what waits behind two is a crowd"},
		{8 * 256, false, 4, 2 * time.Second, "no more than four overlap"},
		{8 * 256, true, 2, 4 * time.Second, "handlers need connections of the store's"},
	} {
		t.Run(fmt.Sprintf("%d calls, transactions %v", tt.calls, tt.transacts), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := new(leisurely)
				var driver store.Store = s
				if tt.transacts {
					driver = transacting{s}
				}
				g := idem.New(idem.WithStore(driver)).Group("g")
				reqs := make([]idem.Request, tt.calls)
				for i := range reqs {
					reqs[i].Token = fmt.Sprint(i)
				}
				began := time.Now()
				for _, b := range g.BeginAll(t.Context(), reqs) {
					if b.Err != nil {
						t.Fatal(b.Err)
					}
					b.Claim.Abandon()
				}
				if took := time.Since(began); took != tt.takes || s.together != tt.together || s.largest > 256 {
					t.Errorf("took %v, %d trips at a time, of up to %d operations; want %v and %d, since %s",
						took, s.together, s.largest, tt.takes, tt.together, tt.reason)
				}
			})
		})
	}
}

// away is a store that cannot be reached until some time.
type away struct {
	amnesiac
	until time.Time
}

func (s away) Apply(ctx context.Context, b *store.Batch) error {
	if time.Now().Before(s.until) {
		return store.ErrUnavailable
	}
	return s.amnesiac.Apply(ctx, b)
}

// Batches that fail together are one failure: the wait until the next try doubles from try to
// try, however many calls wait.
func TestWaitDoubles(t *testing.T) {
	for _, calls := range []int{1, 1024} {
		t.Run(fmt.Sprintf("%d calls", calls), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				g := idem.New(idem.WithStore(away{until: began.Add(200 * time.Millisecond)})).Group("g")
				reqs := make([]idem.Request, calls)
				for i := range reqs {
					reqs[i] = idem.Request{Token: fmt.Sprint(i), Patient: true}
				}
				for _, b := range g.BeginAll(t.Context(), reqs) {
					if b.Err != nil {
						t.Fatal(b.Err)
					}
					b.Claim.Abandon()
				}
				// 50, 100 and 200 ms, and up to a quarter of each again at random.
				if took, most := time.Since(began), 5*350*time.Millisecond/4; took > most {
					t.Errorf("answered after %v, want %v at most", took, most)
				}
			})
		})
	}
}
