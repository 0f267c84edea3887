package checker

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/idemq/idemq/e2e/history"
	"github.com/idemq/idemq/idem/store"
)

// Rule is something that a run is held to.
type Rule string

// The rules.
const (
	Lost                   Rule = "lost"
	Doubled                Rule = "doubled outside the windows"
	StartedAfterCompletion Rule = "started after its completion was acknowledged"
	StartedUnclaimed       Rule = "started without a claim"
	ReleasedWhileRunning   Rule = "released while its handler ran"
	ClaimRanTwice          Rule = "one claim ran twice"
	OverlapInProcess       Rule = "two runs at a time in one process"
	AckedWithoutCause      Rule = "acked without cause"
	AttemptRepeated        Rule = "attempt number given twice"
	NotLinearizable        Rule = "the store's answers fit no order of its operations"
	OutOfOrder             Rule = "out of order"
	DeadLetteredEarly      Rule = "dead-lettered before its budget was spent"
)

// Violation is a breach of a rule by one token.
type Violation struct {
	Rule    Rule
	Token   uint32
	At      int64 // of history.Now
	Text    string
	History []string // of the token, a line each; times count from its first event
}

// String is the whole of it, on several lines.
func (x Violation) String() string {
	return fmt.Sprintf("%s: token %d: %s\n\t%s", x.Rule, x.Token, x.Text, strings.Join(x.History, "\n\t"))
}

func (c *check) violate(v *Verdict, rule Rule, l *life, at int64, format string, args ...any) {
	v.Total[rule]++
	if v.Total[rule] > MaxViolations {
		return
	}
	v.Violations = append(v.Violations, Violation{Rule: rule, Token: l.token, At: at, Text: fmt.Sprintf(format, args...), History: c.lines(l)})
}

func interval(ns int64) string { return time.Duration(ns).Round(time.Microsecond).String() }

// clock is a time as the lines show it.
func (l *life) clock(at int64) string {
	return fmt.Sprintf("%.6f s", time.Duration(at-l.events[0].At).Seconds())
}

// name letters the claims in the order of their appearance.
func (l *life) name(claim uint64) string {
	var seen []uint64
	for i := range l.events {
		id := l.events[i].Claim
		if id != 0 && !slices.Contains(seen, id) {
			if id == claim {
				break
			}
			seen = append(seen, id)
		}
	}
	return letters(len(seen))
}

func letters(n int) string {
	if n < 26 {
		return string(rune('A' + n))
	}
	return letters(n/26-1) + string(rune('A'+n%26))
}

// lines are a token's history in words, with the faults that happened meanwhile.
func (c *check) lines(l *life) []string {
	events := slices.Clone(l.events)
	from, to := events[0].At, events[len(events)-1].At
	for _, f := range c.faults {
		if f.At <= to && f.Until >= from {
			events = append(events, f)
		}
	}
	slices.SortStableFunc(events, func(a, b history.Event) int { return cmp.Compare(a.At, b.At) })
	out := make([]string, len(events))
	for i := range events {
		out[i] = fmt.Sprintf("%14s  %s", l.clock(events[i].At), c.line(l, &events[i]))
	}
	return out
}

func (c *check) line(l *life, e *history.Event) string {
	failed := e.Has(history.Failed)
	switch e.Kind {
	case history.Published:
		return fmt.Sprintf("published, key %d, number %d", e.Key, e.Seq)
	case history.DeadLettered:
		return "found in the dead-letter destination, at the end"
	case history.Stored:
		return fmt.Sprintf("found in the database, at the end: attempt %d of process %d", e.Attempt, e.Process)
	case history.Asked:
		return fmt.Sprintf("process %d asks: %s, claim %s", e.Process, opName(e.Op), l.name(e.Claim))
	case history.Answered:
		said := "an error, or nothing"
		if !failed {
			said = answerName(e.Status, e.Attempt)
		}
		return fmt.Sprintf("process %d is answered: %s, claim %s: %s", e.Process, opName(e.Op), l.name(e.Claim), said)
	case history.Acked:
		return fmt.Sprintf("process %d acks", e.Process)
	case history.Fault:
		name := fmt.Sprintf("fault %d", e.Op)
		if c.FaultName != nil {
			name = c.FaultName(e.Op)
		}
		if e.Process != 0 {
			name += fmt.Sprintf(" of process %d", e.Process)
		}
		if died, is := c.died[e.Process]; is && died.at == e.Until {
			name += ", which ends it"
		}
		return fmt.Sprintf("-- %s, until %s", name, l.clock(e.Until))
	default:
		ending := ""
		switch {
		case e.Has(history.Together):
			ending = ", together with others"
		case e.Has(history.Unspent):
			ending = ", an error that spends no budget"
		case failed:
			ending = ", an error"
		}
		return fmt.Sprintf("process %d: handler %s, attempt %d%s", e.Process, e.Kind, e.Attempt, ending)
	}
}

// explain says which answer fits no order of the operations, and what it had to be.
func (c *check) explain(l *life, m *model) (at int64, text string) {
	before, odd := m.oddOne()
	if odd == nil {
		return l.events[0].At, "no order of its operations explains all answers"
	}
	answer := odd.answer
	did := fmt.Sprintf("process %d was answered %q when it asked for %s of claim %s", odd.process, answerName(answer.Status, answer.Attempt), opName(answer.Op), l.name(odd.claim))
	var because []string
	for _, s := range before {
		holder, process := m.holder(s.claim)
		live := l.clock(int64(s.renewed.Plus(m.lease)) - c.behind)
		_, reply, _ := m.do(s, odd.request, odd.latest)
		had := answerName(uint8(reply.Status), uint16(reply.Attempt))
		var why string
		switch s.state {
		case store.Running:
			why = fmt.Sprintf("while claim %s of process %d was in progress, live until %s at least", l.name(holder), process, live)
			if s.claim == odd.id {
				why = fmt.Sprintf("while that was in progress, attempt %d", s.attempt)
			}
		case store.Absent:
			why = "when there was no record of it"
		default:
			why = fmt.Sprintf("when it was %s under claim %s of process %d, attempt %d", s.state, l.name(holder), process, s.attempt)
		}
		because = append(because, fmt.Sprintf("%s: it had to be %q", why, had))
		if len(because) == 3 {
			break
		}
	}
	if answer.Status == uint8(store.Claimed) {
		did = fmt.Sprintf("claim %s was granted to process %d at %s, as attempt %d,", l.name(odd.claim), odd.process, l.clock(answer.At), answer.Attempt)
	}
	return answer.At, did + " " + strings.Join(because, "; or ")
}

func (m *model) holder(id int32) (claim uint64, process uint16) {
	for _, r := range m.sent {
		if r.id == id {
			return r.claim, r.process
		}
	}
	return 0, 0
}

func opName(op uint8) string {
	names := [...]string{
		store.Begin: "Begin", store.Commit: "Commit", store.Release: "Release", store.Renew: "Renew", store.Bury: "Bury",
		store.Spend: "Spend", store.Forget: "Forget", store.Inspect: "Inspect", store.Issue: "Issue", store.Check: "Check",
	}
	if int(op) < len(names) && names[op] != "" {
		return names[op]
	}
	return fmt.Sprintf("operation %d", op)
}

func answerName(status uint8, attempt uint16) string {
	names := [...]string{
		store.OK: "ok", store.Claimed: "claimed", store.Duplicate: "done or dead", store.InProgress: "in progress elsewhere", store.NeedAlone: "to be claimed alone",
		store.Superseded: "superseded", store.Unknown: "unknown", store.Conflict: "conflict", store.Lost: "the claim is lost",
	}
	name := fmt.Sprintf("status %d", status)
	if int(status) < len(names) && names[status] != "" {
		name = names[status]
	}
	if attempt > 0 && store.Status(status) == store.Claimed {
		name += fmt.Sprintf(", attempt %d", attempt)
	}
	return name
}
