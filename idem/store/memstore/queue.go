package memstore

// queue is a binary heap of entries, the next to expire first. An entry knows
// its queue and its position, so that any of them can be moved or removed.
type queue struct{ es []*entry }

func (q *queue) first() *entry {
	if len(q.es) == 0 {
		return nil
	}
	return q.es[0]
}

func (q *queue) push(e *entry) {
	e.queue, e.pos = q, len(q.es)
	q.es = append(q.es, e)
	q.up(e.pos)
}

// fix restores the order after e's expiry was changed.
func (q *queue) fix(e *entry) {
	q.up(e.pos)
	q.down(e.pos)
}

func (q *queue) remove(e *entry) {
	i, last := e.pos, len(q.es)-1
	q.swap(i, last)
	q.es[last] = nil
	q.es = q.es[:last]
	if i < last {
		q.fix(q.es[i])
	}
	e.queue = nil
}

func (q *queue) up(i int) {
	for i > 0 {
		parent := (i - 1) / 2
		if q.es[parent].expires <= q.es[i].expires {
			return
		}
		q.swap(i, parent)
		i = parent
	}
}

func (q *queue) down(i int) {
	for {
		child := 2*i + 1
		if child >= len(q.es) {
			return
		}
		if right := child + 1; right < len(q.es) && q.es[right].expires < q.es[child].expires {
			child = right
		}
		if q.es[i].expires <= q.es[child].expires {
			return
		}
		q.swap(i, child)
		i = child
	}
}

func (q *queue) swap(i, j int) {
	q.es[i], q.es[j] = q.es[j], q.es[i]
	q.es[i].pos, q.es[j].pos = i, j
}
