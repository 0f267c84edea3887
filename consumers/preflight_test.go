package consumers_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
)

func finding(id string) idem.Finding {
	return idem.Finding{ID: id, What: "It is " + id + ".", Consequence: "It hurts.", Cure: "Mend it."}
}

// finds is a Verify that finds.
func finds(ids ...string) func(context.Context) ([]store.Finding, error) {
	return func(context.Context) (all []store.Finding, err error) {
		for _, id := range ids {
			all = append(all, finding(id))
		}
		return all, nil
	}
}

func fails(err error) func(context.Context) ([]store.Finding, error) {
	return func(context.Context) ([]store.Finding, error) { return nil, err }
}

var (
	errAway    = fmt.Errorf("no route: %w", store.ErrUnavailable)
	errRefused = errors.New("a newer layout")
	errMissing = errors.New("no such queue")
)

// told lists the findings that observers were told of.
func (r *rig) told() (ids []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		if e.Kind == idem.EventFinding {
			if e.Finding == nil || e.Text != e.Finding.String() || e.Group != "billing" {
				r.t.Errorf("event %+v", e)
				continue
			}
			ids = append(ids, e.Finding.ID)
		}
	}
	return ids
}

func (r *rig) wantTold(want ...string) {
	r.t.Helper()
	if got := r.told(); !slices.Equal(got, want) {
		r.t.Errorf("told of %q, want %q", got, want)
	}
}

func policy(t *testing.T, opts ...consumers.Option) consumers.Policy {
	t.Helper()
	p, err := consumers.Configure(&struct{}{}, opts)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// await is the beginning of a Run whose broker answers with found, or an error. It
// returns how long it took and how often the broker was asked.
func (r *rig) await(ctx context.Context, p consumers.Policy, broker func(n int) ([]idem.Finding, error)) (took time.Duration, asked int, err error) {
	began := time.Now()
	err = consumers.AwaitPreflight(ctx, r.guard, p, func(_ context.Context, pass func([]idem.Finding) error) error {
		asked++
		found, err := broker(asked)
		if passed := pass(found); passed != nil {
			return fmt.Errorf("asking: %w", passed)
		}
		return err
	}, func(err error) bool { return errors.Is(err, errMissing) })
	return time.Since(began), asked, err
}

func silent(int) ([]idem.Finding, error) { return nil, nil }

func TestPreflightAsksBoth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{})
		r.store.OnVerify(finds("store-a"))
		ask := func(context.Context) ([]idem.Finding, error) { return []idem.Finding{finding("broker-b")}, nil }
		found, err := consumers.Preflight(t.Context(), r.guard, policy(t), ask)
		if err != nil || len(found) != 2 || found[0].ID != "store-a" || found[1].ID != "broker-b" {
			t.Errorf("found %v, %v", found, err)
		}
		found, err = consumers.Preflight(t.Context(), r.guard, policy(t, consumers.Strict("store-a")), ask)
		if err == nil || !strings.Contains(err.Error(), `Strict("broker-b")`) || len(found) != 2 {
			t.Errorf("strict: found %v, %v", found, err)
		}
		r.wantTold() // it returns them

		r.store.OnVerify(fails(errRefused))
		found, err = consumers.Preflight(t.Context(), r.guard, policy(t), func(context.Context) ([]idem.Finding, error) {
			return []idem.Finding{finding("broker-b")}, errMissing
		})
		if !errors.Is(err, errRefused) || !errors.Is(err, errMissing) || len(found) != 1 {
			t.Errorf("two errors: found %v, %v", found, err)
		}
	})
}

func TestStrict(t *testing.T) {
	broker := func(int) ([]idem.Finding, error) {
		return []idem.Finding{finding("broker-b"), finding("broker-c")}, nil
	}
	for _, c := range []struct {
		name   string
		opts   []consumers.Option
		refuse []string
	}{
		{"not strict", nil, nil},
		{"strict", []consumers.Option{consumers.Strict()}, []string{"store-a", "broker-b", "broker-c"}},
		{"some accepted", []consumers.Option{consumers.Strict("broker-b", "no-such-finding")}, []string{"store-a", "broker-c"}},
		{"all accepted", []consumers.Option{consumers.Strict("store-a", "broker-b", "broker-c")}, nil},
		{"the later wins", []consumers.Option{consumers.Strict("store-a", "broker-b", "broker-c"), consumers.Strict("store-a")}, []string{"broker-b", "broker-c"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, consumers.Broker{})
				r.store.OnVerify(finds("store-a"))
				took, _, err := r.await(t.Context(), policy(t, c.opts...), broker)
				if took > 0 {
					t.Errorf("it took %v", took)
				}
				r.wantTold("store-a", "broker-b", "broker-c") // accepted or not
				if (err != nil) != (len(c.refuse) > 0) {
					t.Fatalf("error %v", err)
				}
				for _, id := range []string{"store-a", "broker-b", "broker-c"} {
					if listed := err != nil && strings.Contains(err.Error(), finding(id).String()); listed != slices.Contains(c.refuse, id) {
						t.Errorf("%s listed: %v: %v", id, listed, err)
					}
				}
			})
		})
	}
}

// A broker that answers late is asked again, and what was found is told once.
func TestFindingsAreToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{})
		r.store.OnVerify(finds("store-a", "store-a"))
		_, asked, err := r.await(t.Context(), policy(t), func(n int) ([]idem.Finding, error) {
			if n < 3 {
				return []idem.Finding{finding("broker-b")}, errAway
			}
			return []idem.Finding{finding("broker-b"), finding("broker-c")}, nil
		})
		if err != nil || asked != 3 {
			t.Errorf("asked %d times: %v", asked, err)
		}
		r.wantTold("store-a", "broker-b", "broker-c")
		if n := r.count(idem.EventWaiting); n != 2 {
			t.Errorf("told of %d waits", n)
		}
	})
}

func TestBrokerAwayAtTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{})
		took, _, err := r.await(t.Context(), policy(t), func(n int) ([]idem.Finding, error) {
			if n < 20 {
				return nil, errAway
			}
			return nil, errMissing
		})
		if !errors.Is(err, errMissing) || took < 40*time.Second {
			t.Errorf("after %v: %v", took, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		took, _, err = r.await(ctx, policy(t), func(int) ([]idem.Finding, error) { return nil, errAway })
		if !errors.Is(err, context.DeadlineExceeded) || took != time.Minute {
			t.Errorf("after %v: %v", took, err)
		}
	})
}

// A store that does not answer delays the start a little, whatever its driver makes of
// the context; Strict waits for it.
func TestStoreAwayAtTheStart(t *testing.T) {
	over := make(chan struct{})
	defer close(over)
	for name, verify := range map[string]func(context.Context) ([]store.Finding, error){
		"away":             fails(errAway),
		"hangs":            func(ctx context.Context) ([]store.Finding, error) { <-ctx.Done(); return nil, ctx.Err() },
		"minds no context": func(context.Context) ([]store.Finding, error) { time.Sleep(time.Minute); return nil, nil },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, consumers.Broker{})
				r.store.OnVerify(verify)
				took, _, err := r.await(t.Context(), policy(t), silent)
				if err != nil || took < 4*time.Second || took > 7*time.Second {
					t.Errorf("after %v: %v", took, err)
				}
				r.wantTold("store-silent")

				time.AfterFunc(time.Hour, func() { r.store.OnVerify(finds("store-a")) })
				took, _, err = r.await(t.Context(), policy(t, consumers.Strict("store-a", "store-silent")), silent)
				if err != nil || took < time.Hour || took > time.Hour+time.Minute {
					t.Errorf("strict, after %v: %v", took, err)
				}
				r.wantTold("store-silent", "store-a")

				r.store.OnVerify(verify)
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				took, asked, err := r.await(ctx, policy(t, consumers.Strict()), silent)
				if !errors.Is(err, context.DeadlineExceeded) || took > time.Minute || asked != 0 {
					t.Errorf("strict and over, after %v: %v, the broker was asked %d times", took, err, asked)
				}
				time.Sleep(time.Hour) // what was asked ends
			})
		})
	}
}

// A refusal ends the start, unless it is over in a moment, as while a replica becomes the
// primary.
func TestStoreRefusesAtTheStart(t *testing.T) {
	for _, opts := range [][]consumers.Option{nil, {consumers.Strict()}} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, consumers.Broker{})
			r.store.OnVerify(fails(errRefused))
			took, asked, err := r.await(t.Context(), policy(t, opts...), silent)
			if !errors.Is(err, errRefused) || took > 7*time.Second || asked != 0 {
				t.Errorf("after %v: %v, the broker was asked %d times", took, err, asked)
			}
			time.AfterFunc(3*time.Second, func() { r.store.OnVerify(finds()) })
			took, asked, err = r.await(t.Context(), policy(t, opts...), silent)
			if err != nil || took > 5*time.Second || asked != 1 {
				t.Errorf("after %v: %v, the broker was asked %d times", took, err, asked)
			}
			r.wantTold()
		})
	}
}

func TestPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{})
		var p consumers.Pause
		wait := func() time.Duration {
			began := time.Now()
			p.Wait(t.Context(), r.guard, errBoom)
			return time.Since(began)
		}
		for _, ms := range []int{100, 200, 400, 800, 1600, 3200, 5000, 5000} {
			longest := time.Duration(ms) * time.Millisecond
			if d := wait(); d < longest/2 || d > longest {
				t.Errorf("a pause of %v, want %v to %v", d, longest/2, longest)
			}
		}
		if n := r.count(idem.EventWaiting); n != 8 || !p.Failing() {
			t.Errorf("told of %d waits, failing %v", n, p.Failing())
		}
		p.Reset()
		if d := wait(); d > 100*time.Millisecond {
			t.Errorf("a pause of %v after a success", d)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		began := time.Now()
		if p.Wait(ctx, r.guard, errBoom); time.Since(began) != time.Millisecond {
			t.Errorf("a pause went on for %v after the end of its context", time.Since(began))
		}
	})
}
