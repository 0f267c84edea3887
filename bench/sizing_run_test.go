package bench

import (
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/idemq/idemq/internal/testenv"
)

// What make sizing sets.
var (
	flagSizing        = flag.Bool("sizing", false, "measures; else nothing is")
	flagSizingParts   = flag.String("sizing.parts", "", "parts, separated by commas: tokens, servers, partitions, handlers, duplicates, masters, page; empty: all; page: none, and the page is written")
	flagSizingQuick   = flag.Bool("sizing.quick", false, "makes all parts short, to see that they work")
	flagSizingRecords = flag.String("sizing.records", "1M,10M,50M", "numbers of tokens to be remembered as records, lowest first; 50M take 12 GB")
	flagSizingCompact = flag.String("sizing.compact", "1M,10M,100M", "the same in the compact layout; 100M take 2 GB")
	flagSizingDocs    = flag.String("sizing.docs", "", "folder that the page and its plot are written to; empty: the page is printed")
	flagSizingCommand = flag.String("sizing.command", "go test", "the command that asked for this, for the page")
)

// TestSizing is the program behind make sizing.
func TestSizing(t *testing.T) {
	if !*flagSizing {
		t.Skip("measures at length: make sizing")
	}
	parts, err := parseParts(*flagSizingParts, SizingParts, partPage)
	if err != nil {
		t.Fatalf("-sizing.parts: %v", err)
	}
	o := SizingOptions{Options: Options{
		Parts: parts, Quick: *flagSizingQuick, Command: *flagSizingCommand, Rows: regexp.MustCompile(""),
		Dir: filepath.Join(testenv.Root(t), ".cache", pick(Options{Quick: *flagSizingQuick}, "bench", "bench-quick")),
	}}
	if o.Records, err = parseNumbers(pick(o.Options, *flagSizingRecords, "10k,2M")); err != nil {
		t.Fatalf("-sizing.records: %v", err)
	}
	if o.Compact, err = parseNumbers(pick(o.Options, *flagSizingCompact, "10k,30k")); err != nil {
		t.Fatalf("-sizing.compact: %v", err)
	}
	if *flagSizingDocs != "" {
		keepsItsParts(t, o.Options, SizingFile, SizingParts)
	}
	z := Size(t, o)
	page, err := z.Page()
	if err != nil {
		t.Fatal(err)
	}
	if *flagSizingDocs == "" {
		t.Log("\n" + page)
		return
	}
	svg, err := z.Plot()
	if err != nil {
		t.Fatal(err)
	}
	for file, text := range map[string][]byte{SizingPageFile: []byte(page), SizingPlotFile: svg} {
		if err := os.WriteFile(filepath.Join(*flagSizingDocs, file), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("wrote %s and %s into %s", SizingPageFile, SizingPlotFile, *flagSizingDocs)
}
