package idemnats_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/idemq/idemq/consumers"
	idemnats "github.com/idemq/idemq/consumers/nats"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/internal/testenv"
)

// consume hands messages to a wrapped handler until the test ends.
func (v *env) consume(handle jetstream.MessageHandler) {
	v.t.Helper()
	cc, err := v.source.Consume(handle, jetstream.PullMaxMessages(5))
	if err != nil {
		v.t.Fatal(err)
	}
	v.t.Cleanup(func() {
		cc.Stop()
		<-cc.Closed()
	})
}

func (v *env) wrap(h idemnats.Handler, opts ...idemnats.Option) jetstream.MessageHandler {
	v.t.Helper()
	opts = append([]idemnats.Option{consumers.Backoff(time.Millisecond, 10*time.Millisecond), idemnats.AckWait(shortAckWait)}, opts...)
	w, err := idemnats.Wrap(v.guard.Group("billing"), h, opts...)
	if err != nil {
		v.t.Fatal(err)
	}
	return w
}

// TestWrap: settled as by a Consumer, in a loop of the user's.
func TestWrap(t *testing.T) {
	v := setup(t, ackWait(shortAckWait))
	v.publish("a")
	var j journal
	v.consume(v.wrap(func(_ context.Context, msg jetstream.Msg) error {
		n := j.add("%s", msg.Data())
		if err := msg.Ack(); !errors.Is(err, idemnats.ErrSettledByConsumer) {
			t.Errorf("Ack returned %v", err)
		}
		switch {
		case n == 1:
			work(4 * shortAckWait)
			return errTest
		case string(msg.Data()) == "bad":
			return idem.Permanent(errTest)
		}
		return nil
	}, v.deadLetter()))
	v.settled()
	v.publish("b", "a", "bad")
	v.settled()
	v.wantDeliveries(4)
	j.want(t, "a", "a", "b", "bad")
	if dead := v.deadLetters(); len(dead) != 1 || string(dead[0].Data) != "bad" {
		t.Errorf("dead letters: %v", dead)
	}
}

// TestWrapOnStop: a message that must not be passed over is told of, and left.
func TestWrapOnStop(t *testing.T) {
	v := setup(t, ackWait(shortAckWait))
	v.publish("a")
	told := make(chan error, 100)
	var j journal
	v.consume(v.wrap(func(ctx context.Context, msg jetstream.Msg) error {
		if j.add("%s", msg.Data()) == 1 {
			return idem.Permanent(errTest)
		}
		return nil
	}, idemnats.OnStop(func(err error) { told <- err })))
	if err := <-told; !errors.Is(err, errTest) {
		t.Errorf("OnStop was told %v", err)
	}
	v.settled()
	j.want(t, "a", "a")
}

// TestWrapWithoutOnStop: observers are told why a message comes again.
func TestWrapWithoutOnStop(t *testing.T) {
	v := setup(t, ackWait(shortAckWait))
	v.publish("a")
	var j journal
	v.consume(v.wrap(func(_ context.Context, msg jetstream.Msg) error {
		if j.add("%s", msg.Data()) == 1 {
			return idem.Permanent(errTest)
		}
		return nil
	}))
	v.settled()
	j.want(t, "a", "a")
	told := v.events.of(idem.EventWaiting)
	if len(told) != 1 || !errors.Is(told[0].Err, errTest) || !strings.Contains(told[0].Err.Error(), "sequence 1 of stream ORDERS") || told[0].Wait != shortAckWait || told[0].Group != "billing" {
		t.Errorf("observers were told %+v", told)
	}
}

// TestWrapContext: after its end nothing is started and nothing is settled.
func TestWrapContext(t *testing.T) {
	v := setup(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	told := 0
	var j journal
	w := v.wrap(j.handle, idemnats.WrapContext(ctx), idemnats.OnStop(func(error) { told++ }))
	v.publish("a")
	msg, err := v.source.Next(jetstream.FetchMaxWait(10 * time.Second))
	if err != nil {
		t.Fatal(err)
	}
	w(msg)
	j.want(t)
	if told != 0 || len(v.events.of(idem.EventWaiting)) != 0 {
		t.Error("the end of the context is nothing to be told of")
	}
	if info := v.info(); info.NumAckPending != 1 {
		t.Errorf("%d messages await an ack, want 1", info.NumAckPending)
	}
}

// TestPanic: a panic releases the claim and goes on; the message comes again, and is
// not kept from it by extensions.
func TestPanic(t *testing.T) {
	v := setup(t, ackWait(shortAckWait))
	v.publish("a")
	var j journal
	w := v.wrap(func(ctx context.Context, msg jetstream.Msg) error {
		c, _ := idem.FromContext(ctx)
		if j.add("%s%d", msg.Data(), c.Attempt()) == 1 {
			panic("in the handler")
		}
		return nil
	})
	var mu sync.Mutex
	var panics []any
	v.consume(func(msg jetstream.Msg) {
		defer func() {
			if p := recover(); p != nil {
				mu.Lock()
				defer mu.Unlock()
				panics = append(panics, p)
			}
		}()
		w(msg)
	})
	testenv.Await(t, "the message to come again", func() bool { return j.len() == 2 })
	v.settled()
	j.want(t, "a1", "a2")
	mu.Lock()
	defer mu.Unlock()
	if len(panics) != 1 || panics[0] != "in the handler" {
		t.Errorf("panics %v", panics)
	}
}
