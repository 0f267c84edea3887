package idemkafka_test

import (
	"context"
	"strings"
	"testing"

	"github.com/segmentio/kafka-go"

	idemkafka "github.com/idemq/idemq/consumers/kafka"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/idemtest"
	"github.com/idemq/idemq/idem/store/memstore"
)

func tokenOf(t *testing.T, msg kafka.Message) string {
	t.Helper()
	token, ok := idemkafka.TokenOf(msg)
	if !ok {
		t.Errorf("no token in %v", msg.Headers)
	}
	return token
}

func TestStamp(t *testing.T) {
	t.Parallel()
	g := idem.New()
	msg := kafka.Message{Headers: []kafka.Header{{Key: "Color", Value: []byte("red")}}}
	shared := msg.Headers
	for range 2 {
		if err := idemkafka.Stamp(t.Context(), g, &msg); err != nil {
			t.Fatal(err)
		}
	}
	if len(msg.Headers) != 2 || tokenOf(t, msg) == "" {
		t.Errorf("headers %v", msg.Headers)
	}
	if len(shared) != 1 {
		t.Error("the caller's slice has changed")
	}
	mine := kafka.Message{Headers: []kafka.Header{{Key: "idempotency-key", Value: []byte("mine")}}}
	if err := idemkafka.Stamp(t.Context(), g, &mine); err != nil || tokenOf(t, mine) != "mine" || len(mine.Headers) != 1 {
		t.Errorf("%v, %v", mine.Headers, err)
	}
}

func TestStampErrors(t *testing.T) {
	t.Parallel()
	with := func(values ...string) *kafka.Message {
		m := &kafka.Message{}
		for _, v := range values {
			m.Headers = append(m.Headers, kafka.Header{Key: idem.Header, Value: []byte(v)})
		}
		return m
	}
	for _, c := range []struct {
		name string
		ctx  context.Context
		g    *idem.Guard
		msg  *kafka.Message
		want string
	}{
		{"no message", t.Context(), idem.New(), nil, "message is nil"},
		{"no guard", t.Context(), nil, with(), "guard is nil"},
		{"a guard with bad options", t.Context(), idem.New(idem.WithLease(-1)), with(), "WithLease"},
		{"issued only, and no store", t.Context(), idem.New(idem.WithIssuedOnly()), with(), "WithRedis"},
		{"an empty token", t.Context(), idem.New(), with(""), "empty"},
		{"a token that is too long", t.Context(), idem.New(), with(strings.Repeat("x", 256)), "256 bytes"},
		{"two tokens", t.Context(), idem.New(), with("a", "b"), "2 times"},
		{"in a handler, where each attempt would write another", idemtest.Context(t, "a"), idem.New(), with(), "StampAs"},
	} {
		if err := idemkafka.Stamp(c.ctx, c.g, c.msg); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q in it", c.name, err, c.want)
		}
	}
}

func TestStampIssuedOnly(t *testing.T) {
	t.Parallel()
	g := idem.New(idem.WithStore(memstore.New()), idem.WithIssuedOnly())
	msg := kafka.Message{}
	if err := idemkafka.Stamp(t.Context(), g, &msg); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Begin(t.Context(), tokenOf(t, msg)); err != nil {
		t.Errorf("the token that Stamp registered: %v", err)
	}
}

func TestStampAs(t *testing.T) {
	t.Parallel()
	var first string
	for attempt := 1; attempt <= 2; attempt++ {
		ctx := idemtest.ContextAt(t, "order-1", attempt)
		msg := kafka.Message{Headers: []kafka.Header{{Key: idem.Header, Value: []byte("order-1")}, {Key: "Color", Value: []byte("red")}}}
		if err := idemkafka.StampAs(ctx, &msg, "receipt"); err != nil {
			t.Fatal(err)
		}
		token := tokenOf(t, msg)
		if token == "order-1" || len(msg.Headers) != 2 {
			t.Errorf("the copied token stayed: %v", msg.Headers)
		}
		if first == "" {
			first = token
		}
		if token != first {
			t.Errorf("attempt %d has token %s, the first %s", attempt, token, first)
		}
		if err := idemkafka.StampAs(ctx, &kafka.Message{}, "receipt"); err == nil {
			t.Error("one name for two messages is accepted")
		}
		if err := idemkafka.StampAs(ctx, nil, "x"); err == nil {
			t.Error("a nil message is accepted")
		}
	}
	if err := idemkafka.StampAs(t.Context(), &kafka.Message{}, "receipt"); err == nil || !strings.Contains(err.Error(), "use Stamp") {
		t.Errorf("outside a handler: %v", err)
	}
}

func TestSetToken(t *testing.T) {
	t.Parallel()
	idemkafka.SetToken(nil, "a")
	msg := kafka.Message{Headers: []kafka.Header{
		{Key: "idempotency-KEY", Value: []byte("x")}, {Key: "a", Value: nil}, {Key: idem.Header, Value: []byte("y")},
	}}
	idemkafka.SetToken(&msg, "z")
	if tokenOf(t, msg) != "z" || len(msg.Headers) != 2 {
		t.Errorf("headers %v", msg.Headers)
	}
	if _, ok := idemkafka.TokenOf(kafka.Message{Headers: []kafka.Header{{Key: idem.Header}}}); ok {
		t.Error("a header without a value is a token")
	}
}

// The writer stamps all that it writes, in the caller's slice, and nothing else of it.
func TestWriter(t *testing.T) {
	t.Parallel()
	v := setup(t, 1)
	w := idemkafka.NewWriter(v.w, idem.New())
	msgs := []kafka.Message{{Topic: v.topic, Value: []byte("a")}, {Topic: v.topic, Value: []byte("b")}}
	idemkafka.SetToken(&msgs[1], "mine")
	for range 2 { // after an error it would be the same slice
		if err := w.WriteMessages(t.Context(), msgs...); err != nil {
			t.Fatal(err)
		}
	}
	all := v.srv.All(t, v.topic)
	if len(all) != 4 {
		t.Fatalf("%d messages", len(all))
	}
	if first := tokenOf(t, all[0]); first != tokenOf(t, all[2]) || tokenOf(t, all[1]) != "mine" || tokenOf(t, all[3]) != "mine" {
		t.Errorf("tokens differ between the first try and the second: %v", all)
	}

	ctx := idemtest.Context(t, "order-1")
	if err := w.WriteMessages(ctx, kafka.Message{Topic: v.topic}); err == nil || !strings.Contains(err.Error(), "StampAs") {
		t.Errorf("in a handler, without a token: %v", err)
	}
	receipt := kafka.Message{Topic: v.topic}
	if err := idemkafka.StampAs(ctx, &receipt, "receipt"); err != nil {
		t.Fatal(err)
	}
	if err := w.WriteMessages(ctx, receipt); err != nil {
		t.Errorf("in a handler, with StampAs: %v", err)
	}
	if err := w.WriteMessages(t.Context(), kafka.Message{Topic: v.topic, Headers: []kafka.Header{{Key: idem.Header}}}); err == nil {
		t.Error("a token that is none is written")
	}
	for _, bad := range []*idemkafka.Writer{idemkafka.NewWriter(nil, idem.New()), idemkafka.NewWriter(v.w, nil), idemkafka.NewWriter(v.w, idem.New(idem.WithLease(-1)))} {
		if err := bad.WriteMessages(t.Context(), receipt); err == nil {
			t.Error("a writer without its parts writes")
		}
	}
	if n := len(v.srv.All(t, v.topic)); n != 5 {
		t.Errorf("%d messages, want 5", n)
	}
}
