package model

import (
	"runtime"
	"slices"
	"sync"
	"time"
)

// Limits bound an exploration. Zero values are no bound, and as many workers as there are
// processors.
type Limits struct {
	States   int
	Workers  int
	AtBreach bool // stop at the depth where something is found that the promise does not allow
}

// Finding is something that the promise does not allow, or a window that it names.
type Finding struct {
	What  string
	Steps int      // how many lead there
	Trace []string // the shortest way, a step a line
}

// Result is what an exploration found.
type Result struct {
	Name     string
	States   int
	Steps    int
	Depth    int
	Complete bool // every state was explored
	Breaches []Finding
	Windows  []Finding
	Took     time.Duration
}

// explorer is a breadth-first search. The numbers of states are the order in which they
// are found, which is the same each time.
type explorer struct {
	c    *Config
	h    hasher
	ids  map[key]int32
	keys []key

	parent   []int32
	calm     []int32 // the ends of calm steps, state by state
	calmFrom []int   // where those of a state begin
	drained  []int32
	steps    int

	breaches, windows map[string]*found
}

// found is where something was found first, and how often.
type found struct {
	from  int32
	what  label
	here  bool // in the state itself
	steps int
}

// chunk is what a worker makes of a part of the frontier.
type chunk struct {
	states []State
	first  int32
	out    []made
	ends   []int // of each state's steps in out
	own    []noted
	drain  []bool
}

// made is a step's end. The state is nil where it is known.
type made struct {
	key   key
	state *State
	label label
	calm  bool
	noted
}

type noted struct{ breaches, windows []string }

const chunkSize = 512

// Explore goes through the states of c, breadth first, until it has been through all, or
// through as many as the limits say. Each state that is not drained has to lead to one
// that is, by calm steps. Progress, if it is not nil, is called now and then.
func Explore(c *Config, limits Limits, progress func(states, depth int)) *Result {
	began := time.Now()
	c = c.prepared()
	e := &explorer{
		c: c, h: newHasher(), ids: make(map[key]int32),
		breaches: make(map[string]*found), windows: make(map[string]*found),
	}
	first := c.initial()
	e.number(e.h.key(c, first), -1)
	r := &Result{Name: c.Name, Complete: true}
	frontier := []State{*first}
	for len(frontier) > 0 && r.Complete {
		r.Depth++
		frontier, r.Complete = e.level(frontier, limits)
		if limits.AtBreach && len(e.breaches) > 0 {
			r.Complete = false
		}
		if progress != nil {
			progress(len(e.keys), r.Depth)
		}
	}
	explored := len(e.calmFrom)
	e.calmFrom = append(e.calmFrom, len(e.calm))
	e.stuck(explored)
	r.States, r.Steps = len(e.keys), e.steps
	r.Breaches, r.Windows = e.report(e.breaches), e.report(e.windows)
	r.Took = time.Since(began)
	return r
}

func (e *explorer) number(k key, parent int32) (id int32, isNew bool) {
	if id, known := e.ids[k]; known {
		return id, false
	}
	id = int32(len(e.keys))
	e.ids[k] = id
	e.keys = append(e.keys, k)
	e.parent = append(e.parent, parent)
	return id, true
}

// level expands a frontier; not complete if it came to the limit.
func (e *explorer) level(frontier []State, limits Limits) (next []State, complete bool) {
	workers := limits.Workers
	if workers == 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	base := int32(len(e.calmFrom))
	for len(frontier) > 0 {
		if limits.States > 0 && len(e.keys) >= limits.States {
			return nil, false
		}
		var chunks []*chunk
		for range workers {
			if n := min(chunkSize, len(frontier)); n > 0 {
				chunks = append(chunks, &chunk{states: frontier[:n], first: base})
				frontier, base = frontier[n:], base+int32(n)
			}
		}
		var wg sync.WaitGroup
		for _, ch := range chunks {
			wg.Go(func() { e.expand(ch) })
		}
		wg.Wait()
		for _, ch := range chunks {
			next = e.merge(ch, next)
		}
	}
	return next, true
}

// expand makes the steps of a chunk. What is known is only read meanwhile.
func (e *explorer) expand(ch *chunk) {
	w := newWorld(e.c, nil)
	w.emit = func(n *State, l label, calm bool) {
		m := made{key: e.h.key(e.c, n), label: l, calm: calm, noted: w.noted()}
		if _, known := e.ids[m.key]; !known {
			s := *n
			m.state = &s
		}
		ch.out = append(ch.out, m)
	}
	for i := range ch.states {
		s := &ch.states[i]
		w.breaches, w.windows = w.breaches[:0], w.windows[:0]
		ch.drain = append(ch.drain, w.check(s))
		ch.own = append(ch.own, w.noted())
		w.successors(s)
		ch.ends = append(ch.ends, len(ch.out))
	}
}

func (w *world) noted() noted {
	return noted{slices.Clone(w.breaches), slices.Clone(w.windows)}
}

func (e *explorer) merge(ch *chunk, next []State) []State {
	begin := 0
	for i, end := range ch.ends {
		from := ch.first + int32(i)
		e.calmFrom = append(e.calmFrom, len(e.calm))
		e.note(&ch.own[i], from, label{}, true)
		if ch.drain[i] {
			e.drained = append(e.drained, from)
		}
		for k := begin; k < end; k++ {
			m := &ch.out[k]
			id, isNew := e.number(m.key, from)
			if isNew {
				next = append(next, *m.state)
			}
			if m.calm {
				e.calm = append(e.calm, id)
			}
			e.note(&m.noted, from, m.label, false)
		}
		e.steps += end - begin
		begin = end
	}
	return next
}

func (e *explorer) note(n *noted, from int32, l label, here bool) {
	add := func(all map[string]*found, what string) {
		f := all[what]
		if f == nil {
			f = &found{from: from, what: l, here: here}
			all[what] = f
		}
		f.steps++
	}
	for _, b := range n.breaches {
		add(e.breaches, b)
	}
	for _, w := range n.windows {
		add(e.windows, w)
	}
}

const stuck = "stuck: no way, without faults, to where every message is handled"

// stuck looks for states from which nothing drains. States that were not explored count
// as draining.
func (e *explorer) stuck(explored int) {
	n := len(e.keys)
	from := make([]int, n+2) // the beginnings of the steps to each state, reversed
	for _, to := range e.calm {
		from[to+2]++
	}
	for i := 2; i < len(from); i++ {
		from[i] += from[i-1]
	}
	steps := make([]int32, len(e.calm))
	for i := range explored {
		for _, to := range e.calm[e.calmFrom[i]:e.calmFrom[i+1]] {
			steps[from[to+1]] = int32(i)
			from[to+1]++
		}
	}
	good := make([]bool, n)
	todo := slices.Clone(e.drained)
	for i := explored; i < n; i++ {
		todo = append(todo, int32(i))
	}
	for _, id := range todo {
		good[id] = true
	}
	for len(todo) > 0 {
		id := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for _, f := range steps[from[id]:from[id+1]] {
			if !good[f] {
				good[f] = true
				todo = append(todo, f)
			}
		}
	}
	for i := range explored {
		if !good[i] {
			e.note(&noted{breaches: []string{stuck}}, int32(i), label{}, true)
		}
	}
}

// report orders what was found by name, each with its trace.
func (e *explorer) report(all map[string]*found) []Finding {
	var out []Finding
	for what, f := range all {
		out = append(out, Finding{What: what, Steps: f.steps, Trace: e.trace(f)})
	}
	slices.SortFunc(out, func(a, b Finding) int {
		if a.What < b.What {
			return -1
		}
		return 1
	})
	return out
}

// trace goes the way to a state again, and names its steps. Claims have the numbers of
// that way here, and are not renumbered.
func (e *explorer) trace(f *found) []string {
	var path []int32
	for id := f.from; id > 0; id = e.parent[id] {
		path = append(path, id)
	}
	s := e.c.initial()
	var lines []string
	for _, id := range slices.Backward(path) {
		var then *State
		w := newWorld(e.c, nil)
		w.emit = func(n *State, l label, _ bool) {
			if then != nil {
				return
			}
			same := *n
			if e.h.key(e.c, &same) != e.keys[id] {
				return
			}
			next := *n
			next.arrange(e.c)
			then = &next
			lines = append(lines, l.String())
		}
		w.successors(s)
		s = then
	}
	if f.here {
		return lines
	}
	w := newWorld(e.c, nil)
	last := ""
	w.emit = func(_ *State, l label, _ bool) {
		if last == "" && l.what == f.what.what && (slices.ContainsFunc(w.breaches, func(b string) bool { return e.breaches[b] == f }) ||
			slices.ContainsFunc(w.windows, func(b string) bool { return e.windows[b] == f })) {
			last = l.String()
		}
	}
	w.successors(s)
	return append(lines, last)
}
