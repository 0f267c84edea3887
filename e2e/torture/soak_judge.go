package torture

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/idemq/idemq/e2e/torture/role"
)

// point is one figure of a series.
type point struct {
	at    time.Duration
	value float64
}

// measure is something that is sampled.
type measure struct {
	name    string
	unit    string  // of what is shown
	scale   float64 // of the unit
	allowed allowance
}

// allowance is by how much a series may grow while it is judged, and is flat: a share of
// its median, or so much in any case.
type allowance struct{ share, least float64 }

const mega = 1e6

var (
	consumerMeasures = []struct {
		measure
		of func(*role.Stats) float64
	}{
		{measure{"resident memory", "MB", mega, allowance{0.1, 5 * mega}}, func(s *role.Stats) float64 { return float64(s.RSS) }},
		{measure{"live heap", "MB", mega, allowance{0.1, 2 * mega}}, func(s *role.Stats) float64 { return float64(s.Heap) }},
		{measure{"goroutines", "", 1, allowance{0.1, 5}}, func(s *role.Stats) float64 { return float64(s.Goroutines) }},
		{measure{"file descriptors", "", 1, allowance{0.1, 3}}, func(s *role.Stats) float64 { return float64(s.Descriptors) }},
	}
	redisMeasures = []struct {
		measure
		of func(*RedisSample) float64
	}{
		{measure{"Redis keys", "thousand", 1e3, allowance{0.1, 0}}, func(r *RedisSample) float64 { return float64(r.Keys) }},
		{measure{"Redis memory", "MB", mega, allowance{0.1, 0}}, func(r *RedisSample) float64 { return float64(r.Memory) }},
	}
)

// measureOf finds a measure by its name.
func measureOf(name string) measure {
	for _, m := range consumerMeasures {
		if m.name == name {
			return m.measure
		}
	}
	for _, m := range redisMeasures {
		if m.name == name {
			return m.measure
		}
	}
	return measure{name: name, scale: 1}
}

// Trend is what became of a series.
type Trend struct {
	Site   string `json:"site,omitempty"` // none: of all
	Series string `json:"series"`

	Points  int     `json:"points"`
	Least   float64 `json:"least"`
	Median  float64 `json:"median"`
	Most    float64 `json:"most"`
	First   float64 `json:"first"` // median of the first third
	Last    float64 `json:"last"`  // of the last
	Growth  float64 `json:"growth"`
	Allowed float64 `json:"allowed"`
}

// leastPoints is how many there are to be at least: three for the median of each third.
const leastPoints = 9

// judge looks for growth in two ways. Growth is that of the straight line whose slope is
// the median of the slopes between all pairs of points (Theil and Sen), so that peaks do not
// tilt it, from the first point to the last. The medians of the thirds show a step as well.
func judge(points []point, a allowance) (Trend, error) {
	if len(points) < leastPoints {
		return Trend{}, fmt.Errorf("%d points say nothing of growth, %d do", len(points), leastPoints)
	}
	values := make([]float64, len(points))
	var slopes []float64 // a nanosecond
	for i, p := range points {
		values[i] = p.value
		for _, q := range points[:i] {
			if p.at > q.at {
				slopes = append(slopes, (p.value-q.value)/float64(p.at-q.at))
			}
		}
	}
	third := len(values) / 3
	t := Trend{
		Points: len(points), Least: slices.Min(values), Median: median(values), Most: slices.Max(values),
		First: median(values[:third]), Last: median(values[len(values)-third:]),
		Growth: median(slopes) * float64(points[len(points)-1].at-points[0].at),
	}
	t.Allowed = max(a.share*t.Median, a.least)
	return t, nil
}

// Flat reports whether the series has grown by no more than is allowed.
func (t *Trend) Flat() bool { return max(t.Growth, t.Last-t.First) <= t.Allowed }

func (t *Trend) String() string {
	m := measureOf(t.Series)
	unit := strings.TrimSuffix(" "+m.unit, " ")
	return fmt.Sprintf("%s grew by %.4g%s along its trend, and by %.4g%[3]s from the first third to the last: %.4[5]g%[3]s are allowed",
		t.name(), t.Growth/m.scale, unit, (t.Last-t.First)/m.scale, t.Allowed/m.scale)
}

func (t *Trend) name() string { return strings.TrimPrefix(t.Site+": "+t.Series, ": ") }

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	switch n := len(sorted); {
	case n == 0:
		return 0
	case n%2 == 1:
		return sorted[n/2]
	default:
		return (sorted[n/2-1] + sorted[n/2]) / 2
	}
}

// consumerPoints are the points of a measure of the processes of a site, by their number.
func consumerPoints(samples []Sample, site string, of func(*role.Stats) float64) map[uint16][]point {
	all := map[uint16][]point{}
	for i := range samples {
		for j := range samples[i].Sites {
			if x := &samples[i].Sites[j]; x.Site == site {
				for k := range x.Consumers {
					c := &x.Consumers[k]
					all[c.Number] = append(all[c.Number], point{samples[i].at(), of(c)})
				}
			}
		}
	}
	return all
}

// redisPoints are the points of a measure of Redis.
func redisPoints(samples []Sample, of func(*RedisSample) float64) (all []point) {
	for i := range samples {
		if r := samples[i].Redis; r != nil {
			all = append(all, point{samples[i].at(), of(r)})
		}
	}
	return all
}

func (x *Sample) at() time.Duration { return time.Duration(x.Seconds * float64(time.Second)) }

// judgeAll judges the veteran of each site, and Redis. What grows is a failure.
func (r *SoakResult) judgeAll(samples []Sample) {
	judged := slices.DeleteFunc(slices.Clone(samples), func(x Sample) bool { return x.at() < r.Judged })
	add := func(site, series string, points []point, a allowance) {
		t, err := judge(points, a)
		t.Site, t.Series = site, series
		if err == nil && !t.Flat() {
			err = fmt.Errorf("not flat: %v", &t)
		}
		if err != nil {
			r.Failures = append(r.Failures, fmt.Sprintf("%s: %v", cmp.Or(site, "all"), err))
		}
		r.Trends = append(r.Trends, t)
	}
	for _, m := range consumerMeasures {
		for _, site := range r.Sites {
			kind, _, _ := strings.Cut(site.Site, "/")
			add(kind, m.name, consumerPoints(judged, kind, m.of)[veteran], m.allowed)
		}
	}
	for _, m := range redisMeasures {
		add("", m.name, redisPoints(judged, m.of), m.allowed)
	}
}
