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
	open      int        // messages that are not done
	held      bool       // nothing is to be committed
}

type mark struct {
	offset int64
	size   int // bytes; isDone once the message is
}

// isDone stands for the size of a message that is done.
const isDone = -1

func newTracker() *tracker { return &tracker{next: -1, committed: -1} }

// startAt says that nothing before offset is this group's to handle: that is committed
// though nothing is done yet.
func (t *tracker) startAt(offset int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.next = offset
}

// fetch notes a message of so many bytes, and returns its place.
func (t *tracker) fetch(offset int64, size int) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.marks.push(mark{offset, size})
	t.open++
	return t.first + uint64(t.marks.len()) - 1
}

// done marks the message at a place, and returns how many messages have come to the
// prefix that are not committed, how many bytes are held no more, and whether nothing
// else is in hand. A message's bytes are returned once, by done or by abandon.
func (t *tracker) done(place uint64) (fresh, freed int, isIdle bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if place < t.first {
		return t.fresh, 0, false // marked before
	}
	if m := t.marks.at(int(place - t.first)); m.size != isDone {
		freed, m.size = m.size, isDone
		t.open--
	}
	for t.marks.len() > 0 && t.marks.at(0).size == isDone {
		t.next = t.marks.pop().offset + 1
		t.first++
		t.fresh++
	}
	return t.fresh, freed, t.marks.len() == 0
}

// abandon says that the assignment is over, and returns the bytes of what is not done.
func (t *tracker) abandon() (freed int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range t.marks.len() {
		if m := t.marks.at(i); m.size != isDone {
			freed += m.size
			m.size = 0
		}
	}
	return freed
}

// fetched is how many messages were fetched so far.
func (t *tracker) fetched() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.first + uint64(t.marks.len())
}

// extent is how many messages are at or behind the first that is not done, and how many
// of them are not.
func (t *tracker) extent() (span, open int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.marks.len(), t.open
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

// hold has toCommit return nothing, until it is called with false.
func (t *tracker) hold(on bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.held = on
}

// toCommit returns the offset to commit, unless it was committed.
func (t *tracker) toCommit() (c prefix, found bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return prefix{t.next, t.fresh}, t.next > t.committed && !t.held
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
