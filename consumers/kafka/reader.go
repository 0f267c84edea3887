package idemkafka

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/idem"
)

// reading is a Reader, and the partitions that it has brought messages of.
type reading struct {
	Reader

	c         *Consumer
	standing  *standing
	questions sync.WaitGroup // about gaps; they end with the fetching

	mu         sync.Mutex
	partitions map[place]*partition
}

type place struct {
	topic string
	id    int
}

func (p *partition) place() place { return place{p.topic, p.id} }

// run is Run over a Reader.
func (r *reading) run(ctx context.Context, c *Consumer, e *consumers.Engine, standing *standing) error {
	r.c, r.partitions, r.standing = c, make(map[place]*partition), standing
	defer standing.close()
	base := context.WithoutCancel(ctx)
	committing, stop := context.WithCancel(base) // through the drain
	var wg sync.WaitGroup
	wg.Go(func() { c.s.commitUntil(committing, func() bool { return r.commit(committing) }) })
	err := e.Run(ctx, func(ctx context.Context) error { return r.fetch(ctx, e) })
	r.questions.Wait()
	stop()
	wg.Wait()
	r.commit(base)
	return err
}

// fetch hands messages to their partitions, until ctx ends or the Reader is closed.
func (r *reading) fetch(ctx context.Context, e *consumers.Engine) error {
	s := r.c.s
	sh := newShelf(s.conf.bufferMessages, s.conf.bufferBytes)
	var p consumers.Pause
	eof := false // was the last answer
	for {
		asked := time.Now()
		msg, err := r.FetchMessage(ctx)
		again := eof && time.Since(asked) < closedWithin
		eof = errors.Is(err, io.EOF)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case eof && again:
			return errClosed
		case eof:
			continue // it is also what a broker says that closes a connection
		case errors.Is(err, kafka.OffsetOutOfRange): // its partition is read no more
			return fmt.Errorf("idemkafka: %w: %w", err, errBeyondEnd)
		case err != nil:
			p.Wait(ctx, s.guard, fmt.Errorf("fetching from Kafka: %w", err))
			continue
		}
		p.Reset()
		at := r.partition(ctx, e, sh, msg)
		r.c.lookIntoGap(ctx, at, msg.Offset)
		if err := at.push(ctx, msg); err != nil {
			return err
		}
	}
}

// partition returns the assignment that a message belongs to. A Reader does not say
// when partitions come and go; one that comes back at a lower offset begins anew, so
// that what is done late in the old one does not move the new one's offset.
func (r *reading) partition(ctx context.Context, e *consumers.Engine, sh *shelf, msg kafka.Message) *partition {
	at := place{msg.Topic, msg.Partition}
	r.mu.Lock()
	p := r.partitions[at]
	if p != nil && msg.Offset > p.last {
		r.mu.Unlock()
		return p
	}
	delete(r.partitions, at) // before drop, which takes a while: a commit under way looks there
	r.mu.Unlock()
	if p != nil {
		p.drop(errAnew)
	}
	// Not ctx: at the end of Run what has started is finished.
	p = r.c.s.newPartition(context.WithoutCancel(ctx), ctx, e, sh, msg.Topic, msg.Partition)
	p.last = msg.Offset - 1
	if r.Config().StartOffset == kafka.LastOffset {
		// Nothing may be committed yet: whoever got the partition then would begin at the
		// end, behind this message.
		p.track.startAt(msg.Offset)
		r.c.s.commitSoon()
	}
	r.mu.Lock()
	r.partitions[at] = p
	r.mu.Unlock()
	return p
}

// commit commits, for each partition, the prefix of what is done, unless the group has
// committed as much. It reports a failure: the next try includes it. One call is made at
// a time.
func (r *reading) commit(ctx context.Context) (committed bool) {
	r.mu.Lock()
	batch := prefixes(maps.Values(r.partitions))
	r.mu.Unlock()
	if len(batch) == 0 {
		return true
	}
	within, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	noteCommitted(r.standing.leaveOut(within, batch))
	r.dropOver(batch) // the question takes a while
	switch {
	case within.Err() != nil:
		return false // what was answered is old: the next one, or the last, makes up for it
	case len(batch) == 0:
		return true
	}
	msgs := make([]kafka.Message, 0, len(batch))
	for p, c := range batch {
		msgs = append(msgs, kafka.Message{Topic: p.topic, Partition: p.id, Offset: c.next - 1})
	}
	if err := r.CommitMessages(within, msgs...); err != nil {
		if ctx.Err() == nil { // else the last one makes up for it
			r.c.s.commitFailed(err)
		}
		return false
	}
	noteCommitted(batch)
	return true
}

// dropOver takes out of batch what is of an assignment whose partition has begun anew: what
// lies before its prefix now may have been handled by nobody, where a topic was made again.
func (r *reading) dropOver(batch map[*partition]prefix) {
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.DeleteFunc(batch, func(p *partition, _ prefix) bool { return r.partitions[p.place()] != p })
}

// prefixes is what there is to commit.
func prefixes(partitions iter.Seq[*partition]) map[*partition]prefix {
	batch := make(map[*partition]prefix)
	for p := range partitions {
		if c, found := p.track.toCommit(); found {
			batch[p] = c
		}
	}
	return batch
}

func noteCommitted(batch map[*partition]prefix) {
	for p, c := range batch {
		p.track.wasCommitted(c)
	}
}

// idleShare is which part of the interval lies between commits of partitions that have
// nothing more in hand.
const idleShare = 10

// commitUntil calls commit when enough is done, soon after all is, and at every interval,
// until ctx ends. After a failure it waits for the interval.
func (s *settler) commitUntil(ctx context.Context, commit func() (committed bool)) {
	tick := time.NewTicker(s.conf.commitInterval)
	defer tick.Stop()
	nudge, idle := s.nudge, s.idle
	var due <-chan time.Time
	var last time.Time
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-nudge:
		case <-idle:
			if wait := s.conf.commitInterval/idleShare - time.Since(last); wait > 0 {
				idle, due = nil, time.After(wait)
				continue
			}
		case <-due:
		}
		nudge, idle, due = nil, nil, nil
		if commit() {
			nudge, idle = s.nudge, s.idle
		}
		last = time.Now()
	}
}

// commitSoon asks for a commit now.
func (s *settler) commitSoon() { signal(s.nudge) }

// commitIdle asks for a commit as soon as the last one is a while ago.
func (s *settler) commitIdle() { signal(s.idle) }

// signal sends to a channel of one place, unless there is something in it.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (s *settler) commitFailed(err error) {
	s.guard.Emit(idem.Event{Kind: idem.EventSettleFailed, Err: fmt.Errorf("committing offsets: %w", err)})
}
