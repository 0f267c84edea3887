package idemkafka

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/segmentio/kafka-go"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/idem"
)

// fuzzed makes headers of lines "name: value".
func fuzzed(lines string) (headers []kafka.Header) {
	for line := range strings.SplitSeq(lines, "\n") {
		name, value, _ := strings.Cut(line, ": ")
		headers = append(headers, kafka.Header{Key: name, Value: []byte(value)})
	}
	return headers
}

// lower is a name as ASCII letters of either case are one.
func lower(name string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, name)
}

// FuzzHeaders: a header is read in every spelling and in no other name, a token that is
// set is read back, and what is said in other headers stays as it was, also in a
// dead-letter copy.
func FuzzHeaders(f *testing.F) {
	f.Add("Idempotency-Key: a", "idempotency-key", "b", 1)
	f.Add("IDEMPOTENCY-KEY: a\nx: y\nidempotency-key: \xff", "Idempotency-Key", "\x00", 0)
	f.Add("Idempotency-\u212aey: a", "Idempotency-Key", "b", 3)
	f.Add("ce_\u017fource: a\nce_source: b\nidempotency-redrive: 1", "ce_source", "b", 1<<53)
	f.Add(": \n\n", "", strings.Repeat("t", 255), 1)
	f.Add("Idempotency-Dead-Topic: t\nIdempotency-Dead-Reason: r", "Idempotency-Dead-Reason", "t", 1)
	f.Fuzz(func(t *testing.T, lines, name, token string, n int) {
		msg := kafka.Message{Topic: "t", Headers: fuzzed(lines), Value: []byte(lines)}
		before := slices.Clone(msg.Headers)
		for _, name := range []string{name, idem.Header} {
			var want []string
			for _, h := range msg.Headers {
				if lower(h.Key) == lower(name) {
					want = append(want, string(h.Value))
				}
			}
			if got := (message{msg}).Header(name); !slices.Equal(got, want) && isASCII(name) {
				t.Fatalf("%q of %q is %q, want %q", name, msg.Headers, got, want)
			}
		}
		if idem.CheckToken(token) != nil {
			return
		}
		stamped := msg
		SetToken(&stamped, token)
		if got, ok := TokenOf(stamped); !ok || got != token {
			t.Fatalf("token %q reads back as %q, %v", token, got, ok)
		}
		ours := map[string]bool{lower(idem.Header): true}
		checkOthers(t, before, stamped.Headers, ours)

		n = max(n, 0)
		letter := consumers.Letter{Token: token, Redrive: n, Reason: consumers.ReasonBudget}
		copied := (&letters{w: &kafka.Writer{}, topic: "dead"}).copy(message{msg}, letter)
		if got, ok := TokenOf(copied); !ok || got != token {
			t.Fatalf("the copy of token %q has %q, %v", token, got, ok)
		}
		for _, h := range letter.Headers("") {
			ours[lower(h[0])] = true
		}
		for _, h := range []string{HeaderTopic, HeaderPartition, HeaderOffset} {
			ours[lower(h)] = true
		}
		checkOthers(t, before, copied.Headers, ours)
		if !bytes.Equal(copied.Value, msg.Value) || !slices.EqualFunc(before, msg.Headers, same) {
			t.Fatal("the message itself was changed")
		}
	})
}

func isASCII(s string) bool { return strings.IndexFunc(s, func(r rune) bool { return r >= 0x80 }) < 0 }

func same(a, b kafka.Header) bool { return a.Key == b.Key && bytes.Equal(a.Value, b.Value) }

// checkOthers holds the headers that are not ours to be there as before, in their order.
func checkOthers(t *testing.T, before, after []kafka.Header, ours map[string]bool) {
	t.Helper()
	others := func(all []kafka.Header) []kafka.Header {
		return slices.DeleteFunc(slices.Clone(all), func(h kafka.Header) bool { return ours[lower(h.Key)] })
	}
	if a, b := others(before), others(after); !slices.EqualFunc(a, b, same) {
		t.Fatalf("headers of others were %q, and are %q", a, b)
	}
}
