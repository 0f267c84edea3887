package idem_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/memstore"
	"github.com/idemq/idemq/internal/storefault"
)

func handled(context.Context) error { return nil }

// complete has a guard handle a token.
func complete(t *testing.T, g *idem.Guard, token string) {
	t.Helper()
	if err := g.Do(t.Context(), token, handled); err != nil {
		t.Fatalf("Do(%q): %v", token, err)
	}
}

// duplicate asks for a token that must be a duplicate.
func duplicate(t *testing.T, g *idem.Guard, token string, opts ...idem.ClaimOption) *idem.DuplicateError {
	t.Helper()
	c, err := g.Begin(t.Context(), token, opts...)
	var dup *idem.DuplicateError
	if !errors.As(err, &dup) {
		if c != nil {
			c.Abandon()
		}
		t.Fatalf("Begin(%q): %v, want a duplicate", token, err)
	}
	return dup
}

// What the near cache answers, and when the store is asked all the same.
func TestNearCache(t *testing.T) {
	const ttl = 30 * time.Second
	for _, tc := range []struct {
		name    string
		opts    []idem.Option
		prepare func(t *testing.T, g *idem.Guard, s *storefault.Store)
		ask     []idem.ClaimOption
		near    bool
	}{
		{name: "completed here", near: true, prepare: func(t *testing.T, g *idem.Guard, _ *storefault.Store) {
			complete(t, g, "t")
		}},
		{name: "on a later attempt, after a redrive", near: true, prepare: func(t *testing.T, g *idem.Guard, _ *storefault.Store) {
			if err := begin(t, g, "t").Bury(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := begin(t, g, "t", idem.WithRedrive(3)).Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "in one batch with others", near: true, prepare: func(t *testing.T, g *idem.Guard, _ *storefault.Store) {
			for _, err := range g.CommitAll(t.Context(), []*idem.Claim{begin(t, g, "s"), begin(t, g, "t")}) {
				if err != nil {
					t.Fatal(err)
				}
			}
		}},
		{name: "completed elsewhere, and asked for before", near: true, prepare: func(t *testing.T, g *idem.Guard, s *storefault.Store) {
			complete(t, idem.New(idem.WithStore(s)).Group("billing"), "t")
			time.Sleep(time.Second)
			duplicate(t, g, "t")
		}},
		{name: "until its time is over", near: true, prepare: func(t *testing.T, g *idem.Guard, _ *storefault.Store) {
			complete(t, g, "t")
			time.Sleep(ttl - time.Nanosecond)
		}},
		{name: "its time is over", prepare: func(t *testing.T, g *idem.Guard, _ *storefault.Store) {
			complete(t, g, "t")
			time.Sleep(ttl / 2)
			duplicate(t, g, "t") // which makes it no younger
			time.Sleep(ttl / 2)
		}},
		{name: "no trip was ever made for it", prepare: func(t *testing.T, _ *idem.Guard, s *storefault.Store) {
			complete(t, idem.New(idem.WithStore(s)).Group("billing"), "t")
		}},
		{name: "another group's", prepare: func(t *testing.T, g *idem.Guard, s *storefault.Store) {
			complete(t, g.Group("other"), "t")
			complete(t, idem.New(idem.WithStore(s)).Group("billing"), "t")
		}},
		{name: "crowded out by others", prepare: func(t *testing.T, g *idem.Guard, _ *storefault.Store) {
			complete(t, g, "t")
			for i := range 4 {
				complete(t, g, fmt.Sprint(i))
			}
		}},
		{name: "with a result, completed here", prepare: func(t *testing.T, g *idem.Guard, _ *storefault.Store) {
			c := begin(t, g, "t")
			c.SetResult([]byte("result"))
			if err := c.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "with a result, asked for before", prepare: func(t *testing.T, g *idem.Guard, s *storefault.Store) {
			c := begin(t, idem.New(idem.WithStore(s)).Group("billing"), "t")
			c.SetResult([]byte("result"))
			if err := c.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			duplicate(t, g, "t")
		}},
		{name: "dead-lettered: it may be redriven, and is terminated", prepare: func(t *testing.T, g *idem.Guard, _ *storefault.Store) {
			if err := begin(t, g, "t").Bury(t.Context()); err != nil {
				t.Fatal(err)
			}
			duplicate(t, g, "t")
		}},
		{name: "spent: it may be dead-lettered yet", prepare: func(t *testing.T, g *idem.Guard, _ *storefault.Store) {
			if _, err := g.Spend(t.Context(), "t"); err != nil {
				t.Fatal(err)
			}
			if _, err := g.Spend(t.Context(), "t"); !errors.Is(err, idem.ErrDuplicate) {
				t.Fatal(err)
			}
		}},
		{name: "spent, asked for, dead-lettered", prepare: func(t *testing.T, g *idem.Guard, _ *storefault.Store) {
			c, err := g.Spend(t.Context(), "t")
			if err != nil {
				t.Fatal(err)
			}
			duplicate(t, g, "t")
			if err := c.Bury(t.Context()); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "a payload is to be compared", ask: []idem.ClaimOption{idem.WithPayload(nil)}, prepare: func(t *testing.T, g *idem.Guard, _ *storefault.Store) {
			complete(t, g, "t")
		}},
		{name: "a redrive", ask: []idem.ClaimOption{idem.WithRedrive(1)}, prepare: func(t *testing.T, g *idem.Guard, _ *storefault.Store) {
			complete(t, g, "t")
		}},
		{name: "the reply to its Commit was lost", prepare: func(t *testing.T, g *idem.Guard, s *storefault.Store) {
			c := begin(t, g, "t")
			s.Once(store.Commit, storefault.Swallow)
			if err := c.Commit(t.Context()); !errors.Is(err, store.ErrUnavailable) {
				t.Fatal(err)
			}
			c.Abandon()
		}},
		{name: "its Commit was sent twice", prepare: func(t *testing.T, g *idem.Guard, s *storefault.Store) {
			b := g.BeginAll(t.Context(), []idem.Request{{Token: "t", Patient: true}})[0]
			s.Once(store.Commit, storefault.Swallow)
			if err := b.Claim.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "its lease had run out, and others had it meanwhile", prepare: func(t *testing.T, g *idem.Guard, s *storefault.Store) {
			c := begin(t, g, "t")
			c.StopRenewing()
			time.Sleep(10 * time.Second)
			if err := begin(t, idem.New(idem.WithStore(s)).Group("billing"), "t").Release(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := c.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "its record is over before the ttl", opts: []idem.Option{idem.WithRetention(10 * time.Second)}, prepare: func(t *testing.T, g *idem.Guard, s *storefault.Store) {
			complete(t, idem.New(idem.WithStore(s), idem.WithRetention(time.Hour)).Group("billing"), "t")
			time.Sleep(3 * time.Second)
			duplicate(t, g, "t")
			time.Sleep(7 * time.Second)
		}},
		{name: "the store is away", near: true, prepare: func(t *testing.T, g *idem.Guard, s *storefault.Store) {
			complete(t, g, "t")
			s.Set(storefault.Away)
			t.Cleanup(func() { s.Set(storefault.None) })
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				near := 0
				g, s := newGuard(append([]idem.Option{
					idem.WithNearCache(4, ttl), idem.WithRetention(time.Hour),
					idem.WithObserver(idem.ObserverFunc(func(e idem.Event) {
						if e.Kind == idem.EventDuplicate && e.Near {
							near++
						}
					})),
				}, tc.opts...)...)
				tc.prepare(t, g, s)
				near = 0
				trips := s.Trips()
				dup := duplicate(t, g, "t", tc.ask...)
				if got := s.Trips() == trips; got != tc.near || got != (near == 1) {
					t.Errorf("answered near: %v, want %v; told of %d such", got, tc.near, near)
				}
				s.Set(storefault.None)
				if said := duplicate(t, idem.New(idem.WithStore(s)).Group("billing"), "t"); !reflect.DeepEqual(dup, said) {
					t.Errorf("answered %+v, and the store says %+v", dup, said)
				}
			})
		})
	}
}

// A batch that is known in part asks for the rest, in its place.
func TestNearCacheInABatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, s := newGuard(idem.WithNearCache(100, 0))
		complete(t, g, "a")
		complete(t, g, "c")
		asked := len(s.Ops(store.Begin))
		answers := g.BeginAll(t.Context(), []idem.Request{{Token: "a"}, {Token: "b"}, {Token: "c"}, {Token: ""}})
		if !errors.Is(answers[0].Err, idem.ErrDuplicate) || answers[1].Claim == nil || !errors.Is(answers[2].Err, idem.ErrDuplicate) || !errors.Is(answers[3].Err, idem.ErrInvalidToken) {
			t.Errorf("%+v", answers)
		}
		if ops := s.Ops(store.Begin)[asked:]; len(ops) != 1 || ops[0].Token != "b" {
			t.Errorf("asked for %+v, want b only", ops)
		}
		answers[1].Claim.Abandon()
	})
}

// The next attempt of a claim asks the store, whatever is known near.
func TestNearCacheRetryAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, s := newGuard(idem.WithNearCache(100, 0))
		other := idem.New(idem.WithStore(s)).Group("billing")
		c := begin(t, g, "t")
		c.StopRenewing()
		time.Sleep(10 * time.Second)
		complete(t, other, "t")
		trips := s.Trips()
		if _, err := c.Retry(t.Context(), true, idem.Request{}); !errors.Is(err, idem.ErrDuplicate) || s.Trips() == trips {
			t.Errorf("%v after %d trips", err, s.Trips()-trips)
		}
		trips = s.Trips()
		if duplicate(t, g, "t"); s.Trips() != trips {
			t.Errorf("what Retry was answered is not kept")
		}
	})
}

// What a handler's transaction commits is not kept: what it wrote is lost with it where its
// database forgets.
func TestNearCacheTransactions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := storefault.NewDatabase(memstore.New())
		g := idem.New(idem.WithStore(d), idem.WithNearCache(100, 0)).Group("billing")
		if err := g.Do(t.Context(), "t", func(ctx context.Context) error { return storefault.Write(ctx, "effect") }); err != nil {
			t.Fatal(err)
		}
		for i, want := range []int{1, 0} {
			trips := d.Trips()
			if duplicate(t, g, "t"); d.Trips()-trips != want {
				t.Errorf("duplicate %d: %d trips, want %d", i, d.Trips()-trips, want)
			}
		}
	})
}

func TestNearCacheForget(t *testing.T) {
	const ttl = 30 * time.Second
	synctest.Test(t, func(t *testing.T) {
		g, s := newGuard(idem.WithNearCache(100, ttl), idem.WithTokenKeys(keyA))
		token := signed(t, g, "t")
		forget := func(g *idem.Guard, token string) {
			t.Helper()
			if err := g.Forget(t.Context(), token); err != nil {
				t.Fatal(err)
			}
		}
		complete(t, g, token)
		duplicate(t, g, token)
		forget(g, token)
		complete(t, g, token) // it is handled
		forget(g, "t")        // the same, by the name that events show
		complete(t, g, token)

		forget(idem.New(idem.WithStore(s)).Group("billing"), "t")
		time.Sleep(ttl - time.Nanosecond)
		duplicate(t, g, token) // not known here yet
		time.Sleep(time.Nanosecond)
		complete(t, g, token)

		// Not known to have been forgotten, and asked for.
		s.Once(store.Forget, storefault.Swallow)
		if err := g.Forget(t.Context(), token); !errors.Is(err, store.ErrUnavailable) {
			t.Fatal(err)
		}
		complete(t, g, token)
	})
}

// held is a store whose answers wait where hold says so, after it has executed.
type held struct {
	store.Store
	mu   sync.Mutex
	hold func(*store.Batch) <-chan struct{}
}

func (h *held) on(hold func(*store.Batch) <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hold = hold
}

func (h *held) Apply(ctx context.Context, b *store.Batch) error {
	err := h.Store.Apply(ctx, b)
	h.mu.Lock()
	hold := h.hold
	h.mu.Unlock()
	if hold != nil {
		if wait := hold(b); wait != nil {
			<-wait
		}
	}
	return err
}

// Answers that the store gave before a token was forgotten, and that come after, do not
// bring it back: those of a Begin, of a Commit, and with a store that lost it.
func TestNearCacheLateAnswers(t *testing.T) {
	for _, tc := range []struct {
		name string
		late store.Kind
		lost bool
	}{
		{name: "a duplicate, and Forget", late: store.Begin},
		{name: "a completion, and Forget", late: store.Commit},
		{name: "a duplicate, and a loss", late: store.Begin, lost: true},
		{name: "a completion, and a loss", late: store.Commit, lost: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				lossy := &forgetful{Store: memstore.New()}
				s := &held{Store: lossy}
				g := idem.New(idem.WithStore(s), idem.WithNearCache(100, 0)).Group("billing")
				other := idem.New(idem.WithStore(s)).Group("billing")
				claim := begin(t, g, "t")
				if tc.late == store.Begin {
					claim.Abandon()
					if err := other.Forget(t.Context(), "t"); !errors.Is(err, idem.ErrInProgress) {
						t.Fatal(err)
					}
					time.Sleep(idem.DefaultLease)
					complete(t, other, "t")
				}
				gate := make(chan struct{})
				s.on(func(b *store.Batch) <-chan struct{} {
					if b.Ops[0].Kind == tc.late {
						return gate
					}
					return nil
				})
				answered := make(chan error, 1)
				go func() {
					if tc.late == store.Commit {
						answered <- claim.Commit(t.Context())
						return
					}
					_, err := g.Begin(t.Context(), "t")
					answered <- err
				}()
				synctest.Wait()
				s.on(nil)
				if tc.lost {
					lossy.forget()
					inspect(t, g, "t") // which tells
				} else if err := g.Forget(t.Context(), "t"); err != nil {
					t.Fatal(err)
				}
				close(gate)
				if err := <-answered; !idem.Done(err) {
					t.Fatal(err)
				}
				if err := g.Do(t.Context(), "t", handled); err != nil {
					t.Errorf("after it was forgotten: %v", err)
				}
			})
		})
	}
}

// A store that lost its records is believed: what was known of them is dropped, and, where
// the guard is to halt, nothing is answered.
func TestNearCacheDataLoss(t *testing.T) {
	for _, halt := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s := &forgetful{Store: memstore.New()}
			opts := []idem.Option{idem.WithStore(s), idem.WithNearCache(100, 0)}
			if halt {
				opts = append(opts, idem.WithHaltOnDataLoss())
			}
			g := idem.New(opts...).Group("billing")
			complete(t, g, "t")
			s.forget()
			duplicate(t, g, "t") // it is not known yet
			inspect(t, g, "u")   // now it is
			err := g.Do(t.Context(), "t", handled)
			if halt && !errors.Is(err, idem.ErrDataLoss) || !halt && err != nil {
				t.Errorf("halt %v: %v", halt, err)
			}
		})
	}
}

func TestNearCacheIsLogged(t *testing.T) {
	var out strings.Builder
	log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))
	g, _ := newGuard(idem.WithNearCache(1, 0), idem.WithLogger(log))
	complete(t, g, "t")
	duplicate(t, g, "t")
	if !strings.Contains(out.String(), `msg="idem: duplicate" group=billing token=t attempt=1 near=true`) {
		t.Errorf("%s", out.String())
	}
}

func TestNearCacheOptions(t *testing.T) {
	for _, tc := range []struct {
		name string
		size int
		ttl  time.Duration
		want []string
	}{
		{name: "the default ttl", size: 1},
		{name: "a ttl beyond the retention is cut", size: 1, ttl: 1000 * time.Hour},
		{name: "no room", want: []string{"WithNearCache: a size of 0 tokens"}},
		{name: "less than no room", size: -2, want: []string{"a size of -2 tokens"}},
		{name: "a ttl below zero", size: 1, ttl: -time.Second, want: []string{"WithNearCache: a ttl of -1s"}},
		{name: "both", ttl: -1, want: []string{"a size of 0 tokens", "a ttl of -1ns"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g, _ := newGuard(idem.WithNearCache(tc.size, tc.ttl))
			if err := g.Err(); (err != nil) != (len(tc.want) > 0) {
				t.Fatalf("%v", err)
			}
			for _, want := range tc.want {
				if !strings.Contains(g.Err().Error(), want) {
					t.Errorf("%q does not say %q", g.Err(), want)
				}
			}
			if _, err := g.Begin(t.Context(), "t"); !errors.Is(err, g.Err()) {
				t.Errorf("%v, want the fault", err)
			}
		})
	}
	g, s := newGuard(idem.WithNearCache(-1, 0), idem.WithNearCache(1, 0)) // the later wins
	complete(t, g, "t")
	trips := s.Trips()
	if duplicate(t, g, "t"); s.Trips() != trips {
		t.Error("the later option is not in force")
	}
}
