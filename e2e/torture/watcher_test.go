package torture

import (
	"context"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/idemq/idemq/e2e/history"
	"github.com/idemq/idemq/e2e/torture/role"
	"github.com/idemq/idemq/idem/store"
)

// owing is a broker that is owed what it is told, the last for ever.
type owing struct {
	Broker
	kind  string
	owed  []int
	asked int
	each  func() // done when it is asked
}

func (b *owing) Kind() string { return b.kind }

func (b *owing) Owed(context.Context) (int, error) {
	b.asked++
	if b.each != nil {
		b.each()
	}
	if len(b.owed) > 1 {
		defer func() { b.owed = b.owed[1:] }()
	}
	return b.owed[0], nil
}

func watch(t *testing.T, b Broker) *watcher {
	t.Helper()
	r := &Round{Dir: t.TempDir(), faults: &faults{site: Site{Broker: b}, done: map[Kind]int{}}}
	r.faults.fleet = &fleet{config: role.Config{}}
	r.faults.fleet.slots = []*slot{{}, {}}
	r.pub = newPublisher(b, 1, 1, func(history.Event) {})
	return &watcher{round: r}
}

// What the broker was owed before the last message was published does not settle a round.
func TestSettlingLooksAfterTheFaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &owing{kind: "nats", owed: []int{0, 0, 3, 0}}
		w := watch(t, b)
		for w.zeros < 2 {
			if err := w.look(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if stuck, err := w.settle(t.Context()); stuck != "" || err != nil {
			t.Fatal(stuck, err)
		}
		if b.asked != 5 {
			t.Errorf("the broker was asked %d times", b.asked)
		}
	})
}

// A round is nudged where a kafka.Reader's broker is owed what is done, and nowhere else.
func TestNudges(t *testing.T) {
	for _, tt := range []struct {
		name, broker string
		done, first  bool
		want         int
	}{
		{"all is done", "kafka-reader", true, false, maxNudges},
		{"something is not", "kafka-reader", false, false, 0},
		{"before the faults", "kafka-reader", true, true, 0},
		{"another broker", "kafka-group", true, false, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := watch(t, &owing{kind: tt.broker, owed: []int{7}})
				rec, err := history.Create(filepath.Join(w.round.Dir, "x"+history.Suffix))
				if err != nil {
					t.Fatal(err)
				}
				rec.Add(history.Event{Kind: history.Published, At: 1, Token: 1})
				if tt.done {
					rec.Add(history.Event{Kind: history.Answered, At: 2, Token: 1, Op: uint8(store.Commit), Status: uint8(store.OK)})
				}
				if err := rec.Close(); err != nil {
					t.Fatal(err)
				}
				settle := w.settle
				if tt.first {
					settle = func(ctx context.Context) (string, error) {
						return w.until(ctx, "first", func() bool { return false })
					}
				}
				began := time.Now()
				stuck, err := settle(t.Context())
				if stuck == "" || err != nil || w.round.nudges != tt.want {
					t.Errorf("nudged %d times in %v, want %d: %q, %v", w.round.nudges, time.Since(began), tt.want, stuck, err)
				}
			})
		})
	}
}

// What processes know is read again after a while, not at each look: it is long.
func TestHistoryIsReadNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &owing{kind: "kafka-reader", owed: []int{7}}
		w := watch(t, b)
		rec, err := history.Create(filepath.Join(w.round.Dir, "x"+history.Suffix))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = rec.Close() }()
		rec.Add(history.Event{Kind: history.Published, At: 1, Token: 1})
		began := time.Now()
		var done bool
		var nudged time.Duration
		b.each = func() {
			switch took := time.Since(began); {
			case !done && took > nudgeAfter+time.Second:
				rec.Add(history.Event{Kind: history.Answered, At: 2, Token: 1, Op: uint8(store.Commit), Status: uint8(store.OK)})
				done = true
			case w.round.nudges == 1 && nudged == 0:
				nudged = took
			}
		}
		if _, err := w.settle(t.Context()); err != nil {
			t.Fatal(err)
		}
		if nudged < 2*nudgeAfter || nudged > 2*nudgeAfter+4*lookEvery {
			t.Errorf("nudged after %v", nudged)
		}
	})
}
