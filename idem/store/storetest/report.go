package storetest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/idemq/idemq/idem/store"
)

// EnvReports names the folder that [Run] leaves a report in, for each harness that has
// a name; it must exist. Empty is none.
const EnvReports = "IDEM_CONFORMANCE"

// Report is what came of one Run.
type Report struct {
	Name    string // of the harness
	Server  string
	Rules   int // that were tried
	Passed  int
	Skipped int      // rules for drivers of another kind, or for want of Corrupt
	Failed  []string // names of cases
	Lacks   []string // capabilities that the driver declares to lack
}

// reporter collects the outcomes of cases. It is safe for concurrent use.
type reporter struct {
	mu sync.Mutex
	r  Report
}

// watch notes the outcome of a case when it ends.
func (r *reporter) watch(t *testing.T) {
	t.Cleanup(func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.r.Rules++
		switch {
		case t.Failed():
			_, name, _ := strings.Cut(t.Name(), "/")
			r.r.Failed = append(r.r.Failed, name)
		case t.Skipped():
			r.r.Skipped++
		default:
			r.r.Passed++
		}
	})
}

// write leaves the report where it is asked for. A run of some cases only, by -run,
// leaves none.
func (r *reporter) write(tb testing.TB, h Harness, caps store.Capabilities, all int) {
	dir := os.Getenv(EnvReports)
	r.mu.Lock()
	defer r.mu.Unlock()
	if dir == "" || h.Name == "" || r.r.Rules < all {
		return
	}
	r.r.Name, r.r.Server = h.Name, h.Server
	if caps.NoDoneDetails {
		r.r.Lacks = append(r.r.Lacks, "details of done tokens")
	}
	if caps.NoFingerprints {
		r.r.Lacks = append(r.r.Lacks, "fingerprints")
	}
	text, err := json.MarshalIndent(r.r, "", "\t")
	if err == nil {
		name := strings.Map(func(c rune) rune {
			if c == '/' || c == ' ' {
				return '-'
			}
			return c
		}, h.Name)
		err = os.WriteFile(filepath.Join(dir, name+".json"), append(text, '\n'), 0o600)
	}
	if err != nil {
		tb.Errorf("storetest: the report: %v", err)
	}
}
