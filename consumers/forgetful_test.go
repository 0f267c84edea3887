package consumers_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
)

// forgetful keeps nothing of a done token, and has forgotten who spent it when that is to
// be buried.
type forgetful struct{ store.Store }

func (forgetful) Capabilities() store.Capabilities {
	return store.Capabilities{NoDoneDetails: true, NoFingerprints: true}
}

func (f forgetful) Apply(ctx context.Context, b *store.Batch) error {
	err := f.Store.Apply(ctx, b)
	for i := range b.Replies {
		if b.Ops[i].Kind == store.Bury {
			b.Replies[i] = store.Reply{Status: store.Lost}
		}
	}
	return err
}

// At most once, a message that failed after its store had forgotten who spent it is
// reported: it is neither dead-lettered nor handled again.
func TestAtMostOnceForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, deadLetters)
		r.b.publish("a")
		g := r.newGuard(idem.WithStore(forgetful{r.store}))
		stop := r.startWith(g, func(context.Context, *delivery) error { return errBoom }, consumers.AtMostOnce())
		time.Sleep(time.Minute)
		r.mustStop(stop)
		r.wantHandled("a")
		if n := r.count(idem.EventDropped); n != 1 {
			t.Errorf("%d messages reported as dropped, want 1", n)
		}
	})
}

func TestFingerprintsNeedAStoreThatKeepsThem(t *testing.T) {
	r := newRig(t, deadLetters)
	own := struct{}{}
	p, err := consumers.Configure(&own, []consumers.Option{consumers.Fingerprints()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := consumers.New(r.newGuard(idem.WithStore(forgetful{r.store})), consumers.Broker{}, p); !errors.Is(err, idem.ErrNoFingerprints) {
		t.Errorf("%v", err)
	}
	if _, err := consumers.New(r.guard, consumers.Broker{}, p); err != nil {
		t.Errorf("a store that keeps them: %v", err)
	}
}
