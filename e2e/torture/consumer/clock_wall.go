//go:build wallclock

package main

import "time"

// stepClock sets how far the wall clock of this process is off, by a function that the
// overlay of torture.BuildConsumer adds to package time.
func stepClock(d time.Duration) error {
	time.StepWall(d)
	return nil
}
