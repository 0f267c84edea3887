package idemnats_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/internal/testenv"
)

// TestRecreated: the stream and its consumer are deleted and created anew while old
// messages are in hand, whose acks bear the numbers of new messages. Run notices at the
// first new message, and ends; acks sent before that may have done harm.
// The question whether it is a new one gets no answer at first.
func TestRecreated(t *testing.T) {
	v := setup(t)
	var j journal
	source1 := &forgetful{Consumer: v.source}
	v.source = source1
	gate := make(chan struct{})
	var first atomic.Bool
	c := v.consumer(func(ctx context.Context, m jetstream.Msg) error {
		if first.CompareAndSwap(false, true) {
			<-gate
		}
		work(20 * time.Millisecond)
		return j.handle(ctx, m)
	}, consumers.WorkAhead(8))
	done := make(chan error, 1)
	go func() { done <- c.Run(v.ctx()) }()
	for i := range 20 {
		v.publish(fmt.Sprint("old", i))
	}
	testenv.Await(t, "the first is in its handler, the window full", func() bool { return first.Load() && v.info().NumAckPending >= 9 })
	cc := v.info().Config
	if err := v.js.DeleteStream(v.ctx(), "ORDERS"); err != nil {
		t.Fatal(err)
	}
	v.stream("ORDERS", "orders.>")
	if _, err := v.js.CreateConsumer(v.ctx(), "ORDERS", cc); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		v.publish(fmt.Sprint("new", i))
	}
	source1.fail.Store(true)
	close(gate)
	if err := <-done; err == nil || !strings.Contains(err.Error(), "deleted") {
		t.Errorf("Run: %v, want an error that says so", err)
	}
}

// TestOversizedLetter: a message whose copy cannot be published stops Run, which names
// it; nothing is skipped.
func TestOversizedLetter(t *testing.T) {
	v := setup(t)
	msg := nats.NewMsg("orders.big")
	msg.Header[idem.Header] = []string{""}
	msg.Data = make([]byte, 1<<20-100)
	v.send(msg)
	var j journal
	err := v.consumer(j.handle, v.deadLetter()).Run(v.ctx())
	if !errors.Is(err, consumers.ErrUndeliverable) || !strings.Contains(err.Error(), "sequence 1 ") {
		t.Errorf("Run: %v", err)
	}
	if n := v.info().NumPending + uint64(v.info().NumAckPending); n != 1 {
		t.Errorf("the server owes %d messages, want the one", n)
	}
}

// TestStatusMessages: empty messages that nats.go takes for the server's own cost time,
// and do not stop the others.
func TestStatusMessages(t *testing.T) {
	v := setup(t, ackWait(5*time.Second))
	for range 30 {
		msg := nats.NewMsg("orders.odd")
		msg.Header.Set("Status", "404")
		v.send(msg)
	}
	want := []string{"a", "b", "c", "d", "e"}
	v.publish(want...)
	var j journal
	v.run(j.handle)
	testenv.Await(t, "the others are handled", func() bool { return j.len() == len(want) })
	waits := v.events.of(idem.EventWaiting)
	if len(waits) == 0 || !strings.Contains(waits[0].Err.Error(), "Status header") {
		t.Errorf("nobody is told what to look for: %+v", waits)
	}
}

// forgetful is a source that gives no answer once.
type forgetful struct {
	jetstream.Consumer
	fail atomic.Bool
}

func (f *forgetful) Info(ctx context.Context) (*jetstream.ConsumerInfo, error) {
	if f.fail.CompareAndSwap(true, false) {
		return nil, context.DeadlineExceeded
	}
	return f.Consumer.Info(ctx)
}

// TestDeletedWithAPullOut: the server says at once that the stream is gone; what is in
// hand is not settled any more, for its number is another message's soon.
func TestDeletedWithAPullOut(t *testing.T) {
	v := setup(t)
	var j journal
	gate := make(chan struct{})
	var started atomic.Bool
	c := v.consumer(func(ctx context.Context, m jetstream.Msg) error {
		started.Store(true)
		<-gate
		return j.handle(ctx, m)
	})
	done := make(chan error, 1)
	go func() { done <- c.Run(v.ctx()) }()
	v.publish("old")
	testenv.Await(t, "it is in its handler, a pull is out", func() bool { return started.Load() && v.info().NumWaiting >= 1 })
	cc := v.info().Config
	if err := v.js.DeleteStream(v.ctx(), "ORDERS"); err != nil {
		t.Fatal(err)
	}
	noticed := time.Now()
	testenv.Await(t, "Run has had time to notice", func() bool { return time.Since(noticed) > time.Second })
	v.stream("ORDERS", "orders.>")
	source, err := v.js.CreateConsumer(v.ctx(), "ORDERS", cc)
	if err != nil {
		t.Fatal(err)
	}
	v.publish("new")
	batch, err := source.Fetch(1, jetstream.FetchMaxWait(10*time.Second)) // another process has it in hand
	if err != nil {
		t.Fatal(err)
	}
	if m := <-batch.Messages(); m == nil {
		t.Fatal("the new message did not come")
	}
	close(gate)
	if err := <-done; err == nil || !strings.Contains(err.Error(), "deleted") {
		t.Errorf("Run: %v", err)
	}
	ended := time.Now()
	testenv.Await(t, "an ack would have arrived", func() bool { return time.Since(ended) > 500*time.Millisecond })
	info, err := source.Info(v.ctx())
	if err != nil {
		t.Fatal(err)
	}
	if n := info.NumAckPending + int(info.NumPending); n != 1 {
		t.Errorf("the server owes %d messages: the old one's ack reached the new one", n)
	}
}
