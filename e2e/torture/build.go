package torture

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/idemq/idemq/internal/testenv"
)

// BuildOptions says how a consumer is built. The zero value is the library as it is.
type BuildOptions struct {
	Race    bool
	Replace []Replacement
}

// Replacement is a text of a file of the library, which must be there exactly once, and
// what stands in its place. Several for one file are made in their order.
type Replacement struct {
	File     string // from the root module's folder, with slashes
	Old, New string
}

// BuildConsumer builds the consumer, whose wall clock can be stepped, and returns its file.
func BuildConsumer(tb testing.TB, opts BuildOptions) (bin string) {
	tb.Helper()
	root, dir := testenv.Root(tb), tb.TempDir()
	overlay, err := overlaid(root, dir, opts.Replace)
	if err != nil {
		tb.Fatal(err)
	}
	bin = filepath.Join(dir, "consumer")
	args := []string{"build", "-C", filepath.Join(root, "e2e"), "-o", bin, "-overlay", overlay, "-tags", "wallclock", "-ldflags=-w"}
	if opts.Race {
		args = append(args, "-race")
	}
	out, err := exec.Command("go", append(args, "./torture/consumer")...).CombinedOutput()
	if err != nil {
		tb.Fatalf("building the consumer: %v\n%s", err, out)
	}
	return bin
}

// clockSteps give package time a clock that can be stepped. The monotonic part of a time,
// which is what durations are measured by, stays as it is; so it does when a machine's clock is set.
var clockSteps = []Replacement{{
	File: "src/time/time.go",
	Old: `func Now() Time {
	sec, nsec, mono := runtimeNow()
`,
	New: `var wallStep atomic.Int64

func StepWall(d Duration) { wallStep.Store(int64(d)) }

func Now() Time {
	sec, nsec, mono := runtimeNow()
	if step := wallStep.Load(); step != 0 {
		stepped := int64(nsec) + step%1e9 + 1e9
		sec += step/1e9 + stepped/1e9 - 1
		nsec = int32(stepped % 1e9)
	}
`,
}, {
	File: "src/time/time.go",
	Old:  "import (\n",
	New:  "import (\n\t\"sync/atomic\"\n",
}}

// overlaid writes the files that are not as they are on the disk, and the overlay that has
// the go command take them. It returns the overlay.
func overlaid(root, dir string, replace []Replacement) (string, error) {
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOROOT: %w", err)
	}
	texts := map[string]string{}
	apply := func(base string, all []Replacement) error {
		for _, r := range all {
			file := filepath.Join(base, filepath.FromSlash(r.File))
			if _, read := texts[file]; !read {
				text, err := os.ReadFile(file)
				if err != nil {
					return err
				}
				texts[file] = string(text)
			}
			if n := strings.Count(texts[file], r.Old); n != 1 {
				return fmt.Errorf("%s: this text is there %d times, want once: bring the replacement up to date with the file:\n%s", r.File, n, r.Old)
			}
			texts[file] = strings.Replace(texts[file], r.Old, r.New, 1)
		}
		return nil
	}
	if err := apply(strings.TrimSpace(string(goroot)), clockSteps); err != nil {
		return "", err
	}
	if err := apply(root, replace); err != nil {
		return "", err
	}
	in := map[string]string{}
	for file, text := range texts {
		to := filepath.Join(dir, fmt.Sprintf("%d.go", len(in)))
		if err := os.WriteFile(to, []byte(text), 0o600); err != nil {
			return "", err
		}
		in[file] = to
	}
	text, err := json.Marshal(map[string]any{"Replace": in})
	if err != nil {
		return "", err
	}
	overlay := filepath.Join(dir, "overlay.json")
	return overlay, os.WriteFile(overlay, text, 0o600)
}
