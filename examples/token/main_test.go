package main

import (
	"regexp"
	"strings"
	"testing"

	"github.com/idemq/idemq/internal/child"
	"github.com/idemq/idemq/internal/program"
	"github.com/idemq/idemq/internal/redistest"
)

var story = regexp.MustCompile(`^token [0-9a-f-]{36}
first check: passed, do the work
second check: not passed \(used, expired or unknown\), do nothing
$`)

func TestPassesOnce(t *testing.T) {
	server := redistest.Start(t)
	status, out, errs := program.Run(t, program.Build(t), "-redis", "redis://"+server.Addr()+"/0")
	if status != 0 || !story.MatchString(out) || errs != "" {
		t.Errorf("exit status %d, output:\n%s%s", status, out, errs)
	}
}

func TestServerAway(t *testing.T) {
	bin := program.Build(t)
	for _, url := range []string{"redis://" + child.FreeAddr(t) + "/0", "nonsense", "redis://localhost:99999/0"} {
		status, out, errs := program.Run(t, bin, "-redis", url)
		if status != 2 || out != "" {
			t.Errorf("%s: exit status %d, want 2; output %q", url, status, out)
		}
		if strings.Count(errs, "\n") != 1 || !strings.HasPrefix(errs, "token: ") || !strings.Contains(errs, "-redis") {
			t.Errorf("%s: stderr is not one line that names the flag:\n%s", url, errs)
		}
	}
}
