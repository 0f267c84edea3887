package idemkafka

import "sync"

// tracker knows which messages of one assignment of a partition are done, and how far
// its offset may be committed: to the end of the prefix, in order of fetch, of what is
// done. Offsets only rise within an assignment, with gaps (compaction, the markers of
// transactions). It is safe for concurrent use.
type tracker struct {
	mu        sync.Mutex
	marks     fifo[mark] // fetched, and not within the prefix
	first     uint64     // the place of the first of them
	next      int64      // to commit: one past the last of the prefix; -1: nothing yet
	committed int64      // -1: not known
	fresh     int        // messages that have come to the prefix since the last commit
}

type mark struct {
	offset int64
	done   bool
}

func newTracker() *tracker { return &tracker{next: -1, committed: -1} }

// startAt says that nothing before offset is this group's to handle: that is committed
// though nothing is done yet.
func (t *tracker) startAt(offset int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.next = offset
}

// fetch notes a message, and returns its place.
func (t *tracker) fetch(offset int64) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.marks.push(mark{offset: offset})
	return t.first + uint64(t.marks.len()) - 1
}

// done marks the message at a place, and returns how many messages have come to the
// prefix that are not committed, and whether nothing else is in hand.
func (t *tracker) done(place uint64) (fresh int, isIdle bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if place < t.first {
		return t.fresh, false // marked before
	}
	t.marks.at(int(place - t.first)).done = true
	for t.marks.len() > 0 && t.marks.at(0).done {
		t.next = t.marks.pop().offset + 1
		t.first++
		t.fresh++
	}
	return t.fresh, t.marks.len() == 0
}

// span is how many messages are at or behind the first that is not done.
func (t *tracker) span() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.marks.len()
}

// head is the offset of the first message that is not done.
func (t *tracker) head() (offset int64, found bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.marks.len() == 0 {
		return 0, false
	}
	return t.marks.at(0).offset, true
}

// prefix is what is to be committed: an offset, and how many messages are new in it.
type prefix struct {
	next  int64
	fresh int
}

// toCommit returns the offset to commit, unless it was committed.
func (t *tracker) toCommit() (c prefix, found bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return prefix{t.next, t.fresh}, t.next > t.committed
}

// wasCommitted notes a commit of what toCommit returned.
func (t *tracker) wasCommitted(c prefix) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.committed = c.next
	t.fresh -= c.fresh
}

// fifo is a queue that gives memory back.
type fifo[T any] struct {
	items []T
	begin int
}

func (f *fifo[T]) len() int    { return len(f.items) - f.begin }
func (f *fifo[T]) at(i int) *T { return &f.items[f.begin+i] }
func (f *fifo[T]) push(item T) { f.items = append(f.items, item) }

func (f *fifo[T]) pop() T {
	var zero T
	item := f.items[f.begin]
	f.items[f.begin] = zero
	f.begin++
	switch {
	case f.begin == len(f.items):
		f.items, f.begin = f.items[:0], 0
		if cap(f.items) > keptItems {
			f.items = nil
		}
	case f.begin > len(f.items)/2 && f.begin > keptItems:
		f.items = append(make([]T, 0, 2*f.len()), f.items[f.begin:]...)
		f.begin = 0
	}
	return item
}

// keptItems is how much room an empty queue keeps.
const keptItems = 1024
