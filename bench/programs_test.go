package bench

import (
	"slices"
	"testing"
	"time"
)

// brokerNamed is one of Brokers, with its row that has a flood.
func brokerNamed(t *testing.T, name string) (Broker, Row) {
	t.Helper()
	all := Brokers()
	b := all[slices.IndexFunc(all, func(b Broker) bool { return b.Name == name })]
	return b, b.Rows[slices.IndexFunc(b.Rows, func(r Row) bool { return r.flood > 0 })]
}

// An idle consumer takes two trips for a message and one for a duplicate, and a full one far
// fewer; messages that are published at a rate are all measured, each in its leg.
func TestTripsAndLatency(t *testing.T) {
	b, row := brokerNamed(t, "NATS JetStream")
	l := newLab(t, b)
	if got := l.measureTrips(t, row, 1000); got.Failed != "" || got.Idle != 2 || got.IdleRepeat != 1 || got.Load <= 0 || got.Load >= 1 || got.Repeats <= 0 || got.Repeats >= 1 {
		t.Errorf("%+v, want 2 and 1 for a single message, and less than one trip where there are many", got)
	}
	got := l.measureLatency(t, row, 1000, 200*time.Millisecond)
	if got.Failed != "" || got.Most <= 0 || len(got.Legs) != len(latencyShares) {
		t.Fatalf("%+v", got)
	}
	for _, leg := range got.Legs {
		// One message in ten is a copy, which no handler sees.
		if want := int64(leg.messages - leg.messages/copyEvery); leg.Latency.N != want || leg.Latency.P50 <= 0 {
			t.Errorf("%+v, want %d latencies", leg, want)
		}
	}
}

// How long a leg was behind is asked after the producer's flush, which must not be long for that.
func TestFlushHasFewToLookAt(t *testing.T) {
	n := openNATS(t)
	n.create(t, "many", 1)
	p := n.producer(t, "many").(*natsProducer)
	w := fresh(2 * publishAhead)
	for i := range w.Messages() {
		if err := p.send(t.Context(), w.at(i)); err != nil {
			t.Fatal(err)
		}
	}
	if len(p.confirms) > publishAhead {
		t.Errorf("%d confirmations are left to flush, want %d at most", len(p.confirms), publishAhead)
	}
	if err := p.flush(t.Context()); err != nil {
		t.Error(err)
	}
}

// Every load does what it is to do, in as many trips as it says.
func TestDoLoads(t *testing.T) {
	b := newBed(t)
	for _, c := range doLoads(b, 20*time.Millisecond) {
		b.empty(t)
		l, err := b.run(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		trips := float64(l.Trips) / float64(l.Done)
		if l.Done == 0 || l.RedisCPU <= 0 || l.Latency.N == 0 || c.goroutines == 1 && (trips < 2 || trips > 2.5) {
			t.Errorf("%s: %+v", c.name, l)
		}
	}
}

// A server that is further away is asked as often, and answers later; both sides do what they
// are to do.
func TestNetwork(t *testing.T) {
	const away = 5 * time.Millisecond
	b, _ := brokerNamed(t, "Kafka")
	l := newLab(t, b)
	l.away = away
	bed := bedOn(t, l.redis, away)
	if took, err := pinged(t.Context(), bed.client); err != nil || took < away.Seconds() {
		t.Errorf("a PING took %v s: %v", took, err)
	}
	do, err := besideDo(t, bed, 2, 100*time.Millisecond)
	for _, side := range []Side{do.Hand, do.Ours} {
		if err != nil || side.Rate <= 0 || side.P50 < 2*away.Seconds() || side.P99 < side.P50 {
			t.Errorf("%+v: %v", side, err)
		}
	}
	w := testMessages / workers * away.Seconds() // at least, by hand
	pairs, err := l.besideKafka(t, testMessages)
	if err != nil || len(pairs) != 2 {
		t.Fatalf("%+v: %v, want two", pairs, err)
	}
	if many := pairs[0]; many.Hand.Rate <= 0 || many.Hand.Rate > testMessages/w || many.Ours.Rate <= many.Hand.Rate {
		t.Errorf("%+v", many)
	}
	trips := 2.0 * testMessages / leaseBatch
	if few := pairs[1]; few.Hand.Rate <= 0 || few.Hand.Rate > testMessages/(trips*away.Seconds()) || few.Ours.Rate <= 0 {
		t.Errorf("%+v", few)
	}
}

// Duplicates are found, also on three masters, and handled never.
func TestSizingLoads(t *testing.T) {
	z := &Sizing{}
	z.sizeDuplicates(t, 10*time.Millisecond)
	z.sizeMasters(t, 10*time.Millisecond)
	for _, s := range slices.Concat(z.Duplicates, z.Masters) {
		if s.Done == 0 || s.Trips == 0 || s.RedisCPU <= 0 {
			t.Errorf("%+v", s)
		}
	}
	if len(z.Duplicates) != 10 || len(z.Masters) != 6 {
		t.Errorf("%d and %d loads", len(z.Duplicates), len(z.Masters))
	}
}
