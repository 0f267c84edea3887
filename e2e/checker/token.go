package checker

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/idemq/idemq/e2e/history"
	"github.com/idemq/idemq/idem/store"
)

// run is one run of a handler.
type run struct {
	process                   uint16
	attempt                   uint16
	claim                     uint64 // zero: the store had granted none
	started, effect, returned int64  // zero: it did not come to that
}

// life is the history of a token, sorted out.
type life struct {
	token  uint32
	events []history.Event

	published, letters int
	rows               int
	runs               []run
	acks               []history.Event
	grants             []history.Event // Begin, answered Claimed
	completions        []history.Event // Commit and Bury, answered OK
}

// token checks one token, whose events are given.
func (c *check) token(events []history.Event, v *Verdict) {
	l := sortOut(events)
	if l.published > 0 {
		v.Messages++
	}
	v.Published += l.published
	v.DeadLetters += l.letters
	for i := range events {
		if answeredAs(&events[i], store.Begin, store.Duplicate) {
			v.Duplicates++
		}
	}
	c.lost(l, v)
	c.afterCompletion(l, v)
	c.overlaps(l, v)
	c.acks(l, v)
	c.attempts(l, v)
	c.doubles(l, v)
	c.claims(l, v)
}

func sortOut(events []history.Event) *life {
	l := &life{token: events[0].Token, events: events}
	seen := map[uint64]bool{}
	for i := range events {
		e := &events[i]
		switch e.Kind {
		case history.Published:
			l.published++
		case history.DeadLettered:
			l.letters++
		case history.Stored:
			l.rows++
		case history.Started:
			l.runs = append(l.runs, run{process: e.Process, attempt: e.Attempt, claim: l.claimOf(e), started: e.At})
		case history.Effect, history.Returned:
			for j := len(l.runs) - 1; j >= 0; j-- {
				r := &l.runs[j]
				if r.process != e.Process || r.attempt != e.Attempt || r.returned != 0 {
					continue
				}
				if e.Kind == history.Effect {
					r.effect = e.At
				} else {
					r.returned = e.At
				}
				break
			}
		case history.Acked:
			l.acks = append(l.acks, *e)
		case history.Answered:
			switch {
			case answeredAs(e, store.Begin, store.Claimed):
				if !seen[e.Claim] { // else it was repeated
					seen[e.Claim] = true
					l.grants = append(l.grants, *e)
				}
			case answeredAs(e, store.Commit, store.OK), answeredAs(e, store.Bury, store.OK):
				l.completions = append(l.completions, *e)
			}
		}
	}
	return l
}

// claimOf is the last claim that was granted to who started a handler.
func (l *life) claimOf(started *history.Event) uint64 {
	for i := len(l.grants) - 1; i >= 0; i-- {
		if g := &l.grants[i]; g.Process == started.Process && g.Attempt == started.Attempt {
			return g.Claim
		}
	}
	return 0
}

// effects are the runs that took effect, in the order of their effects.
func (l *life) effects() []run {
	var all []run
	for _, r := range l.runs {
		if r.effect != 0 {
			all = append(all, r)
		}
	}
	slices.SortStableFunc(all, func(a, b run) int { return cmp.Compare(a.effect, b.effect) })
	return all
}

// lost: every published message has an effect, or is in the dead-letter destination.
func (c *check) lost(l *life, v *Verdict) {
	effects := len(l.effects())
	if c.Transactional {
		effects = l.rows
	}
	v.Effects += effects
	if l.published > 0 && effects == 0 && l.letters == 0 {
		v.Lost++
		v.violate(Lost, l, l.events[0].At, "it has neither an effect nor a dead letter")
	}
}

// afterCompletion: no handler starts after the completion of its token was acknowledged.
func (c *check) afterCompletion(l *life, v *Verdict) {
	for _, r := range l.runs {
		for _, done := range l.completions {
			if done.At < r.started && !c.forgetsBetween(done.At, r.started) {
				v.violate(StartedAfterCompletion, l, r.started,
					"process %d started its handler on attempt %d, %s after the store had acknowledged the completion by process %d",
					r.process, r.attempt, span(r.started-done.At), done.Process)
				break
			}
		}
	}
}

// overlaps: a handler runs under a claim, once, and never twice at a time in one process.
func (c *check) overlaps(l *life, v *Verdict) {
	for i, a := range l.runs {
		if a.claim == 0 {
			v.violate(StartedUnclaimed, l, a.started, "process %d started its handler on attempt %d, and the store had granted it no such claim", a.process, a.attempt)
		}
		for _, b := range l.runs[i+1:] {
			switch {
			case a.claim == b.claim && a.claim != 0:
				v.violate(ClaimRanTwice, l, b.started, "process %d started its handler twice under one claim, attempt %d", b.process, b.attempt)
			case a.process == b.process && (a.returned == 0 || a.returned > b.started):
				v.violate(OverlapInProcess, l, b.started, "process %d started its handler on attempt %d while its run on attempt %d had not returned", b.process, b.attempt, a.attempt)
			}
		}
	}
}

// acks: a delivery is acked only by a process that knows of a completion or a burial.
func (c *check) acks(l *life, v *Verdict) {
	for _, ack := range l.acks {
		knows := l.letters > 0 && !slices.ContainsFunc(l.runs, func(r run) bool { return r.effect != 0 })
		for i := range l.events {
			e := &l.events[i]
			if e.At > ack.At {
				break
			}
			knows = knows || e.Process == ack.Process &&
				(answeredAs(e, store.Commit, store.OK) || answeredAs(e, store.Bury, store.OK) || answeredAs(e, store.Begin, store.Duplicate))
		}
		if !knows {
			v.violate(AckedWithoutCause, l, ack.At, "process %d acked it, and had no answer of the store that it is done or dead", ack.Process)
		}
	}
}

// attempts: no two claims have the same number.
func (c *check) attempts(l *life, v *Verdict) {
	v.Claims += len(l.grants)
	for i, a := range l.grants {
		for _, b := range l.grants[i+1:] {
			if a.Attempt == b.Attempt && !c.forgetsBetween(a.At, b.At) {
				v.violate(AttemptRepeated, l, b.At, "attempt %d was given to process %d and to process %d", a.Attempt, a.Process, b.Process)
			}
		}
		if i > 0 && !l.ended(l.grants[i-1].Claim, a.At) {
			v.Takeovers++
		}
	}
}

// ended reports whether the store had acknowledged the end of a claim.
func (l *life) ended(claim uint64, before int64) bool {
	return slices.ContainsFunc(l.events, func(e history.Event) bool {
		return e.At <= before && e.Claim == claim && (answeredAs(&e, store.Release, store.OK) || answeredAs(&e, store.Commit, store.OK) || answeredAs(&e, store.Bury, store.OK))
	})
}

// doubles: an effect happens again only in the windows that the promise names.
func (c *check) doubles(l *life, v *Verdict) {
	if c.Transactional {
		if l.rows > 1 && !c.forgetsBetween(l.events[0].At, l.events[len(l.events)-1].At) {
			v.DoubledElsewhere += l.rows - 1
			v.violate(Doubled, l, l.events[0].At, "%d effects are in the database", l.rows)
		} else if l.rows > 1 {
			v.InWindow[Forgotten] += l.rows - 1
		}
		return
	}
	effects := l.effects()
	for i := range effects {
		if i == 0 {
			continue
		}
		before, again := &effects[i-1], &effects[i]
		if w, why := c.window(l, before, again); w != 0 {
			v.InWindow[w]++
		} else {
			v.DoubledElsewhere++
			v.violate(Doubled, l, again.effect, "attempt %d of process %d took effect, and attempt %d of process %d again %s later: %s",
				before.attempt, before.process, again.attempt, again.process, span(again.effect-before.effect), why)
		}
	}
}

// window is the one in which an effect happened again, or else why it is in none.
func (c *check) window(l *life, before, again *run) (w Window, why string) {
	for _, done := range l.completions {
		if done.At < again.started {
			if c.forgetsBetween(done.At, again.started) {
				return Forgotten, ""
			}
			return 0, fmt.Sprintf("the completion by process %d was acknowledged before", done.Process)
		}
	}
	if before.claim == again.claim && again.claim != 0 {
		return 0, "both under one claim"
	}
	if died, is := c.died[before.process]; is && before.effect <= died && died <= again.started+int64(c.Lease) {
		return Died, ""
	}
	for i := range l.events {
		e := &l.events[i]
		if e.At > again.started {
			break
		}
		if e.Kind == history.Asked && e.Claim == before.claim && store.Kind(e.Op) == store.Release && e.At > before.effect {
			return 0, "the first claim was released after its effect"
		}
	}
	if c.forgetsBetween(l.grantOf(before.claim), again.started) {
		return Forgotten, ""
	}
	return LeaseLost, "" // that it had run out when the other was granted is for claims
}

func (l *life) grantOf(claim uint64) int64 {
	for _, g := range l.grants {
		if g.Claim == claim {
			return g.At
		}
	}
	return l.events[0].At
}

// order: the first effects of a key's messages are in the order of their publishing.
// Messages that were published at once may change places.
func (c *check) order(v *Verdict) {
	type first struct {
		l      *life
		seq    uint32
		effect int64
	}
	keys := map[uint32][]first{}
	for _, events := range c.tokens {
		l := sortOut(events)
		effects := l.effects()
		if len(effects) == 0 {
			continue
		}
		for i := range events {
			if e := &events[i]; e.Kind == history.Published {
				keys[e.Key] = append(keys[e.Key], first{l: l, seq: e.Seq, effect: effects[0].effect})
				break
			}
		}
	}
	for key, all := range keys {
		slices.SortFunc(all, func(a, b first) int { return cmp.Or(cmp.Compare(a.seq, b.seq), cmp.Compare(a.effect, b.effect)) })
		// The latest first effect of what was published before the present number.
		var latest, group *first
		for i := range all {
			f := &all[i]
			if group != nil && group.seq != f.seq {
				if latest == nil || group.effect > latest.effect {
					latest = group
				}
			}
			if latest != nil && f.effect < latest.effect {
				v.violate(OutOfOrder, f.l, f.effect, "it took effect %s before token %d, which was published before it under key %d",
					span(latest.effect-f.effect), latest.l.token, key)
			}
			group = f
		}
	}
}
