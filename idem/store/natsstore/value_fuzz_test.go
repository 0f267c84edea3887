package natsstore

import (
	"errors"
	"math"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/rules"
)

var kinds = []store.Kind{
	store.Begin, store.Commit, store.Release, store.Renew, store.Bury, store.Spend, store.Forget, store.Inspect, store.Issue, store.Check,
}

// FuzzValue reads a value as each thing that a bucket keeps. What cannot be read is told,
// and nothing of it is used; what can be read is in range, and each operation on it leaves
// what can be read again, with attempts that rise and incarnations that follow.
func FuzzValue(f *testing.F) {
	for _, v := range []string{
		`{"v":1,"state":"in progress","claim":"c","attempt":1,"spent":1,"lease":"10s","owner":"o%00","incarnation":1,"keep":"1h0m0s"}`,
		`{"v":1,"state":"released","claim":"d","attempt":9223372036854775807,"fence":1,"forgot_by":"f","keep":"2562047h47m16.854775807s"}`,
		`{"v":1,"state":"done","claim":"c","attempt":1,"by_spend":true,"expiries":9223372036854775807,"spent":2,"result":"AP8=","keep":"1s"}`,
		`{"v":1,"state":"dead","claim":"c","attempt":1,"redrive":2,"keep":"1h"}`,
		`{"v":1,"state":"forgotten","claim":"c","attempt":1,"fingerprint":"%ff","keep":"1h"}`,
		`{"v":1,"state":"issued","check_within":"-1h","keep":"1h"}`,
		`{"v":1,"state":"spent","checked_by":"k","keep":"1h"}`,
		`{"v":1,"incarnation":18446744073709551615}`,
		`{"v":1,"layout":"records"}`,
		`{"v":2,"state":7}`, `{"v":1,"V":2}`, `{}`, `null`, ``,
	} {
		f.Add([]byte(v), "c", int64(1), 0)
		f.Add([]byte(v), "other", int64(math.MaxInt64/2), 3)
	}
	f.Fuzz(func(t *testing.T, value []byte, claim string, at int64, redrive int) {
		if !regexp.MustCompile(`^[A-Za-z0-9_-]{1,40}$`).MatchString(claim) {
			claim = "c"
		}
		stored := rules.Instant(at & math.MaxInt64)
		now := stored.Plus(time.Minute)
		reg, err := decodeIssued(value, stored)
		checkError(t, value, err, reg == rules.Issued{})
		var last uint64
		if last, err = decodeIncarnation(value); err == nil && last+1 <= last {
			t.Fatalf("%s: no incarnation follows %d", value, last)
		}
		checkError(t, value, err, last == 0)

		rec, err := decodeRecord(value, stored)
		checkError(t, value, err, same(rec, rules.Record{}) && rec.Result == nil)
		if err != nil {
			rec = rules.Record{}
		}
		for _, kind := range kinds {
			r, i := rec, reg
			x := rules.Execution{
				Batch: &store.Batch{Lease: time.Minute, Retention: time.Hour, CheckWithin: time.Minute, Owner: "o", Incarnation: 2},
				Now:   now, Time: func(t rules.Instant) time.Time { return time.Unix(0, int64(t)) },
			}
			reply, changed := x.Do(&store.Op{Kind: kind, Token: "t", Claim: claim, Attempt: 1, Redrive: max(redrive, 0)}, &r, &i)
			if !changed {
				continue
			}
			if reply.Status == store.Claimed && kind == store.Begin && (reply.Attempt < rec.Attempt || reply.Attempt == rec.Attempt && rec.Claim != claim) {
				t.Fatalf("%s: attempt %d follows %d", value, reply.Attempt, rec.Attempt)
			}
			checkWritten(t, kind, value, &r, &i, now)
		}
	})
}

// checkError: a value is read, or it is told why not and nothing of it is answered.
func checkError(t *testing.T, value []byte, err error, empty bool) {
	t.Helper()
	if err == nil {
		return
	}
	if !errors.Is(err, store.ErrUnreadable) && !errors.Is(err, store.ErrNewer) {
		t.Fatalf("%s: %v", value, err)
	}
	if !empty {
		t.Fatalf("%s: something was read beside %v", value, err)
	}
}

// checkWritten reads again what an operation has made of a value.
func checkWritten(t *testing.T, kind store.Kind, before []byte, r *rules.Record, i *rules.Issued, now rules.Instant) {
	t.Helper()
	if kind == store.Issue || kind == store.Check {
		value, keep, err := encodeIssued(i, now)
		if err != nil {
			t.Fatal(err)
		}
		got, err := decodeIssued(value, now)
		if err != nil || got.CheckedBy != i.CheckedBy || !got.Known || got.CheckedBy == "" && got.CheckBy != i.CheckBy || got.Expires != now.Plus(keep) {
			t.Fatalf("kind %d made %s of %s, which reads %+v, %v; want %+v", kind, value, before, got, err, i)
		}
		return
	}
	value, keep, err := encodeRecord(r, now)
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeRecord(value, now)
	want := *r
	want.At, want.Renewed, want.Expires = now, now, now.Plus(keep)
	if want.State != store.Running {
		want.Lease, want.Owner, want.Incarnation = 0, "", 0
	}
	if err != nil || !same(got, want) || string(got.Result) != string(want.Result) {
		t.Fatalf("kind %d made %s of %s, which reads\n%+v, %v; want\n%+v", kind, value, before, got, err, want)
	}
}

// FuzzKeys: the parts of a key are read back from it, but for those that are digests; no
// two names share a key, and a key holds nothing that the server takes for a wildcard or
// for another part.
func FuzzKeys(f *testing.F) {
	f.Add("p", "g", "t")
	f.Add("a.record", "b", "c.d")
	f.Add("", "=", "=sha256-")
	f.Add("*", ">", "$KV.x\r\n")
	f.Add(strings.Repeat("a", 97), strings.Repeat(".", 33), "\xff\x00")
	f.Fuzz(func(t *testing.T, prefix, group, token string) {
		k := newKeys(prefix)
		for name, key := range map[string]string{
			"record": k.record(group, token), "issued": k.issued(token), "incarnation": k.incarnation(token),
			"descriptor": k.descriptor(), "proof": k.proof(),
		} {
			if strings.Trim(key, "-/_=.abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") != "" || strings.Contains(key, "..") {
				t.Fatalf("the key %q", key)
			}
			want := []string{prefix, name}
			switch name {
			case "record":
				want = append(want, group, token)
			case "issued", "incarnation":
				want = append(want, token)
			}
			parts := strings.Split(key, ".")
			if len(parts) != len(want) || parts[1] != name {
				t.Fatalf("%q reads back from %q", want, key)
			}
			for i, p := range parts {
				if got, ok := unpart(p); i != 1 && (!ok && len(want[i]) <= maxPart/3 || ok && got != want[i]) {
					t.Fatalf("%q reads back from %q as %q", want[i], p, got)
				}
			}
		}
		for _, pair := range [][2]string{{group, token}, {prefix, group}, {prefix, token}, {token, part(token)}} {
			if pair[0] != pair[1] && part(pair[0]) == part(pair[1]) {
				t.Fatalf("%q and %q are both %q", pair[0], pair[1], part(pair[0]))
			}
		}
	})
}

// unpart reads a part back, unless it is a digest.
func unpart(p string) (s string, ok bool) {
	if p == "=" {
		return "", true
	}
	var b []byte
	for i := 0; i < len(p); i++ {
		if p[i] != '=' {
			b = append(b, p[i])
			continue
		}
		const digits = "0123456789ABCDEF"
		if i+2 >= len(p) {
			return "", false
		}
		high, low := strings.IndexByte(digits, p[i+1]), strings.IndexByte(digits, p[i+2])
		if high < 0 || low < 0 {
			return "", false
		}
		b = append(b, byte(high<<4|low))
		i += 2
	}
	return string(b), true
}
