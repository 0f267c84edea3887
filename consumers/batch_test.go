package consumers_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/internal/storefault"
)

// calls is a handler of several messages, and what it was called with.
type calls struct {
	t      *testing.T
	handle func(ctx context.Context, tokens []string) []error

	mu   sync.Mutex
	made [][]string
}

func (c *calls) all(ctx context.Context, all []consumers.Delivery) []error {
	tokens := make([]string, len(all))
	for i, d := range all {
		tokens[i] = d.Header(idem.Header)[0]
	}
	claims, _ := idem.ClaimsFromContext(ctx)
	held := make([]string, len(claims))
	for i, claim := range claims {
		held[i] = claim.Token()
	}
	if !slices.Equal(held, tokens) {
		c.t.Errorf("the context has the claims of %q, in a call for %q", held, tokens)
	}
	c.mu.Lock()
	c.made = append(c.made, tokens)
	c.mu.Unlock()
	return c.handle(ctx, tokens)
}

func (c *calls) seen() [][]string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.made)
}

// newBatchRig is a consumer whose handler takes up to most messages.
func newBatchRig(t *testing.T, most int, handle func(ctx context.Context, tokens []string) []error) (*rig, *calls) {
	c := &calls{t: t, handle: handle}
	return newRig(t, consumers.Broker{HandleAll: c.all, MaxBatch: most, DeadLetters: true}, idem.WithLease(time.Hour)), c
}

func alone(context.Context, *delivery) error { panic("the handler of one message was called") }

// What is ready goes into one call, in order, with few trips for all of it: one for the
// completions, and one or two for the claims, as messages arrive.
func TestBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, c := newBatchRig(t, 100, func(context.Context, []string) []error { time.Sleep(10 * time.Millisecond); return nil })
		r.store.Delay(time.Millisecond)
		want := tokens(1000)
		r.b.publish(want...)
		stop := r.start(alone)
		time.Sleep(10 * time.Second)
		trips := r.store.Trips()
		r.mustStop(stop)
		made := c.seen()
		if got := slices.Concat(made...); !slices.Equal(got, want) {
			t.Errorf("handled %d of 1000, or not in order", len(got))
		}
		if len(made) > 25 || trips > 4*len(made) {
			t.Errorf("%d calls and %d trips", len(made), trips)
		}
		for _, tokens := range made {
			if len(tokens) > 100 {
				t.Errorf("%d messages in a call", len(tokens))
			}
		}
		if n := len(r.b.settlements()); n != len(want) {
			t.Errorf("%d settled", n)
		}
	})
}

// What arrives while the handler works is claimed as it comes, though half of a batch is
// claimed already: all of it goes into the next call.
func TestBatchIsFilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, c := newBatchRig(t, 8, func(context.Context, []string) []error { time.Sleep(time.Second); return nil })
		want := tokens(9)
		r.b.publish(want[:1]...)
		stop := r.start(alone)
		time.Sleep(100 * time.Millisecond)
		r.b.publish(want[1:7]...)
		time.Sleep(100 * time.Millisecond)
		r.b.publish(want[7:]...)
		time.Sleep(time.Minute)
		r.mustStop(stop)
		if made := c.seen(); !slices.EqualFunc(made, [][]string{want[:1], want[1:]}, slices.Equal) {
			t.Errorf("calls with %q, want one message and eight", made)
		}
	})
}

// Each message of a batch has an outcome of its own.
func TestBatchOutcomes(t *testing.T) {
	for _, tc := range []struct {
		name    string
		why     string
		answer  func(n int) []error // of the first call with more than one message, of n
		again   []string            // handled alone afterwards, in order
		dead    []string
		counted bool          // against the budget of what is handled again
		after   time.Duration // at least
		text    string
	}{
		{name: "none", why: "nil is all done", answer: func(int) []error { return nil }},
		{name: "all nil", why: "one for each, and no error", answer: func(n int) []error { return make([]error, n) }},
		{
			name: "two fail", why: "those two are tried again, alone, in order; the others are done",
			answer:  func(n int) []error { return placed(n, map[int]error{1: errBoom, 3: errBoom}) },
			again:   []string{"b", "d"},
			counted: true,
		},
		{
			name: "one is not ready", why: "RetryAfter spends no budget in a batch either",
			answer: func(n int) []error { return placed(n, map[int]error{2: idem.RetryAfter(errBoom, time.Second)}) },
			again:  []string{"c"},
			after:  time.Second,
		},
		{
			name: "one can never be handled", why: "a permanent error dead-letters the one, not the batch",
			answer: func(n int) []error { return placed(n, map[int]error{4: idem.Permanent(errBoom)}) },
			dead:   []string{"e"},
		},
		{
			name: "too few errors", why: "whose they are is not known: nothing of it is taken for done",
			answer:  func(int) []error { return []error{nil, nil} },
			again:   []string{"a", "b", "c", "d", "e"},
			counted: true,
			text:    "returned 2 errors for 5 messages",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				together := false
				var at time.Time
				var r *rig
				r, c := newBatchRig(t, 5, func(ctx context.Context, tokens []string) []error {
					claims, _ := idem.ClaimsFromContext(ctx)
					switch {
					case tokens[0] == "first": // the others come while it is handled
						time.Sleep(time.Second)
						return nil
					case !together:
						together, at = true, time.Now()
						return tc.answer(len(tokens))
					case claims[0].Attempt() != 2 || (claims[0].Spent() == 1) != tc.counted:
						t.Errorf("%q again: attempt %d, spent %d, counted %v", tokens, claims[0].Attempt(), claims[0].Spent(), tc.counted)
					}
					if d := time.Since(at); d < tc.after {
						t.Errorf("%q again after %v", tokens, d)
					}
					for _, token := range tc.again[slices.Index(tc.again, tokens[0])+1:] {
						if rec, err := r.guard.Inspect(ctx, token); err != nil || rec.State == store.Running {
							t.Errorf("%q is claimed while %q is tried again: %+v, %v", token, tokens, rec, err)
						}
					}
					return nil
				})
				r.b.publish("first")
				stop := r.start(alone)
				synctest.Wait()
				r.b.publish("a", "b", "c", "d", "e")
				time.Sleep(time.Minute)
				r.mustStop(stop)
				want := [][]string{{"first"}, {"a", "b", "c", "d", "e"}}
				for _, token := range tc.again {
					want = append(want, []string{token})
				}
				if got := c.seen(); !slices.EqualFunc(got, want, slices.Equal) {
					t.Errorf("called with %q, want %q: %s", got, want, tc.why)
				}
				var dead []string
				for _, l := range r.b.posted() {
					dead = append(dead, l.Token)
				}
				if !slices.Equal(dead, tc.dead) {
					t.Errorf("dead letters %q, want %q: %s", dead, tc.dead, tc.why)
				}
				if n := len(r.b.settlements()); n != 6 {
					t.Errorf("%d of 6 settled", n)
				}
				said := slices.ContainsFunc(r.events, func(e idem.Event) bool { return e.Err != nil && strings.Contains(e.Err.Error(), tc.text) })
				if tc.text != "" && !said {
					t.Errorf("no event says %q", tc.text)
				}
			})
		})
	}
}

// placed is errors in their places among n.
func placed(n int, errs map[int]error) []error {
	all := make([]error, n)
	for i, err := range errs {
		all[i] = err
	}
	return all
}

// What is not as most are is handled alone: what it is suspected of is not the others'.
func TestHandledAlone(t *testing.T) {
	for _, tc := range []struct {
		name string
		why  string
		make func(r *rig) *message
	}{
		{"tried before", "its handler may be what ends the process", func(r *rig) *message {
			c, err := r.guard.Begin(r.t.Context(), "odd")
			if err == nil {
				err = c.Release(r.t.Context())
			}
			if err != nil {
				r.t.Error(err)
			}
			return &message{}
		}},
		{"older than the retention", "it is reported, or dead-lettered, before it is handled", func(*rig) *message {
			return &message{at: time.Now().Add(-1000 * time.Hour)}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, c := newBatchRig(t, 10, func(context.Context, []string) []error { time.Sleep(time.Second); return nil })
				odd := tc.make(r)
				odd.headers = map[string][]string{idem.Header: {"odd"}}
				r.b.publish("first")
				stop := r.start(alone)
				synctest.Wait()
				r.b.publish("a", "b")
				r.b.add(odd)
				r.b.publish("c", "d")
				time.Sleep(time.Minute)
				r.mustStop(stop)
				if got, want := c.seen(), [][]string{{"first"}, {"a", "b"}, {"odd"}, {"c", "d"}}; !slices.EqualFunc(got, want, slices.Equal) {
					t.Errorf("called with %q, want %q: %s", got, want, tc.why)
				}
			})
		})
	}
}

// The context of a batch ends as soon as one of its claims is lost. What the handler
// completed all the same is done, and what it gave up is tried again, at no cost.
func TestBatchLosesALease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r *rig
		r, c := newBatchRig(t, 3, func(ctx context.Context, tokens []string) []error {
			claims, _ := idem.ClaimsFromContext(ctx)
			if len(tokens) == 1 {
				if tokens[0] != "first" && claims[0].Spent() != 0 {
					t.Errorf("%q again: spent %d", tokens, claims[0].Spent())
				}
				time.Sleep(time.Second)
				return nil
			}
			r.store.Set(storefault.Away)
			defer r.store.Set(storefault.None)
			select {
			case <-ctx.Done():
			case <-time.After(time.Minute):
				t.Error("the context goes on without its leases")
			}
			if !errors.Is(context.Cause(ctx), idem.ErrLeaseLost) {
				t.Errorf("cause %v", context.Cause(ctx))
			}
			return []error{nil, ctx.Err(), nil}
		})
		r.guard = r.newGuard(idem.WithLease(lease))
		r.b.publish("first")
		stop := r.start(alone)
		synctest.Wait()
		r.b.publish("a", "b", "c")
		time.Sleep(10 * time.Minute)
		r.mustStop(stop)
		if got, want := c.seen(), [][]string{{"first"}, {"a", "b", "c"}, {"b"}}; !slices.EqualFunc(got, want, slices.Equal) {
			t.Errorf("called with %q, want %q", got, want)
		}
		if n := len(r.b.settlements()); n != 4 {
			t.Errorf("%d of 4 settled", n)
		}
	})
}

// A handler that ends its goroutine in a batch spends budget of all that are in it, and
// the consumer stops.
func TestBatchEndsItsGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _ := newBatchRig(t, 3, func(_ context.Context, tokens []string) []error {
			time.Sleep(time.Second)
			if len(tokens) > 1 {
				runtime.Goexit()
			}
			return nil
		})
		r.b.publish("first")
		stop := r.start(alone)
		synctest.Wait()
		r.b.publish("a", "b", "c")
		time.Sleep(5 * time.Second)
		if err := stop(); err == nil || !strings.Contains(err.Error(), "panicked, or ended its goroutine") {
			t.Errorf("Run: %v", err)
		}
		for _, token := range []string{"a", "b", "c"} {
			if rec, err := r.guard.Inspect(t.Context(), token); err != nil || rec.State != store.Released || rec.Spent != 1 {
				t.Errorf("%s: %+v, %v: want it released and counted", token, rec, err)
			}
		}
		time.Sleep(time.Minute)
	})
}

// A token whose processes died is handled with nothing beside it, also where others come in
// batches.
func TestBatchesAndSolitude(t *testing.T) {
	for _, workers := range []int{1, 4} {
		t.Run(fmt.Sprint(workers, " workers"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &calls{t: t}
				r := newRig(t, consumers.Broker{HandleAll: c.all, MaxBatch: 10, Workers: workers, DeadLetters: true})
				r.die("poison", 2)
				innocent := tokens(60)
				fails := map[string]bool{innocent[5]: true, innocent[6]: true, innocent[31]: true}
				c.handle = func(ctx context.Context, all []string) []error {
					time.Sleep(20 * time.Millisecond)
					if slices.Contains(all, "poison") {
						for _, other := range innocent {
							if rec, err := r.guard.Inspect(ctx, other); err != nil || rec.State == store.Running {
								t.Errorf("%s is claimed beside the poison: %+v, %v", other, rec, err)
							}
						}
					}
					errs := make([]error, len(all))
					r.mu.Lock()
					defer r.mu.Unlock()
					for i, token := range all {
						if fails[token] {
							errs[i], fails[token] = errBoom, false
						}
					}
					return errs
				}
				r.b.publish(innocent[:30]...)
				r.b.publish("poison")
				r.b.publish(innocent[30:]...)
				stop := r.start(alone)
				time.Sleep(10 * time.Minute)
				r.mustStop(stop)
				if n := len(r.b.settlements()); n != 61 {
					t.Errorf("%d of 61 settled", n)
				}
				if n := len(slices.Concat(c.seen()...)); n != 64 {
					t.Errorf("%d starts of 61 messages, three of which failed once", n)
				}
			})
		})
	}
}

// What a handler of several sends on is stamped with the claim of the one that it comes of.
func TestStampInABatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _ := newBatchRig(t, 2, func(ctx context.Context, all []string) []error {
			if _, err := consumers.TokenToStamp(ctx, idem.New(), nil); err == nil || !strings.Contains(err.Error(), "ClaimsFromContext") {
				t.Errorf("stamp: %v", err)
			}
			if _, err := consumers.TokenToStampAs(ctx, &all, "invoice"); err == nil || !strings.Contains(err.Error(), "ClaimsFromContext") {
				t.Errorf("stamp as: %v", err)
			}
			claims, _ := idem.ClaimsFromContext(ctx)
			made := map[string]bool{}
			for i, claim := range claims {
				token, err := consumers.TokenToStampAs(claim.Context(), &all[i], "invoice")
				if err != nil || token != claim.Derive("invoice") {
					t.Errorf("stamp as, with the claim's context: %q, %v", token, err)
				}
				made[token] = true
			}
			if len(made) != len(all) {
				t.Errorf("%d tokens for %d messages", len(made), len(all))
			}
			time.Sleep(time.Second)
			return nil
		})
		r.b.publish("a", "b", "c")
		stop := r.start(alone)
		time.Sleep(time.Minute)
		r.mustStop(stop)
		if n := len(r.b.settlements()); n != 3 {
			t.Errorf("%d of 3 settled", n)
		}
	})
}

// While a message of a batch waits for the dead-letter destination, another needs solitude:
// neither that one nor the rest is held up by the claims of others that failed in the batch.
func TestBatchThatWaitsWithALetterHoldsUpNobody(t *testing.T) {
	for _, second := range []error{errBoom, idem.Permanent(errBoom)} {
		synctest.Test(t, func(t *testing.T) {
			c := &calls{t: t}
			r := newRig(t, consumers.Broker{HandleAll: c.all, MaxBatch: 2, Workers: 2, DeadLetters: true})
			r.die("poison", 2)
			r.b.dlqErr = errBoom
			c.handle = func(_ context.Context, tokens []string) []error {
				time.Sleep(time.Second)
				if tokens[0] == "bad" {
					return []error{idem.Permanent(errBoom), second}[:len(tokens)]
				}
				return nil
			}
			r.b.publish("busy", "busy too")
			stop := r.start(alone)
			synctest.Wait()
			r.b.publish("bad", "bad too", "poison")
			r.b.publish(tokens(20)...)
			time.Sleep(time.Hour)
			if !slices.ContainsFunc(c.seen(), func(made []string) bool { return slices.Equal(made, []string{"bad", "bad too"}) }) {
				t.Errorf("calls with %q: the two are not in one", c.seen())
			}
			if n := len(r.b.settlements()); n != 23 {
				t.Errorf("second failure %v: %d of 23 settled in an hour, though only one batch cannot be dead-lettered", second, n)
			}
			r.mustStop(stop)
		})
	}
}
