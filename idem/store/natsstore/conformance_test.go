package natsstore_test

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/natsstore"
	"github.com/idemq/idemq/idem/store/storetest"
	"github.com/idemq/idemq/internal/natstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// unit is the suite's lease; histories wait for some thousand of shortUnit.
const (
	unit      = 60 * time.Millisecond
	shortUnit = 20 * time.Millisecond
)

const bucket = "idem"

// harness runs the suite on a bucket, which opts create at first use.
func harness(js jetstream.JetStream, lease time.Duration, opts ...natsstore.Option) storetest.Harness {
	return storetest.Harness{
		Open:  func(testing.TB) store.Store { return natsstore.New(js, bucket, opts...) },
		Wait:  func(tb testing.TB, d time.Duration) { waitFor(tb, js, d) },
		Lease: lease,
		Corrupt: func(tb testing.TB, _ store.Store, prefix, group, token string, how storetest.Corruption) {
			corrupt(tb, js, natsstore.RecordKey(prefix, group, token), how)
		},
	}
}

// serverTime is the clock of the server that leads the bucket.
func serverTime(tb testing.TB, js jetstream.JetStream) time.Time {
	tb.Helper()
	st, err := js.Stream(context.Background(), "KV_"+bucket)
	if err != nil {
		tb.Fatal(err)
	}
	return st.CachedInfo().TimeStamp
}

// waitFor returns when d has passed on the server's clock.
func waitFor(tb testing.TB, js jetstream.JetStream, d time.Duration) {
	tb.Helper()
	now := serverTime(tb, js)
	for end := now.Add(d); !now.After(end); now = serverTime(tb, js) {
		<-time.After(end.Sub(now) + time.Millisecond) // and look at the server's clock again
	}
}

func corrupt(tb testing.TB, js jetstream.JetStream, key string, how storetest.Corruption) {
	tb.Helper()
	ctx := context.Background()
	kv, err := js.KeyValue(ctx, bucket)
	if err != nil {
		tb.Fatal(err)
	}
	value := map[storetest.Corruption]string{
		storetest.WrongType:    `{"v":1,"state":"issued","keep":"1h0m0s"}`,
		storetest.Garbage:      "garbage",
		storetest.NewerVersion: `{"v":2,"claim":["of another shape"]}`,
	}[how]
	if _, err := kv.Get(ctx, key); err != nil {
		tb.Fatal(err)
	}
	if _, err = kv.PutString(ctx, key, value); err != nil {
		tb.Fatal(err)
	}
}

func TestStore(t *testing.T) {
	t.Parallel()
	js := natstest.Start(t).JetStream(t)
	h := harness(js, unit)
	h.Name, h.Server = "NATS KV", js.Conn().ConnectedServerVersion()
	storetest.Run(t, h)
}

func TestHistories(t *testing.T) {
	t.Parallel()
	storetest.Histories(t, harness(natstest.Start(t).JetStream(t), shortUnit))
}
