package torture

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// series is 50 minutes of samples, one each 10 seconds.
func series(value func(i int, r *rand.Rand) float64) []point {
	r := rand.New(rand.NewPCG(1, 2))
	points := make([]point, 300)
	for i := range points {
		points[i] = point{10*time.Minute + time.Duration(i)*10*time.Second, value(i, r)}
	}
	return points
}

func TestJudge(t *testing.T) {
	a := allowance{share: 0.1, least: 5}
	for name, c := range map[string]struct {
		value func(i int, r *rand.Rand) float64
		flat  bool
	}{
		"steady":              {func(int, *rand.Rand) float64 { return 30 }, true},
		"nothing":             {func(int, *rand.Rand) float64 { return 0 }, true},
		"noise":               {func(_ int, r *rand.Rand) float64 { return 100 + 30*r.NormFloat64() }, true},
		"a saw":               {func(i int, _ *rand.Rand) float64 { return 100 + float64(i%25) }, true},
		"falling":             {func(i int, _ *rand.Rand) float64 { return 500 - float64(i) }, true},
		"a peak in the end":   {func(i int, _ *rand.Rand) float64 { return 30 + 1000*float64(max(i-280, 0)) }, true},
		"peaks, more of them": {func(i int, _ *rand.Rand) float64 { return 30 + 300*float64(1-min(i%max(30-i/15, 11), 1)) }, true},
		"within the share":    {func(i int, _ *rand.Rand) float64 { return 1000 + float64(i)/4 }, true},

		"a goroutine a message":  {func(i int, _ *rand.Rand) float64 { return 30 + 2000*float64(i) }, false},
		"a goroutine in a while": {func(i int, _ *rand.Rand) float64 { return 30 + math.Floor(float64(i)/40) }, false},
		"a leak in noise":        {func(i int, r *rand.Rand) float64 { return 100 + 30*r.NormFloat64() + float64(i)/5 }, false},
		"a leak under a saw":     {func(i int, _ *rand.Rand) float64 { return 100 + float64(i%25) + float64(i)/10 }, false},
		"a leak with restarts": {func(i int, _ *rand.Rand) float64 {
			if i%10 == 0 {
				return 0
			}
			return 100 + float64(i)/10
		}, false},
		"a step":               {func(i int, _ *rand.Rand) float64 { return 30 + 10*float64(min(i/150, 1)) }, false},
		"a step, late":         {func(i int, _ *rand.Rand) float64 { return 30 + 10*float64(min(i/240, 1)) }, false},
		"a leak of later days": {func(i int, _ *rand.Rand) float64 { return 30 + float64(max(i-150, 0))/5 }, false},
	} {
		got, err := judge(series(c.value), a)
		if err != nil || got.Flat() != c.flat {
			t.Errorf("%s: flat is %v, %v: %v", name, got.Flat(), err, &got)
		}
	}
	if _, err := judge(make([]point, leastPoints-1), a); err == nil {
		t.Error("a few points were judged")
	}
}

// A process that handles some 220 messages a second, and keeps 30 bytes of each.
func TestJudgeSmallLeak(t *testing.T) {
	leak := series(func(i int, r *rand.Rand) float64 { return 1.3 * mega * (1 + r.Float64()/4) })
	for i := range leak {
		leak[i].value += 220 * 10 * 30 * float64(i)
	}
	for _, m := range consumerMeasures {
		if m.name != "live heap" {
			continue
		}
		got, err := judge(leak, m.allowed)
		if err != nil || got.Flat() {
			t.Errorf("it was not found: %v, %v", &got, err)
		}
		return
	}
	t.Error("the live heap is not judged")
}

func TestTrendInWords(t *testing.T) {
	x := Trend{Site: "nats", Series: "live heap", Growth: 2.5 * mega, First: 1 * mega, Last: 3 * mega, Allowed: 1 * mega}
	if got, want := x.String(), "nats: live heap grew by 2.5 MB along its trend, and by 2 MB from the first third to the last: 1 MB are allowed"; got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	x = Trend{Series: "Redis keys", Growth: 1000, Allowed: 10}
	if got := x.String(); !strings.HasPrefix(got, "Redis keys grew by 1 thousand") {
		t.Error(got)
	}
}
