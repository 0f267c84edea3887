package bench

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shirou/gopsutil/v4/cpu"
	"github.com/shirou/gopsutil/v4/host"
	"github.com/shirou/gopsutil/v4/mem"
)

// Options are what a comparison is asked for.
type Options struct {
	Messages int
	Rounds   int
	Rows     *regexp.Regexp // of "broker/row"
	Command  string         // that asks for it
	Dir      string         // of its records
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
}

// Compare runs the rows of every broker, one after another in each round, so that what a
// machine does meanwhile meets all of them.
func Compare(t *testing.T, o Options) *Result {
	t.Helper()
	res := describe(t, o)
	for _, b := range Brokers() {
		var rows []Row
		for _, row := range b.Rows {
			if o.Rows.MatchString(b.Name + "/" + row.Name) {
				rows = append(rows, row)
			}
		}
		if len(rows) == 0 {
			continue
		}
		t.Run(b.Name, func(t *testing.T) { res.compare(t, o, b, rows) })
		if err := res.save(o.Dir); err != nil {
			t.Fatal(err)
		}
	}
	return res
}

// compare runs the rows of one broker.
func (res *Result) compare(t *testing.T, o Options, b Broker, rows []Row) {
	t.Helper()
	l := newLab(t, b)
	res.know(l.server.version())
	res.know(l.redisVersion(t))
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

func (l *lab) redisVersion(tb testing.TB) string {
	tb.Helper()
	info, err := l.own.InfoMap(tb.Context(), "server").Result()
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
	if out, err := exec.Command("git", "describe", "--always", "--dirty", "--abbrev=12").Output(); err == nil {
		res.Library = strings.TrimSpace(string(out))
	}
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

func (res *Result) save(dir string) error {
	text, err := json.MarshalIndent(res, "", "\t")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, RecordsFile), text, 0o644)
}
