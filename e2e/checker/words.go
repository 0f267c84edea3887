package checker

import (
	"fmt"
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
	ClaimRanTwice          Rule = "one claim ran twice"
	OverlapInProcess       Rule = "two runs at a time in one process"
	AckedWithoutCause      Rule = "acked without cause"
	AttemptRepeated        Rule = "attempt number given twice"
	NotLinearizable        Rule = "the store's answers fit no order of its operations"
	OutOfOrder             Rule = "out of order"
)

// Violation is a breach of a rule by one token.
type Violation struct {
	Rule    Rule
	Token   uint32
	At      int64 // of history.Now
	Text    string
	History []string // of the token, a line each
}

// String is the whole of it, on several lines.
func (x Violation) String() string {
	return fmt.Sprintf("%s: token %d: %s\n\t%s", x.Rule, x.Token, x.Text, strings.Join(x.History, "\n\t"))
}

func (v *Verdict) violate(rule Rule, l *life, at int64, format string, args ...any) {
	v.Total[rule]++
	if v.Total[rule] > MaxViolations {
		return
	}
	v.Violations = append(v.Violations, Violation{Rule: rule, Token: l.token, At: at, Text: fmt.Sprintf(format, args...), History: l.lines()})
}

func span(ns int64) string { return time.Duration(ns).Round(time.Microsecond).String() }

// lines are a token's history in words; times count from its first event, claims are
// lettered in the order of their appearance.
func (l *life) lines() []string {
	names := map[uint64]string{}
	claim := func(id uint64) string {
		if id == 0 {
			return ""
		}
		if names[id] == "" {
			names[id] = letters(len(names))
		}
		return " claim " + names[id]
	}
	out := make([]string, len(l.events))
	for i := range l.events {
		e := &l.events[i]
		var b strings.Builder
		fmt.Fprintf(&b, "%12.6f s  ", time.Duration(e.At-l.events[0].At).Seconds())
		switch e.Kind {
		case history.Published:
			fmt.Fprintf(&b, "published, key %d, number %d", e.Key, e.Seq)
		case history.DeadLettered:
			b.WriteString("found in the dead-letter destination, at the end")
		case history.Stored:
			fmt.Fprintf(&b, "found in the database, at the end: attempt %d of process %d", e.Attempt, e.Process)
		case history.Asked:
			fmt.Fprintf(&b, "process %d asks: %s%s", e.Process, opName(e.Op), claim(e.Claim))
		case history.Answered:
			fmt.Fprintf(&b, "process %d is answered: %s%s: ", e.Process, opName(e.Op), claim(e.Claim))
			if e.Has(history.Failed) {
				b.WriteString("an error")
				break
			}
			b.WriteString(statusName(e.Status))
			if e.Attempt > 0 {
				fmt.Fprintf(&b, ", attempt %d", e.Attempt)
			}
		case history.Acked:
			fmt.Fprintf(&b, "process %d acks", e.Process)
		default:
			fmt.Fprintf(&b, "process %d: handler %s, attempt %d", e.Process, e.Kind, e.Attempt)
			if e.Has(history.Failed) {
				b.WriteString(", an error")
			}
		}
		out[i] = b.String()
	}
	return out
}

func letters(n int) string {
	if n < 26 {
		return string(rune('A' + n))
	}
	return letters(n/26-1) + string(rune('A'+n%26))
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

func statusName(status uint8) string {
	names := [...]string{
		store.OK: "ok", store.Claimed: "claimed", store.Duplicate: "done or dead", store.InProgress: "in progress elsewhere", store.NeedAlone: "to be claimed alone",
		store.Superseded: "superseded", store.Unknown: "unknown", store.Conflict: "conflict", store.Lost: "the claim is lost",
	}
	if int(status) < len(names) && names[status] != "" {
		return names[status]
	}
	return fmt.Sprintf("status %d", status)
}
