package idemnats

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/idemq/idemq/consumers"
)

// Handler handles one message. Nil says that its effect is done; see idem.Permanent
// and idem.RetryAfter for what an error can say. ctx holds the message's claim
// (idem.FromContext), and ends when that is lost. The message cannot be settled:
// the consumer does it. The handler does not change data or headers in place: the next
// attempt, a dead-letter copy and a fingerprint are made of them. A panic is not recovered:
// the claim is given back, which spends budget, and the panic ends the process, or,
// under Wrap, goes on to the caller.
type Handler func(ctx context.Context, msg jetstream.Msg) error

// BatchHandler handles several messages. It returns nil where all effects are done, or an
// error or nil in the place of each message; a slice of another length is an error of all.
// What an error says is as with Handler. ctx holds the claims (idem.ClaimsFromContext), and
// ends as soon as one of them is lost. What one message's effect needs of its claim
// (StampAs, the store's transaction) it gets with that claim's Context.
type BatchHandler func(ctx context.Context, msgs []jetstream.Msg) []error

// ErrSettledByConsumer is what the ack methods of a handler's message return: the
// consumer settles it, by what the handler returns.
var ErrSettledByConsumer = errors.New("idemnats: the consumer settles this message when the handler returns: return nil to ack it, an error to have it tried again, idem.Permanent to dead-letter it")

// handled is the message that a handler gets.
type handled struct{ jetstream.Msg }

func (handled) Ack() error                       { return ErrSettledByConsumer }
func (handled) DoubleAck(context.Context) error  { return ErrSettledByConsumer }
func (handled) Nak() error                       { return ErrSettledByConsumer }
func (handled) NakWithDelay(time.Duration) error { return ErrSettledByConsumer }
func (handled) Term() error                      { return ErrSettledByConsumer }
func (handled) TermWithReason(string) error      { return ErrSettledByConsumer }
func (handled) InProgress() error                { return nil } // it is extended anyway

// message implements consumers.Message.
type message struct {
	msg  jetstream.Msg
	meta *jetstream.MsgMetadata // nil: not from a stream
}

func newMessage(msg jetstream.Msg) message {
	meta, err := msg.Metadata()
	if err != nil {
		meta = nil
	}
	return message{msg, meta}
}

// Header joins all spellings of a name: NATS headers are case-sensitive.
func (m message) Header(name string) []string { return header(m.msg.Headers(), name) }

func header(h nats.Header, name string) []string {
	var few [2]string
	names := spellings(few[:0], h, name)
	if len(names) == 1 && len(h[names[0]]) > 0 {
		return slices.Clip(h[names[0]])
	}
	var all []string
	for _, k := range names {
		values := h[k]
		if len(values) == 0 {
			values = []string{""}
		}
		all = append(all, values...)
	}
	return all
}

// spellings appends the names of headers that are name but for case to none, in their order.
func spellings(names []string, h nats.Header, name string) []string {
	for k := range h {
		if consumers.SameHeader(k, name) {
			names = append(names, k)
		}
	}
	slices.Sort(names)
	return names
}

func (m message) Body() []byte { return m.msg.Data() }

func (m message) Coordinates() []string {
	if m.meta == nil {
		return nil
	}
	return []string{
		"nats", m.meta.Domain, m.meta.Stream, strconv.FormatUint(m.meta.Sequence.Stream, 10),
		m.meta.Timestamp.UTC().Format(time.RFC3339Nano),
	}
}

func (m message) ID() string {
	if ids := m.Header(jetstream.MsgIDHeader); len(ids) == 1 {
		return ids[0]
	}
	return ""
}

func (m message) Time() time.Time {
	if m.meta == nil {
		return time.Time{}
	}
	return m.meta.Timestamp
}

func (m message) String() string {
	if m.meta == nil {
		return "subject " + m.msg.Subject()
	}
	return fmt.Sprintf("subject %s, sequence %d of stream %s", m.msg.Subject(), m.meta.Sequence.Stream, m.meta.Stream)
}

// isNil is for interfaces that may hold a nil pointer.
func isNil[T any](v T) bool {
	r := reflect.ValueOf(&v).Elem()
	if r.Kind() == reflect.Interface {
		if r.IsNil() {
			return true
		}
		r = r.Elem()
	}
	return r.Kind() == reflect.Pointer && r.IsNil()
}
