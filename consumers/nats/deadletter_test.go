package idemnats_test

import (
	"context"
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/idemq/idemq/consumers"
	idemnats "github.com/idemq/idemq/consumers/nats"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/internal/testenv"
)

// TestDeadLetterCopy: data and headers are the original's, but for those that speak to
// the server; what happened is added.
func TestDeadLetterCopy(t *testing.T) {
	v := setup(t)
	msg := nats.NewMsg("orders.a")
	msg.Data = []byte("data")
	msg.Header = nats.Header{
		"idempotency-KEY":             {"a"},
		"Trace":                       {"1", "2"},
		"Nats-Msg-Id":                 {"a"},
		"Nats-Expected-Stream":        {"ORDERS"},
		"Nats-Expected-Last-Sequence": {"0"},
		"nats-rollup":                 {"all"},
		"Dead-Before":                 {"x"},
	}
	v.send(msg)
	v.run(func(context.Context, jetstream.Msg) error { return errTest }, v.deadLetter(), consumers.Budget(2))
	v.settled()

	dead := v.deadLetters()
	if len(dead) != 1 {
		t.Fatalf("%d dead letters", len(dead))
	}
	h := dead[0].Header
	if dead[0].Subject != "dead.orders" || string(dead[0].Data) != "data" {
		t.Errorf("subject %q, data %q", dead[0].Subject, dead[0].Data)
	}
	for name, want := range map[string]string{
		idem.Header: "a", idem.RedriveHeader: "1", consumers.HeaderReason: consumers.ReasonBudget,
		consumers.HeaderError: errTest.Error(), consumers.HeaderAttempt: "2", consumers.HeaderGroup: "ORDERS/billing",
		consumers.HeaderSource: "subject orders.a, sequence 1 of stream ORDERS", "Dead-Before": "x",
	} {
		if got := h.Values(name); len(got) != 1 || got[0] != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if got := h.Values("Trace"); len(got) != 2 {
		t.Errorf("Trace: %q", got)
	}
	for name := range h {
		if strings.EqualFold(name, idem.Header) && name != idem.Header {
			t.Errorf("two token headers: %v", h)
		}
		if strings.HasPrefix(strings.ToLower(name), "nats-") && name != "Nats-Msg-Id" {
			t.Errorf("%s: %q", name, h.Values(name))
		}
	}
	if id := h.Get("Nats-Msg-Id"); id == "" || id == "a" {
		t.Errorf("Nats-Msg-Id: %q", id)
	}
}

// TestMovedBack: a dead letter that is published to its subject again is handled
// again, once; the original, delivered once more, is not.
func TestMovedBack(t *testing.T) {
	v := setup(t)
	v.publish("a")
	var j journal
	r := v.run(func(ctx context.Context, msg jetstream.Msg) error {
		_ = j.handle(ctx, msg)
		return errTest
	}, v.deadLetter(), consumers.Budget(2))
	v.settled()
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	j.want(t, "a", "a")
	dead := v.deadLetters()
	if len(dead) != 1 {
		t.Fatalf("%d dead letters", len(dead))
	}

	// The stray original, the dead letter twice (the second time past the stream's
	// duplicate window), the original.
	v.publish("a")
	v.send(&nats.Msg{Subject: "orders.a", Header: dead[0].Header, Data: dead[0].Data})
	again := maps.Clone(dead[0].Header)
	again.Del("Nats-Msg-Id")
	v.send(&nats.Msg{Subject: "orders.a", Header: again, Data: dead[0].Data})
	v.publish("a")
	var k journal
	v.run(k.handle, v.deadLetter())
	v.settled()
	k.want(t, "a")
	if n := len(v.deadLetters()); n != 1 {
		t.Errorf("%d dead letters, want 1", n)
	}
}

// plain hides all of a JetStream context but publishing.
type plain struct{ jetstream.Publisher }

// TestDeadLetterFails: while no stream confirms, the message is held.
func TestDeadLetterFails(t *testing.T) {
	v := setup(t, ackWait(shortAckWait))
	v.publish("a", "b")
	var j journal
	began := time.Now()
	v.run(func(ctx context.Context, msg jetstream.Msg) error {
		_ = j.handle(ctx, msg)
		return idem.Permanent(errTest)
	}, idemnats.DeadLetter(plain{v.js}, "late.orders"))
	testenv.Await(t, "several AckWaits and a failed copy", func() bool {
		return time.Since(began) > 4*shortAckWait && len(v.events.of(idem.EventWaiting)) > 0
	})
	if err := v.events.of(idem.EventWaiting)[0].Err; !strings.Contains(err.Error(), "create one") {
		t.Errorf("the event says %v", err)
	}
	info := v.info()
	if n := info.NumPending + uint64(info.NumAckPending); n != 2 {
		t.Errorf("%d messages are left, want 2", n)
	}
	j.want(t, "a")
	v.stream("LATE", "late.>")
	v.settled()
	j.want(t, "a", "b")
	v.wantDeliveries(2)
	st, err := v.js.Stream(v.ctx(), "LATE")
	if err != nil {
		t.Fatal(err)
	}
	if n := st.CachedInfo().State.Msgs; n != 2 {
		t.Errorf("%d dead letters, want 2", n)
	}
}

// confirming answers publishes as it is told.
type confirming struct {
	jetstream.Publisher
	answers []*jetstream.PubAck
	calls   int
}

func (c *confirming) PublishMsg(context.Context, *nats.Msg, ...jetstream.PublishOpt) (*jetstream.PubAck, error) {
	c.calls++
	if len(c.answers) == 0 {
		return &jetstream.PubAck{Stream: "DEAD", Sequence: 1}, nil
	}
	ack := c.answers[0]
	c.answers = c.answers[1:]
	return ack, nil
}

// TestUnconfirmed: a copy that the stream took for a duplicate is not stored.
func TestUnconfirmed(t *testing.T) {
	v := setup(t)
	v.publish("a")
	pub := &confirming{Publisher: v.js, answers: []*jetstream.PubAck{{Stream: "DEAD", Sequence: 1, Duplicate: true}, nil}}
	r := v.run(func(context.Context, jetstream.Msg) error { return idem.Permanent(errTest) }, idemnats.DeadLetter(pub, "dead.orders"))
	v.settled()
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if pub.calls != 3 {
		t.Errorf("published %d times, want 3", pub.calls)
	}
}

// TestRefused: messages that cannot be claimed are dead-lettered, with the reason; the
// copy of one with a bad token keeps it.
func TestRefused(t *testing.T) {
	long := strings.Repeat("x", 256)
	key := idem.Header
	for name, c := range map[string]struct {
		header nats.Header
		opts   []idem.Option
		reason string
	}{
		"empty token":      {nats.Header{key: {""}}, nil, consumers.ReasonToken},
		"256 bytes":        {nats.Header{key: {long}}, nil, consumers.ReasonToken},
		"two tokens":       {nats.Header{key: {"a", "b"}}, nil, consumers.ReasonToken},
		"two spellings":    {nats.Header{key: {"a"}, "idempotency-key": {"b"}}, nil, consumers.ReasonToken},
		"unknown token":    {nats.Header{key: {"a"}}, []idem.Option{idem.WithIssuedOnly()}, consumers.ReasonUnknown},
		"one token, twice": {nats.Header{key: {"a", "a"}, "IDEMPOTENCY-KEY": {"a"}}, nil, ""},
		"255 bytes":        {nats.Header{key: {long[1:]}}, nil, ""},
		"zero byte":        {nats.Header{key: {"a\x00b"}}, nil, ""},
		"not UTF-8":        {nats.Header{key: {"\xff\xfe"}}, nil, ""},
		"line break":       {nats.Header{key: {"a\nb"}}, nil, ""}, // arrives as a space
	} {
		t.Run(name, func(t *testing.T) {
			v := setup(t)
			v.guard = v.newGuard(c.opts...)
			v.send(&nats.Msg{Subject: "orders.x", Header: c.header, Data: []byte("bad")})
			var j journal
			r := v.run(j.handle, v.deadLetter())
			v.settled()
			if err := r.stop(); err != nil {
				t.Fatal(err)
			}
			dead := v.deadLetters()
			if c.reason == "" {
				j.want(t, "bad")
				if len(dead) != 0 {
					t.Errorf("dead-lettered: %v", dead[0].Header)
				}
				return
			}
			j.want(t)
			if len(dead) != 1 || dead[0].Header.Get(consumers.HeaderReason) != c.reason {
				t.Fatalf("dead letters %v, want reason %q", dead, c.reason)
			}
			if got, want := dead[0].Header.Values(key), c.header.Values(key); strings.Join(got, "|") != strings.Join(want, "|") {
				t.Errorf("the copy has %q, want %q", got, want)
			}
		})
	}
}

// TestRefusedStops: without a destination such a message ends Run and is not lost.
func TestRefusedStops(t *testing.T) {
	v := setup(t)
	v.send(&nats.Msg{Subject: "orders.x", Header: nats.Header{idem.Header: {""}}})
	err := v.run(func(context.Context, jetstream.Msg) error { return nil }).result()
	if !errors.Is(err, idem.ErrInvalidToken) {
		t.Errorf("Run returned %v", err)
	}
	if info := v.info(); info.NumPending+uint64(info.NumAckPending) != 1 {
		t.Errorf("pending %d, awaiting ack %d", info.NumPending, info.NumAckPending)
	}
}

// TestConflict: the same token with another payload is no duplicate.
func TestConflict(t *testing.T) {
	v := setup(t)
	v.send(&nats.Msg{Subject: "orders.x", Header: nats.Header{idem.Header: {"a"}}, Data: []byte("1")})
	v.send(&nats.Msg{Subject: "orders.x", Header: nats.Header{idem.Header: {"a"}}, Data: []byte("2")})
	v.send(&nats.Msg{Subject: "orders.x", Header: nats.Header{idem.Header: {"a"}}, Data: []byte("1")})
	var j journal
	v.run(j.handle, v.deadLetter(), consumers.Fingerprints())
	v.settled()
	j.want(t, "1")
	if dead := v.deadLetters(); len(dead) != 1 || string(dead[0].Data) != "2" || dead[0].Header.Get(consumers.HeaderReason) != consumers.ReasonConflict {
		t.Errorf("dead letters: %v", dead)
	}
}

// TestTokenFromPayload: a token that no header can carry is not put into one.
func TestTokenFromPayload(t *testing.T) {
	v := setup(t)
	v.send(&nats.Msg{Subject: "orders.x", Data: []byte(" a\r\n")})
	fromBody := consumers.TokenFrom(func(m consumers.Message) (string, error) { return string(m.Body()), nil })
	v.run(func(context.Context, jetstream.Msg) error { return idem.Permanent(errTest) }, v.deadLetter(), fromBody)
	v.settled()
	dead := v.deadLetters()
	if len(dead) != 1 || dead[0].Header.Get(idem.Header) != "" || dead[0].Header.Get(idem.RedriveHeader) != "1" {
		t.Fatalf("dead letters: %v", dead)
	}
	// Moved back, it is known again.
	v.send(&nats.Msg{Subject: "orders.x", Header: dead[0].Header, Data: dead[0].Data})
	v.settled()
	if dead := v.deadLetters(); len(dead) != 2 || dead[1].Header.Get(idem.RedriveHeader) != "2" {
		t.Errorf("dead letters: %v", dead)
	}
}
