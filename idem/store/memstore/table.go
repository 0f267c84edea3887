package memstore

import (
	"strings"
	"time"

	"github.com/idemq/idemq/idem/store"
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
	expires instant
	queue   *queue // the one it stands in
	pos     int    // where
	record
	registration
}

// record is what is known of a token in a group. The zero value is an absent one.
type record struct {
	state    store.State
	claim    string // of the last claim
	attempt  int
	spent    int // kept on done by Spend, for repeated answers
	expiries int // the same
	redrive  int

	fence    int    // claims of attempts up to this one were made before a Forget
	forgotBy string // the claim id of the last Forget
	bySpend  bool   // done, by Spend

	at          instant       // done, dead: since when
	leaseEnd    instant       // in progress, as the next four
	renewed     instant       // when the lease started last
	lease       time.Duration // how long it was then
	owner       string
	incarnation uint64

	fingerprint string
	result      []byte
}

// registration is an issued token's.
type registration struct {
	checkBy   instant // how long it may wait for its Check
	checkedBy string  // the claim id of the Check that spent it
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
func (t *table) get(k key, now instant) *entry {
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
func (t *table) schedule(e *entry, expires instant) {
	q := &t.idle
	if e.state == store.Running || e.state == store.Released {
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
func (t *table) expire(now instant, limit int) {
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
