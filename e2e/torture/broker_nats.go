package torture

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/idemq/idemq/e2e/history"
	"github.com/idemq/idemq/e2e/torture/role"
	"github.com/idemq/idemq/idem"
)

// natsAckWait is for how long messages of a process that was killed wait.
const natsAckWait = 2 * time.Second

// askAgain is the pause before a server that is away is asked again.
const askAgain = 50 * time.Millisecond

type natsBroker struct {
	tb     testing.TB
	server *natsServer
	proxy  *Proxy

	run, stream, durable, dead string
}

// NewNATS starts a NATS server with JetStream.
func NewNATS(tb testing.TB) Broker {
	tb.Helper()
	b := &natsBroker{tb: tb, server: startNATS(tb)}
	b.proxy = NewProxy(tb, b.server.addr())
	return b
}

func (b *natsBroker) Kind() string    { return "nats" }
func (b *natsBroker) Version() string { return b.server.version() }
func (b *natsBroker) Proxy() *Proxy   { return b.proxy }
func (b *natsBroker) Ordered() bool   { return false } // several processes share one consumer
func (b *natsBroker) Restart()        { b.server.restart(func() error { return nil }) }

func (b *natsBroker) Role() role.Broker {
	return role.Broker{Kind: "nats", Addr: "nats://" + b.proxy.Addr(), Source: b.stream, Group: b.durable, DeadTo: b.dead + ".letter"}
}

func (b *natsBroker) Round(run string) {
	b.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	if b.run != "" {
		for _, old := range []string{b.stream, b.dead} {
			if err := b.server.js.DeleteStream(ctx, old); err != nil {
				b.tb.Fatalf("deleting stream %s: %v", old, err)
			}
		}
	}
	name := fmt.Sprintf("%s-%08x", run, rand.Uint32())
	b.run, b.stream, b.durable, b.dead = run, name, name+"-durable", name+"-dead"
	for _, stream := range []string{b.stream, b.dead} {
		if _, err := b.server.js.CreateStream(ctx, jetstream.StreamConfig{Name: stream, Subjects: []string{stream + ".>"}}); err != nil {
			b.tb.Fatalf("creating stream %s: %v", stream, err)
		}
	}
	_, err := b.server.js.CreateConsumer(ctx, b.stream, jetstream.ConsumerConfig{
		Durable: b.durable, AckPolicy: jetstream.AckExplicitPolicy, AckWait: natsAckWait, MaxDeliver: -1, MaxAckPending: 5000,
	})
	if err != nil {
		b.tb.Fatalf("creating consumer %s: %v", b.durable, err)
	}
}

func (b *natsBroker) Publish(ctx context.Context, msgs []Message) error {
	owed := make([]*nats.Msg, len(msgs))
	for i, m := range msgs {
		owed[i] = &nats.Msg{
			Subject: b.stream + ".order", Data: []byte("order " + strconv.FormatUint(uint64(m.Token), 10)),
			Header: nats.Header{idem.Header: {history.Token(b.run, m.Token)}},
		}
	}
	for {
		futures := make([]jetstream.PubAckFuture, 0, len(owed))
		var again []*nats.Msg
		var last error
		for _, msg := range owed {
			f, err := b.server.js.PublishMsgAsync(msg)
			if err != nil {
				last = err
				again = append(again, msg)
				continue
			}
			futures = append(futures, f)
		}
		for _, f := range futures {
			select {
			case <-f.Ok():
			case last = <-f.Err():
				again = append(again, f.Msg())
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		if len(again) == 0 {
			return nil
		}
		for i, msg := range again { // the client has made the reply its own
			again[i] = &nats.Msg{Subject: msg.Subject, Data: msg.Data, Header: msg.Header}
		}
		owed = again
		if err := pause(ctx); err != nil {
			return errors.Join(err, last)
		}
	}
}

// pause waits before something is asked again.
func pause(ctx context.Context) error {
	wait(askAgain, ctx.Done())
	return context.Cause(ctx)
}

func (b *natsBroker) Owed(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	c, err := b.server.js.Consumer(ctx, b.stream, b.durable)
	if err != nil {
		return 0, err
	}
	info := c.CachedInfo() // of this moment
	return int(info.NumPending) + info.NumAckPending, nil
}

func (b *natsBroker) DeadLetters(ctx context.Context) ([]uint32, error) {
	stream, err := b.server.js.Stream(ctx, b.dead)
	if err != nil {
		return nil, err
	}
	left := int(stream.CachedInfo().State.Msgs)
	if left == 0 {
		return nil, nil
	}
	c, err := stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{})
	if err != nil {
		return nil, err
	}
	var tokens []uint32
	for left > 0 {
		batch, err := c.Fetch(min(left, 500), jetstream.FetchMaxWait(askTimeout))
		if err != nil {
			return nil, err
		}
		got := 0
		for msg := range batch.Messages() {
			n, err := number(b.run, msg.Headers().Get(idem.Header))
			if err != nil {
				return nil, err
			}
			tokens = append(tokens, n)
			got++
		}
		if err := batch.Error(); err != nil {
			return nil, err
		}
		if got == 0 {
			return nil, errors.New("the dead-letter stream gave less than it has")
		}
		left -= got
	}
	return tokens, nil
}
