package memstore

import (
	"fmt"
	"time"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/rules"
)

// execution is one batch being executed at one instant, under the store's lock.
type execution struct {
	rules.Execution
	s    *Store
	b    *store.Batch
	lost []Forgotten
}

// do works on copies, and keeps what has changed.
func (x *execution) do(op *store.Op) store.Reply {
	var r rules.Record
	var i rules.Issued
	record, issued := rules.Needs(op, x.b)
	if record {
		if e := x.s.table.get(x.key(op), x.Now); e != nil {
			r = e.record
		}
	}
	if issued {
		if e := x.s.table.get(x.issuedKey(op), x.Now); e != nil {
			i = e.issued
		}
	}
	reply, changed := x.Do(op, &r, &i)
	if !changed {
		return reply
	}
	k, expires := x.key(op), r.Expires
	if !record {
		k, expires = x.issuedKey(op), i.Expires
	}
	e, err := x.entry(k)
	if err != nil {
		return store.Reply{Err: err}
	}
	if e.record = r; !record {
		e.issued = i
	}
	x.s.table.schedule(e, expires)
	return reply
}

func (x *execution) key(op *store.Op) key {
	return key{prefix: x.b.Prefix, group: op.Group, token: op.Token}
}

func (x *execution) issuedKey(op *store.Op) key {
	return key{prefix: x.b.Prefix, token: op.Token, issued: true}
}

// entry returns the entry of k, a new one if there is none, or an error if there is
// no room for it.
func (x *execution) entry(k key) (*entry, error) {
	if e := x.s.table.entries[k]; e != nil {
		return e, nil
	}
	e, f := x.s.table.add(k)
	if e == nil {
		return nil, fmt.Errorf("%w: the memory store holds %d records, all in progress or released; raise WithMaxRecords",
			store.ErrFull, x.s.table.max)
	}
	if f != nil {
		x.lost = append(x.lost, Forgotten{
			Prefix: f.key.prefix, Group: f.key.group, Token: f.key.token,
			State: f.record.State, Issued: f.key.issued, Early: x.Now.Until(f.expires),
		})
	}
	return e, nil
}

func (s *Store) time(t rules.Instant) time.Time { return s.start.Add(time.Duration(t)) }
