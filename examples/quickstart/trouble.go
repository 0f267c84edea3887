package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/idemq/idemq/idem/store"
)

// The mischief, the same for all consumers.
const (
	atWorkOrder = 50  // the second replica starts when the first has got this many
	diesAtOrder = 100 // the first replica dies in the middle of this one
	never       = 0
)

func sentTwice(n int) bool  { return n%10 == 7 } // by the producer
func ackIsLost(n int) bool  { return n%12 == 5 } // the first ack of the order
func failsFirst(n int) bool { return n%25 == 3 } // the handler, the first time

func repeats() int {
	sum := 0
	for n := range orders {
		if sentTwice(n) {
			sum++
		}
	}
	return sum
}

func orderData(n int) []byte { return strconv.AppendInt(nil, int64(n), 10) }

func orderOf(msg jetstream.Msg) (int, error) {
	n, err := strconv.Atoi(string(msg.Data()))
	if err != nil || n < 0 || n >= orders {
		return 0, fmt.Errorf("not an order: %q", msg.Data())
	}
	return n, nil
}

// publishAfterWindow sends a message again until the stream no longer recognises it.
func publishAfterWindow(ctx context.Context, js jetstream.JetStream, msg *nats.Msg) error {
	for {
		ack, err := js.PublishMsg(ctx, msg)
		if err != nil || !ack.Duplicate {
			return err
		}
		select {
		case <-time.After(duplicates / 10):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// trouble is what the replicas of one service share.
type trouble struct {
	ledger *ledger
	failed [orders]atomic.Bool // the handler failed
	lost   [orders]atomic.Bool // an ack was lost
}

func newTrouble(l *ledger) *trouble { return &trouble{ledger: l} }

// replica is a process of the service: with a connection and a store of its own,
// which go when it dies.
type replica struct {
	prefix string // of the store's records
	source jetstream.Consumer
	store  store.Store
	setnx  func(ctx context.Context, token string) (isNew bool, err error)

	trouble *trouble
	dieAt   int64 // which of its orders it dies in; never
	got     atomic.Int64
	atWork  chan struct{}
	dead    atomic.Bool
	gone    chan struct{} // closed when the run is over
	cut     func()        // ends its connections

	mu      sync.Mutex
	unacked map[int]struct{} // orders with an effect of this replica's, and no ack yet
	acked   *sync.Cond       // one of them was acked
}

// handle is the service's business, and is the same for all consumers.
func (r *replica) handle(ctx context.Context, msg jetstream.Msg) error {
	n, err := orderOf(msg)
	if err != nil {
		return err
	}
	switch r.got.Add(1) {
	case atWorkOrder:
		close(r.atWork)
	case r.dieAt:
		return r.die()
	}
	if failsFirst(n) && !r.trouble.failed[n].Swap(true) {
		return errors.New("the payment service did not answer")
	}
	select {
	case <-time.After(time.Millisecond): // the work
	case <-ctx.Done(): // the order is somebody else's now
		return context.Cause(ctx)
	}
	r.mu.Lock()
	r.unacked[n] = struct{}{}
	r.mu.Unlock()
	r.trouble.ledger.effect(n)
	return nil
}

// die is a SIGKILL as the rest of the world sees it: nothing that this replica does
// reaches anybody any more. It holds one order, and has done nothing for it.
//
// The orders before it are settled first. A death between an effect and its record
// is the one that no library outside the effect's own database can undo: the order
// is handled again.
func (r *replica) die() error {
	r.mu.Lock()
	for len(r.unacked) > 0 {
		r.acked.Wait()
	}
	r.mu.Unlock()
	r.dead.Store(true)
	r.cut()
	<-r.gone
	return errors.New("dead")
}

// loses reports whether the ack of msg gets lost on its way.
func (r *replica) loses(msg jetstream.Msg) bool {
	n, err := orderOf(msg)
	if err != nil {
		return false
	}
	r.mu.Lock()
	delete(r.unacked, n)
	r.mu.Unlock()
	r.acked.Signal()
	return ackIsLost(n) && !r.trouble.lost[n].Swap(true)
}

// lossyConsumer loses acks.
type lossyConsumer struct {
	jetstream.Consumer
	r *replica
}

func (c lossyConsumer) Messages(opts ...jetstream.PullMessagesOpt) (jetstream.MessagesContext, error) {
	m, err := c.Consumer.Messages(opts...)
	return lossyMessages{m, c.r}, err
}

func (c lossyConsumer) Fetch(n int, opts ...jetstream.FetchOpt) (jetstream.MessageBatch, error) {
	b, err := c.Consumer.Fetch(n, opts...)
	if err != nil {
		return nil, err
	}
	lossy := lossyBatch{b, make(chan jetstream.Msg, n)}
	go func() {
		defer close(lossy.messages)
		for msg := range b.Messages() {
			lossy.messages <- lossyMsg{msg, c.r} // there is room for all
		}
	}()
	return lossy, nil
}

type lossyBatch struct {
	jetstream.MessageBatch
	messages chan jetstream.Msg
}

func (b lossyBatch) Messages() <-chan jetstream.Msg { return b.messages }

type lossyMessages struct {
	jetstream.MessagesContext
	r *replica
}

func (m lossyMessages) Next(opts ...jetstream.NextOpt) (jetstream.Msg, error) {
	msg, err := m.MessagesContext.Next(opts...)
	if err != nil {
		return nil, err
	}
	return lossyMsg{msg, m.r}, nil
}

type lossyMsg struct {
	jetstream.Msg
	r *replica
}

func (m lossyMsg) Ack() error {
	if m.r.loses(m.Msg) {
		return nil // it was sent, as far as anybody here can tell
	}
	return m.Msg.Ack()
}

// mortalStore is the store as one replica reaches it.
type mortalStore struct {
	store.Store
	dead *atomic.Bool
}

func (s mortalStore) Apply(ctx context.Context, b *store.Batch) error {
	if s.dead.Load() {
		return fmt.Errorf("%w: this process is dead", store.ErrUnavailable)
	}
	return s.Store.Apply(ctx, b)
}
