package idem

import (
	"slices"
	"sync"
)

// calls are those that a caller makes together, and their places in the caller's list.
// Their memory is used again: they are most of what a message would allocate.
type calls struct {
	made   []call
	sent   []*call
	places []int
}

var (
	callPool  = sync.Pool{New: func() any { return new(call) }}
	callsPool = sync.Pool{New: func() any { return new(calls) }}
)

// newCalls has room for n calls.
func newCalls(n int) *calls {
	l := callsPool.Get().(*calls)
	if cap(l.made) < n {
		l.made = make([]call, n)
		l.sent, l.places = slices.Grow(l.sent, n), slices.Grow(l.places, n)
	}
	l.made = l.made[:n]
	return l
}

// send takes the call at place i among those to be sent.
func (l *calls) send(i int) {
	l.sent, l.places = append(l.sent, &l.made[i]), append(l.places, i)
}

// free is called when nobody else has a use for the calls: none was sent, or all were answered.
func (l *calls) free() {
	clear(l.made)
	clear(l.sent)
	l.sent, l.places = l.sent[:0], l.places[:0]
	callsPool.Put(l)
}

func newCall() *call { return callPool.Get().(*call) }

// free is called when nobody else has a use for the call, as with several.
func (c *call) free() {
	*c = call{}
	callPool.Put(c)
}
