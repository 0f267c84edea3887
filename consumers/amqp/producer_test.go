package idemamqp_test

import (
	"context"
	"maps"
	"strings"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	idemamqp "github.com/idemq/idemq/consumers/amqp"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store/memstore"
)

func plainGuard() *idem.Guard { return idem.New(idem.WithStore(memstore.New())) }

// tokenOf is the text of a message's token header.
func tokenOf(msg *amqp.Publishing) string {
	token, _ := msg.Headers[idem.Header].(string)
	return token
}

func TestStamp(t *testing.T) {
	t.Parallel()
	ctx, g := t.Context(), plainGuard()
	msg := &amqp.Publishing{}
	if err := idemamqp.Stamp(ctx, g, msg); err != nil {
		t.Fatal(err)
	}
	token := tokenOf(msg)
	if token == "" || msg.MessageId != token {
		t.Errorf("headers %v, message-id %q", msg.Headers, msg.MessageId)
	}
	if err := idemamqp.Stamp(ctx, g, msg); err != nil || tokenOf(msg) != token {
		t.Errorf("stamped again: %v, %v", msg.Headers, err)
	}

	msg = &amqp.Publishing{Headers: amqp.Table{"idempotency-key": []byte("mine"), "n": int32(1)}, MessageId: "id"}
	if err := idemamqp.Stamp(ctx, g, msg); err != nil {
		t.Fatal(err)
	}
	if tokenOf(msg) != "mine" || msg.MessageId != "id" || len(msg.Headers) != 2 {
		t.Errorf("headers %v, message-id %q", msg.Headers, msg.MessageId)
	}

	shared := amqp.Table{"color": "red"}
	for range 2 {
		if err := idemamqp.Stamp(ctx, g, &amqp.Publishing{Headers: shared}); err != nil {
			t.Fatal(err)
		}
	}
	if len(shared) != 1 {
		t.Errorf("a table that messages share was changed: %v", shared)
	}
}

func TestStampErrors(t *testing.T) {
	t.Parallel()
	g := plainGuard()
	with := func(h amqp.Table) *amqp.Publishing { return &amqp.Publishing{Headers: h} }
	for name, c := range map[string]struct {
		g    *idem.Guard
		msg  *amqp.Publishing
		want string
	}{
		"nil message":   {g, nil, "message is nil"},
		"nil guard":     {nil, with(nil), "guard is nil"},
		"guard's fault": {idem.New(idem.WithLease(1)), with(nil), "WithLease"},
		"no store":      {idem.New(idem.WithIssuedOnly()), with(nil), "redis not enabled"},
		"empty":         {g, with(amqp.Table{idem.Header: ""}), "empty"},
		"no value":      {g, with(amqp.Table{idem.Header: nil}), "empty"},
		"long":          {g, with(amqp.Table{idem.Header: strings.Repeat("x", 256)}), "256 bytes"},
		"two":           {g, with(amqp.Table{idem.Header: "a", "idempotency-key": "b"}), "different values"},
		"bool":          {g, with(amqp.Table{idem.Header: true}), "bool, not a string"},
		"table":         {g, with(amqp.Table{idem.Header: amqp.Table{}}), "Table, not a string"},
		"unknown type":  {g, with(amqp.Table{idem.Header: struct{}{}}), "struct {}, not a string"},
	} {
		if err := idemamqp.Stamp(t.Context(), c.g, c.msg); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// TestStampIssued: the consumer admits what Stamp registered, and nothing else.
func TestStampIssued(t *testing.T) {
	v := setup(t)
	v.guard = v.newGuard(idem.WithIssuedOnly())
	msg := amqp.Publishing{Body: []byte("x")}
	if err := idemamqp.Stamp(t.Context(), v.guard, &msg); err != nil {
		t.Fatal(err)
	}
	v.send(msg)
	v.publish("unknown")
	var j journal
	v.run(j.handle, v.deadLetter())
	v.settled()
	j.want(t, "x")
	if n := len(v.deadLetters()); n != 1 {
		t.Errorf("%d dead letters", n)
	}
}

// TestStampAs: every attempt publishes the same token; the handler's copy of the
// headers does not pass the old one on.
func TestStampAs(t *testing.T) {
	v := setup(t)
	in := amqp.Publishing{}
	if err := idemamqp.Stamp(t.Context(), v.guard, &in); err != nil {
		t.Fatal(err)
	}
	v.send(in)
	token := tokenOf(&in)
	var seen journal
	v.run(func(ctx context.Context, d amqp.Delivery) error {
		if got, ok := idemamqp.TokenOf(d); !ok || got != token {
			t.Errorf("TokenOf: %q, %v", got, ok)
		}
		out := &amqp.Publishing{Headers: amqp.Table{}, MessageId: d.MessageId}
		maps.Copy(out.Headers, d.Headers)
		if err := idemamqp.Stamp(ctx, v.guard, out); err == nil || !strings.Contains(err.Error(), "StampAs") {
			t.Errorf("Stamp in a handler: %v", err)
		}
		if err := idemamqp.StampAs(ctx, out, "mail"); err != nil {
			t.Error(err)
		}
		if err := idemamqp.StampAs(ctx, out, "mail"); err != nil {
			t.Errorf("the same message again: %v", err)
		}
		if err := idemamqp.StampAs(ctx, &amqp.Publishing{}, "mail"); err == nil {
			t.Error("one name for two messages")
		}
		if out.MessageId != tokenOf(out) {
			t.Errorf("message-id %q", out.MessageId)
		}
		bare := &amqp.Publishing{Headers: amqp.Table{idem.Header: token}}
		if err := idemamqp.StampAs(ctx, bare, "bare"); err != nil || bare.MessageId != tokenOf(bare) {
			t.Errorf("%v, message-id %q", err, bare.MessageId)
		}
		other := &amqp.Publishing{MessageId: "own"}
		if err := idemamqp.StampAs(ctx, other, "other"); err != nil || other.MessageId != "own" {
			t.Errorf("%v, %v", other.MessageId, err)
		}
		if seen.add("%s", tokenOf(out)) < 3 {
			return errTest
		}
		return nil
	})
	v.settled()
	all := seen.list()
	if len(all) != 3 || all[0] == "" || all[0] == token || all[1] != all[0] || all[2] != all[0] {
		t.Errorf("tokens %q, of %q", all, token)
	}
}

func TestStampAsErrors(t *testing.T) {
	t.Parallel()
	if err := idemamqp.StampAs(t.Context(), nil, "x"); err == nil {
		t.Error("a nil message")
	}
	if err := idemamqp.StampAs(t.Context(), &amqp.Publishing{}, "x"); err == nil || !strings.Contains(err.Error(), "use Stamp") {
		t.Errorf("outside of a handler: %v", err)
	}
}

func TestSetToken(t *testing.T) {
	t.Parallel()
	idemamqp.SetToken(nil, "a")
	msg := &amqp.Publishing{}
	idemamqp.SetToken(msg, "a")
	msg.Headers["IDEMPOTENCY-key"] = "b"
	idemamqp.SetToken(msg, "c")
	if len(msg.Headers) != 1 || tokenOf(msg) != "c" {
		t.Errorf("headers %v", msg.Headers)
	}
	if _, ok := idemamqp.TokenOf(amqp.Delivery{}); ok {
		t.Error("a message without headers has a token")
	}
}
