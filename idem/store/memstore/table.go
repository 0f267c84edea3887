package memstore

import (
	"strings"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/rules"
)

// key is the identity of a record: a token in a group, or an issued token,
// which has no group.
type key struct {
	prefix, group, token string
	issued               bool
}

// entry is what the table holds under a key.
type entry struct {
	key     key
	expires rules.Instant
	queue   *queue // the one it stands in
	pos     int    // where
	record  rules.Record
	issued  rules.Issued // of an issued key, which has no record
}

// table holds entries up to a maximum, in order of expiry: those that may be
// forgotten early, and those that may not. Each call is O(log n) per entry.
type table struct {
	max     int
	entries map[key]*entry
	idle    queue // done, dead, forgotten, issued
	held    queue // in progress, released
}

func newTable(limit int) table {
	return table{max: limit, entries: map[key]*entry{}}
}

// get returns the entry of k, or nil if there is none or it has expired.
func (t *table) get(k key, now rules.Instant) *entry {
	e := t.entries[k]
	if e != nil && e.expires <= now {
		t.remove(e)
		return nil
	}
	return e
}

// add makes an entry for k, which must not have one, and returns what it had to
// forget for it. It returns nil if there is no room to be had. Expired entries
// are not looked for: each batch drops more of them first than it can add.
func (t *table) add(k key) (e, forgotten *entry) {
	if len(t.entries) >= t.max {
		if forgotten = t.idle.first(); forgotten == nil {
			return nil, nil
		}
		t.remove(forgotten)
	}
	k.token = strings.Clone(k.token) // it may be a piece of a large message
	e = &entry{key: k}
	t.entries[k] = e
	return e, forgotten
}

// schedule puts e where its state and its expiry belong.
func (t *table) schedule(e *entry, expires rules.Instant) {
	q := &t.idle
	if e.record.State == store.Running || e.record.State == store.Released {
		q = &t.held
	}
	e.expires = expires
	if e.queue == q {
		q.fix(e)
		return
	}
	if e.queue != nil {
		e.queue.remove(e)
	}
	q.push(e)
}

func (t *table) remove(e *entry) {
	delete(t.entries, e.key)
	e.queue.remove(e)
}

// expire drops entries that have expired, at most so many of each queue.
func (t *table) expire(now rules.Instant, limit int) {
	for _, q := range [...]*queue{&t.idle, &t.held} {
		for range limit {
			e := q.first()
			if e == nil || e.expires > now {
				break
			}
			t.remove(e)
		}
	}
}
