package consumers_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/idem"
)

// AckAll may return nil where all is well; whatever its answer's length, no delivery stays
// held, and a repeat is not waited with.
func TestAckAllOfAnotherLength(t *testing.T) {
	for name, tt := range map[string]struct {
		errs   []error
		failed int
	}{
		"nil":       {nil, 0},
		"too short": {[]error{errBoom}, 1},
		"too long":  {make([]error, 100), 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				acked := 0
				r := newRig(t, consumers.Broker{AckAll: func(_ context.Context, all []consumers.Delivery) []error {
					acked += len(all)
					return tt.errs
				}})
				r.b.publish("a", "a", "b", "c")
				stop := r.start(fine)
				time.Sleep(time.Minute)
				r.mustStop(stop)
				r.wantSettled() // nothing else: none is held, and goes back at the end
				if acked != 4 {
					t.Errorf("%d of 4 messages given to AckAll", acked)
				}
				if n := r.count(idem.EventSettleFailed); (n > 0) != (tt.failed > 0) {
					t.Errorf("%d failed settlements are told", n)
				}
			})
		})
	}
}
