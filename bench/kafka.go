package bench

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/internal/kafkatest"
)

type kafkaServer struct {
	*kafkatest.Server
	client *kafka.Client
}

func openKafka(tb testing.TB) server {
	tb.Helper()
	k := &kafkaServer{Server: kafkatest.Start(tb)}
	transport := new(kafka.Transport)
	tb.Cleanup(transport.CloseIdleConnections)
	k.client = &kafka.Client{Addr: kafka.TCP(k.Addr()), Transport: transport, Timeout: 10 * time.Second}
	return k
}

func (k *kafkaServer) pid() int { return k.Pid() }

func (k *kafkaServer) version() string { return "Kafka " + k.Version() }

func (k *kafkaServer) create(tb testing.TB, source string, partitions int) string {
	tb.Helper()
	k.CreateTopic(tb, source, partitions)
	return k.Addr()
}

func (k *kafkaServer) producer(_ testing.TB, source string) producer {
	transport := new(kafka.Transport) // a new one knows the new topic
	return &kafkaProducer{transport: transport, writer: &kafka.Writer{
		Addr: kafka.TCP(k.Addr()), Transport: transport, Topic: source, RequiredAcks: kafka.RequireAll,
		BatchSize: 1000, BatchTimeout: time.Millisecond,
		Balancer: kafka.BalancerFunc(func(m kafka.Message, _ ...int) int { return m.WriterData.(int) }),
	}}
}

// kafkaProducer waits for what it sends: what becomes due meanwhile makes the next batch. The
// writer by itself makes one of each millisecond, and these queue up.
type kafkaProducer struct {
	transport *kafka.Transport
	writer    *kafka.Writer
}

func (p *kafkaProducer) send(ctx context.Context, some ...message) error {
	all := make([]kafka.Message, len(some))
	for i, m := range some {
		all[i] = kafka.Message{
			Key: []byte(m.token), Value: m.payload, WriterData: m.partition,
			Headers: []kafka.Header{{Key: idem.Header, Value: []byte(m.token)}},
		}
	}
	return p.writer.WriteMessages(ctx, all...)
}

func (*kafkaProducer) flush(context.Context) error { return nil }

func (p *kafkaProducer) close() {
	_ = p.writer.Close()
	p.transport.CloseIdleConnections()
}

func (k *kafkaServer) owed(ctx context.Context, s *Site) (int, error) {
	offsets, err := k.client.OffsetFetch(ctx, &kafka.OffsetFetchRequest{GroupID: s.Group, Topics: map[string][]int{s.Source: s.partitions()}})
	if err == nil {
		err = offsets.Error
	}
	if err != nil {
		return 0, fmt.Errorf("committed offsets of %s: %w", s.Source, err)
	}
	owed := s.Messages
	for _, p := range offsets.Topics[s.Source] {
		if p.Error != nil {
			return 0, fmt.Errorf("committed offset of partition %d of %s: %w", p.Partition, s.Source, p.Error)
		}
		owed -= int(max(p.CommittedOffset, 0))
	}
	return owed, nil
}

func (s *Site) partitions() []int {
	all := make([]int, s.Partitions)
	for i := range all {
		all[i] = i
	}
	return all
}

func (k *kafkaServer) discard(tb testing.TB, source string) {
	tb.Helper()
	if _, err := k.client.DeleteTopics(context.Background(), &kafka.DeleteTopicsRequest{Topics: []string{source}}); err != nil {
		tb.Fatalf("deleting topic %s: %v", source, err)
	}
}

// reader is how every row of kafka-go reads: with its defaults, but for what makes joining
// and closing quick, which is not on the clock.
func (s *Site) reader() kafka.ReaderConfig {
	return kafka.ReaderConfig{
		Brokers: []string{s.Addr}, GroupID: s.Group, Topic: s.Source, StartOffset: kafka.FirstOffset,
		MaxWait: 250 * time.Millisecond, JoinGroupBackoff: 200 * time.Millisecond,
	}
}

// kafkaRows are the rows of Kafka, in the order in which they are listed and run.
func kafkaRows() []Row {
	return slices.Concat(kafkaByHand(), []Row{watermillRow(), camelRow()}, kafkaOurs())
}
