package testenv

import (
	"os/exec"
	"strings"
)

// Commit is that of a checkout, -dirty where files differ from it that are no pages: these the
// benchmarks and the runs under faults write themselves. Outside of one it is empty.
func Commit(dir string) string {
	git := func(args ...string) (string, error) {
		out, err := exec.Command("git", append([]string{"-C", dir}, args...)...).Output()
		return strings.TrimSpace(string(out)), err
	}
	at, err := git("describe", "--always", "--abbrev=12")
	if err != nil {
		return ""
	}
	if changed, err := git("status", "--porcelain", "--", ":/", ":(top,exclude)docs"); err != nil || changed != "" {
		at += "-dirty"
	}
	return at
}
