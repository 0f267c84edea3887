package consumers

import (
	"encoding/json"
	"maps"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/idemq/idemq/idem"
)

const eventType = "application/cloudevents+json"

// event is a message with headers in lower case, and coordinates.
type event struct {
	headers map[string][]string
	body    string
}

func (e event) Header(name string) []string { return e.headers[strings.ToLower(name)] }
func (e event) Body() []byte                { return []byte(e.body) }
func (e event) Coordinates() []string       { return []string{"queue", "1"} }
func (e event) ID() string                  { return "m" }
func (e event) Time() time.Time             { return time.Time{} }
func (e event) String() string              { return "event" }

// lookup is the token that a consumer finds.
func lookup(t *testing.T, e event, opts ...Option) string {
	t.Helper()
	p, err := Configure(new(struct{}), opts)
	if err != nil {
		t.Fatal(err)
	}
	token, err := p.token(e)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// An event in the structured mode has the token that it has in the binary mode; what is
// not exactly one event is known by what else names it.
func TestStructuredEvents(t *testing.T) {
	t.Parallel()
	const whole = `{"specversion":"1.0","type":"order","source":"/shop","id":"1","data":{"id":"other","source":[1,{"id":2}]}}`
	want, next := idem.TokenFor("/shop", "1"), idem.TokenFor("at", "queue", "1")
	for _, tc := range []struct{ name, contentType, body, want string }{
		{"as it should be", eventType, whole, want},
		{"with parameters", eventType + "; charset=UTF-8", whole, want},
		{"with what is no parameter", eventType + " ;;=", whole, want},
		{"in another case", "Application/CloudEvents+JSON", whole, want},
		{"escaped", eventType, `{"\u0069d":"\u0031","source":"\/shop"}`, want},
		{"white space around", eventType, " \n" + whole + "\n ", want},

		{"a batch", "application/cloudevents-batch+json", "[" + whole + "]", next},
		{"a batch that says it is one event", eventType, "[" + whole + "]", next},
		{"plain JSON", "application/json", whole, next},
		{"a type that only begins so", eventType + "x", whole, next},
		{"no body", eventType, "", next},
		{"no JSON", eventType, "order 1", next},
		{"null", eventType, "null", next},
		{"broken off", eventType, whole[:len(whole)-1], next},
		{"more behind it", eventType, whole + whole, next},
		{"rubbish behind it", eventType, whole + "x", next},
		{"a brace too many", eventType, whole + "}", next},
		{"no id", eventType, `{"source":"/shop"}`, next},
		{"no source", eventType, `{"id":"1"}`, next},
		{"an empty id", eventType, `{"source":"/shop","id":""}`, next},
		{"an empty source", eventType, `{"source":"","id":"1"}`, next},
		{"an id that is a number", eventType, `{"source":"/shop","id":1}`, next},
		{"an id that is null", eventType, `{"source":"/shop","id":null}`, next},
		{"names in another case", eventType, `{"Source":"/shop","ID":"1"}`, next},
		{"two ids", eventType, `{"source":"/shop","id":"1","id":"2"}`, next},
		{"two ids, the first empty", eventType, `{"source":"/shop","id":"","id":"1"}`, next},
		{"two ids, the second empty", eventType, `{"source":"/shop","id":"1","id":""}`, next},
		{"two sources", eventType, `{"source":"/shop","source":"/shop","id":"1"}`, next},
		{"bytes that are no Unicode", eventType, "{\"source\":\"/shop\",\"id\":\"\xff\"}", next},
		{"half a surrogate", eventType, `{"source":"/shop","id":"\ud800"}`, next},
		{"nested beyond reason", eventType, `{"source":"/shop","id":"1","data":` + strings.Repeat("[", 1<<20) + `}`, next},
		{"a byte order mark", eventType, "\ufeff" + whole, next},
	} {
		e := event{headers: map[string][]string{"content-type": {tc.contentType}}, body: tc.body}
		if got := lookup(t, e); got != tc.want {
			t.Errorf("%s: token %q, want %q", tc.name, got, tc.want)
		}
	}
}

// The order in which a token is looked for.
func TestStructuredEventsComeAfter(t *testing.T) {
	t.Parallel()
	const body = `{"source":"/shop","id":"1"}`
	for name, tc := range map[string]struct {
		headers map[string][]string
		opts    []Option
		want    string
	}{
		"the header":      {map[string][]string{strings.ToLower(idem.Header): {"a"}}, nil, "a"},
		"the binary mode": {map[string][]string{"ce_source": {"/x"}, "ce_id": {"2"}}, nil, idem.TokenFor("/x", "2")},
		"a function":      {nil, []Option{TokenFrom(func(Message) (string, error) { return "b", nil })}, "b"},
	} {
		e := event{headers: map[string][]string{"content-type": {eventType}}, body: body}
		maps.Copy(e.headers, tc.headers)
		if got := lookup(t, e, tc.opts...); got != tc.want {
			t.Errorf("%s: token %q, want %q", name, got, tc.want)
		}
	}
	e := event{headers: map[string][]string{"content-type": {eventType}}, body: body}
	if got, want := lookup(t, e, TrustMessageID()), idem.TokenFor("/shop", "1"); got != want {
		t.Errorf("before the broker's id: token %q, want %q", got, want)
	}
	e.headers["content-type"] = []string{eventType, eventType}
	if got, want := lookup(t, e), idem.TokenFor("at", "queue", "1"); got != want {
		t.Errorf("two content types: token %q, want %q", got, want)
	}
}

// FuzzStructuredEvent: any bytes are an event or none, and never a panic; an event as a
// producer writes it has its source's and id's token.
func FuzzStructuredEvent(f *testing.F) {
	f.Add([]byte(`{"source":"/shop","id":"1"}`), "/shop", "1")
	f.Add([]byte(`{"source":"/shop","id":"1","id":"2"}`), "", "x")
	f.Add([]byte("{\"id\":\"\xff\""), "a\u2028b", "\u0000")
	f.Add([]byte(`[[[[`), "\ufffd", "\xff")
	f.Fuzz(func(t *testing.T, body []byte, source, id string) {
		token := structuredEventToken(body)
		var read struct{ Source, ID *string }
		if token != "" && (json.Unmarshal(body, &read) != nil || read.Source == nil || read.ID == nil) {
			t.Errorf("%q: a token, and it is no event", body)
		}
		written, err := json.Marshal(map[string]any{"source": source, "id": id, "data": body})
		if err != nil {
			t.Fatal(err)
		}
		want := ""
		if plain(source) && plain(id) {
			want = idem.TokenFor(source, id)
		}
		if got := structuredEventToken(written); got != want {
			t.Errorf("%s: token %q, want %q", written, got, want)
		}
	})
}

func plain(s string) bool {
	return s != "" && utf8.ValidString(s) && !strings.ContainsRune(s, utf8.RuneError)
}
