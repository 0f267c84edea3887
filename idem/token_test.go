package idem_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"pgregory.net/rapid"

	"github.com/idemq/idemq/idem"
)

func TestTokenForIsInjective(t *testing.T) {
	parts := rapid.SliceOfN(rapid.StringMatching(`[ab]{0,3}`), 1, 4) // few letters, so that joins collide
	rapid.Check(t, func(t *rapid.T) {
		a, b := parts.Draw(t, "a"), parts.Draw(t, "b")
		ta, tb := idem.TokenFor(a...), idem.TokenFor(b...)
		named := func(p []string) bool { return strings.Join(p, "") != "" }
		if named(a) && named(b) && (ta == tb) != slices.Equal(a, b) {
			t.Errorf("TokenFor(%q) = %q, TokenFor(%q) = %q", a, ta, b, tb)
		}
		if (ta == "") == named(a) {
			t.Errorf("TokenFor(%q) = %q: only parts that name nothing give an empty token", a, ta)
		}
	})
}

// Tokens of business keys are kept by brokers and stores: they may not change with a
// release.
func TestTokenForIsStable(t *testing.T) {
	if got, want := idem.TokenFor("orders", "4711"), "q07dAS05hY0fsz863VwRn_4ZkeLzCeb5"; got != want {
		t.Errorf("TokenFor = %q, want %q", got, want)
	}
}

func TestBadTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, s := newGuard()
		for token, why := range map[string]string{"": "empty", strings.Repeat("x", 256): "256 bytes"} {
			if _, err := g.Begin(t.Context(), token); !errors.Is(err, idem.ErrInvalidToken) {
				t.Errorf("%s: Begin: %v", why, err)
			}
			if _, err := g.Inspect(t.Context(), token); !errors.Is(err, idem.ErrInvalidToken) {
				t.Errorf("%s: Inspect: %v", why, err)
			}
			if err := g.Issue(t.Context(), "fine", token); !errors.Is(err, idem.ErrInvalidToken) {
				t.Errorf("%s: Issue: %v", why, err)
			}
			if pass, err := g.Check(t.Context(), token); pass || err != nil {
				t.Errorf("%s: Check: %v, %v, want false without an error", why, pass, err)
			}
		}
		if n := s.Trips(); n != 0 {
			t.Errorf("%d trips for tokens that cannot be", n)
		}
		// A bad one fails none of its neighbours in the batch.
		begun := g.BeginAll(t.Context(), []idem.Request{{Token: "a"}, {Token: ""}, {Token: "b\x00\n\xff{}:|"}, {Token: strings.Repeat("x", 255)}})
		for i, b := range begun {
			if (i == 1) != (b.Err != nil) {
				t.Errorf("request %d: %v", i, b.Err)
			}
			if b.Claim != nil {
				if err := b.Claim.Commit(t.Context()); err != nil {
					t.Error(err)
				}
			}
		}
	})
}

func TestDerive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _ := newGuard()
		c := begin(t, g, "a")
		first := c.Derive("receipt")
		if first == c.Derive("invoice") || first == "a" {
			t.Error("names do not tell derived tokens apart")
		}
		other := begin(t, g.Group("shipping"), "a")
		if other.Derive("receipt") == first {
			t.Error("two groups that send something on each would drop one of them")
		}
		m1, m2 := new(int), new(int)
		if got, err := c.DeriveFor(t.Context(), "receipt", m1); err != nil || got != first {
			t.Errorf("DeriveFor: %q, %v", got, err)
		}
		if got, err := c.DeriveFor(t.Context(), "receipt", m1); err != nil || got != first {
			t.Errorf("DeriveFor of the same message again: %q, %v", got, err)
		}
		if _, err := c.DeriveFor(t.Context(), "receipt", m2); err == nil {
			t.Error("one name for two messages: the second would be dropped as a duplicate")
		}
		next, err := c.Retry(t.Context(), true, idem.Request{})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := next.DeriveFor(t.Context(), "receipt", m2); err != nil || got != first {
			t.Errorf("on the next attempt: %q, %v, want the same token", got, err)
		}
	})
}
