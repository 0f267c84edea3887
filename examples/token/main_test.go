package main

import (
	"bytes"
	"errors"
	"net"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/idemq/idemq/internal/redistest"
)

func build(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "token")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return bin
}

func execute(t *testing.T, bin string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), bin, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

var story = regexp.MustCompile(`^token [0-9a-f-]{36}
first check: passed, do the work
second check: not passed \(used, expired or unknown\), do nothing
$`)

func TestPassesOnce(t *testing.T) {
	server := redistest.Start(t)
	status, out, errs := execute(t, build(t), "-redis", "redis://"+server.Addr()+"/0")
	if status != 0 || !story.MatchString(out) || errs != "" {
		t.Errorf("exit status %d, output:\n%s%s", status, out, errs)
	}
}

func TestServerAway(t *testing.T) {
	bin := build(t)
	for _, url := range []string{"redis://" + unusedAddr(t) + "/0", "nonsense", "redis://localhost:99999/0"} {
		status, out, errs := execute(t, bin, "-redis", url)
		if status != 2 || out != "" {
			t.Errorf("%s: exit status %d, want 2; output %q", url, status, out)
		}
		if strings.Count(errs, "\n") != 1 || !strings.HasPrefix(errs, "token: ") || !strings.Contains(errs, "-redis") {
			t.Errorf("%s: stderr is not one line that names the flag:\n%s", url, errs)
		}
	}
}

// unusedAddr is where nobody listens.
func unusedAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
