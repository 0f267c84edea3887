package natsstore

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/idemq/idemq/internal/natstest"
)

// A server drops what waits for it when too much does: a call of many requests waits until
// those of others are answered.
func TestWavesTakeTurns(t *testing.T) {
	js := natstest.Start(t).JetStream(t)
	w := newWire(js, "b")
	var asked atomic.Int64
	sub, err := w.nc.Subscribe("ask", func(m *nats.Msg) {
		asked.Add(1)
		if err := m.Respond(nil); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	reqs := make([]*request, window+1)
	for i := range reqs {
		reqs[i] = &request{msg: nats.NewMsg("ask")}
	}
	const others = mostRequests - window + 1 // no room for a window
	if !w.underWay.TryAcquire(others) {
		t.Fatal("requests are under way already")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	w.exchange(ctx, reqs)
	for i, r := range reqs {
		if !errors.Is(r.err, context.DeadlineExceeded) {
			t.Fatalf("request %d, which had to wait: %v, want the context's error", i, r.err)
		}
		r.err = nil
	}
	go w.underWay.Release(1)
	w.exchange(t.Context(), reqs)
	for i, r := range reqs {
		if r.err != nil {
			t.Fatalf("request %d, after another call had its answers: %v", i, r.err)
		}
	}
	if n := asked.Load(); n != int64(len(reqs)) {
		t.Errorf("%d requests were sent, want %d", n, len(reqs))
	}
	if !w.underWay.TryAcquire(window) || w.underWay.TryAcquire(1) {
		t.Error("what was answered is not what counts as under way no more")
	}
}
