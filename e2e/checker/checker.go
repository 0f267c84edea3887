// Package checker holds the history of a run to the promise.
package checker

import (
	"cmp"
	"maps"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/idemq/idemq/e2e/history"
	"github.com/idemq/idemq/idem/store"
)

// Run is the history of a run, and what it is to be held to. Every token was published at
// least once, by one producer, for one group.
type Run struct {
	Events []history.Event // in any order; Check sorts them by their times

	Ordered       bool             // messages of a key are handled in the order of their publishing
	Transactional bool             // effects are the rows of a database: Stored, not Effect
	NoDoneDetails bool             // of a done token the store knows only that it is done: see store.Capabilities
	Lease         time.Duration    // of every claim
	Budget        int              // failures that a message has before it is dead-lettered; zero: not looked at
	Faults        map[uint8]Effect // by kind; what is missing excuses nothing
	Forgot        []Forgot

	FaultName func(op uint8) string // for people; nil: the numbers
}

// Effect is what a kind of fault can do to a claim.
type Effect uint8

// The effects.
const (
	Ends      Effect = 1 << iota // it ends a process at once, as SIGKILL does
	Drains                       // it ends a process that finishes what it has begun
	Holds                        // it stops a process for a while, which cannot renew its leases
	HitsStore                    // it hits the store, or the way to it
)

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
	Together    int // runs that were one with those of other messages: a handler of several
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
	c := &check{Run: &run}
	byTime := func(a, b history.Event) int { return cmp.Compare(a.At, b.At) }
	if !slices.IsSortedFunc(c.Events, byTime) {
		slices.SortStableFunc(c.Events, byTime)
	}
	c.group()
	c.findFaults()
	c.readClocks()

	parts := make([]part, runtime.GOMAXPROCS(0))
	var next atomic.Int64
	var wg sync.WaitGroup
	for i := range parts {
		p := &parts[i]
		p.verdict = Verdict{InWindow: map[Window]int{}, Total: map[Rule]int{}}
		wg.Go(func() {
			var l life
			for n := int(next.Add(1)) - 1; n < c.tokens(); n = int(next.Add(1)) - 1 {
				c.live(n, &l)
				c.token(&l, &p.verdict)
				if f, is := c.first(n, &l); is {
					p.firsts = append(p.firsts, f)
				}
			}
		})
	}
	wg.Wait()
	v, firsts := parts[0].verdict, parts[0].firsts
	for i := range parts[1:] {
		v.add(&parts[1+i].verdict)
		firsts = append(firsts, parts[1+i].firsts...)
	}
	c.order(firsts, &v)
	slices.SortStableFunc(v.Violations, func(a, b Violation) int { return cmp.Compare(a.At, b.At) })
	return v
}

// part is what one goroutine found.
type part struct {
	verdict Verdict
	firsts  []first
}

func (v *Verdict) add(o *Verdict) {
	v.Messages += o.Messages
	v.Published += o.Published
	v.Effects += o.Effects
	v.DeadLetters += o.DeadLetters
	v.Claims += o.Claims
	v.Takeovers += o.Takeovers
	v.Duplicates += o.Duplicates
	v.Together += o.Together
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
	byToken []uint32 // indexes of events, by token, each token's in the order of their times
	begins  []int    // in byToken, of each token; and its end

	faults []history.Event
	died   map[uint16]death
	pauses map[uint16][]span // when a process stood still

	behind, ahead int64 // what the store's clock is ahead of the histories', at least and at most
}

// death is when a process was dead, and whether it had time to finish what it had begun.
type death struct {
	at     int64
	killed bool
}

// span is a time of [history.Now], and another.
type span struct{ from, to int64 }

// settling is how long a stop may take to show.
const settling = int64(50 * time.Millisecond)

func (c *check) tokens() int { return len(c.begins) - 1 }

// live gathers what is known of a token.
func (c *check) live(n int, l *life) {
	l.reset()
	for _, i := range c.byToken[c.begins[n]:c.begins[n+1]] {
		l.events = append(l.events, c.Events[i])
	}
	l.sortOut()
}

// group sorts the events by token, without moving them.
func (c *check) group() {
	order := make([]uint32, 0, len(c.Events))
	for i := range c.Events {
		if c.Events[i].Kind != history.Fault {
			order = append(order, uint32(i))
		}
	}
	const bits = 16
	to := make([]uint32, len(order))
	next := make([]uint32, 1<<bits+1)
	for shift := 0; shift < 32; shift += bits { // a radix sort: it is stable
		clear(next)
		digit := func(i uint32) uint32 { return c.Events[i].Token >> shift & (1<<bits - 1) }
		for _, i := range order {
			next[digit(i)+1]++
		}
		for d := range next[1:] {
			next[d+1] += next[d]
		}
		for _, i := range order {
			d := digit(i)
			to[next[d]] = i
			next[d]++
		}
		order, to = to, order
	}
	for n, i := range order {
		if n == 0 || c.Events[order[n-1]].Token != c.Events[i].Token {
			c.begins = append(c.begins, n)
		}
	}
	c.byToken, c.begins = order, append(c.begins, len(order))
}

// findFaults notes when processes died: those are the faults of a process with an end
// that is not followed by anything that the process did. And when they stood still: they
// did nothing for the time of a fault.
func (c *check) findFaults() {
	last := map[uint16]int64{}
	still := map[uint16][]span{}
	for i := range c.Events {
		if e := &c.Events[i]; e.Kind == history.Fault {
			c.faults = append(c.faults, *e)
			if e.Process != 0 && e.Until-e.At > 3*settling {
				still[e.Process] = append(still[e.Process], span{e.At, e.Until})
			}
		}
	}
	for i := range c.Events {
		e := &c.Events[i]
		if e.Kind < history.Asked || e.Kind > history.Acked {
			continue
		}
		last[e.Process] = max(last[e.Process], e.At)
		if s := still[e.Process]; len(s) > 0 {
			still[e.Process] = slices.DeleteFunc(s, func(s span) bool { return s.from+settling < e.At && e.At < s.to-settling })
		}
	}
	c.pauses = still
	c.died = map[uint16]death{}
	for i := range c.faults {
		f := &c.faults[i]
		if does := c.Faults[f.Op]; does&(Ends|Drains) != 0 && f.Process != 0 && f.Until >= last[f.Process] {
			c.died[f.Process] = death{f.Until, does&Ends != 0 || c.died[f.Process].killed}
		}
	}
}

// aftermath is how long what a fault of the store has broken may go on: connections are made
// anew, and waits between tries have grown.
const aftermath = int64(5 * time.Second)

// storeHit reports whether a fault of the store may show in a time.
func (c *check) storeHit(in span) bool {
	return slices.ContainsFunc(c.faults, func(f history.Event) bool {
		return c.Faults[f.Op]&HitsStore != 0 && f.At <= in.to && in.from <= f.Until+aftermath
	})
}

// stood reports whether a process was stopped in a time.
func (c *check) stood(process uint16, in span) bool {
	return slices.ContainsFunc(c.faults, func(f history.Event) bool {
		return c.Faults[f.Op]&Holds != 0 && f.Process == process && f.At <= in.to && in.from <= f.Until
	})
}

// readClocks finds how far the store's clock is ahead: what it shows in an answer was
// between the question and the answer.
func (c *check) readClocks() {
	type question struct {
		process uint16
		op      uint8
		claim   uint64
	}
	known, asked := false, map[question]int64{}
	for i := range c.Events {
		e := &c.Events[i]
		q := question{e.Process, e.Op, e.Claim}
		switch e.Kind {
		case history.Asked:
			if _, is := asked[q]; !is {
				asked[q] = e.At
			}
		case history.Answered:
			from, is := asked[q]
			delete(asked, q)
			if !is || e.Has(history.Failed) || e.Store == 0 {
				continue
			}
			behind, ahead := e.Store-e.At, e.Store-from
			if !known {
				known, c.behind, c.ahead = true, behind, ahead
			}
			c.behind, c.ahead = max(c.behind, behind), min(c.ahead, ahead)
		}
	}
}

// forgets reports whether what was asked for and acknowledged in a time may have been
// forgotten before a later one.
func (c *check) forgets(acknowledged span, later int64) bool {
	return slices.ContainsFunc(c.Forgot, func(f Forgot) bool {
		return f.Since <= acknowledged.to && acknowledged.from <= f.Until && f.At <= later
	})
}

// answeredAs reports whether an event is an answer of the store.
func answeredAs(e *history.Event, kind store.Kind, status store.Status) bool {
	return e.Kind == history.Answered && !e.Has(history.Failed) && store.Kind(e.Op) == kind && store.Status(e.Status) == status
}
