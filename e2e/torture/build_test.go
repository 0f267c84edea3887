package torture

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/idemq/idemq/internal/testenv"
)

// A step moves the wall clock, to the nanosecond and either way, and no duration.
func TestWallStep(t *testing.T) {
	t.Parallel()
	const program = `package main

import (
	"fmt"
	"os"
	"time"
)

func main() {
	for _, step := range []time.Duration{0, 1, -1, 24*time.Hour + 999999999, -24*time.Hour - 999999999} {
		time.StepWall(0)
		began := time.Now()
		time.StepWall(step)
		now := time.Now()
		if wall := now.Round(0).Sub(began.Round(0)) - step; wall < 0 || wall > time.Minute {
			fmt.Println("a step of", step, "moved the wall clock by", wall+step)
			os.Exit(1)
		}
		if d := now.Sub(began); d < 0 || d > time.Minute {
			fmt.Println("with a step of", step, "no time took", d)
			os.Exit(1)
		}
		if n := now.Nanosecond(); n < 0 || n >= 1e9 {
			fmt.Println("nanosecond", n)
			os.Exit(1)
		}
	}
}
`
	dir := t.TempDir()
	overlay, err := overlaid(testenv.Root(t), dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "main.go")
	if err := os.WriteFile(file, []byte(program), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("go", "run", "-overlay", overlay, file).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// A replacement that does not fit is an error, which names its file: the library may have
// changed meanwhile, and a planted bug would be none.
func TestReplacements(t *testing.T) {
	t.Parallel()
	root := testenv.Root(t)
	for _, r := range []Replacement{
		{File: "idem/claim.go", Old: "this text is not there"},
		{File: "idem/claim.go", Old: "func "},
		{File: "idem/no_such_file.go", Old: "package"},
	} {
		if _, err := overlaid(root, t.TempDir(), []Replacement{r}); err == nil || !strings.Contains(err.Error(), r.File) {
			t.Errorf("%q in %s: %v", r.Old, r.File, err)
		}
	}
	dir := t.TempDir()
	if _, err := overlaid(root, dir, []Replacement{
		{File: "idem/doc.go", Old: "package idem\n", New: "package idem // once\n"},
		{File: "idem/doc.go", Old: "package idem // once\n", New: "package idem // twice\n"},
	}); err != nil {
		t.Error(err)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*.go"))
	found := false
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		found = found || strings.Contains(string(text), "package idem // twice\n")
	}
	if !found {
		t.Error("two replacements of one file are not both there")
	}
}
