package idemkafka

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/idemq/idemq/idem"
)

const (
	// standingWithin bounds the question before a commit.
	standingWithin = 2 * time.Second

	// standingTries is how often it is asked within that: a connection that was closed while
	// it was idle costs a try, and there are those to a broker, the coordinator and leaders.
	standingTries = 3

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
	client  *kafka.Client // nil: there are no brokers to ask
	close   func()
	guard   *idem.Guard
	group   string
	failing bool            // the last question was not answered
	quiet   time.Time       // nothing is asked before
	own     map[place]int64 // the furthest that this consumer was about to commit
}

func newStanding(g *idem.Guard, b brokers, topics []string) *standing {
	s := &standing{guard: g, group: b.group, close: func() {}, own: make(map[place]int64)}
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
		reached := s.reached(ctx, batch)
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

// reached is what ask returns, if it is answered within some tries. An outage is told once.
func (s *standing) reached(ctx context.Context, batch map[*partition]prefix) map[place]int64 {
	within, cancel := context.WithTimeout(ctx, standingWithin)
	defer cancel()
	begun := time.Now()
	for try := 1; ; try++ {
		reached, err := s.ask(within, batch)
		switch {
		case err == nil:
			s.failing = false
			return reached
		case ctx.Err() != nil:
			return nil
		case try == standingTries || within.Err() != nil:
			s.unanswered(standingShare*time.Since(begun), err)
			return nil
		}
	}
}

// unanswered asks nothing for a while.
func (s *standing) unanswered(quiet time.Duration, err error) {
	s.quiet = time.Now().Add(quiet)
	if !s.failing {
		s.guard.Emit(idem.Event{Kind: idem.EventWaiting, Wait: quiet, Err: fmt.Errorf(
			"asking how far the group has committed (until that is answered, commits may move its offsets back): %w", err)})
	}
	s.failing = true
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
	committed, err := s.fetch(ctx, partitions)
	if err != nil {
		return nil, err
	}
	reached := make(map[place]int64)
	ends := make(map[string][]kafka.OffsetRequest)
	for topic, all := range committed {
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

// fetch returns the group's offsets.
func (s *standing) fetch(ctx context.Context, partitions map[string][]int) (map[string][]kafka.OffsetFetchPartition, error) {
	committed, err := s.client.OffsetFetch(ctx, &kafka.OffsetFetchRequest{GroupID: s.group, Topics: partitions})
	if err == nil {
		err = committed.Error
	}
	switch {
	case errors.Is(err, kafka.GroupIdNotFound): // it is new
		return nil, nil
	case err != nil:
		return nil, err
	}
	return committed.Topics, nil
}

// committed returns the group's offset of one partition; -1: there is none.
func (s *standing) committed(ctx context.Context, at place) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, standingWithin)
	defer cancel()
	var err error
	for range standingTries {
		var all map[string][]kafka.OffsetFetchPartition
		if all, err = s.fetch(ctx, map[string][]int{at.topic: {at.id}}); err != nil {
			continue
		}
		for _, p := range all[at.topic] {
			if p.Partition == at.id {
				return p.CommittedOffset, p.Error
			}
		}
		return -1, nil
	}
	return -1, err
}
