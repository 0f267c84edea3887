package redisstore_test

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/rules"
	"github.com/idemq/idemq/internal/redistest"
)

// FuzzCompactRecord is FuzzRecord in the compact layout, with tokens that are in a set and
// tokens that are not: records of all states, done ones of the other layout too, are
// answered as package rules does, and so is what is in a set without a record. What comes to be
// done is in a set.
func FuzzCompactRecord(f *testing.F) {
	c := redistest.Start(f).Client(f)
	s := compacted(c)
	p := place{c: c, keys: make([]string, len(kinds))}
	prints := make([]any, len(kinds))
	for i := range kinds {
		token := fmt.Sprint("t", i)
		want(f, s, "p", store.Claimed, op(store.Begin, token, "a"))
		p.keys[i] = keysOf(f, c, "p", ":g:"+token)[0]
		prints[i] = fingerprint("p", group, token)
	}
	for _, v := range []string{
		"1p|a-000001|1|0|0|0||||%s|60000000|0|", "1p|b-000002|3|1|1|2||2|f|%s|60000000|4|o", "1p|b-000002|1|0|0|0||||1|60000000|7|o",
		"1r|a-000001|2|1|0|0|||", "1r|b-000002|1|0|0|0|||", "1f|a-000001|1|0|0|5||1|f", "1f||0|0|0|0||0|a-000001",
		"1d|a-000001|1700000000000", "1d|b-000002|1700000000000|2|0|fp|1|f|0|0|line\n|result",
		"1700000000000000001", "1700000000000000002",
		"1s|a-000001|1700000000000|4|1||||3|2|", "1x|b-000002|1700000000000|2|3||||0|0|", "2p|whatever", "hello", "",
	} {
		if strings.Contains(v, "%s") {
			v = fmt.Sprintf(v, strconv.FormatInt(time.Now().Add(time.Hour).UnixMicro(), 10))
		}
		for flags := range uint8(8) {
			f.Add([]byte(v), 0, 1, flags)
			f.Add([]byte(v), 3, 3, flags|8) // in the other set
		}
	}
	f.Fuzz(func(t *testing.T, value []byte, redrive, attempt int, flags uint8) {
		v := string(value)
		if strings.Contains(v, "9999999999999") {
			t.Skip("a count at its end, where the next has no room: no record comes so far by itself")
		}
		p.fill(t, v)
		if v == "" { // none, here
			if err := c.Del(t.Context(), p.keys...).Err(); err != nil {
				t.Fatal(err)
			}
		}
		err := c.Del(t.Context(), sets...).Err()
		in := flags&4 != 0
		if in {
			err = errors.Join(err, c.SAdd(t.Context(), sets[flags>>3&1], prints...).Err(), c.PExpire(t.Context(), sets[flags>>3&1], time.Hour).Err())
		}
		if err != nil {
			t.Fatal(err)
		}

		claim := [...]string{"a-000001", "b-000002"}[flags&1]
		b := batch("p")
		for i, k := range kinds {
			o := op(k, fmt.Sprint("t", i), claim)
			o.Counted = flags&2 != 0
			o.Attempt = 1 + int(uint(attempt)%1000)
			if k == store.Begin || k == store.Spend {
				o.Redrive, o.MaxExpiries = int(uint(redrive)%(1<<53)), int(flags>>4&3)
			}
			b.Ops = append(b.Ops, o)
		}
		replies := apply(t, s, b)
		after := p.read(t)
		for i := range kinds {
			is := c.SIsMember(t.Context(), sets[0], prints[i]).Val() || c.SIsMember(t.Context(), sets[1], prints[i]).Val()
			if v == "" {
				checkAbsent(t, &b.Ops[i], replies[i], in, is)
			} else {
				checkCompact(t, b, &b.Ops[i], replies[i], v, after[i], in, is)
			}
		}
	})
}

// checkAbsent is of a token without a record, that was and is in a set or not.
func checkAbsent(t *testing.T, o *store.Op, got store.Reply, was, is bool) {
	t.Helper()
	expected, stays := store.Lost, was
	switch o.Kind {
	case store.Begin:
		expected = store.Claimed
	case store.Spend:
		expected, stays = store.Claimed, true
	case store.Commit:
		expected, stays = store.OK, true
	case store.Forget:
		expected, stays = store.OK, false
	case store.Inspect:
		expected = store.OK
	}
	if was && expected == store.Claimed {
		expected = store.Duplicate
	}
	if got.Err != nil || got.Status != expected || is != stays {
		t.Fatalf("kind %d without a record, in a set: %v: %+v, and it is in a set: %v; want status %d and %v", o.Kind, was, got, is, expected, stays)
	}
}

// checkCompact compares what was made of a record with what the rules make of it.
func checkCompact(t *testing.T, b *store.Batch, o *store.Op, got store.Reply, before, after string, was, is bool) {
	t.Helper()
	rec, ok := readRecord(before)
	done := ok && (rec.State == store.Done || rec.State == store.Dead)
	if ok && done && rec.State == store.Dead && was {
		t.Skip("a dead token is in no set")
	}
	if !ok || after == before {
		checkRecord(t, b, o, got, before, after)
		return
	}
	x := rules.Execution{Batch: b, Now: rules.Instant(b.Now.UnixNano()), Time: func(i rules.Instant) time.Time { return time.UnixMilli(int64(i)) }}
	completeClaim(&rec, o)
	expected, changed := x.Do(o, &rec, &rules.Issued{})
	switch {
	case !changed || !sameReply(expected, got):
		t.Fatalf("kind %d on %q: %+v, want %+v", o.Kind, before, got, expected)
	case rec.State != store.Done:
		checkRecord(t, b, o, got, before, after)
		if done && is {
			t.Fatalf("kind %d on %q, which was done: it is in a set still", o.Kind, before)
		}
	case !is:
		t.Fatalf("kind %d on %q: it is in no set", o.Kind, before)
	case rec.BySpend || rec.ForgotBy != "":
		checkRecord(t, b, o, got, before, after)
	case after != "":
		t.Fatalf("kind %d on %q: %q was left", o.Kind, before, after)
	}
}
