package idem_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store/memstore"
	"github.com/idemq/idemq/internal/storefault"
)

type contextKey struct{}

// A handler's context is one like any other, whatever is asked of it first.
func TestHandlerContext(t *testing.T) {
	deadline := time.Now().Add(time.Hour)
	parent, cancelParent := context.WithDeadline(context.WithValue(t.Context(), contextKey{}, "value"), deadline)
	defer cancelParent()
	for _, first := range []struct {
		name string
		ask  func(ctx context.Context)
	}{
		{"nothing", func(context.Context) {}},
		{"its error", func(ctx context.Context) { _ = ctx.Err() }},
		{"to be waited for", func(ctx context.Context) { _ = ctx.Done() }},
		{"a value", func(ctx context.Context) { _ = ctx.Value(contextKey{}) }},
	} {
		t.Run(first.name, func(t *testing.T) {
			g := idem.New(idem.WithStore(memstore.New())).Group("billing")
			var ran, child context.Context
			err := g.Do(parent, "token", func(ctx context.Context) error {
				first.ask(ctx)
				ran = ctx
				var cancel context.CancelFunc
				child, cancel = context.WithTimeout(ctx, time.Hour)
				t.Cleanup(cancel)
				if c, ok := idem.FromContext(child); !ok || c.Token() != "token" {
					t.Error("its claim is not found")
				}
				if v := ctx.Value(contextKey{}); v != "value" {
					t.Errorf("value %v", v)
				}
				if d, ok := ctx.Deadline(); !ok || !d.Equal(deadline) {
					t.Errorf("deadline %v", d)
				}
				return errors.Join(ctx.Err(), context.Cause(ctx), child.Err())
			})
			if err != nil {
				t.Error(err)
			}
			<-child.Done()
			if ran.Err() == nil || context.Cause(ran) == nil {
				t.Error("it goes on after its claim")
			}
		})
	}
}

// A context of which nothing was asked tells that its lease was lost, and of the end of its
// parent.
func TestHandlerContextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		away := storefault.New(memstore.New())
		g := idem.New(idem.WithStore(away), idem.WithLease(time.Second)).Group("billing")
		parent, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		c, err := g.Begin(parent, "a")
		if err != nil {
			t.Fatal(err)
		}
		ctx, err := c.Start(parent)
		if err != nil {
			t.Fatal(err)
		}
		away.Set(storefault.Away)
		time.Sleep(2 * time.Second)
		if !errors.Is(ctx.Err(), context.Canceled) || !errors.Is(context.Cause(ctx), idem.ErrLeaseLost) {
			t.Errorf("after the lease: %v, because of %v", ctx.Err(), context.Cause(ctx))
		}
		c.Abandon()
		away.Set(storefault.None)
		time.Sleep(2 * time.Second)
		next, err := g.Begin(parent, "a")
		if err != nil {
			t.Fatal(err)
		}
		if ctx, err = next.Start(parent); err != nil {
			t.Fatal(err)
		}
		why := errors.New("why")
		cancel(why)
		if !errors.Is(ctx.Err(), context.Canceled) || !errors.Is(context.Cause(ctx), why) {
			t.Errorf("after its parent: %v, because of %v", ctx.Err(), context.Cause(ctx))
		}
		next.Abandon()
	})
}
