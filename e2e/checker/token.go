package checker

import (
	"cmp"
	"fmt"
	"slices"
	"time"

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
	rows               []history.Event
	runs               []run
	acks               []history.Event
	grants             []history.Event // Begin and Spend, answered Claimed, each claim's first
	completions        []history.Event // Commit and Bury, answered OK
}

// reset empties l, which keeps its room.
func (l *life) reset() {
	*l = life{
		events: l.events[:0], rows: l.rows[:0], runs: l.runs[:0], acks: l.acks[:0],
		grants: l.grants[:0], completions: l.completions[:0],
	}
}

// token checks one token.
func (c *check) token(l *life, v *Verdict) {
	if l.published > 0 {
		v.Messages++
	}
	v.Published += l.published
	v.DeadLetters += l.letters
	for i := range l.events {
		switch e := &l.events[i]; {
		case answeredAs(e, store.Begin, store.Duplicate):
			v.Duplicates++
		case e.Kind == history.Started && e.Has(history.Together):
			v.Together++
		}
	}
	c.lost(l, v)
	c.afterCompletion(l, v)
	c.ofClaims(l, v)
	c.overlaps(l, v)
	c.acked(l, v)
	c.attempts(l, v)
	c.doubles(l, v)
	c.deadLettered(l, v)
	c.claims(l, v)
}

func (l *life) sortOut() {
	l.token = l.events[0].Token
	for i := range l.events {
		e := &l.events[i]
		switch e.Kind {
		case history.Published:
			l.published++
		case history.DeadLettered:
			l.letters++
		case history.Stored:
			l.rows = append(l.rows, *e)
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
			case answeredAs(e, store.Begin, store.Claimed), answeredAs(e, store.Spend, store.Claimed):
				if l.grantOf(e.Claim) == nil { // else it was repeated
					l.grants = append(l.grants, *e)
				}
			case answeredAs(e, store.Commit, store.OK), answeredAs(e, store.Bury, store.OK):
				l.completions = append(l.completions, *e)
			}
		}
	}
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

func (l *life) grantOf(claim uint64) *history.Event {
	for i := range l.grants {
		if l.grants[i].Claim == claim {
			return &l.grants[i]
		}
	}
	return nil
}

// took is when an answer was asked for, at first, until it was there: the store was done
// with it some time between.
func (l *life) took(answer *history.Event) span {
	for i := range l.events {
		e := &l.events[i]
		if e.At > answer.At {
			break
		}
		if e.Kind == history.Asked && e.Claim == answer.Claim && e.Op == answer.Op && e.Process == answer.Process {
			return span{e.At, answer.At}
		}
	}
	return span{answer.At, answer.At}
}

// effects are the runs that took effect, in the order of their effects.
func (l *life) effects() []run {
	all := make([]run, 0, len(l.runs))
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
	effects := len(l.rows)
	if !c.Transactional {
		effects = len(l.effects())
	}
	v.Effects += effects
	if l.published > 0 && effects == 0 && l.letters == 0 {
		v.Lost++
		c.violate(v, Lost, l, l.events[0].At, "it has neither an effect nor a dead letter")
	}
}

// afterCompletion: no handler starts after the completion of its token was acknowledged.
func (c *check) afterCompletion(l *life, v *Verdict) {
	for i := range l.runs {
		r := &l.runs[i]
		for j := range l.completions {
			done := &l.completions[j]
			if done.At < r.started && !c.forgotten(l, r, done) && !c.stoppedBeforeStart(l, r, done) {
				c.violate(v, StartedAfterCompletion, l, r.started,
					"process %d started its handler on attempt %d, %s after the store had acknowledged the completion of claim %s by process %d",
					r.process, r.attempt, interval(r.started-done.At), l.name(done.Claim), done.Process)
				break
			}
		}
	}
}

// forgotten reports whether the store may have forgotten, before a run started, the
// completion that came before it, or before that the claim which the run is under.
func (c *check) forgotten(l *life, r *run, done *history.Event) bool {
	g := l.grantOf(r.claim)
	return c.forgets(l.took(done), r.started) || g != nil && c.forgets(l.took(g), done.At)
}

// stoppedBeforeStart reports whether a process was stopped when it had looked at its clock
// and was about to call the handler, and went on when somebody else had completed the
// token. Nobody can help that: it is as if it had been stopped a moment later.
func (c *check) stoppedBeforeStart(l *life, r *run, done *history.Event) bool {
	const moment = int64(250 * time.Millisecond)
	g := l.grantOf(r.claim)
	return g != nil && done.Claim != r.claim && slices.ContainsFunc(c.pauses[r.process], func(s span) bool {
		return g.At <= s.from+settling && s.from <= done.At && s.to-settling <= r.started && r.started <= s.to+moment
	})
}

// ofClaims: a handler runs under a claim that was granted and is not given back yet, and
// once under each.
func (c *check) ofClaims(l *life, v *Verdict) {
	for i := range l.runs {
		a := &l.runs[i]
		if a.claim == 0 {
			c.violate(v, StartedUnclaimed, l, a.started, "process %d started its handler on attempt %d, and the store had granted it no such claim", a.process, a.attempt)
			continue
		}
		for j := range l.events {
			e := &l.events[j]
			if e.Kind != history.Asked || e.Claim != a.claim || store.Kind(e.Op) != store.Release {
				continue
			}
			switch {
			case e.At < a.started:
				c.violate(v, StartedUnclaimed, l, a.started, "process %d started its handler on attempt %d, %s after it had given claim %s back",
					a.process, a.attempt, interval(a.started-e.At), l.name(a.claim))
			case a.effect > e.At, a.returned > e.At:
				c.violate(v, ReleasedWhileRunning, l, e.At, "process %d gave claim %s back while its handler ran under it", a.process, l.name(a.claim))
			default:
				continue
			}
			break
		}
		for j := range l.runs[i+1:] {
			if b := &l.runs[i+1+j]; a.claim == b.claim {
				c.violate(v, ClaimRanTwice, l, b.started, "process %d started its handler twice under claim %s, attempt %d", b.process, l.name(b.claim), b.attempt)
			}
		}
	}
}

// overlaps: a token's handler never runs twice at a time in one process.
func (c *check) overlaps(l *life, v *Verdict) {
	for i := range l.runs {
		a := &l.runs[i]
		for j := range l.runs[i+1:] {
			if b := &l.runs[i+1+j]; a.process == b.process && (a.returned == 0 || a.returned > b.started) {
				c.violate(v, OverlapInProcess, l, b.started, "process %d started its handler on attempt %d while its run on attempt %d had not returned", b.process, b.attempt, a.attempt)
			}
		}
	}
}

// acked: a delivery is acked only by a process that knows of a completion or a burial. A dead
// letter alone is none: those without a claim, of tokens that are of no use and of messages
// that the broker would not deliver again, do not occur in runs.
func (c *check) acked(l *life, v *Verdict) {
	for i := range l.acks {
		ack := &l.acks[i]
		knows := false
		for j := range l.events {
			e := &l.events[j]
			if knows || e.At > ack.At {
				break
			}
			knows = e.Process == ack.Process && (answeredAs(e, store.Commit, store.OK) || answeredAs(e, store.Bury, store.OK) ||
				answeredAs(e, store.Begin, store.Duplicate) || answeredAs(e, store.Spend, store.Claimed) || answeredAs(e, store.Spend, store.Duplicate))
		}
		if !knows {
			c.violate(v, AckedWithoutCause, l, ack.At, "process %d acked it, and had no answer of the store that it is done or dead", ack.Process)
		}
	}
}

// attempts: no two claims have the same number.
func (c *check) attempts(l *life, v *Verdict) {
	v.Claims += len(l.grants)
	for i := range l.grants {
		a := &l.grants[i]
		for j := range l.grants[i+1:] {
			if b := &l.grants[i+1+j]; a.Attempt == b.Attempt && !c.forgets(l.took(a), b.At) && !c.forgets(l.took(b), a.At) {
				c.violate(v, AttemptRepeated, l, b.At, "attempt %d was given to claim %s of process %d and to claim %s of process %d",
					a.Attempt, l.name(a.Claim), a.Process, l.name(b.Claim), b.Process)
			}
		}
		if i > 0 && !l.ended(l.grants[i-1].Claim, a.At) {
			v.Takeovers++
		}
	}
}

// ended reports whether the store had acknowledged the end of a claim.
func (l *life) ended(claim uint64, before int64) bool {
	for i := range l.events {
		e := &l.events[i]
		if e.At <= before && e.Claim == claim && (answeredAs(e, store.Release, store.OK) || answeredAs(e, store.Commit, store.OK) || answeredAs(e, store.Bury, store.OK)) {
			return true
		}
	}
	return false
}

// doubles: an effect happens again only in the windows that the promise names.
func (c *check) doubles(l *life, v *Verdict) {
	if c.Transactional {
		again := len(l.rows) - 1
		switch {
		case again < 1:
		case c.forgets(span{l.events[0].At, l.events[len(l.events)-1].At}, l.events[len(l.events)-1].At):
			v.InWindow[Forgotten] += again
		default:
			v.DoubledElsewhere += again
			c.violate(v, Doubled, l, l.events[0].At, "%d effects are in the database", len(l.rows))
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
			c.violate(v, Doubled, l, again.effect, "attempt %d of process %d took effect, and attempt %d of process %d again %s later: %s",
				before.attempt, before.process, again.attempt, again.process, interval(again.effect-before.effect), why)
		}
	}
}

// window is the one in which an effect happened again, or else why it is in none.
func (c *check) window(l *life, before, again *run) (w Window, why string) {
	for i := range l.completions {
		switch done := &l.completions[i]; {
		case done.At >= again.started:
		case c.forgotten(l, again, done):
			return Forgotten, ""
		case c.stoppedBeforeStart(l, again, done):
			return LeaseLost, ""
		default:
			return 0, fmt.Sprintf("the completion of claim %s by process %d was acknowledged before", l.name(done.Claim), done.Process)
		}
	}
	if before.claim == again.claim || before.claim == 0 || again.claim == 0 {
		return 0, "not under a claim of each its own"
	}
	for i := range l.events {
		if e := &l.events[i]; e.At < again.started && e.Kind == history.Asked && e.Claim == before.claim && store.Kind(e.Op) == store.Release {
			return 0, fmt.Sprintf("claim %s, under which it had happened, was given back", l.name(e.Claim))
		}
	}
	if died, is := c.died[before.process]; is && before.effect <= died.at && died.at <= again.started+int64(c.Lease) &&
		(died.killed || before.returned == 0 || l.wasAsked(store.Commit, before.claim) || c.storeHit(span{before.effect, died.at})) {
		return Died, ""
	}
	holder, held, taken := before, l.grantOf(before.claim), l.grantOf(again.claim)
	if held.At > taken.At { // the effect of who had held it first came last
		holder, held, taken = again, taken, held
	}
	if c.forgets(l.took(held), taken.At) {
		return Forgotten, ""
	}
	if in := (span{l.took(held).from, taken.At}); c.stood(holder.process, in) || c.storeHit(in) || c.unanswered(l, held.Claim, in) {
		return LeaseLost, "" // that it had run out when the other was granted is for claims
	}
	return 0, fmt.Sprintf("nothing had kept process %d from renewing its lease, or from recording what it had done", holder.process)
}

// unanswered reports whether the store gave no answer about a claim that it was asked for in
// a time, or took as long for it as renewals are apart.
func (c *check) unanswered(l *life, claim uint64, in span) bool {
	return slices.ContainsFunc(l.events, func(e history.Event) bool {
		if e.Kind != history.Answered || e.Claim != claim || e.At < in.from || e.At > in.to+aftermath {
			return false
		}
		asked := l.took(&e).from
		return asked <= in.to && (e.Has(history.Failed) || e.At-asked > int64(c.Lease)/3)
	})
}

// wasAsked reports whether an operation of a claim was sent to the store.
func (l *life) wasAsked(kind store.Kind, claim uint64) bool {
	return slices.ContainsFunc(l.events, func(e history.Event) bool {
		return e.Kind == history.Asked && store.Kind(e.Op) == kind && e.Claim == claim
	})
}

// deadLettered: a message is given up when its budget is spent, by handlers that failed, by
// claims that ran out and by what a database may have refused to commit, and not before.
func (c *check) deadLettered(l *life, v *Verdict) {
	if c.Budget == 0 || l.letters == 0 {
		return
	}
	spent, before := 0, uint16(0)
	for i := range l.grants {
		g := &l.grants[i]
		failed := slices.ContainsFunc(l.events, func(e history.Event) bool {
			return e.Kind == history.Returned && e.Has(history.Failed) && !e.Has(history.Unspent) && e.Process == g.Process && e.Attempt == g.Attempt
		})
		refused := c.Transactional && l.wasAsked(store.Commit, g.Claim) && !slices.ContainsFunc(l.completions, func(e history.Event) bool {
			return e.Claim == g.Claim && store.Kind(e.Op) == store.Commit
		})
		if failed || refused || i+1 < len(l.grants) && !l.ended(g.Claim, l.grants[i+1].At) {
			spent++
		}
		spent += max(int(g.Attempt)-int(before)-1, 0) // claims whose answers never came ran out as well
		before = g.Attempt
	}
	if spent < c.Budget {
		c.violate(v, DeadLetteredEarly, l, l.events[len(l.events)-1].At, "it was dead-lettered, and of %d failures that it may have there were %d at most", c.Budget, spent)
	}
}
