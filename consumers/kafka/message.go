package idemkafka

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/idemq/idemq/consumers"
)

// Handler handles one message. Nil says that its effect is done; see idem.Permanent
// and idem.RetryAfter for what an error can say. ctx holds the message's claim
// (idem.FromContext), and ends when that is lost, or the partition. The handler does not
// commit: the consumer does, when what comes before is done too. It does not change the key,
// the value or the headers in place: the next attempt, a dead-letter copy and a fingerprint
// are made of them. A panic is not recovered: the claim is given back, which spends budget,
// and the panic ends the process, or, under Wrap, goes on to the caller.
type Handler func(ctx context.Context, msg kafka.Message) error

// BatchHandler handles several messages. It returns nil where all effects are done, or an
// error or nil in the place of each message; a slice of another length is an error of all.
// What an error says is as with Handler. ctx holds the claims (idem.ClaimsFromContext), and
// ends as soon as one of them is lost, or the partition is. What one message's effect needs
// of its claim (StampAs, the store's transaction) it gets with that claim's Context.
type BatchHandler func(ctx context.Context, msgs []kafka.Message) []error

// message implements consumers.Message.
type message struct{ msg kafka.Message }

// Header joins all spellings of a name: Kafka's headers are case-sensitive, and may
// repeat.
func (m message) Header(name string) []string { return header(m.msg.Headers, name) }

func header(headers []kafka.Header, name string) []string {
	var all []string
	for _, h := range headers {
		if consumers.SameHeader(h.Key, name) {
			all = append(all, string(h.Value))
		}
	}
	return all
}

// set replaces every spelling of a header. The slice is not shared with the caller's
// other messages afterwards.
func set(headers []kafka.Header, name, value string) []kafka.Header {
	out := make([]kafka.Header, 0, len(headers)+1)
	for _, h := range headers {
		if !consumers.SameHeader(h.Key, name) {
			out = append(out, h)
		}
	}
	return append(out, kafka.Header{Key: name, Value: []byte(value)})
}

func (m message) Body() []byte { return m.msg.Value }

func (m message) Coordinates() []string {
	return []string{
		"kafka", m.msg.Topic, strconv.Itoa(m.msg.Partition), strconv.FormatInt(m.msg.Offset, 10),
		m.msg.Time.UTC().Format(time.RFC3339Nano),
	}
}

// ID is empty: Kafka has no message ids.
func (m message) ID() string { return "" }

// Time is the producer's clock, or the broker's where the topic has
// message.timestamp.type=LogAppendTime.
func (m message) Time() time.Time {
	if m.msg.Time.UnixMilli() <= 0 { // -1 is Kafka's for none
		return time.Time{}
	}
	return m.msg.Time
}

func (m message) String() string {
	return fmt.Sprintf("topic %s, partition %d, offset %d", m.msg.Topic, m.msg.Partition, m.msg.Offset)
}

// isMarker reports whether a message has the shape of a transaction's marker: Kafka's
// control records, version 0 (the protocol guide, "Control Batches"), of type abort or
// commit, with the end marker of version 0.
func isMarker(m kafka.Message) bool {
	k, v := m.Key, m.Value
	return len(m.Headers) == 0 && len(k) == 4 && k[0] == 0 && k[1] == 0 && k[2] == 0 && k[3] <= 1 &&
		len(v) == 6 && v[0] == 0 && v[1] == 0
}

// size is what a message takes in memory, about.
func size(m kafka.Message) int {
	n := len(m.Key) + len(m.Value) + perMessage
	for _, h := range m.Headers {
		n += len(h.Key) + len(h.Value) + perHeader
	}
	return n
}

// What the structs around a message and a header take.
const (
	perMessage = 256
	perHeader  = 40
)
