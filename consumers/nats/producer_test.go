package idemnats_test

import (
	"context"
	"maps"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	idemnats "github.com/idemq/idemq/consumers/nats"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store/memstore"
)

func setupPlain(t *testing.T) *idem.Guard {
	t.Helper()
	return idem.New(idem.WithStore(memstore.New()))
}

func TestStamp(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	g := setupPlain(t)
	msg := &nats.Msg{Subject: "s"}
	if err := idemnats.Stamp(ctx, g, msg); err != nil {
		t.Fatal(err)
	}
	token := msg.Header.Get(idem.Header)
	if token == "" || msg.Header.Get("Nats-Msg-Id") != token {
		t.Errorf("headers %v", msg.Header)
	}
	if err := idemnats.Stamp(ctx, g, msg); err != nil || msg.Header.Get(idem.Header) != token {
		t.Errorf("stamped again: %v, %v", msg.Header, err)
	}

	msg = &nats.Msg{Header: nats.Header{"idempotency-key": {"mine"}, "Nats-Msg-Id": {"id"}}}
	if err := idemnats.Stamp(ctx, g, msg); err != nil {
		t.Fatal(err)
	}
	if got := msg.Header; got.Get(idem.Header) != "mine" || got.Get("Nats-Msg-Id") != "id" || len(got) != 2 {
		t.Errorf("headers %v", got)
	}
}

func TestStampErrors(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	g := setupPlain(t)
	for name, c := range map[string]struct {
		g    *idem.Guard
		msg  *nats.Msg
		want string
	}{
		"nil message":   {g, nil, "message is nil"},
		"nil guard":     {nil, nats.NewMsg("s"), "guard is nil"},
		"guard's fault": {idem.New(idem.WithLease(1)), nats.NewMsg("s"), "WithLease"},
		"no store":      {idem.New(idem.WithIssuedOnly()), nats.NewMsg("s"), "redis not enabled"},
		"empty":         {g, &nats.Msg{Header: nats.Header{idem.Header: {""}}}, "empty"},
		"no value":      {g, &nats.Msg{Header: nats.Header{idem.Header: nil}}, "empty"},
		"long":          {g, &nats.Msg{Header: nats.Header{idem.Header: {strings.Repeat("x", 256)}}}, "256 bytes"},
		"two":           {g, &nats.Msg{Header: nats.Header{idem.Header: {"a"}, "idempotency-key": {"b"}}}, "different values"},
		"line break":    {g, &nats.Msg{Header: nats.Header{idem.Header: {"a\nb"}}}, "line breaks"},
		"blank":         {g, &nats.Msg{Header: nats.Header{idem.Header: {" a"}}}, "blanks"},
	} {
		if err := idemnats.Stamp(ctx, c.g, c.msg); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// TestStampIssued: the consumer admits what Stamp registered.
func TestStampIssued(t *testing.T) {
	v := setup(t)
	v.guard = v.newGuard(idem.WithIssuedOnly())
	msg := nats.NewMsg("orders.a")
	if err := idemnats.Stamp(v.ctx(), v.guard, msg); err != nil {
		t.Fatal(err)
	}
	v.send(msg)
	var j journal
	v.run(j.handle)
	v.settled()
	j.want(t, "")
}

// TestStampAs: every attempt publishes the same token; the handler's copy of the
// headers does not pass the old one on.
func TestStampAs(t *testing.T) {
	v := setup(t)
	in := nats.NewMsg("orders.a")
	if err := idemnats.Stamp(v.ctx(), v.guard, in); err != nil {
		t.Fatal(err)
	}
	v.send(in)
	token := in.Header.Get(idem.Header)
	var seen journal
	v.run(func(ctx context.Context, msg jetstream.Msg) error {
		if got, ok := idemnats.TokenOf(msg); !ok || got != token {
			t.Errorf("TokenOf: %q, %v", got, ok)
		}
		out := &nats.Msg{Subject: "mail.a", Header: nats.Header{}}
		maps.Copy(out.Header, msg.Headers())
		if err := idemnats.Stamp(ctx, v.guard, out); err == nil || !strings.Contains(err.Error(), "StampAs") {
			t.Errorf("Stamp in a handler: %v", err)
		}
		if err := idemnats.StampAs(ctx, out, "mail"); err != nil {
			t.Error(err)
		}
		if err := idemnats.StampAs(ctx, out, "mail"); err != nil {
			t.Errorf("the same message again: %v", err)
		}
		if err := idemnats.StampAs(ctx, nats.NewMsg("mail.b"), "mail"); err == nil {
			t.Error("one name for two messages")
		}
		if id := out.Header.Get("Nats-Msg-Id"); id != out.Header.Get(idem.Header) {
			t.Errorf("Nats-Msg-Id %q", id)
		}
		other := &nats.Msg{Header: nats.Header{"Nats-Msg-Id": {"own"}}}
		if err := idemnats.StampAs(ctx, other, "other"); err != nil || other.Header.Get("Nats-Msg-Id") != "own" {
			t.Errorf("%v, %v", other.Header, err)
		}
		if seen.add("%s", out.Header.Get(idem.Header)) < 3 {
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
	if err := idemnats.StampAs(t.Context(), nil, "x"); err == nil {
		t.Error("a nil message")
	}
	if err := idemnats.StampAs(t.Context(), nats.NewMsg("s"), "x"); err == nil || !strings.Contains(err.Error(), "use Stamp") {
		t.Errorf("outside of a handler: %v", err)
	}
}

func TestSetToken(t *testing.T) {
	t.Parallel()
	idemnats.SetToken(nil, "a")
	msg := &nats.Msg{}
	idemnats.SetToken(msg, "a")
	msg.Header["IDEMPOTENCY-key"] = []string{"b"}
	idemnats.SetToken(msg, "c")
	if len(msg.Header) != 1 || msg.Header.Get(idem.Header) != "c" {
		t.Errorf("headers %v", msg.Header)
	}
	if _, ok := idemnats.TokenOf(nil); ok {
		t.Error("a nil message has a token")
	}
}
