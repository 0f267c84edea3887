package natsstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/idemq/idemq/idem/store"
)

// failure says what went wrong while doing what. It wraps store.ErrUnavailable unless
// the server answered and will answer the same again.
func (s *Store) failure(doing string, err error) error {
	if isFinal(err) {
		return fmt.Errorf("natsstore: %s in bucket %q: %w", doing, s.wire.bucket, err)
	}
	return fmt.Errorf("natsstore: %s in bucket %q: %w: %w", doing, s.wire.bucket, store.ErrUnavailable, err)
}

// isFinal tells whether asking again is of no use.
func isFinal(err error) bool {
	var r *refusal
	return errors.As(err, &r) || errors.Is(err, errNoRoom) || errors.Is(err, errTooLarge)
}

// isClosed tells whether the connection is gone for good: a caller that waits for ctx
// to end would wait in vain.
func isClosed(err error) bool {
	return errors.Is(err, nats.ErrConnectionClosed) || errors.Is(err, nats.ErrConnectionDraining)
}

// pause waits before a try, longer each time, and reports whether there is time for
// one.
func pause(ctx context.Context, try int) bool {
	if ctx.Err() != nil {
		return false
	}
	d := time.Millisecond << min(try, 6)
	t := time.NewTimer(d/2 + rand.N(d))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
