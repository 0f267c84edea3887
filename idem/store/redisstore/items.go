package redisstore

import (
	"fmt"
	"sync"

	"github.com/idemq/idemq/idem/store"
)

// item is one operation of a call.
type item struct {
	op    *store.Op
	reply *store.Reply
	key   string
	ikey  string // the issued key, where the script needs it beside the other
	place *place // compact layout: where it is said that the token is done; nil: that does not matter
}

// gated tells whether the script needs an operation's issued key beside its own.
func gated(b *store.Batch, k store.Kind) bool {
	return k == store.Inspect || b.IssuedOnly && (k == store.Begin || k == store.Spend)
}

// scratch is the memory that the items of an Apply are made in. Commands point to the
// strings of items and places, so it is used again only where none can be under way any more.
type scratch struct {
	items  []item
	places []place
	text   []byte // all strings of the items, one behind the other
	ends   []int  // of each
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

func (s *scratch) free() {
	clear(s.items)
	clear(s.places)
	scratches.Put(s)
}

func (s *scratch) begin(n int, places bool) {
	s.items, s.places = resized(s.items, n), s.places[:0]
	if places {
		s.places = resized(s.places, n)
	}
	s.text, s.ends = s.text[:0], s.ends[:0]
}

// resized is all zero: whoever used it cleared it.
func resized[E any](all []E, n int) []E {
	if cap(all) < n {
		return make([]E, n)
	}
	return all[:n]
}

// end is called behind each string in text.
func (s *scratch) end() { s.ends = append(s.ends, len(s.text)) }

// fill makes the items of a batch. What their strings are is written to text first, so that
// all are parts of one.
func (s *scratch) fill(b *store.Batch, k *keys, c *compact) ([]item, error) {
	s.begin(len(b.Ops), c != nil)
	for i := range b.Ops {
		op, it := &b.Ops[i], &s.items[i]
		if op.Kind < store.Begin || op.Kind > store.Check {
			return nil, fmt.Errorf("redisstore: operation %d: there is no kind %d", i, op.Kind)
		}
		it.op, it.reply = op, &b.Replies[i]
		tag := k.tag(op.Token)
		if op.Kind == store.Issue || op.Kind == store.Check {
			s.text = k.appendIssued(s.text, tag, op.Token)
			s.end()
			continue
		}
		s.text = k.appendRecord(s.text, tag, op.Group, op.Token)
		s.end()
		if gated(b, op.Kind) {
			s.text = k.appendIssued(s.text, tag, op.Token)
			s.end()
		}
		if c != nil && placed(op.Kind) {
			it.place = &s.places[i]
			c.write(s, k, tag, op)
		}
		if c != nil {
			it.op = c.keepable(op)
		}
	}
	text, n, start := string(s.text), 0, 0
	next := func() string {
		part := text[start:s.ends[n]]
		start, n = s.ends[n], n+1
		return part
	}
	for i := range s.items {
		it := &s.items[i]
		it.key = next()
		if gated(b, it.op.Kind) {
			it.ikey = next()
		}
		if p := it.place; p != nil {
			p.sets[0], p.sets[1], p.fingerprint, p.phase = next(), next(), next(), next()
		}
	}
	return s.items, nil
}
