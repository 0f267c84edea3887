package history_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/idemq/idemq/e2e/history"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/memstore"
)

// recorded is what is recorded of a batch that a store executes.
func recorded(t *testing.T, s store.Store, do func(s store.Store)) []history.Event {
	t.Helper()
	dir := t.TempDir()
	r, err := history.Create(filepath.Join(dir, "x.hist"))
	if err != nil {
		t.Fatal(err)
	}
	do(history.Store(s, r, "run"))
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	all, err := history.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for i := range all {
		if all[i].At == 0 || i > 0 && all[i].At < all[i-1].At {
			t.Errorf("event %d was at %d", i, all[i].At)
		}
		all[i].At = 0
	}
	return all
}

func batch() *store.Batch {
	return &store.Batch{
		Prefix: "p", Owner: "pod-1", Incarnation: 1<<52 + 7, Lease: time.Second, Retention: time.Hour,
		Ops: []store.Op{
			{Kind: store.Begin, Token: "run-7", Claim: "a", MaxExpiries: 3},
			{Kind: store.Begin, Token: "foreign-7", Claim: "b"},
			{Kind: store.Release, Token: "run-7", Claim: "a", Counted: true},
			{Kind: store.Commit, Token: "run-8", Claim: "c", Attempt: 5},
		},
	}
}

func TestStoreRecords(t *testing.T) {
	b := batch()
	all := recorded(t, memstore.New(), func(s store.Store) {
		if _, is := s.(store.Transactor); is {
			t.Error("a store without transactions has some now")
		}
		if err := s.Apply(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	})
	if len(all) != 6 {
		t.Fatalf("%d events: %+v", len(all), all)
	}
	owner := all[0].Key
	if owner == 0 {
		t.Error("the owner is not recorded")
	}
	asked := func(e history.Event) history.Event {
		e.Kind, e.Key, e.Store = history.Asked, owner, 1<<52+7
		return e
	}
	answered := func(e history.Event) history.Event {
		e.Kind, e.Store = history.Answered, b.Now.UnixNano()
		return e
	}
	for i, want := range []history.Event{
		asked(history.Event{Op: uint8(store.Begin), Token: 7, Claim: history.ClaimID("a"), Until: 3}),
		asked(history.Event{Op: uint8(store.Release), Token: 7, Claim: history.ClaimID("a"), Flags: history.Counted}),
		asked(history.Event{Op: uint8(store.Commit), Token: 8, Claim: history.ClaimID("c"), Attempt: 5}),
		answered(history.Event{Op: uint8(store.Begin), Token: 7, Claim: history.ClaimID("a"), Status: uint8(store.Claimed), Attempt: 1}),
		answered(history.Event{Op: uint8(store.Release), Token: 7, Claim: history.ClaimID("a"), Status: uint8(store.OK), Flags: history.Counted}),
		answered(history.Event{Op: uint8(store.Commit), Token: 8, Claim: history.ClaimID("c"), Status: uint8(store.OK), Attempt: 5}),
	} {
		if all[i] != want {
			t.Errorf("event %d is %+v, want %+v", i, all[i], want)
		}
	}
}

// broken fails as it is told to.
type broken struct {
	store.Transactor // nil: not called
	whole, item      error
}

func (s broken) Apply(_ context.Context, b *store.Batch) error {
	b.Replies = make([]store.Reply, len(b.Ops))
	b.Replies[0] = store.Reply{Status: store.Claimed, Attempt: 1}
	b.Replies[3] = store.Reply{Err: s.item}
	return s.whole
}

func (s broken) Enlist(ctx context.Context, _ *store.Batch, _ func()) (context.Context, store.Tx) {
	return context.WithValue(ctx, store.TxKey{}, s), brokenTx{s: s}
}

type brokenTx struct {
	store.Tx // nil: not called
	s        broken
}

func (t brokenTx) Commit(ctx context.Context, b *store.Batch) error { return t.s.Apply(ctx, b) }

func TestStoreRecordsFailures(t *testing.T) {
	broke := errors.New("broke")
	for _, tt := range []struct {
		name  string
		store broken
		want  [3]bool // which failed
		viaTx bool
	}{
		{"no answer", broken{whole: broke}, [3]bool{true, true, true}, false},
		{"no answer to one", broken{item: broke}, [3]bool{false, false, true}, false},
		{"no answer to a transaction's end", broken{whole: broke}, [3]bool{true, true, true}, true},
		{"an answer to a transaction's end", broken{}, [3]bool{}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			all := recorded(t, tt.store, func(s store.Store) {
				apply := s.Apply
				if tt.viaTx {
					ctx, tx := s.(store.Transactor).Enlist(t.Context(), batch(), nil)
					if ctx.Value(store.TxKey{}) != tt.store {
						t.Error("the store's own transaction is not in the context")
					}
					apply = tx.Commit
				}
				if err := apply(t.Context(), batch()); !errors.Is(err, tt.store.whole) {
					t.Errorf("the error came back as %v", err)
				}
			})
			if len(all) != 6 {
				t.Fatalf("%d events: %+v", len(all), all)
			}
			for i, want := range tt.want {
				if e := all[3+i]; e.Kind != history.Answered || e.Has(history.Failed) != want {
					t.Errorf("answer %d is %+v, failed: %v", i, e, want)
				}
			}
		})
	}
}

// plain is a store without anything optional, bounded one that says whether it is.
type plain struct{ store.Store }

type bounded struct {
	store.Store
	is bool
}

func (s bounded) Bounded() bool { return s.is }

// What a guard may ask a store for, it has in a recorded one if it had it before: else runs
// would not take the paths that the library takes.
func TestStoreHasWhatIsOptional(t *testing.T) {
	optional := map[string]func(store.Store) bool{
		"Transactor": func(s store.Store) bool { _, is := s.(store.Transactor); return is },
		"Bounded":    func(s store.Store) bool { b, is := s.(store.Bounded); return is && b.Bounded() },
	}
	for _, s := range []store.Store{plain{}, bounded{is: true}, bounded{}, broken{}, struct {
		store.Transactor
		store.Bounded
	}{broken{}, bounded{is: true}}} {
		recorded := history.Store(s, nil, "run")
		for name, has := range optional {
			if has(recorded) != has(s) {
				t.Errorf("%T has %s: %t, recorded: %t", s, name, has(s), has(recorded))
			}
		}
	}
	asked := map[string]bool{}
	sources, err := filepath.Glob("../../idem/*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range sources {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`\.store\.\(store\.(\w+)\)`).FindAllSubmatch(text, -1) {
			asked[string(m[1])] = true
		}
	}
	for name := range optional {
		if !asked[name] {
			t.Errorf("no guard asks for %s", name)
		}
		delete(asked, name)
	}
	if len(asked) > 0 {
		t.Errorf("guards ask for more than this test knows: %v", asked)
	}
}

func TestNow(t *testing.T) {
	at := history.Now()
	began := time.Now()
	for history.Now() < at+int64(time.Millisecond) {
	}
	if took := time.Since(began); took < 900*time.Microsecond {
		t.Errorf("a millisecond of its took %v", took)
	}
}
