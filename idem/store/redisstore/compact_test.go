package redisstore_test

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/redisstore"
	"github.com/idemq/idemq/internal/redistest"
)

// compacted is a store with one bucket for everything.
func compacted(c redis.UniversalClient) *redisstore.Store {
	return redisstore.New(c, redisstore.WithTags(1), redisstore.WithCompact(redisstore.Compact{Retention: time.Hour, Tokens: 1}))
}

// The sets of the only bucket of prefix p.
var sets = []string{"p:{0}:%b:0:0", "p:{0}:%b:0:1"}

// fingerprint is what the set of a token holds, by the documentation.
func fingerprint(prefix, group, token string) string {
	var b []byte
	for _, s := range []string{prefix + ":{", group} {
		b = append(binary.AppendUvarint(b, uint64(len(s))), s...)
	}
	sum := sha256.Sum256(append(b, token...))
	return strconv.FormatInt(int64(binary.BigEndian.Uint64(sum[:])), 10)
}

func members(t *testing.T, c *redis.Client) []string {
	t.Helper()
	all, err := c.SUnion(context.Background(), sets...).Result()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// begins has a claim be asked for.
func begins(t *testing.T, s store.Store, token string) store.Status {
	t.Helper()
	r := apply(t, s, batch("p", op(store.Begin, token, "new")))[0]
	if r.Err != nil {
		t.Fatal(r.Err)
	}
	return r.Status
}

func complete(t *testing.T, s store.Store, tokens ...string) {
	t.Helper()
	for _, token := range tokens {
		want(t, s, "p", store.Claimed, op(store.Begin, token, "a"))
		want(t, s, "p", store.OK, op(store.Commit, token, "a"))
	}
}

func TestCompactSettings(t *testing.T) {
	c := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	defer c.Close()
	for word, settings := range map[string]redisstore.Compact{
		"Retention of -1s":         {Retention: -time.Second},
		"Retention of 1µs":         {Retention: time.Microsecond},
		"Retention of 2562047h":    {Retention: math.MaxInt64},
		"-1 Tokens":                {Tokens: -1},
		"1000000000001 Tokens":     {Tokens: 1_000_000_000_001},
		"give WithCompact a Reten": {Retention: time.Hour - time.Millisecond},
	} {
		err := redisstore.New(c, redisstore.WithCompact(settings)).Apply(t.Context(), batch("p"))
		if err == nil || !strings.Contains(err.Error(), word) || errors.Is(err, store.ErrUnavailable) {
			t.Errorf("%s: %v", word, err)
		}
	}
	err := redisstore.New(c, redisstore.WithTags(0), redisstore.WithCompact(redisstore.Compact{})).Apply(t.Context(), batch("p"))
	if err == nil || !strings.Contains(err.Error(), "WithTags(0)") {
		t.Errorf("without tags: %v", err)
	}
}

// What a done token leaves is its fingerprint to the last digit, beyond what is exact in
// Lua, and nothing else. Group and token do not run into one another.
func TestCompactKeepsFingerprints(t *testing.T) {
	t.Parallel()
	c := redistest.Start(t).Client(t)
	s := compacted(c)
	var tokens, expected []string
	for i := range 100 {
		tokens = append(tokens, fmt.Sprint("t", i))
		expected = append(expected, fingerprint("p", group, tokens[i]))
	}
	complete(t, s, tokens...)
	found := members(t, c)
	slices.Sort(found)
	slices.Sort(expected)
	if !slices.Equal(found, expected) {
		t.Errorf("the sets have %v, want %v", found, expected)
	}
	if left := keysOf(t, c, "p", ":g:"); len(left) > 0 {
		t.Errorf("done tokens left the records %v", left)
	}
	if used := keysOf(t, c, "p", ":%b:"); len(used) != 1 || c.ObjectEncoding(t.Context(), used[0]).Val() != "intset" {
		t.Errorf("the sets %v are no intset", used)
	}

	one, other := op(store.Commit, "bc", "a"), op(store.Begin, "c", "a")
	one.Group, other.Group = "a", "ab"
	want(t, s, "p", store.OK, one)
	want(t, s, "p", store.Claimed, other)
}

// A token is known for a retention at least, and for two generations at most, wherever in
// its bucket's generation it was done.
func TestCompactGenerations(t *testing.T) {
	t.Parallel()
	c := redistest.Start(t).Client(t)
	const (
		retention  = 500 * time.Millisecond
		generation = retention + time.Second
	)
	s := redisstore.New(c, redisstore.WithTags(3), redisstore.WithCompact(redisstore.Compact{Retention: retention, Tokens: 3000}))
	done := make(map[string]time.Time)
	var first, last time.Time
	known, gone := 0, 0
	for n := 0; n == 0 || last.Sub(first) < 4*generation; n++ {
		b := batch("p")
		b.Retention = retention
		for i := range 6 {
			o := op(store.Spend, fmt.Sprint(n, "-", i), "a")
			if i%2 == 0 {
				o.Kind = store.Commit
			}
			b.Ops = append(b.Ops, o)
		}
		apply(t, s, b)
		for _, o := range b.Ops {
			done[o.Token] = b.Now
		}

		look := batch("p")
		look.Retention = retention
		for token := range done {
			look.Ops = append(look.Ops, op(store.Inspect, token, ""))
		}
		for i, r := range apply(t, s, look) {
			token := look.Ops[i].Token
			age := look.Now.Sub(done[token])
			spent := strings.HasSuffix(token, "1") || strings.HasSuffix(token, "3") || strings.HasSuffix(token, "5")
			switch state := r.Record.State; {
			case age < retention && state != store.Done:
				t.Fatalf("%v after it was done %s is %v; the retention is %v", age, token, state, retention)
			case age < retention:
				known++
			case !spent && age > 2*generation && state != store.Absent:
				t.Fatalf("%v after it was done %s is %v, for %v more; a generation is %v", age, token, state, r.Record.Expires, generation)
			case !spent && age > 2*generation:
				gone++
			}
			if left := r.Record.Expires; r.Record.State == store.Done && !spent && left > 2*generation {
				t.Fatalf("%s goes in %v", token, left)
			}
			if age > 2*generation+retention {
				delete(done, token)
			}
		}
		if n == 0 {
			first = b.Now
		}
		last = look.Now
		waitFor(t, c, 20*time.Millisecond)
	}
	if known < 100 || gone < 100 {
		t.Errorf("%d were looked at within the retention, %d after two generations", known, gone)
	}
	ends := make(map[time.Duration]bool)
	for _, key := range keysOf(t, c, "p", ":%b:") {
		ends[c.PExpireTime(t.Context(), key).Val()] = true
	}
	if len(ends) < 6 {
		t.Errorf("the buckets go at %d different times", len(ends))
	}
	waitFor(t, c, 2*generation)
	if left := keysOf(t, c, "p", ":%b:"); len(left) > 0 {
		t.Errorf("after two generations there are %v", left)
	}
}

// A set that would go too early for what is added, because the settings or a clock were
// others when it was made, stays; one that goes later is not cut short.
func TestCompactSetsLastLongEnough(t *testing.T) {
	t.Parallel()
	c := redistest.Start(t).Client(t)
	s := compacted(c)
	ctx := t.Context()
	complete(t, s, "first")
	used := keysOf(t, c, "p", ":%b:")
	if len(used) != 1 {
		t.Fatalf("the sets are %v", used)
	}
	key := used[0]
	const generation = time.Hour + time.Second
	if at := c.PExpireTime(ctx, key).Val(); (at+time.Second)%generation != 0 { // this bucket's phase is zero
		t.Errorf("the set goes at %v, which is no second before a generation's end", at)
	}
	const most = 2*generation - time.Second
	for i, prepare := range []func() error{
		func() error { return nil },
		func() error { return c.PExpire(ctx, key, time.Minute).Err() },
		func() error { return c.Persist(ctx, key).Err() },
	} {
		if err := prepare(); err != nil {
			t.Fatal(err)
		}
		complete(t, s, fmt.Sprint("early ", i))
		if left := c.PTTL(ctx, key).Val(); left < time.Hour-time.Minute || left > most {
			t.Errorf("%d: the set goes in %v", i, left)
		}
	}
	if err := c.PExpire(ctx, key, 10*time.Hour).Err(); err != nil {
		t.Fatal(err)
	}
	complete(t, s, "late")
	if left := c.PTTL(ctx, key).Val(); left < 9*time.Hour {
		t.Errorf("the set goes in %v, and would have gone in 10h", left)
	}
	if begins(t, s, "first") != store.Duplicate {
		t.Error("the first token is not known any more")
	}
}

// With more tokens than a bucket was made for everything stays right.
func TestCompactBucketOverflows(t *testing.T) {
	t.Parallel()
	c := redistest.Start(t).Client(t)
	s := compacted(c)
	const n = 2000
	var commits, asks []store.Op
	for i := range n {
		commits = append(commits, op(store.Commit, fmt.Sprint("done ", i), "a"))
		asks = append(asks, op(store.Begin, fmt.Sprint("done ", i), "b"), op(store.Begin, fmt.Sprint("new ", i), "b"))
	}
	apply(t, s, batch("p", commits...))
	for _, key := range keysOf(t, c, "p", ":%b:") {
		if e := c.ObjectEncoding(t.Context(), key).Val(); e == "intset" && c.SCard(t.Context(), key).Val() > 512 {
			t.Errorf("%s is an %s still: the test is not about what it says", key, e)
		}
	}
	if got := len(members(t, c)); got != n {
		t.Errorf("%d of %d are in the sets", got, n)
	}
	for i, r := range apply(t, s, batch("p", asks...)) {
		if want := []store.Status{store.Duplicate, store.Claimed}[i%2]; r.Status != want {
			t.Fatalf("%s: %+v", asks[i].Token, r)
		}
	}
	want(t, s, "p", store.OK, op(store.Forget, "done 7", "f"))
	if begins(t, s, "done 7") != store.Claimed || begins(t, s, "done 8") != store.Duplicate {
		t.Error("Forget forgot too little, or too much")
	}
}

func TestCompactFull(t *testing.T) {
	t.Parallel()
	c := redistest.Start(t, "--maxmemory-policy", "noeviction").Client(t)
	s := redisstore.New(c, redisstore.WithCompact(redisstore.Compact{}))
	for _, token := range []string{"commit", "release", "bury"} {
		want(t, s, "p", store.Claimed, op(store.Begin, token, "a"))
	}
	want(t, s, "p", store.Claimed, op(store.Spend, "spent", "a"))
	if err := c.ConfigSet(t.Context(), "maxmemory", "1").Err(); err != nil {
		t.Fatal(err)
	}
	ops := []store.Op{
		op(store.Begin, "new", "b"), op(store.Spend, "new too", "b"), // refused
		op(store.Commit, "commit", "a"), op(store.Release, "release", "a"), op(store.Bury, "bury", "a"), op(store.Bury, "spent", "a"),
		op(store.Commit, "unknown", "a"), op(store.Inspect, "commit", ""),
	}
	for i, r := range apply(t, s, batch("p", ops...)) {
		if errors.Is(r.Err, store.ErrFull) != (i < 2) || i >= 2 && r.Status != store.OK {
			t.Errorf("operation %d at maxmemory: %+v", i, r)
		}
	}
	for token, state := range map[string]store.State{
		"commit": store.Done, "release": store.Released, "bury": store.Dead, "spent": store.Dead, "unknown": store.Done, "new": store.Absent,
	} {
		if rec := inspect(t, s, "p", token); rec.State != state {
			t.Errorf("%s is %v, want %v", token, rec.State, state)
		}
	}
}

// A bucket's key of another type is the error of the operations that need it, which leave
// everything as it is, and of no other's.
func TestCompactBucketOfWrongType(t *testing.T) {
	t.Parallel()
	c := redistest.Start(t).Client(t)
	s := redisstore.New(c, redisstore.WithTags(2), redisstore.WithCompact(redisstore.Compact{Retention: time.Hour, Tokens: 1}))
	ctx := t.Context()
	other := ""
	for i := 0; other == ""; i++ { // a token of the bucket that is whole
		token := fmt.Sprint(i)
		complete(t, s, token)
		if keys := keysOf(t, c, "p", "{1}:%b:"); len(keys) > 0 {
			other = token
		}
	}
	refused := 0 // of the generation that is, a completion is
	for slot, key := range sets {
		if err := c.Del(ctx, sets...).Err(); err != nil {
			t.Fatal(err)
		}
		token := ""
		for i := 0; token == ""; i++ {
			want(t, s, "p", store.Claimed, op(store.Spend, fmt.Sprint(slot, "in the first ", i), "a"))
			if len(keysOf(t, c, "p", "{0}:%b:")) > 0 {
				token = fmt.Sprint(slot, "in the first ", i)
			}
		}
		record := keysOf(t, c, "p", ":g:"+token)[0]
		before := c.Get(ctx, record).Val()
		if err := errors.Join(c.Del(ctx, sets...).Err(), c.Set(ctx, key, "a string", 0).Err()); err != nil {
			t.Fatal(err)
		}
		for _, k := range []store.Kind{store.Begin, store.Bury, store.Forget, store.Inspect} {
			r := apply(t, s, batch("p", op(store.Begin, other, "b"), op(k, token, "a"), op(store.Inspect, other, "")))
			if !errors.Is(r[1].Err, store.ErrUnreadable) || !strings.Contains(r[1].Err.Error(), key) {
				t.Errorf("kind %d: %+v", k, r[1])
			}
			if r[0].Status != store.Duplicate || r[2].Record.State != store.Done {
				t.Errorf("kind %d: its neighbours: %+v, %+v", k, r[0], r[2])
			}
		}
		if now := c.Get(ctx, record).Val(); now != before {
			t.Errorf("the record was changed from %q to %q", before, now)
		}
		if err := c.Del(ctx, record).Err(); err != nil {
			t.Fatal(err)
		}
		for _, k := range []store.Kind{store.Begin, store.Spend, store.Commit, store.Forget, store.Inspect} {
			if r := apply(t, s, batch("p", op(k, token, "a")))[0]; !errors.Is(r.Err, store.ErrUnreadable) {
				t.Errorf("kind %d of a token without a record: %+v", k, r)
			}
		}
		for _, k := range []store.Kind{store.Release, store.Renew, store.Bury} {
			want(t, s, "p", store.Lost, op(k, token, "a"))
		}
		if c.Exists(ctx, record).Val() != 0 || c.Get(ctx, key).Val() != "a string" {
			t.Error("something was written")
		}

		held := fmt.Sprintf("1p|%s|1|0|0|0||||%d|60000000|0|", op(store.Commit, token, "a").Claim, time.Now().Add(time.Minute).UnixMicro())
		if err := c.Set(ctx, record, held, time.Hour).Err(); err != nil {
			t.Fatal(err)
		}
		r, now := apply(t, s, batch("p", op(store.Commit, token, "a")))[0], c.Get(ctx, record).Val()
		switch {
		case errors.Is(r.Err, store.ErrUnreadable) && now == held:
			refused++
		case r.Err != nil || r.Status != store.OK || now != "":
			t.Errorf("a completion is answered %+v and leaves %q", r, now)
		}
	}
	if refused != 1 {
		t.Errorf("%d completions were refused, want that of the generation that is", refused)
	}
}

// A Spend can be repeated, and be buried, for store.CheckMemory.
func TestCompactSpend(t *testing.T) {
	t.Parallel()
	c := redistest.Start(t).Client(t)
	s := compacted(c)
	want(t, s, "p", store.Claimed, op(store.Spend, "t", "a"))
	want(t, s, "p", store.Claimed, op(store.Spend, "t", "a"))
	want(t, s, "p", store.Duplicate, op(store.Spend, "t", "b"))
	key := keysOf(t, c, "p", ":g:")[0]
	if left := c.PTTL(t.Context(), key).Val(); left < store.CheckMemory-10*time.Second || left > store.CheckMemory {
		t.Errorf("the claim id of a Spend is kept for %v", left)
	}
	if rec := inspect(t, s, "p", "t"); rec.Expires < time.Hour {
		t.Errorf("the spent token goes in %v", rec.Expires)
	}

	want(t, s, "p", store.OK, op(store.Bury, "t", "a"))
	if in := members(t, c); len(in) > 0 {
		t.Errorf("a dead token is in the sets: %v", in)
	}
	if left := c.PTTL(t.Context(), key).Val(); left < time.Hour-time.Minute {
		t.Errorf("a dead token is kept for %v", left)
	}
	redriven := op(store.Spend, "t", "c")
	redriven.Redrive = 1
	if r := want(t, s, "p", store.Claimed, redriven); r.Attempt != 2 {
		t.Errorf("redriven: %+v", r)
	}

	if err := c.Del(t.Context(), key).Err(); err != nil { // as after that time
		t.Fatal(err)
	}
	want(t, s, "p", store.Duplicate, redriven)
	want(t, s, "p", store.Lost, op(store.Bury, "t", "c"))
	if rec := inspect(t, s, "p", "t"); rec.State != store.Done || !rec.At.IsZero() || rec.Attempt != 0 {
		t.Errorf("the record is %+v", rec)
	}
}

// Forget takes a token out of the sets, and leaves a mark that fences commits; its repeat
// does not forget what was done since.
func TestCompactForget(t *testing.T) {
	t.Parallel()
	c := redistest.Start(t).Client(t)
	s := compacted(c)
	complete(t, s, "t", "neighbour")
	want(t, s, "p", store.OK, op(store.Forget, "t", "f1"))
	if in := members(t, c); !slices.Equal(in, []string{fingerprint("p", group, "neighbour")}) {
		t.Errorf("the sets have %v", in)
	}
	want(t, s, "p", store.Lost, op(store.Commit, "t", "a"))
	if rec := inspect(t, s, "p", "t"); rec.State != store.Forgotten {
		t.Errorf("it is %v", rec.State)
	}
	want(t, s, "p", store.Claimed, op(store.Begin, "t", "b"))
	want(t, s, "p", store.OK, op(store.Commit, "t", "b"))
	want(t, s, "p", store.OK, op(store.Forget, "t", "f1"))
	if rec := inspect(t, s, "p", "t"); rec.State != store.Done {
		t.Errorf("after the repeat of a Forget what was done since is %v", rec.State)
	}
	want(t, s, "p", store.OK, op(store.Forget, "t", "f2"))
	want(t, s, "p", store.Claimed, op(store.Spend, "t", "c"))
	want(t, s, "p", store.OK, op(store.Forget, "t", "f3"))
	want(t, s, "p", store.Claimed, op(store.Begin, "t", "d"))
}

func TestCompactDisagrees(t *testing.T) {
	t.Parallel()
	c := redistest.Start(t).Client(t)
	hour := redisstore.Compact{Retention: time.Hour, Tokens: 50_000}
	complete(t, redisstore.New(c, redisstore.WithCompact(hour)), "t")
	refused := func(s *redisstore.Store, prefix string, words ...string) {
		t.Helper()
		_, verr := s.Verify(t.Context(), prefix)
		for _, err := range []error{s.Apply(t.Context(), batch(prefix)), verr} {
			if err == nil || errors.Is(err, store.ErrUnavailable) {
				t.Fatalf("%v", err)
			}
			for _, w := range words {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("it is not said %q: %v", w, err)
				}
			}
		}
	}
	longer, larger, same := hour, hour, hour
	longer.Retention, larger.Tokens, same.Tokens = 2*time.Hour, 1_000_000, 60_000
	refused(redisstore.New(c, redisstore.WithCompact(longer)), "p", "Retention of 1h0m0s", "Retention of 2h0m0s", "p:{0}:%d")
	refused(redisstore.New(c, redisstore.WithCompact(larger)), "p", "3 buckets a tag, which 61440 Tokens make", "49 buckets a tag")
	refused(redisstore.New(c), "p", "layout compact", "layout records")
	if begins(t, redisstore.New(c, redisstore.WithCompact(same)), "t") != store.Duplicate {
		t.Error("with as many buckets what was done is not found")
	}
	if begins(t, redisstore.New(c, redisstore.WithCompact(redisstore.Compact{Retention: time.Hour, Tokens: 61440})), "t") != store.Duplicate {
		t.Error("with what the error says what was done is not found")
	}

	apply(t, redisstore.New(c), batch("q"))
	refused(redisstore.New(c, redisstore.WithCompact(hour)), "q", "layout compact", "layout records", "FromRecords")
	hour.FromRecords = true
	refused(redisstore.New(c, redisstore.WithCompact(hour), redisstore.WithTags(16)), "q", "16 tags", "64 tags")
}

// A prefix moves from records to compact with all that it has, and what is done in the old
// layout ends with its retention.
func TestCompactFromRecords(t *testing.T) {
	t.Parallel()
	c := redistest.Start(t).Client(t)
	records := redisstore.New(c)
	complete(t, records, "done", "to be forgotten")
	for _, token := range []string{"held", "released", "dead"} {
		want(t, records, "p", store.Claimed, op(store.Begin, token, "a"))
	}
	want(t, records, "p", store.OK, op(store.Release, "released", "a"))
	want(t, records, "p", store.OK, op(store.Bury, "dead", "a"))
	want(t, records, "p", store.Claimed, op(store.Spend, "spent", "a"))

	settings := redisstore.Compact{Retention: time.Hour, FromRecords: true}
	s := redisstore.New(c, redisstore.WithCompact(settings))
	before := c.Get(t.Context(), "p:{0}:%d").Val()
	if _, err := s.Verify(t.Context(), "p"); err != nil {
		t.Fatal(err)
	}
	if now := c.Get(t.Context(), "p:{0}:%d").Val(); now != before {
		t.Errorf("Verify changed the descriptor to %q", now)
	}
	b := batch("p",
		op(store.Begin, "done", "b"), op(store.Spend, "done", "b"), op(store.Commit, "done", "a"), op(store.Begin, "dead", "b"),
		op(store.Begin, "held", "b"), op(store.Commit, "held", "a"), op(store.Begin, "released", "b"), op(store.Spend, "spent", "a"),
		op(store.Forget, "to be forgotten", "f"), op(store.Begin, "to be forgotten", "b"), op(store.Spend, "spent", "b"))
	expected := []store.Status{
		store.Duplicate, store.Duplicate, store.OK, store.Duplicate,
		store.InProgress, store.OK, store.Claimed, store.Claimed, store.OK, store.Claimed, store.Duplicate,
	}
	for i, r := range apply(t, s, b) {
		if r.Status != expected[i] || r.Err != nil {
			t.Errorf("operation %d on %q: %+v, want %d", i, b.Ops[i].Token, r, expected[i])
		}
	}
	if b.Losses != 0 {
		t.Errorf("the move is taken for a loss: %s", b.Notice)
	}
	if r := b.Replies[6]; r.Attempt != 2 {
		t.Errorf("the attempts started anew: %+v", r)
	}
	if left := keysOf(t, c, "p", ":g:held"); len(left) > 0 {
		t.Errorf("what was done since left %v", left)
	}

	after := c.Get(t.Context(), "p:{0}:%d").Val()
	if was, is := strings.Split(before, "|"), strings.Split(after, "|"); is[1] != "compact" || is[3] != was[3] {
		t.Errorf("the descriptor went from %q to %q", before, after)
	}
	settings.FromRecords = false
	s = redisstore.New(c, redisstore.WithCompact(settings))
	for _, token := range []string{"done", "held"} {
		if begins(t, s, token) != store.Duplicate {
			t.Errorf("%s is not known when the setting is left out", token)
		}
	}
	if err := redisstore.New(c).Apply(t.Context(), batch("p")); err == nil || !strings.Contains(err.Error(), "layout compact") {
		t.Errorf("a store of the old layout: %v", err)
	}
	if left := c.PTTL(t.Context(), keysOf(t, c, "p", ":g:done")[0]).Val(); left <= 0 || left > time.Hour {
		t.Errorf("what was done in the old layout goes in %v", left)
	}
	if err := c.Del(t.Context(), keysOf(t, c, "p", ":g:done")...).Err(); err != nil { // as after its retention
		t.Fatal(err)
	}
	if begins(t, s, "done") != store.Claimed {
		t.Error("a token is known beyond its retention in the old layout")
	}
}

// A claim looks into both sets, a completion writes one of them.
func TestCompactCommandsPerMessage(t *testing.T) {
	t.Parallel()
	c := redistest.Start(t, private...).Client(t)
	s := compacted(c)
	complete(t, s, "warm")
	if err := c.ConfigResetStat(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	const n = 100
	var begins, commits []store.Op
	for i := range n {
		begins = append(begins, op(store.Begin, fmt.Sprint(i), "a"))
		commits = append(commits, op(store.Commit, fmt.Sprint(i), "a"))
	}
	for _, ops := range [][]store.Op{begins, commits} {
		b := batch("p", ops...)
		b.Lease = 3 * time.Second // so little that a record would keep its expiry
		apply(t, s, b)
	}
	info, err := c.Info(t.Context(), "commandstats").Result()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"cmdstat_evalsha:calls=2,",
		"cmdstat_sismember:calls=200,",
		"cmdstat_set:calls=100,",
		"cmdstat_get:calls=102,",
		"cmdstat_sadd:calls=100,",
		"cmdstat_pexpiretime:calls=100,",
		"cmdstat_del:calls=100,",
	} {
		if !strings.Contains(info, want) {
			t.Errorf("no %q in\n%s", want, info)
		}
	}
	if strings.Contains(info, "cmdstat_pexpireat") {
		t.Error("the expiry of a set was written again")
	}
}
