package redistest

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/idemq/idemq/internal/testenv"
)

const module = "github.com/idemq/idemq"

// Version is a server program.
type Version struct {
	Name string // "Redis 8.2"
	bin  string // empty: the program is missing, or, as the first version, only a shared server may be there
}

// beside are the programs that .ci/redis-versions gets, where no variable names one.
var beside = []struct{ name, env, cached string }{
	{"Redis 8.2", "IDEM_REDIS8_SERVER", "redis-8.2/redis-server"},
	{"Valkey 9.1", "IDEM_VALKEY_SERVER", "valkey-9.1/valkey-server"},
}

// Versions are the servers that the store is tested on: the one that [Start] takes, Redis
// 8.2 and Valkey 9.1, also where they are missing.
func Versions(tb testing.TB) []Version {
	tb.Helper()
	first := Version{Name: "Redis", bin: binary(tb)}
	if first.bin != "" {
		first.Name = versionOf(tb, first.bin)
	}
	all := []Version{first}
	for _, b := range beside {
		name := os.Getenv(b.env)
		if name == "" {
			name = filepath.Join(root(tb), ".cache", b.cached)
		}
		v := Version{Name: b.name}
		if bin, err := exec.LookPath(name); err == nil {
			v.Name, v.bin = versionOf(tb, bin), bin
		} else if os.Getenv(b.env) != "" {
			tb.Fatalf("%s: %v", b.env, err)
		}
		all = append(all, v)
	}
	return all
}

// Start is the function [Start] for this program. Without it the test ends as
// [testenv.Missing] says.
func (v Version) Start(tb testing.TB, args ...string) *Server {
	tb.Helper()
	if v.bin == "" {
		for _, b := range beside {
			if b.name == v.Name {
				testenv.Missing(tb, v.Name, "bash .ci/redis-versions, or name the program in "+b.env)
			}
		}
		return Start(tb, args...)
	}
	return startServer(&Server{tb: tb, bin: v.bin, args: args})
}

var versionLine = regexp.MustCompile(`^(Redis|Valkey) server v=(\d+\.\d+)`)

// versionOf asks a program what it is.
func versionOf(tb testing.TB, bin string) string {
	tb.Helper()
	out, err := exec.CommandContext(tb.Context(), bin, "--version").Output()
	m := versionLine.FindStringSubmatch(string(out))
	if m == nil {
		tb.Fatalf("%s is no Redis or Valkey: %q, %v", bin, out, err)
	}
	return m[1] + " " + m[2]
}

// root is the folder of the root module, also for the tests of the other modules.
func root(tb testing.TB) string {
	tb.Helper()
	dir, err := os.Getwd()
	if err != nil {
		tb.Fatal(err)
	}
	for {
		text, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(text), "module "+module+"\n") {
			return dir
		}
		up := filepath.Dir(dir)
		if up == dir {
			tb.Fatal("no go.mod of " + module + " above the test's folder")
		}
		dir = up
	}
}
