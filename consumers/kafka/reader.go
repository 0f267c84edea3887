package idemkafka

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/idem"
)

// reading is a Reader, and the partitions that it has brought messages of.
type reading struct {
	Reader

	mu         sync.Mutex
	partitions map[place]*partition
}

type place struct {
	topic string
	id    int
}

// run is Run over a Reader.
func (r *reading) run(ctx context.Context, s *settler, e *consumers.Engine) error {
	r.partitions = make(map[place]*partition)
	base := context.WithoutCancel(ctx)
	committing, stop := context.WithCancel(base) // through the drain
	var wg sync.WaitGroup
	wg.Go(func() { s.commitUntil(committing, func() { r.commit(committing, s) }) })
	err := e.Run(ctx, func(ctx context.Context) error { return r.fetch(ctx, s, e) })
	stop()
	wg.Wait()
	r.commit(base, s)
	return err
}

// fetch hands messages to their partitions, until ctx ends or the Reader is closed.
func (r *reading) fetch(ctx context.Context, s *settler, e *consumers.Engine) error {
	sh := newShelf(s.conf.bufferMessages, s.conf.bufferBytes)
	var p pause
	for {
		msg, err := r.FetchMessage(ctx)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, io.EOF):
			return errClosed
		case err != nil:
			p.wait(ctx, s.guard, fmt.Errorf("fetching from Kafka: %w", err))
			continue
		}
		p.reset()
		if err := r.partition(ctx, s, e, sh, msg).push(ctx, msg); err != nil {
			return err
		}
	}
}

// partition returns the assignment that a message belongs to. A Reader does not say
// when partitions come and go; one that comes back at a lower offset begins anew, so
// that what is done late in the old one does not move the new one's offset.
func (r *reading) partition(ctx context.Context, s *settler, e *consumers.Engine, sh *shelf, msg kafka.Message) *partition {
	at := place{msg.Topic, msg.Partition}
	r.mu.Lock()
	p := r.partitions[at]
	r.mu.Unlock()
	if p != nil && msg.Offset > p.last {
		return p
	}
	if p != nil {
		p.drop(errAnew)
	}
	// Not ctx: at the end of Run what has started is finished.
	p = s.newPartition(context.WithoutCancel(ctx), ctx, e, sh, msg.Topic, msg.Partition)
	if r.Config().StartOffset == kafka.LastOffset {
		// Nothing may be committed yet: whoever got the partition then would begin at the
		// end, behind this message.
		p.track.startAt(msg.Offset)
		s.commitSoon()
	}
	r.mu.Lock()
	r.partitions[at] = p
	r.mu.Unlock()
	return p
}

// commit commits, for each partition, the prefix of what is done. It reports a failure:
// the next try includes it.
func (r *reading) commit(ctx context.Context, s *settler) {
	type committed struct {
		p    *partition
		next int64
	}
	var batch []committed
	var msgs []kafka.Message
	r.mu.Lock()
	for _, p := range r.partitions {
		if next, found := p.track.toCommit(); found {
			batch = append(batch, committed{p, next})
			msgs = append(msgs, kafka.Message{Topic: p.topic, Partition: p.id, Offset: next - 1})
		}
	}
	r.mu.Unlock()
	if len(msgs) == 0 {
		return
	}
	within, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	if err := r.CommitMessages(within, msgs...); err != nil {
		if ctx.Err() == nil { // else the last one makes up for it
			s.commitFailed(err)
		}
		return
	}
	for _, c := range batch {
		c.p.track.wasCommitted(c.next)
	}
}

// commitUntil calls commit when enough is done, and at every interval, until ctx ends.
func (s *settler) commitUntil(ctx context.Context, commit func()) {
	tick := time.NewTicker(s.conf.commitInterval)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-tick.C:
			commit()
		case <-s.nudge:
			commit()
		}
	}
}

// commitSoon asks for a commit.
func (s *settler) commitSoon() {
	select {
	case s.nudge <- struct{}{}:
	default:
	}
}

func (s *settler) commitFailed(err error) {
	s.guard.Emit(idem.Event{Kind: idem.EventSettleFailed, Err: fmt.Errorf("committing offsets: %w", err)})
}
