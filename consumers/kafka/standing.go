package idemkafka

import (
	"context"
	"time"

	"github.com/segmentio/kafka-go"
)

const (
	// standingWithin bounds the question before a commit.
	standingWithin = 2 * time.Second

	// standingShare bounds what questions that fail cost: after one nothing is asked for so
	// many times as long as it took.
	standingShare = 10

	// inHand is how many messages may have been on their way into a partition when it went
	// away: the one that waits for room.
	inHand = 1
)

// standing is how far the group of a Reader has committed, as the brokers say. A Reader
// commits whatever it is given, in its newest generation: also for a partition that has
// gone to another member, which may have committed further.
type standing struct {
	client *kafka.Client // nil: there are no brokers to ask
	close  func()
	group  string
	quiet  time.Time       // nothing is asked before
	own    map[place]int64 // the furthest that this consumer was about to commit
}

func newStanding(b brokers, topics []string) *standing {
	s := &standing{group: b.group, close: func() {}, own: make(map[place]int64)}
	if len(b.addrs) > 0 {
		s.client, s.close = b.client(topics...)
	}
	return s
}

// leaveOut takes out of batch, and returns, where the group has committed as much, or
// more. What is not answered stays in it: a commit that moves an offset back loses
// nothing, one that is not made may hold it up for ever.
//
// So does a partition that messages came of since the group was first found further: it is
// this member's, and the offset perhaps of a topic that was deleted and made again.
func (s *standing) leaveOut(ctx context.Context, batch map[*partition]prefix) map[*partition]prefix {
	out := make(map[*partition]prefix)
	fetched := make(map[*partition]uint64, len(batch))
	for p := range batch {
		fetched[p] = p.track.fetched()
	}
	if s.client != nil && !time.Now().Before(s.quiet) {
		within, cancel := context.WithTimeout(ctx, standingWithin)
		defer cancel()
		asked := time.Now()
		reached, err := s.ask(within, batch)
		if err != nil && ctx.Err() == nil {
			s.quiet = time.Now().Add(standingShare * time.Since(asked))
		}
		for p, c := range batch {
			at, found := reached[p.place()]
			switch {
			case !found || at == c.next:
				p.passed = 0
			case p.passed == 0:
				p.passed = fetched[p]
			}
			if found && (at == c.next || fetched[p] <= p.passed+inHand) {
				out[p] = c
				delete(batch, p)
			}
		}
	}
	for p, c := range batch {
		s.own[p.place()] = max(s.own[p.place()], c.next)
	}
	return out
}

// ask returns what the group has committed for the partitions of batch, where that is as
// far as their prefix, and no trace of a topic of the same name. Kafka forgets the offsets
// of a topic that is deleted; but once it is made again it takes the old one's, from a
// consumer that has not heard of it, and whoever began there would pass over messages.
// Such an offset is mostly beyond the end, or this consumer's own, of an earlier assignment;
// see leaveOut for the rest.
func (s *standing) ask(ctx context.Context, batch map[*partition]prefix) (map[place]int64, error) {
	partitions := make(map[string][]int)
	next := make(map[place]int64)
	for p, c := range batch {
		partitions[p.topic] = append(partitions[p.topic], p.id)
		next[p.place()] = c.next
	}
	committed, err := s.client.OffsetFetch(ctx, &kafka.OffsetFetchRequest{GroupID: s.group, Topics: partitions})
	if err == nil {
		err = committed.Error
	}
	if err != nil {
		return nil, err
	}
	reached := make(map[place]int64)
	ends := make(map[string][]kafka.OffsetRequest)
	for topic, all := range committed.Topics {
		for _, p := range all {
			at := place{topic, p.Partition}
			switch {
			case p.Error != nil || p.CommittedOffset < next[at]:
			case p.CommittedOffset == next[at]:
				reached[at] = p.CommittedOffset
			case p.CommittedOffset > s.own[at]:
				reached[at] = p.CommittedOffset
				ends[topic] = append(ends[topic], kafka.LastOffsetOf(p.Partition))
			}
		}
	}
	if len(ends) == 0 {
		return reached, nil
	}
	last, err := s.client.ListOffsets(ctx, &kafka.ListOffsetsRequest{Topics: ends})
	if err != nil {
		return nil, err
	}
	for topic, all := range last.Topics {
		for _, p := range all {
			if at := (place{topic, p.Partition}); p.Error != nil || reached[at] > p.LastOffset {
				delete(reached, at)
			}
		}
	}
	return reached, nil
}
