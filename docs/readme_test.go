// Package docs_test holds the README to what the library does.
package docs_test

import (
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const readme = "../README.md"

var goBlock = regexp.MustCompile("(?ms)^```go\n(.*?)^```$")

// The README's Go is one file, in pieces: it compiles as it stands.
func TestReadmeCompiles(t *testing.T) {
	text, err := os.ReadFile(readme)
	if err != nil {
		t.Fatal(err)
	}
	var code strings.Builder
	code.WriteString("package readme\n\n")
	blocks := goBlock.FindAllStringSubmatch(string(text), -1)
	if len(blocks) < 4 {
		t.Fatalf("%d blocks of Go, want the imports, a consumer, a producer and more", len(blocks))
	}
	for _, b := range blocks {
		code.WriteString(b[1] + "\n")
	}
	// The file stands in a folder that is not there, inside the module.
	dir, err := filepath.Abs("readme")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "readme.go")
	overlay := filepath.Join(t.TempDir(), "overlay.json")
	replace, err := json.Marshal(map[string]map[string]string{"Replace": {filepath.Join(dir, "readme.go"): file}})
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{file: []byte(code.String()), overlay: replace} {
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-overlay", overlay, "./readme").CombinedOutput(); err != nil {
		t.Errorf("the README's Go does not compile: %v\n%s\n%s", err, out, code.String())
	}
}

// What the README links to is there.
func TestReadmeLinks(t *testing.T) {
	text, err := os.ReadFile(readme)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`\]\(([^)#]+)\)`).FindAllSubmatch(text, -1) {
		target := string(m[1])
		if strings.Contains(target, "://") {
			continue
		}
		if _, err := os.Stat(filepath.Join("..", target)); err != nil {
			t.Errorf("link to %s: %v", target, err)
		}
	}
}

var (
	troubleRow = regexp.MustCompile(`(?m)^\| ([^|]*) \|[^|]*\|[^|]*\|$`)
	quoted     = regexp.MustCompile(`"([^"]+)"`)
)

// Whoever searches the README for what a log says finds it: what is quoted in the table of
// troubles is in an error of the library.
func TestQuotedErrors(t *testing.T) {
	text, err := os.ReadFile(readme)
	if err != nil {
		t.Fatal(err)
	}
	var sources strings.Builder
	for _, tree := range []string{"../idem", "../consumers"} {
		err := filepath.WalkDir(tree, func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			code, err := os.ReadFile(path)
			sources.Write(code)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	_, table, _ := strings.Cut(string(text), "\n## When something is wrong\n")
	table, _, _ = strings.Cut(table, "\n## ")
	found := 0
	for _, row := range troubleRow.FindAllStringSubmatch(table, -1) {
		for _, quote := range quoted.FindAllStringSubmatch(row[1], -1) {
			if found++; !strings.Contains(sources.String(), quote[1]) {
				t.Errorf("no error says %q", quote[1])
			}
		}
	}
	if found < 15 {
		t.Errorf("%d quotations in the table", found)
	}
}
