// Command conformance makes the table of stores in docs/stores.md of what the tests
// left, and checks that it says what they saw.
//
//	conformance -reports folder -doc docs/stores.md          writes the table
//	conformance -reports folder -doc docs/stores.md -check   compares stores, rules and outcomes; versions may differ
//
// It exits with 1 if a store broke a rule or the table is another, and with 2 if it
// could not find out.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/idemq/idemq/idem/store/storetest"
)

const (
	begin = "<!-- conformance: made by make conformance -->\n"
	end   = "<!-- /conformance -->\n"
)

func main() {
	dir := flag.String("reports", "", "folder of the reports")
	doc := flag.String("doc", "", "document with the table")
	check := flag.Bool("check", false, "compare instead of writing")
	flag.Parse()
	os.Exit(run(*dir, *doc, *check))
}

func run(dir, doc string, check bool) int {
	reports, err := read(dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		return 2
	}
	text, err := os.ReadFile(doc)
	if err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		return 2
	}
	before, rest, found := strings.Cut(string(text), begin)
	old, after, ended := strings.Cut(rest, end)
	if !found || !ended {
		fmt.Fprintf(os.Stderr, "conformance: %s has no place for the table: %q, %q\n", doc, strings.TrimSpace(begin), strings.TrimSpace(end))
		return 2
	}
	broken := false
	for _, r := range reports {
		for _, name := range r.Failed {
			fmt.Fprintf(os.Stderr, "conformance: %s: broke %s\n", r.Name, name)
			broken = true
		}
	}
	if broken {
		return 1
	}
	if check {
		if want, got := withoutVersions(table(reports)), withoutVersions(old); want != got {
			fmt.Fprintf(os.Stderr, "conformance: the table in %s is not what the tests saw; run make conformance. In the document:\n%s\nSeen:\n%s", doc, got, want)
			return 1
		}
		return 0
	}
	if err := os.WriteFile(doc, []byte(before+begin+table(reports)+end+after), 0o600); err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		return 2
	}
	return 0
}

func read(dir string) ([]storetest.Report, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err == nil && len(files) == 0 {
		err = errors.New("no reports in " + dir + ": run the stores' tests with " + storetest.EnvReports + " set to it")
	}
	if err != nil {
		return nil, err
	}
	reports := make([]storetest.Report, len(files))
	for i, f := range files {
		text, err := os.ReadFile(f)
		if err == nil {
			err = json.Unmarshal(text, &reports[i])
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f, err)
		}
	}
	slices.SortFunc(reports, func(a, b storetest.Report) int { return strings.Compare(a.Name, b.Name) })
	return reports, nil
}

func table(reports []storetest.Report) string {
	var b strings.Builder
	b.WriteString("| store | tested with | rules kept | not tried | lacks |\n| --- | --- | --- | --- | --- |\n")
	for _, r := range reports {
		skipped, lacks := "", strings.Join(r.Lacks, ", ")
		if r.Skipped > 0 {
			skipped = fmt.Sprint(r.Skipped)
		}
		fmt.Fprintf(&b, "| %s | %s | %d of %d | %s | %s |\n", r.Name, r.Server, r.Passed, r.Rules, skipped, lacks)
	}
	return b.String()
}

// withoutVersions drops the second column.
func withoutVersions(table string) string {
	var b strings.Builder
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		if len(cells) > 3 {
			cells = slices.Delete(cells, 2, 3)
		}
		b.WriteString(strings.Join(cells, "|"))
	}
	return b.String()
}
