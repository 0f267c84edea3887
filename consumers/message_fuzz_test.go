package consumers

import (
	"encoding/json"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/idemq/idemq/idem"
)

// wild is a message as a producer that knows nothing of this library may send it.
type wild struct {
	headers [][2]string
	body    []byte
	id      string
	at      []string
}

// Header matches the name as adapters do: ASCII letters of either case are one.
func (m wild) Header(name string) []string {
	var all []string
	for _, h := range m.headers {
		if len(h[0]) == len(name) && strings.EqualFold(h[0], name) {
			all = append(all, h[1])
		}
	}
	return all
}
func (m wild) Body() []byte          { return m.body }
func (m wild) Coordinates() []string { return m.at }
func (m wild) ID() string            { return m.id }
func (m wild) Time() time.Time       { return time.Time{} }
func (m wild) String() string        { return "wild" }

// parseWild reads headers from lines of "name: value"; a line without a colon is a header
// without a value.
func parseWild(headers, body, id, at string) wild {
	m := wild{body: []byte(body), id: id}
	for line := range strings.SplitSeq(headers, "\n") {
		if name, value, _ := strings.Cut(line, ": "); name != "" {
			m.headers = append(m.headers, [2]string{name, value})
		}
	}
	if at != "" {
		m.at = strings.Split(at, "/")
	}
	return m
}

// FuzzMessage: whatever a message brings, it is answered with one valid token or with an
// error, with the same one each time, and the header, where there is one, decides alone.
func FuzzMessage(f *testing.F) {
	f.Add("Idempotency-Key: a", "", "", "kafka/t/0/1")
	f.Add("IDEMPOTENCY-KEY: a\nidempotency-key: a", "", "", "kafka/t/0/1")
	f.Add("Idempotency-Key: a\nIdempotency-Key: b", "", "id", "")
	f.Add("Idempotency-Key: ", "", "id", "kafka/t/0/1")
	f.Add("Idempotency-Key: "+strings.Repeat("\xff", 256), "", "id", "")
	f.Add("Idempotency-Key: a\nIdempotency-Redrive: 3", "", "", "")
	f.Add("Idempotency-Redrive: 9007199254740992", "", "", "")
	f.Add("Idempotency-Redrive: 9007199254740993", "", "", "")
	f.Add("Idempotency-Redrive: -1\nidempotency-redrive: 0", "", "", "")
	f.Add("Idempotency-Redrive: 1e3", "", "", "")
	f.Add("ce-id: 1\nce-source: /shop", "", "", "kafka/t/0/1")
	f.Add("ce_id: 1\nce_source: /shop\nce_id: 2", "", "", "kafka/t/0/1")
	f.Add("cloudEvents:id: 1\ncloudEvents:source: ", "", "", "nats//s/1")
	f.Add("content-type: application/cloudevents+json; charset=utf-8", `{"source":"/shop","id":"1"}`, "id", "")
	f.Fuzz(func(t *testing.T, headers, body, id, at string) {
		m := parseWild(headers, body, id, at)
		trusting := Policy{trustID: true}
		for _, p := range []*Policy{{}, &trusting} {
			token, err := p.token(m)
			if (err == nil) != (idem.CheckToken(token) == nil) {
				t.Fatalf("token %q, error %v", token, err)
			}
			again, err2 := p.token(m)
			if again != token || (err2 == nil) != (err == nil) {
				t.Fatalf("first %q, %v, then %q, %v", token, err, again, err2)
			}
			checkSource(t, p, m, token, err)
		}
		checkEvent(t, at, id)
		checkRedrive(t, m)
		checkLetter(t, m)
	})
}

// checkSource holds a token to where it has to come from.
func checkSource(t *testing.T, p *Policy, m wild, token string, err error) {
	t.Helper()
	switch keys := m.Header(idem.Header); {
	case len(keys) > 0:
		one := !slices.ContainsFunc(keys, func(k string) bool { return k != keys[0] })
		valid := one && keys[0] != "" && len(keys[0]) <= idem.MaxTokenLen
		if valid != (err == nil) || valid && token != keys[0] {
			t.Fatalf("the header says %q: token %q, error %v", keys, token, err)
		}
		if !valid && !errors.Is(err, idem.ErrInvalidToken) {
			t.Fatalf("the header says %q: %v", keys, err)
		}
		if in, ok := TokenIn(m); ok != valid || in != token {
			t.Fatalf("TokenIn: %q, %v; the consumer's is %q, %v", in, ok, token, err)
		}
	case err != nil:
		if p.trustID && m.id != "" || slices.ContainsFunc(m.at, func(s string) bool { return s != "" }) {
			t.Fatalf("it has an id or coordinates, and no token: %v", err)
		}
	case token == cloudEventToken(m):
	case p.trustID && m.id != "":
		if token != idem.TokenFor("id", m.id) {
			t.Fatalf("id %q has the token %q", m.id, token)
		}
	default:
		if token != idem.TokenFor(append([]string{"at"}, m.at...)...) {
			t.Fatalf("coordinates %q have the token %q", m.at, token)
		}
	}
}

// checkEvent: an event has the same token in the binary mode as in the structured one, and
// without a source or an id it has none.
func checkEvent(t *testing.T, source, id string) {
	t.Helper()
	for _, prefix := range cloudEventPrefixes {
		binary := cloudEventToken(wild{headers: [][2]string{{prefix + "source", source}, {strings.ToUpper(prefix) + "ID", id}}})
		if named := source != "" && id != ""; (binary != "") != named {
			t.Fatalf("%ssource %q and id %q have the token %q", prefix, source, id, binary)
		}
		if !plain(source) || !plain(id) {
			continue // JSON cannot say it
		}
		body, err := json.Marshal(map[string]string{"source": source, "id": id})
		if err != nil {
			t.Fatal(err)
		}
		if structured := cloudEventToken(wild{headers: [][2]string{{"Content-Type", structuredEvent}}, body: body}); structured != binary {
			t.Fatalf("source %q and id %q: %q in the binary mode, %q in the structured one", source, id, binary, structured)
		}
	}
}

// checkRedrive: a number is taken only where every store keeps it exactly.
func checkRedrive(t *testing.T, m wild) {
	t.Helper()
	values := m.Header(idem.RedriveHeader)
	n, err := redrive(m)
	switch {
	case len(values) == 0:
		if n != 0 || err != nil {
			t.Fatalf("no header: %d, %v", n, err)
		}
	case err != nil:
		if n != 0 {
			t.Fatalf("%q: %d beside the error %v", values, n, err)
		}
	default:
		digits := strings.TrimLeft(strings.TrimLeft(values[0], "+-"), "0")
		if len(values) > 1 || n < 0 || n > 1<<53 || float64(n) > math.Pow(2, 53) || strings.Trim(digits, "0123456789") != "" || len(digits) > 16 {
			t.Fatalf("%q was read as %d", values, n)
		}
	}
}

// checkLetter: what a dead-letter copy says of a message is printable and short.
func checkLetter(t *testing.T, m wild) {
	t.Helper()
	l := Letter{Group: m.id, Reason: ReasonToken, Err: errors.New(string(m.body)), Redrive: 1}
	for _, h := range l.Headers(string(m.body)) {
		for _, c := range []byte(h[0] + h[1]) {
			if c < ' ' || c > '~' {
				t.Fatalf("header %q holds byte %#x", h, c)
			}
		}
		if len(h[1]) > maxErrorLen+len("...") {
			t.Fatalf("header %s has %d bytes", h[0], len(h[1]))
		}
	}
}
