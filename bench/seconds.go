package bench

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// loadGoroutines is how many call Do where its speed alone is asked for: a little more than
// the guard puts into one trip.
const loadGoroutines = 256

// measureSeconds has Do run at full speed for a time with each layout.
func (res *Result) measureSeconds(t *testing.T, length time.Duration) {
	t.Helper()
	b := newBed(t)
	res.Seconds = nil
	for _, layout := range layouts() {
		b.empty(t)
		l, err := b.run(t.Context(), calling{
			name: layout.name, goroutines: loadGoroutines, length: length, warm: min(warmed, length), call: doing(b.guard(layout)),
		})
		if err != nil {
			t.Fatal(err)
		}
		res.Seconds = append(res.Seconds, *l)
		s := slowest(l.PerSecond)
		t.Logf("%s: the slowest second did %d, the median %.0f", l.Name, s.Done, s.Median)
	}
}

// slowSecond is the slowest of a load's.
type slowSecond struct {
	At     int // counted from 0
	Done   int64
	Median float64
}

// Share is what it did of what the median second did.
func (s slowSecond) Share() float64 {
	if s.Median == 0 {
		return 0
	}
	return float64(s.Done) / s.Median
}

// slowest is the first of the slowest seconds.
func slowest(perSecond []int64) slowSecond {
	if len(perSecond) == 0 {
		return slowSecond{}
	}
	values := make([]float64, len(perSecond))
	for i, n := range perSecond {
		values[i] = float64(n)
	}
	least := slices.Min(perSecond)
	return slowSecond{At: slices.Index(perSecond, least), Done: least, Median: median(values)}
}

func secondsSection(all []Load) string {
	rows := [][]string{{"layout", "median second", "slowest second", "of the median", "which", "p99.9 of a call", "longest call"}}
	length := 0.0
	for i := range all {
		l := &all[i]
		s := slowest(l.PerSecond)
		length = l.Seconds
		rows = append(rows, []string{
			l.Name, grouped(int(s.Median)), grouped(int(s.Done)), fmt.Sprintf("%.0f %%", 100*s.Share()), fmt.Sprint(s.At + 1),
			milliseconds(l.Latency.P999), milliseconds(l.Latency.Max),
		})
	}
	return fmt.Sprintf("`Guard.Do` with fresh tokens from %d goroutines for %.0f s, for each layout; no broker takes part.\n\n%s", loadGoroutines, length, markdown(rows))
}
