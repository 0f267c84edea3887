package idem_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store/memstore"
)

func beginAll(t *testing.T, g *idem.Guard, tokens ...string) []*idem.Claim {
	t.Helper()
	claims := make([]*idem.Claim, len(tokens))
	for i, token := range tokens {
		b := g.BeginAll(t.Context(), []idem.Request{{Token: token}})[0]
		if b.Err != nil {
			t.Fatal(b.Err)
		}
		claims[i] = b.Claim
	}
	return claims
}

// The context of several claims has all of them, and each has one of its own.
func TestStartAll(t *testing.T) {
	g := idem.New(idem.WithStore(memstore.New())).Group("billing")
	claims := beginAll(t, g, "a", "b")
	parent := context.WithValue(t.Context(), contextKey{}, "value")
	ctx, end, err := idem.StartAll(parent, claims)
	if err != nil {
		t.Fatal(err)
	}
	defer end()
	if _, ok := idem.FromContext(ctx); ok {
		t.Error("a claim is found that stands for all")
	}
	found, ok := idem.ClaimsFromContext(ctx)
	if !ok || len(found) != 2 || ctx.Value(contextKey{}) != "value" {
		t.Fatalf("claims %v, value %v", found, ctx.Value(contextKey{}))
	}
	for i, c := range found {
		if c.Token() != claims[i].Token() {
			t.Errorf("claim %d is of %q", i, c.Token())
		}
		if own, ok := idem.FromContext(c.Context()); !ok || own.Token() != c.Token() {
			t.Errorf("the context of %q has another claim", c.Token())
		}
		if err := c.Commit(t.Context()); !errors.Is(err, idem.ErrClaimBorrowed) {
			t.Errorf("the handler ended its claim: %v", err)
		}
	}
	if err := claims[0].Commit(t.Context()); err != nil {
		t.Error(err)
	}
	if ctx.Err() != nil || found[0].Context().Err() == nil {
		t.Errorf("when one claim has ended: %v, its own %v", ctx.Err(), found[0].Context().Err())
	}
	end()
	if ctx.Err() == nil || found[1].Context().Err() == nil {
		t.Errorf("after end: %v, a claim's own %v", ctx.Err(), found[1].Context().Err())
	}
	if err := claims[1].Commit(t.Context()); err != nil {
		t.Error(err)
	}
}

// Where one of the claims cannot be started any more none is, and the others can be alone.
func TestStartAllRefuses(t *testing.T) {
	for _, tc := range []struct {
		name string
		why  string
		do   func(c *idem.Claim)
		want error
	}{
		{"ended", "somebody else may have the token", func(c *idem.Claim) { c.Abandon() }, idem.ErrClaimEnded},
		{"run out", "somebody else may have the token", func(c *idem.Claim) { c.StopRenewing(); time.Sleep(time.Minute) }, idem.ErrLeaseLost},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := idem.New(idem.WithStore(memstore.New()), idem.WithLease(10*time.Second)).Group("billing")
				claims := beginAll(t, g, "a", "b", "c")
				tc.do(claims[1])
				if _, _, err := idem.StartAll(t.Context(), claims); !errors.Is(err, tc.want) {
					t.Errorf("%v, want %v: %s", err, tc.want, tc.why)
				}
				for _, i := range []int{0, 2} {
					ctx, err := claims[i].Start(t.Context())
					if err != nil || ctx.Err() != nil {
						t.Errorf("claim %d alone: %v", i, err)
					}
					claims[i].Abandon()
				}
				claims[1].Abandon()
			})
		})
	}
}
