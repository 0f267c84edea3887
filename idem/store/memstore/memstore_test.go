package memstore_test

import (
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/memstore"
	"github.com/idemq/idemq/idem/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeClock stands still until it is advanced.
type fakeClock struct {
	mu  sync.Mutex
	now time.Time
}

func newFakeClock() *fakeClock {
	return &fakeClock{now: time.Date(2030, 1, 2, 3, 4, 5, 6, time.UTC)}
}

func (c *fakeClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *fakeClock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func harness() storetest.Harness {
	clock := newFakeClock()
	return storetest.Harness{
		Name: "Memory", Server: "in the process",
		Open:  func(testing.TB) store.Store { return memstore.New(memstore.WithClock(clock.Now)) },
		Wait:  func(_ testing.TB, d time.Duration) { clock.Advance(d) },
		Lease: 10 * time.Second,
	}
}

func TestStore(t *testing.T) { storetest.Run(t, harness()) }

func TestHistories(t *testing.T) { storetest.Histories(t, harness()) }
