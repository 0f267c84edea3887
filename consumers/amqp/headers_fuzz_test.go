package idemamqp

import (
	"bytes"
	"encoding/binary"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/idem"
)

// fuzzedTable makes a table of lines "name: <type><value>", with AMQP's letters for types.
func fuzzedTable(lines string) amqp.Table {
	h := amqp.Table{}
	for line := range strings.SplitSeq(lines, "\n") {
		name, value, _ := strings.Cut(line, ": ")
		h[name] = fuzzedValue(value)
	}
	return h
}

func fuzzedValue(s string) any {
	if s == "" {
		return nil
	}
	rest := s[1:]
	n := binary.BigEndian.Uint64(append(make([]byte, 8), rest...)[len(rest):])
	switch s[0] {
	case 't':
		return n&1 == 1
	case 'B':
		return byte(n)
	case 'b':
		return int8(n)
	case 's':
		return int16(n)
	case 'u':
		return uint16(n)
	case 'I':
		return int32(n)
	case 'i':
		return uint32(n)
	case 'l':
		return int64(n)
	case 'f':
		return float32(n)
	case 'd':
		return float64(n)
	case 'D':
		return amqp.Decimal{Scale: byte(n), Value: int32(n >> 8)}
	case 'T':
		return time.Unix(int64(n>>30), 0)
	case 'x':
		return []byte(rest)
	case 'F':
		return amqp.Table{rest: rest}
	case 'A':
		var all []any
		for v := range strings.SplitSeq(rest, ",") {
			all = append(all, fuzzedValue(v))
		}
		return all
	}
	return rest
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

// FuzzHeaders: a header is read in every spelling and in no other name, the same at each
// call; only strings, bytes and integers are tokens; a token that is set is read back; what
// is said in other headers stays as it was, and a dead-letter copy has none that the
// broker acts on.
func FuzzHeaders(f *testing.F) {
	f.Add("Idempotency-Key: Sa", "idempotency-key", "b", "", 1)
	f.Add("IDEMPOTENCY-KEY: Sa\nx: Iy\nidempotency-key: x\xff", "Idempotency-Key", "\x00", "id", 0)
	f.Add("Idempotency-\u212aey: Sa", "Idempotency-Key", "b", "", 3)
	f.Add("Idempotency-Key: t\x01", "Idempotency-Key", "b", "", 3)
	f.Add("Idempotency-Key: ASa,Sa,I\x01", "Idempotency-Key", "b", "", 3)
	f.Add("Idempotency-Key: Fa\nx-delivery-count: l\xff\xff\xff\xff\xff\xff\xff\xff", "Idempotency-Key", "b", "", 3)
	f.Add("cloudEvents:\u017fource: Sa\ncloudEvents:source: Sb\nidempotency-redrive: I1", "cloudEvents:source", "b", "", 1<<53)
	f.Add("CC: ASa\nBCC: ASb\nx-death: AFa\nx-first-death-queue: Sq\nx-stream-offset: l1", "message-id", strings.Repeat("t", 255), "id", 1)
	f.Add("Idempotency-Dead-Reason: Sr\n: \ncontent-type: Sa", "content-type", "a\r\nb", "text/plain", 1)
	f.Fuzz(func(t *testing.T, lines, name, token, property string, n int) {
		h := fuzzedTable(lines)
		before := maps.Clone(h)
		d := amqp.Delivery{Headers: h, Body: []byte(lines), ContentType: property, MessageId: property}
		m := message{d: d}
		for _, name := range []string{name, idem.Header} {
			if !isASCII(name) {
				continue
			}
			there := false
			for k := range h {
				there = there || lower(k) == lower(name)
			}
			got := m.Header(name)
			if there != (header(h, name) != nil) || there && len(got) == 0 {
				t.Fatalf("%q of %q is %q", name, h, got)
			}
			if !there && !slices.Equal(got, propertyOf(name, property)) {
				t.Fatalf("%q of %q, with the property %q, is %q", name, h, property, got)
			}
			for range 4 {
				if again := m.Header(name); !slices.Equal(got, again) {
					t.Fatalf("%q of %q is %q, then %q", name, h, got, again)
				}
			}
		}
		checkType(t, h, m)
		if count, ok := returned(d); !ok && count != 0 {
			t.Fatalf("returned %d times, %v", count, ok)
		}
		if idem.CheckToken(token) != nil {
			return
		}
		stamped := amqp.Publishing{Headers: h}
		SetToken(&stamped, token)
		if got, ok := TokenOf(amqp.Delivery{Headers: stamped.Headers}); !ok || got != token {
			t.Fatalf("token %q reads back as %q, %v", token, got, ok)
		}
		ours := map[string]bool{lower(idem.Header): true}
		checkOthers(t, before, stamped.Headers, ours)

		letter := consumers.Letter{Token: token, Redrive: max(n, 0), Reason: consumers.ReasonBudget}
		copied := copyOf(m, letter)
		if got, ok := TokenOf(amqp.Delivery{Headers: copied.Headers}); !ok || got != token {
			t.Fatalf("the copy of token %q has %q, %v", token, got, ok)
		}
		for _, kv := range letter.Headers("") {
			ours[lower(kv[0])] = true
		}
		ours[lower(headerCopy)] = true
		for _, k := range []string{"CC", "BCC", "x-death", "x-delivery-count", "x-stream-offset", "x-first-death-queue"} {
			if _, ok := copied.Headers[k]; ok {
				t.Fatalf("the copy has the header %s", k)
			}
		}
		for k := range before {
			if strings.HasPrefix(k, "x-first-death-") || strings.HasPrefix(k, "x-last-death-") || slices.Contains(brokersOwn[:], k) {
				ours[lower(k)] = true
			}
		}
		checkOthers(t, before, copied.Headers, ours)
		if !bytes.Equal(copied.Body, d.Body) || copied.Expiration != "" || !reflect.DeepEqual(before, h) {
			t.Fatal("the message itself was changed, or expires")
		}
	})
}

// checkType: what is neither text nor an integer is no token.
func checkType(t *testing.T, h amqp.Table, m message) {
	t.Helper()
	token, ok := consumers.TokenIn(m)
	if !ok {
		return
	}
	for k, v := range h {
		if lower(k) != lower(idem.Header) {
			continue
		}
		all, isArray := v.([]any)
		if !isArray || len(all) == 0 {
			all = []any{v}
		}
		for _, v := range all {
			switch v.(type) {
			case string, []byte, byte, int8, int16, uint16, int32, uint32, int64:
			default:
				t.Fatalf("a %T is the token %q", v, token)
			}
		}
	}
}

// propertyOf is what a name says of a message whose content-type and message-id are set.
func propertyOf(name, property string) []string {
	if n := lower(name); property != "" && (n == "content-type" || n == "message-id") {
		return []string{property}
	}
	return nil
}

func isASCII(s string) bool { return strings.IndexFunc(s, func(r rune) bool { return r >= 0x80 }) < 0 }

// checkOthers holds the headers that are not ours to be there as before.
func checkOthers(t *testing.T, before, after amqp.Table, ours map[string]bool) {
	t.Helper()
	others := func(h amqp.Table) amqp.Table {
		c := maps.Clone(h)
		maps.DeleteFunc(c, func(k string, _ any) bool { return ours[lower(k)] })
		return c
	}
	if a, b := others(before), others(after); !reflect.DeepEqual(a, b) {
		t.Fatalf("headers of others were %q, and are %q", a, b)
	}
}
