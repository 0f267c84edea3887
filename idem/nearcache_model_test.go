package idem_test

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/memstore"
)

// history is two guards at work on one store, one of them with a near cache, and what is
// known of each token from looking at its record after every step.
type history struct {
	t         *rapid.T
	near, far *idem.Guard
	judge     *idem.Guard // holds nothing, so that it always asks
	claims    []*idem.Claim
	tokens    map[string]*past
}

type past struct {
	until       time.Time // when the store held it as done last; zero: never
	forgotten   bool      // by the guard with the cache, and not done since
	forgottenBy time.Time // when the other guard forgot it last
}

const (
	historyTTL       = 30 * time.Second
	historyRetention = 40 * time.Second
	historyLease     = 9 * time.Second
)

// look notes what the store holds now, and when that will be over.
func (h *history) look(token string) idem.Record {
	rec, err := h.judge.Inspect(context.Background(), token)
	if err != nil {
		h.t.Fatal(err)
	}
	if p := h.tokens[token]; rec.State == store.Done {
		p.until, p.forgotten = time.Now().Add(rec.Expires), false
	} else if now := time.Now(); p.until.After(now) {
		p.until = now
	}
	return rec
}

func (h *history) begin(g *idem.Guard, token string, redrive int) {
	before := h.look(token)
	b := g.BeginAll(context.Background(), []idem.Request{{Token: token, Redrive: redrive}})[0]
	var dup *idem.DuplicateError
	switch {
	case b.Err == nil:
		h.claims = append(h.claims, b.Claim)
		if before.State == store.Done {
			h.t.Fatalf("%q is to be handled, and was done: %+v", token, before)
		}
		return
	case !errors.As(b.Err, &dup) || g == h.far:
		return
	}
	p, now := h.tokens[token], time.Now()
	rightly := before.State == store.Done || before.State == store.Dead
	switch {
	case rightly && now.Sub(p.forgottenBy) > historyTTL:
		said := h.judge.BeginAll(context.Background(), []idem.Request{{Token: token}})[0].Err
		if !reflect.DeepEqual(error(dup), said) {
			h.t.Fatalf("answered %#v, and the store says %#v", dup, said)
		}
	case rightly:
	case redrive > 0:
		h.t.Fatalf("a redrive of %q was answered without the store: %v", token, b.Err)
	case p.forgotten:
		h.t.Fatalf("%q was forgotten here: %v", token, b.Err)
	case now.Sub(p.until) >= historyTTL:
		h.t.Fatalf("%q is not done since %v: %v", token, now.Sub(p.until), b.Err)
	case now.Sub(p.forgottenBy) >= historyTTL:
		h.t.Fatalf("%q was forgotten by nobody within the ttl, so its record ran out: %v", token, b.Err)
	}
}

func (h *history) forget(g *idem.Guard, token string) {
	err := g.Forget(context.Background(), token)
	switch {
	case errors.Is(err, idem.ErrInProgress):
	case err != nil:
		h.t.Fatal(err)
	case g == h.near:
		h.tokens[token].forgotten = true
	default:
		h.tokens[token].forgottenBy = time.Now()
	}
}

func (h *history) end(i int, how string) {
	c := h.claims[i]
	h.claims = slices.Delete(h.claims, i, i+1)
	var err error
	switch how {
	case "commit with a result":
		c.SetResult([]byte("result"))
		err = c.Commit(context.Background())
	case "commit":
		err = c.Commit(context.Background())
	case "release":
		err = c.Release(context.Background())
	case "bury":
		err = c.Bury(context.Background())
	default:
		c.Abandon()
	}
	if err != nil && !errors.Is(err, idem.ErrLeaseLost) {
		h.t.Fatal(err)
	}
}

// Whatever two guards do to one store's tokens, none that is done is handled, and a
// duplicate that the near cache answers is one in the store, or was for all but the ttl, when
// the other guard forgot it. What this guard forgot, and what ran out, is no duplicate.
func TestNearCacheHistories(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rapid.Check(struct{ rapid.TB }{t}, func(t *rapid.T) { // a bubble has no Deadline
			s := memstore.New()
			opts := []idem.Option{idem.WithStore(s), idem.WithLease(historyLease), idem.WithRetention(historyRetention)}
			h := &history{
				t: t, far: idem.New(opts...).Group("g"),
				judge:  idem.New(opts...).Group("g"),
				near:   idem.New(append(opts, idem.WithNearCache(2, historyTTL))...).Group("g"),
				tokens: map[string]*past{"a": {}, "b": {}, "c": {}},
			}
			defer func() {
				for _, c := range h.claims {
					c.Abandon()
				}
			}()
			token := rapid.SampledFrom([]string{"a", "b", "c"})
			guard := rapid.Custom(func(t *rapid.T) *idem.Guard {
				if rapid.Bool().Draw(t, "near") {
					return h.near
				}
				return h.far
			})
			for range rapid.IntRange(1, 60).Draw(t, "steps") {
				switch step := rapid.SampledFrom([]string{"begin", "begin", "begin", "begin", "redrive", "end", "end", "end", "stop renewing", "forget", "sleep"}).Draw(t, "step"); step {
				case "begin":
					h.begin(guard.Draw(t, "guard"), token.Draw(t, "token"), 0)
				case "redrive":
					h.begin(guard.Draw(t, "guard"), token.Draw(t, "token"), rapid.IntRange(1, 3).Draw(t, "number"))
				case "forget":
					h.forget(guard.Draw(t, "guard"), token.Draw(t, "token"))
				case "sleep":
					time.Sleep(rapid.SampledFrom([]time.Duration{time.Millisecond, 4 * time.Second, historyLease, historyTTL - 1, historyTTL, historyRetention - historyTTL/2, historyRetention - 1}).Draw(t, "time"))
				default:
					if len(h.claims) == 0 {
						continue
					}
					i := rapid.IntRange(0, len(h.claims)-1).Draw(t, "claim")
					if step == "end" {
						h.end(i, rapid.SampledFrom([]string{"commit", "commit", "commit", "commit with a result", "release", "bury", "abandon"}).Draw(t, "how"))
					} else {
						h.claims[i].StopRenewing()
					}
				}
				for token := range h.tokens {
					h.look(token)
				}
			}
		})
	})
}
