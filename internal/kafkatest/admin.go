package kafkatest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/idemq/idemq/internal/testenv"
)

const requestTimeout = 20 * time.Second

// client is a client of a broker that is used once; done leaves nothing of it.
func client(addr string) (c *kafka.Client, done func()) {
	ctx, cancel := context.WithCancel(context.Background())
	transport := &kafka.Transport{Context: ctx}
	return &kafka.Client{Addr: kafka.TCP(addr), Transport: transport, Timeout: requestTimeout}, func() {
		transport.CloseIdleConnections()
		cancel()
	}
}

// ready says what a broker still lacks.
func ready(addr string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	_ = conn.Close()
	c, done := client(addr)
	defer done()
	meta, err := c.Metadata(ctx, &kafka.MetadataRequest{})
	switch {
	case err != nil:
		return err
	case len(meta.Brokers) == 0:
		return errors.New("it has not registered itself")
	}
	for _, topic := range meta.Topics {
		var all []int
		for _, p := range topic.Partitions {
			if p.Leader.Host == "" {
				return fmt.Errorf("partition %d of %s has no leader", p.ID, topic.Name)
			}
			all = append(all, p.ID)
		}
		if _, _, err := bounds(ctx, c, topic.Name, all); err != nil {
			return err
		}
	}
	// The first question creates the topic that the coordinator needs.
	found, err := c.FindCoordinator(ctx, &kafka.FindCoordinatorRequest{Key: "kafkatest", KeyType: kafka.CoordinatorKeyTypeConsumer})
	if err != nil {
		return err
	}
	return found.Error
}

// bounds returns the first offset of each partition, and the one after the last. A
// broker is named as a leader a moment before it is one: it has to answer as such.
func bounds(ctx context.Context, c *kafka.Client, topic string, partitions []int) (first, last map[int]int64, err error) {
	var ask []kafka.OffsetRequest
	for _, p := range partitions {
		ask = append(ask, kafka.FirstOffsetOf(p), kafka.LastOffsetOf(p))
	}
	resp, err := c.ListOffsets(ctx, &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{topic: ask}})
	if err != nil {
		return nil, nil, fmt.Errorf("offsets of %s: %w", topic, err)
	}
	first, last = map[int]int64{}, map[int]int64{}
	for _, p := range resp.Topics[topic] {
		if p.Error != nil {
			return nil, nil, fmt.Errorf("offsets of partition %d of %s: %w", p.Partition, topic, p.Error)
		}
		first[p.Partition], last[p.Partition] = p.FirstOffset, p.LastOffset
	}
	return first, last, nil
}

// CreateTopic creates a topic and returns when each of its partitions has a leader.
// Each of configs is a setting of the topic: "cleanup.policy=compact".
func (s *Server) CreateTopic(tb testing.TB, name string, partitions int, configs ...string) {
	tb.Helper()
	topic := kafka.TopicConfig{Topic: name, NumPartitions: partitions, ReplicationFactor: 1}
	for _, c := range configs {
		key, value, found := strings.Cut(c, "=")
		if !found {
			tb.Fatalf("setting %q of topic %s: write it as key=value", c, name)
		}
		topic.ConfigEntries = append(topic.ConfigEntries, kafka.ConfigEntry{ConfigName: key, ConfigValue: value})
	}
	c, done := client(s.addr)
	defer done()
	resp, err := c.CreateTopics(context.Background(), &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{topic}})
	if err == nil {
		err = resp.Errors[name]
	}
	if err != nil {
		tb.Fatalf("creating topic %s: %v", name, err)
	}
	testenv.Await(tb, "the leaders of topic "+name, func() bool {
		led := s.leaders(name)
		if len(led) < partitions {
			return false
		}
		_, _, err := bounds(context.Background(), c, name, led)
		return err == nil
	})
}

// leaders lists the partitions of a topic that have a leader.
func (s *Server) leaders(topic string) (partitions []int) {
	c, done := client(s.addr)
	defer done()
	meta, err := c.Metadata(context.Background(), &kafka.MetadataRequest{Topics: []string{topic}})
	if err != nil || len(meta.Topics) != 1 || meta.Topics[0].Error != nil {
		return nil
	}
	for _, p := range meta.Topics[0].Partitions {
		if p.Leader.Host != "" {
			partitions = append(partitions, p.ID)
		}
	}
	slices.Sort(partitions)
	return partitions
}

// partitions lists the partitions of a topic that is there.
func (s *Server) partitions(tb testing.TB, topic string) []int {
	tb.Helper()
	all := s.leaders(topic)
	if len(all) == 0 {
		tb.Fatalf("the broker at %s has no topic %s, or no leader of it", s.addr, topic)
	}
	return all
}

// Committed returns the offsets that a group has committed, by partition; those of
// which it has committed none are left out.
func (s *Server) Committed(tb testing.TB, group, topic string) map[int]int64 {
	tb.Helper()
	c, done := client(s.addr)
	defer done()
	resp, err := c.OffsetFetch(context.Background(), &kafka.OffsetFetchRequest{
		GroupID: group, Topics: map[string][]int{topic: s.partitions(tb, topic)},
	})
	if err == nil {
		err = resp.Error
	}
	if errors.Is(err, kafka.GroupIdNotFound) { // the fake's; a broker answers that there is nothing
		return map[int]int64{}
	}
	if err != nil {
		tb.Fatalf("committed offsets of group %s: %v", group, err)
	}
	offsets := map[int]int64{}
	for _, p := range resp.Topics[topic] {
		if p.Error != nil {
			tb.Fatalf("committed offset of group %s, partition %d of %s: %v", group, p.Partition, topic, p.Error)
		}
		if p.CommittedOffset >= 0 {
			offsets[p.Partition] = p.CommittedOffset
		}
	}
	return offsets
}

// Furthest returns the furthest offsets that a group has ever committed, by partition: what
// Committed returns may lie before, where a commit came late. A broker compacts its log of
// commits, but not in the time of a test; the fake has none.
func (s *Server) Furthest(tb testing.TB, group, topic string) map[int]int64 {
	tb.Helper()
	furthest := map[int]int64{}
	for _, m := range s.All(tb, "__consumer_offsets") {
		if len(m.Key) < 2 || m.Key[0] != 0 || m.Key[1] > 1 || m.Value == nil { // not a commit
			continue
		}
		var key kmsg.OffsetCommitKey
		var value kmsg.OffsetCommitValue
		if err := errors.Join(key.ReadFrom(m.Key), value.ReadFrom(m.Value)); err != nil {
			tb.Fatalf("reading a commit: %v", err)
		}
		if key.Group == group && key.Topic == topic {
			p := int(key.Partition)
			furthest[p] = max(furthest[p], value.Offset)
		}
	}
	return furthest
}

// Ends returns the offset of the next message of each partition.
func (s *Server) Ends(tb testing.TB, topic string) map[int]int64 {
	tb.Helper()
	_, last := s.bounds(tb, topic)
	return last
}

func (s *Server) bounds(tb testing.TB, topic string) (first, last map[int]int64) {
	tb.Helper()
	c, done := client(s.addr)
	defer done()
	partitions := s.partitions(tb, topic)
	testenv.Await(tb, "the offsets of topic "+topic, func() bool {
		var err error
		first, last, err = bounds(context.Background(), c, topic, partitions)
		if err != nil && !errors.Is(err, kafka.NotLeaderForPartition) {
			tb.Fatal(err)
		}
		return err == nil
	})
	return first, last
}

// All returns every message that is in a topic now, partition by partition, those of
// open and aborted transactions included. It reads with another client than the
// adapter's.
func (s *Server) All(tb testing.TB, topic string) []kafka.Message {
	tb.Helper()
	first, last := s.bounds(tb, topic)
	from := map[int32]kgo.Offset{}
	owed := map[int]bool{}
	for p, end := range last {
		if first[p] < end {
			from[int32(p)] = kgo.NewOffset().At(first[p])
			owed[p] = true
		}
	}
	if len(owed) == 0 {
		return nil
	}
	c, err := kgo.NewClient(
		kgo.SeedBrokers(s.addr), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: from}),
		kgo.KeepControlRecords(), kgo.FetchMaxWait(100*time.Millisecond),
	)
	if err != nil {
		tb.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	var all []kafka.Message
	for len(owed) > 0 {
		fetches := c.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			tb.Fatalf("reading %s: %v", topic, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			p := int(r.Partition)
			if r.Offset >= last[p] {
				return
			}
			if r.Offset == last[p]-1 {
				delete(owed, p)
			}
			if !r.Attrs.IsControl() {
				all = append(all, message(r))
			}
		})
	}
	slices.SortStableFunc(all, func(a, b kafka.Message) int { return a.Partition - b.Partition })
	return all
}

func message(r *kgo.Record) kafka.Message {
	m := kafka.Message{
		Topic: r.Topic, Partition: int(r.Partition), Offset: r.Offset, Key: r.Key, Value: r.Value, Time: r.Timestamp,
	}
	for _, h := range r.Headers {
		m.Headers = append(m.Headers, kafka.Header{Key: h.Key, Value: h.Value})
	}
	return m
}
