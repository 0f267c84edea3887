package memstore

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/idemq/idemq/idem/store/rules"
)

// Whatever is pushed, moved and removed, the first is the next to expire, and
// each entry knows its place.
func TestQueue(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q, held := &queue{}, []*entry{}
		time := rapid.Int64Range(0, 20)
		pick := func(t *rapid.T) int {
			if len(held) == 0 {
				t.Skip("empty")
			}
			return rapid.IntRange(0, len(held)-1).Draw(t, "which")
		}
		t.Repeat(map[string]func(*rapid.T){
			"push": func(t *rapid.T) {
				e := &entry{expires: rules.Instant(time.Draw(t, "expires"))}
				q.push(e)
				held = append(held, e)
			},
			"move": func(t *rapid.T) {
				e := held[pick(t)]
				e.expires = rules.Instant(time.Draw(t, "expires"))
				q.fix(e)
			},
			"remove": func(t *rapid.T) {
				i := pick(t)
				q.remove(held[i])
				held = slices.Delete(held, i, i+1)
			},
			"": func(t *rapid.T) {
				if len(q.es) != len(held) {
					t.Fatalf("%d entries, want %d", len(q.es), len(held))
				}
				for i, e := range q.es {
					if e.pos != i || e.queue != q {
						t.Fatalf("the entry at %d says it is at %d", i, e.pos)
					}
					if first := q.first(); first.expires > e.expires {
						t.Fatalf("first is %d, and there is %d", first.expires, e.expires)
					}
				}
			},
		})
	})
}
