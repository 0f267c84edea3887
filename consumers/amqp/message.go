package idemamqp

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/idem"
)

// Handler handles one message. Nil says that its effect is done; see idem.Permanent
// and idem.RetryAfter for what an error can say. ctx holds the message's claim
// (idem.FromContext), and ends when that is lost. The message cannot be settled: the
// consumer does it. The handler does not change body or headers in place, nor after it
// returned: the next attempt, a dead-letter copy and a fingerprint are made of them. A panic
// is not recovered: the claim is given back, which spends budget, and the panic ends the
// process, or, under Wrap, goes on to the caller.
type Handler func(ctx context.Context, d amqp.Delivery) error

// BatchHandler handles several messages. It returns nil where all effects are done, or an
// error or nil in the place of each message; a slice of another length is an error of all.
// What an error says is as with Handler. ctx holds the claims (idem.ClaimsFromContext), and
// ends as soon as one of them is lost. What one message's effect needs of its claim
// (StampAs, the store's transaction) it gets with that claim's Context.
type BatchHandler func(ctx context.Context, ds []amqp.Delivery) []error

// ErrSettledByConsumer is what Ack, Nack and Reject of a handler's message return: the
// consumer settles it, by what the handler returns.
var ErrSettledByConsumer = errors.New("idemamqp: the consumer settles this message when the handler returns: return nil to ack it, an error to have it tried again, idem.Permanent to dead-letter it")

// handled is the Acknowledger of the message that a handler gets.
type handled struct{}

func (handled) Ack(uint64, bool) error        { return ErrSettledByConsumer }
func (handled) Nack(uint64, bool, bool) error { return ErrSettledByConsumer }
func (handled) Reject(uint64, bool) error     { return ErrSettledByConsumer }

// message implements consumers.Message.
type message struct {
	d     amqp.Delivery
	queue string // empty: not known
}

// Header returns the values of the headers of that name in any spelling, else the
// property of that name (content-type, message-id and so on).
func (m message) Header(name string) []string {
	if all := header(m.d.Headers, name); all != nil {
		return all
	}
	if value := m.property(name); value != "" {
		return []string{value}
	}
	return nil
}

// property returns a property by the name that AMQP gives it.
func (m message) property(name string) string {
	switch strings.ToLower(name) {
	case "content-type":
		return m.d.ContentType
	case "content-encoding":
		return m.d.ContentEncoding
	case "correlation-id":
		return m.d.CorrelationId
	case "reply-to":
		return m.d.ReplyTo
	case "message-id":
		return m.d.MessageId
	case "type":
		return m.d.Type
	case "user-id":
		return m.d.UserId
	case "app-id":
		return m.d.AppId
	}
	return ""
}

func header(h amqp.Table, name string) []string {
	var all []string
	for _, k := range spellings(h, name) {
		all = append(all, values(h[k], strings.EqualFold(name, idem.Header))...)
	}
	return all
}

// spellings lists the keys of a table that are name but for case.
func spellings(h amqp.Table, name string) []string {
	if _, ok := h[name]; ok && len(h) == 1 {
		return []string{name}
	}
	var keys []string
	for k := range h {
		if consumers.SameHeader(k, name) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys
}

// values are the texts of a header's value: one, or those of an array. As a token only
// strings, bytes and integers will do: a bool, read as "true", would make one message of
// all.
func values(v any, asToken bool) []string {
	if all, ok := v.([]any); ok && len(all) > 0 {
		var texts []string
		for _, x := range all {
			text, isName := text(x)
			if asToken && !isName {
				text = noToken(x)
			}
			texts = append(texts, text)
		}
		return texts
	}
	text, isName := text(v)
	if asToken && !isName {
		text = noToken(v)
	}
	return []string{text}
}

// text is a value as text, and whether it can name something.
func text(v any) (s string, isName bool) {
	switch v := v.(type) {
	case nil:
		return "", true // a header without a value
	case string:
		return v, true
	case []byte:
		return string(v), true
	case byte, int8, int16, uint16, int32, uint32, int64, int:
		return fmt.Sprint(v), true
	case bool:
		return strconv.FormatBool(v), false
	case time.Time:
		return v.UTC().Format(time.RFC3339), false
	case amqp.Decimal:
		return fmt.Sprintf("%de-%d", v.Value, v.Scale), false
	case amqp.Table:
		return fmt.Sprint(map[string]any(v)), false
	}
	return fmt.Sprint(v), false
}

// noToken stands for a header that is no token. It is longer than one may be, so it is
// refused, with a text that begins with what it was.
func noToken(v any) string {
	kind := strings.TrimPrefix(fmt.Sprintf("%T", v), "amqp091.")
	if _, ok := v.([]any); ok {
		kind = "array"
	}
	return kind + ", not a string or an integer" + strings.Repeat(" ", idem.MaxTokenLen)
}

func (m message) Body() []byte { return m.d.Body }

// Coordinates is nil: AMQP messages have no place of their own.
func (m message) Coordinates() []string { return nil }

func (m message) ID() string { return m.d.MessageId }

func (m message) Time() time.Time { return m.d.Timestamp }

func (m message) String() string {
	from := fmt.Sprintf("queue %q", m.queue)
	if m.queue == "" {
		from = fmt.Sprintf("subscription %q", m.d.ConsumerTag)
	}
	return fmt.Sprintf("delivery %d of %s (exchange %q, routing key %q)", m.d.DeliveryTag, from, m.d.Exchange, m.d.RoutingKey)
}

// set gives a table a header, in the place of every spelling that it has. The table is
// the caller's own.
func set(h amqp.Table, name string, value string) {
	maps.DeleteFunc(h, func(k string, _ any) bool { return consumers.SameHeader(k, name) })
	h[name] = value
}
