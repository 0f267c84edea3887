package torture

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// Kind is what a fault does.
type Kind uint8

// The kinds of faults. The histories hold these numbers.
const (
	Kill Kind = iota + 1
	Pause
	Deploy
	Rebalance
	Slow
	Clock
	BrokerReset
	BrokerBlackHole
	BrokerSwallow
	BrokerLatency
	BrokerBandwidth
	BrokerRestart
	StoreReset
	StoreBlackHole
	StoreSwallow
	StoreLatency
	StoreBandwidth
	StoreRestart
	StoreEmpty
	StoreFailover
	StoreFull

	kindsEnd
)

// Kinds lists every kind.
func Kinds() []Kind {
	all := make([]Kind, 0, kindsEnd-1)
	for k := Kill; k < kindsEnd; k++ {
		all = append(all, k)
	}
	return all
}

// String is the name in schedules, results and the report.
func (k Kind) String() string {
	if k == 0 || k >= kindsEnd {
		return fmt.Sprintf("kind %d", uint8(k))
	}
	return traits[k].name
}

// What says what the fault is, for the report.
func (k Kind) What() string { return traits[k].what }

// Fault is one of a schedule.
type Fault struct {
	At     time.Duration // since the beginning of the round
	Kind   Kind
	Slot   int           // the consumer that it hits, where it hits one
	For    time.Duration // how long it lasts, where that is not its own affair
	Amount time.Duration // latency, what handlers take on top, how far the clock is off
	Rate   int64         // kilobytes a second
}

// String is a line of a printed schedule.
func (f Fault) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%8.3fs  %s", f.At.Seconds(), f.Kind)
	if traits[f.Kind].hits == hitsSlot {
		fmt.Fprintf(&b, " of consumer %d", f.Slot)
	}
	if f.Amount != 0 {
		fmt.Fprintf(&b, " of %v", f.Amount)
	}
	if f.Rate != 0 {
		fmt.Fprintf(&b, " of %d kB/s", f.Rate)
	}
	if f.For != 0 {
		fmt.Fprintf(&b, " for %v", f.For)
	}
	return b.String()
}

// Offer is what can be done to a site.
type Offer struct {
	Slots      int           // consumers at a time
	Lease      time.Duration // pauses are longer
	Every      time.Duration // from one fault to the next, on average
	Clock      bool          // consumers' clocks can be stepped
	StoreProxy bool          // the store is behind one, and has a clock of its own
	Forgets    bool          // the store is a Forgetter
	Fills      bool          // the store is a Filler
	Only       []Kind        // nothing else; empty for all that the site offers

	RestartAfter time.Duration // since the beginning, before which the broker is not restarted
}

// What a fault has for itself while it lasts.
type hits uint8

const (
	hitsSlot   hits = iota + 1
	hitsSlots       // one after another
	hitsExtra       // a consumer beside the slots
	hitsBroker      // and the way to it
	hitsStore       // and the way to it
)

// trait is what sets a kind apart.
type trait struct {
	name   string
	what   string
	weight int // how often it is drawn, in relation to the others
	hits   hits
	needs  func(o *Offer) bool                         // nil: every site has it
	draw   func(r *rand.Rand, o *Offer, f *Fault)      // its parameters
	lasts  func(f *Fault, o *Offer) (of time.Duration) // nil: f.For, and a moment
}

var traits = [kindsEnd]trait{
	Kill: {
		name: "kill", what: "SIGKILL of a consumer process, which is started again", weight: 6, hits: hitsSlot,
		draw: func(r *rand.Rand, _ *Offer, f *Fault) { f.For = within(r, 0, 500*time.Millisecond) },
	},
	Pause: {
		name: "pause", what: "SIGSTOP of a consumer process for longer than its leases last, then SIGCONT", weight: 4, hits: hitsSlot,
		draw: func(r *rand.Rand, o *Offer, f *Fault) { f.For = within(r, o.Lease*11/10, o.Lease*18/10) },
	},
	Deploy: {
		name: "deploy", what: "every consumer process in turn is told to stop (SIGTERM), ends, and is started again", weight: 2, hits: hitsSlots,
		draw:  func(r *rand.Rand, _ *Offer, f *Fault) { f.For = within(r, 0, 300*time.Millisecond) },
		lasts: func(_ *Fault, o *Offer) time.Duration { return time.Duration(o.Slots) * time.Second },
	},
	Rebalance: {
		name: "rebalance", what: "one more consumer process joins, and leaves again", weight: 2, hits: hitsExtra,
		draw: func(r *rand.Rand, _ *Offer, f *Fault) { f.For = within(r, 2*time.Second, 5*time.Second) },
	},
	Slow: {
		name: "slow handler", what: "the handlers of a consumer process take up to 200 ms more, or longer than a lease", weight: 3, hits: hitsSlot,
		draw: func(r *rand.Rand, o *Offer, f *Fault) {
			f.Amount, f.For = within(r, 5*time.Millisecond, 200*time.Millisecond), within(r, time.Second, 3*time.Second)
			if r.IntN(4) == 0 {
				f.Amount, f.For = o.Lease*3/2, o.Lease/2
			}
		},
	},
	Clock: {
		name: "clock step", what: "the wall clock of a consumer process jumps, by a second up to a day, forward or back", weight: 3, hits: hitsSlot,
		needs: func(o *Offer) bool { return o.Clock && o.StoreProxy }, // SQLite's clock is the machine's, which all processes share
		draw: func(r *rand.Rand, _ *Offer, f *Fault) {
			f.Amount = time.Duration(float64(time.Second) * math.Exp(r.Float64()*math.Log(86_400))).Round(time.Millisecond)
			if r.IntN(2) == 0 {
				f.Amount = -f.Amount
			}
		},
	},

	BrokerReset:     {name: "broker reset", what: "all connections to the broker are reset", weight: 4, hits: hitsBroker, draw: nothing},
	BrokerBlackHole: {name: "broker black hole", what: "nothing comes through to the broker or back, and no connection ends", weight: 4, hits: hitsBroker, draw: holeLength},
	BrokerSwallow:   {name: "broker replies lost", what: "the broker gets the requests, its replies are lost, and the connections end", weight: 4, hits: hitsBroker, draw: swallowLength},
	BrokerLatency:   {name: "broker latency", what: "bytes to and from the broker are late by up to 200 ms, and half of that again at random", weight: 4, hits: hitsBroker, draw: latency},
	BrokerBandwidth: {name: "broker bandwidth", what: "10 to 500 kB/s to and from the broker", weight: 4, hits: hitsBroker, draw: bandwidth},
	BrokerRestart: {
		name: "broker restart", what: "SIGKILL of the broker, which is started again with what it had confirmed", weight: 1, hits: hitsBroker, draw: nothing,
		lasts: func(*Fault, *Offer) time.Duration { return 5 * time.Second },
	},

	StoreReset:     {name: "store reset", what: "all connections to the store are reset", weight: 4, hits: hitsStore, needs: behindProxy, draw: nothing},
	StoreBlackHole: {name: "store black hole", what: "nothing comes through to the store or back, and no connection ends", weight: 4, hits: hitsStore, needs: behindProxy, draw: holeLength},
	StoreSwallow:   {name: "store replies lost", what: "the store executes the requests, its replies are lost, and the connections end", weight: 4, hits: hitsStore, needs: behindProxy, draw: swallowLength},
	StoreLatency:   {name: "store latency", what: "bytes to and from the store are late by up to 200 ms, and half of that again at random", weight: 4, hits: hitsStore, needs: behindProxy, draw: latency},
	StoreBandwidth: {name: "store bandwidth", what: "10 to 500 kB/s to and from the store", weight: 4, hits: hitsStore, needs: behindProxy, draw: bandwidth},
	StoreRestart: {
		name: "store restart", what: "SIGKILL of the store, which is started again with what it had acknowledged", weight: 2, hits: hitsStore, needs: behindProxy, draw: nothing,
		lasts: func(*Fault, *Offer) time.Duration { return 3 * time.Second },
	},
	StoreEmpty: {
		name: "store restart, empty", what: "SIGKILL of the store, which is started again with nothing", weight: 2, hits: hitsStore, draw: nothing,
		needs: func(o *Offer) bool { return o.Forgets },
		lasts: func(*Fault, *Offer) time.Duration { return 3 * time.Second },
	},
	StoreFailover: {
		name: "store failover", what: "a replica that lags takes the store's place: what was acknowledged last is forgotten", weight: 2, hits: hitsStore, draw: nothing,
		needs: func(o *Offer) bool { return o.Forgets },
		lasts: func(*Fault, *Offer) time.Duration { return 3 * time.Second },
	},
	StoreFull: {
		name: "store full", what: "the store has no room for anything new", weight: 3, hits: hitsStore,
		needs: func(o *Offer) bool { return o.Fills },
		draw:  func(r *rand.Rand, _ *Offer, f *Fault) { f.For = within(r, 500*time.Millisecond, 3*time.Second) },
	},
}

func behindProxy(o *Offer) bool { return o.StoreProxy }

func nothing(*rand.Rand, *Offer, *Fault) {}

func holeLength(r *rand.Rand, o *Offer, f *Fault) {
	f.For = within(r, 300*time.Millisecond, o.Lease*3/2)
}

func swallowLength(r *rand.Rand, _ *Offer, f *Fault) {
	f.For = within(r, 100*time.Millisecond, time.Second)
}

func latency(r *rand.Rand, _ *Offer, f *Fault) {
	f.Amount, f.For = within(r, 5*time.Millisecond, 200*time.Millisecond), within(r, time.Second, 3*time.Second)
}

func bandwidth(r *rand.Rand, _ *Offer, f *Fault) {
	f.Rate, f.For = 10+r.Int64N(490), within(r, time.Second, 3*time.Second)
}

func within(r *rand.Rand, from, to time.Duration) time.Duration {
	return (from + time.Duration(r.Int64N(int64(max(to-from, 1))))).Round(time.Millisecond)
}

// settleTime is what passes after a fault before the next one hits the same thing.
const settleTime = 200 * time.Millisecond

// Plan draws the faults of a round. It depends on seed and offer alone: a longer round
// begins with the faults of a shorter one. Kinds come up in proportion to their weights;
// faults overlap unless they hit the same thing.
func Plan(seed uint64, length time.Duration, o Offer) []Fault {
	r := rand.New(rand.NewPCG(seed, uint64(kindsEnd)))
	var all []Kind
	for _, k := range Kinds() {
		t := &traits[k]
		if (t.needs == nil || t.needs(&o)) && (len(o.Only) == 0 || slices.Contains(o.Only, k)) {
			all = append(all, slices.Repeat([]Kind{k}, t.weight)...)
		}
	}
	if len(all) == 0 || o.Slots < 1 || o.Every <= 0 {
		return nil
	}
	var plan []Fault
	var deck []Kind
	b := busy{slots: make([]time.Duration, o.Slots)}
	for at := o.Every / 4; ; at += gap(r, o.Every) {
		if at >= length {
			return plan
		}
		if len(deck) < len(all) { // so there is always something else to take
			more := slices.Clone(all)
			r.Shuffle(len(more), func(i, j int) { more[i], more[j] = more[j], more[i] })
			deck = append(deck, more...)
		}
		for i, k := range deck {
			f := Fault{At: at.Round(time.Millisecond), Kind: k}
			if k == BrokerRestart && at < o.RestartAfter || !b.free(r, &f) {
				continue
			}
			traits[k].draw(r, &o, &f)
			b.take(&f, &o)
			plan = append(plan, f)
			deck = slices.Delete(deck, i, i+1)
			break
		}
	}
}

// gap is exponential, without its tails.
func gap(r *rand.Rand, mean time.Duration) time.Duration {
	d := time.Duration(r.ExpFloat64() * float64(mean))
	return min(max(d, mean/10), 3*mean)
}

// busy is until when things are hit.
type busy struct {
	slots                []time.Duration
	extra, broker, store time.Duration
}

// free reports whether what f hits is free, and draws the slot.
func (b *busy) free(r *rand.Rand, f *Fault) bool {
	switch traits[f.Kind].hits {
	case hitsSlot:
		var free []int
		for i, until := range b.slots {
			if until <= f.At {
				free = append(free, i)
			}
		}
		if len(free) == 0 {
			return false
		}
		f.Slot = free[r.IntN(len(free))]
		return true
	case hitsSlots:
		return slices.Max(b.slots) <= f.At
	case hitsExtra:
		return b.extra <= f.At
	case hitsBroker:
		return b.broker <= f.At
	}
	return b.store <= f.At
}

func (b *busy) take(f *Fault, o *Offer) {
	t := &traits[f.Kind]
	lasts := f.For
	if t.lasts != nil {
		lasts = cmp.Or(t.lasts(f, o), lasts)
	}
	until := f.At + lasts + settleTime
	switch t.hits {
	case hitsSlot:
		b.slots[f.Slot] = until
	case hitsSlots:
		for i := range b.slots {
			b.slots[i] = until
		}
	case hitsExtra:
		b.extra = until
	case hitsBroker:
		b.broker = until
	default:
		b.store = until
	}
}
