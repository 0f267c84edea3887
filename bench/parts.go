package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The parts of a comparison, each measured without the others.
const (
	partRows    = "rows"
	partLatency = "latency"
	partDo      = "do"
	partTrips   = "trips"
	partSeconds = "seconds"
	partNetwork = "network"
	partSoak    = "soak" // asked for by its name only
)

// partPage, in place of others, has nothing measured: the page is written from the records.
const partPage = "page"

// Parts are those of a whole comparison, in the order in which they are measured.
var Parts = []string{partRows, partLatency, partDo, partTrips, partSeconds, partNetwork}

// parseParts reads a list of names, separated by commas; empty is all.
func parseParts(list string, all []string, besides ...string) ([]string, error) {
	if list == "" {
		return all, nil
	}
	var chosen []string
	for name := range strings.SplitSeq(list, ",") {
		name = strings.TrimSpace(name)
		if !slices.Contains(all, name) && !slices.Contains(besides, name) {
			return nil, fmt.Errorf("part %q: there are %s", name, strings.Join(slices.Concat(all, besides), ", "))
		}
		chosen = append(chosen, name)
	}
	return chosen, nil
}

// through runs a subtest, and tells whether it came to its end. One that was skipped did not,
// and has measured nothing.
func through(t *testing.T, name string, f func(*testing.T)) (ended bool) {
	t.Helper()
	t.Run(name, func(t *testing.T) {
		f(t)
		ended = true
	})
	return ended
}

// whole is through for a subtest without which its part is not measured.
func whole(t *testing.T, name string, f func(*testing.T)) {
	t.Helper()
	if !through(t, name, f) {
		t.Fatalf("%s did not come to its end", name)
	}
}

// Ran is when, on what and of what a part was measured.
type Ran struct {
	Time    time.Time `json:"time"`
	Library string    `json:"library,omitempty"` // its commit
	Command string    `json:"command"`
	Machine string    `json:"machine,omitempty"`
	CPUs    int       `json:"cpus,omitempty"`
}

// on are lines that say how each part was measured, with the machine where that is not the
// page's.
func (res *Result) on(ran map[string]Ran, parts []string) string {
	var b strings.Builder
	for _, part := range parts {
		r, is := ran[part]
		if !is {
			continue
		}
		fmt.Fprintf(&b, "- %s: `%s`, %s", part, r.Command, r)
		if r.Machine != "" && r.Machine != res.hardware() {
			fmt.Fprintf(&b, ", on %s", r.Machine)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// lacking are the parts of a whole that are neither asked for nor in a folder's records: a page
// would lose them.
func lacking(dir, file string, parts, all []string) ([]string, error) {
	var last struct {
		Ran map[string]Ran `json:"ran"`
	}
	if _, err := load(dir, file, &last); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(all), func(part string) bool {
		_, there := last.Ran[part]
		return there || slices.Contains(parts, part)
	}), nil
}

// ranNow is of a part that was begun then.
func (res *Result) ranNow(o Options, begun time.Time) Ran {
	return Ran{
		Time: begun.UTC().Truncate(time.Second), Library: res.Library, Command: o.Command,
		Machine: res.hardware(), CPUs: res.CPUs,
	}
}

// cpusOf are those of the machine that a part was measured on.
func (res *Result) cpusOf(part string) int {
	if n := res.Ran[part].CPUs; n > 0 {
		return n
	}
	return max(res.CPUs, 1)
}

func (r Ran) String() string {
	text := r.Time.Format(time.DateTime) + " UTC"
	if r.Library != "" {
		text += ", the library at " + r.Library
	}
	return text
}

// load reads records that were saved in a folder into v; false: there are none.
func load(dir, file string, v any) (bool, error) {
	text, err := os.ReadFile(filepath.Join(dir, file))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err == nil {
		err = json.Unmarshal(text, v)
	}
	if err != nil {
		return false, fmt.Errorf("the records of the last run: %w; delete them to begin anew", err)
	}
	return true, nil
}

// save writes records, so that the other parts can be measured another time.
func save(dir, file string, v any) error {
	text, err := json.MarshalIndent(v, "", "\t")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, file), text, 0o644)
}

// measured notes that a part was measured now, and saves.
func (res *Result) measured(t *testing.T, o Options, part string, begun time.Time) {
	t.Helper()
	if res.Ran == nil {
		res.Ran = map[string]Ran{}
	}
	res.Ran[part] = res.ranNow(o, begun)
	if err := save(o.Dir, RecordsFile, res); err != nil {
		t.Fatal(err)
	}
	t.Logf("part %s: %.0f s", part, time.Since(begun).Seconds())
}

// parseNumbers reads "10k,1M"; empty is none.
func parseNumbers(list string) (all []int, err error) {
	for text := range strings.SplitSeq(list, ",") {
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		factor := 1
		for suffix, by := range map[string]int{"k": 1000, "M": 1_000_000} {
			if digits, is := strings.CutSuffix(text, suffix); is {
				text, factor = digits, by
			}
		}
		n, err := strconv.Atoi(text)
		if err != nil || n <= 0 {
			return nil, fmt.Errorf("%q in %q: write numbers as 10k,1M,50M", text, list)
		}
		all = append(all, n*factor)
	}
	return all, nil
}
