package idem

import (
	"time"

	"github.com/idemq/idemq/idem/store"
)

// A batch that is on its way lets later calls queue up; what queued goes out when a flight is
// back. No call waits for a time window.
//
// Some flights overlap, so that the store works while the network and this process do. Where
// the store is far, more do: as many as keep departures a spacing apart on the average, so that
// a call seldom waits for a trip before its own.
//
// Callers who wait for an answer each share the flights out among them. 256 goroutines in Do,
// with Redis over loopback on two CPUs, make about as many calls a second in four batches of 64
// as where two flights or more take up to 256 each: 12 % fewer to 28 % more, in six comparisons
// in turns (records). What one caller submits together, as consumers do, fills batches.
const (
	minFlights = 4
	maxFlights = 16
	spacing    = 400 * time.Microsecond
	fewCallers = 64 // a batch's worth of them

	besideTransactions = 2 // flights, where handlers' transactions take the same connections
)

// distance is how far away the store is: how long the quickest trip took in this window and in
// the one before. What the others waited in a busy store does not count: more flights would not
// help, and their batches would be smaller.
type distance struct {
	least, before time.Duration
	since         time.Time
}

const distanceWindow = time.Second

func (d *distance) add(now time.Time, took time.Duration) {
	took = max(took, 1)
	switch age := now.Sub(d.since); {
	case age >= 2*distanceWindow:
		*d = distance{least: took, since: now}
	case age >= distanceWindow:
		*d = distance{least: took, before: d.least, since: now}
	default:
		d.least = min(d.least, took)
	}
}

// value is zero while no trip is over.
func (d *distance) value() time.Duration {
	if d.before == 0 { // nothing is known of it
		return d.least
	}
	return min(d.least, d.before)
}

// overlap is how many flights may be under way, with mu held. Where handlers' transactions
// come out of the store's connections, as with SQL, flights leave them room.
func (b *batcher) overlap() int {
	if b.core.transacts {
		return besideTransactions
	}
	return min(max(int(b.distance.value()/spacing), minFlights), maxFlights)
}

// share is how many callers a flight takes at most, with mu held: so many that all are soon
// under way.
func (b *batcher) share() int {
	n := b.overlap()
	return max(fewCallers, (b.queue.length()+b.aboard+n-1)/n)
}

// mayFly reports, with mu held, whether a flight may carry what is queued, where so many
// others are under way.
func (b *batcher) mayFly(others int) bool {
	return others < b.overlap() && (b.mayProbe() || b.queue.length() > 0)
}

// hurried reports whether a flight is to depart without waiting for more callers, with mu
// held: a claim is to be kept, or a batch is full.
func (b *batcher) hurried() bool { return b.queue[keeping].length > 0 || b.queue.length() >= maxBatch }

// launch starts a flight where one may start, with mu held. One that is about to take what is
// queued launches another for what it has no room for.
func (b *batcher) launch() {
	if (b.boarding == 0 || b.hurried()) && b.mayFly(b.flights) {
		b.flights++
		b.boarding++
		go b.fly()
	}
}

// flight is one trip after another. What it has room for is used again.
type flight struct {
	calls []*call
	probe bool
	batch store.Batch
	sent  time.Time

	given, unwanted []*call
}

// fly sends batches until nothing is queued that needs this flight.
func (b *batcher) fly() {
	var f flight
	b.mu.Lock()
	for b.awaitCallers() {
		b.board(&f)
		b.launch()
		b.mu.Unlock()
		err := b.travel(b.core.trip.context(), &f)
		b.land(&f, err)
		if err != nil {
			f.batch = store.Batch{} // the driver may not be through with it
		}
		b.mu.Lock()
		b.boarding++
	}
	b.flights--
	b.mu.Unlock()
}

// awaitCallers lets those run who are about to call: whoever was answered last, or came with
// whoever started the flight. Then it reports whether there is something to carry. mu is held,
// but for that time, which is a while where other goroutines keep the processors busy.
func (b *batcher) awaitCallers() bool {
	if !b.hurried() {
		b.mu.Unlock()
		b.yield()
		b.mu.Lock()
	}
	b.boarding--
	return b.mayFly(b.flights - 1)
}
