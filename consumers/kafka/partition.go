package idemkafka

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/idem"
)

// maxSpan bounds how many messages of a partition may be done, and not committed,
// behind one that is not: what is remembered of them, and what a restart fetches again.
const maxSpan = 50_000

// mostLarge is how many messages for each line of a partition are taken though they are
// more than the bytes allow: the one at work, and the next, whose claim is made meanwhile.
const mostLarge = 2

// reportStill is after how long a partition that holds up fetching is reported.
const reportStill = time.Second

// partition is one assignment of a partition: its messages from where it was assigned
// until it goes away, or begins anew at a lower offset.
type partition struct {
	s        *settler
	topic    string
	id       int
	track    *tracker
	lanes    []*lane
	seed     maphash.Seed
	shelf    *shelf
	ctx      context.Context // ends with the assignment
	end      context.CancelCauseFunc
	last     int64 // offset that was fetched last
	gapAsked time.Time
	passed   uint64 // messages fetched when the group was first found further; zero: it is not; see standing
	stored   int    // messages on the shelf; guarded by the shelf
	feeds    sync.WaitGroup
}

// lane is one line of a partition, and what waits for its turn there.
type lane struct {
	*consumers.Lane
	waiting fifo[*delivery] // guarded by the shelf
	arrived chan struct{}
}

// shelf holds the messages that wait for a place in a lane, of as many partitions as
// are read together, by one goroutine. A message takes its place until it goes into the
// lane, and its bytes until it is settled, or its assignment ends.
type shelf struct {
	maxMessages int // of one partition
	maxBytes    int // of all
	onRoom      chan struct{}
	bytes       atomic.Int64

	mu sync.Mutex
}

func newShelf(maxMessages, maxBytes int) *shelf {
	return &shelf{maxMessages: maxMessages, maxBytes: maxBytes, onRoom: make(chan struct{}, 1)}
}

// newPartition begins an assignment. It ends with ours; its messages are given to the
// lanes while feed lasts.
func (s *settler) newPartition(ours, feed context.Context, e *consumers.Engine, sh *shelf, topic string, id int) *partition {
	p := &partition{s: s, track: newTracker(), topic: topic, id: id, shelf: sh, seed: maphash.MakeSeed(), last: -1}
	p.ctx, p.end = context.WithCancelCause(ours)
	for range max(s.conf.concurrency, 1) {
		l := &lane{arrived: make(chan struct{}, 1)}
		if group := s.groupOf(topic); group != "" {
			l.Lane = e.GroupLane(p.ctx, group)
		} else {
			l.Lane = e.Lane(p.ctx)
		}
		p.lanes = append(p.lanes, l)
		p.feeds.Go(func() { p.feed(feed, l) })
	}
	return p
}

// String names it for people.
func (p *partition) String() string { return fmt.Sprintf("partition %d of topic %s", p.id, p.topic) }

// laneOf returns the lane of a message: that of its key. Messages without one have no
// order to keep.
func (p *partition) laneOf(msg kafka.Message) *lane {
	n := uint64(len(p.lanes))
	if n == 1 {
		return p.lanes[0]
	}
	if msg.Key == nil {
		return p.lanes[uint64(msg.Offset)%n]
	}
	return p.lanes[maphash.Bytes(p.seed, msg.Key)%n]
}

// push puts a fetched message on the shelf, and waits for room before. While it waits
// for long it says what stands still.
func (p *partition) push(ctx context.Context, msg kafka.Message) error {
	if p.s.conf.skipMarkers && isMarker(msg) {
		p.track.done(p.track.fetch(msg.Offset, 0))
		p.last = msg.Offset
		return nil
	}
	n := size(msg)
	var still <-chan time.Time
	for !p.fits(n) {
		if still == nil {
			t := time.NewTimer(reportStill)
			defer t.Stop()
			still = t.C
		}
		select {
		case <-p.shelf.onRoom:
		case <-still:
			p.report()
			still = make(chan time.Time) // once
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-p.ctx.Done():
			return context.Cause(p.ctx)
		}
	}
	l := p.laneOf(msg)
	p.shelf.bytes.Add(int64(n))
	d := &delivery{message: message{msg}, p: p, place: p.track.fetch(msg.Offset, n)}
	p.last = msg.Offset
	p.shelf.mu.Lock()
	p.stored++
	l.waiting.push(d)
	p.shelf.mu.Unlock()
	signal(l.arrived)
	return nil
}

// fits reports whether there is room for a message of n bytes. What is on the shelf goes
// on into the lanes whatever it takes: no message waits for room that one behind it has.
func (p *partition) fits(n int) bool {
	span, open := p.track.extent()
	if span >= maxSpan || open >= mostLarge*len(p.lanes) && p.shelf.bytes.Load()+int64(n) > int64(p.shelf.maxBytes) {
		return false
	}
	p.shelf.mu.Lock()
	defer p.shelf.mu.Unlock()
	return p.stored < p.shelf.maxMessages
}

// report says that fetching waits for this partition.
func (p *partition) report() {
	text := "messages that wait for their turn take all the room of Buffer"
	if head, found := p.track.head(); found {
		span, _ := p.track.extent()
		text = fmt.Sprintf("offset %d is not done, and %d messages were fetched behind it", head, span-1)
	}
	p.s.guard.Emit(idem.Event{Kind: idem.EventWaiting, Wait: reportStill, Err: fmt.Errorf("fetching stands still at %s: %s", p, text)})
}

// feed gives a lane what waits for it.
func (p *partition) feed(ctx context.Context, l *lane) {
	for {
		n, err := l.Room(ctx)
		if err != nil {
			return
		}
		batch := p.take(ctx, l, n)
		if batch == nil {
			return
		}
		for _, d := range batch {
			l.Add(d)
		}
	}
}

// take waits for messages of a lane, and takes up to n; nil at the end.
func (p *partition) take(ctx context.Context, l *lane, n int) []*delivery {
	for {
		p.shelf.mu.Lock()
		batch := make([]*delivery, min(n, l.waiting.len()))
		for i := range batch {
			batch[i] = l.waiting.pop()
			p.stored--
		}
		p.shelf.mu.Unlock()
		if len(batch) > 0 {
			signal(p.shelf.onRoom)
			return batch
		}
		select {
		case <-l.arrived:
		case <-ctx.Done():
			return nil
		case <-p.ctx.Done():
			return nil
		}
	}
}

// giveBack makes room for so many bytes, and wakes whoever waits in push.
func (sh *shelf) giveBack(bytes int) {
	sh.bytes.Add(-int64(bytes))
	signal(sh.onRoom)
}

// errAnew ends an assignment whose partition was read from a lower offset again.
var errAnew = errors.New("the partition was assigned anew")

// drop ends the assignment: what has not started is forgotten, and what is done later
// changes nothing.
func (p *partition) drop(cause error) {
	p.end(cause)
	p.feeds.Wait()
	p.shelf.mu.Lock()
	for _, l := range p.lanes {
		for l.waiting.len() > 0 {
			l.waiting.pop()
			p.stored--
		}
	}
	p.shelf.mu.Unlock()
	p.shelf.giveBack(p.track.abandon()) // lanes forget without a word
}

// ended returns a channel that is closed when the lanes have ended.
func (p *partition) ended() <-chan struct{} {
	c := make(chan struct{})
	go func() {
		defer close(c)
		for _, l := range p.lanes {
			l.Wait()
		}
	}()
	return c
}
