package inbox

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/rules"
)

// What statements may hold where values are written into them.
var (
	literalRow   = regexp.MustCompile(`^\((NULL|-?[0-9]+|'[A-Za-z0-9_-]*'|X'[0-9a-f]*')(,(NULL|-?[0-9]+|'[A-Za-z0-9_-]*'|X'[0-9a-f]*'))*\)$`)
	literalArray = regexp.MustCompile(`^\{(NULL|-?[0-9]+|"[A-Za-z0-9_-]*"|"\\\\x[0-9a-f]*")\}$`)
)

// FuzzRow reads columns as a row of records, and as a registration, whoever wrote them. What
// cannot be read is told; on what can be read each operation leaves a row that can be read
// again and says the same, in literals that end where they should, with attempts that rise.
func FuzzRow(f *testing.F) {
	const now, hour = 1_700_000_000_000_000, 3_600_000_000
	for state := range int64(8) {
		f.Add(int64(1), state, "c", "", []byte("t"), []byte("o"), []byte("r"), int64(1), int64(0), int64(now+hour), int64(now), int64(hour), int64(1))
	}
	f.Add(int64(2), int64(1), "c", "", []byte("t"), []byte{}, []byte{}, int64(1), int64(0), int64(now), int64(now), int64(1), int64(0))
	f.Add(int64(1), int64(3), "'); --", "", []byte("'"), []byte("'"), []byte("\\"), int64(1), int64(0), int64(now+hour), int64(now), int64(0), int64(0))
	f.Add(int64(1), int64(2), "c", `"}`, []byte{}, []byte{0xff}, []byte{0}, int64(3), int64(2), int64(now+hour), int64(0), int64(0), int64(0))
	f.Add(int64(1), int64(1), "c", "f", []byte("t"), []byte{}, []byte{}, int64(math.MaxInt32), int64(math.MaxInt32), int64(math.MaxInt64), int64(math.MinInt64), int64(math.MaxInt64), int64(-1))
	f.Add(int64(1), int64(2), "c", "f", []byte("t"), []byte{}, []byte{}, int64(-1), int64(-1), int64(math.MinInt64), int64(-1), int64(-1), int64(math.MinInt64))
	f.Fuzz(func(t *testing.T, v, state int64, claim, forgotBy string, token, owner, result []byte, attempt, count, expires, at, lease, incarnation int64) {
		checkNames(t, claim, forgotBy, string(owner), string(result), token)
		token = token[:min(len(token), 255)]
		s := scanned{
			kind: 1, gid: 1, version: v, state: state, token: token, claim: claim, forgotBy: forgotBy, owner: owner, fingerprint: owner, result: result,
			attempt: attempt, spent: count, expiries: count, redrive: count, fence: count,
			expires: expires, at: at, renewed: at, lease: lease, incarnation: incarnation, due: 1,
		}
		r := s.row()
		if r.err != nil {
			if !errors.Is(r.err, store.ErrUnreadable) && !errors.Is(r.err, store.ErrNewer) || (v > version) != errors.Is(r.err, store.ErrNewer) {
				t.Fatalf("%+v: %v", s, r.err)
			}
			return
		}
		b := &store.Batch{Lease: time.Minute, Retention: time.Hour, CheckWithin: time.Minute, Owner: "o", Incarnation: 2}
		x := rules.Execution{Batch: b, Now: fromMicros(now), Time: toTime}
		for kind := store.Begin; kind <= store.Inspect; kind++ {
			for _, claim := range []string{"c", "other"} {
				rec := r.record
				o := &store.Op{Kind: kind, Token: string(token), Claim: claim, Attempt: 1, Redrive: 3, Result: result}
				reply, changed := x.Do(o, &rec, &rules.Issued{})
				if !changed {
					continue
				}
				if reply.Status == store.Claimed && (reply.Attempt < r.record.Attempt || reply.Attempt == r.record.Attempt && r.record.Claim != claim) {
					t.Fatalf("%+v: attempt %d follows %d", s, reply.Attempt, r.record.Attempt)
				}
				checkWritten(t, &row{key: r.key, record: rec, stored: true, due: s.due}, fmt.Sprintf("kind %d of %+v", kind, s))
			}
		}
		checkIssued(t, token, forgotBy, expires, at, v)
	})
}

// checkWritten reads again what is written.
func checkWritten(t *testing.T, r *row, of string) {
	t.Helper()
	vs := r.values(time.Minute)
	checkLiterals(t, vs)
	again := scanned{kind: 1}
	for i, name := range recordColumns {
		again.set(name, vs[i])
	}
	got := again.row()
	want := r.record
	if got.err != nil {
		t.Fatalf("%s: it made %+v, which cannot be read: %v", of, again, got.err)
	}
	g := got.record
	if want.State != store.Running {
		want.Renewed, want.Lease = 0, 0
	} else {
		want.Renewed, want.Lease = want.Renewed/1000*1000, want.Lease/1000*1000
	}
	if want.State != store.Done && want.State != store.Dead {
		want.At = 0
	}
	if got.key != r.key || g.State != want.State || g.Claim != want.Claim || g.Attempt != want.Attempt || g.Spent != want.Spent ||
		g.Expiries != want.Expiries || g.Redrive != want.Redrive || g.Fence != want.Fence || g.ForgotBy != want.ForgotBy ||
		g.BySpend != (want.BySpend && want.State == store.Done) || g.At != want.At/1000*1000 || g.Renewed != want.Renewed || g.Lease != want.Lease ||
		g.Owner != want.Owner || g.Incarnation != want.Incarnation || g.Fingerprint != want.Fingerprint ||
		string(g.Result) != string(want.Result) || g.Expires < want.Expires && want.Expires-g.Expires > 1000 {
		t.Fatalf("%s: it reads again as\n%+v, want\n%+v", of, g, want)
	}
}

// set gives a column its value, as a database answers it.
func (s *scanned) set(name string, v any) {
	n, _ := v.(int64)
	text, _ := v.(string)
	bytes, _ := v.([]byte)
	switch name {
	case "gid":
		s.gid = n
	case "token":
		s.token = bytes
	case "version":
		s.version = n
	case "state":
		s.state = n
	case "claim":
		s.claim = text
	case "attempt":
		s.attempt = n
	case "expires":
		s.expires = n
	case "due":
		s.due = n
	case "at":
		s.at = n
	case "renewed":
		s.renewed = n
	case "lease":
		s.lease = n
	case "incarnation":
		s.incarnation = n
	case "spent":
		s.spent = n
	case "expiries":
		s.expiries = n
	case "redrive":
		s.redrive = n
	case "fence":
		s.fence = n
	case "forgot_by":
		s.forgotBy = text
	case "owner":
		s.owner = bytes
	case "fingerprint":
		s.fingerprint = bytes
	case "result":
		s.result = bytes
	}
}

// checkLiterals writes values as each dialect has them.
func checkLiterals(t *testing.T, vs []any) {
	t.Helper()
	var b strings.Builder
	rows := table{rows: [][]any{vs}}
	rows.writeRows(&b)
	if !literalRow.MatchString(b.String()) {
		t.Fatalf("%q is written as %s", vs, b.String())
	}
	for i := range vs {
		if array := rows.array(i); !literalArray.MatchString(array) {
			t.Fatalf("%q is written as %s", vs[i], array)
		}
	}
}

// checkIssued does the same with a registration.
func checkIssued(t *testing.T, token []byte, checkedBy string, expires, checkBy, v int64) {
	t.Helper()
	r := readIssuedRow(key{1, string(token)}, v, checkBy, checkedBy, expires, 1)
	if r.err != nil {
		if !errors.Is(r.err, store.ErrUnreadable) && !errors.Is(r.err, store.ErrNewer) {
			t.Fatal(r.err)
		}
		return
	}
	x := rules.Execution{Batch: &store.Batch{CheckWithin: time.Minute}, Now: fromMicros(1_700_000_000_000_000), Time: toTime}
	for _, kind := range []store.Kind{store.Issue, store.Check} {
		was := r.issued
		if _, changed := x.Do(&store.Op{Kind: kind, Token: string(token), Claim: "k"}, &rules.Record{}, &was); !changed {
			continue
		}
		vs := (&issuedRow{key: r.key, issued: was, stored: true, due: 1}).values()
		checkLiterals(t, vs)
		by, _ := vs[4].(string)
		again := readIssuedRow(r.key, vs[2].(int64), vs[3].(int64), by, vs[5].(int64), vs[6].(int64))
		if again.err != nil || again.issued.CheckedBy != was.CheckedBy || again.issued.CheckBy != was.CheckBy/1000*1000 {
			t.Fatalf("%+v reads again as %+v", was, again)
		}
	}
}

// checkNames: each group, each prefix's issued tokens and each instance name has a hash of
// its own, and a key, whatever its bytes, is written as a condition on itself.
func checkNames(t *testing.T, prefix, name, prefix2, name2 string, token []byte) {
	t.Helper()
	hashes := map[string]string{}
	for _, kind := range []byte{ofGroup, ofIssued, ofInstance} {
		for _, n := range [][2]string{{prefix, name}, {prefix2, name2}, {name, prefix}, {prefix, ""}} {
			h, what := string(hash(kind, n[0], n[1])), fmt.Sprintf("%c %q %q", kind, n[0], n[1])
			if other, ok := hashes[h]; ok && other != what {
				t.Fatalf("%s and %s are one", what, other)
			}
			hashes[h] = what
			if id := groupID([]byte(h), len(token)%9); id < 1 || id > math.MaxInt32 {
				t.Fatalf("%s has the number %d", what, id)
			}
		}
	}
	var b strings.Builder
	keyTable([]key{{1, string(token)}, {1, name}, {2, prefix}}).writeKeys(&b)
	if want := fmt.Sprintf("(gid = 1 AND token IN (X'%x',X'%x') OR gid = 2 AND token IN (X'%x'))", token, name, prefix); b.String() != want {
		t.Fatalf("the keys %q, %q and %q are written as %s", token, name, prefix, b.String())
	}
}
