// Package testenv decides what becomes of a test whose server is not there.
package testenv

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// RequireServers names the environment variable that, set to 1, makes a test
// without its server fail instead of being skipped.
const RequireServers = "IDEM_REQUIRE_SERVERS"

// Missing ends a test that cannot run because what is missing, with one line
// that names the cure. The test is skipped, or fails where IDEM_REQUIRE_SERVERS
// is 1. It must be called from the test's own goroutine and does not return.
func Missing(tb testing.TB, what, cure string) {
	tb.Helper()
	line := fmt.Sprintf("needs %s: %s", what, cure)
	if os.Getenv(RequireServers) == "1" {
		tb.Fatal(line)
	}
	tb.Skip(line)
}

// Root is the folder of the root module, also for the tests of the other modules.
func Root(tb testing.TB) string {
	tb.Helper()
	dir, err := os.Getwd()
	if err != nil {
		tb.Fatal(err)
	}
	for {
		text, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(text), "module github.com/idemq/idemq\n") {
			return dir
		}
		up := filepath.Dir(dir)
		if up == dir {
			tb.Fatal("no go.mod of github.com/idemq/idemq above the test's folder")
		}
		dir = up
	}
}
