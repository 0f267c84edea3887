package bench

import (
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/idemq/idemq/internal/testenv"
)

// What make bench sets.
var (
	flagMessages = flag.Int("compare.messages", 0, "of each row and round, a multiple of ten; zero: nothing is compared")
	flagRounds   = flag.Int("compare.rounds", 3, "rounds, in each of which every row runs once")
	flagRows     = flag.String("compare.rows", "", "regexp of broker/row; empty: all")
	flagDocs     = flag.String("compare.docs", "", "folder that the page and its plot are written to; empty: the page is printed")
	flagCommand  = flag.String("compare.command", "go test", "the command that asked for this, for the page")
)

// TestCompare is the program behind make bench.
func TestCompare(t *testing.T) {
	if *flagMessages == 0 {
		t.Skip("compares rows at length: make bench, or make bench-quick")
	}
	rows, err := regexp.Compile(*flagRows)
	if err != nil {
		t.Fatalf("-compare.rows: %v", err)
	}
	res := Compare(t, Options{
		Messages: *flagMessages, Rounds: *flagRounds, Rows: rows, Command: *flagCommand,
		Dir: filepath.Join(testenv.Root(t), ".cache", "bench"),
	})
	if len(res.Records) == 0 {
		t.Fatalf("no row was run: -compare.rows is %q", *flagRows)
	}
	page := Page(res)
	svg, err := Plot(res)
	if err != nil {
		t.Fatal(err)
	}
	if *flagDocs == "" {
		t.Log("\n" + page)
		return
	}
	for file, text := range map[string][]byte{PageFile: []byte(page), PlotFile: svg} {
		if err := os.WriteFile(filepath.Join(*flagDocs, file), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("wrote %s and %s into %s", PageFile, PlotFile, *flagDocs)
}
