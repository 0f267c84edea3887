package idem_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store/memstore"
)

// FuzzTokens: a token is any 1 to 255 bytes; different parts make different tokens, and so
// do different tokens, groups and names of what a claim derives; and under keys no bytes
// but those that were signed for this prefix are admitted.
func FuzzTokens(f *testing.F) {
	f.Add("ab", "c", "g", "p", 0, uint8(1))
	f.Add("a", "bc", "", "p.", 30, uint8(0x20))
	f.Add("", "", "", "", 0, uint8(0))
	f.Add("a.AAAAAAAAAAAAAAAAAAAAAA", "AAAAAAAAAAAAAAAAAAAAAA", "\x00", "p\x00", 1, uint8(0xff))
	f.Add(strings.Repeat("\xff", 255), strings.Repeat("t", 232), "g", "%", 254, uint8(1))
	f.Fuzz(func(t *testing.T, a, b, group, prefix string, at int, flip uint8) {
		for _, token := range []string{a, b, group} {
			if err := idem.CheckToken(token); (err == nil) != (len(token) >= 1 && len(token) <= 255) || err != nil && !errors.Is(err, idem.ErrInvalidToken) {
				t.Fatalf("%q: %v", token, err)
			}
		}
		most := func(s string, n int) string { return s[:min(len(s), n)] } // longer names are refused
		checkParts(t, [][]string{{a, b}, {a + b}, {a, b, ""}, {"", a, b}, {b, a}, {a + b, ""}, {a, b + group}, {a, b, group}, {group, a, b}})
		checkDerived(t, most(a, 255), b, most(group, 255))
		checkSigned(t, a, most(prefix, 254), b, at, flip)
	})
}

func checkParts(t *testing.T, lists [][]string) {
	t.Helper()
	for i, x := range lists {
		token := idem.TokenFor(x...)
		if named := strings.Join(x, "") != ""; named != (token != "") || named && idem.CheckToken(token) != nil {
			t.Fatalf("%q makes the token %q", x, token)
		}
		for _, y := range lists[:i] {
			if token != "" && (token == idem.TokenFor(y...)) != slices.Equal(x, y) {
				t.Fatalf("%q and %q make the token %q", x, y, token)
			}
		}
	}
}

// checkDerived derives under two names from the claims of two tokens in two groups.
func checkDerived(t *testing.T, a, b, group string) {
	t.Helper()
	g := idem.New(idem.WithStore(memstore.New()))
	from := map[string][3]string{}
	for _, group := range []string{group, a} {
		for _, token := range []string{a, b} {
			if idem.CheckToken(token) != nil {
				continue
			}
			c, err := g.Group(group).Begin(t.Context(), token)
			if errors.Is(err, idem.ErrInProgress) { // the same once more
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"x", b, group} {
				what := [3]string{token, group, name}
				derived := c.Derive(name)
				if other, ok := from[derived]; ok && other != what || derived == token || idem.CheckToken(derived) != nil {
					t.Fatalf("%q and %q derive %q", what, other, derived)
				}
				from[derived] = what
			}
			if err := c.Release(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// checkSigned signs a token, and then changes it in one place.
func checkSigned(t *testing.T, token, prefix, other string, at int, flip uint8) {
	t.Helper()
	key, old := []byte("0123456789abcdef"), []byte("fedcba9876543210")
	guard := func(prefix string, current []byte, older ...[]byte) *idem.Guard {
		return idem.New(idem.WithStore(memstore.New()), idem.WithPrefix(prefix), idem.WithTokenKeys(current, older...))
	}
	g := guard(prefix, key, old)
	signed, err := g.Sign(token)
	if err != nil {
		if !errors.Is(err, idem.ErrInvalidToken) || len(token) > 0 && len(token) <= 232 {
			t.Fatalf("%q: %v", token, err)
		}
		return
	}
	id, err := g.Identity(signed)
	if err != nil || id != token {
		t.Fatalf("%q, signed as %q, is %q, %v", token, signed, id, err)
	}
	if again, err := g.Sign(signed); err != nil || again != signed {
		t.Fatalf("%q, signed again, is %q, %v", signed, again, err)
	}
	if byOld, err := guard(prefix, old).Sign(token); err != nil {
		t.Fatal(err)
	} else if id, err := g.Identity(byOld); err != nil || id != token {
		t.Fatalf("%q, signed with the older key, is %q, %v", token, id, err)
	}
	forged := []byte(signed)
	forged[int(uint(at)%uint(len(forged)))] ^= flip
	for _, bad := range []string{token, string(forged), signed + signed[len(token):], other + signed[len(token):], token + other} {
		if bad == signed {
			continue
		}
		if id, err := g.Identity(bad); err == nil {
			t.Fatalf("%q, which was never signed, is admitted as %q", bad, id)
		}
	}
	if prefix == "" {
		return // the default
	}
	if id, err := guard(prefix+"x", key).Identity(signed); !errors.Is(err, idem.ErrUnsigned) {
		t.Fatalf("%q of prefix %q is admitted in another, as %q, %v", signed, prefix, id, err)
	}
}
