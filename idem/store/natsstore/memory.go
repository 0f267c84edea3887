package natsstore

import (
	"strings"
	"sync"

	"github.com/idemq/idemq/idem/store/rules"
)

// maxRemembered bounds the memory: a claim that nobody ended is in it for ever.
const maxRemembered = 1 << 16

// memory holds the records that this process claimed or released last, as it wrote
// them, so that its next operation on them need not read. What it holds may be out of
// date: the revision decides.
type memory struct {
	mu    sync.Mutex
	conns uint64 // reconnects of the client so far
	keys  map[string]remembered
}

type remembered struct {
	seq    uint64
	record rules.Record // as if it had been written at zero
}

// remember takes from a record what keeps no message of the caller's in memory.
func remember(seq uint64, r rules.Record) remembered {
	r.Claim, r.Owner = strings.Clone(r.Claim), strings.Clone(r.Owner)
	r.Fingerprint, r.ForgotBy = strings.Clone(r.Fingerprint), strings.Clone(r.ForgotBy)
	return remembered{seq: seq, record: r}
}

// get forgets all when the client was connected anew: a bucket in memory may have begun
// to count its revisions again.
func (m *memory) get(key string, conns uint64) (remembered, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.conns != conns {
		m.conns = conns
		clear(m.keys)
	}
	r, ok := m.keys[key]
	return r, ok
}

func (m *memory) put(key string, r remembered) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.keys == nil {
		m.keys = make(map[string]remembered)
	}
	if old, ok := m.keys[key]; ok && old.seq > r.seq {
		return
	}
	if len(m.keys) >= maxRemembered {
		for some := range m.keys {
			delete(m.keys, some)
			break
		}
	}
	m.keys[key] = r
}

func (m *memory) drop(key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.keys, key)
}

func (m *memory) clear() {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.keys)
}
