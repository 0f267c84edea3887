package bench

import (
	"math"
	"time"
)

// plan is what an application wants, for the arithmetic of its masters.
type plan struct {
	perDay    float64 // messages
	peak      float64 // the busiest second, as so many mean ones
	retention time.Duration
	// headroom is the share of a core and of a master's memory that may be used.
	headroom float64
	memory   float64 // bytes of a master
}

// usualPlan is that of the page, for so many messages a day.
func usualPlan(perDay float64) plan {
	return plan{perDay: perDay, peak: 3, retention: 24 * time.Hour, headroom: 0.5, memory: 16e9}
}

// cost is what a layout was measured to take.
type cost struct {
	bytes   float64 // of a token of one retention
	perCore float64 // messages a second of Redis' own CPU time
	// perCoreOfSeveral is perCore of masters of a cluster, where a batch is a call for each tag;
	// zero: it was not measured.
	perCoreOfSeveral float64
}

// budget is what follows.
type budget struct {
	Mean, Busiest float64 // messages a second
	Memory        float64 // bytes, of all masters
	BySpeed       int     // masters
	ByMemory      int     // masters
	Masters       int
}

func (p plan) budget(c cost) budget {
	const day = 24 * time.Hour
	b := budget{Mean: p.perDay / day.Seconds()}
	b.Busiest = b.Mean * p.peak
	b.Memory = p.perDay * c.bytes * (float64(p.retention) / float64(day)) // no rounding where it is a day
	b.BySpeed = mastersFor(b.Busiest, c.perCore*p.headroom)
	b.ByMemory = mastersFor(b.Memory, p.memory*p.headroom)
	if max(b.BySpeed, b.ByMemory) > 1 && c.perCoreOfSeveral > 0 {
		b.BySpeed = mastersFor(b.Busiest, c.perCoreOfSeveral*p.headroom)
	}
	b.Masters = max(b.BySpeed, b.ByMemory)
	return b
}

// mastersFor is how many masters it takes until the one with the most tags of a prefix, which
// are not divided, has no more than so much. Where one tag has more there are several prefixes.
func mastersFor(all, each float64) int {
	for n := 1; n < fillTags; n++ {
		if fullest := (fillTags + n - 1) / n; all*float64(fullest)/fillTags <= each {
			return n
		}
	}
	return max(fillTags, int(math.Ceil(all/each)))
}

// costs are those of a layout at the number of tokens nearest to n that was measured, and of
// the most masters; false: no number of tokens was.
func (z *Sizing) costs(layout string, n int) (c cost, at int, ok bool) {
	for i := range z.Tokens {
		r := &z.Tokens[i]
		if r.Layout != layout || r.Load == nil || ok && distance(r.Tokens, n) >= distance(at, n) {
			continue
		}
		c, at, ok = cost{bytes: r.Bytes(), perCore: r.Load.Limit()}, r.Tokens, true
	}
	several := 1.0
	for i := range z.Masters {
		if m := &z.Masters[i]; m.Layout == layout && m.Value > several && m.Failed == "" {
			several, c.perCoreOfSeveral = m.Value, m.Limit()
		}
	}
	return c, at, ok
}

func distance(a, b int) int { return max(a-b, b-a) }
