package idemtest_test

import (
	"context"
	"errors"
	"testing"

	"go.uber.org/goleak"

	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/idemtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// receipt is a handler's helper that needs a claim.
func receipt(ctx context.Context) (token string, attempt int, derived string) {
	c, ok := idem.FromContext(ctx)
	if !ok {
		return "", 0, ""
	}
	return c.Token(), c.Attempt(), c.Derive("receipt")
}

func TestContext(t *testing.T) {
	token, attempt, derived := receipt(idemtest.Context(t, "order-7"))
	if token != "order-7" || attempt != 1 || derived == "" {
		t.Errorf("claim on %q, attempt %d, derived %q", token, attempt, derived)
	}
	_, attempt, again := receipt(idemtest.ContextAt(t, "order-7", 3))
	if attempt != 3 || again != derived {
		t.Errorf("attempt %d, derived %q, want 3 and %q on every attempt", attempt, again, derived)
	}
}

func TestContextIsLiveUntilTheTestEnds(t *testing.T) {
	var ctx context.Context
	t.Run("inner", func(t *testing.T) {
		ctx = idemtest.Context(t, "a")
		if ctx.Err() != nil {
			t.Errorf("ended too soon: %v", context.Cause(ctx))
		}
	})
	if ctx.Err() == nil {
		t.Error("the claim outlives its test")
	}
}

// A handler that ends its claim itself fails here as it does in a consumer.
func TestClaimIsBorrowed(t *testing.T) {
	ctx := idemtest.Context(t, "a")
	c, _ := idem.FromContext(ctx)
	if err := c.Commit(ctx); !errors.Is(err, idem.ErrClaimBorrowed) {
		t.Errorf("Commit: %v, want ErrClaimBorrowed", err)
	}
	if ctx.Err() != nil {
		t.Errorf("the claim has ended: %v", context.Cause(ctx))
	}
}
