package torture

import (
	"bytes"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/idemq/idemq/e2e/torture/role"
)

// What make soak sets.
var (
	flagSoak     = flag.Duration("torture.soak", 0, "how long the soak is; zero: it is skipped")
	flagSoakRate = flag.Int("torture.soakrate", 0, "messages a second of all sites of the soak; zero: 2250")
	flagSoakDocs = flag.String("torture.soakdocs", "", "folder that the page of the soak is written to")
)

// Consumers of all brokers use no more after an hour than after its first minutes.
func TestSoak(t *testing.T) {
	if *flagSoak == 0 {
		t.Skip("SKIPPED: the soak takes as long as it is told to: make soak DURATION=1h")
	}
	o := SoakOptions{Seed: *flagSeed, Duration: *flagSoak, Rate: *flagSoakRate, Dir: filepath.Join(outDir(t), "soak"), Bin: BuildConsumer(t, BuildOptions{})}
	if o.Seed == 0 {
		o.Seed = uint64(time.Now().UnixNano()) % 1_000_000_000
	}
	t.Logf("seed %d", o.Seed)
	if err := os.RemoveAll(o.Dir); err != nil {
		t.Fatal(err)
	}
	r := Soak(t, o)
	page := writeSoak(t, o.Dir, o.Dir)
	t.Logf("\n%s", page)
	if *flagSoakDocs != "" {
		writeSoak(t, o.Dir, *flagSoakDocs)
	}
	if len(r.Failures) > 0 {
		t.Errorf("%s\nagain: %s", strings.Join(r.Failures, "\n\n"), r.Command)
	}
}

// keepsAll is a build that keeps a goroutine, and what it holds, of each message.
var keepsAll = []Replacement{{
	File: "e2e/torture/consumer/handler.go",
	Old:  "	return h.leave(run, h.work(ctx, run, h.takes()))\n",
	New: `	kept := make([]byte, 50_000)
	for i := range kept {
		kept[i] = 1
	}
	go func() {
		<-make(chan bool)
		kept[0]++
	}()
	return h.leave(run, h.work(ctx, run, h.takes()))
`,
}}

// A soak of seconds is one of an hour but for its length: the page can be written, and a
// leak is found.
func TestSoakOfSeconds(t *testing.T) {
	if testing.Short() {
		t.Skip("this takes a while")
	}
	for name, leaky := range map[string]bool{"as it is": false, "with a leak": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, build := t.TempDir(), BuildOptions{}
			if leaky {
				build.Replace = keepsAll
			}
			// This seed's faults, a kill, a reset and a deploy, leave the process that is judged at work.
			r := Soak(t, SoakOptions{Seed: 206, Duration: 6 * time.Second, Rate: 300, Brokers: []string{"nats"}, Dir: dir, Bin: BuildConsumer(t, build)})
			if len(r.Sites) != 1 || r.Sites[0].Messages < 300 || !r.Sites[0].Passed() || len(r.Faults) == 0 {
				t.Errorf("%+v", r)
			}
			found := map[string]bool{}
			for i := range r.Trends {
				found[r.Trends[i].Series] = !r.Trends[i].Flat()
				if !leaky || found[r.Trends[i].Series] {
					t.Log(&r.Trends[i])
				}
			}
			if found["goroutines"] != leaky || found["live heap"] != leaky || leaky && !found["resident memory"] {
				t.Errorf("what was found to grow: %v; goroutines and the live heap do: %v", found, leaky)
			}
			page := writeSoak(t, dir, dir)
			if got := strings.Contains(page, "| **grows** |"); !got && leaky {
				t.Errorf("the page does not say so:\n%s", page)
			}
			for _, want := range []string{"one broker, with one Redis, for 6 seconds:", "**0 lost, 0 doubled outside the named windows**", "| nats/redis |", "make soak DURATION=6s SEED=206 REPORT=1", "NATS 2."} {
				if !strings.Contains(page, want) {
					t.Errorf("the page lacks %q:\n%s", want, page)
				}
			}
		})
	}
}

func TestBrief(t *testing.T) {
	for d, want := range map[time.Duration]string{
		time.Hour: "1h", 90 * time.Minute: "1h30m", 10 * time.Minute: "10m", 10 * time.Second: "10s", time.Hour + 10*time.Second: "1h0m10s",
	} {
		if got := brief(d); got != want {
			t.Errorf("%v is %s, want %s", d, got, want)
		}
	}
}

func TestSoakPlan(t *testing.T) {
	const every = time.Minute
	plan := soakPlan(7, 0, time.Hour, every)
	if !slices.Equal(plan, soakPlan(7, 0, time.Hour, every)) {
		t.Error("a seed has two plans")
	}
	if slices.Equal(plan, soakPlan(7, 1, time.Hour, every)) || slices.Equal(plan, soakPlan(8, 0, time.Hour, every)) {
		t.Error("two sites, or two seeds, have one plan")
	}
	times := map[Kind]int{}
	for i, f := range plan {
		times[f.Kind]++
		if f.At.Truncate(every) != time.Duration(i)*every {
			t.Errorf("fault %d: %v", i, f)
		}
		if f.Kind == Kill && f.Slot == 0 {
			t.Errorf("the process that is to live throughout is killed: %v", f)
		}
	}
	if len(plan) != 60 {
		t.Errorf("%d faults in an hour", len(plan))
	}
	for _, k := range soakKinds {
		if n := times[k]; n < 3 || n > 4 {
			t.Errorf("%s comes %d times", k, n)
		}
	}
}

// The same records give the same page and picture.
func TestSoakPage(t *testing.T) {
	r := &SoakResult{
		Time: time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC), Command: "make soak DURATION=1h SEED=7", Seed: 7, Duration: time.Hour, Retention: 3 * time.Minute,
		Judged: 10 * time.Minute, Sampled: 10 * time.Second, FaultsAt: time.Minute, Go: "go1.26", Redis: "Redis 7.0.15", CPUs: 2, Memory: 25e9,
		Sites: []Result{
			{Site: "kafka-group/redis", Broker: "Kafka 4.3.0", Messages: 2_400_000, Copies: 2_640_000, Faults: map[string]int{Kill.String(): 4}, InWindow: map[string]int{"process died": 2}},
			{Site: "nats/redis", Broker: "NATS 2.15.2", Messages: 2_400_000, Copies: 2_640_000, Faults: map[string]int{Pause.String(): 3}},
		},
		Faults:  []SoakFault{{Seconds: 70, Site: "nats", Kind: Pause.String()}},
		Handled: map[string]int{"kafka-group": 700_000, "nats": 650_000},
	}
	var samples []Sample
	for i := range 360 {
		x := Sample{Seconds: float64(i * 10), Redis: &RedisSample{Keys: 400_000, Memory: 90 * mega}}
		for _, kind := range r.kinds() {
			x.Sites = append(x.Sites, SiteSample{Site: kind, Messages: int64(i * 6667), Consumers: []role.Stats{
				{Number: veteran, RSS: 25 * mega, Heap: 2 * mega, Goroutines: 40, Descriptors: 15},
				{Number: 2, RSS: 24 * mega, Heap: 2 * mega, Goroutines: 40 + i, Descriptors: 15},
			}})
		}
		samples = append(samples, x)
	}
	samples[100].Redis = nil // it is being restarted
	r.judgeAll(samples)
	if len(r.Failures) > 0 {
		t.Error(r.Failures)
	}
	page := SoakPage(r)
	for _, want := range []string{
		"2 brokers at once, with one Redis, for one hour: 4,800,000 messages, published 5,280,000 times, 1,333 a second and 1,466 copies of them, under 7 faults, one a site each minute.",
		"**0 lost, 0 doubled outside the named windows**, 2 doubled in them.",
		"Memory, goroutines, file descriptors, and the keys and memory of Redis are flat from 10 minutes on.",
		"one of 3.1 bytes of heap a message, or of a goroutine in 130,000 messages,",
		"make soak DURATION=1h SEED=7 REPORT=1",
		"2 CPUs, 25 GB of memory",
		"kill 4, pause 3",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q:\n%s", want, page)
		}
	}
	svg, err := SoakPlot(r, samples)
	if err != nil {
		t.Fatal(err)
	}
	again, err := SoakPlot(r, samples)
	if err != nil || !bytes.Equal(svg, again) {
		t.Errorf("the same samples give another picture: %v", err)
	}
	for d := xml.NewDecoder(bytes.NewReader(svg)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{"nats: goroutines", "Redis keys (thousand)", "minutes"} {
		if !strings.Contains(string(svg), ">"+want+"<") {
			t.Errorf("the picture lacks %q", want)
		}
	}

	for i := range samples {
		samples[i].Sites[1].Consumers[0].Goroutines += i
	}
	r.Trends = nil
	r.judgeAll(samples)
	if page := SoakPage(r); len(r.Failures) != 1 || !strings.Contains(page, "**Not flat: nats: goroutines.**") || !strings.Contains(page, "- nats: not flat: nats: goroutines grew by") {
		t.Errorf("%v\n%s", r.Failures, page)
	}
}

// writeSoak writes the page and its plot from the files of a folder, to another.
func writeSoak(t *testing.T, from, to string) (page string) {
	t.Helper()
	r, err := ReadSoak(filepath.Join(from, SoakResultFile))
	if err != nil {
		t.Fatal(err)
	}
	samples, err := ReadSamples(filepath.Join(from, SoakSamplesFile))
	if err != nil {
		t.Fatal(err)
	}
	svg, err := SoakPlot(r, samples)
	if err != nil {
		t.Fatal(err)
	}
	page = SoakPage(r)
	for name, text := range map[string][]byte{SoakPageFile: []byte(page), SoakPlotFile: svg} {
		if err := os.WriteFile(filepath.Join(to, name), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return page
}
