package idem

// line is where calls stand one behind the other, and which each may leave from its place:
// when thousands of callers are let go at once, none of them looks at the others.
type line struct {
	first, last *call
	length      int
}

// place is where a call stands; a call stands in one line at a time.
type place struct {
	line          *line
	ahead, behind *call
}

func (l *line) add(c *call) {
	c.place = place{line: l, ahead: l.last}
	if l.last == nil {
		l.first = c
	} else {
		l.last.place.behind = c
	}
	l.last = c
	l.length++
}

func (l *line) remove(c *call) {
	p := c.place
	if p.ahead == nil {
		l.first = p.behind
	} else {
		p.ahead.place.behind = p.behind
	}
	if p.behind == nil {
		l.last = p.ahead
	} else {
		p.behind.place.ahead = p.ahead
	}
	c.place = place{}
	l.length--
}
