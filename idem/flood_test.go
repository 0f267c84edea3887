package idem_test

import (
	"context"
	"errors"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
)

// amnesiac is a store that grants everything and keeps nothing: what is left in the process
// is the guard's.
type amnesiac struct{}

func (amnesiac) Capabilities() store.Capabilities { return store.Capabilities{} }
func (amnesiac) Verify(context.Context, string) ([]store.Finding, error) {
	return nil, nil
}

func (amnesiac) Incarnation(context.Context, string, string) (uint64, error) { return 1, nil }
func (amnesiac) Apply(_ context.Context, b *store.Batch) error {
	b.Now = time.Now()
	b.Replies = make([]store.Reply, len(b.Ops))
	for i, op := range b.Ops {
		b.Replies[i].Status = store.OK
		if op.Kind == store.Begin {
			b.Replies[i] = store.Reply{Status: store.Claimed, Attempt: 1}
		}
	}
	return nil
}

// Fresh tokens, and those that are refused, leave nothing behind in
// the guard: what a flood costs, it costs the store.
func TestFloodOfTokens(t *testing.T) {
	g := idem.New(idem.WithStore(amnesiac{}), idem.WithTokenKeys(keyA))
	const batch, tokens = 500, 50_000
	reqs := make([]idem.Request, batch)
	flood := func(from, tokens int) {
		for ; tokens > 0; tokens -= batch {
			for i := range reqs {
				reqs[i].Token = signed(t, g, "fresh "+strconv.Itoa(from))
				from++
			}
			claims := make([]*idem.Claim, 0, batch)
			for _, b := range g.BeginAll(t.Context(), reqs) {
				if b.Err != nil {
					t.Fatal(b.Err)
				}
				claims = append(claims, b.Claim)
			}
			for _, err := range g.CommitAll(t.Context(), claims) {
				if err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	flood(0, 20_000)
	heap, goroutines := inUse(), runtime.NumGoroutine()
	flood(20_000, tokens)
	for i := range tokens / 10 {
		if _, err := g.Begin(t.Context(), "forged "+strconv.Itoa(i)); !errors.Is(err, idem.ErrUnsigned) {
			t.Fatal(err)
		}
	}
	if grown := inUse() - heap; grown > 1<<20 {
		t.Errorf("the process holds %d bytes more after %d tokens, want less than 1 MiB", grown, tokens)
	}
	if n := runtime.NumGoroutine(); n > goroutines+2 {
		t.Errorf("%d goroutines, %d before", n, goroutines)
	}
	runtime.KeepAlive(g)
}

func inUse() int {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}
