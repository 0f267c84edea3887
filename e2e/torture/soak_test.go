package torture

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
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
