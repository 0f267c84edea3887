package redisstore_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/big"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/redisstore"
	"github.com/idemq/idemq/idem/store/rules"
	"github.com/idemq/idemq/internal/redistest"
)

var (
	newerValue = regexp.MustCompile(`^[2-9][a-z]\|`)
	oneNumber  = regexp.MustCompile(`^(0|[1-9][0-9]*)$`)
)

// reading is a record as the comment on the package shows it, taken apart a second time.
type reading struct {
	rest []string
	bad  bool
}

func (r *reading) next() string {
	if len(r.rest) == 0 {
		r.bad = true
		return ""
	}
	s := r.rest[0]
	r.rest = r.rest[1:]
	return s
}

// number is one of so many digits at most.
func (r *reading) number(digits int) int {
	s := r.next()
	n, err := strconv.Atoi(s)
	r.bad = r.bad || !oneNumber.MatchString(s) || len(s) > digits || err != nil
	return n
}

const (
	countDigits = 13 // counts, which Redis' Lua counts on
	clockDigits = 16 // what only stands, or is compared
)

// shortRecord is of a token done at its first attempt, with the time and the end of the claim id.
var shortRecord = regexp.MustCompile(`^([1-9][0-9]{12})([0-9]{6})$`)

// readRecord reads a record; at is in milliseconds, and times in nanoseconds.
func readRecord(v string) (rec rules.Record, ok bool) {
	if short := shortRecord.FindStringSubmatch(v); short != nil {
		at, _ := strconv.ParseInt(short[1], 10, 64)
		return rules.Record{State: store.Done, Claim: "~" + short[2], At: rules.Instant(at), Attempt: 1}, true
	}
	if len(v) < 3 || v[0] != '1' || v[2] != '|' {
		return rec, false
	}
	r := &reading{rest: strings.Split(v[3:], "|")}
	rec.Claim = r.next()
	switch v[1] {
	case 'p', 'r', 'f':
		rec.State = map[byte]store.State{'p': store.Running, 'r': store.Released, 'f': store.Forgotten}[v[1]]
		rec.Attempt, rec.Spent, rec.Expiries = r.number(countDigits), r.number(countDigits), r.number(countDigits)
		rec.Redrive = r.number(clockDigits)
		r.marks(&rec)
		if v[1] == 'p' {
			deadline, lease := r.number(clockDigits), r.number(clockDigits)
			rec.Lease = time.Duration(min(lease, math.MaxInt64/1000) * 1000)
			rec.Renewed = rules.Instant(min(deadline, math.MaxInt64/1000)*1000) - rules.Instant(rec.Lease)
			inc := r.next()
			n, err := strconv.ParseUint(inc, 10, 64)
			r.bad = r.bad || err != nil || !oneNumber.MatchString(inc)
			rec.Incarnation, rec.Owner = n, r.next()
		}
	case 'd', 's', 'x':
		rec.State, rec.BySpend = store.Done, v[1] == 's'
		if v[1] == 'x' {
			rec.State = store.Dead
		}
		rec.At, rec.Attempt = rules.Instant(r.number(clockDigits)), 1
		if len(r.rest) > 0 {
			rec.Attempt, rec.Redrive = r.number(countDigits), r.number(clockDigits)
			r.marks(&rec)
			rec.Spent, rec.Expiries = r.number(countDigits), r.number(countDigits)
			if result := strings.Join(r.rest, "|"); result != "" {
				rec.Result = []byte(result)
			}
			r.bad = r.bad || len(r.rest) == 0
			r.rest = nil
		}
	default:
		return rec, false
	}
	return rec, !r.bad && len(r.rest) == 0
}

// marks are the fields that all but the short records have.
func (r *reading) marks(rec *rules.Record) {
	rec.Fingerprint = r.next()
	if len(r.rest) > 0 && r.rest[0] == "" {
		r.next()
	} else {
		rec.Fence = r.number(countDigits)
	}
	rec.ForgotBy = r.next()
}

// told is why a value cannot be read.
func told(v string) error {
	if newerValue.MatchString(v) {
		return store.ErrNewer
	}
	return store.ErrUnreadable
}

var kinds = []store.Kind{
	store.Begin, store.Commit, store.Release, store.Renew, store.Bury, store.Spend, store.Forget, store.Inspect,
}

// FuzzRecord puts a value in the place of records, and has each kind of operation meet it.
// What package rules would not read is told, and stays as it is to the byte; on what it
// reads the script answers and writes what the rules do. Neighbours in the batch are
// handled whatever it is.
func FuzzRecord(f *testing.F) {
	c := redistest.Start(f).Client(f)
	s := redisstore.New(c)
	p := place{c: c, keys: make([]string, len(kinds))}
	for i := range kinds {
		want(f, s, "p", store.Claimed, op(store.Begin, fmt.Sprint("t", i), "a"))
		p.keys[i] = keysOf(f, c, "p", fmt.Sprint(":g:t", i))[0]
	}

	for _, v := range []string{
		"1p|a-000001|1|0|0|0||||%s|60000000|0|",
		"1p|b-000002|3|1|1|2|fp|2|f|%s|60000000|4|o",
		"1p|b-000002|1|0|0|0||||1|60000000|7|o",
		"1r|a-000001|2|1|0|0|||", "1r|b-000002|1|0|0|0|fp||", "1f|a-000001|1|0|0|5||1|f",
		"1d|a-000001|1700000000000", "1d|b-000002|1700000000000|2|0|fp|1|f|0|0|line\n|result",
		"1700000000000000001", "1700000000000000002", "1f|~000001|1|0|0|0||1|f",
		"1s|a-000001|1700000000000|4|1||||3|2|", "1x|b-000002|1700000000000|2|3||||0|0|",
		"2p|whatever", "", "hello", "1z|a|1", "1p|a|1|0", "0700000000000000001", "170000000000000001",
	} {
		if strings.Contains(v, "%s") {
			v = fmt.Sprintf(v, strconv.FormatInt(time.Now().Add(time.Hour).UnixMicro(), 10))
		}
		for flags := range uint8(4) {
			f.Add([]byte(v), "", 0, 1, flags)
			f.Add([]byte(v), "fp", 3, 3, flags|8)
		}
	}
	f.Fuzz(func(t *testing.T, value []byte, fp string, redrive, attempt int, flags uint8) {
		v := string(value)
		if strings.Contains(v, "9999999999999") {
			t.Skip("a count at its end, where the next has no room: no record comes so far by itself")
		}
		if len(fp) > 64 || strings.Contains(fp, "|") {
			fp = "fp"
		}
		redrive, attempt = int(uint(redrive)%(1<<53)), 1+int(uint(attempt)%1000)
		p.fill(t, v)

		claim := [...]string{"a-000001", "b-000002"}[flags&1]
		b := batch("p", op(store.Begin, "before", "n"))
		b.IssuedOnly = flags&2 != 0
		if b.IssuedOnly {
			b.Ops[0] = op(store.Issue, "before", "")
		}
		if flags&8 != 0 {
			b.Owner, b.Incarnation = "o", 5
		}
		for i, k := range kinds {
			o := op(k, fmt.Sprint("t", i), claim)
			switch k {
			case store.Begin, store.Spend:
				o.Redrive, o.Fingerprint = redrive, fp
				o.MaxExpiries = int(flags >> 4 & 3)
			case store.Commit:
				o.Attempt = attempt
				if flags&4 != 0 {
					o.Result = []byte(fp)
				}
			case store.Release:
				o.Counted = flags&4 != 0
			}
			b.Ops = append(b.Ops, o)
		}
		b.Ops = append(b.Ops, op(store.Commit, "after", "n"))
		replies := apply(t, s, b)
		for _, r := range []store.Reply{replies[0], replies[len(replies)-1]} {
			if r.Err != nil || r.Status != store.Claimed && r.Status != store.OK {
				t.Fatalf("beside %q: a neighbour got %+v", v, r)
			}
		}
		after := p.read(t)
		for i := range kinds {
			checkRecord(t, b, &b.Ops[i+1], replies[i+1], v, after[i])
		}
	})
}

// checkRecord compares what Redis made of a value with what the rules make of it.
func checkRecord(t *testing.T, b *store.Batch, o *store.Op, got store.Reply, before, after string) {
	t.Helper()
	rec, ok := readRecord(before)
	if !ok {
		// Of its own claim, at its first attempt, a completion needs no more than this.
		if plain := "1p|" + o.Claim + "|1|0|0|0||||"; o.Kind == store.Commit && strings.HasPrefix(before, plain) && got.Err == nil {
			return
		}
		if !errors.Is(got.Err, told(before)) {
			t.Fatalf("kind %d on %q: %+v, want %v", o.Kind, before, got, told(before))
		}
		if after != before {
			t.Fatalf("kind %d on %q: %q was written over it", o.Kind, before, after)
		}
		return
	}
	x := rules.Execution{Batch: b, Now: rules.Instant(b.Now.UnixNano()), Time: func(i rules.Instant) time.Time { return time.UnixMilli(int64(i)) }}
	completeClaim(&rec, o)
	own := rec.State == store.Running && rec.Claim == o.Claim
	want, changed := x.Do(o, &rec, &rules.Issued{})
	if own && o.Kind == store.Begin { // whoever has the claim id is its owner
		rec.Owner, rec.Incarnation = b.Owner, b.Incarnation
	}
	if !sameReply(want, got) {
		t.Fatalf("kind %d on %q: %+v, want %+v", o.Kind, before, got, want)
	}
	if !changed {
		if after != before {
			t.Fatalf("kind %d on %q: %q was written over it", o.Kind, before, after)
		}
		return
	}
	kept, ok := readRecord(after)
	if !ok {
		t.Fatalf("kind %d on %q made what nobody can read of it: %q", o.Kind, before, after)
	}
	if !sameRecord(rec, kept) {
		t.Fatalf("kind %d on %q made %q of it, want %+v", o.Kind, before, after, rec)
	}
}

func sameReply(a, b store.Reply) bool {
	if (a.RetryAfter > 0) != (b.RetryAfter > 0) || (a.Record == nil) != (b.Record == nil) || (a.Err == nil) != (b.Err == nil) {
		return false
	}
	if r, s := a.Record, b.Record; r != nil && (r.State != s.State || r.Claim != s.Claim || r.Attempt != s.Attempt ||
		r.Spent != s.Spent || r.Expiries != s.Expiries || r.Redrive != s.Redrive || r.Owner != s.Owner || r.Incarnation != s.Incarnation ||
		r.Fingerprint != s.Fingerprint || string(r.Result) != string(s.Result) || !sameTime(r.At, s.At)) {
		return false
	}
	return a.Status == b.Status && a.Attempt == b.Attempt && a.Spent == b.Spent && a.Expiries == b.Expiries && a.Redrive == b.Redrive &&
		a.Dead == b.Dead && string(a.Result) == string(b.Result) && a.At.Equal(b.At)
}

// sameTime: the script answers zero as none.
func sameTime(a, b time.Time) bool {
	return a.Equal(b) || b.IsZero() && (a.IsZero() || a.UnixMilli() == 0)
}

// sameRecord compares all but the times.
func sameRecord(a, b rules.Record) bool {
	if a.State == store.Released || a.State == store.Forgotten { // the owner is not kept
		a.Owner, a.Incarnation = "", 0
	}
	if a.State != store.Done { // nor a result
		a.Result = nil
	}
	return a.State == b.State && a.BySpend == b.BySpend && (sameClaim(a.Claim, b.Claim) || sameClaim(b.Claim, a.Claim)) && a.Attempt == b.Attempt && a.Spent == b.Spent &&
		a.Expiries == b.Expiries && a.Redrive == b.Redrive && a.Fence == b.Fence && a.ForgotBy == b.ForgotBy &&
		a.Owner == b.Owner && a.Incarnation == b.Incarnation && a.Fingerprint == b.Fingerprint && string(a.Result) == string(b.Result)
}

// sameClaim reports whether what a record has of a claim id is of this one.
func sameClaim(kept, claim string) bool {
	return kept == claim || len(claim) >= 6 && kept == "~"+claim[len(claim)-6:]
}

// completeClaim gives a record the whole claim id that the rules compare, if it is the operation's.
func completeClaim(rec *rules.Record, o *store.Op) {
	if o.Kind != store.Inspect && sameClaim(rec.Claim, o.Claim) {
		rec.Claim = o.Claim
	}
}

// place is some keys, which are given one value.
type place struct {
	c    *redis.Client
	keys []string
}

func (p *place) fill(t *testing.T, value string) {
	t.Helper()
	_, err := p.c.Pipelined(context.Background(), func(pipe redis.Pipeliner) error {
		for _, k := range p.keys {
			pipe.Set(context.Background(), k, value, time.Hour)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// read returns the values; empty for keys that are not there.
func (p *place) read(t *testing.T) (values []string) {
	t.Helper()
	cmds, err := p.c.Pipelined(context.Background(), func(pipe redis.Pipeliner) error {
		for _, k := range p.keys {
			pipe.Get(context.Background(), k)
		}
		return nil
	})
	if err != nil && !errors.Is(err, redis.Nil) {
		t.Fatal(err)
	}
	for _, cmd := range cmds {
		values = append(values, cmd.(*redis.StringCmd).Val())
	}
	return values
}

// FuzzKept puts a value in the place of what is kept beside the records: an issued token,
// the last incarnation, the descriptor, an epoch. What cannot be read is told, and stays as
// it is; what can be read means what it says.
func FuzzKept(f *testing.F) {
	c := redistest.Start(f).Client(f)
	ctx := context.Background()
	s := redisstore.New(c)
	issued := place{c: c}
	for i := range 5 {
		want(f, s, "p", store.OK, op(store.Issue, fmt.Sprint("t", i), ""))
		issued.keys = append(issued.keys, keysOf(f, c, "p", fmt.Sprint(":%i:t", i))[0])
	}
	if _, err := s.Incarnation(ctx, "p", "name"); err != nil {
		f.Fatal(err)
	}
	counter := place{c: c, keys: keysOf(f, c, "p", ":%o:name")}
	want(f, s, "d", store.OK, op(store.Issue, "t", ""))
	descriptor := place{c: c, keys: keysOf(f, c, "d", ":%d")}

	n := 0
	f.Add(uint8(0), []byte("1i|9999999999999999"), "a")
	f.Add(uint8(0), []byte("1i|1"), "a")
	f.Add(uint8(0), []byte("1c|a-000001"), "a-000001")
	f.Add(uint8(0), []byte("1c|a-000001"), "b-000002")
	f.Add(uint8(0), []byte("2i|x"), "b")
	f.Add(uint8(0), []byte("1i|-1"), "b")
	for _, v := range []string{"1", "9000000000000000", "9007199254740992", "99999999999999999999", "1e300", "inf", "nan", "0x10", " 7 ", "-1", "", "0"} {
		f.Add(uint8(1), []byte(v), "")
	}
	for _, v := range []string{"1|records|64|E", "1|records|64|", "1|records|64|a|b", "1|records|16|E", "1|compact|64|E", "2|new", "", "1", "-1|records|64|E"} {
		f.Add(uint8(2), []byte(v), "")
	}
	f.Add(uint8(3), []byte("E"), "")
	f.Add(uint8(3), []byte(""), "")
	f.Fuzz(func(t *testing.T, what uint8, value []byte, claim string) {
		v := string(value)
		switch what % 4 {
		case 0:
			if !regexp.MustCompile(`^[A-Za-z0-9_-]{1,40}$`).MatchString(claim) {
				claim = "a"
			}
			checkIssued(t, s, &issued, v, claim)
		case 1:
			checkIncarnation(t, s, &counter, v)
		case 2:
			checkDescriptor(t, redisstore.New(c), &descriptor, v)
		case 3:
			n++
			checkEpoch(t, c, fmt.Sprint("e", n), v)
		}
	})
}

func checkIssued(t *testing.T, s store.Store, p *place, v, claim string) {
	t.Helper()
	claim = op(store.Check, "", claim).Claim
	p.fill(t, v)
	keys := p.c.Keys(context.Background(), "p:*:g:*").Val() // what Begin and Spend made at the last try
	if len(keys) > 0 {
		p.c.Del(context.Background(), keys...)
	}
	b := batch("p")
	b.IssuedOnly = true
	for i, k := range []store.Kind{store.Issue, store.Check, store.Inspect, store.Begin, store.Spend} {
		b.Ops = append(b.Ops, op(k, fmt.Sprint("t", i), claim))
	}
	b.Ops = append(b.Ops, op(store.Issue, "other", ""))
	r := apply(t, s, b)
	if r[5].Status != store.OK {
		t.Fatalf("beside %q: a neighbour got %+v", v, r[5])
	}
	after := p.read(t)
	by, spent := strings.CutPrefix(v, "1c|")
	until, waits := new(big.Int).SetString(strings.TrimPrefix(v, "1i|"), 10)
	waits = waits && regexp.MustCompile(`^1i\|[0-9]+$`).MatchString(v)
	if !spent && !waits {
		for i := range 5 {
			if !errors.Is(r[i].Err, told(v)) || after[i] != v {
				t.Fatalf("kind %d of issued %q: %+v, and it is %q; want %v", b.Ops[i].Kind, v, r[i], after[i], told(v))
			}
		}
		return
	}
	checked := store.Lost
	if spent && by == claim || waits && until.Cmp(big.NewInt(b.Now.UnixMicro())) > 0 {
		checked = store.Claimed
	}
	if r[0].Status != store.OK || r[1].Status != checked || r[2].Record == nil || r[3].Status != store.Claimed || r[4].Status != store.Claimed {
		t.Fatalf("issued %q: %+v", v, r)
	}
	if rec := r[2].Record; !rec.Issued || rec.Checked != spent {
		t.Fatalf("issued %q: %+v", v, rec)
	}
	if spent && (after[0] != v || after[1] != v) || checked == store.Claimed && after[1] != "1c|"+claim || checked == store.Lost && after[1] != v {
		t.Fatalf("issued %q: Issue made it %q, Check %q", v, after[0], after[1])
	}
}

// checkIncarnation: a number is higher than the one before it, or there is none.
func checkIncarnation(t *testing.T, s store.Store, p *place, v string) {
	t.Helper()
	p.fill(t, v)
	n, err := s.Incarnation(context.Background(), "p", "name")
	if err != nil {
		if now := p.read(t)[0]; now != v || !strings.Contains(err.Error(), p.keys[0]) {
			t.Fatalf("%q is %q after %v", v, now, err)
		}
		return
	}
	last, ok := new(big.Int).SetString(v, 10)
	if !ok || last.Cmp(new(big.Int).SetUint64(n)) >= 0 {
		t.Fatalf("after %q: %d", v, n)
	}
	if next, err := s.Incarnation(context.Background(), "p", "name"); err == nil && next <= n {
		t.Fatalf("after %q: %d, then %d", v, n, next)
	}
}

// checkDescriptor: a descriptor that is not this store's is an error that shows it, and
// one that is leaves an epoch behind, by which a loss is noticed.
func checkDescriptor(t *testing.T, s store.Store, p *place, v string) {
	t.Helper()
	ctx := context.Background()
	p.fill(t, v)
	p.c.Del(ctx, p.c.Keys(ctx, "d:*}:%e").Val()...)
	err := s.Apply(ctx, batch("d", op(store.Begin, "t", "a")))
	if now := p.read(t)[0]; now != v {
		t.Fatalf("the descriptor %q is %q", v, now)
	}
	if err != nil {
		if errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), p.keys[0]) {
			t.Fatalf("the descriptor %q: %v", v, err)
		}
		return
	}
	if parts := strings.Split(v, "|"); len(parts) != 4 || parts[1] != "records" || strings.TrimLeft(parts[2], "+0") != "64" {
		t.Fatalf("the descriptor %q was taken", v)
	}
	if epochs := p.c.Keys(ctx, "d:*}:%e").Val(); len(epochs) != 1 || p.c.Get(ctx, epochs[0]).Val() == "" {
		t.Fatalf("the descriptor %q: epochs %q", v, epochs)
	}
}

// checkEpoch: a tag's epoch that has changed is a loss, once, and so is one that has gone
// then.
func checkEpoch(t *testing.T, c *redis.Client, prefix, v string) {
	t.Helper()
	ctx := context.Background()
	s := redisstore.New(c)
	look := func(losses int) {
		t.Helper()
		b := batch(prefix, op(store.Begin, "t", "a"))
		apply(t, s, b)
		if b.Losses != losses || (b.Notice != "") != (losses > 0) {
			t.Fatalf("epoch %q: %d losses, %q; want %d", v, b.Losses, b.Notice, losses)
		}
	}
	look(0)
	keys := keysOf(t, c, prefix, "}:%e")
	first := c.Get(ctx, keys[0]).Val()
	if err := c.Set(ctx, keys[0], v, 0).Err(); err != nil {
		t.Fatal(err)
	}
	losses := 1
	if v == first {
		losses = 0
	}
	look(losses)
	look(losses)
	c.Del(ctx, keys[0])
	look(losses + 1)
	look(losses + 1)
}
