package bench

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// loadGoroutines is how many call Do where its speed alone is asked for: a little more than
// the guard puts into one trip.
const loadGoroutines = 256

// measureSeconds has Do run at full speed for a time with each layout, and beside them what
// Redis has no reason to be slower at in any second.
func (res *Result) measureSeconds(t *testing.T, length time.Duration) {
	t.Helper()
	b := newBed(t)
	res.Seconds = nil
	run := func(name string, goroutines int, call func(context.Context, int) (int, error)) {
		b.empty(t)
		l, err := b.run(t.Context(), calling{name: name, goroutines: goroutines, length: length, warm: min(warmed, length), call: call})
		if err != nil {
			t.Fatal(err)
		}
		res.Seconds = append(res.Seconds, *l)
		s := slowest(l.PerSecond)
		t.Logf("%s: the slowest second did %d, the median %.0f", l.Name, s.Done, s.Median)
	}
	for _, l := range layouts() {
		run(l.name, loadGoroutines, doing(b.guard(l)))
	}
	run(fmt.Sprintf("the machine alone: `SET` over the same %d keys, pipelined", pipelined), flushers, overwriting(b.client))
}

// overwriting writes the same keys again and again, in pipelines.
func overwriting(rdb redis.UniversalClient) func(context.Context, int) (int, error) {
	return func(ctx context.Context, _ int) (int, error) {
		_, err := rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
			for i := range pipelined {
				p.Set(ctx, "seen:"+strconv.Itoa(i), finished, seenFor)
			}
			return nil
		})
		return pipelined, err
	}
}

// slowSecond is the slowest of a load's.
type slowSecond struct {
	At     int // counted from 0
	Done   int64
	Median float64
	Below  int // seconds that did less than half of the median
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
	s := slowSecond{At: slices.Index(perSecond, least), Done: least, Median: median(values)}
	for _, n := range values {
		if n < s.Median/2 {
			s.Below++
		}
	}
	return s
}

const secondsAbout = "`Guard.Do` with fresh tokens from %d goroutines for %.0f s, for each layout; no broker takes part. The last row is what the machine itself does to the slowest second: commands that take no more memory as they go on, from %d goroutines. A call of that row is a pipeline of %d. "

func secondsSection(all []Load) string {
	rows := [][]string{{"", "median second", "slowest second", "of the median", "which", "seconds below half of the median", "p99.9 of a call", "longest call"}}
	length := 0.0
	for i := range all {
		l := &all[i]
		s := slowest(l.PerSecond)
		length = l.Seconds
		rows = append(rows, []string{
			l.Name, grouped(int(s.Median)), grouped(int(s.Done)), fmt.Sprintf("%.0f %%", 100*s.Share()), fmt.Sprint(s.At + 1), fmt.Sprint(s.Below),
			milliseconds(l.Latency.P999), milliseconds(l.Latency.Max),
		})
	}
	return fmt.Sprintf(secondsAbout, loadGoroutines, length, flushers, pipelined) + closedLoop + "\n\n" + markdown(rows)
}
