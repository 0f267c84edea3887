package idem

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/idemq/idemq/idem/store"
)

// incarnation is this guard's number under its instance name, drawn from the store once.
type incarnation struct {
	number atomic.Uint64 // zero: not drawn yet
	turn   chan struct{} // holds one: whoever draws
	failed atomic.Int64  // when it could not be had last, and was done without, in nanoseconds; zero: never
	told   string        // why it was refused, as last told; of whoever draws
}

// draw returns the number. Where what keeps it is out of reach, or is a part of the store that
// refuses, it returns zero from then on, and has the store asked again beside the trips,
// lastRetry after the last time: claims that bear no instance name are only taken over later.
// The refusal of a whole store is an error, but not to a guard that does without already.
func (i *incarnation) draw(ctx context.Context, o *Options) (uint64, error) {
	if n := i.number.Load(); n != 0 {
		return n, nil
	}
	if i.failed.Load() != 0 {
		i.drawAgain(o)
		return 0, nil
	}
	select {
	case i.turn <- struct{}{}:
		defer func() { <-i.turn }()
	case <-ctx.Done():
		return 0, fmt.Errorf("waiting for an incarnation of %q: %w: %w", o.instance, store.ErrUnavailable, context.Cause(ctx))
	}
	if i.failed.Load() != 0 {
		return 0, nil
	}
	if end, ok := ctx.Deadline(); ok { // the rest is for what the trip is made for
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(end)/2)
		defer cancel()
	}
	return i.ask(ctx, o)
}

// drawAgain asks on a goroutine of its own, unless one does, or did a moment ago.
func (i *incarnation) drawAgain(o *Options) {
	select {
	case i.turn <- struct{}{}:
	default:
		return
	}
	if time.Since(time.Unix(0, i.failed.Load())) < lastRetry {
		<-i.turn
		return
	}
	go func() {
		defer func() { <-i.turn }()
		ctx, cancel := context.WithTimeout(context.Background(), lastRetry)
		defer cancel()
		if _, err := i.ask(ctx, o); err != nil {
			i.without(o, err)
		}
	}()
}

// ask is for whoever has the turn, which may have come after the number. What passes over one
// part of a store is noted, and no error.
func (i *incarnation) ask(ctx context.Context, o *Options) (uint64, error) {
	if n := i.number.Load(); n != 0 {
		return n, nil
	}
	n, err := o.store.Incarnation(ctx, o.prefix, o.instance)
	switch {
	case errors.Is(err, store.ErrUnavailable), errors.Is(err, store.ErrRefused):
		i.without(o, err)
		return 0, nil
	case err != nil:
		return 0, err
	}
	i.number.Store(n)
	return n, nil
}

// without notes that the number is done without, and tells why, once, if that does not pass by
// itself: nothing else shows that the name is not in use.
func (i *incarnation) without(o *Options, err error) {
	i.failed.Store(time.Now().UnixNano())
	if errors.Is(err, store.ErrUnavailable) || err.Error() == i.told {
		return
	}
	i.told = err.Error()
	o.observers.emit(Event{Kind: EventRefused, Err: fmt.Errorf(
		"idem: the store does not number instance %q; until it does, claims bear no name, and a new process waits for the end of their leases: %w", o.instance, err)})
}
