package consumers_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/idem"
)

var tokenKey = []byte("thirty-two bytes that are secret")

func sign(t *testing.T, g *idem.Guard, token string) string {
	t.Helper()
	signed, err := g.Sign(token)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

// Under WithTokenKeys a message is handled only by a signed token. Whatever else might name
// it is dead-lettered as unknown, without a record: the sender of a message that is good is
// not hurt by one who guessed its token and came first.
func TestKeyedTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{DeadLetters: true}, idem.WithTokenKeys(tokenKey))
		token := idem.TokenFor("order", "42")
		forged := map[string]*message{
			"bare":            {headers: map[string][]string{idem.Header: {token}}},
			"redriven":        {headers: map[string][]string{idem.Header: {token}, idem.RedriveHeader: {"7"}}},
			"a CloudEvent":    {headers: map[string][]string{"ce-source": {"/shop"}, "ce-id": {"1"}}},
			"only its place":  {},
			"a trusted id":    {mid: "m1"},
			"in its payload":  {body: []byte(token)},
			"signed by other": {headers: map[string][]string{idem.Header: {sign(t, idem.New(idem.WithTokenKeys([]byte("another key of 26 bytes..."))), token)}}},
		}
		for _, m := range forged {
			r.b.add(m)
		}
		r.b.publish(sign(t, r.guard, token), sign(t, r.guard, token))
		stop := r.start(fine, consumers.TrustMessageID(), consumers.TokenFrom(func(m consumers.Message) (string, error) {
			return string(m.Body()), nil
		}))
		synctest.Wait()
		r.mustStop(stop)
		r.wantHandled(token)
		letters := r.b.posted()
		if len(letters) != len(forged) {
			t.Errorf("%d messages were dead-lettered, want %d", len(letters), len(forged))
		}
		for _, l := range letters {
			if l.Reason != consumers.ReasonUnknown || !errors.Is(l.Err, idem.ErrUnsigned) {
				t.Errorf("%s was dead-lettered for %q: %v, want as an unknown token", l.m, l.Reason, l.Err)
			}
			for _, h := range l.Headers("here") {
				if h[0] == idem.Header || h[0] == idem.RedriveHeader {
					t.Errorf("the copy of %s was given %s: %s: it must keep its own", l.m, h[0], h[1])
				}
			}
		}
	})
}

// Without a destination the consumer stops at a token that is not signed: it is neither
// acked nor handled.
func TestKeyedTokensStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{}, idem.WithTokenKeys(tokenKey))
		r.b.publish("bare")
		stop := r.start(fine)
		synctest.Wait()
		if err := stop(); !errors.Is(err, idem.ErrUnsigned) || !strings.Contains(err.Error(), "nothing was skipped") {
			t.Errorf("Run: got %v, want ErrUnsigned", err)
		}
		r.wantHandled()
		r.wantSettled("redeliver 1") // at the end of the drain
	})
}

// A dead letter keeps its signature, so that it can be moved back; and a message that waits
// behind another one with the same token, signed by another key, is the same message.
func TestKeyedTokensMovedBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{DeadLetters: true}, idem.WithTokenKeys(tokenKey, []byte("the key before this one")))
		other := sign(t, idem.New(idem.WithTokenKeys([]byte("the key before this one"))), "t")
		r.b.publish(sign(t, r.guard, "t"), other)
		broken := true
		stop := r.start(func(context.Context, *delivery) error {
			if broken {
				return idem.Permanent(errBoom)
			}
			return nil
		})
		synctest.Wait()
		broken = false
		letters := r.b.posted()
		if len(letters) != 1 || letters[0].Token != "t" {
			t.Fatalf("dead letters: %v, want one, of token t", letters)
		}
		r.b.moveBack(letters[0])
		synctest.Wait()
		r.mustStop(stop)
		r.wantHandled("t", "t")
		if n := r.count(idem.EventCommitted); n != 1 {
			t.Errorf("%d completions, want 1", n)
		}
	})
}

// Stamps are signed; a token that a message has is kept only if it is.
func TestKeyedTokensStamp(t *testing.T) {
	g := idem.New(idem.WithTokenKeys(tokenKey))
	stamped, err := consumers.TokenToStamp(t.Context(), g, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.Identity(stamped); err != nil {
		t.Errorf("a new token: %v", err)
	}
	if kept, err := consumers.TokenToStamp(t.Context(), g, []string{stamped}); kept != stamped || err != nil {
		t.Errorf("a signed token: got %q, %v, want it kept", kept, err)
	}
	if _, err := consumers.TokenToStamp(t.Context(), g, []string{"bare"}); !errors.Is(err, idem.ErrUnsigned) {
		t.Errorf("a bare token: got %v, want ErrUnsigned", err)
	}
	ctx := g.Detached(t.Context(), "t").Context()
	first, err := consumers.TokenToStampAs(ctx, new(int), "mail")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.Identity(first); err != nil {
		t.Errorf("a handler's token: %v", err)
	}
}

// A redrive number that nobody exceeds can be forged: copies of the message cannot be moved
// back by it any more. Forget, and a copy without it, can.
func TestHighestRedrive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{DeadLetters: true})
		r.b.add(&message{headers: map[string][]string{idem.Header: {"t"}, idem.RedriveHeader: {"9007199254740992"}}})
		broken := true
		stop := r.start(func(context.Context, *delivery) error {
			if broken {
				return idem.Permanent(errBoom)
			}
			return nil
		})
		synctest.Wait()
		broken = false
		r.b.moveBack(r.b.posted()[0])
		synctest.Wait()
		letters := r.b.posted()
		if len(letters) != 2 || letters[1].Reason != consumers.ReasonToken {
			t.Fatalf("dead letters: %v, want the copy refused for its number", letters)
		}
		if err := r.guard.Forget(t.Context(), "t"); err != nil {
			t.Fatal(err)
		}
		r.b.publish("t")
		synctest.Wait()
		r.mustStop(stop)
		r.wantHandled("t", "t")
		if n := r.count(idem.EventCommitted); n != 1 {
			t.Errorf("%d completions, want 1", n)
		}
	})
}
