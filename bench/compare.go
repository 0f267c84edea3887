package bench

import (
	"fmt"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/shirou/gopsutil/v4/cpu"
	"github.com/shirou/gopsutil/v4/host"
	"github.com/shirou/gopsutil/v4/mem"

	"github.com/idemq/idemq/internal/testenv"
)

// Options are what a comparison is asked for.
type Options struct {
	Messages int
	Rounds   int
	Rows     *regexp.Regexp // of "broker/row"
	Command  string         // that asks for it
	Dir      string         // of its records

	Parts []string
	// Quick makes all but the rows short, to see that they work.
	Quick bool
	// Soak is how many messages the part of that name consumes.
	Soak int
}

// pick is the time or number for a run to quote, or for a quick one.
func pick[T any](o Options, usual, quick T) T {
	if o.Quick {
		return quick
	}
	return usual
}

// RecordsFile has the Result, in the folder of the options.
const RecordsFile = "records.json"

// Result is a comparison: all of its runs, and what they ran on.
type Result struct {
	Time     time.Time `json:"time"`
	Command  string    `json:"command"`
	Messages int       `json:"messages"`
	Distinct int       `json:"distinct"`
	Rounds   int       `json:"rounds"`

	CPU     string `json:"cpu"`
	CPUs    int    `json:"cpus"`
	Memory  uint64 `json:"memory"` // bytes
	System  string `json:"system"`
	Go      string `json:"go"`
	Library string `json:"library,omitempty"` // its commit

	Servers []string `json:"servers"`
	Clients []string `json:"clients"`
	Records []Record `json:"records"`

	Latency []Latency  `json:"latency,omitempty"`
	Do      []Load     `json:"do,omitempty"`
	Trips   []Trips    `json:"trips,omitempty"`
	Seconds []Load     `json:"seconds,omitempty"`
	Network []Distance `json:"network,omitempty"`
	Soak    *Soak      `json:"soak,omitempty"`

	Ran map[string]Ran `json:"ran,omitempty"` // by part
}

// Compare measures parts of a comparison; the others stay as they were in its folder's
// records.
func Compare(t *testing.T, o Options) *Result {
	t.Helper()
	var last Result
	there, err := load(o.Dir, RecordsFile, &last)
	if err != nil {
		t.Fatal(err)
	}
	if slices.Contains(o.Parts, partPage) {
		return &last
	}
	res := describe(t, o)
	if there && !o.Quick {
		res.keep(&last, o.Parts)
	}
	for _, part := range o.Parts {
		begun := time.Now()
		switch part {
		case partRows:
			res.eachBroker(t, o, false, func(t *testing.T, b Broker, rows []Row) { res.compare(t, o, b, rows) })
		case partLatency:
			res.eachBroker(t, o, true, func(t *testing.T, b Broker, rows []Row) {
				t.Helper()
				l := res.lab(t, b)
				for _, row := range rows {
					got := l.measureLatency(t, row, pick(o, row.flood, row.flood/20), pick(o, 8*time.Second, time.Second))
					res.Latency = append(res.Latency, got)
					t.Logf("%s: %.0f messages/s %s", row.Name, got.Most, got.Failed)
				}
			})
		case partDo:
			whole(t, "Do", func(t *testing.T) { res.measureDo(t, pick(o, 5*time.Second, time.Second/2)) })
		case partTrips:
			res.eachBroker(t, o, true, func(t *testing.T, b Broker, rows []Row) {
				t.Helper()
				l := res.lab(t, b)
				for _, row := range rows {
					if row.Kind == Ours {
						got := l.measureTrips(t, row, pick(o, row.flood/2, row.flood/20))
						res.Trips = append(res.Trips, got)
						t.Logf("%+v", got)
					}
				}
			})
		case partSeconds:
			whole(t, "seconds", func(t *testing.T) { res.measureSeconds(t, pick(o, time.Minute, 3*time.Second)) })
		case partNetwork:
			whole(t, "network", func(t *testing.T) {
				res.measureNetwork(t, pick(o, 5*time.Second, time.Second/2), pick(o, o.Messages/2, o.Messages/10))
			})
		case partSoak:
			whole(t, "soak", func(t *testing.T) { res.measureSoak(t, o.Soak) })
		}
		if t.Failed() {
			t.FailNow()
		}
		res.measured(t, o, part, begun)
	}
	return res
}

// keep takes over what the last comparison has of parts that are not measured now.
func (res *Result) keep(last *Result, parts []string) {
	res.Ran = last.Ran
	measured := func(part string) bool { return slices.Contains(parts, part) }
	if !measured(partRows) {
		res.Messages, res.Rounds, res.Distinct, res.Records, res.Servers = last.Messages, last.Rounds, last.Distinct, last.Records, last.Servers
		if res.Ran == nil && len(last.Records) > 0 { // records from before there were parts
			res.Ran = map[string]Ran{partRows: {Time: last.Time, Library: last.Library, Command: last.Command}}
		}
	}
	if !measured(partLatency) {
		res.Latency = last.Latency
	}
	if !measured(partDo) {
		res.Do = last.Do
	}
	if !measured(partTrips) {
		res.Trips = last.Trips
	}
	if !measured(partSeconds) {
		res.Seconds = last.Seconds
	}
	if !measured(partNetwork) {
		res.Network = last.Network
	}
	if !measured(partSoak) {
		res.Soak = last.Soak
	}
}

// eachBroker runs a part of it for each broker that has rows which are asked for: those with
// a flood only, or all.
func (res *Result) eachBroker(t *testing.T, o Options, flooded bool, part func(t *testing.T, b Broker, rows []Row)) {
	t.Helper()
	for _, b := range Brokers() {
		var rows []Row
		for _, row := range b.Rows {
			if o.Rows.MatchString(b.Name+"/"+row.Name) && (!flooded || row.flood > 0) {
				rows = append(rows, row)
			}
		}
		if len(rows) > 0 {
			whole(t, b.Name, func(t *testing.T) { part(t, b, rows) })
		}
	}
}

// lab starts a broker, and notes the servers' versions.
func (res *Result) lab(t *testing.T, b Broker) *lab {
	t.Helper()
	l := newLab(t, b)
	res.know(l.server.version())
	res.know(redisVersion(t, l.own))
	return l
}

// compare runs the rows of one broker.
func (res *Result) compare(t *testing.T, o Options, b Broker, rows []Row) {
	t.Helper()
	l := res.lab(t, b)
	for round := 1; round <= o.Rounds; round++ {
		w, err := NewWork(o.Messages, uint64(round))
		if err != nil {
			t.Fatal(err)
		}
		res.Distinct = w.Distinct()
		for i, row := range rows {
			rec := l.measure(t, row, w, round)
			res.Records = append(res.Records, rec)
			t.Logf("round %d of %d, row %d of %d: %s: %s", round, o.Rounds, i+1, len(rows), row.Name, rec.brief(o.Messages))
		}
	}
}

func (res *Result) know(version string) {
	if !slices.Contains(res.Servers, version) {
		res.Servers = append(res.Servers, version)
	}
}

func redisVersion(tb testing.TB, c *redis.Client) string {
	tb.Helper()
	info, err := c.InfoMap(tb.Context(), "server").Result()
	if err != nil {
		tb.Fatalf("asking Redis for its version: %v", err)
	}
	if v := info["Server"]["valkey_version"]; v != "" {
		return "Valkey " + v
	}
	return "Redis " + info["Server"]["redis_version"]
}

// brief is a line of progress.
func (rec *Record) brief(messages int) string {
	if rec.Failed != "" {
		return "not measured: " + rec.Failed
	}
	return fmt.Sprintf("%.0f messages/s, %d missing, %d handled again", float64(messages)/rec.Seconds, rec.Missing, rec.Doubled)
}

// describe says what a comparison runs on.
func describe(t *testing.T, o Options) *Result {
	t.Helper()
	memory, err := mem.VirtualMemory()
	if err != nil {
		t.Fatal(err)
	}
	res := &Result{
		Time: time.Now().UTC().Truncate(time.Second), Command: o.Command, Messages: o.Messages, Rounds: o.Rounds,
		CPUs: runtime.NumCPU(), Memory: memory.Total, Go: runtime.Version(), System: runtime.GOOS, Clients: clients(t),
	}
	if all, err := cpu.Info(); err == nil && len(all) > 0 {
		res.CPU = all[0].ModelName
	}
	if h, err := host.Info(); err == nil {
		res.System = strings.TrimSpace(fmt.Sprintf("%s %s, kernel %s", h.Platform, h.PlatformVersion, h.KernelVersion))
	}
	res.Library = testenv.Commit(".")
	return res
}

// clientModules are the clients of the rows in Go.
var clientModules = []string{
	"github.com/segmentio/kafka-go",
	"github.com/redis/go-redis/v9",
	"github.com/nats-io/nats.go",
	"github.com/rabbitmq/amqp091-go",
	"github.com/ThreeDotsLabs/watermill",
	"github.com/ThreeDotsLabs/watermill-kafka/v3",
	"github.com/IBM/sarama",
}

// clients asks the go command: a test does not know what it was built from.
func clients(t *testing.T) (all []string) {
	t.Helper()
	out, err := exec.Command("go", append([]string{"list", "-m", "-f", "{{.Path}} {{.Version}}"}, clientModules...)...).Output()
	if err != nil {
		t.Fatalf("go list -m: %v", err)
	}
	for line := range strings.Lines(string(out)) {
		module, version, _ := strings.Cut(strings.TrimSpace(line), " ")
		name := strings.Split(module, "/")[2] // after the host and the owner
		all = append(all, name+" "+strings.TrimPrefix(version, "v"))
	}
	return all
}
