package consumers

import (
	"cmp"
	"context"
	"strconv"
	"time"

	"github.com/idemq/idemq/idem"
)

// Message is what the engine reads of a message. Its methods return the same at
// every call.
type Message interface {
	// Header returns the values of a header, its name matched without regard to
	// case; nil where the message has none. A header without a value is one empty
	// string. They must not be changed.
	Header(name string) []string
	// Body returns the payload. It must not be changed.
	Body() []byte
	// Coordinates names this message among all that its broker ever had, the
	// broker's timestamp included: a topic that was deleted and made again has the
	// same offsets. Nil where the broker gives none.
	Coordinates() []string
	// ID returns the broker's optional message id, which a producer may repeat.
	ID() string
	// Time returns when the message was made, by its producer's or its broker's
	// clock; zero where it has no timestamp.
	Time() time.Time
	// String says which message this is, for people: topic, partition and offset.
	String() string
}

// Delivery is one message in this consumer's hands: what an adapter gives the
// engine. The engine calls Handle from one goroutine at a time, and settles a
// delivery once at most. Settling verbs that fail are reported and not repeated,
// but for DeadLetter: the broker delivers again, and the token is known by then.
//
// Settling verbs may be called after the end of the lane's context, when a handler
// that had started has returned: where the broker would take the settlement for another
// message's, it is the delivery that must refuse.
type Delivery interface {
	Message

	// Handle calls the user's handler with the broker's own message.
	Handle(ctx context.Context) error
	// Ack tells the broker never to deliver this message again. Kafka: mark its
	// offset.
	Ack(ctx context.Context) error
	// Terminate is Ack for a message that was dead-lettered, now or before.
	Terminate(ctx context.Context) error
	// Redeliver asks the broker to deliver the message again after a while. It is
	// called only where Broker.Redelivers, at drain, and beyond Broker.HoldLimit.
	Redeliver(ctx context.Context, after time.Duration) error
	// DeadLetter hands a copy to the dead-letter destination and returns nil only
	// after the destination confirmed it. It is called only where
	// Broker.DeadLetters.
	DeadLetter(ctx context.Context, l Letter) error
	// Extend tells the broker that the message is still being worked on. It is
	// called each Broker.ExtendEvery from the moment the engine has the delivery
	// until it is settled, also while Handle runs.
	Extend(ctx context.Context) error
	// Final reports whether the broker will never deliver this message again,
	// whatever becomes of this delivery.
	Final() bool
}

// Invalid is for adapters that could not read of a message what they need: Engine and Lane
// refuse what it returns as they refuse a message without a valid token. It is
// dead-lettered for err without a claim (ReasonToken), or, without a destination, it stops
// the consumer with an error that names the message and wraps err. Without err it is d.
func Invalid(d Delivery, err error) Delivery {
	if err == nil {
		return d
	}
	return invalid{d, err}
}

// invalid is unpacked when it becomes an entry: adapters are shown their own deliveries.
type invalid struct {
	Delivery
	why error
}

// Broker describes a broker, and one consumer of it, to the engine.
type Broker struct {
	// Workers is how many handlers of one lane run at a time; zero is one, in order.
	Workers int
	// ExtendEvery is how often Delivery.Extend is called; zero is never.
	ExtendEvery time.Duration
	// Redelivers says that failed messages go back to the broker for their backoff,
	// instead of being retried in place. Only where order does not matter.
	Redelivers bool
	// ConfirmsAcks says that Ack waits for the broker's answer: then acks are sent side
	// by side, and nothing waits for them.
	ConfirmsAcks bool
	// AckAll acks several deliveries of a lane and returns an error, or nil, for each; none
	// where all is well. It is for brokers that one ack can tell of many. Without it each is
	// acked by itself.
	AckAll func(ctx context.Context, all []Delivery) []error
	// HandleAll calls a handler that takes several messages at a time, in place of
	// Delivery.Handle: with MaxBatch deliveries of one lane at most. It returns none, or
	// an error or nil for each. Where FewDeliveries, AtMostOnce, a budget of one or
	// WorkAhead(0) has nothing claimed ahead, each comes alone.
	HandleAll func(ctx context.Context, all []Delivery) []error
	MaxBatch  int
	// DeadLetters says that there is a dead-letter destination.
	DeadLetters bool
	// FewDeliveries says that the broker drops a message after a number of
	// deliveries: then no message is held before it can be started.
	FewDeliveries bool
	// MaxHeld bounds the deliveries that Engine.Room lets the engine hold in all; zero
	// is a number that fits how far it works ahead.
	MaxHeld int
	// KeepHandlers says that the end of a lane does not cancel its handlers: the claim
	// is held all the same, so a handler that finishes has its completion recorded, and
	// the message is a duplicate wherever it comes again.
	KeepHandlers bool
	// HandlerGrace is how long, without KeepHandlers, handlers that have started may go
	// on after the end of their lane before they are cancelled.
	HandlerGrace time.Duration
	// HoldLimit bounds how long a delivery is waited with: through backoffs, for whoever
	// has it in progress, for the store. Then its claim is given back, spending no
	// budget, and it is redelivered; a last delivery is dead-lettered. A handler that runs
	// is not interrupted, and what was held as long before its turn came is tried all the
	// same, for a lease. Zero is no limit.
	HoldLimit time.Duration
}

// Letter is what a dead-letter copy says besides the message.
type Letter struct {
	Token   string // without its signature; empty where the message has none that is valid
	Group   string
	Reason  string // a short constant of package consumers
	Err     error  // what happened
	Attempt int    // starts so far; zero where the message was never claimed
	Redrive int    // for the header idem.RedriveHeader; zero leaves the message's own

	borne string // Token with the signature that the message bore; empty: as it is
}

// Reasons of dead-lettering.
const (
	ReasonBudget    = "budget spent"
	ReasonPermanent = "permanent error"
	ReasonUnknown   = "unknown token"
	ReasonConflict  = "token conflict"
	ReasonToken     = "bad token"
	ReasonRecord    = "unreadable record"
	ReasonStale     = "stale"
	ReasonFailed    = "failed at most once"
	ReasonFinal     = "last delivery"
)

// Headers of a dead-letter copy, besides the token's and idem.RedriveHeader.
const (
	HeaderReason  = "Idempotency-Dead-Reason"
	HeaderError   = "Idempotency-Dead-Error"
	HeaderAttempt = "Idempotency-Dead-Attempt"
	HeaderGroup   = "Idempotency-Dead-Group"
	HeaderSource  = "Idempotency-Dead-Source"
)

const maxErrorLen = 1024

// Headers returns the headers to set on the copy of a message that came from
// source, in order. Values are printable ASCII, but for the token.
func (l Letter) Headers(source string) [][2]string {
	h := make([][2]string, 0, 8)
	if l.Token != "" {
		h = append(h, [2]string{idem.Header, cmp.Or(l.borne, l.Token)})
	}
	if l.Redrive > 0 {
		h = append(h, [2]string{idem.RedriveHeader, strconv.Itoa(l.Redrive)})
	}
	h = append(h,
		[2]string{HeaderReason, l.Reason},
		[2]string{HeaderAttempt, strconv.Itoa(l.Attempt)},
		[2]string{HeaderGroup, printable(l.Group)},
		[2]string{HeaderSource, printable(source)},
	)
	if l.Err != nil {
		h = append(h, [2]string{HeaderError, printable(l.Err.Error())})
	}
	return h
}

// printable keeps a header value on one line and within a sane length.
func printable(s string) string {
	q := strconv.QuoteToASCII(s)
	q = q[1 : len(q)-1]
	if len(q) > maxErrorLen {
		q = q[:maxErrorLen] + "..."
	}
	return q
}
