// Package idemtest helps to test handlers that look at their claim.
package idemtest

import (
	"context"
	"testing"

	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store/memstore"
)

// Group is the consumer group of the claims that this package makes.
const Group = "idemtest"

// Context returns a context as a handler gets it, with a claim on token in it that
// idem.FromContext finds. The claim is real, and kept in memory: what the handler
// does with it (SetResult, Derive) works as in a consumer, which ends it, and not the
// handler. It is given back when the test ends.
func Context(tb testing.TB, token string) context.Context {
	tb.Helper()
	return ContextAt(tb, token, 1)
}

// ContextAt is Context on the given attempt: as if the attempts before had failed.
func ContextAt(tb testing.TB, token string, attempt int) context.Context {
	tb.Helper()
	ctx := context.Background() // outlives tb.Context, so that the claim can be given back
	guard := idem.New(idem.WithStore(memstore.New())).Group(Group)
	claim, err := guard.Begin(ctx, token)
	for ; err == nil && claim.Attempt() < attempt; claim, err = guard.Begin(ctx, token) {
		if err := claim.Release(ctx); err != nil {
			tb.Fatalf("idemtest: %v", err)
		}
	}
	if err != nil {
		tb.Fatalf("idemtest: %v", err)
	}
	tb.Cleanup(func() { _ = claim.GiveBack(ctx) })
	run, err := claim.Start(ctx)
	if err != nil {
		tb.Fatalf("idemtest: %v", err)
	}
	return run
}
