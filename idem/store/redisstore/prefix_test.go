package redisstore

import (
	"context"
	"errors"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/idemq/idemq/idem/store"
)

// TestALossIsCountedOnce: calls that were under way together all find the epoch changed.
func TestALossIsCountedOnce(t *testing.T) {
	p := newPrefix("p", 64)
	p.ready = true
	seen, fresh := p.epochs(3)
	if seen != "" || fresh == "" {
		t.Fatalf("at first contact: seen %q, fresh %q", seen, fresh)
	}
	first := fresh
	p.saw(3, seen, fresh)
	p.saw(3, seen, fresh)
	if n, notice := p.losses(); n != 0 || notice != "" {
		t.Fatalf("at first contact: %d, %s", n, notice)
	}
	seen, fresh = p.epochs(3)
	if seen != first || fresh == first || fresh == "" {
		t.Fatalf("afterwards: seen %q, fresh %q", seen, fresh)
	}
	for range 2 {
		p.saw(3, seen, fresh)
		if n, notice := p.losses(); n != 1 || notice == "" || p.ready {
			t.Fatalf("a loss: %d, %q, ready %v", n, notice, p.ready)
		}
	}
	if _, next := p.epochs(3); next == fresh {
		t.Fatal("the next loss would leave the epoch as it is")
	}
}

func TestWaitingForTheDescriptorEndsWithTheContext(t *testing.T) {
	c := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	defer c.Close()
	s := New(c)
	s.known("p").describing <- struct{}{}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := s.prefix(ctx, "p"); !errors.Is(err, store.ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}
