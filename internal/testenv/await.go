package testenv

import (
	"testing"
	"time"
)

const (
	awaitTimeout = 90 * time.Second
	awaitEvery   = 2 * time.Millisecond
)

// Await returns when cond is true, and ends the test if that takes longer than 90
// seconds, naming what was awaited. It must be called from the test's own goroutine;
// cond is called from there too, every few milliseconds.
func Await(tb testing.TB, what string, cond func() bool) {
	tb.Helper()
	await(tb, awaitTimeout, what, cond)
}

func await(tb testing.TB, limit time.Duration, what string, cond func() bool) {
	tb.Helper()
	deadline := time.Now().Add(limit)
	for !cond() {
		if time.Now().After(deadline) {
			tb.Fatalf("waited %v for %s", limit, what)
		}
		time.Sleep(awaitEvery)
	}
}
