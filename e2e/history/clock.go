package history

import (
	"fmt"
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// Now is a clock that all processes of the machine share (CLOCK_MONOTONIC), in nanoseconds,
// and that no step of the wall clock moves. It makes no system call. It is not for
// bubbles of testing/synctest.
func Now() int64 { return boot.clock + int64(time.Since(boot.at)) }

// boot is a moment on both clocks: the runtime's own is the machine's, but for where it
// begins.
var boot = func() (b struct {
	clock int64
	at    time.Time
},
) {
	best := time.Duration(math.MaxInt64)
	for range 50 { // the reading that was held up the least
		var t unix.Timespec
		before := time.Now()
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
			panic(fmt.Sprintf("history: the machine has no monotonic clock: %v", err))
		}
		if took := time.Since(before); took < best {
			best, b.clock, b.at = took, t.Nano(), before.Add(took/2)
		}
	}
	return b
}()
