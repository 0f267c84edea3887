package consumertest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/internal/testenv"
)

// MaxBatch is what Batches wants the consumer made with.
const MaxBatch = 20

// Batches is the case of an adapter's HandleBatches: on a queue of one lane, empty at first,
// all messages are handled in calls of up to MaxBatch, and settled; one that fails is handled
// again, alone. publish sends a message with each token, and start runs the consumer until
// the test ends.
func Batches(t *testing.T, publish func(tokens ...string), start func(handle func(ctx context.Context, tokens []string) []error), owed func() int) {
	var tokens []string
	for i := range 200 {
		tokens = append(tokens, fmt.Sprintf("token-%03d", i))
	}
	arrived := make(chan struct{}) // all of them
	var mu sync.Mutex
	var calls [][]string
	failed := false
	start(func(ctx context.Context, called []string) []error {
		select {
		case <-arrived:
		case <-ctx.Done():
			return slices.Repeat([]error{ctx.Err()}, len(called))
		}
		claims, _ := idem.ClaimsFromContext(ctx)
		mu.Lock()
		defer mu.Unlock()
		calls = append(calls, called)
		if len(claims) != len(called) {
			t.Errorf("%d claims for %q", len(claims), called)
			return nil
		}
		errs := make([]error, len(called))
		for i, token := range called {
			if claims[i].Token() != token {
				t.Errorf("the claim of %q is in the place of %q", claims[i].Token(), token)
			}
			if len(called) > 1 && i == 1 && !failed {
				errs[i], failed = errors.New("boom"), true
			}
		}
		return errs
	})
	publish(tokens...)
	close(arrived)
	testenv.Await(t, "all to be settled", func() bool { return owed() == 0 })

	mu.Lock()
	defer mu.Unlock()
	count := map[string]int{}
	for _, called := range calls {
		if len(called) > MaxBatch {
			t.Errorf("%d messages in a call, of %d at most", len(called), MaxBatch)
		}
		for _, token := range called {
			count[token]++
		}
	}
	again := 0
	for _, token := range tokens {
		again += count[token] - 1
	}
	if len(count) != len(tokens) || again != 1 {
		t.Errorf("%d messages handled, %d times again: want %d, and the failed one once", len(count), again, len(tokens))
	}
	if len(calls) > len(tokens)/2 {
		t.Errorf("%d calls for %d messages", len(calls), len(tokens))
	}
}
