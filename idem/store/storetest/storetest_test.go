package storetest_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/memstore"
	"github.com/idemq/idemq/idem/store/storetest"
)

// forgetful is a driver that declares what it lacks, and lacks it.
type forgetful struct {
	store.Store
	lacks store.Capabilities
}

func (f forgetful) Capabilities() store.Capabilities { return f.lacks }

func (f forgetful) Apply(ctx context.Context, b *store.Batch) error {
	given := b.Ops
	b.Ops = make([]store.Op, len(given))
	for i, op := range given {
		if f.lacks.NoFingerprints {
			op.Fingerprint = ""
		}
		b.Ops[i] = op
	}
	err := f.Store.Apply(ctx, b)
	b.Ops = given
	if !f.lacks.NoDoneDetails {
		return err
	}
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

func harness(lacks store.Capabilities) storetest.Harness {
	var mu sync.Mutex
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	return storetest.Harness{
		Open: func(testing.TB) store.Store {
			return forgetful{memstore.New(memstore.WithClock(func() time.Time {
				mu.Lock()
				defer mu.Unlock()
				return now
			})), lacks}
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
	for name, lacks := range map[string]store.Capabilities{
		"done details": {NoDoneDetails: true},
		"fingerprints": {NoFingerprints: true},
		"both":         {NoDoneDetails: true, NoFingerprints: true},
	} {
		t.Run(name, func(t *testing.T) {
			storetest.Run(t, harness(lacks))
			storetest.Histories(t, harness(lacks))
		})
	}
}

// hiccups is a driver whose server is away for a moment, again and again.
type hiccups struct {
	store.Store
	calls *atomic.Int32
}

func (h hiccups) Apply(ctx context.Context, b *store.Batch) error {
	switch h.calls.Add(1) % 40 {
	case 0:
		return fmt.Errorf("a test: %w", store.ErrUnavailable)
	case 20: // what is executed is not told
		_ = h.Store.Apply(ctx, b)
		return fmt.Errorf("a test: %w", store.ErrUnavailable)
	default:
		return h.Store.Apply(ctx, b)
	}
}

// What the suite is not answered it asks again, as guards do.
func TestUnavailable(t *testing.T) {
	h := harness(store.Capabilities{})
	open := h.Open
	h.Open = func(tb testing.TB) store.Store { return hiccups{open(tb), new(atomic.Int32)} }
	storetest.Run(t, h)
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
	h := harness(store.Capabilities{NoDoneDetails: true, NoFingerprints: true})
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
