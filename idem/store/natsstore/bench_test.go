package natsstore_test

import (
	"context"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/natsstore"
	"github.com/idemq/idemq/internal/natstest"
)

// BenchmarkApply claims fresh tokens and completes them: through the store, one
// message at a time and many in a batch (the commits of a batch travel with the claims
// of the next, as the guard sends them), and as people write it by hand: Create before
// the handler, Update after it. An operation is a message; the server runs in the
// same process.
func BenchmarkApply(b *testing.B) {
	for _, workers := range []int{1, 64} {
		b.Run(fmt.Sprintf("hand/workers=%d", workers), func(b *testing.B) {
			_, js := benchServer(b)
			kv, err := js.CreateKeyValue(context.Background(), jetstream.KeyValueConfig{Bucket: bucket, LimitMarkerTTL: time.Second})
			if err != nil {
				b.Fatal(err)
			}
			run(b, workers, func(name string, n int) error { return byHand(kv, name, n) })
		})
	}
	for _, at := range []struct{ size, workers int }{{1, 1}, {1, 64}, {16, 1}, {64, 1}, {256, 1}, {256, 2}} {
		b.Run(fmt.Sprintf("store/batch=%d/workers=%d", at.size, at.workers), func(b *testing.B) {
			_, js := benchServer(b)
			s := natsstore.New(js, bucket)
			run(b, at.workers, func(name string, n int) error { return messages(s, name, at.size, n) })
		})
	}
}

func benchServer(b *testing.B) (*natstest.Server, jetstream.JetStream) {
	srv := natstest.Start(b)
	return srv, srv.JetStream(b)
}

func run(b *testing.B, workers int, fn func(name string, n int) error) {
	b.ReportAllocs()
	b.ResetTimer()
	done := make(chan error)
	for w := range workers {
		go func() { done <- fn(fmt.Sprint("worker", w), b.N/workers+1) }()
	}
	for range workers {
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
}

func byHand(kv jetstream.KeyValue, name string, n int) error {
	ctx := context.Background()
	for i := range n {
		token := fmt.Sprintf("%s-%016d", name, i)
		rev, err := kv.Create(ctx, token, []byte("in progress"), jetstream.KeyTTL(24*time.Hour))
		if err != nil {
			return err
		}
		if _, err := kv.Update(ctx, token, []byte("done"), rev); err != nil {
			return err
		}
	}
	return nil
}

// messages claims and completes n messages, size at a time.
func messages(s store.Store, name string, size, n int) error {
	x := &store.Batch{Prefix: "bench", Owner: "pod-1", Incarnation: 1790000000000000, Lease: 10 * time.Second, Retention: 24 * time.Hour, CheckWithin: time.Hour}
	var held []store.Op
	for i := 0; i < n || len(held) > 0; {
		x.Ops = append(x.Ops[:0], held...)
		held = held[:0]
		for ; len(held) < size && i < n; i++ {
			token := fmt.Sprintf("%s-%016d", name, i)
			claim := "aaaaaaaaaaaa" + strconv.Itoa(i)
			held = append(held, store.Op{Kind: store.Commit, Group: "orders", Token: token, Claim: claim, Attempt: 1})
			x.Ops = append(x.Ops, store.Op{Kind: store.Begin, Group: "orders", Token: token, Claim: claim, MaxExpiries: 2})
		}
		if err := s.Apply(context.Background(), x); err != nil {
			return err
		}
		for j, r := range x.Replies {
			if r.Status != store.OK && r.Status != store.Claimed {
				return fmt.Errorf("operation %+v was answered %+v", x.Ops[j], r)
			}
		}
	}
	return nil
}
