package idemnats

import (
	"bytes"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/idem"
)

// fuzzedMsg is a message that did not come from a stream.
type fuzzedMsg struct {
	jetstream.Msg
	msg *nats.Msg
}

func (m fuzzedMsg) Metadata() (*jetstream.MsgMetadata, error) { return nil, nats.ErrNotJSMessage }
func (m fuzzedMsg) Headers() nats.Header                      { return m.msg.Header }
func (m fuzzedMsg) Data() []byte                              { return m.msg.Data }
func (m fuzzedMsg) Subject() string                           { return m.msg.Subject }

// lower is a name as ASCII letters of either case are one.
func lower(name string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, name)
}

// FuzzHeaders reads the bytes of a header block as the client does: a header is read in
// every spelling and in no other name, the same at each call; a token that is set is read
// back, also over the wire; what is said in other headers stays as it was, and a
// dead-letter copy tells the server nothing that the original did.
func FuzzHeaders(f *testing.F) {
	f.Add([]byte("Idempotency-Key: a"), "idempotency-key", "b", 1)
	f.Add([]byte("IDEMPOTENCY-KEY: a\r\nx: y\r\nidempotency-key: \xff"), "Idempotency-Key", "\x00", 0)
	f.Add([]byte("Idempotency-\u212aey: a"), "Idempotency-Key", "b", 3)
	f.Add([]byte("ce-\u017fource: a\r\nce-source: b\r\nidempotency-redrive: 1"), "ce-source", " b", 1<<53)
	f.Add([]byte("nats-rollup: all\r\nNats-Msg-Id: 1\r\nNats-\u017f: 1"), "Nats-Msg-Id", strings.Repeat("t", 255), 1)
	f.Add([]byte("Idempotency-Dead-Reason: r\r\n\r\nrest"), "Idempotency-Dead-Reason", "a\r\nb", 1)
	f.Fuzz(func(t *testing.T, block []byte, name, token string, n int) {
		h, err := nats.DecodeHeadersMsg(slices.Concat([]byte("NATS/1.0\r\n"), block, []byte("\r\n\r\n")))
		if err != nil {
			return
		}
		msg := &nats.Msg{Subject: "s", Header: h, Data: block}
		before := clone(h)
		m := newMessage(fuzzedMsg{msg: msg})
		for _, name := range []string{name, idem.Header} {
			if !isASCII(name) {
				continue
			}
			var want []string
			for _, k := range slices.Sorted(maps.Keys(h)) {
				if lower(k) == lower(name) {
					want = append(want, h[k]...)
				}
			}
			for range 4 {
				if got := m.Header(name); !slices.Equal(got, want) {
					t.Fatalf("%q of %q is %q, want %q", name, h, got, want)
				}
			}
		}
		if idem.CheckToken(token) != nil {
			return
		}
		stamped := &nats.Msg{Subject: "s", Header: clone(h)}
		SetToken(stamped, token)
		if got, ok := TokenOf(fuzzedMsg{msg: stamped}); !ok || got != token {
			t.Fatalf("token %q reads back as %q, %v", token, got, ok)
		}
		ours := map[string]bool{lower(idem.Header): true}
		checkOthers(t, before, stamped.Header, ours)

		letter := consumers.Letter{Token: token, Redrive: max(n, 0), Reason: consumers.ReasonBudget}
		copied := (&delivery{message: m}).copy("dead", letter)
		for _, kv := range letter.Headers("") {
			ours[lower(kv[0])] = true
		}
		for k := range copied.Header {
			if strings.HasPrefix(lower(k), "nats-") && k != jetstream.MsgIDHeader {
				t.Fatalf("the copy has the header %q", k)
			}
		}
		for k := range before {
			if strings.HasPrefix(lower(k), "nats-") {
				ours[lower(k)] = true
			}
		}
		ours[lower(jetstream.MsgIDHeader)] = true
		checkOthers(t, before, copied.Header, ours)
		if !bytes.Equal(copied.Data, msg.Data) || !maps.EqualFunc(before, msg.Header, slices.Equal) {
			t.Fatal("the message itself was changed")
		}
		checkWire(t, copied, token)
	})
}

// checkWire writes a copy's headers as the client does, and reads them as the next consumer.
func checkWire(t *testing.T, copied *nats.Msg, token string) {
	t.Helper()
	var wire bytes.Buffer
	wire.WriteString("NATS/1.0\r\n")
	for k, values := range copied.Header {
		for _, v := range values {
			if strings.HasPrefix(lower(k), "idempotency-") {
				wire.WriteString(k + ": " + strings.Trim(noBreaks.Replace(v), " \t") + "\r\n")
			}
		}
	}
	wire.WriteString("\r\n")
	h, err := nats.DecodeHeadersMsg(wire.Bytes())
	if err != nil {
		t.Fatalf("%q is no header block: %v", wire.Bytes(), err)
	}
	if got, ok := TokenOf(fuzzedMsg{msg: &nats.Msg{Header: h}}); fitsHeader(token) && (!ok || got != token) {
		t.Fatalf("token %q arrives as %q, %v: %q", token, got, ok, wire.Bytes())
	}
}

var noBreaks = strings.NewReplacer("\r", " ", "\n", " ")

func isASCII(s string) bool { return strings.IndexFunc(s, func(r rune) bool { return r >= 0x80 }) < 0 }

func clone(h nats.Header) nats.Header {
	c := nats.Header{}
	for k, v := range h {
		c[k] = slices.Clone(v)
	}
	return c
}

// checkOthers holds the headers that are not ours to be there as before.
func checkOthers(t *testing.T, before, after nats.Header, ours map[string]bool) {
	t.Helper()
	others := func(h nats.Header) nats.Header {
		c := clone(h)
		maps.DeleteFunc(c, func(k string, _ []string) bool { return ours[lower(k)] })
		return c
	}
	if a, b := others(before), others(after); !maps.EqualFunc(a, b, slices.Equal) {
		t.Fatalf("headers of others were %q, and are %q", a, b)
	}
}
