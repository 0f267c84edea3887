package testenv_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/idemq/idemq/internal/testenv"
)

// A page that a program writes is no change of what it measures.
func TestCommit(t *testing.T) {
	dir := t.TempDir()
	git := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("git", append([]string{"-C", dir, "-c", "user.name=a", "-c", "user.email=a@b"}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v: %s", args, err, out)
		}
	}
	write := func(file, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, sub := range []string{"docs", "bench"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	git("init", "--quiet")
	write("docs/page.md", "1")
	write("code.go", "1")
	git("add", ".")
	git("commit", "--quiet", "-m", "first")
	clean := testenv.Commit(filepath.Join(dir, "bench"))
	if len(clean) != 12 {
		t.Errorf("%q, want a commit", clean)
	}
	write("docs/page.md", "2")
	if got := testenv.Commit(filepath.Join(dir, "bench")); got != clean {
		t.Errorf("%q after the page was written, want %q", got, clean)
	}
	write("code.go", "2")
	if got := testenv.Commit(filepath.Join(dir, "bench")); got != clean+"-dirty" {
		t.Errorf("%q after the code was changed", got)
	}
}
