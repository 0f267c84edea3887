package idemkafka

import (
	"context"
	"time"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/idem"
)

// settler is what the deliveries of one consumer have in common.
type settler struct {
	guard  *idem.Guard
	handle Handler
	conf   config
	group  string        // names the group of each topic; empty: the guard has one
	nudge  chan struct{} // there are enough offsets to commit
	idle   chan struct{} // all that a partition has is done
}

// groupOf is the group of a topic's records, empty for the guard's own.
func (s *settler) groupOf(topic string) string {
	if s.group == "" {
		return ""
	}
	return s.group + "/" + topic
}

// delivery implements consumers.Delivery.
type delivery struct {
	message
	kept
	p     *partition
	place uint64
}

func (d *delivery) Handle(ctx context.Context) error { return d.p.s.handle(ctx, d.msg) }

// Ack marks the message. After the end of the assignment that changes nothing.
func (d *delivery) Ack(context.Context) error {
	fresh, freed, isIdle := d.p.track.done(d.place)
	d.p.shelf.giveBack(freed) // push may wait for that
	switch {
	case fresh >= d.p.s.conf.commitCount:
		d.p.s.commitSoon()
	case isIdle:
		d.p.s.commitIdle()
	}
	return nil
}

func (d *delivery) Terminate(ctx context.Context) error { return d.Ack(ctx) }

func (d *delivery) DeadLetter(ctx context.Context, l consumers.Letter) error {
	return d.p.s.conf.letters.post(ctx, d.message, l)
}

// kept is what Kafka has no verbs for: it neither takes a message away nor counts its
// deliveries, and whoever comes next fetches what was not committed.
type kept struct{}

func (kept) Redeliver(context.Context, time.Duration) error { return nil }
func (kept) Extend(context.Context) error                   { return nil }
func (kept) Final() bool                                    { return false }
