package idem_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/memstore"
)

var (
	keyA = []byte("key A, thirty-two bytes of secret")
	keyB = []byte("key B, thirty-two bytes of secret")
)

// counted is a store that counts its trips.
type counted struct {
	store.Store
	trips int
}

func (s *counted) Apply(ctx context.Context, b *store.Batch) error {
	s.trips++
	return s.Store.Apply(ctx, b)
}

func signed(t *testing.T, g *idem.Guard, token string) string {
	t.Helper()
	s, err := g.Sign(token)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// What is not signed with a key of the guard, for its prefix, is refused by every call that
// spends, without a trip; so nobody who has no key can spend a token, or find out whether one
// was spent.
func TestTokenKeysRefuse(t *testing.T) {
	s := &counted{Store: memstore.New()}
	g := idem.New(idem.WithStore(s), idem.WithPrefix("app"), idem.WithTokenKeys(keyA))
	token := "order 42"
	good := signed(t, g, token)
	flipped := []byte(good)
	flipped[len(flipped)-22] ^= 1
	lastBit := good[:len(good)-1] + string(base64Neighbour(good[len(good)-1]))
	for name, forged := range map[string]string{
		"bare":                          token,
		"an empty signature":            token + ".",
		"another key's":                 signed(t, idem.New(idem.WithPrefix("app"), idem.WithTokenKeys(keyB)), token),
		"another prefix's":              signed(t, idem.New(idem.WithPrefix("apq"), idem.WithTokenKeys(keyA)), token),
		"a prefix that ends elsewhere":  signed(t, idem.New(idem.WithPrefix("ap"), idem.WithTokenKeys(keyA)), "p"+token)[1:],
		"another token's":               "order 43" + good[len(token):],
		"a longer token's":              "x" + good,
		"one bit changed":               string(flipped),
		"a bit that decoders drop":      lastBit,
		"cut":                           good[:len(good)-1],
		"longer":                        good + "A",
		"only a signature":              good[len(token):],
		"a Unicode dot":                 token + "․" + good[len(token)+1:],
		"the signature in another case": token + "." + strings.ToUpper(good[len(token)+1:]),
	} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			handled := func(context.Context) error { t.Error("the handler ran"); return nil }
			if err := g.Do(ctx, forged, handled); !errors.Is(err, idem.ErrUnsigned) || !errors.Is(err, idem.ErrUnknownToken) {
				t.Errorf("Do: got %v, want ErrUnsigned, an ErrUnknownToken", err)
			}
			if _, err := g.Begin(ctx, forged); !errors.Is(err, idem.ErrUnsigned) {
				t.Errorf("Begin: got %v, want ErrUnsigned", err)
			}
			if _, err := g.Spend(ctx, forged, idem.WithRedrive(5)); !errors.Is(err, idem.ErrUnsigned) {
				t.Errorf("Spend: got %v, want ErrUnsigned", err)
			}
			if pass, err := g.Check(ctx, forged); pass || err != nil {
				t.Errorf("Check: got %v, %v, want false", pass, err)
			}
			all := g.BeginAll(ctx, []idem.Request{{Token: forged}, {Token: forged}})
			all = append(all, g.SpendAll(ctx, []idem.Request{{Token: forged}})...)
			for _, b := range all {
				if !errors.Is(b.Err, idem.ErrUnsigned) {
					t.Errorf("in a batch: got %v, want ErrUnsigned", b.Err)
				}
			}
			if s.trips != 0 {
				t.Errorf("the store was asked %d times, want never", s.trips)
			}
		})
	}
	if err := g.Do(t.Context(), good, func(context.Context) error { return nil }); err != nil {
		t.Errorf("the signed token: %v", err)
	}
}

// base64Neighbour is another character for the same bits, as far as those count: the last of
// 22 has four that do not.
func base64Neighbour(c byte) byte {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return alphabet[strings.IndexByte(alphabet, c)^1]
}

// A forged token beside good ones in a batch costs these nothing.
func TestTokenKeysBatch(t *testing.T) {
	g := idem.New(idem.WithStore(memstore.New()), idem.WithTokenKeys(keyA))
	got := g.BeginAll(t.Context(), []idem.Request{{Token: "x"}, {Token: signed(t, g, "x")}, {Token: signed(t, g, "y")}})
	if !errors.Is(got[0].Err, idem.ErrUnsigned) || got[1].Err != nil || got[2].Err != nil {
		t.Fatalf("got %v, %v, %v, want only the first refused", got[0].Err, got[1].Err, got[2].Err)
	}
	if got[1].Claim.Token() != "x" {
		t.Errorf("the claim's token is %q, want x", got[1].Claim.Token())
	}
}

// A key is changed while messages wait, and after some were handled: each stays one message,
// and those of a key that was dropped are refused, not taken for new.
func TestTokenKeysRotate(t *testing.T) {
	s := memstore.New()
	guard := func(current []byte, older ...[]byte) *idem.Guard {
		return idem.New(idem.WithStore(s), idem.WithTokenKeys(current, older...)).Group("g")
	}
	before, during, after := guard(keyA, keyB), guard(keyB, keyA), guard(keyB)
	old := signed(t, before, "t")
	ok := func(context.Context) error { return nil }
	if err := before.Do(t.Context(), old, ok); err != nil {
		t.Fatal(err)
	}
	anew := signed(t, during, "t")
	if anew == old {
		t.Fatal("the new key signs like the old one")
	}
	if resigned := signed(t, during, old); resigned != anew {
		t.Errorf("a token signed again is %q, want %q", resigned, anew)
	}
	for _, g := range []*idem.Guard{before, during} {
		for _, token := range []string{old, anew} {
			if err := g.Do(t.Context(), token, ok); !errors.Is(err, idem.ErrDuplicate) {
				t.Errorf("got %v, want a duplicate", err)
			}
		}
	}
	if err := after.Do(t.Context(), old, ok); !errors.Is(err, idem.ErrUnsigned) {
		t.Errorf("the dropped key: got %v, want ErrUnsigned", err)
	}
	if err := after.Do(t.Context(), anew, ok); !errors.Is(err, idem.ErrDuplicate) {
		t.Errorf("the new key: got %v, want a duplicate", err)
	}
	// Derived tokens are made of the token, not of its signature.
	c := during.Detached(t.Context(), "t")
	if d := before.Detached(t.Context(), "t"); identity(t, during, c.Derive("m")) != identity(t, before, d.Derive("m")) || c.Derive("m") == d.Derive("m") {
		t.Error("a derived token: want the same under each key, with another signature")
	}
}

func identity(t *testing.T, g *idem.Guard, token string) string {
	t.Helper()
	id, err := g.Identity(token)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// Keys are brought in while records of unsigned tokens are kept: a token is the same before
// and after it is signed.
func TestTokenKeysRollOut(t *testing.T) {
	s := memstore.New()
	none := idem.New(idem.WithStore(s))
	mixed := idem.New(idem.WithStore(s), idem.WithTokenKeys(keyA), idem.WithUnsignedTokens())
	strict := idem.New(idem.WithStore(s), idem.WithTokenKeys(keyA))
	ok := func(context.Context) error { return nil }
	if got := signed(t, none, "t"); got != "t" {
		t.Errorf("without keys Sign gives %q, want t", got)
	}
	if err := none.Do(t.Context(), "t", ok); err != nil {
		t.Fatal(err)
	}
	for name, call := range map[string]error{
		"unsigned, in between": mixed.Do(t.Context(), "t", ok),
		"signed, in between":   mixed.Do(t.Context(), signed(t, strict, "t"), ok),
		"signed, at the end":   strict.Do(t.Context(), signed(t, mixed, "t"), ok),
	} {
		if !errors.Is(call, idem.ErrDuplicate) {
			t.Errorf("%s: got %v, want a duplicate", name, call)
		}
	}
	if err := strict.Do(t.Context(), "t", ok); !errors.Is(err, idem.ErrUnsigned) {
		t.Errorf("unsigned, at the end: got %v, want ErrUnsigned", err)
	}
}

// Issued tokens are signed as well, and registered without the signature. Operators name a
// token either way.
func TestTokenKeysIssued(t *testing.T) {
	g := idem.New(idem.WithStore(memstore.New()), idem.WithTokenKeys(keyA), idem.WithIssuedOnly())
	token, err := g.Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	bare := identity(t, g, token)
	if bare == token {
		t.Fatal("Token gave an unsigned token")
	}
	if pass, err := g.Check(t.Context(), bare); pass || err != nil {
		t.Errorf("Check of the bare token: got %v, %v, want false", pass, err)
	}
	for _, want := range []bool{true, false} {
		if pass, err := g.Check(t.Context(), token); pass != want || err != nil {
			t.Errorf("Check: got %v, %v, want %v", pass, err, want)
		}
	}
	business := signed(t, g, idem.TokenFor("order", "42"))
	if err := g.Issue(t.Context(), business); err != nil {
		t.Fatal(err)
	}
	if err := g.Do(t.Context(), business, func(context.Context) error { return nil }); err != nil {
		t.Errorf("an issued token: %v", err)
	}
	for _, name := range []string{business, identity(t, g, business)} {
		if r, err := g.Inspect(t.Context(), name); err != nil || r.State != store.Done {
			t.Errorf("Inspect(%q): got %v, %v, want done", name, r.State, err)
		}
	}
	if err := g.Forget(t.Context(), business); err != nil {
		t.Fatal(err)
	}
	if r, _ := g.Inspect(t.Context(), business); r.State == store.Done {
		t.Error("Forget of the signed token forgot nothing")
	}
}

func TestTokenKeysLimits(t *testing.T) {
	g := idem.New(idem.WithTokenKeys(keyA))
	longest := strings.Repeat("x", 232)
	if got := signed(t, g, longest); len(got) != idem.MaxTokenLen || identity(t, g, got) != longest {
		t.Errorf("the longest token: got %d bytes", len(got))
	}
	for _, token := range []string{"", longest + "x", strings.Repeat("x", 256)} {
		if _, err := g.Sign(token); !errors.Is(err, idem.ErrInvalidToken) {
			t.Errorf("Sign of %d bytes: got %v, want ErrInvalidToken", len(token), err)
		}
	}
	for _, bare := range []string{".", "..", "a.b", string([]byte{0, 255, '.'}), strings.Repeat(".", 60)} {
		if got := identity(t, g, signed(t, g, bare)); got != bare {
			t.Errorf("%q comes back as %q", bare, got)
		}
	}
	for _, keys := range [][][]byte{{nil}, {[]byte("short")}, {keyA, []byte("short")}} {
		if err := idem.New(idem.WithTokenKeys(keys[0], keys[1:]...)).Err(); err == nil || !strings.Contains(err.Error(), "WithTokenKeys") {
			t.Errorf("%d keys: got %v, want an error that names WithTokenKeys", len(keys), err)
		}
	}
	key := bytes.Clone(keyA)
	g = idem.New(idem.WithTokenKeys(key))
	want := signed(t, g, "t")
	clear(key)
	if signed(t, g, "t") != want {
		t.Error("the guard kept the caller's slice")
	}
}

// Neither keys nor signatures show in what is printed: of guards, options, errors, events.
func TestTokenKeysShowNowhere(t *testing.T) { synctest.Test(t, showNowhere) }

func showNowhere(t *testing.T) {
	var mu sync.Mutex
	var seen strings.Builder
	see := func(v ...any) {
		mu.Lock()
		defer mu.Unlock()
		for _, x := range v {
			fmt.Fprintf(&seen, "%v %+v %#v %s %q %x\n", x, x, x, x, x, x)
			if text, err := json.Marshal(x); err == nil {
				seen.Write(text)
			}
		}
	}
	watch := idem.WithObserver(idem.ObserverFunc(func(e idem.Event) { see(e, e.Err) }))
	peek := func(o *idem.Options) { see(*o, o) }
	// A guard is looked at while it does nothing: printing takes no locks.
	idle := func(v ...any) {
		synctest.Wait()
		see(v...)
	}
	keys := idem.WithTokenKeys(keyA, keyB)
	g := idem.New(keys, watch, peek, idem.WithStore(memstore.New()))
	bad := idem.New(idem.WithTokenKeys([]byte("short secret"), keyA))
	good := signed(t, g, "t")
	stranger := signed(t, idem.New(idem.WithTokenKeys([]byte("a key that the guard does not have"))), "t")
	_ = g.Do(t.Context(), good, func(ctx context.Context) error {
		c, _ := idem.FromContext(ctx)
		idle(c, c.Token(), g.Do(ctx, good, nil))
		return errors.New("the handler's own")
	})
	_, err := g.Begin(t.Context(), stranger)
	idle(g, *g, bad, bad.Err(), g.Settings(), err)
	c, err := g.Begin(t.Context(), good)
	idle(c, err, c.Commit(t.Context()), c.Commit(t.Context()))
	idle(g.Do(t.Context(), good, nil))
	if !strings.Contains(seen.String(), `"t"`) {
		t.Fatal("nothing was seen that names the token: the test looks at nothing")
	}
	for name, secret := range map[string]string{
		"key A": string(keyA), "key B": string(keyB), "the short key": "short secret",
		"the signature": good[len(good)-22:], "a signature of a key that is missing here": stranger[len(stranger)-22:],
	} {
		for _, form := range []string{secret, fmt.Sprintf("%x", secret), fmt.Sprintf("%d", []byte(secret)), base64.StdEncoding.EncodeToString([]byte(secret))} {
			if strings.Contains(seen.String(), strings.Trim(form, "[]")) {
				t.Errorf("%s shows as %q", name, form)
			}
		}
	}
}
