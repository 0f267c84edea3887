package redisstore_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/internal/redistest"
	"github.com/idemq/idemq/internal/testenv"
)

// A guard works over TLS with a server whose certificate is verified, and with no server that
// another authority vouches for.
func TestTLS(t *testing.T) {
	srv := redistest.StartTLS(t)
	guard := func(edit func(*redis.Options)) *idem.Guard {
		o := srv.Options()
		edit(o)
		c := redis.NewClient(o)
		t.Cleanup(func() { _ = c.Close() })
		return idem.New(idem.WithRedis(c))
	}
	handled := 0
	handle := func(context.Context) error { handled++; return nil }
	if err := guard(func(*redis.Options) {}).Do(t.Context(), "t", handle); err != nil {
		t.Errorf("over TLS: %v", err)
	}
	err := guard(func(o *redis.Options) {
		o.MaxRetries = -1
		o.TLSConfig = o.TLSConfig.Clone()
		o.TLSConfig.RootCAs = testenv.NewAuthority(t).Trusting().RootCAs
	}).Do(t.Context(), "t2", handle)
	if !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a server that is not trusted: got %v, want store.ErrUnavailable, about its certificate", err)
	}
	if handled != 1 {
		t.Errorf("%d messages were handled, want 1", handled)
	}
}
