package torture

import (
	"math/rand/v2"
	"slices"
	"time"
)

// soakKinds are the faults of a soak: Redis is to keep what it has acknowledged, and to
// have room.
var soakKinds = []Kind{
	Kill, Pause, Deploy, Rebalance, Slow, Clock,
	BrokerReset, BrokerBlackHole, BrokerSwallow, BrokerLatency, BrokerBandwidth, BrokerRestart,
	StoreReset, StoreBlackHole, StoreSwallow, StoreLatency, StoreBandwidth, StoreRestart,
}

// soakPlan draws one fault for each part of the time. The first slot is hit by nothing
// that ends its process.
func soakPlan(seed, site uint64, length, every time.Duration) (plan []Fault) {
	r := rand.New(rand.NewPCG(seed, site))
	o := Offer{Slots: Slots, Lease: soakLease, Every: every, Clock: true, StoreProxy: true}
	var deck []Kind
	for from := time.Duration(0); from+every <= length; from += every {
		if len(deck) == 0 {
			deck = slices.Clone(soakKinds)
			r.Shuffle(len(deck), func(i, j int) { deck[i], deck[j] = deck[j], deck[i] })
		}
		f := Fault{At: from + within(r, every/10, every/2), Kind: deck[0]}
		deck = deck[1:]
		if traits[f.Kind].hits == hitsSlot {
			f.Slot = r.IntN(Slots)
			if f.Kind == Kill {
				f.Slot = 1 + r.IntN(Slots-1)
			}
		}
		traits[f.Kind].draw(r, &o, &f)
		plan = append(plan, f)
	}
	return plan
}
