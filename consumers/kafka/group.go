package idemkafka

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/idem"
)

const (
	// fetchWait is how long a fetch waits for messages, where the user does not say: the
	// reader of a partition that went away cannot be closed before.
	fetchWait = 500 * time.Millisecond

	// readerQueue is how many messages of a partition its reader has ready.
	readerQueue = 100

	maxGrace = 5 * time.Second

	// leaveWithin bounds how long the end of Run waits for a rebalance that is under way.
	leaveWithin = 5 * time.Second

	// askAboutGap is how often a jump in the offsets of a partition is looked into.
	askAboutGap = time.Minute
)

// settings is what a membership is made with.
type settings struct {
	group  kafka.ConsumerGroupConfig
	reader kafka.ReaderConfig
	// grace is how long handlers have when their partition goes away. The whole group
	// waits for it, and beyond the session timeout goes on without this member.
	grace time.Duration
}

func newSettings(c kafka.ReaderConfig, topics []string) (*settings, error) {
	s := &settings{
		group: kafka.ConsumerGroupConfig{
			ID: c.GroupID, Brokers: c.Brokers, Dialer: c.Dialer, Topics: topics,
			GroupBalancers: c.GroupBalancers, HeartbeatInterval: c.HeartbeatInterval,
			PartitionWatchInterval: c.PartitionWatchInterval, WatchPartitionChanges: c.WatchPartitionChanges,
			SessionTimeout: c.SessionTimeout, RebalanceTimeout: c.RebalanceTimeout,
			JoinGroupBackoff: c.JoinGroupBackoff, RetentionTime: c.RetentionTime, StartOffset: c.StartOffset,
			Logger: c.Logger, ErrorLogger: c.ErrorLogger,
		},
		reader: c,
	}
	group := s.group // Validate fills in what is zero
	if err := group.Validate(); err != nil && c.GroupID != "" && len(topics) > 0 {
		return nil, err
	}
	s.grace = min(min(group.SessionTimeout, group.RebalanceTimeout)/4, maxGrace)

	r := &s.reader
	r.GroupID, r.GroupTopics, r.CommitInterval, r.StartOffset = "", nil, 0, 0
	r.GroupBalancers, r.WatchPartitionChanges = nil, false
	r.OffsetOutOfRangeError = true
	r.QueueCapacity = readerQueue
	r.ReadLagInterval = -1 // nobody reads it
	if r.MaxWait == 0 {
		r.MaxWait = fetchWait
	}
	r.Topic, r.Partition = "any", 0
	if err := r.Validate(); err != nil && len(c.Brokers) > 0 {
		return nil, err
	}
	// kafka.NewReader panics of this.
	if longest := cmp.Or(r.ReadBackoffMax, time.Second); r.ReadBackoffMin > longest {
		return nil, fmt.Errorf("ReadBackoffMin is %v, longer than ReadBackoffMax, which is %v", r.ReadBackoffMin, longest)
	}
	return s, nil
}

// membership is a place in the group, for one Run.
type membership struct {
	c     *Consumer
	e     *consumers.Engine
	group *kafka.ConsumerGroup
	fail  context.CancelCauseFunc
	wg    sync.WaitGroup // what was started for generations
}

// join is Run over a membership of its own.
func (c *Consumer) join(ctx context.Context, e *consumers.Engine) error {
	config := c.member.group
	lines := &lines{dialer: c.ask.theDialer()}
	config.Dialer = lines.through()
	group, err := kafka.NewConsumerGroup(config)
	if err != nil {
		return fmt.Errorf("idemkafka: consumer: %w", err)
	}
	m := &membership{c: c, e: e, group: group}
	err = e.Run(ctx, m.fetch)
	// The generation lasts through the drain. When it ends, it commits what was done. But
	// Close waits for a rebalance that is under way, or for brokers that are away.
	closed := make(chan struct{})
	go func() { defer close(closed); _ = group.Close() }()
	t := time.NewTimer(leaveWithin + 2*c.member.grace)
	defer t.Stop()
	select {
	case <-closed:
	case <-t.C:
		lines.cut()
		<-closed
	}
	m.wg.Wait()
	return err
}

// fetch follows the generations until ctx ends.
func (m *membership) fetch(ctx context.Context) error {
	ctx, fail := context.WithCancelCause(ctx)
	m.fail = fail
	var p consumers.Pause
	for {
		gen, err := m.group.Next(ctx)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, kafka.RebalanceInProgress):
			continue // it joins again
		case isRefusal(err):
			return fmt.Errorf("idemkafka: joining group %s: %w", m.c.member.group.ID, err)
		case err != nil:
			p.Wait(ctx, m.c.s.guard, fmt.Errorf("joining group %s: %w", m.c.member.group.ID, err))
			continue
		}
		p.Reset()
		m.begin(ctx, gen)
	}
}

// generation is the time between two rebalances.
type generation struct {
	m          *membership
	gen        *kafka.Generation
	partitions []*partition
}

// begin reads the partitions of a generation until ctx or the generation ends.
func (m *membership) begin(ctx context.Context, gen *kafka.Generation) {
	g := &generation{m: m, gen: gen}
	ours, lose := context.WithCancelCause(context.WithoutCancel(ctx))
	read, stop := context.WithCancelCause(ctx)
	n := 0
	for _, all := range gen.Assignments {
		n += len(all)
	}
	conf := m.c.s.conf
	var readers sync.WaitGroup
	for topic, all := range gen.Assignments {
		for _, a := range all {
			sh := newShelf(conf.bufferMessages, conf.bufferBytes/n)
			p := m.c.s.newPartition(ours, read, m.e, sh, topic, a.ID)
			g.partitions = append(g.partitions, p)
			readers.Go(func() { m.read(read, p, a.Offset) })
		}
	}
	m.wg.Add(1)
	gen.Start(func(ended context.Context) {
		defer m.wg.Done()
		committing, quit := context.WithCancel(context.WithoutCancel(ctx))
		var committer sync.WaitGroup
		committer.Go(func() { m.c.s.commitUntil(committing, g.commit) })
		<-ended.Done()
		lose(kafka.ErrGenerationEnded)
		stop(kafka.ErrGenerationEnded)
		g.awaitLanes()
		quit()
		committer.Wait()
		g.commit()
		for _, p := range g.partitions {
			p.drop(kafka.ErrGenerationEnded)
		}
	})
	m.wg.Go(readers.Wait)
}

// awaitLanes waits until what has started is done, and recorded, or until it has had
// its time: one handler that does not return must not hold up the whole group.
func (g *generation) awaitLanes() {
	t := time.NewTimer(2 * g.m.c.member.grace)
	defer t.Stop()
	for _, p := range g.partitions {
		select {
		case <-p.ended():
		case <-t.C:
			return
		}
	}
}

// commit commits, for each partition, the prefix of what is done, in this generation.
func (g *generation) commit() (committed bool) {
	batch := prefixes(slices.Values(g.partitions))
	if len(batch) == 0 {
		return true
	}
	offsets := make(map[string]map[int]int64)
	for p, c := range batch {
		if offsets[p.topic] == nil {
			offsets[p.topic] = make(map[int]int64)
		}
		offsets[p.topic][p.id] = c.next
	}
	if err := g.gen.CommitOffsets(offsets); err != nil {
		g.m.c.s.commitFailed(err)
		return false
	}
	noteCommitted(batch)
	return true
}

// read reads one partition, from its committed offset on, until ctx ends.
func (m *membership) read(ctx context.Context, p *partition, offset int64) {
	defer p.feeds.Wait()
	for {
		start, err := m.start(ctx, p, offset)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			m.fail(err)
			return
		}
		if offset == kafka.LastOffset {
			// Nothing is committed yet: whoever gets the partition next would begin at an end
			// that lies further on.
			p.track.startAt(start)
			m.c.s.commitSoon()
		}
		r := m.reader(p, start)
		offset, err = m.readFrom(ctx, r, p, start)
		m.wg.Go(func() { _ = r.Close() }) // it may wait for a fetch
		if err != nil {
			return
		}
	}
}

func (m *membership) reader(p *partition, start int64) *kafka.Reader {
	config := m.c.member.reader
	config.Topic, config.Partition = p.topic, p.id
	r := kafka.NewReader(config)
	_ = r.SetOffset(start) // fails for the reader of a group, and a closed one
	return r
}

// readFrom reads until ctx ends, which is an error, or until the offset that it
// returns is out of range.
func (m *membership) readFrom(ctx context.Context, r *kafka.Reader, p *partition, next int64) (int64, error) {
	var wait consumers.Pause
	p.last = next - 1
	for {
		msg, err := r.FetchMessage(ctx)
		switch {
		case ctx.Err() != nil:
			return next, context.Cause(ctx)
		case errors.Is(err, kafka.OffsetOutOfRange):
			return next, nil
		case err != nil:
			wait.Wait(ctx, m.c.s.guard, fmt.Errorf("fetching from %s: %w", p, err))
			continue
		}
		wait.Reset()
		m.c.lookIntoGap(ctx, p, msg.Offset)
		if err := p.push(ctx, msg); err != nil {
			return next, err
		}
		next = msg.Offset + 1
	}
}

// start returns the offset to read a partition from: an absolute one, within what the
// partition has.
func (m *membership) start(ctx context.Context, p *partition, offset int64) (int64, error) {
	var wait consumers.Pause
	for {
		first, last, err := m.c.ask.ends(ctx, p.topic, p.id)
		switch {
		case ctx.Err() != nil:
			return 0, context.Cause(ctx)
		case err != nil:
			wait.Wait(ctx, m.c.s.guard, fmt.Errorf("asking for the offsets of %s: %w", p, err))
		case offset == kafka.LastOffset:
			return last, nil
		case offset > last:
			return 0, beyondEnd(p.topic, p.id, offset, last)
		case offset < first:
			if offset >= 0 {
				consumers.EmitFinding(m.c.s.guard, deleted(p.topic, p.id, offset, first))
			}
			return first, nil
		default:
			return offset, nil
		}
	}
}

// lookIntoGap is called with the offset that came after p.last. What is missing between was
// compacted, or is a marker, or was deleted unhandled, which kafka-go tells nobody: the last
// is told.
func (c *Consumer) lookIntoGap(ctx context.Context, p *partition, offset int64) {
	next := p.last + 1
	if offset <= next || time.Since(p.gapAsked) < askAboutGap {
		return
	}
	p.gapAsked = time.Now()
	if c.source == nil {
		c.tellDeleted(ctx, p, next, offset)
		return
	}
	p.track.hold(true) // else the answer may be what this member handled behind the gap
	c.source.questions.Go(func() {
		c.tellDeleted(ctx, p, next, offset)
		p.track.hold(false)
		c.s.commitSoon()
	})
}

// tellDeleted tells of what was deleted before this group had handled it, of the offsets from
// next up to end.
func (c *Consumer) tellDeleted(ctx context.Context, p *partition, next, end int64) {
	first, _, err := c.ask.ends(ctx, p.topic, p.id)
	if err != nil || first <= next {
		return
	}
	if c.source != nil { // another member may have had the partition meanwhile
		committed, err := c.source.standing.committed(ctx, p.place())
		if err != nil {
			return
		}
		next = max(next, committed)
	}
	if first = min(first, end); first > next {
		consumers.EmitFinding(c.s.guard, deleted(p.topic, p.id, next, first))
	}
}

// deleted is that the topic's retention deleted messages unhandled, up to first.
func deleted(topic string, partition int, next, first int64) idem.Finding {
	return idem.Finding{
		ID:          "kafka-deleted",
		What:        fmt.Sprintf("Partition %d of topic %s: offsets %d to %d were deleted by the topic's retention before this group had handled them.", partition, topic, next, first-1),
		Consequence: "These messages are lost.",
		Cure:        "Raise the topic's retention.ms, or add consumers.",
		Lost:        true,
	}
}

// errBeyondEnd: whoever went on reading would pass over what the topic has now, up to
// the old offset.
var errBeyondEnd = errors.New("the topic was deleted and made again, or has lost its tail: stop the group, and set its offset with kafka-consumer-groups --reset-offsets: to the earliest if the topic is a new one (what is known is dropped), to the latest if not")

func beyondEnd(topic string, partition int, offset, last int64) error {
	return fmt.Errorf("idemkafka: the committed offset of partition %d of topic %s is %d, beyond its end at %d: %w", partition, topic, offset, last, errBeyondEnd)
}
