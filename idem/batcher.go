package idem

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/idemq/idemq/idem/store"
)

// maxBatch is how many calls a batch takes. Redis spends less on a claim and its completion in
// batches of 256 operations than in larger ones: 4.9 µs, and 5.4 in batches of 512
// (BenchmarkBeginCommit, batch=128 and batch=256, medians of four runs).
const maxBatch = 256

// While the store does not answer, patient calls are sent again together, after a
// wait that doubles between these two.
const (
	firstRetry = 50 * time.Millisecond
	lastRetry  = 2 * time.Second
)

// call is an operation on its way to the store.
type call struct {
	before *store.Op // executed just before op, in the same trip
	op     store.Op

	// A patient call is sent again until the store answers. It is answered with
	// the store's error when until has passed, or when the store has been out of
	// reach (not: refused) for failOpen; zero values are no limit.
	patient  bool
	until    time.Time
	failOpen time.Duration

	age uint64 // of the near cache, when the call was made

	to  receiver // told once, without locks held, unless the call is abandoned; nil: nobody
	own wait     // in the first of a caller's calls: what the caller waits for

	// The answer; written before the receiver is told.
	reply store.Reply
	now   time.Time // the store's clock
	sent  time.Time // this process's clock, before it was sent last
	err   error

	// Guarded by the batcher's mutex.
	place     place // where it waits to be sent, if it does
	submitted bool
	leads     bool // the first of those whose answers a caller waits for; see share
	everSent  bool
	resent    bool // an earlier try may have been executed
	finished  bool
	abandoned bool
	crowded   bool      // waited in full
	apart     bool      // waits in part, and travels apart from the others
	away      time.Time // since when its part has been out of reach; zero: it refused
}

// receiver is told of answers.
type receiver interface{ answered(c *call) }

func (c *call) answer() {
	if c.to != nil {
		c.to.answered(c)
	}
}

// batcher sends calls to the store: many in one trip, and again while the store
// does not answer. While nothing is under way it has no goroutine.
type batcher struct {
	core  *core
	yield func() // lets other goroutines run: runtime.Gosched

	mu       sync.Mutex
	queue    queue     // to be sent next
	apart    queue     // the same, of those that wait for a part: others must not wait with them
	flights  int       // under way, or about to be
	boarding int       // those of them that are about to take what is queued
	aboard   int       // calls under way
	distance distance  // of the store
	probing  bool      // one of the flights carries calls that travel apart
	slow     time.Time // when a caller's own trip took too long
	outage   outage
	full     outage // the store answers, and has no room for claims
	part     outage // the store answers, but for some records
}

// Calls of a lower class are sent first: what ends a claim, then what keeps one, then
// what asks for more. Behind a crowd of new claims the held ones would run out.
const (
	ending = iota
	keeping
	asking
	classes
)

// queue has a line of calls for each class.
type queue [classes]line

func (q *queue) add(c *call) { q[c.class()].add(c) }

func (q *queue) length() (calls int) {
	for class := range q {
		calls += q[class].length
	}
	return calls
}

func (c *call) class() int {
	switch c.op.Kind {
	case store.Commit, store.Release, store.Bury:
		return ending
	case store.Renew:
		return keeping
	}
	return asking
}

// enqueue is called with mu held.
func (b *batcher) enqueue(c *call) {
	if c.apart {
		b.apart.add(c)
		return
	}
	b.queue.add(c)
}

// mayProbe reports whether calls that travel apart are to be sent, with mu held.
func (b *batcher) mayProbe() bool { return b.apart.length() > 0 && !b.probing }

// dequeue appends the next calls to batch, with mu held. What travels apart is sent now and
// then only, and one flight at a time.
func (b *batcher) dequeue(batch []*call) (_ []*call, probe bool) {
	from, share, callers := &b.queue, b.share(), 0
	if probe = b.mayProbe(); probe {
		b.probing = true
		from, share = &b.apart, maxBatch
	}
	for class := range from {
		for c := from[class].first; c != nil && len(batch) < maxBatch; c = from[class].first {
			if c.leads {
				if callers == share {
					break
				}
				callers++
			}
			from[class].remove(c)
			batch = append(batch, c)
		}
	}
	return batch, probe
}

// outage is a time in which the store does not answer as it should.
type outage struct {
	stalled  line // wait for the next try
	failures int
	since    time.Time
	away     time.Time // since when every try found the store out of reach; zero: the last one did not
	last     time.Time
	err      error
	timer    *time.Timer
}

func (o *outage) wait() time.Duration {
	return min(firstRetry<<min(max(o.failures-1, 0), 10), lastRetry)
}

// fail notes the failure of what was sent at some time. Those that were under way together
// are one.
func (o *outage) fail(now, sent time.Time, err error) (first bool) {
	if first = o.failures == 0; first {
		o.since = now
	}
	if first || sent.After(o.last) {
		o.failures++
	}
	o.last, o.err = now, err
	switch {
	case !errors.Is(err, store.ErrUnavailable):
		o.away = time.Time{}
	case first || o.away.IsZero():
		o.away = now
	}
	return first
}

// givesUp reports whether c has waited long enough.
func (o *outage) givesUp(c *call, now time.Time) bool {
	switch {
	case !c.patient:
		return true
	case !c.until.IsZero() && !now.Before(c.until):
		return true
	}
	away := o.away
	if c.apart {
		away = c.away
	}
	return c.failOpen > 0 && !away.IsZero() && now.Sub(away) >= c.failOpen
}

// submit sends calls on their way.
func (b *batcher) submit(calls ...*call) {
	b.mu.Lock()
	given := b.accept(calls)
	b.launch()
	b.mu.Unlock()
	b.refuse(given)
}

// accept queues calls, with mu held, and returns those that have an answer already.
func (b *batcher) accept(calls []*call) (given []*call) {
	for _, c := range calls {
		c.submitted = true
	}
	if b.outage.failures == 0 {
		for _, c := range calls {
			b.enqueue(c)
		}
		return nil
	}
	now := time.Now()
	for _, c := range calls {
		switch {
		case !c.patient || b.outage.stalled.length == 0 && now.Sub(b.outage.last) >= b.outage.wait():
			b.enqueue(c)
		case b.outage.givesUp(c, now):
			c.err, c.finished = b.outage.err, true
			given = append(given, c)
		default:
			b.stall(&b.outage, c)
		}
	}
	return given
}

// refuse hands out the answers of calls that were not sent.
func (b *batcher) refuse(given []*call) {
	for _, c := range given {
		if c.before != nil {
			b.giveBack([]*call{c})
		}
		c.answer()
	}
}

// stall keeps c for the next try and sees to it that there is one.
func (b *batcher) stall(o *outage, c *call) {
	c.leads = false // who waited for the store travel together, for fewer tries
	o.stalled.add(c)
	if o.timer == nil {
		d := o.wait()
		d += rand.N(d/4 + 1)
		o.timer = time.AfterFunc(d, func() {
			b.mu.Lock()
			b.resume(o)
			b.mu.Unlock()
		})
	}
}

// resume sends again what was stalled.
func (b *batcher) resume(o *outage) {
	if o.timer != nil {
		o.timer.Stop()
		o.timer = nil
	}
	for c := o.stalled.first; c != nil; c = o.stalled.first {
		o.stalled.remove(c)
		b.enqueue(c)
	}
	b.launch()
}

// flyHere sends one batch of the caller's own calls, and leaves what queued meanwhile to
// others. If it takes too long for a caller who may be let go, the calls are sent again.
func (b *batcher) flyHere(ctx context.Context, f *flight, mayGo bool) {
	late, landed := false, false
	defer func() { // also where the store's driver ends the goroutine
		b.mu.Lock()
		b.flights--
		if !landed {
			b.disembark(f)
		}
		if late {
			b.slow = time.Now()
			for _, c := range f.calls {
				b.enqueue(c)
			}
		}
		b.launch()
		b.mu.Unlock()
	}()
	err := b.travel(ctx, f)
	if late = mayGo && err != nil && ctx.Err() != nil; !late {
		landed = true
		b.land(f, err)
	}
}

// board takes what is queued, with mu held.
func (b *batcher) board(f *flight) {
	f.calls, f.probe = b.dequeue(f.calls[:0])
	b.aboard += len(f.calls)
	for _, c := range f.calls {
		c.resent, c.everSent = c.everSent, true
	}
}

// disembark is for the calls of a flight that is over, with mu held.
func (b *batcher) disembark(f *flight) {
	b.aboard -= len(f.calls)
	if f.probe {
		b.probing = false
	}
}

// travel makes one trip.
func (b *batcher) travel(ctx context.Context, f *flight) error {
	f.batch = store.Batch{Ops: slices.Grow(f.batch.Ops[:0], len(f.calls)), Replies: f.batch.Replies}
	for _, c := range f.calls {
		if c.before != nil {
			f.batch.Ops = append(f.batch.Ops, *c.before)
		}
		f.batch.Ops = append(f.batch.Ops, c.op)
	}
	f.sent = time.Now()
	return b.core.apply(ctx, &f.batch)
}

// landing is what comes of one trip.
type landing struct {
	f   *flight
	err error // of the whole trip
	now time.Time

	events          []Event
	given, unwanted []*call // to be answered; claims to be given back
	someApart       bool    // some calls wait for a part of the store
	apartAnswered   bool    // some that did are answered
}

// land hands out the answers of a batch, or keeps its calls for another try.
func (b *batcher) land(f *flight, err error) {
	l := landing{f: f, err: err, now: time.Now(), given: f.given[:0], unwanted: f.unwanted[:0]}

	b.mu.Lock()
	b.disembark(f)
	b.noteTrip(&l)
	next := 0
	for _, c := range f.calls {
		switch {
		case err != nil && f.probe:
			b.waitApart(&l, c, err)
			continue
		case err != nil:
			b.noAnswer(&l, &b.outage, c, err)
			continue
		}
		if c.before != nil {
			next++
		}
		b.take(&l, c, &f.batch.Replies[next])
		next++
	}
	b.notePart(&l)
	if err == nil && !f.probe && !l.someApart {
		b.distance.add(l.now, l.now.Sub(f.sent))
	}
	b.mu.Unlock()

	for _, e := range l.events {
		b.core.opts.observers.emit(e)
	}
	b.giveBack(l.unwanted)
	for _, c := range l.given {
		c.answer() // and it is the caller's again
	}
	clear(l.given)
	clear(l.unwanted)
	f.given, f.unwanted = l.given, l.unwanted
}

// noteTrip looks at the trip as a whole, with mu held.
func (b *batcher) noteTrip(l *landing) {
	switch {
	case l.err != nil && !l.f.probe:
		b.down(l, &b.outage, l.err)
	case l.err == nil:
		if b.outage.failures > 0 {
			b.up(l, &b.outage)
		}
		if notice, is := b.core.noticed(&l.f.batch); is {
			l.events = append(l.events, notice)
		}
	}
}

// down notes a failure, with mu held.
func (b *batcher) down(l *landing, o *outage, err error) {
	if o.fail(l.now, l.f.sent, err) {
		l.events = append(l.events, Event{Kind: EventStoreDown, Err: err})
	}
}

// up ends an outage, with mu held.
func (b *batcher) up(l *landing, o *outage) {
	l.events = append(l.events, Event{Kind: EventStoreUp, Wait: l.now.Sub(o.since)})
	o.failures = 0
	b.resume(o)
}

// noAnswer keeps c for another try, if anybody still waits for it, with mu held.
func (b *batcher) noAnswer(l *landing, o *outage, c *call, err error) {
	switch {
	case c.abandoned:
		l.unwanted = append(l.unwanted, c)
	case o.givesUp(c, l.now):
		c.err, c.finished = err, true
		l.given, l.unwanted = append(l.given, c), append(l.unwanted, c)
	default:
		b.stall(o, c)
	}
}

// waitApart is noAnswer where a part of the store gave none, with mu held.
func (b *batcher) waitApart(l *landing, c *call, err error) {
	if !l.someApart {
		b.down(l, &b.part, err)
	}
	switch {
	case !errors.Is(err, store.ErrUnavailable):
		c.away = time.Time{}
	case c.away.IsZero():
		c.away = l.now
	}
	l.someApart, c.apart = true, true
	b.noAnswer(l, &b.part, c, err)
}

// take gives c its answer, with mu held.
func (b *batcher) take(l *landing, c *call, reply *store.Reply) {
	if errors.Is(reply.Err, store.ErrUnavailable) || errors.Is(reply.Err, store.ErrRefused) {
		b.waitApart(l, c, reply.Err)
		return
	}
	l.apartAnswered = l.apartAnswered || c.apart
	if errors.Is(reply.Err, store.ErrFull) {
		b.down(l, &b.full, reply.Err)
		if !c.abandoned && !b.full.givesUp(c, l.now) {
			c.crowded = true
			b.stall(&b.full, c)
			return
		}
	} else if b.full.failures > 0 && reply.Status == store.Claimed && (c.crowded || b.full.stalled.length == 0) {
		b.up(l, &b.full)
	}
	if c.abandoned {
		if reply.Status == store.Claimed {
			l.unwanted = append(l.unwanted, c)
		}
		return
	}
	c.reply, c.now, c.sent, c.err, c.finished = *reply, l.f.batch.Now, l.f.sent, reply.Err, true
	if reply.Status == store.Claimed && c.op.Kind == store.Begin && b.core.dataLoss.Load() {
		c.err = ErrDataLoss // it may have been done, before the store forgot; what is spent stays spent
		l.unwanted = append(l.unwanted, c)
	}
	l.given = append(l.given, c)
}

// notePart ends the outage of a part of the store, with mu held: when one of the calls that
// wait for it was answered, or none has failed for long.
func (b *batcher) notePart(l *landing) {
	if l.err != nil || l.someApart || b.part.failures == 0 {
		return
	}
	if l.apartAnswered || l.now.Sub(b.part.last) > max(b.core.opts.lease, 2*lastRetry) {
		b.up(l, &b.part)
	}
}

// wait is for the answers to some calls.
type wait struct {
	left atomic.Int64
	done chan struct{}
}

func (w *wait) answered(*call) {
	if w.left.Add(-1) == 0 {
		close(w.done)
	}
}

// do submits calls and waits until all are answered, which it reports: they are the
// caller's alone again then. Or ctx ends: those without an answer carry its error, and a
// claim that the store makes for one of them later is given back.
//
// Where nothing is under way the trip is made here, as far as that keeps nobody: a
// goroutine for it costs two wake-ups of threads.
func (b *batcher) do(ctx context.Context, calls ...*call) (answered bool) {
	if err := causeOf(ctx); err != nil {
		b.abandon(calls, err)
		return false
	}
	w := &calls[0].own
	w.done = make(chan struct{})
	w.left.Store(int64(len(calls)))
	for _, c := range calls {
		c.to = w
	}
	calls[0].leads = true
	var own *flight
	mayGo := ctx.Done() != nil
	b.mu.Lock()
	given := b.accept(calls)
	if b.flights == 0 && b.mayFly(0) && (!mayGo || b.quick()) {
		own = new(flight)
		b.board(own)
		b.flights++
	}
	b.launch()
	b.mu.Unlock()
	b.refuse(given)
	switch {
	case own != nil && mayGo:
		b.flyHere(b.core.quick.context(), own, true)
	case own != nil:
		b.flyHere(b.core.trip.context(), own, false)
	}
	select {
	case <-w.done:
		return true
	case <-ctx.Done():
		b.abandon(calls, causeOf(ctx))
		return false
	}
}

// quick reports whether a trip is soon over, with mu held: where the store keeps to
// deadlines, and none took longer than callers wait for in the last lease.
func (b *batcher) quick() bool {
	return b.core.bounded && time.Since(b.slow) > b.core.opts.lease
}

// abandon ends the wait for the calls that have no answer yet.
func (b *batcher) abandon(calls []*call, err error) {
	var unwanted []*call
	b.mu.Lock()
	for _, c := range calls {
		if c.finished {
			continue
		}
		c.abandoned, c.err = true, err
		waits := c.place.line != nil
		if waits {
			c.place.line.remove(c)
		}
		if waits && c.everSent || (waits || !c.submitted) && c.before != nil {
			unwanted = append(unwanted, c)
		}
	}
	b.mu.Unlock()
	b.giveBack(unwanted)
}

// giveBack releases, uncounted, claims that may have been made for callers that
// no longer wait for them, and carries out what was to be done before. It tries for
// one lease; after that they have run out. A Begin that the store executes later than its
// Release, since it lay in a connection that hung, is a claim that nobody holds, and costs its
// token one lease and one expiry.
func (b *batcher) giveBack(calls []*call) {
	var releases []*call
	for _, c := range calls {
		if c.op.Kind != store.Begin {
			continue
		}
		releases = append(releases, &call{
			before:  c.before,
			op:      store.Op{Kind: store.Release, Group: c.op.Group, Token: c.op.Token, Claim: c.op.Claim},
			patient: true,
			until:   time.Now().Add(b.core.opts.lease),
			apart:   c.apart,
			away:    c.away,
		})
	}
	if len(releases) > 0 {
		b.submit(releases...)
	}
}
