package testenv

import (
	"fmt"
	"runtime"
	"testing"
	"time"
)

func (r *recorder) Fatalf(format string, args ...any) {
	r.failed = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func TestAwait(t *testing.T) {
	n := 0
	Await(t, "the third call", func() bool { n++; return n == 3 })
	if n != 3 {
		t.Errorf("the condition was asked %d times", n)
	}
	r := &recorder{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		await(r, time.Millisecond, "what never comes", func() bool { return false })
	}()
	<-done
	if r.failed != "waited 1ms for what never comes" {
		t.Errorf("failed with %q", r.failed)
	}
}
