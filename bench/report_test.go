package bench

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"
)

// planted is a comparison of three rows in three rounds, of which one row could not be had.
func planted() *Result {
	res := &Result{
		Time: time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC), Command: "make bench", Messages: 1000, Distinct: 900, Rounds: 3,
		CPU: "some CPU", CPUs: 2, Memory: 25e9, System: "debian 12", Go: "go1.26", Library: "0123456789ab",
		Ran:     map[string]Ran{partRows: {Time: time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC), Library: "0123456789ab", Command: "make bench"}},
		Servers: []string{"Kafka 4.3.0", "Redis 7.0.15"}, Clients: []string{"kafka-go 0.4.51"},
	}
	rows := Brokers()[0].Rows
	ours := rows[slices.IndexFunc(rows, func(r Row) bool { return r.Kind == Ours })]
	for round, factor := range []float64{1, 2, 10} {
		for row, seconds := range map[string]float64{rows[0].Name: 0.01, ours.Name: 0.04} {
			rec := Record{Broker: "Kafka", Row: row, Round: round + 1, Seconds: seconds * factor, Handled: seconds * factor / 2, ClientCPU: 0.002, BrokerCPU: 0.004 * factor, Trips: 10, Commands: 3000, Mallocs: 20_000}
			if row == rows[0].Name {
				rec.Doubled = 100
			}
			res.Records = append(res.Records, rec)
		}
	}
	res.Records = append(res.Records, Record{Broker: "Kafka", Row: rows[1].Name, Round: 1, Failed: "no such\nserver"})
	return res
}

// The page has medians, ratios within rounds, and the reason of each row that is missing.
func TestPage(t *testing.T) {
	page := Page(planted())
	for _, want := range []string{
		"| no deduplication | 50,000 [10,000-100,000] | 100,000 | 100 % | 0.25 | 100 | 0.01 | 3 | 0.20 | 0.00 | 0.80 | 25 % | 20 |",
		"| **idemkafka.NewGroupConsumer, records** | 12,500 [2,500-25,000] | 25,000 | 25 % | 1 | 0 |",
		"| SETNX, 1 goroutine | not measured |",
		"- Kafka, SETNX, 1 goroutine (0 of 3 rounds measured): no such server",
		"some CPU, 2 CPUs, 25 GB of memory, debian 12", "Kafka 4.3.0, Redis 7.0.15, go1.26. kafka-go 0.4.51.",
		"- rows: `make bench`, 2026-11-27 12:00:00 UTC, the library at 0123456789ab",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q:\n%s", want, page)
		}
	}
	if strings.Contains(page, "## Did not handle") {
		t.Errorf("the page accuses a row that did what it should:\n%s", page)
	}
}

// Ratios are to the nearest baseline above, and to the first row of ours below that one.
func TestRatios(t *testing.T) {
	b := Broker{Name: "some", Rows: []Row{
		{Name: "raw", Kind: Baseline},
		{Name: "ours", Kind: Ours},
		{Name: "ours again", Kind: Ours},
		{Name: "faster raw", Kind: Baseline},
		{Name: "faster ours", Kind: Ours},
	}}
	res := &Result{Messages: 1000}
	for i, rate := range []float64{1000, 500, 250, 4000, 3000} {
		res.Records = append(res.Records, Record{Broker: b.Name, Row: b.Rows[i].Name, Round: 1, Seconds: 1000 / rate})
	}
	want := [][2]float64{{1, 0.5}, {0.5, 1}, {0.25, 2}, {1, 0.75}, {0.75, 1}}
	for i, s := range res.Summaries(b) {
		if got := [2]float64{s.OfBaseline, s.OurTimes}; got != want[i] {
			t.Errorf("%s: of its baseline, and ours of it: %v, want %v", s.Row.Name, got, want[i])
		}
	}
}

// A row that lost a message, or handled a copy that it should have dropped, is named.
func TestPageNamesWhatWentWrong(t *testing.T) {
	for _, spoil := range []func(*Record){
		func(r *Record) { r.Missing = 3 },
		func(r *Record) { r.Doubled += 4 },
	} {
		for i := range 2 { // the rows of the first round
			res := planted()
			spoil(&res.Records[i])
			if page := Page(res); !strings.Contains(page, "## Did not handle what they should\n\n- Kafka, "+res.Records[i].Row) {
				t.Errorf("record %+v is not named:\n%s", res.Records[i], page)
			}
		}
	}
}

// The same result gives the same SVG, with a bar's name for each row that was measured.
func TestPlot(t *testing.T) {
	first, err := Plot(planted())
	if err != nil {
		t.Fatal(err)
	}
	again, err := Plot(planted())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, again) {
		t.Error("the same result gave two pictures")
	}
	for name, want := range map[string]bool{"no deduplication": true, "idemkafka.NewGroupConsumer, records": true, "SETNX, 1 goroutine": false} {
		if got := bytes.Contains(first, []byte(">"+name+"<")); got != want {
			t.Errorf("row %q in the picture: %t, want %t", name, got, want)
		}
	}
}
