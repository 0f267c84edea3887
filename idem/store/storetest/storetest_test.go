package storetest_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/memstore"
	"github.com/idemq/idemq/idem/store/storetest"
)

// forgetful is a driver that declares what it lacks, and lacks it: of a done
// token it knows nothing more, and it has no fingerprints.
type forgetful struct{ store.Store }

func (forgetful) Capabilities() store.Capabilities {
	return store.Capabilities{NoDoneDetails: true, NoFingerprints: true}
}

func (f forgetful) Apply(ctx context.Context, b *store.Batch) error {
	given := b.Ops
	b.Ops = make([]store.Op, len(given))
	for i, op := range given {
		op.Fingerprint = ""
		b.Ops[i] = op
	}
	err := f.Store.Apply(ctx, b)
	b.Ops = given
	for i := range b.Replies {
		r := &b.Replies[i]
		if r.Status == store.Duplicate && !r.Dead {
			*r = store.Reply{Status: store.Duplicate}
		}
		if r.Record != nil && r.Record.State == store.Done {
			*r.Record = store.Record{State: store.Done, Issued: r.Record.Issued, Checked: r.Record.Checked}
		}
	}
	return err
}

func harness() storetest.Harness {
	var mu sync.Mutex
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	return storetest.Harness{
		Open: func(testing.TB) store.Store {
			return forgetful{memstore.New(memstore.WithClock(func() time.Time {
				mu.Lock()
				defer mu.Unlock()
				return now
			}))}
		},
		Wait: func(_ testing.TB, d time.Duration) {
			mu.Lock()
			defer mu.Unlock()
			now = now.Add(d)
		},
		Lease: 10 * time.Second,
	}
}

// The suite asks a driver for nothing that it declared it cannot do.
func TestCapabilityGaps(t *testing.T) {
	t.Run("Run", func(t *testing.T) { storetest.Run(t, harness()) })
	t.Run("Histories", func(t *testing.T) { storetest.Histories(t, harness()) })
}

// damaged is a driver with records that cannot be read.
type damaged struct {
	store.Store
	records map[[3]string]error // by prefix, group and token
}

func (d damaged) Apply(ctx context.Context, b *store.Batch) error {
	given := b.Ops
	replies := make([]store.Reply, len(given))
	b.Ops = nil
	var readable []int
	for i, op := range given {
		if err := d.records[[3]string{b.Prefix, op.Group, op.Token}]; err != nil {
			replies[i].Err = err
			continue
		}
		readable = append(readable, i)
		b.Ops = append(b.Ops, op)
	}
	err := d.Store.Apply(ctx, b)
	for k, i := range readable {
		replies[i] = b.Replies[k]
	}
	b.Ops, b.Replies = given, replies
	return err
}

// The cases of damaged records pass on a driver that answers them rightly.
func TestCorruption(t *testing.T) {
	h := harness()
	records := map[[3]string]error{}
	open := h.Open
	h.Open = func(tb testing.TB) store.Store { return damaged{open(tb), records} }
	h.Corrupt = func(_ testing.TB, _ store.Store, prefix, group, token string, how storetest.Corruption) {
		err := store.ErrUnreadable
		if how == storetest.NewerVersion {
			err = store.ErrNewer
		}
		records[[3]string{prefix, group, token}] = err
	}
	storetest.Run(t, h)
}
