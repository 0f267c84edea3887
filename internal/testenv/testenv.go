// Package testenv decides what becomes of a test whose server is not there.
package testenv

import (
	"fmt"
	"os"
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
