package consumers_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/internal/storefault"
)

var deadLetters = consumers.Broker{DeadLetters: true}

// failing returns a handler that fails the first n times with err.
func failing(n int, err error) handler {
	return func(context.Context, *delivery) error {
		if n--; n >= 0 {
			return err
		}
		return nil
	}
}

func TestSettlement(t *testing.T) {
	for _, tc := range []struct {
		name    string
		shape   consumers.Broker
		opts    []consumers.Option
		publish []string
		handler handler
		want    []string
		handled int
		letters []string // reasons
		spent   int      // of the first token's record, after all
		state   store.State
		stops   string // what Run's error must say
	}{
		{name: "handled now", publish: []string{"a"}, handler: fine, want: []string{"ack 1"}, handled: 1, state: store.Done},
		{name: "duplicate in one window", publish: []string{"a", "a", "a"}, handler: fine, want: []string{"ack 1", "ack 2", "ack 3"}, handled: 1, state: store.Done},
		{name: "error, then none", publish: []string{"a"}, handler: failing(2, errBoom), want: []string{"ack 1"}, handled: 3, state: store.Done},
		{name: "order is kept while a message fails", publish: []string{"a", "b"}, handler: failing(3, errBoom), want: []string{"ack 1", "ack 2"}, handled: 5, state: store.Done},
		{
			name: "budget spent", shape: deadLetters, opts: []consumers.Option{consumers.Budget(3)}, publish: []string{"a"}, handler: failing(99, errBoom),
			want: []string{"term 1"}, handled: 3, letters: []string{consumers.ReasonBudget}, state: store.Dead,
		},
		{
			name: "permanent", shape: deadLetters, publish: []string{"a", "b"}, handler: failing(1, idem.Permanent(errBoom)),
			want: []string{"ack 2", "term 1"}, handled: 2, letters: []string{consumers.ReasonPermanent}, state: store.Dead,
		},
		{
			name: "duplicate of a dead one", shape: deadLetters, publish: []string{"a", "a"}, handler: failing(1, idem.Permanent(errBoom)),
			want: []string{"term 1", "term 2"}, handled: 1, letters: []string{consumers.ReasonPermanent}, state: store.Dead,
		},
		{
			name: "retry after spends no budget", shape: deadLetters, opts: []consumers.Option{consumers.Budget(2)}, publish: []string{"a"},
			handler: failing(20, idem.RetryAfter(errBoom, time.Minute)), want: []string{"ack 1"}, handled: 21, state: store.Done,
		},
		{
			name: "permanent, no destination", publish: []string{"a", "b"}, handler: failing(1, idem.Permanent(errBoom)),
			want: []string{"redeliver 1", "redeliver 2"}, handled: 1, state: store.Released, spent: 0, stops: "message 1",
		},
		{
			name: "budget spent, no destination", opts: []consumers.Option{consumers.Budget(2)}, publish: []string{"a"}, handler: failing(99, errBoom),
			want: []string{"redeliver 1"}, handled: 2, state: store.Released, spent: 1, stops: "no dead-letter destination",
		},
		{
			name: "error where order does not matter", shape: consumers.Broker{Redelivers: true}, publish: []string{"a"}, handler: failing(1, errBoom),
			want: []string{"ack 1", "redeliver 1"}, handled: 2, state: store.Done,
		},
		{
			name: "at most once", shape: deadLetters, opts: []consumers.Option{consumers.AtMostOnce()}, publish: []string{"a", "b", "a", "b"}, handler: failing(1, errBoom),
			want: []string{"ack 2", "ack 4", "term 1", "term 3"}, handled: 2, letters: []string{consumers.ReasonFailed}, state: store.Dead,
		},
		{
			name: "at most once, no destination", opts: []consumers.Option{consumers.AtMostOnce()}, publish: []string{"a", "a"}, handler: failing(1, errBoom),
			want: []string{"ack 1", "ack 2"}, handled: 1, state: store.Done,
		},
		{
			name: "shadow", opts: []consumers.Option{consumers.Shadow()}, publish: []string{"a", "a"}, handler: fine,
			want: []string{"ack 1", "ack 2"}, handled: 2, state: store.Done,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, tc.shape)
				r.b.publish(tc.publish...)
				stop := r.start(tc.handler, tc.opts...)
				time.Sleep(time.Hour)
				err := stop()
				if tc.stops == "" && err != nil || tc.stops != "" && (err == nil || !strings.Contains(err.Error(), tc.stops)) {
					t.Errorf("Run: %v, want %q", err, tc.stops)
				}
				got := r.b.settlements()
				slices.Sort(got) // handlers are ordered, settlements are not
				if !slices.Equal(got, tc.want) {
					t.Errorf("settlements %q, want %q", got, tc.want)
				}
				if n := len(r.seen()); n != tc.handled {
					t.Errorf("handled %d times, want %d", n, tc.handled)
				}
				var letters []string
				for _, l := range r.b.posted() {
					letters = append(letters, l.Reason)
				}
				if !slices.Equal(letters, tc.letters) {
					t.Errorf("letters %q, want %q", letters, tc.letters)
				}
				rec, err := r.guard.Inspect(t.Context(), "a")
				if err != nil || rec.State != tc.state || rec.Spent != tc.spent {
					t.Errorf("record %+v, %v, want %v and %d spent", rec, err, tc.state, tc.spent)
				}
				time.Sleep(time.Minute) // redeliveries that nobody fetches
			})
		})
	}
}

// Messages whose token says nothing, or something wrong, are dead-lettered, and stop
// the consumer where there is no destination. Their neighbours are handled.
func TestRefused(t *testing.T) {
	type m = message
	for _, tc := range []struct {
		name   string
		m      *message
		opts   []consumers.Option
		reason string
	}{
		{"empty header", &m{headers: map[string][]string{idem.Header: {""}}}, nil, consumers.ReasonToken},
		{"256 bytes", &m{headers: map[string][]string{idem.Header: {strings.Repeat("x", 256)}}}, nil, consumers.ReasonToken},
		{"two tokens", &m{headers: map[string][]string{idem.Header: {"a", "b"}}}, nil, consumers.ReasonToken},
		{"no token at all", &m{anonymous: true}, nil, consumers.ReasonToken},
		{"an extractor's error", &m{}, []consumers.Option{consumers.TokenFrom(func(x consumers.Message) (string, error) {
			if len(x.Header("ok")) == 0 {
				return "", errBoom
			}
			return "", nil
		})}, consumers.ReasonToken},
		{"another payload", &m{headers: map[string][]string{idem.Header: {"known"}}, body: []byte("20 EUR")}, []consumers.Option{consumers.Fingerprints()}, consumers.ReasonConflict},
	} {
		for _, destination := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, destination %v", tc.name, destination), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					r := newRig(t, consumers.Broker{DeadLetters: destination})
					c, err := r.guard.Begin(t.Context(), "known", idem.WithPayload([]byte("10 EUR")))
					if err != nil || c.Commit(t.Context()) != nil {
						t.Fatal("setup")
					}
					bad := *tc.m
					r.b.add(&bad)
					r.b.add(&message{headers: map[string][]string{idem.Header: {"fine"}, "ok": {"1"}}})
					stop := r.start(fine, tc.opts...)
					time.Sleep(time.Minute)
					err = stop()
					if destination {
						if err != nil {
							t.Errorf("Run: %v", err)
						}
						letters := r.b.posted()
						if len(letters) != 1 || letters[0].Reason != tc.reason || letters[0].m.id != 1 {
							t.Errorf("letters %+v, want one for %q", letters, tc.reason)
						}
						r.wantSettled("term 1", "ack 2")
						r.wantHandled("fine")
					} else {
						if err == nil || !strings.Contains(err.Error(), "message 1") {
							t.Errorf("Run: %v, want an error that names message 1", err)
						}
						if slices.Contains(r.b.settlements(), "ack 1") || slices.Contains(r.b.settlements(), "term 1") {
							t.Errorf("settlements %q: the message was skipped", r.b.settlements())
						}
					}
					time.Sleep(time.Minute)
				})
			})
		}
	}
}

func TestUnknownToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, deadLetters, idem.WithIssuedOnly())
		known, err := r.guard.Token(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		r.b.publish("nobody issued this", known)
		stop := r.start(fine)
		time.Sleep(time.Second)
		r.mustStop(stop)
		r.wantSettled("term 1", "ack 2")
		if l := r.b.posted(); len(l) != 1 || l[0].Reason != consumers.ReasonUnknown {
			t.Errorf("letters %+v", l)
		}
	})
}

// A message without a header is known by what else names it, in a fixed order.
func TestTokenLookup(t *testing.T) {
	headers := func(kv ...string) map[string][]string {
		h := map[string][]string{}
		for i := 0; i < len(kv); i += 2 {
			h[kv[i]] = append(h[kv[i]], kv[i+1])
		}
		return h
	}
	for _, tc := range []struct {
		name string
		m    *message
		opts []consumers.Option
		want string
	}{
		{"header, any case", &message{headers: headers("iDEMPOTENCY-kEY", "a")}, nil, "a"},
		{"header before CloudEvents", &message{headers: headers(idem.Header, "a", "ce-id", "1", "ce-source", "/x")}, nil, "a"},
		{"the same value twice", &message{headers: map[string][]string{idem.Header: {"a", "a"}}}, nil, "a"},
		{"any bytes", &message{headers: headers(idem.Header, "\x00\n\xff{}")}, nil, "\x00\n\xff{}"},
		{"CloudEvent on NATS", &message{headers: headers("ce-id", "1", "ce-source", "/x")}, nil, idem.TokenFor("/x", "1")},
		{"CloudEvent on Kafka", &message{headers: headers("ce_id", "1", "ce_source", "/x")}, nil, idem.TokenFor("/x", "1")},
		{"message id, not trusted", &message{mid: "m1"}, nil, idem.TokenFor("at", "queue", "1")},
		{"message id, trusted", &message{mid: "m1"}, []consumers.Option{consumers.TrustMessageID()}, idem.TokenFor("id", "m1")},
		{"coordinates", &message{}, nil, idem.TokenFor("at", "queue", "1")},
		{
			"the payload first", &message{headers: headers(idem.Header, "a"), body: []byte("b")},
			[]consumers.Option{consumers.TokenFrom(func(m consumers.Message) (string, error) { return string(m.Body()), nil })},
			"b",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, consumers.Broker{})
				r.b.add(tc.m)
				stop := r.start(fine, tc.opts...)
				time.Sleep(time.Second)
				r.mustStop(stop)
				r.wantHandled(tc.want)
			})
		})
	}
}

func TestRedrive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, deadLetters)
		broken := true
		stop := r.start(func(context.Context, *delivery) error {
			if broken {
				return idem.Permanent(errBoom)
			}
			return nil
		})
		r.b.publish("a")
		time.Sleep(time.Minute)
		r.b.publish("a") // a stray redelivery
		time.Sleep(time.Minute)
		r.b.moveBack(r.b.posted()[0]) // and it fails again
		time.Sleep(time.Minute)
		if l := r.b.posted(); len(l) != 2 || l[0].Redrive != 1 || l[1].Redrive != 2 || l[1].Attempt != 2 {
			t.Fatalf("letters %+v, want two with redrive 1 and 2", l)
		}
		broken = false
		r.b.moveBack(r.b.posted()[0]) // the old copy again: stray
		time.Sleep(time.Minute)
		r.b.moveBack(r.b.posted()[1])
		time.Sleep(time.Minute)
		r.b.moveBack(r.b.posted()[1])
		time.Sleep(time.Minute)
		r.mustStop(stop)
		r.wantSettled("term 1", "term 2", "term 3", "term 4", "ack 5", "ack 6")
		r.wantHandled("a", "a", "a")
	})
}

// All in one window: the original fails, a stray redelivery of it is dropped, and the
// copy that was moved back is not taken for another stray one.
func TestRedriveInOneWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{DeadLetters: true, MaxHeld: 10})
		r.b.publish("a", "a")
		r.b.add(&message{headers: map[string][]string{idem.Header: {"a"}, idem.RedriveHeader: {"1"}}})
		stop := r.start(failing(1, idem.Permanent(errBoom)), consumers.WorkAhead(5))
		time.Sleep(time.Minute)
		r.mustStop(stop)
		r.wantSettled("term 1", "term 2", "ack 3")
		r.wantHandled("a", "a")
	})
}

// The copy's redrive number comes from the record, not from the delivery at hand:
// original and copy can both be about.
func TestRedriveNumberIsTheRecords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{DeadLetters: true, Redelivers: true})
		r.b.add(&message{headers: map[string][]string{idem.Header: {"a"}, idem.RedriveHeader: {"4"}}})
		stop := r.start(func(_ context.Context, d *delivery) error {
			if d.id == 1 {
				return idem.RetryAfter(errBoom, time.Minute)
			}
			return idem.Permanent(errBoom)
		})
		time.Sleep(time.Second)
		r.b.publish("a")
		time.Sleep(time.Second)
		r.mustStop(stop)
		if l := r.b.posted(); len(l) != 1 || l[0].m.id != 2 || l[0].Redrive != 5 {
			t.Errorf("letters %+v, want one with redrive 5", l)
		}
		time.Sleep(time.Hour)
	})
}

// Dead-lettering: confirmed, then recorded, then settled. Until it is confirmed the
// message is held.
func TestDeadLetterDestinationAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, deadLetters)
		r.b.dlqErr = errors.New("no such exchange")
		r.b.publish("a", "b")
		stop := r.start(failing(1, idem.Permanent(errBoom)))
		time.Sleep(10 * time.Minute)
		r.wantSettled()
		if rec, _ := r.guard.Inspect(t.Context(), "a"); rec.State != store.Running {
			t.Errorf("record %+v: nothing was handed over yet", rec)
		}
		if n := r.count(idem.EventWaiting); n < 10 || n > 60 {
			t.Errorf("told %d times in ten minutes", n)
		}
		r.b.mu.Lock()
		r.b.dlqErr = nil
		r.b.mu.Unlock()
		time.Sleep(time.Minute)
		r.mustStop(stop)
		r.wantSettled("term 1", "ack 2")
		r.wantHandled("a", "b")
	})
}

// Somebody else took over while the copy could not be handed over: it is not recorded
// as dead, and the token is asked for again.
func TestBuryRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, deadLetters)
		r.b.dlqErr = errors.New("no such exchange")
		r.b.publish("a")
		stop := r.start(failing(9, idem.Permanent(errBoom)))
		time.Sleep(time.Second)
		r.store.Set(storefault.Away)
		time.Sleep(2 * lease)
		c, err := idem.New(idem.WithStore(r.store.Store)).Group("billing").Begin(t.Context(), "a")
		if err != nil || c.Commit(t.Context()) != nil {
			t.Fatal(err)
		}
		r.store.Set(storefault.None)
		r.b.mu.Lock()
		r.b.dlqErr = nil
		r.b.mu.Unlock()
		time.Sleep(time.Minute)
		r.mustStop(stop)
		r.wantSettled("ack 1")
		r.wantHandled("a")
		if rec, _ := r.guard.Inspect(t.Context(), "a"); rec.State != store.Done {
			t.Errorf("record %+v", rec)
		}
	})
}

func TestStale(t *testing.T) {
	for _, drop := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, deadLetters, idem.WithRetention(time.Hour))
			var opts []consumers.Option
			if drop {
				opts = append(opts, consumers.DeadLetterStale())
			}
			r.b.add(&message{at: time.Now().Add(-2 * time.Hour)})
			r.b.add(&message{at: time.Now().Add(-time.Minute)})
			r.b.add(&message{})
			stop := r.start(fine, opts...)
			time.Sleep(time.Second)
			r.mustStop(stop)
			if n := r.count(idem.EventStale); n != 1 {
				t.Errorf("%d stale messages counted, want 1", n)
			}
			if drop {
				r.wantSettled("term 1", "ack 2", "ack 3")
			} else {
				r.wantSettled("ack 1", "ack 2", "ack 3")
			}
		})
	}
}

// The last delivery that the broker will make is not started: a death in the handler
// would lose the message.
func TestFinalDelivery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{DeadLetters: true, FewDeliveries: true})
		r.b.publish("done before")
		stop := r.start(fine)
		time.Sleep(time.Second)
		r.b.add(&message{headers: map[string][]string{idem.Header: {"done before"}}, final: true})
		r.b.add(&message{headers: map[string][]string{idem.Header: {"new"}}, final: true})
		time.Sleep(time.Second)
		r.mustStop(stop)
		r.wantSettled("ack 1", "ack 2", "term 3")
		r.wantHandled("done before")
		if l := r.b.posted(); len(l) != 1 || l[0].Reason != consumers.ReasonFinal {
			t.Errorf("letters %+v", l)
		}
	})
}

// An ack that fails costs a duplicate, which is dropped.
func TestFailedAck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{})
		r.b.ackErr = errors.New("connection closed")
		r.b.publish("a")
		stop := r.start(fine)
		time.Sleep(time.Second)
		r.b.mu.Lock()
		r.b.ackErr = nil
		r.b.mu.Unlock()
		r.b.publish("a")
		time.Sleep(time.Second)
		r.mustStop(stop)
		r.wantSettled("ack 2")
		r.wantHandled("a")
		if n := r.count(idem.EventSettleFailed); n != 1 {
			t.Errorf("%d failed settlements reported", n)
		}
	})
}

func TestExtension(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, consumers.Broker{ExtendEvery: time.Second})
		r.b.publish("a", "b")
		stop := r.start(func(context.Context, *delivery) error { time.Sleep(100 * time.Second); return nil })
		time.Sleep(100*time.Second + 500*time.Millisecond)
		r.b.mu.Lock()
		if n := r.b.extends; n < 198 || n > 201 {
			t.Errorf("%d extensions of two messages in 100 s, want one a second each, the waiting one included", n)
		}
		r.b.mu.Unlock()
		time.Sleep(200 * time.Second)
		r.b.mu.Lock()
		n := r.b.extends
		r.b.mu.Unlock()
		time.Sleep(time.Minute)
		r.b.mu.Lock()
		if r.b.extends != n {
			t.Error("settled messages are extended")
		}
		r.b.mu.Unlock()
		r.mustStop(stop)
	})
}

func TestHandleOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, deadLetters)
		e := r.engine(r.guard)
		m := &message{id: 1, headers: map[string][]string{idem.Header: {"a"}}}
		one := func(ctx context.Context, h handler) error {
			return e.Handle(ctx, &delivery{message: m, b: r.b, h: h})
		}
		if err := one(t.Context(), failing(2, errBoom)); err != nil {
			t.Error(err)
		}
		if err := one(t.Context(), failing(9, errBoom)); err != nil {
			t.Error(err)
		}
		r.wantSettled("ack 1", "ack 1")
		m = &message{id: 2, headers: map[string][]string{idem.Header: {"b"}}}
		r.store.Set(storefault.Away)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := one(ctx, fine); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("store away: %v", err)
		}
		r.wantSettled("ack 1", "ack 1")
		time.Sleep(time.Minute)
	})
}

// A message that Handle did not settle is never reported as handled, whatever held it
// up until the end.
func TestHandleOneThatCannotBeDeadLettered(t *testing.T) {
	for _, token := range []string{"", "fine"} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, deadLetters)
			r.b.dlqErr = errBoom
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			m := &message{id: 1, headers: map[string][]string{idem.Header: {token}}}
			err := r.engine(r.guard).Handle(ctx, &delivery{message: m, b: r.b, h: failing(9, idem.Permanent(errBoom))})
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("token %q: Handle returned %v", token, err)
			}
			r.wantSettled()
			time.Sleep(time.Minute)
		})
	}
}

func TestOptionsOfAConsumer(t *testing.T) {
	type mine struct{ n int }
	type other struct{}
	own := consumers.NewOption("Own", func(c *mine) { c.n = 7 })
	foreign := consumers.NewOption("DeadLetter(exchange)", func(*other) {})
	var c mine
	if _, err := consumers.Configure(&c, []consumers.Option{own, consumers.Budget(3), {}}); err != nil || c.n != 7 {
		t.Errorf("%v, %+v", err, c)
	}
	_, err := consumers.Configure(&c, []consumers.Option{
		foreign, consumers.Budget(0), consumers.Backoff(time.Second, time.Millisecond), consumers.WorkAhead(-1),
		consumers.HandlerTimeout(-1), consumers.DrainTimeout(0), consumers.FailOpen(0), consumers.TokenFrom(nil),
	})
	for _, want := range []string{"DeadLetter(exchange)", "Budget", "Backoff", "WorkAhead", "HandlerTimeout", "DrainTimeout", "FailOpen", "TokenFrom"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not name %s: %v", want, err)
		}
	}
	if _, err := consumers.Configure(&c, []consumers.Option{consumers.AtMostOnce(), consumers.Shadow()}); err == nil {
		t.Error("at-most-once with shadow mode is accepted")
	}
}

func TestEngineNeedsAGroupAndAStore(t *testing.T) {
	r := newRig(t, consumers.Broker{})
	if _, err := consumers.New(r.guard.Group(""), consumers.Broker{}, consumers.Policy{}); !errors.Is(err, idem.ErrNoGroup) {
		t.Errorf("no group: %v", err)
	}
	if _, err := consumers.New(idem.New().Group("g"), consumers.Broker{}, consumers.Policy{}); !errors.Is(err, idem.ErrRedisNotEnabled) {
		t.Errorf("no store: %v", err)
	}
	if _, err := consumers.New(idem.New(idem.WithLease(-1)).Group("g"), consumers.Broker{}, consumers.Policy{}); err == nil {
		t.Error("a guard with faulty options is accepted")
	}
	if _, err := consumers.New(nil, consumers.Broker{}, consumers.Policy{}); err == nil {
		t.Error("no guard is accepted")
	}
}
