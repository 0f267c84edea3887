package bench

import (
	"flag"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/idemq/idemq/internal/testenv"
)

// What make bench sets.
var (
	flagMessages = flag.Int("compare.messages", 0, "of each row and round, a multiple of ten; zero: nothing is compared")
	flagParts    = flag.String("compare.parts", "", "parts, separated by commas: rows, latency, do, trips, seconds, network, soak, page; empty: all but soak; page: none, and the page is written")
	flagQuick    = flag.Bool("compare.quick", false, "makes the parts behind the rows short, to see that they work")
	flagSoak     = flag.Int("compare.soak", 10_000_000, "messages of the part soak")
	flagRounds   = flag.Int("compare.rounds", 3, "rounds, in each of which every row runs once")
	flagRows     = flag.String("compare.rows", "", "regexp of broker/row; empty: all")
	flagDocs     = flag.String("compare.docs", "", "folder that the page and its plot are written to; empty: the page is printed")
	flagCommand  = flag.String("compare.command", "go test", "the command that asked for this, for the page")
)

// keepsItsParts ends the test where a page would be written without some of its parts.
func keepsItsParts(t *testing.T, o Options, file string, all []string) {
	t.Helper()
	switch gone, err := lacking(o.Dir, file, o.Parts, all); {
	case err != nil:
		t.Fatal(err)
	case len(gone) > 0:
		t.Fatalf("the page would lose %s, of which %s has no records: measure all parts once", strings.Join(gone, ", "), o.Dir)
	}
}

// TestCompare is the program behind make bench.
func TestCompare(t *testing.T) {
	if *flagMessages == 0 {
		t.Skip("compares rows at length: make bench, or make bench-quick")
	}
	rows, err := regexp.Compile(*flagRows)
	if err != nil {
		t.Fatalf("-compare.rows: %v", err)
	}
	parts, err := parseParts(*flagParts, Parts, partSoak, partPage)
	if err != nil {
		t.Fatalf("-compare.parts: %v", err)
	}
	o := Options{
		Messages: *flagMessages, Rounds: *flagRounds, Rows: rows, Command: *flagCommand,
		Parts: parts, Quick: *flagQuick, Soak: *flagSoak,
		Dir: filepath.Join(testenv.Root(t), ".cache", pick(Options{Quick: *flagQuick}, "bench", "bench-quick")),
	}
	if *flagDocs != "" {
		keepsItsParts(t, o, RecordsFile, Parts)
	}
	res := Compare(t, o)
	if slices.Contains(parts, partRows) && len(res.Records) == 0 {
		t.Fatalf("no row was run: -compare.rows is %q", *flagRows)
	}
	page := Page(res)
	if *flagDocs == "" {
		t.Log("\n" + page)
		return
	}
	files := map[string][]byte{PageFile: []byte(page)}
	if len(res.Records) > 0 {
		if files[PlotFile], err = Plot(res); err != nil {
			t.Fatal(err)
		}
	}
	for file, text := range files {
		if err := os.WriteFile(filepath.Join(*flagDocs, file), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("wrote %s into %s", strings.Join(slices.Sorted(maps.Keys(files)), " and "), *flagDocs)
}
