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
	failed time.Time     // when the store was out of reach last; of whoever draws
}

// draw returns the number; zero while what keeps it is out of reach, which is asked again after
// lastRetry. It may be one node of many: claims that bear no instance name are only taken over
// later.
func (i *incarnation) draw(ctx context.Context, o *Options) (uint64, error) {
	if n := i.number.Load(); n != 0 {
		return n, nil
	}
	select {
	case i.turn <- struct{}{}:
		defer func() { <-i.turn }()
	case <-ctx.Done():
		return 0, fmt.Errorf("waiting for an incarnation of %q: %w: %w", o.instance, store.ErrUnavailable, context.Cause(ctx))
	}
	if n := i.number.Load(); n != 0 || time.Since(i.failed) < lastRetry {
		return n, nil
	}
	if end, ok := ctx.Deadline(); ok { // the rest is for what the trip is made for
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(end)/2)
		defer cancel()
	}
	n, err := o.store.Incarnation(ctx, o.prefix, o.instance)
	switch {
	case errors.Is(err, store.ErrUnavailable):
		i.failed = time.Now()
		return 0, nil
	case err != nil:
		return 0, err
	}
	i.number.Store(n)
	return n, nil
}
