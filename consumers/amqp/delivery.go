package idemamqp

import (
	"context"
	"fmt"
	"slices"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/idem"
)

// deliveryCount is the header of quorum queues: how often the message was returned.
const deliveryCount = "x-delivery-count"

// streamOffset is the header of streams: where the message is in it.
const streamOffset = "x-stream-offset"

// settler is what the deliveries of one consumer have in common.
type settler struct {
	guard         *idem.Guard
	handle        Handler
	letters       *letters // nil: none
	reject        bool
	deliveryLimit int

	// slots bounds the handlers of all sessions together: those of a lost one go on
	// while the next one's begin. Nil: no bound.
	slots chan struct{}
}

func newSettler(g *idem.Guard, h Handler, conf *config) *settler {
	return &settler{
		guard: g, handle: h, letters: conf.letters, reject: conf.reject, deliveryLimit: conf.deliveryLimit,
		slots: make(chan struct{}, conf.concurrency),
	}
}

// delivery implements consumers.Delivery.
type delivery struct {
	message
	s       *settler
	session *session
	failed  error // of a settling verb
}

func (s *settler) delivery(d amqp.Delivery, from *session) *delivery {
	return &delivery{message: message{d: d, queue: from.queue}, s: s, session: from}
}

// slotPause is how long after a vain wait for a slot the next one begins.
const slotPause = 100 * time.Millisecond

// Handle calls the handler. A wait for a slot that ends before there is one says nothing
// of the message, so it spends none of its budget.
func (d *delivery) Handle(ctx context.Context) error {
	if d.s.slots != nil {
		if err := d.slot(ctx); err != nil {
			return err
		}
		defer func() { <-d.s.slots }()
	}
	return d.s.handle(ctx, d.given())
}

// given is the message that a handler gets.
func (d *delivery) given() amqp.Delivery {
	msg := d.d
	msg.Acknowledger = handled{}
	return msg
}

// handleAll calls a handler of several messages, which takes one slot.
func handleAll(h BatchHandler) func(context.Context, []consumers.Delivery) []error {
	handle := consumers.HandleAll(h, func(d consumers.Delivery) amqp.Delivery { return d.(*delivery).given() })
	if handle == nil {
		return nil
	}
	return func(ctx context.Context, all []consumers.Delivery) []error {
		first := all[0].(*delivery)
		if err := first.slot(ctx); err != nil {
			return slices.Repeat([]error{err}, len(all))
		}
		defer func() { <-first.s.slots }()
		return handle(ctx, all)
	}
}

// slot waits for one: as long as the session that brought the delivery lasts, but takes one
// that is free in any case.
func (d *delivery) slot(ctx context.Context) error {
	select {
	case d.s.slots <- struct{}{}:
		return nil
	default:
	}
	ended := ctx
	select {
	case d.s.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
	case <-d.session.ctx.Done():
		ended = d.session.ctx
	}
	return idem.RetryAfter(fmt.Errorf("%w: handlers of a lost session are still at work: %w", consumers.ErrNotStarted, context.Cause(ended)), slotPause)
}

// settle calls a verb of the session that brought the delivery, if that is not over.
func (d *delivery) settle(what string, verb func(tag uint64) error) error {
	if err := d.session.settle(d.d.DeliveryTag, verb); err != nil {
		d.failed = fmt.Errorf("%s of %s: %w", what, d, err)
	}
	return d.failed
}

func (d *delivery) Ack(context.Context) error {
	return d.settle("ack", func(tag uint64) error { return d.session.ch.Ack(tag, false) })
}

// ackAll acks several deliveries. Those of one session share its acks.
func ackAll(_ context.Context, all []consumers.Delivery) []error {
	tags := make(map[*session][]uint64, 1)
	for _, d := range all {
		d := d.(*delivery)
		tags[d.session] = append(tags[d.session], d.d.DeliveryTag)
	}
	failed := make(map[*session]error, len(tags))
	for s, some := range tags {
		if err := s.ackAll(some); err != nil {
			failed[s] = err
		}
	}
	errs := make([]error, len(all))
	if len(failed) == 0 {
		return errs
	}
	for i, d := range all {
		d := d.(*delivery)
		if err := failed[d.session]; err != nil {
			errs[i] = fmt.Errorf("ack of %s: %w", d, err)
		}
	}
	return errs
}

func (d *delivery) Terminate(ctx context.Context) error {
	if d.s.reject {
		return d.settle("reject", func(tag uint64) error { return d.session.ch.Reject(tag, false) })
	}
	return d.Ack(ctx)
}

// Redeliver requeues. Once the consumer ends, it sees to it that the broker does not deliver
// to this session again what would only be returned, and counted, once more.
func (d *delivery) Redeliver(context.Context, time.Duration) error {
	if run := d.session.run; run != nil && run.Err() != nil {
		d.session.unsubscribe()
	}
	return d.settle("requeue", func(tag uint64) error { return d.session.ch.Nack(tag, false, true) })
}

// Extend does nothing: a delivery is the channel's for as long as that lives.
func (d *delivery) Extend(context.Context) error { return nil }

// Final reports whether the message was returned as often as the queue allows: the
// next time the broker drops it.
func (d *delivery) Final() bool {
	if d.s.deliveryLimit <= 0 {
		return false
	}
	n, ok := returned(d.d)
	return ok && n >= int64(d.s.deliveryLimit)
}

// returned is how often a quorum queue had this message returned.
func returned(d amqp.Delivery) (n int64, ok bool) {
	switch n := d.Headers[deliveryCount].(type) {
	case int64:
		return n, true
	case int32:
		return int64(n), true
	case int16:
		return int64(n), true
	case int8:
		return int64(n), true
	case byte:
		return int64(n), true
	case uint16:
		return int64(n), true
	case uint32:
		return int64(n), true
	}
	return 0, false
}

func (d *delivery) DeadLetter(ctx context.Context, l consumers.Letter) error {
	if d.s.reject {
		return nil // the reject is the publishing
	}
	return d.s.letters.publish(ctx, copyOf(d.message, l))
}
