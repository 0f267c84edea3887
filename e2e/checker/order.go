package checker

import (
	"cmp"
	"slices"

	"github.com/idemq/idemq/e2e/history"
)

// first is the first effect of a message.
type first struct {
	token    int
	key, seq uint32
	effect   int64
}

// first is what the order of a key is about; dead-lettered messages have no place in it.
func (c *check) first(n int, l *life) (f first, is bool) {
	if !c.Ordered || l.letters > 0 {
		return f, false
	}
	effect := int64(0)
	for _, r := range l.effects() {
		if !c.Transactional || slices.ContainsFunc(l.rows, func(e history.Event) bool { return e.Process == r.process && e.Attempt == r.attempt }) {
			effect = r.effect
			break
		}
	}
	i := slices.IndexFunc(l.events, func(e history.Event) bool { return e.Kind == history.Published })
	if effect == 0 || i < 0 {
		return f, false
	}
	return first{token: n, key: l.events[i].Key, seq: l.events[i].Seq, effect: effect}, true
}

// order: the first effects of a key's messages are in the order of their publishing.
// Messages that were published at once, under one number, may change places.
func (c *check) order(all []first, v *Verdict) {
	slices.SortFunc(all, func(a, b first) int {
		return cmp.Or(cmp.Compare(a.key, b.key), cmp.Compare(a.seq, b.seq), cmp.Compare(a.effect, b.effect), cmp.Compare(a.token, b.token))
	})
	var latest *first // of what was published under the key, before the present number
	for i := range all {
		f := &all[i]
		if i > 0 {
			switch before := &all[i-1]; {
			case before.key != f.key:
				latest = nil
			case before.seq != f.seq && (latest == nil || before.effect > latest.effect):
				latest = before
			}
		}
		if latest == nil || f.effect >= latest.effect {
			continue
		}
		var l, other life
		c.live(f.token, &l)
		c.live(latest.token, &other)
		c.violate(v, OutOfOrder, &l, f.effect, "it took effect %s before token %d, which was published before it under key %d",
			interval(latest.effect-f.effect), other.token, f.key)
	}
}
