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
	idemnats "github.com/idemq/idemq/consumers/nats"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/internal/testenv"
)

// crash fetches a message and never settles it.
func (v *env) crash() {
	v.t.Helper()
	b, err := v.source.Fetch(1, jetstream.FetchMaxWait(10*time.Second))
	if err != nil {
		v.t.Fatal(err)
	}
	n := 0
	for range b.Messages() {
		n++
	}
	if n != 1 {
		v.t.Fatalf("fetched %d messages: %v", n, b.Error())
	}
}

// TestLastDelivery: under a finite MaxDeliver the last delivery is not handled: if
// its process died, the message would be lost. A duplicate is just acked.
func TestLastDelivery(t *testing.T) {
	v := setup(t, ackWait(shortAckWait), func(cc *jetstream.ConsumerConfig) { cc.MaxDeliver = 2 })
	claim, err := v.guard.Group("ORDERS/billing").Begin(v.ctx(), "done")
	if err != nil {
		t.Fatal(err)
	}
	if err := claim.Commit(v.ctx()); err != nil {
		t.Fatal(err)
	}
	v.publish("a", "done")
	v.crash()
	v.crash()
	v.publish("b")
	var j journal
	v.run(j.handle, v.deadLetter(), idemnats.AllowMaxDeliver())
	testenv.Await(t, "both messages to come again", func() bool { return v.deliveries() == 5 })
	v.settled()
	j.want(t, "b")
	dead := v.deadLetters()
	if len(dead) != 1 || string(dead[0].Data) != "a" || dead[0].Header.Get(consumers.HeaderReason) != consumers.ReasonFinal {
		t.Errorf("dead letters: %v", dead)
	}
}

// TestMaxDeliverKept: failures and long handlers do not spend deliveries.
func TestMaxDeliverKept(t *testing.T) {
	v := setup(t, ackWait(shortAckWait), func(cc *jetstream.ConsumerConfig) { cc.MaxDeliver = 2 })
	v.publish("a", "b")
	var j journal
	v.run(func(ctx context.Context, msg jetstream.Msg) error {
		_ = j.handle(ctx, msg)
		if j.len() < 5 {
			work(shortAckWait)
			return errTest
		}
		return nil
	}, idemnats.AllowMaxDeliver(), idemnats.Concurrency(2))
	v.settled()
	if n := j.len(); n != 6 {
		t.Errorf("%d attempts, want 6", n)
	}
	v.wantDeliveries(2)
}

// TestGracefulStop: what was fetched and not handled goes to the next consumer at
// once, in order, and what was being handled is finished.
func TestGracefulStop(t *testing.T) {
	v := setup(t)
	var tokens []string
	for i := range 20 {
		tokens = append(tokens, fmt.Sprintf("%02d", i))
	}
	v.publish(tokens...)
	started, proceed := make(chan struct{}), make(chan struct{})
	var j journal
	r := v.run(func(ctx context.Context, msg jetstream.Msg) error {
		if j.add("%s", msg.Data()) == 3 {
			close(started)
			<-proceed
		}
		return ctx.Err()
	}, consumers.WorkAhead(10))
	<-started
	testenv.Await(t, "messages to be fetched ahead", func() bool { return v.info().NumAckPending > 5 })
	r.cancel()
	close(proceed)
	if err := r.result(); err != nil {
		t.Fatal(err)
	}
	j.want(t, tokens[:3]...)
	if info := v.info(); info.AckFloor.Stream != 3 {
		t.Errorf("the server has acks up to %d, want 3", info.AckFloor.Stream)
	}
	var k journal
	v.run(k.handle)
	v.settled() // well within AckWait
	k.want(t, tokens[3:]...)
}

// TestStuck: a handler that does not return is named, and its message is left
// unsettled.
func TestStuck(t *testing.T) {
	v := setup(t)
	v.publish("a")
	started, proceed := make(chan struct{}), make(chan struct{})
	r := v.run(func(ctx context.Context, _ jetstream.Msg) error {
		close(started)
		<-ctx.Done()
		<-proceed
		return nil
	}, consumers.DrainTimeout(50*time.Millisecond))
	<-started
	err := r.stop()
	close(proceed)
	if err == nil || !strings.Contains(err.Error(), "sequence 1 of stream ORDERS") {
		t.Errorf("Run returned %v", err)
	}
	if info := v.info(); info.NumAckPending != 1 {
		t.Errorf("%d messages await an ack, want 1", info.NumAckPending)
	}
}

// TestServerAway: the consumer waits, does not spin, says so each time, and goes on.
func TestServerAway(t *testing.T) {
	v := setup(t, ackWait(shortAckWait))
	source := &spy{Consumer: v.source}
	v.source = source
	v.publish("a")
	var j journal
	v.run(j.handle)
	v.settled()
	v.srv.Stop()
	before, began := source.count(), time.Now()
	testenv.Await(t, "three seconds", func() bool { return time.Since(began) > 3*time.Second })
	if n := source.count() - before; n > 12 {
		t.Errorf("%d pull requests in three seconds without a server", n)
	}
	unanswered := func() (n int) {
		for _, e := range v.events.of(idem.EventWaiting) {
			if strings.Contains(e.Err.Error(), "does not answer") {
				n++
			}
		}
		return n
	}
	testenv.Await(t, "the events", func() bool { return unanswered() > 1 })
	v.srv.Restart()
	testenv.Await(t, "the client to be back", func() bool {
		_, err := v.source.Info(v.ctx())
		return err == nil
	})
	v.publish("b")
	v.settled()
	j.want(t, "a", "b")
}

// failing is a source whose fetches fail at once, in one way or the other.
type failing struct {
	jetstream.Consumer
	fetches atomic.Int32
}

func (f *failing) Fetch(int, ...jetstream.FetchOpt) (jetstream.MessageBatch, error) {
	switch f.fetches.Add(1) % 3 {
	case 0:
		return nil, errTest
	case 1:
		return emptyBatch{err: nats.ErrNoResponders}, nil
	}
	return emptyBatch{}, nil
}

type emptyBatch struct{ err error }

func (b emptyBatch) Error() error { return b.err }
func (b emptyBatch) Messages() <-chan jetstream.Msg {
	none := make(chan jetstream.Msg)
	close(none)
	return none
}

// TestFetchFails: failures that come at once are waited after, longer each time.
func TestFetchFails(t *testing.T) {
	v := setup(t)
	source := &failing{Consumer: v.source}
	v.source = source
	began := time.Now()
	r := v.run(noop)
	testenv.Await(t, "two seconds", func() bool { return time.Since(began) > 2*time.Second })
	if err := r.stop(); err != nil {
		t.Errorf("Run returned %v", err)
	}
	if n := source.fetches.Load(); n < 3 || n > 2000/25+1 { // a pause is 25 ms at least
		t.Errorf("%d pull requests in two seconds", n)
	}
	if n := len(v.events.of(idem.EventWaiting)); n < 3 {
		t.Errorf("%d events", n)
	}
}

// TestServerAwayAtStart: Run waits for it, and ends with its context.
func TestServerAwayAtStart(t *testing.T) {
	v := setup(t)
	v.srv.Stop()
	r := v.run(func(context.Context, jetstream.Msg) error { return nil })
	testenv.Await(t, "the event", func() bool { return len(v.events.of(idem.EventWaiting)) > 0 })
	if err := r.stop(); err != nil {
		t.Errorf("Run returned %v", err)
	}
}

// TestGone: what will not come back ends Run, and the error says so.
func TestGone(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(*env)
		want string
	}{
		"consumer": {func(v *env) { _ = v.js.DeleteConsumer(v.ctx(), "ORDERS", "billing") }, "was deleted"},
		"stream":   {func(v *env) { _ = v.js.DeleteStream(v.ctx(), "ORDERS") }, "was deleted"},
		"recreated": {func(v *env) {
			cc := v.info().Config
			_ = v.js.DeleteConsumer(v.ctx(), "ORDERS", "billing")
			_, _ = v.js.CreateConsumer(v.ctx(), "ORDERS", cc)
		}, "deleted"},
		"connection": {func(v *env) { v.js.Conn().Close() }, "connection was closed"},
	} {
		t.Run(name, func(t *testing.T) {
			v := setup(t)
			v.publish("a")
			var j journal
			r := v.run(j.handle)
			v.settled()
			c.do(v)
			if err := r.result(); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Run returned %v, want %q", err, c.want)
			}
			j.want(t, "a")
		})
	}
}

// TestGoneAtStart: the same before the first fetch.
func TestGoneAtStart(t *testing.T) {
	v := setup(t)
	if err := v.js.DeleteConsumer(v.ctx(), "ORDERS", "billing"); err != nil {
		t.Fatal(err)
	}
	err := v.run(func(context.Context, jetstream.Msg) error { return nil }).result()
	if !errors.Is(err, jetstream.ErrConsumerNotFound) || !strings.Contains(err.Error(), "create it first") {
		t.Errorf("Run returned %v", err)
	}
}

// TestStatusHeader: a message that nats.go takes for the server's does not end Run.
func TestStatusHeader(t *testing.T) {
	v := setup(t, ackWait(shortAckWait))
	msg := statusMsg("409", "Consumer Deleted")
	v.send(msg)
	v.publish("a")
	var j journal
	r := v.run(j.handle)
	testenv.Await(t, "the message behind it", func() bool { return j.len() == 1 })
	if err := r.stop(); err != nil {
		t.Errorf("Run returned %v", err)
	}
}

func TestRunTwice(t *testing.T) {
	v := setup(t)
	c := v.consumer(func(context.Context, jetstream.Msg) error { return nil })
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := c.Run(ctx); err != nil {
		t.Errorf("the first Run returned %v", err)
	}
	if err := c.Run(ctx); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Errorf("the second Run returned %v", err)
	}
}
