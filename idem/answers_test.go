package idem_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/memstore"
)

// answering is a driver that answers everything alike.
type answering struct {
	store.Store
	reply store.Reply
}

func (a *answering) Apply(_ context.Context, b *store.Batch) error {
	b.Replies = b.Replies[:0]
	for range b.Ops {
		b.Replies = append(b.Replies, a.reply)
	}
	return nil
}

// A driver's mistake is an error that names it: no panic, and nothing is taken for done.
func TestSenselessAnswers(t *testing.T) {
	for _, reply := range []store.Reply{{}, {Status: 99}, {Status: store.OK}} {
		g := idem.New(idem.WithStore(&answering{memstore.New(), reply})).Group("g")
		for call, ask := range map[string]func() error{
			"Begin":   func() error { _, err := g.Begin(t.Context(), "a"); return err },
			"Spend":   func() error { _, err := g.Spend(t.Context(), "a"); return err },
			"Inspect": func() error { _, err := g.Inspect(t.Context(), "a"); return err },
			"Check":   func() error { _, err := g.Check(t.Context(), "a"); return err },
			"Forget":  func() error { return g.Forget(t.Context(), "a") },
			"Issue":   func() error { return g.Issue(t.Context(), "a") },
		} {
			if reply.Status == store.OK && (call == "Forget" || call == "Issue") {
				continue
			}
			if err := ask(); err == nil || !strings.Contains(err.Error(), "answering") || idem.Done(err) {
				t.Errorf("%s is answered %+v: %v, want an error that names the driver", call, reply, err)
			}
		}
	}
}

// An answer without sense to a renewal, or to a commit in a transaction, does not say that
// somebody took over: the claim is held, as far as its lease goes.
func TestSenselessAnswerIsNoLoss(t *testing.T) {
	for _, reply := range []store.Reply{{}, {Status: 99}} {
		synctest.Test(t, func(t *testing.T) {
			var told []error
			g := idem.New(idem.WithStore(renewing{memstore.New(), reply}), idem.WithLease(txLease), idem.WithObserver(idem.ObserverFunc(func(e idem.Event) {
				if e.Kind == idem.EventRefused {
					told = append(told, e.Err)
				}
			}))).Group("g")
			c := begin(t, g, "a")
			time.Sleep(txLease / 2)
			synctest.Wait()
			if cause := context.Cause(c.Context()); cause != nil {
				t.Errorf("a renewal is answered %+v: %v", reply, cause)
			}
			if len(told) == 0 || !strings.Contains(told[0].Error(), "renewing") {
				t.Errorf("a renewal is answered %+v: told %v, want an error that names the driver", reply, told)
			}
			first := true
			err := c.CommitWith(t.Context(), func(ctx context.Context, s store.Store, b *store.Batch) error {
				err := s.Apply(ctx, b)
				if first {
					first, b.Replies[0] = false, reply
				}
				return err
			})
			if err == nil || errors.Is(err, idem.ErrLeaseLost) || !strings.Contains(err.Error(), "renewing") {
				t.Errorf("a commit is answered %+v: %v, want an error that names the driver", reply, err)
			}
			if err := c.Commit(t.Context()); err != nil {
				t.Errorf("Commit: %v", err)
			}
		})
	}
}

// renewing is a driver that answers renewals like this.
type renewing struct {
	store.Store
	reply store.Reply
}

func (r renewing) Apply(ctx context.Context, b *store.Batch) error {
	err := r.Store.Apply(ctx, b)
	if does(b, store.Renew) {
		b.Replies[0] = r.reply
	}
	return err
}

// A driver's panic, or that of a hook in its client, is a trip that failed: whoever waits for it is
// answered, nothing stays claimed, and observers are told where it came from.
func TestDriverPanics(t *testing.T) {
	for _, whose := range []string{"caller", "guard"} {
		t.Run("on a goroutine of the "+whose, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx := context.Background()
				if whose == "guard" {
					ctx = t.Context()
				}
				var panics atomic.Bool
				told := make(chan error, 10)
				s := watched{memstore.New(), func(context.Context, *store.Batch) error {
					if panics.Load() {
						panic("a hook")
					}
					return nil
				}}
				g := idem.New(idem.WithStore(s), idem.WithObserver(idem.ObserverFunc(func(e idem.Event) {
					if e.Kind == idem.EventStoreDown {
						told <- e.Err
					}
				}))).Group("g")
				failed := func(what string, err error) {
					if err == nil || !strings.Contains(err.Error(), "watched panicked: a hook") || idem.Done(err) {
						t.Errorf("%s: %v, want an error that names the driver", what, err)
					}
				}
				panics.Store(true)
				_, err := g.Begin(ctx, "a")
				failed("Begin", err)
				panics.Store(false)
				c, err := g.Begin(ctx, "a")
				if err != nil {
					t.Fatal(err)
				}
				panics.Store(true)
				failed("Commit", c.Commit(ctx))
				panics.Store(false)
				if err := c.Commit(ctx); err != nil {
					t.Errorf("Commit: %v", err)
				}
				if err := <-told; !strings.Contains(err.Error(), "answers_test.go") {
					t.Errorf("told %v, want where it came from", err)
				}
			})
		})
	}
}

// Who waits for RetryAfter and asks again does not do so without a pause.
func TestInProgressForAWhile(t *testing.T) {
	for _, reply := range []store.Reply{{Status: store.InProgress}, {Status: store.InProgress, RetryAfter: 1}, {Status: store.Lost}} {
		g := idem.New(idem.WithStore(&answering{memstore.New(), reply})).Group("g")
		_, begin := g.Begin(t.Context(), "a")
		for _, err := range []error{begin, g.Forget(t.Context(), "a")} {
			var busy *idem.InProgressError
			if errors.As(err, &busy) && busy.RetryAfter < time.Millisecond || busy == nil && reply.Status == store.InProgress {
				t.Errorf("%+v: %v", reply, err)
			}
		}
	}
}
