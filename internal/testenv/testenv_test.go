package testenv

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// recorder is a testing.TB that notes how a test was ended.
type recorder struct {
	testing.TB
	skipped, failed string
}

func (r *recorder) Helper()           {}
func (r *recorder) Skip(args ...any)  { r.skipped = args[0].(string); runtime.Goexit() }
func (r *recorder) Fatal(args ...any) { r.failed = args[0].(string); runtime.Goexit() }

func missing(what, cure string) *recorder {
	r := &recorder{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		Missing(r, what, cure)
	}()
	<-done
	return r
}

func TestMissing(t *testing.T) {
	const line = "needs a server: start one"
	t.Setenv(RequireServers, "")
	if r := missing("a server", "start one"); r.skipped != line || r.failed != "" {
		t.Errorf("not required: skipped %q, failed %q", r.skipped, r.failed)
	}
	t.Setenv(RequireServers, "1")
	if r := missing("a server", "start one"); r.failed != line || r.skipped != "" {
		t.Errorf("required: skipped %q, failed %q", r.skipped, r.failed)
	}
}

func TestRoot(t *testing.T) {
	if _, err := os.Stat(filepath.Join(Root(t), "internal", "testenv", "testenv_test.go")); err != nil {
		t.Error(err)
	}
	t.Chdir(t.TempDir())
	r := &recorder{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		Root(r)
	}()
	<-done
	if r.failed == "" {
		t.Error("a folder outside of the repository has a root")
	}
}
