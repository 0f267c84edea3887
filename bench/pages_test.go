package bench

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

// The sections have what was measured, and the reason of what was not.
func TestSections(t *testing.T) {
	res := planted()
	res.Latency = []Latency{
		{Broker: "Kafka", Row: "idemkafka.NewGroupConsumer, records", Most: 50_000, Legs: []Leg{
			{Share: 0.1, Rate: 5000, Latency: Quantiles{N: 1, P50: 0.003, P99: 0.02, P999: 0.04, Max: 0.05}, Behind: 0.004},
		}},
		{Broker: "Kafka", Row: "lease and done, 1 goroutine", Failed: "no\nbroker"},
	}
	res.Do = []Load{
		{Name: limitByHand, Seconds: 5, Done: 500_000, RedisCPU: 2.5, ClientCPU: 5, Trips: 2000},
		{Name: "by hand: lease and done, 1 goroutine", Seconds: 5, Done: 20_000, RedisCPU: 1, ClientCPU: 2, Trips: 40_000, Latency: Quantiles{P50: 0.0002}},
		{Name: limitOf("records"), Seconds: 5, Done: 500_000, RedisCPU: 5},
		{Name: "`Guard.Do`, records, 256 goroutines", Seconds: 5, Done: 250_000, RedisCPU: 4},
	}
	res.Trips = []Trips{{Broker: "Kafka", Row: "idemkafka", Load: 0.007, Repeats: 0.004, Idle: 2, IdleRepeat: 1}}
	res.Seconds = []Load{{Name: "compact", Seconds: 3, PerSecond: []int64{100, 50, 100}, Latency: Quantiles{Max: 0.5}}}
	res.Network = []Distance{{Away: 0.002, Ping: 0.0023, Pairs: []Beside{
		{What: "`Do`, 1 goroutine", Hand: Side{Rate: 200, P50: 0.005, P99: 0.006}, Ours: Side{Rate: 150, P50: 0.007, P99: 0.008}},
		{What: "Kafka", Hand: Side{Rate: 9000}, Ours: Side{Rate: 90_000}},
	}}}
	res.Soak = &Soak{Messages: 2_000_000, Points: []Sample{{Handled: 1_000_000, Seconds: 20, Heap: 12_300_000, RSS: 90_000_000}}}
	page := Page(res)
	for _, want := range []string{
		"| **Kafka, idemkafka.NewGroupConsumer, records** | 10 % of 50,000 | 5,000 | 3 ms | 20 ms | 40 ms | 50 ms | 4 ms |",
		"| Kafka, lease and done, 1 goroutine | not measured: no broker |",
		"| " + limitByHand + " | 100,000 | 200,000 |  |  |  |  | 0.004 | 1.00 | 0.50 |",
		"| by hand: lease and done, 1 goroutine | 4,000 | 20,000 | 2 % | 0.2 ms | 0 ms | 0 ms | 2 | 10.00 | 5.00 |",
		"| **`Guard.Do`, records, 256 goroutines** | 50,000 | 62,500 | 50 % |",
		"share 2 threads", "A call of that row is a pipeline of 500.",
		"| rate by hand | rate ours | ours/by hand | p50 by hand | p50 ours | p99 by hand | p99 ours |",
		"| **Kafka, idemkafka** | 0.007 | 0.004 | 2 | 1 |",
		"| compact | 100 | 50 | 50 % | 2 | 0 | 0 ms | 500 ms |",
		"| 2 ms | 2.3 ms | `Do`, 1 goroutine | 200 | 150 | 0.75 | 5 ms | 7 ms | 6 ms | 8 ms |",
		"| 2 ms | 2.3 ms | Kafka | 9,000 | 90,000 | 10 |  |  |  |  |",
		"| 1,000,000 | 20 | 12.3 MB | 90.0 MB |",
		"| no deduplication | 50,000 [10,000-100,000] | 100,000 |",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	// Of Do, the seconds and the network.
	if n := strings.Count(page, closedLoop); n != 3 {
		t.Errorf("the page says %d times what the times of calls leave out, want 3", n)
	}
	if t.Failed() {
		t.Log(page)
	}
	only := Page(&Result{Do: res.Do, CPUs: 2})
	for _, not := range []string{"## Latency", "## Round trips", "## The slowest", "## Redis behind", "## Memory", PlotFile} {
		if strings.Contains(only, not) {
			t.Errorf("a page of Do alone has %q", not)
		}
	}
}

// plantedSizing has every part.
func plantedSizing() *Sizing {
	z := &Sizing{Machine: *planted(), Allocator: "jemalloc-5", Ran: map[string]Ran{}}
	full := &Load{Seconds: 4, Done: 200_000, RedisCPU: 4, Latency: Quantiles{N: 1, P99: 0.01}}
	z.Tokens = []Remembered{
		{Layout: "records", Tokens: 10_000_000, Used: 2_000_000_000, RSS: 2_100_000_000, Load: full},
		{Layout: "compact", Tokens: 10_000_000, Used: 90_000_000, AtOnce: true},
		{Layout: "compact", Tokens: 10_000_000, Older: 5_000_000, Used: 140_000_000, Load: full},
	}
	z.Servers = []Remembered{{Server: "Valkey 9.1.2", Allocator: "libc", Layout: "records", Tokens: 10_000_000, Used: 1_800_000_000, RSS: 1_900_000_000, Load: full}}
	z.Cliffs = []Cliff{{Keys: 1 << 23, Longest: 0.25, Usual: 0.002, Slowest: 0.25}}
	z.Partitions = []Sized{{Layout: "records", Value: 4, Load: *full}, {Layout: "records", Value: 16, Failed: "no\nbroker"}}
	z.Handlers = []Sized{{Layout: "records", Value: 64, Load: *full}}
	z.Duplicates = []Sized{{Layout: "compact", Value: 50, Load: *full}}
	z.Masters = []Sized{{Layout: "records", Value: 3, Load: *full}}
	for _, part := range SizingParts {
		z.Ran[part] = Ran{Time: time.Date(2026, 11, 28, 9, 0, 0, 0, time.UTC), Command: "make sizing"}
	}
	return z
}

func TestSizingPage(t *testing.T) {
	page, err := plantedSizing().Page()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| records | 10,000,000 | 0 | 2.00 GB | 2.10 GB | 200.0 | 50,000 | 50,000 | 10 ms |",
		"| compact | 10,000,000 | 0 | 0.09 GB | 0.00 GB * | 9.0 |  |  |  |",
		"| compact | 10,000,000 | 5,000,000 | 0.14 GB | 0.00 GB | 14.0 |",
		"| Valkey 9.1.2 | libc | records | 10,000,000 | 0 | 1.80 GB | 1.90 GB | 180.0 | 50,000 | 50,000 |",
		"| 8,388,608 | 250 ms | 2 ms | 25 % |",
		"| records | 4 | 50,000 | 50,000 | 0 | 2.00 | 0.00 | 0 ms | 10 ms |",
		"| records | 16 | not measured: no broker |",
		"| 64,000 |", // 64 handlers of 1 ms
		"| 0.67 s |", // 2 s of three masters
		"| 1,000,000,000 | 11,574/s | 34,722/s | records | 200.00 GB | 2 | 32 | 32 |",
		"| 1,000,000,000 | 11,574/s | 34,722/s | compact | 14.00 GB | 2 | 2 | 2 |",
		"Records: 200.0 bytes a token and 50,000 messages a second of a core, measured at 10,000,000 tokens; 50,000 where there are several masters. Compact",
		closedLoop, "Redis 7.0.15 with jemalloc-5", "- masters: `make sizing`, 2026-11-28 09:00:00 UTC", "some CPU, 2 CPUs",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	for _, not := range []string{"<no value>", "%!"} {
		if strings.Contains(page, not) {
			t.Errorf("the page has %q", not)
		}
	}
	if t.Failed() {
		t.Log(page)
	}
	// What was not measured is not told.
	few, err := (&Sizing{Handlers: plantedSizing().Handlers}).Page()
	if err != nil {
		t.Fatal(err)
	}
	for _, not := range []string{"## Remembered", "### On other servers", "## Partitions", "## Arithmetic", "<no value>"} {
		if strings.Contains(few, not) {
			t.Errorf("a page of handlers alone has %q", not)
		}
	}
}

// The same records give the same SVG, with a panel for each part.
func TestSizingPlot(t *testing.T) {
	first, err := plantedSizing().Plot()
	if err != nil {
		t.Fatal(err)
	}
	again, err := plantedSizing().Plot()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, again) {
		t.Error("the same records gave two pictures")
	}
	for _, want := range []string{">Memory, GB<", ">partitions<", ">goroutines<", ">duplicates, %<", ">10 M<", ">compact<"} {
		if !bytes.Contains(first, []byte(want)) {
			t.Errorf("the picture lacks %s", want)
		}
	}
	if _, err := new(Sizing).Plot(); err != nil {
		t.Errorf("nothing measured: %v", err)
	}
}
