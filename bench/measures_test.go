package bench

import (
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"time"
)

func near(got, want float64) bool { return math.Abs(got-want) <= want*0.002 }

// A thousand durations of 1 to 1,000 ms: half are at most 500 ms, and so on.
func TestQuantiles(t *testing.T) {
	h, rest := newHistogram(), newHistogram()
	for i := 1; i <= 1000; i++ {
		into := h
		if i%2 == 0 {
			into = rest
		}
		into.record(time.Duration(i) * time.Millisecond)
	}
	h.merge(rest)
	q := h.quantiles()
	if q.N != 1000 || !near(q.P50, 0.5) || !near(q.P99, 0.99) || !near(q.P999, 0.999) || !near(q.Max, 1) {
		t.Errorf("%+v, want 0.5, 0.99, 0.999 and 1 s of 1000", q)
	}
	for _, d := range []time.Duration{-time.Second, 0, longestKept + time.Hour} {
		h.record(d)
	}
	if q = h.quantiles(); q.N != 1003 || !near(q.Max, longestKept.Seconds()) {
		t.Errorf("%+v: durations out of range are counted at its ends", q)
	}
}

// Messages are due at the rate, whatever was sent when; Work takes multiples of ten.
func TestLegs(t *testing.T) {
	for _, c := range []struct {
		share, most float64
		length      time.Duration
		messages    int
		rate        float64
		why         string
	}{
		{0.5, 1000, 2 * time.Second, 1000, 500, "half of a thousand a second, for two"},
		{0.1, 4321, time.Second, 430, 432.1, "rounded down to a multiple of ten"},
		{0.1, 5, time.Second, 10, 0.5, "ten at least"},
	} {
		leg := newLeg(c.share, c.most, c.length)
		if leg.messages != c.messages || !near(leg.Rate, c.rate) {
			t.Errorf("%s: %d messages at %v, want %d at %v", c.why, leg.messages, leg.Rate, c.messages, c.rate)
		}
	}
	leg := Leg{Rate: 500}
	if got := leg.due(250); got != 500*time.Millisecond {
		t.Errorf("message 250 at 500 a second is due after %v", got)
	}
	if flood := (Leg{}); flood.due(1000) != 0 {
		t.Error("a flood's messages are due at once")
	}
}

// The time counts from when the message was due, in the leg that it says; unstamped messages
// count in none.
func TestHandleRecordsFromWhenItWasDue(t *testing.T) {
	w := fresh(3)
	r := newRun(w)
	r.legs = []*histogram{newHistogram(), newHistogram()}
	late, future, warm := w.at(0), w.at(1), w.at(2)
	late.stamp(2, time.Now().Add(-10*time.Second))
	future.stamp(1, time.Now().Add(time.Hour))
	for _, m := range []message{late, future, warm} {
		if err := r.Handle(m.payload); err != nil {
			t.Fatal(err)
		}
	}
	if q := r.legs[1].quantiles(); q.N != 1 || q.P50 < 9.9 || q.P50 > 60 {
		t.Errorf("leg 2: %+v, want one of some 10 s", q)
	}
	if q := r.legs[0].quantiles(); q.N != 1 || q.P50 > 0.001 {
		t.Errorf("leg 1: %+v, want one of nothing", q)
	}
	if binary.BigEndian.Uint64(late.payload) != 0 {
		t.Error("the stamp is over the token's number")
	}
}

func TestSlowest(t *testing.T) {
	for _, c := range []struct {
		why       string
		perSecond []int64
		want      slowSecond
		share     float64
	}{
		{"no whole second", nil, slowSecond{}, 0},
		{"the second of four", []int64{100, 40, 120, 100}, slowSecond{At: 1, Done: 40, Median: 100, Below: 1}, 0.4},
		{"the first of two that are alike", []int64{9, 5, 5}, slowSecond{At: 1, Done: 5, Median: 5}, 1},
		{"half of the median is not below it", []int64{50, 100, 10, 100, 100}, slowSecond{At: 2, Done: 10, Median: 100, Below: 1}, 0.1},
		{"nothing at all was done", []int64{0, 0}, slowSecond{}, 0},
	} {
		if got := slowest(c.perSecond); got != c.want || got.Share() != c.share {
			t.Errorf("%s: %+v, %v; want %+v, %v", c.why, got, got.Share(), c.want, c.share)
		}
	}
}

// A fill of 2.5 million keys at 10,000 a 10 ms, with one answer of 300 ms just past 2^20, in
// which nothing was added, and another that is around no power of two.
func TestCliffs(t *testing.T) {
	var all []ping
	at, keys := time.Duration(0), int64(0)
	stuck := false
	for keys < 2_500_000 {
		took := time.Millisecond
		if keys > 1<<20 && !stuck {
			stuck, took = true, 300*time.Millisecond
			at += 300 * time.Millisecond
		}
		if keys == 1_600_000 {
			took = 500 * time.Millisecond
		}
		all = append(all, ping{at: at, took: took, keys: keys})
		at += 10 * time.Millisecond
		keys += 10_000
	}
	found := cliffs(all)
	if len(found) != 2 || found[0].Keys != 1<<20 || found[1].Keys != 1<<21 {
		t.Fatalf("%+v, want 2^20 and 2^21", found)
	}
	if c := found[0]; !near(c.Longest, 0.3) || !near(c.Usual, 0.001) || c.Slowest > 0.35 || c.Slowest <= 0 {
		t.Errorf("%+v, want 300 ms, 1 ms, and a third or less of the rate", c)
	}
	if c := found[1]; !near(c.Longest, 0.001) || !near(c.Slowest, 1) {
		t.Errorf("%+v, want nothing out of the ordinary", c)
	}
	if got := cliffs(all[150:]); len(got) != 1 {
		t.Errorf("%+v: a power that was passed before counts", got)
	}
	if got := cliffs(nil); got != nil {
		t.Errorf("%+v of no answers", got)
	}
}

// A billion messages a day are 11,574 a second.
func TestBudget(t *testing.T) {
	for _, c := range []struct {
		why  string
		plan plan
		cost cost
		want budget
	}{
		{
			"memory decides: with 25 masters the fullest has 3 of 64 tags, 9.4 GB of the 8 that it may have", usualPlan(1e9),
			cost{bytes: 200, perCore: 100_000},
			budget{Mean: 11574.07, Busiest: 34722.2, Memory: 200e9, BySpeed: 1, ByMemory: 32, Masters: 32},
		},
		{
			"speed decides", usualPlan(1e9),
			cost{bytes: 7, perCore: 20_000},
			budget{Mean: 11574.07, Busiest: 34722.2, Memory: 7e9, BySpeed: 4, ByMemory: 1, Masters: 4},
		},
		{
			"a core of a cluster does less, where there has to be one", usualPlan(1e9),
			cost{bytes: 14, perCore: 90_000, perCoreOfSeveral: 30_000},
			budget{Mean: 11574.07, Busiest: 34722.2, Memory: 14e9, BySpeed: 3, ByMemory: 2, Masters: 3},
		},
		{
			"and is not asked for where one is enough", usualPlan(1e9),
			cost{bytes: 7, perCore: 90_000, perCoreOfSeveral: 30_000},
			budget{Mean: 11574.07, Busiest: 34722.2, Memory: 7e9, BySpeed: 1, ByMemory: 1, Masters: 1},
		},
		{
			"more than a tag each", usualPlan(1e10),
			cost{bytes: 100, perCore: 1e6},
			budget{Mean: 115740.7, Busiest: 347222, Memory: 1e12, BySpeed: 1, ByMemory: 125, Masters: 125},
		},
		{
			"half of a day is remembered",
			plan{perDay: 864_000, peak: 1, retention: 12 * time.Hour, headroom: 1, memory: 1e9},
			cost{bytes: 10, perCore: 10},
			budget{Mean: 10, Busiest: 10, Memory: 4.32e6, BySpeed: 1, ByMemory: 1, Masters: 1},
		},
	} {
		got := c.plan.budget(c.cost)
		if !near(got.Mean, c.want.Mean) || !near(got.Busiest, c.want.Busiest) || !near(got.Memory, c.want.Memory) ||
			got.BySpeed != c.want.BySpeed || got.ByMemory != c.want.ByMemory || got.Masters != c.want.Masters {
			t.Errorf("%s: %+v, want %+v", c.why, got, c.want)
		}
	}
}

func TestCostsAreOfTheNearest(t *testing.T) {
	z := &Sizing{}
	for _, n := range []int{1, 10, 100} {
		z.Tokens = append(z.Tokens,
			Remembered{Layout: "compact", Tokens: n, Used: int64(9 * n)},
			Remembered{Layout: "compact", Tokens: n, Used: int64(14 * n), Load: &Load{Done: int64(n), RedisCPU: 1}})
	}
	z.Masters = []Sized{
		{Layout: "compact", Value: 1, Load: Load{Done: 9, RedisCPU: 1}},
		{Layout: "compact", Value: 3, Load: Load{Done: 6, RedisCPU: 1}},
		{Layout: "compact, 12 tags", Value: 3, Load: Load{Done: 7, RedisCPU: 1}},
	}
	if c, _, _ := z.costs("compact", 12); c.perCoreOfSeveral != 6 {
		t.Errorf("%+v, want the 6 of three masters with the usual tags", c)
	}
	if c, at, ok := z.costs("compact", 12); !ok || at != 10 || c.bytes != 14 || c.perCore != 10 {
		t.Errorf("%+v at %d, %v; want 14 bytes, with both generations, at 10", c, at, ok)
	}
	if _, _, ok := z.costs("records", 12); ok {
		t.Error("costs of a layout that was not measured")
	}
}

func TestParts(t *testing.T) {
	for list, want := range map[string][]string{
		"":          {"a", "b"},
		"b":         {"b"},
		" b , a":    {"b", "a"},
		"by name,a": {"by name", "a"},
	} {
		if got, err := parseParts(list, []string{"a", "b"}, "by name"); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %v, %v, want %v", list, got, err, want)
		}
	}
	if _, err := parseParts("a,c", []string{"a", "b"}, "by name"); err == nil || !strings.Contains(err.Error(), `"c": there are a, b, by name`) {
		t.Errorf("a part that there is not: %v", err)
	}
}

func TestNumbers(t *testing.T) {
	got, err := parseNumbers("10k, 1M,7")
	if err != nil || !slices.Equal(got, []int{10_000, 1_000_000, 7}) {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := parseNumbers(""); err != nil || got != nil {
		t.Errorf("none: %v, %v", got, err)
	}
	for _, bad := range []string{"many", "1G", "-1", "0"} {
		if _, err := parseNumbers(bad); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("%q: %v, want an error that names it", bad, err)
		}
	}
}

// Parts that are not measured again stay; those that are begin anew.
func TestKeep(t *testing.T) {
	dir := t.TempDir()
	last := planted()
	last.Do, last.Latency = []Load{{Name: "a"}}, []Latency{{Row: "b"}}
	if err := save(dir, RecordsFile, last); err != nil {
		t.Fatal(err)
	}
	var read Result
	if there, err := load(dir, RecordsFile, &read); !there || err != nil {
		t.Fatalf("%v, %v", there, err)
	}
	res := &Result{Messages: 20}
	res.keep(&read, []string{partDo})
	if len(res.Do) != 0 || len(res.Latency) != 1 || len(res.Records) != len(last.Records) || res.Messages != last.Messages || len(res.Ran) != 1 {
		t.Errorf("Do anew: %+v", res)
	}
	res = &Result{Messages: 20}
	res.keep(&read, []string{partRows})
	if len(res.Do) != 1 || len(res.Records) != 0 || res.Messages != 20 {
		t.Errorf("rows anew: %+v", res)
	}
	if there, err := load(t.TempDir(), RecordsFile, &read); there || err != nil {
		t.Errorf("no records: %v, %v", there, err)
	}
}

// A page alone is of the records as they are.
func TestPageAlone(t *testing.T) {
	o := Options{Parts: []string{partPage}, Dir: t.TempDir(), Command: "another"}
	if err := errors.Join(save(o.Dir, RecordsFile, planted()), save(o.Dir, SizingFile, plantedSizing())); err != nil {
		t.Fatal(err)
	}
	if got := Page(Compare(t, o)); got != Page(planted()) {
		t.Errorf("another page:\n%s", got)
	}
	got, err := Size(t, SizingOptions{Options: o}).Page()
	if want, _ := plantedSizing().Page(); err != nil || got != want {
		t.Errorf("another page: %v\n%s", err, got)
	}
}

func TestSoakGrows(t *testing.T) {
	const mb = 1 << 20
	for _, c := range []struct {
		why   string
		heaps []uint64
		grows bool
	}{
		{"one sample says nothing", []uint64{500 * mb}, false},
		{"up and down", []uint64{50 * mb, 90 * mb, 60 * mb}, false},
		{"up", []uint64{50 * mb, 70 * mb, 90 * mb}, true},
	} {
		s := &Soak{}
		for i, h := range c.heaps {
			s.Points = append(s.Points, Sample{Handled: i + 1, Heap: h})
		}
		if got := s.grows(); (got != "") != c.grows {
			t.Errorf("%s: %q", c.why, got)
		}
	}
}

// Every tenth message of the soak repeats the one before it, in its partition.
func TestSoakMessages(t *testing.T) {
	e := &effects{bits: make([]uint64, 16)}
	last := message{}
	for i := range 1000 {
		m := soakMessage(i)
		if repeats := m.token == last.token; repeats != (i%10 == 5) || repeats && m.partition != last.partition {
			t.Fatalf("message %d has token %s, after %s", i, m.token, last.token)
		}
		n, err := numberOf(m.payload)
		if err != nil {
			t.Fatal(err)
		}
		e.add(n)
		last = m
	}
	if done, doubled := e.count(); done != 900 || doubled != 100 {
		t.Errorf("%d tokens and %d repeats, want 900 and 100", done, doubled)
	}
}
