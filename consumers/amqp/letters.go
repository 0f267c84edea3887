package idemamqp

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/idem"
)

// confirmTimeout bounds the wait for the broker's confirmation of a dead-letter copy.
const confirmTimeout = 5 * time.Second

// letters is a dead-letter destination. One copy is published at a time.
type letters struct {
	exchange, key string
	dial          func(context.Context) (*amqp.Connection, error)
	users         *amqp.Channel // the caller's; nil: dial

	over atomic.Bool   // closed
	busy chan struct{} // held by a call on the caller's channel
	turn chan struct{} // held by whoever uses what follows
	conn *amqp.Connection
	out  *outlet
}

// outlet is a channel for publishing; open returns it in confirm mode.
type outlet struct {
	ch      *amqp.Channel
	returns chan amqp.Return
	closed  chan *amqp.Error
}

func newLetters(exchange, key string) *letters {
	return &letters{exchange: exchange, key: key, busy: make(chan struct{}, 1), turn: make(chan struct{}, 1)}
}

func (l *letters) String() string {
	if l.exchange == "" {
		return fmt.Sprintf("queue %q (by the default exchange)", l.key)
	}
	return fmt.Sprintf("exchange %q, routing key %q", l.exchange, l.key)
}

// publish publishes a copy and returns nil when the broker has it in a queue. An error
// that wraps consumers.ErrUndeliverable is one that waiting does not mend.
func (l *letters) publish(ctx context.Context, msg amqp.Publishing) error {
	select {
	case l.turn <- struct{}{}:
		defer l.leave()
	case <-ctx.Done():
		return fmt.Errorf("publishing to %s: %w", l, context.Cause(ctx))
	}
	if l.over.Load() {
		return fmt.Errorf("publishing to %s: %w", l, errEnded)
	}
	err := l.try(ctx, msg)
	if err == nil {
		return nil
	}
	if !errors.Is(err, errNotTaken) {
		l.discard() // what became of the copy is not known: its confirmation must not be another's
	}
	if l.isUndeliverable(err) {
		return fmt.Errorf("publishing to %s: %w: %w", l, consumers.ErrUndeliverable, explain(err))
	}
	return fmt.Errorf("publishing to %s: %w", l, err)
}

// errNotTaken: the broker answered, and did not take the copy.
var errNotTaken = errors.New("not taken")

// errUnrouted: the broker has no queue for the copy.
var errUnrouted = errors.New("no queue is bound to it with this key: bind one")

// errEnded: the consumer's Run is over.
var errEnded = errors.New("the consumer has ended")

// errGone: the caller's channel will not come back.
var errGone = errors.New("the channel of PublishOn was closed: make a new consumer with a new one")

// unreached: there is no connection. One that was refused may be granted later: the broker
// may have too many, or be cut off from what knows its users.
type unreached struct{ err error }

func (u *unreached) Error() string { return u.err.Error() }
func (u *unreached) Unwrap() error { return u.err }

func (l *letters) isUndeliverable(err error) bool {
	if _, ok := errors.AsType[*unreached](err); ok {
		return false
	}
	if errors.Is(err, errUnrouted) || errors.Is(err, errGone) {
		return true
	}
	e, ok := errors.AsType[*amqp.Error](err)
	// A channel of the client's own making, and one that broke, have other codes.
	return ok && (e.Server && isRefused(e) || e.Server && e.Code == amqp.FrameError || errors.Is(e, amqp.ErrFieldType))
}

func (l *letters) try(ctx context.Context, msg amqp.Publishing) error {
	out, err := l.open(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := confirming(ctx)
	defer cancel()
	for len(out.returns) > 0 {
		<-out.returns // of a copy whose confirmation nobody waits for any more
	}
	if conn := l.conn; conn != nil {
		// A broker that is short of memory reads nothing: then the write waits.
		defer context.AfterFunc(ctx, func() { _ = conn.CloseDeadline(time.Now()) })()
	}
	confirm, err := l.send(ctx, out.ch, msg)
	switch {
	case err != nil:
		return out.because(ctx, err)
	case confirm == nil:
		return errors.New("the channel is not in confirm mode")
	}
	select {
	case <-confirm.Done():
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	for {
		select {
		case r, ok := <-out.returns:
			switch {
			case !ok:
				return out.because(ctx, amqp.ErrClosed)
			case r.MessageId == msg.MessageId && r.Headers[headerCopy] == msg.Headers[headerCopy]:
				return fmt.Errorf("%w: %w: the broker returned the copy (%d %s)", errNotTaken, errUnrouted, r.ReplyCode, r.ReplyText)
			}
			continue
		default:
		}
		break
	}
	switch {
	case confirm.Acked():
		return nil
	case out.ch.IsClosed():
		return out.because(ctx, amqp.ErrClosed)
	}
	return fmt.Errorf("%w: the broker refused the copy (basic.nack): is the queue full?", errNotTaken)
}

// confirming bounds a wait for the broker.
func confirming(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, confirmTimeout, fmt.Errorf("no confirmation within %v", confirmTimeout))
}

// send publishes; on the caller's channel it ends with ctx, whether the broker reads or not.
func (l *letters) send(ctx context.Context, ch *amqp.Channel, msg amqp.Publishing) (*amqp.DeferredConfirmation, error) {
	publish := func() (*amqp.DeferredConfirmation, error) {
		return ch.PublishWithDeferredConfirm(l.exchange, l.key, true, false, msg)
	}
	if l.users == nil {
		return publish()
	}
	return call(ctx, l.busy, publish)
}

// call calls f, which knows no context, on what is the caller's, and so not to be closed.
// An f that does not end with ctx goes on, and the next call waits for that.
func call[T any](ctx context.Context, busy chan struct{}, f func() (T, error)) (got T, err error) {
	select {
	case busy <- struct{}{}:
	case <-ctx.Done():
		return got, context.Cause(ctx)
	}
	type answer struct {
		got T
		err error
	}
	answers := make(chan answer, 1)
	go func() {
		got, err := f()
		<-busy
		answers <- answer{got, err}
	}()
	select {
	case a := <-answers:
		return a.got, a.err
	case <-ctx.Done():
		return got, context.Cause(ctx)
	}
}

// because prefers the broker's reason for closing the channel.
func (o *outlet) because(ctx context.Context, err error) error {
	select {
	case e, ok := <-o.closed:
		if ok && e != nil {
			return e
		}
	default:
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// open returns a channel in confirm mode.
func (l *letters) open(ctx context.Context) (out *outlet, err error) {
	if l.out != nil && !l.out.ch.IsClosed() {
		return l.out, nil
	}
	if l.users != nil {
		if l.users.IsClosed() {
			return nil, errGone
		}
		ctx, cancel := confirming(ctx)
		defer cancel()
		if _, err := call(ctx, l.busy, func() (struct{}, error) { return struct{}{}, l.users.Confirm(false) }); err != nil {
			return nil, err
		}
		l.out = newOutlet(l.users)
		return l.out, nil
	}
	l.discard()
	conn, err := l.dial(ctx)
	if err != nil {
		return nil, &unreached{err}
	}
	l.conn = conn
	err = within(ctx, conn, func() error {
		ch, err := conn.Channel()
		if err != nil {
			return err
		}
		l.out = newOutlet(ch)
		return ch.Confirm(false)
	})
	if err != nil {
		l.discard()
		return nil, fmt.Errorf("opening a channel: %w", err)
	}
	return l.out, nil
}

func newOutlet(ch *amqp.Channel) *outlet {
	return &outlet{
		ch:      ch,
		returns: ch.NotifyReturn(make(chan amqp.Return, 16)),
		closed:  ch.NotifyClose(make(chan *amqp.Error, 1)),
	}
}

// discard closes the connection, if it is the consumer's own.
func (l *letters) discard() {
	if l.conn != nil {
		_ = l.conn.CloseDeadline(time.Now().Add(closeTimeout))
		l.conn, l.out = nil, nil
	}
}

// close ends the use of the destination. It waits closeTimeout for whoever has the turn,
// who may be in a Dial that does not return: what that brings, leave closes.
func (l *letters) close() {
	if l.users != nil {
		return
	}
	l.over.Store(true)
	late := time.NewTimer(closeTimeout)
	defer late.Stop()
	select {
	case l.turn <- struct{}{}:
		l.discard()
		<-l.turn
	case <-late.C:
	}
}

// leave ends a turn. It looks only then whether the destination is still used: close, if
// it comes later, finds the turn free. If somebody else has it already, they leave too.
func (l *letters) leave() {
	<-l.turn
	if !l.over.Load() {
		return
	}
	select {
	case l.turn <- struct{}{}:
		l.discard()
		<-l.turn
	default:
	}
}

// headerCopy tells one copy from another where the broker returns it.
const headerCopy = "Idempotency-Dead-Copy"

// brokersOwn are headers that a broker made, or acts on: on the copy they would say
// what is not true of it, or send it elsewhere.
var brokersOwn = [...]string{"CC", "BCC", "x-death", deliveryCount, "x-acquired-count", streamOffset, "x-received-from"}

// copyOf makes the dead-letter copy: everything of the message but what would make it
// expire, be refused, or be routed elsewhere.
func copyOf(m message, l consumers.Letter) amqp.Publishing {
	d := m.d
	h := make(amqp.Table, len(d.Headers)+8)
	for k, v := range d.Headers {
		if !strings.HasPrefix(k, "x-first-death-") && !strings.HasPrefix(k, "x-last-death-") {
			h[k] = v
		}
	}
	for _, k := range brokersOwn {
		delete(h, k)
	}
	for _, kv := range l.Headers(m.String()) {
		set(h, kv[0], kv[1])
	}
	set(h, headerCopy, idem.NewToken())
	return amqp.Publishing{
		Headers:         h,
		ContentType:     d.ContentType,
		ContentEncoding: d.ContentEncoding,
		DeliveryMode:    amqp.Persistent,
		Priority:        d.Priority,
		CorrelationId:   d.CorrelationId,
		ReplyTo:         d.ReplyTo,
		MessageId:       d.MessageId,
		Timestamp:       d.Timestamp,
		Type:            d.Type,
		AppId:           d.AppId,
		Body:            d.Body,
	}
}
