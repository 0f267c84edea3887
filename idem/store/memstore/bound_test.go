package memstore_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/memstore"
)

func apply(t testing.TB, s store.Store, ops ...store.Op) *store.Batch {
	t.Helper()
	return applyFor(t, s, time.Hour, ops...)
}

func applyFor(t testing.TB, s store.Store, retention time.Duration, ops ...store.Op) *store.Batch {
	t.Helper()
	b := &store.Batch{
		Prefix: "p", Lease: 10 * time.Second, Retention: retention, CheckWithin: retention, Ops: ops,
	}
	if err := s.Apply(context.Background(), b); err != nil {
		t.Fatal(err)
	}
	return b
}

func begin(token string) store.Op {
	return store.Op{Kind: store.Begin, Group: "g", Token: token, Claim: "c"}
}

func commit(token string) store.Op {
	return store.Op{Kind: store.Commit, Group: "g", Token: token, Claim: "c", Attempt: 1}
}

func state(t testing.TB, s store.Store, token string) store.State {
	t.Helper()
	return apply(t, s, store.Op{Kind: store.Inspect, Group: "g", Token: token}).Replies[0].Record.State
}

func TestFullForgetsTheClosestToExpiry(t *testing.T) {
	clock := newFakeClock()
	var told []memstore.Forgotten
	s := memstore.New(memstore.WithMaxRecords(4), memstore.WithClock(clock.Now),
		memstore.OnForget(func(f memstore.Forgotten) { told = append(told, f) }))

	applyFor(t, s, 3*time.Hour, begin("late"), commit("late"))
	applyFor(t, s, 1*time.Hour, begin("soon"), store.Op{Kind: store.Bury, Group: "g", Token: "soon", Claim: "c"})
	applyFor(t, s, 2*time.Hour, store.Op{Kind: store.Issue, Token: "issued"})
	applyFor(t, s, time.Minute, begin("held"))
	if s.Len() != 4 {
		t.Fatalf("%d records, want 4", s.Len())
	}
	clock.Advance(10 * time.Second)

	b := applyFor(t, s, 4*time.Hour, begin("a"), begin("b"))
	want := []memstore.Forgotten{
		{Prefix: "p", Group: "g", Token: "soon", State: store.Dead, Early: time.Hour - 10*time.Second},
		{Prefix: "p", Token: "issued", Issued: true, Early: 2*time.Hour - 10*time.Second},
	}
	if fmt.Sprint(told) != fmt.Sprint(want) {
		t.Errorf("told of %+v, want %+v", told, want)
	}
	if !strings.Contains(b.Notice, "forgot 2") || !strings.Contains(b.Notice, "1h59m50s") {
		t.Errorf("the notice is %q", b.Notice)
	}
	if s.Len() != 4 {
		t.Errorf("%d records, want 4", s.Len())
	}
	for token, want := range map[string]store.State{"late": store.Done, "soon": store.Absent, "held": store.Running, "a": store.Running} {
		if got := state(t, s, token); got != want {
			t.Errorf("%s is %v, want %v", token, got, want)
		}
	}
	if again := apply(t, s, begin("a")); b.Losses != 1 || again.Losses != 1 {
		t.Errorf("%d losses, and %d where nothing was forgotten", b.Losses, again.Losses)
	}
}

func TestFullDropsTheExpiredFirst(t *testing.T) {
	clock := newFakeClock()
	s := memstore.New(memstore.WithMaxRecords(1001), memstore.WithClock(clock.Now),
		memstore.OnForget(func(f memstore.Forgotten) { t.Errorf("forgot %+v", f) }))
	var held, fresh []store.Op
	for i := range 1000 {
		held = append(held, begin(fmt.Sprint("held", i)))
		fresh = append(fresh, begin(fmt.Sprint("fresh", i)))
	}
	applyFor(t, s, time.Minute, held...)
	applyFor(t, s, time.Hour, begin("kept"), commit("kept"))
	clock.Advance(2 * time.Minute)
	for _, ops := range [][]store.Op{fresh[:1], fresh[1:400], fresh[400:]} {
		b := apply(t, s, ops...)
		for i, r := range b.Replies {
			if r.Status != store.Claimed || b.Notice != "" {
				t.Fatalf("%q was answered %+v, notice %q", ops[i].Token, r, b.Notice)
			}
		}
	}
	if got := state(t, s, "kept"); got != store.Done {
		t.Errorf("kept is %v", got)
	}
}

func TestFullOfClaims(t *testing.T) {
	s := memstore.New(memstore.WithMaxRecords(2))
	release := store.Op{Kind: store.Release, Group: "g", Token: "b", Claim: "c"}
	apply(t, s, begin("a"), begin("b"), release)

	b := apply(t, s,
		begin("x"),
		store.Op{Kind: store.Spend, Group: "g", Token: "x", Claim: "c"},
		store.Op{Kind: store.Issue, Token: "x"},
		store.Op{Kind: store.Begin, Group: "g", Token: "b", Claim: "d"},
		commit("a"),
	)
	for i := range 3 {
		if r := b.Replies[i]; !errors.Is(r.Err, store.ErrFull) || r.Status != 0 {
			t.Errorf("operation %d on an absent token of a full store was answered %+v, want ErrFull", i, r)
		}
	}
	if r := b.Replies[3]; r.Status != store.Claimed || r.Attempt != 2 {
		t.Errorf("Begin on a released token of a full store was answered %+v", r)
	}
	if r := b.Replies[4]; r.Status != store.OK {
		t.Errorf("Commit in a full store was answered %+v", r)
	}
	if b := apply(t, s, begin("x")); b.Replies[0].Status != store.Claimed || b.Notice == "" {
		t.Errorf("with a done record to forget: %+v, notice %q", b.Replies[0], b.Notice)
	}
}

// A hundred times as many tokens as there is room for, in all states.
func TestNeverMoreThanTheMaximum(t *testing.T) {
	clock := newFakeClock()
	s := memstore.New(memstore.WithMaxRecords(100), memstore.WithClock(clock.Now))
	full := 0
	for i := range 10_000 {
		token := fmt.Sprint(i)
		ops := []store.Op{begin(token)}
		switch i % 5 {
		case 0, 1:
			ops = append(ops, commit(token))
		case 2:
			ops = append(ops, store.Op{Kind: store.Bury, Group: "g", Token: token, Claim: "c"})
		case 3:
			ops = append(ops, store.Op{Kind: store.Issue, Token: token})
		}
		b := applyFor(t, s, time.Duration(1+i%7)*time.Minute, ops...)
		if s.Len() > 100 {
			t.Fatalf("%d records, want at most 100", s.Len())
		}
		if b.Replies[0].Err != nil {
			full++
		}
		clock.Advance(time.Second)
	}
	if full == 0 {
		t.Error("it was never full of claims: the test is too weak")
	}
}

// In a bubble time.Now is the bubble's clock: an hour passes at once.
func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memstore.New()
		for i := range 1000 {
			token := fmt.Sprint(i)
			apply(t, s, begin(token), commit(token), store.Op{Kind: store.Issue, Token: token})
		}
		time.Sleep(time.Hour - time.Nanosecond)
		if got := state(t, s, "7"); got != store.Done {
			t.Errorf("just before the retention's end it is %v", got)
		}
		time.Sleep(time.Nanosecond)
		if got := state(t, s, "7"); got != store.Absent {
			t.Errorf("at the retention's end it is %v", got)
		}
		for range 40 {
			apply(t, s)
		}
		if n := s.Len(); n != 0 {
			t.Errorf("%d records were left when all had expired", n)
		}
	})
}

func TestRetentionForEver(t *testing.T) {
	clock := newFakeClock()
	s := memstore.New(memstore.WithClock(clock.Now))
	clock.Advance(time.Hour)
	applyFor(t, s, 1<<63-1, begin("t"), commit("t"))
	clock.Advance(24 * 365 * 100 * time.Hour)
	if got := state(t, s, "t"); got != store.Done {
		t.Errorf("it is %v", got)
	}
}

func TestOnForgetMayUseTheStore(t *testing.T) {
	var s *memstore.Store
	seen := store.State(99)
	s = memstore.New(memstore.WithMaxRecords(1), memstore.OnForget(func(f memstore.Forgotten) {
		seen = state(t, s, f.Token)
	}))
	apply(t, s, begin("a"), commit("a"))
	apply(t, s, begin("b"))
	if seen != store.Absent {
		t.Errorf("the record that was forgotten is %v", seen)
	}
}

func TestApplyRefuses(t *testing.T) {
	s := memstore.New()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	b := &store.Batch{Prefix: "p", Lease: time.Second, Retention: time.Hour, Ops: []store.Op{begin("t")}}
	if err := s.Apply(ctx, b); !errors.Is(err, context.Canceled) || !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("with an ended context: %v", err)
	}
	b.Ops = []store.Op{begin("t"), {Kind: 200, Token: "t"}}
	if err := s.Apply(context.Background(), b); err == nil || errors.Is(err, store.ErrUnavailable) {
		t.Errorf("with an unknown kind: %v", err)
	}
	if s.Len() != 0 {
		t.Error("a refused batch left a record")
	}
}

func TestVerifyWarns(t *testing.T) {
	findings, err := memstore.New().Verify(context.Background(), "p")
	if err != nil || len(findings) != 1 || !strings.Contains(findings[0].String(), "process ends") {
		t.Errorf("%q, %v", findings, err)
	}
}

func BenchmarkBeginCommit(b *testing.B) {
	for _, size := range []int{1, 256} {
		b.Run(fmt.Sprintf("batch=%d", size), func(b *testing.B) {
			s := memstore.New(memstore.WithMaxRecords(100_000))
			begins := &store.Batch{Prefix: "p", Lease: time.Second, Retention: time.Hour, Ops: make([]store.Op, size)}
			commits := &store.Batch{Prefix: "p", Lease: time.Second, Retention: time.Hour, Ops: make([]store.Op, size)}
			ctx := context.Background()
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				for i := range size {
					n++
					token := fmt.Sprintf("0198a1f2-0000-7000-8000-%012d", n)
					begins.Ops[i], commits.Ops[i] = begin(token), commit(token)
				}
				if err := s.Apply(ctx, begins); err != nil {
					b.Fatal(err)
				}
				if err := s.Apply(ctx, commits); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "messages/s")
		})
	}
}
