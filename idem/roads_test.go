package idem_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
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

func TestSpend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, s := newGuard()
		c, err := g.Spend(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := g.Spend(t.Context(), "a"); !errors.Is(err, idem.ErrDuplicate) {
			t.Errorf("spent twice: %v", err)
		}
		trips := s.Trips()
		time.Sleep(time.Minute)
		if s.Trips() != trips {
			t.Error("a spent claim is renewed")
		}
		if err := c.Commit(t.Context()); err != nil {
			t.Errorf("Commit of a spent claim: %v", err)
		}
		if _, err := g.Spend(t.Context(), "a"); !errors.Is(err, idem.ErrDuplicate) {
			t.Errorf("second Spend: %v", err)
		}
		// A failed one is buried before it is published, so that a redrive spends anew.
		c, err = g.Spend(t.Context(), "b")
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Bury(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := g.Spend(t.Context(), "b"); !errors.Is(err, idem.ErrDuplicate) {
			t.Errorf("a stray redelivery: %v", err)
		}
		if _, err := g.Spend(t.Context(), "b", idem.WithRedrive(c.Redrive()+1)); err != nil {
			t.Errorf("a redrive: %v", err)
		}
	})
}

func TestBuryAndRedrive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _ := newGuard()
		c := begin(t, g, "a")
		if err := c.Bury(t.Context()); err != nil {
			t.Fatal(err)
		}
		var dup *idem.DuplicateError
		if _, err := g.Begin(t.Context(), "a"); !errors.As(err, &dup) || !dup.Dead {
			t.Fatalf("after Bury: %v", err)
		}
		again := begin(t, g, "a", idem.WithRedrive(dup.Redrive+1))
		if again.Attempt() != 2 || again.Spent() != 0 || again.Redrive() != 1 {
			t.Errorf("redriven: attempt %d, spent %d, redrive %d", again.Attempt(), again.Spent(), again.Redrive())
		}
		if err := again.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := g.Begin(t.Context(), "a", idem.WithRedrive(5)); !errors.Is(err, idem.ErrDuplicate) {
			t.Errorf("a redrive of what is done: %v", err)
		}
	})
}

func TestConflict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _ := newGuard()
		if err := begin(t, g, "a", idem.WithPayload([]byte("10 EUR"))).Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := g.Begin(t.Context(), "a", idem.WithPayload([]byte("20 EUR"))); !errors.Is(err, idem.ErrConflict) {
			t.Errorf("another payload: %v", err)
		}
		if _, err := g.Begin(t.Context(), "a", idem.WithPayload([]byte("10 EUR"))); !errors.Is(err, idem.ErrDuplicate) {
			t.Errorf("the same payload: %v", err)
		}
		if _, err := g.Begin(t.Context(), "b", idem.WithPayload(nil)); err != nil {
			t.Errorf("an empty payload: %v", err)
		}
	})
}

func TestForget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, s := newGuard()
		c := begin(t, g, "a")
		var busy *idem.InProgressError
		if err := g.Forget(t.Context(), "a"); !errors.As(err, &busy) {
			t.Errorf("Forget under a live claim: %v", err)
		}
		s.Set(storefault.Away)
		<-c.Context().Done()
		s.Set(storefault.None)
		time.Sleep(time.Second)
		if err := g.Forget(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		if err := c.Commit(t.Context()); !errors.Is(err, idem.ErrLeaseLost) {
			t.Errorf("a claim from before: %v, want it fenced", err)
		}
		if next := begin(t, g, "a"); next.Attempt() != 2 || next.Spent() != 0 {
			t.Errorf("attempt %d, spent %d", next.Attempt(), next.Spent())
		}
	})
}

func TestIssuedOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, s := newGuard(idem.WithIssuedOnly(), idem.WithExpire(1))
		if _, err := g.Begin(t.Context(), "a"); !errors.Is(err, idem.ErrUnknownToken) || idem.Done(err) {
			t.Errorf("a token nobody issued: %v", err)
		}
		token, err := g.Token(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour) // longer than the expiry, which is for Check; not than the retention
		if pass, err := g.Check(t.Context(), token); pass || err != nil {
			t.Errorf("Check after the expiry: %v, %v", pass, err)
		}
		if err := begin(t, g, token).Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		// A derived token is registered where that is needed.
		c := begin(t, g, token)
		derived, err := c.DeriveFor(t.Context(), "receipt", new(int))
		if err != nil {
			t.Fatal(err)
		}
		begin(t, g.Group("receipts"), derived)
		if n := len(s.Ops(store.Issue)); n != 2 {
			t.Errorf("%d tokens issued, want 2", n)
		}
	})
}

func TestInstance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memstore.New()
		make1 := func(name string) *idem.Guard {
			return idem.New(idem.WithStore(s), idem.WithLease(9*time.Second), idem.WithInstance(name)).Group("billing")
		}
		// A dead process: its claim is not renewed.
		faulty := storefault.New(s)
		dead := idem.New(idem.WithStore(faulty), idem.WithLease(9*time.Second), idem.WithInstance("pod-0")).Group("billing")
		c := begin(t, dead, "a")
		faulty.Set(storefault.Away)

		stranger, successor := make1("pod-1"), make1("pod-0")
		start := time.Now()
		for {
			_, err := successor.Begin(t.Context(), "a")
			var busy *idem.InProgressError
			if err == nil {
				break
			}
			if !errors.As(err, &busy) {
				t.Fatal(err)
			}
			if _, err := stranger.Begin(t.Context(), "a"); !errors.Is(err, idem.ErrInProgress) {
				t.Errorf("another instance: %v", err)
			}
			time.Sleep(busy.RetryAfter)
		}
		if d := time.Since(start); d > 9*time.Second/2 {
			t.Errorf("taken over after %v, more than half the lease", d)
		}
		<-c.Context().Done()

		// Two that live: the older is told, and steals nothing.
		older, newer := make1("pod-2"), make1("pod-2")
		begin(t, older, "x") // draws its incarnation
		begin(t, newer, "b")
		if _, err := older.Begin(t.Context(), "b"); !errors.Is(err, idem.ErrSuperseded) {
			t.Errorf("the older one: %v", err)
		}
		time.Sleep(time.Minute)
		if _, err := newer.Begin(t.Context(), "x"); !errors.Is(err, idem.ErrInProgress) {
			t.Errorf("a live claim of the older one: %v, want it left alone", err)
		}
	})
}

// undrawn is a store whose numbers are on a node that does not give them at first.
type undrawn struct {
	store.Store
	why   []error // of each draw; nil: it hangs
	mu    sync.Mutex
	draws int
}

func (u *undrawn) Incarnation(ctx context.Context, prefix, name string) (uint64, error) {
	u.mu.Lock()
	n := u.draws
	u.draws++
	u.mu.Unlock()
	if n >= len(u.why) {
		return u.Store.Incarnation(ctx, prefix, name)
	}
	if u.why[n] != nil {
		return 0, u.why[n]
	}
	<-ctx.Done()
	return 0, fmt.Errorf("no answer: %w: %w", store.ErrUnavailable, ctx.Err())
}

// A process that starts while the node that numbers it is away, or refuses, works all the same,
// and has its name as soon as that is back.
func TestInstanceIsNumberedLate(t *testing.T) {
	for name, why := range map[string][]error{
		"away":                           {store.ErrUnavailable, store.ErrUnavailable},
		"hangs":                          {nil, nil},
		"refuses":                        {store.ErrRefused, store.ErrRefused},
		"away, and refuses later":        {store.ErrUnavailable, errBoom},
		"refuses, and then says another": {store.ErrRefused, errBoom},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &undrawn{Store: memstore.New(), why: why}
				var refusals []error
				told := idem.ObserverFunc(func(e idem.Event) {
					if e.Kind == idem.EventRefused {
						refusals = append(refusals, e.Err)
					}
				})
				g := idem.New(idem.WithStore(s), idem.WithLease(9*time.Second), idem.WithInstance("pod-0"), idem.WithObserver(told)).Group("g")
				start := time.Now()
				for i := range 20 {
					asked := time.Now()
					begun := g.BeginAll(t.Context(), []idem.Request{{Token: fmt.Sprint(i), Patient: true}})[0]
					if begun.Err != nil {
						t.Fatal(begun.Err)
					}
					if took := time.Since(asked); i > 0 && took > 0 {
						t.Errorf("claim %d was made after %v: it waited for the number", i, took)
					}
					synctest.Wait()
					s.mu.Lock()
					draws := s.draws
					s.mu.Unlock()
					if most := 1 + int(time.Since(start)/(2*time.Second)); draws > most {
						t.Errorf("%d draws in %v", draws, time.Since(start))
					}
					begun.Claim.Abandon()
					time.Sleep(500 * time.Millisecond)
				}
				c := begin(t, g, "last")
				if owner := inspect(t, g, "last").Owner; s.draws != 3 || owner != "pod-0" {
					t.Errorf("after %d draws the owner is %q", s.draws, owner)
				}
				c.Abandon()
				var want []error // each once; what passes by itself is not told
				for _, err := range slices.Compact(slices.Clone(why)) {
					if err != nil && !errors.Is(err, store.ErrUnavailable) {
						want = append(want, err)
					}
				}
				if !slices.EqualFunc(refusals, want, errors.Is) {
					t.Errorf("told of %v, want %v", refusals, want)
				}
			})
		})
	}
	g := idem.New(idem.WithStore(&undrawn{Store: memstore.New(), why: []error{errBoom}}), idem.WithInstance("pod-0")).Group("g")
	if _, err := g.Begin(t.Context(), "a"); !errors.Is(err, errBoom) {
		t.Errorf("a store that refuses to number it: %v", err)
	}
}

// Each operation whose reply is lost is answered, when it is sent again under the
// same claim id, as the first one would have been.
func TestLostReplies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, s := newGuard()
		patient := func(token string) idem.Begun {
			return g.BeginAll(t.Context(), []idem.Request{{Token: token, Patient: true}})[0]
		}
		s.Once(store.Begin, storefault.Swallow)
		b := patient("a")
		if b.Err != nil || b.Claim.Attempt() != 1 {
			t.Fatalf("Begin: %+v", b)
		}
		s.Once(store.Release, storefault.Swallow)
		if err := b.Claim.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		b = patient("a")
		if b.Err != nil || b.Claim.Spent() != 1 || b.Claim.Attempt() != 2 {
			t.Fatalf("after Release: %+v", b)
		}
		s.Once(store.Release, storefault.Swallow)
		next, err := b.Claim.Retry(t.Context(), true, idem.Request{Patient: true})
		if err != nil || next.Spent() != 2 || next.Attempt() != 3 {
			t.Fatalf("Retry: %v, %v", next, err)
		}
		s.Once(store.Renew, storefault.Swallow)
		time.Sleep(time.Minute)
		if next.Context().Err() != nil {
			t.Error("a lost renewal lost the lease")
		}
		s.Once(store.Commit, storefault.Swallow)
		if err := next.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if r := inspect(t, g, "a"); r.State != store.Done || r.Attempt != 3 {
			t.Errorf("record %+v", r)
		}
		b = patient("b")
		s.Once(store.Bury, storefault.Swallow)
		if err := b.Claim.Bury(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.Once(store.Spend, storefault.Swallow)
		if b := g.SpendAll(t.Context(), []idem.Request{{Token: "c", Patient: true}})[0]; b.Err != nil {
			t.Errorf("Spend: %v: a lost reply turned the first into a duplicate", b.Err)
		}
	})
}

func TestStoreFullOfClaims(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := storefault.New(memstore.New(memstore.WithMaxRecords(1)))
		g := idem.New(idem.WithStore(s)).Group("billing")
		c := begin(t, g, "a")
		if _, err := g.Begin(t.Context(), "b"); !errors.Is(err, store.ErrFull) {
			t.Errorf("Begin: %v, want ErrFull", err)
		}
		done := make(chan idem.Begun)
		go func() {
			done <- g.BeginAll(t.Context(), []idem.Request{{Token: "b", Patient: true, FailOpen: time.Second}})[0]
		}()
		trips := s.Trips()
		time.Sleep(10 * time.Minute)
		if n := s.Trips() - trips; n > 10*60*2 {
			t.Errorf("%d trips in ten minutes: it spins", n)
		}
		if err := c.Commit(t.Context()); err != nil {
			t.Fatalf("a completion must pass: %v", err)
		}
		if b := <-done; b.Err != nil {
			t.Errorf("the patient one: %v", b.Err)
		}
	})
}

func TestEventsAndLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		var mu sync.Mutex
		seen := map[idem.EventKind]idem.Event{}
		g, _ := newGuard(
			idem.WithLogger(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))),
			idem.WithObserver(idem.ObserverFunc(func(e idem.Event) {
				mu.Lock()
				defer mu.Unlock()
				seen[e.Kind] = e
			})),
		)
		ok := func(context.Context) error { return nil }
		_ = g.Do(t.Context(), "a", ok)
		_ = g.Do(t.Context(), "a", ok)
		_ = g.Do(t.Context(), "b", func(context.Context) error { return errBoom })
		if err := g.Verify(t.Context()); err != nil {
			t.Errorf("Verify: %v", err)
		}
		if found, err := g.Preflight(t.Context()); err != nil || len(found) != 1 || found[0].ID != "memory-forgets" {
			t.Errorf("Preflight: %v, %v", found, err)
		}
		mu.Lock()
		defer mu.Unlock()
		for _, k := range []idem.EventKind{idem.EventClaimed, idem.EventCommitted, idem.EventDuplicate, idem.EventReleased} {
			e, ok := seen[k]
			if !ok || e.Group != "billing" {
				t.Errorf("event %v: %+v", k, e)
			}
			if !strings.Contains(out.String(), `msg="idem: `+k.String()+`"`) {
				t.Errorf("the log does not tell of %v:\n%s", k, &out)
			}
		}
	})
}

// halved is a store of which a part, that of the tokens with x, can be out of reach.
type halved struct {
	store.Store
	mu   sync.Mutex
	away bool
	why  error         // what is answered for the part that is away; nil: that it is out of reach
	slow time.Duration // how long it takes to find out
	trip time.Duration // how long any trip takes

	// shuns: once the part was away, it is asked again only by itself, as redisstore does
	// with a node that is silent.
	shuns, silent bool
}

func (h *halved) set(away bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.away = away
}

func (h *halved) Apply(ctx context.Context, b *store.Batch) error {
	part := func(op store.Op) bool { return strings.HasPrefix(op.Token, "x") }
	h.mu.Lock()
	away, why, slow := h.away, h.why, h.slow
	if alone := !slices.ContainsFunc(b.Ops, func(op store.Op) bool { return !part(op) }); h.shuns && alone {
		h.silent = away
	} else if h.shuns {
		h.silent = h.silent || away
		away = h.silent
	}
	h.mu.Unlock()
	time.Sleep(h.trip)
	if why == nil {
		why = store.ErrUnavailable
	}
	if !away || !slices.ContainsFunc(b.Ops, part) {
		return h.Store.Apply(ctx, b)
	}
	time.Sleep(slow)
	there := *b
	there.Ops, there.Replies = nil, nil
	var at []int
	for i, op := range b.Ops {
		if !part(op) {
			there.Ops, at = append(there.Ops, op), append(at, i)
		}
	}
	if err := h.Store.Apply(ctx, &there); err != nil {
		return err
	}
	b.Now, b.Replies = there.Now, make([]store.Reply, len(b.Ops))
	for i := range b.Replies {
		b.Replies[i].Err = fmt.Errorf("one node: %w", why)
	}
	for i, n := range at {
		b.Replies[n] = there.Replies[i]
	}
	return nil
}

// A node of a cluster that is away holds up what it keeps, and nothing else.
func TestPartOfTheStoreAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &halved{Store: memstore.New()}
		var mu sync.Mutex
		var told []idem.EventKind
		g := idem.New(idem.WithStore(s), idem.WithLease(time.Second), idem.WithObserver(idem.ObserverFunc(func(e idem.Event) {
			if e.Kind == idem.EventStoreDown || e.Kind == idem.EventStoreUp || e.Kind == idem.EventLeaseLost {
				mu.Lock()
				defer mu.Unlock()
				told = append(told, e.Kind)
			}
		}))).Group("g")
		held := g.BeginAll(t.Context(), []idem.Request{{Token: "held"}, {Token: "x held"}})
		if held[0].Err != nil || held[1].Err != nil {
			t.Fatal(held)
		}
		s.set(true)
		if _, err := g.Begin(t.Context(), "x hasty"); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("Begin of a token on the node that is away: %v", err)
		}
		answered := make(chan error, 1)
		go func() {
			all := g.BeginAll(t.Context(), []idem.Request{{Token: "x patient", Patient: true}})
			answered <- all[0].Err
		}()
		time.Sleep(10 * time.Second)
		if err := g.Do(t.Context(), "elsewhere", func(context.Context) error { return nil }); err != nil {
			t.Errorf("a token on another node: %v", err)
		}
		if err := held[0].Claim.Commit(t.Context()); err != nil {
			t.Errorf("a claim on another node: %v", err)
		}
		select {
		case err := <-answered:
			t.Fatalf("answered while the node is away: %v", err)
		default:
		}
		s.set(false)
		if err := <-answered; err != nil {
			t.Errorf("a patient Begin: %v", err)
		}
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		if want := []idem.EventKind{idem.EventStoreDown, idem.EventLeaseLost, idem.EventStoreUp}; !slices.Equal(told, want) {
			t.Errorf("told %v, want %v", told, want)
		}
		// The hasty one was given back, should the node have claimed it.
		if err := g.Do(t.Context(), "x hasty", func(context.Context) error { return nil }); err != nil {
			t.Errorf("the hasty one: %v", err)
		}
	})
}

// What is lost is an error in the log, what can be lost a warning.
func TestFindingsInTheLog(t *testing.T) {
	for lost, want := range map[bool]string{false: "level=WARN", true: "level=ERROR"} {
		var out bytes.Buffer
		g := idem.New(idem.WithLogger(slog.New(slog.NewTextHandler(&out, nil)))).Group("g")
		g.Emit(idem.Event{Kind: idem.EventFinding, Finding: &idem.Finding{ID: "x", Lost: lost}, Text: "x"})
		if !strings.Contains(out.String(), want) {
			t.Errorf("lost %v: %s, want %s", lost, &out, want)
		}
	}
}

// What waits for a part travels apart: others do not wait with it, be it slow to find out.
func TestOthersDoNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &halved{Store: memstore.New(), trip: 5 * time.Millisecond}
		g := idem.New(idem.WithStore(s), idem.WithLease(3*time.Second)).Group("g")
		s.set(true)
		ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
		defer stop()
		var wg sync.WaitGroup
		wg.Go(func() { g.BeginAll(ctx, []idem.Request{{Token: "x", Patient: true}, {Token: "with it"}}) })
		time.Sleep(100 * time.Millisecond) // the first try is one for both
		s.mu.Lock()
		s.slow = 900 * time.Millisecond
		s.mu.Unlock()
		for worker := range 16 { // always something queued
			wg.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					begun := time.Now()
					err := g.Do(t.Context(), fmt.Sprint(worker, "-", i), func(context.Context) error { return nil })
					if took := time.Since(begun); err != nil || took > 500*time.Millisecond {
						t.Errorf("%v after %v", err, took)
						return
					}
				}
			})
		}
		wg.Wait()
		time.Sleep(10 * time.Second) // what may have been claimed is given back
	})
}

// Claims that a part keeps outlive its moment of silence, also where nothing but renewals asks
// for it, and those of others with them.
func TestRenewalsOfAPart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &halved{Store: memstore.New(), shuns: true}
		g := idem.New(idem.WithStore(s), idem.WithLease(3*time.Second)).Group("g")
		held := []*idem.Claim{begin(t, g, "x"), begin(t, g, "another")}
		for range 3 {
			time.Sleep(10 * time.Second)
			s.set(true)
			time.Sleep(600 * time.Millisecond)
			s.set(false)
		}
		time.Sleep(10 * time.Second)
		for _, c := range held {
			if err := c.Context().Err(); err != nil {
				t.Errorf("%s: %v", c.Token(), err)
			}
			c.Abandon()
		}
	})
}

// Behind a crowd of claims that wait for the same part the held ones would run out.
func TestRenewalsOfAPartComeFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &halved{Store: memstore.New(), shuns: true, trip: 200 * time.Millisecond}
		g := idem.New(idem.WithStore(s), idem.WithLease(3*time.Second)).Group("g")
		held := begin(t, g, "x")
		s.set(true)
		time.AfterFunc(600*time.Millisecond, func() { s.set(false) })
		for _, b := range g.BeginAll(t.Context(), requests("x", 20*256)) {
			if b.Err != nil {
				t.Fatal(b.Err)
			}
			b.Claim.Abandon()
		}
		if err := held.Context().Err(); err != nil {
			t.Errorf("the held one: %v", err)
		}
		held.Abandon()
	})
}

// fullFor is a store that has no room for one token.
type fullFor struct {
	store.Store
	token string
}

func (f fullFor) Apply(ctx context.Context, b *store.Batch) error {
	err := f.Store.Apply(ctx, b)
	for i := range b.Replies {
		if b.Ops[i].Token == f.token {
			b.Replies[i] = store.Reply{Err: store.ErrFull}
		}
	}
	return err
}

// That others are claimed does not mean that there is room again for what waits.
func TestRoomForOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		told := 0
		g := idem.New(idem.WithStore(fullFor{memstore.New(), "big"}), idem.WithObserver(idem.ObserverFunc(func(e idem.Event) {
			if e.Kind == idem.EventStoreDown || e.Kind == idem.EventStoreUp {
				mu.Lock()
				defer mu.Unlock()
				told++
			}
		}))).Group("g")
		ctx, stop := context.WithTimeout(t.Context(), time.Minute)
		defer stop()
		var wg sync.WaitGroup
		wg.Go(func() { g.BeginAll(ctx, []idem.Request{{Token: "big", Patient: true}}) })
		for i := range 100 {
			time.Sleep(100 * time.Millisecond)
			if err := g.Do(t.Context(), fmt.Sprint(i), func(context.Context) error { return nil }); err != nil {
				t.Error(err)
			}
		}
		wg.Wait()
		time.Sleep(time.Minute)
		if told != 1 {
			t.Errorf("told %d times, want once", told)
		}
	})
}

// FailOpen counts from when a message's own part went away, and never for a refusal.
func TestFailOpenOfAPart(t *testing.T) {
	for name, why := range map[string]error{"away": store.ErrUnavailable, "refused": store.ErrRefused} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &halved{Store: memstore.New(), why: why}
				g := idem.New(idem.WithStore(s)).Group("g")
				s.set(true)
				ctx, stop := context.WithTimeout(t.Context(), 100*time.Second)
				defer stop()
				var wg sync.WaitGroup
				wg.Go(func() {
					g.BeginAll(ctx, []idem.Request{{Token: "x waits", Patient: true}, {Token: "y", Patient: true}})
				})
				time.Sleep(31 * time.Second)
				begun := time.Now()
				b := g.BeginAll(ctx, []idem.Request{{Token: "x open", Patient: true, FailOpen: 30 * time.Second}, {Token: "z", Patient: true}})
				waited := time.Since(begun)
				if why == store.ErrUnavailable && (!errors.Is(b[0].Err, why) || waited < 30*time.Second || waited > 40*time.Second) {
					t.Errorf("%v after %v", b[0].Err, waited)
				}
				if why == store.ErrRefused && waited < 60*time.Second {
					t.Errorf("a refusal counted: %v after %v", b[0].Err, waited)
				}
				wg.Wait()
				time.Sleep(time.Minute)
			})
		})
	}
}
