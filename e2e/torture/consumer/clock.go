//go:build !wallclock

package main

import (
	"errors"
	"time"
)

// stepClock is for builds of package torture's.
func stepClock(time.Duration) error {
	return errors.New("this consumer's clock cannot be stepped: build it with torture.BuildConsumer")
}
