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
	"github.com/idemq/idemq/internal/storefault"
)

// transacting has transactions for handlers, too.
type transacting struct{ store.Store }

func (transacting) Enlist(ctx context.Context, _ *store.Batch, _ func()) (context.Context, store.Tx) {
	return ctx, nil
}

// claimAtOnce claims so many tokens together, and abandons them.
func claimAtOnce(t *testing.T, s store.Store, n int) (took time.Duration) {
	t.Helper()
	reqs := make([]idem.Request, n)
	for i := range reqs {
		reqs[i] = idem.Request{Token: fmt.Sprint(i), Patient: true}
	}
	began := time.Now()
	for _, b := range idem.New(idem.WithStore(s)).Group("g").BeginAll(t.Context(), reqs) {
		if b.Err != nil {
			t.Fatal(b.Err)
		}
		b.Claim.Abandon()
	}
	return time.Since(began)
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
				var mu sync.Mutex
				under, together, largest := 0, 0, 0 // trips; operations of one
				var s store.Store = watched{amnesiac{}, func(_ context.Context, b *store.Batch) error {
					mu.Lock()
					under++
					together, largest = max(together, under), max(largest, len(b.Ops))
					mu.Unlock()
					time.Sleep(time.Second)
					mu.Lock()
					under--
					mu.Unlock()
					return nil
				}}
				if tt.transacts {
					s = transacting{s}
				}
				if took := claimAtOnce(t, s, tt.calls); took != tt.takes || together != tt.together || largest > 256 {
					t.Errorf("took %v, %d trips at a time, of up to %d operations; want %v and %d, since %s",
						took, together, largest, tt.takes, tt.together, tt.reason)
				}
			})
		})
	}
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
				took := claimAtOnce(t, s, calls)
				// 50, 100 and 200 ms, and up to a quarter of each again at random.
				if most := 5 * 350 * time.Millisecond / 4; took > most {
					t.Errorf("answered after %v, want %v at most", took, most)
				}
			})
		})
	}
}
