package idemamqp_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/idemq/idemq/consumers"
	idemamqp "github.com/idemq/idemq/consumers/amqp"
	"github.com/idemq/idemq/internal/testenv"
)

// What is done beside messages that are not is acked, and takes none of them along: one that
// is being handled, one that waits for its next try, one whose token is held elsewhere.
func TestAckForManyTakesNothingAlong(t *testing.T) {
	v := setup(t)
	var tokens []string
	for i := range 60 {
		tokens = append(tokens, fmt.Sprint("m", i))
	}
	held, err := v.newGuard().Begin(t.Context(), tokens[50])
	if err != nil {
		t.Fatal(err)
	}
	release := make(chan struct{})
	var j journal
	handle := func(ctx context.Context, d amqp.Delivery) error {
		switch string(d.Body) {
		case tokens[20]:
			<-release
		case tokens[30]:
			return errTest
		}
		return j.handle(ctx, d)
	}
	v.publish(tokens...)
	r := v.run(handle, idemamqp.Concurrency(4), consumers.Backoff(time.Hour, time.Hour))
	testenv.Await(t, "all but three to be acked", func() bool { return v.owed() == 3 })
	close(release)
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	v.wantOwed(2) // 20 was handled
	if err := held.GiveBack(t.Context()); err != nil {
		t.Fatal(err)
	}
	var again journal
	next := v.run(again.handle)
	v.settled()
	if err := next.stop(); err != nil {
		t.Error(err)
	}
	again.want(t, tokens[30], tokens[50])
}
