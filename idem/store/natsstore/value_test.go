package natsstore

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/rules"
)

func TestKeys(t *testing.T) {
	for in, out := range map[string]string{
		"0b9c7e5e-8f0e-4c1b-9f43-0d3c2f6f7a11": "0b9c7e5e-8f0e-4c1b-9f43-0d3c2f6f7a11",
		"a/b_c":                                "a/b_c",
		"":                                     "=",
		"=":                                    "=3D",
		"a.b c":                                "a=2Eb=20c",
		"\x00\xff":                             "=00=FF",
		"é":                                    "=C3=A9",
		strings.Repeat("a", 96):                strings.Repeat("a", 96),
		strings.Repeat(".", 32):                strings.Repeat("=2E", 32),
		strings.Repeat("a", 97):                "=sha256-",
		strings.Repeat("\n", 33):               "=sha256-",
	} {
		got := part(in)
		if strings.HasPrefix(out, "=sha256-") {
			if !strings.HasPrefix(got, "=sha256-") || len(got) != len("=sha256-")+64 {
				t.Errorf("%q is %q", in, got)
			}
		} else if got != out {
			t.Errorf("%q is %q, want %q", in, got, out)
		}
	}
	// Nothing but a long part looks like a digest, and no key has a character that the
	// server or its tools refuse.
	if part("sha256-"+strings.Repeat("0", 64)) == part("=sha256-"+strings.Repeat("0", 64)) {
		t.Error("a short part looks like another's digest")
	}
	for c := range 256 {
		for _, r := range part(string([]byte{byte(c)})) {
			if !strings.ContainsRune("-/_=abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", r) {
				t.Errorf("byte %d is written with %q", c, r)
			}
		}
	}
	long := strings.Repeat("\xff", 255)
	if k := newKeys(long).record(long, long); len(k) > 300 {
		t.Errorf("a key has %d bytes", len(k))
	}
}

// A value comes back as it was written, with the times counted from when the server
// stored it.
func TestValues(t *testing.T) {
	const now, at = rules.Instant(1000), rules.Instant(5_000_000)
	for _, r := range []rules.Record{
		{State: store.Running, Claim: "c", Attempt: 2, Spent: 1, Expiries: 1, Redrive: 3, Renewed: now, Lease: time.Minute, Owner: "\xff\x00 %", Incarnation: math.MaxUint64, Fingerprint: "\xfe\"", Expires: now + 7},
		{State: store.Released, Claim: "c", Attempt: 1, Fence: 1, ForgotBy: "f", Expires: now + 1},
		{State: store.Done, Claim: "c", Attempt: 1, BySpend: true, Spent: 2, At: now, Result: []byte{0, 255}, Expires: math.MaxInt64},
		{State: store.Dead, Claim: "c", Attempt: 1, At: now, Expires: now + 1},
		{State: store.Forgotten, Claim: "c", Attempt: 1, Fence: 1, ForgotBy: "f", Expires: now + 1},
	} {
		value, keep, err := encodeRecord(&r, now)
		if err != nil || keep != now.Until(r.Expires) {
			t.Fatalf("%v, kept for %v", err, keep)
		}
		got, err := decodeRecord(value, at)
		if err != nil {
			t.Fatalf("%s: %v", value, err)
		}
		want := r
		want.Expires = at.Plus(keep)
		want.At, want.Renewed = at, at // where the state has none they mean nothing
		if string(got.Result) != string(want.Result) {
			t.Errorf("%s: the result is %q", value, got.Result)
		}
		got.Result, want.Result = nil, nil
		if !same(got, want) {
			t.Errorf("%s\n\tis %+v, want\n\t%+v", value, got, want)
		}
	}
}

func same(a, b rules.Record) bool {
	return a.State == b.State && a.Claim == b.Claim && a.Attempt == b.Attempt && a.Spent == b.Spent && a.Expiries == b.Expiries &&
		a.Redrive == b.Redrive && a.Fence == b.Fence && a.ForgotBy == b.ForgotBy && a.BySpend == b.BySpend && a.At == b.At &&
		a.Renewed == b.Renewed && a.Lease == b.Lease && a.Owner == b.Owner && a.Incarnation == b.Incarnation &&
		a.Fingerprint == b.Fingerprint && a.Expires == b.Expires
}

// Every field, damaged: that value cannot be read.
func TestDamagedValues(t *testing.T) {
	const running = `{"v":1,"state":"in progress","claim":"c","attempt":1,"spent":1,"lease":"10s","owner":"o","incarnation":1,"keep":"1h0m0s"}`
	if _, err := decodeRecord([]byte(running), 0); err != nil {
		t.Fatal(err)
	}
	for _, change := range [][2]string{
		{`"v":1`, `"v":0`},
		{`"v":1`, `"v":"1"`},
		{`"v":1,`, ``},
		{`"in progress"`, `"absent"`},
		{`"in progress"`, `"running"`},
		{`"in progress"`, `1`},
		{`"attempt":1`, `"attempt":-1`},
		{`"attempt":1`, `"attempt":1e30`},
		{`"attempt":1`, `"attempt":"1"`},
		{`"spent":1`, `"spent":-1`},
		{`"lease":"10s"`, `"lease":"-10s"`},
		{`"lease":"10s"`, `"lease":10`},
		{`"owner":"o"`, `"owner":"%"`},
		{`"keep":"1h0m0s"`, `"keep":"1 hour"`},
		{`"keep":"1h0m0s"`, `"keep":"-1h"`},
		{`}`, ``},
		{running, ``},
		{running, `null`},
		{running, `[]`},
	} {
		value := strings.Replace(running, change[0], change[1], 1)
		if r, err := decodeRecord([]byte(value), 0); !errors.Is(err, store.ErrUnreadable) || !same(r, rules.Record{}) {
			t.Errorf("%s: %+v, %v", value, r, err)
		}
	}
	for value, sentinel := range map[string]error{
		`{"v":2}`:                             store.ErrNewer,
		`{"v":2,"state":7}`:                   store.ErrNewer,
		`{"v":1,"state":"spent"}`:             store.ErrUnreadable,
		`{"v":1,"state":"issued","keep":"x"}`: store.ErrUnreadable,
		`{"v":1,"state":"issued","checked_by":"k","keep":"1s"}`: store.ErrUnreadable,
		running: store.ErrUnreadable,
		``:      store.ErrUnreadable,
	} {
		if i, err := decodeIssued([]byte(value), 0); !errors.Is(err, sentinel) || i != (rules.Issued{}) {
			t.Errorf("%s: %+v, %v", value, i, err)
		}
	}
}

func TestTTL(t *testing.T) {
	for keep, seconds := range map[time.Duration]string{
		0: "5", -1: "5", 1: "6", time.Second: "6", 1500 * time.Millisecond: "7", math.MaxInt64: "1576800005",
	} {
		if got := ttl(keep); got != seconds {
			t.Errorf("%v is kept for %s s, want %s", keep, got, seconds)
		}
	}
}

func TestTooOld(t *testing.T) {
	for v, old := range map[string]bool{"2.10.29": true, "1.4.1": true, "2.11.0": false, "2.15.2": false, "3.0.0-dev": false, "": false, "dev": false} {
		if tooOld(v) != old {
			t.Errorf("%q: too old is %v", v, !old)
		}
	}
}

// The memory is bounded, and an older revision does not replace a newer one.
func TestMemory(t *testing.T) {
	var m memory
	m.put("k", remembered{seq: 2})
	m.put("k", remembered{seq: 1})
	if r, ok := m.get("k", 0); !ok || r.seq != 2 {
		t.Errorf("%+v, %v", r, ok)
	}
	if _, ok := m.get("k", 1); ok {
		t.Error("it remembers across a reconnect")
	}
	for i := range maxRemembered + 10 {
		m.put(newKeys("p").record("g", strings.Repeat("x", i%50)+time.Duration(i).String()), remembered{seq: 1})
	}
	if len(m.keys) > maxRemembered {
		t.Errorf("it holds %d", len(m.keys))
	}
}
