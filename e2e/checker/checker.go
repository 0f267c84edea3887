// Package checker holds the history of a run to the promise.
package checker

import (
	"cmp"
	"maps"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/idemq/idemq/e2e/history"
	"github.com/idemq/idemq/idem/store"
)

// Run is the history of a run, and what it is to be held to. Every token was published at
// least once, by one producer, for one group.
type Run struct {
	Events []history.Event // in any order; Check sorts them

	Ordered       bool          // messages of a key are handled in the order of their publishing
	Transactional bool          // effects are the rows of a database: Stored, not Effect
	Lease         time.Duration // of every claim
	Forgot        []Forgot
}

// Forgot is a store that lost what it had acknowledged since Since, all for zero. It did
// so at some time from At to Until. All are times of [history.Now].
type Forgot struct{ Since, At, Until int64 }

// Window is a reason why an effect may happen again: one of those that the promise names.
type Window uint8

// The windows.
const (
	Died      Window = iota + 1 // the process died between the effect and the record of it
	LeaseLost                   // the lease was lost before the effect was recorded
	Forgotten                   // the store forgot the record
)

var windowNames = [...]string{Died: "process died", LeaseLost: "lease lost", Forgotten: "store forgot"}

// String names the window.
func (w Window) String() string { return windowNames[w] }

// Verdict is what Check found.
type Verdict struct {
	Messages    int // tokens published
	Published   int // copies of them
	Effects     int
	DeadLetters int // copies
	Claims      int // granted
	Takeovers   int // of them, from a claim that had not ended
	Duplicates  int // deliveries that the store said are done
	Undecided   int // messages whose claims were too many to find out whether their answers fit

	Lost             int // messages with neither effect nor dead letter
	InWindow         map[Window]int
	DoubledElsewhere int // effects that happened again, in no window

	// Violations are at most MaxViolations of each rule; Total counts all.
	Violations []Violation
	Total      map[Rule]int
}

// MaxViolations is how many of a rule are kept.
const MaxViolations = 10

// Check holds a run to the promise.
func Check(run Run) Verdict {
	c := &check{Run: &run, offset: clockOffset(run.Events)}
	faults := c.group()
	c.faults(faults)

	workers := runtime.GOMAXPROCS(0)
	verdicts := make([]Verdict, workers)
	var wg sync.WaitGroup
	for w := range workers {
		verdicts[w] = Verdict{InWindow: map[Window]int{}, Total: map[Rule]int{}}
		wg.Go(func() {
			for i := w; i < len(c.tokens); i += workers {
				c.token(c.tokens[i], &verdicts[w])
			}
		})
	}
	wg.Wait()
	v := verdicts[0]
	for i := range verdicts[1:] {
		v.add(&verdicts[1+i])
	}
	if run.Ordered {
		c.order(&v)
	}
	slices.SortStableFunc(v.Violations, func(a, b Violation) int { return cmp.Compare(a.At, b.At) })
	return v
}

func (v *Verdict) add(o *Verdict) {
	v.Messages += o.Messages
	v.Published += o.Published
	v.Effects += o.Effects
	v.DeadLetters += o.DeadLetters
	v.Claims += o.Claims
	v.Takeovers += o.Takeovers
	v.Duplicates += o.Duplicates
	v.Undecided += o.Undecided
	v.Lost += o.Lost
	v.DoubledElsewhere += o.DoubledElsewhere
	for w, n := range o.InWindow {
		v.InWindow[w] += n
	}
	kept := maps.Clone(v.Total)
	for r, n := range o.Total {
		v.Total[r] += n
	}
	for _, x := range o.Violations {
		if kept[x.Rule]++; kept[x.Rule] <= MaxViolations {
			v.Violations = append(v.Violations, x)
		}
	}
}

// check is a Run being checked.
type check struct {
	*Run
	offset int64             // of the store's clock to the histories', at least
	tokens [][]history.Event // by token, each in the order of their times
	died   map[uint16]int64  // since when a process was dead
}

// group sorts the events by token and time, in place, and returns those of no token.
func (c *check) group() (faults []history.Event) {
	isFault := func(e *history.Event) int {
		if e.Kind == history.Fault {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(c.Events, func(a, b history.Event) int {
		return cmp.Or(cmp.Compare(isFault(&a), isFault(&b)), cmp.Compare(a.Token, b.Token), cmp.Compare(a.At, b.At))
	})
	first := 0
	for first < len(c.Events) && c.Events[first].Kind == history.Fault {
		first++
	}
	rest := c.Events[first:]
	for len(rest) > 0 {
		n := 1
		for n < len(rest) && rest[n].Token == rest[0].Token {
			n++
		}
		c.tokens = append(c.tokens, rest[:n:n])
		rest = rest[n:]
	}
	return c.Events[:first]
}

// faults notes when processes died: those are the faults of a process with an end that
// is not followed by anything that the process did.
func (c *check) faults(faults []history.Event) {
	last := map[uint16]int64{}
	for i := range c.Events {
		if e := &c.Events[i]; e.Kind >= history.Asked && e.Kind <= history.Acked {
			last[e.Process] = max(last[e.Process], e.At)
		}
	}
	c.died = map[uint16]int64{}
	for i := range faults {
		if f := &faults[i]; f.Process != 0 && f.Until >= last[f.Process] {
			c.died[f.Process] = f.Until
		}
	}
}

// clockOffset is a lower bound of what the store's clock is ahead of the histories': each
// answer's time on the store's clock was before the answer came.
func clockOffset(events []history.Event) (offset int64) {
	known := false
	for i := range events {
		e := &events[i]
		if e.Kind != history.Answered || e.Store == 0 || e.Flags&history.Failed != 0 {
			continue
		}
		if o := e.Store - e.At; !known || o > offset {
			known, offset = true, o
		}
	}
	return offset
}

// forgetsBetween reports whether what the store acknowledged at a time may have been
// forgotten before a later one.
func (c *check) forgetsBetween(acknowledged, later int64) bool {
	return slices.ContainsFunc(c.Forgot, func(f Forgot) bool {
		return f.Since <= acknowledged && acknowledged <= f.Until && f.At <= later
	})
}

// answeredAs reports whether an event is an answer of the store.
func answeredAs(e *history.Event, kind store.Kind, status store.Status) bool {
	return e.Kind == history.Answered && !e.Has(history.Failed) && store.Kind(e.Op) == kind && store.Status(e.Status) == status
}
