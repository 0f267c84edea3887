package bench

import (
	"context"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"
)

// Cliff is how Redis answered while its table of keys grew past a power of two.
type Cliff struct {
	Keys    int64   `json:"keys"`    // the power of two
	Longest float64 `json:"longest"` // answer around it, seconds
	Usual   float64 `json:"usual"`   // the median answer of the whole fill, seconds
	Slowest float64 `json:"slowest"` // the slowest 100 ms' rate as a share of the median one
}

// ping is one answer to DBSIZE.
type ping struct {
	at   time.Duration
	took time.Duration
	keys int64
}

// pingEvery is how often the server is asked.
const pingEvery = time.Millisecond

// watch asks a server for its number of keys until the context ends.
func watch(ctx context.Context, c *redis.Client) (all []ping) {
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	begun := time.Now()
	for {
		asked := time.Now()
		keys, err := c.DBSize(ctx).Result()
		if err == nil {
			all = append(all, ping{at: asked.Sub(begun), took: time.Since(asked), keys: keys})
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return all
		}
	}
}

// cliffs are those of the powers of two, from 2^20 keys, that were passed. Around one is from
// a hundredth below it, where the table is made, to a quarter above it, when all keys have
// moved.
func cliffs(all []ping) (found []Cliff) {
	if len(all) == 0 {
		return nil
	}
	took := make([]float64, len(all))
	for i, p := range all {
		took[i] = p.took.Seconds()
	}
	usual := median(took)
	speeds := speeds(all)
	var each []float64
	for _, s := range speeds {
		each = append(each, s.rate)
	}
	usualRate := median(each)
	for power := int64(1 << 20); power < all[len(all)-1].keys; power *= 2 {
		if all[0].keys >= power {
			continue
		}
		around := func(keys int64) bool { return keys >= power-power/100 && keys <= power+power/4 }
		c := Cliff{Keys: power, Usual: usual}
		for _, p := range all {
			if around(p.keys) {
				c.Longest = max(c.Longest, p.took.Seconds())
			}
		}
		var rates []float64
		for _, s := range speeds {
			if around(s.keys) {
				rates = append(rates, s.rate)
			}
		}
		if len(rates) > 0 && usualRate > 0 {
			c.Slowest = slices.Min(rates) / usualRate
		}
		found = append(found, c)
	}
	return found
}

// speed is how fast keys came for about 100 ms, up to a number of them.
type speed struct {
	keys int64
	rate float64
}

const speedEvery = 100 * time.Millisecond

func speeds(all []ping) (each []speed) {
	from := all[0]
	for _, p := range all[1:] {
		if d := p.at - from.at; d >= speedEvery {
			each = append(each, speed{keys: p.keys, rate: float64(p.keys-from.keys) / d.Seconds()})
			from = p
		}
	}
	return each
}
