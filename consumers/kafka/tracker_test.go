package idemkafka

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// model is what an offset tracker has to do, written for plainness.
type model struct {
	offsets []int64
	done    []bool
}

// commit is the offset behind the longest prefix, in order of fetch, of what is done;
// -1 before there is one.
func (m *model) commit() int64 {
	next := int64(-1)
	for i, d := range m.done {
		if !d {
			break
		}
		next = m.offsets[i] + 1
	}
	return next
}

// assigned is a tracker beside its model.
type assigned struct {
	t      *tracker
	m      model
	places []uint64
	over   bool
	freed  int // bytes, by done and abandon
}

// sizeAt is how many bytes the message at a place takes.
func sizeAt(place int) int { return 100 + place }

func (a *assigned) check(t *rapid.T) {
	c, found := a.t.toCommit()
	next := c.next
	want := a.m.commit()
	if found && next != want || !found && want != a.t.committed {
		t.Fatalf("commits %d (%v), want %d of %v %v", next, found, want, a.m.offsets, a.m.done)
	}
	for i, offset := range a.m.offsets {
		if !a.m.done[i] && next > offset {
			t.Fatalf("commits %d, and offset %d is not done: it is lost", next, offset)
		}
	}
	open := slices.Index(a.m.done, false)
	head, found := a.t.head()
	if found != (open >= 0) || found && head != a.m.offsets[open] {
		t.Fatalf("the head is %d (%v), want the one at %d of %v", head, found, open, a.m.offsets)
	}
	span, left := a.t.extent()
	if found && span != len(a.m.done)-open || !found && span != 0 {
		t.Fatalf("the span is %d", span)
	}
	undone, freed := 0, 0
	for i, done := range a.m.done {
		if !done {
			undone++
		}
		if done || a.over {
			freed += sizeAt(i)
		}
	}
	if left != undone || a.freed != freed {
		t.Fatalf("%d are open and %d bytes were returned, want %d and %d: each message's once", left, a.freed, undone, freed)
	}
}

// Completions in any order, gaps in the offsets, commits that fail, and partitions that
// go away and come back lower, with completions of the old assignment that arrive late.
func TestTracker(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		begin := rapid.Int64Range(0, 50).Draw(t, "begin")
		all := []*assigned{{t: newTracker()}}
		offset := begin
		t.Repeat(map[string]func(*rapid.T){
			"fetch": func(t *rapid.T) {
				a := all[len(all)-1]
				for range rapid.IntRange(1, 5).Draw(t, "n") {
					offset += rapid.SampledFrom([]int64{0, 0, 0, 1, 7}).Draw(t, "gap") // markers, compaction
					a.m.offsets = append(a.m.offsets, offset)
					a.m.done = append(a.m.done, false)
					a.places = append(a.places, a.t.fetch(offset, sizeAt(len(a.places))))
					offset++
				}
			},
			"done": func(t *rapid.T) {
				a := rapid.SampledFrom(all).Draw(t, "assignment") // late ones too
				if len(a.places) == 0 {
					t.Skip("nothing was fetched")
				}
				i := rapid.IntRange(0, len(a.places)-1).Draw(t, "i")
				a.m.done[i] = true
				_, freed, _ := a.t.done(a.places[i]) // maybe again
				a.freed += freed
			},
			"commit": func(*rapid.T) {
				a := all[len(all)-1]
				if next, found := a.t.toCommit(); found {
					a.t.wasCommitted(next)
				}
			},
			"move away and back": func(t *rapid.T) {
				old := all[len(all)-1]
				old.freed += old.t.abandon()
				old.over = true
				all = append(all, &assigned{t: newTracker()})
				offset = rapid.Int64Range(begin, offset).Draw(t, "back to")
			},
			"": func(t *rapid.T) {
				for _, a := range all {
					a.check(t)
				}
			},
		})
	})
}

// Whoever is told to begin somewhere commits that before anything is done: offset zero
// too.
func TestTrackerStartAt(t *testing.T) {
	for _, offset := range []int64{0, 42} {
		tr := newTracker()
		if _, found := tr.toCommit(); found {
			t.Error("a fresh tracker has something to commit")
		}
		tr.startAt(offset)
		c, found := tr.toCommit()
		if !found || c.next != offset {
			t.Errorf("to commit %d, %v, want %d", c.next, found, offset)
		}
		tr.wasCommitted(c)
		if _, found := tr.toCommit(); found {
			t.Error("it is committed twice")
		}
	}
}

// What counts towards a commit is what came to the prefix since the last one.
func TestTrackerFresh(t *testing.T) {
	tr := newTracker()
	var places []uint64
	for i := range int64(4) {
		places = append(places, tr.fetch(i, 1))
	}
	for _, c := range []struct{ place, fresh int }{{1, 0}, {2, 0}, {0, 3}} {
		if got, _, _ := tr.done(places[c.place]); got != c.fresh {
			t.Errorf("done(%d): %d fresh, want %d", c.place, got, c.fresh)
		}
	}
	c, _ := tr.toCommit()
	if got, _, _ := tr.done(places[3]); got != 4 { // while the commit is under way
		t.Errorf("%d fresh, want 4", got)
	}
	tr.wasCommitted(c)
	if got, _, _ := tr.done(places[3]); got != 1 {
		t.Errorf("%d fresh after the commit, want the one that it had not in it", got)
	}
}

// A queue gives memory back, and keeps its order.
func TestFifo(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var f fifo[int]
		var want []int
		n := 0
		t.Repeat(map[string]func(*rapid.T){
			"push": func(t *rapid.T) {
				for range rapid.SampledFrom([]int{1, 3, 5000}).Draw(t, "n") {
					f.push(n)
					want = append(want, n)
					n++
				}
			},
			"pop": func(t *rapid.T) {
				for range min(rapid.SampledFrom([]int{1, 2, 4000}).Draw(t, "n"), len(want)) {
					if got := f.pop(); got != want[0] {
						t.Fatalf("popped %d, want %d", got, want[0])
					}
					want = want[1:]
				}
			},
			"": func(t *rapid.T) {
				if f.len() != len(want) || f.len() > 0 && *f.at(f.len() - 1) != want[len(want)-1] {
					t.Fatalf("%d items, want %d", f.len(), len(want))
				}
				if spare := cap(f.items) - f.len(); spare > 3*f.len()+2*keptItems {
					t.Fatalf("it holds room for %d, and has %d", cap(f.items), f.len())
				}
			},
		})
	})
}
