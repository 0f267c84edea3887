package idemnats

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/idem"
)

// confirmTimeout bounds the wait for the server's confirmation of an ack or of a
// dead-letter copy.
const confirmTimeout = 5 * time.Second

// settler is what the deliveries of one consumer have in common.
type settler struct {
	guard      *idem.Guard
	handle     Handler
	letters    *letters // nil: none
	terminate  bool
	doubleAck  bool
	maxDeliver uint64 // zero: unlimited

	ours context.Context // ends when sequences may be other messages'
}

// delivery implements consumers.Delivery.
type delivery struct {
	message
	s     *settler
	given handled
}

func (s *settler) delivery(msg jetstream.Msg) *delivery {
	return &delivery{newMessage(msg), s, handled{msg}}
}

func (d *delivery) Handle(ctx context.Context) error { return d.s.handle(ctx, &d.given) }

func (d *delivery) Ack(ctx context.Context) error {
	if err := context.Cause(d.s.ours); err != nil {
		return err
	}
	if !d.s.doubleAck {
		return d.msg.Ack()
	}
	ctx, cancel := context.WithTimeout(ctx, confirmTimeout)
	defer cancel()
	return d.msg.DoubleAck(ctx)
}

func (d *delivery) Terminate(context.Context) error {
	if err := context.Cause(d.s.ours); err != nil {
		return err
	}
	if d.s.terminate {
		return d.msg.TermWithReason("given up")
	}
	return d.msg.TermWithReason("dead-lettered")
}

func (d *delivery) Redeliver(_ context.Context, after time.Duration) error {
	if err := context.Cause(d.s.ours); err != nil {
		return err
	}
	if after <= 0 {
		return d.msg.Nak()
	}
	return d.msg.NakWithDelay(after)
}

func (d *delivery) Extend(context.Context) error {
	if err := context.Cause(d.s.ours); err != nil {
		return err
	}
	return d.msg.InProgress()
}

func (d *delivery) Final() bool {
	return d.s.maxDeliver > 0 && d.meta != nil && d.meta.NumDelivered >= d.s.maxDeliver
}

func (d *delivery) DeadLetter(ctx context.Context, l consumers.Letter) error {
	if d.s.terminate {
		d.s.guard.Emit(idem.Event{Kind: idem.EventDropped, Token: l.Token, Attempt: l.Attempt, Err: fmt.Errorf("%s: %s: %w", d, l.Reason, l.Err)})
		return nil
	}
	to := d.s.letters
	ctx, cancel := context.WithTimeout(ctx, confirmTimeout)
	defer cancel()
	ack, err := to.js.PublishMsg(ctx, d.copy(to.subject, l))
	switch {
	case errors.Is(err, jetstream.ErrNoStreamResponse), errors.Is(err, nats.ErrNoResponders):
		return fmt.Errorf("publishing to %s: no stream answers: create one that stores this subject: %w", to.subject, err)
	case tooLarge(err):
		return fmt.Errorf("publishing to %s: the copy of %d bytes, with its headers, is larger than the server (max_payload) or the stream (max_msg_size) takes: raise that, or delete the message from its stream: %w: %w", to.subject, len(d.msg.Data()), consumers.ErrUndeliverable, err)
	case err != nil:
		return fmt.Errorf("publishing to %s: %w", to.subject, err)
	case ack == nil:
		return fmt.Errorf("publishing to %s: the publisher returned no confirmation", to.subject)
	case ack.Duplicate:
		return fmt.Errorf("publishing to %s: stream %s took the copy for a duplicate and did not store it", to.subject, ack.Stream)
	}
	return nil
}

// The server's JSStreamMessageExceedsMaximumErr and JSStreamHeaderExceedsMaximumErr.
const (
	codeMessageTooLarge = 10054
	codeHeaderTooLarge  = 10097
)

func tooLarge(err error) bool {
	if api, ok := errors.AsType[*jetstream.APIError](err); ok {
		return api.ErrorCode == codeMessageTooLarge || api.ErrorCode == codeHeaderTooLarge
	}
	return errors.Is(err, nats.ErrMaxPayload)
}

// copy makes the dead-letter copy. Headers that begin with Nats- tell the server how
// to store the original: they could make it refuse, replace or purge.
func (d *delivery) copy(subject string, l consumers.Letter) *nats.Msg {
	c := nats.NewMsg(subject)
	c.Data = d.msg.Data()
	for k, values := range d.msg.Headers() {
		if len(k) >= 5 && strings.EqualFold(k[:5], "Nats-") {
			continue
		}
		c.Header[k] = append([]string(nil), values...)
	}
	for _, h := range l.Headers(d.String()) {
		if h[0] == idem.Header && !fitsHeader(h[1]) {
			continue // it was found in the payload, and will be again
		}
		set(c.Header, h[0], h[1])
	}
	c.Header[jetstream.MsgIDHeader] = []string{idem.NewToken()}
	return c
}

// set replaces every spelling of a header.
func set(h nats.Header, name, value string) {
	for _, k := range spellings(nil, h, name) {
		delete(h, k)
	}
	h[name] = []string{value}
}

// fitsHeader reports whether a NATS header carries a value unchanged: line breaks
// become spaces, and blanks at the ends are cut off.
func fitsHeader(value string) bool {
	return !strings.ContainsAny(value, "\r\n") && strings.Trim(value, " \t") == value
}
