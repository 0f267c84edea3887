package torture

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/idemq/idemq/e2e/history"
	"github.com/idemq/idemq/e2e/torture/role"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/internal/kafkatest"
)

const (
	kafkaPartitions = 8
	// askTimeout bounds what the harness asks of a server itself.
	askTimeout = 10 * time.Second
)

type kafkaBroker struct {
	tb     testing.TB
	kind   string
	server *kafkatest.Server
	proxy  *Proxy
	admin  *kafka.Client
	writer *kgo.Client

	size int // partitions of the source, from the next round on

	run                 string
	topic, group, dead  string
	partitions, letters []int
}

// NewKafka starts a Kafka for consumers that join the group themselves (idemkafka's
// NewGroupConsumer), or read from a kafka.Reader (NewConsumer). No two brokers share a
// server.
func NewKafka(tb testing.TB, owns bool) Broker {
	tb.Helper()
	b := &kafkaBroker{tb: tb, kind: "kafka-reader", size: kafkaPartitions}
	if owns {
		b.kind = "kafka-group"
	}
	b.server = kafkatest.StartBehind(tb, func(upstream string) string {
		if b.proxy == nil {
			b.proxy = NewProxy(tb, upstream)
		} else {
			b.proxy.SetUpstream(upstream)
		}
		return b.proxy.Addr()
	}, "group.min.session.timeout.ms=500")
	transport := &kafka.Transport{MetadataTTL: time.Second}
	b.admin = &kafka.Client{Addr: kafka.TCP(b.server.Addr()), Transport: transport, Timeout: askTimeout}
	var err error
	b.writer, err = kgo.NewClient(
		kgo.SeedBrokers(b.server.Addr()), kgo.RecordPartitioner(kgo.StickyKeyPartitioner(nil)),
		kgo.ProducerLinger(0), kgo.MetadataMinAge(100*time.Millisecond), kgo.RetryBackoffFn(func(int) time.Duration { return 100 * time.Millisecond }),
		// What is in flight when the broker dies is found again by its sequence number, so
		// messages of a key stay in order.
		kgo.RequiredAcks(kgo.AllISRAcks()), kgo.MaxBufferedRecords(1<<20),
	)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		b.writer.Close()
		transport.CloseIdleConnections()
	})
	return b
}

func (b *kafkaBroker) Kind() string    { return b.kind }
func (b *kafkaBroker) Version() string { return "Kafka " + b.server.Version() }
func (b *kafkaBroker) Proxy() *Proxy   { return b.proxy }
func (b *kafkaBroker) Ordered() bool   { return true }
func (b *kafkaBroker) Restart()        { b.server.Restart() }

func (b *kafkaBroker) Role() role.Broker {
	return role.Broker{Kind: b.kind, Addr: b.proxy.Addr(), Source: b.topic, Group: b.group, DeadTo: b.dead}
}

func (b *kafkaBroker) Round(run string) {
	b.tb.Helper()
	if b.run != "" {
		ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
		defer cancel()
		b.writer.PurgeTopicsFromClient(b.topic)
		if _, err := b.admin.DeleteTopics(ctx, &kafka.DeleteTopicsRequest{Topics: []string{b.topic, b.dead}}); err != nil {
			b.tb.Fatalf("deleting the topics of %s: %v", b.run, err)
		}
		if _, err := b.admin.DeleteGroups(ctx, &kafka.DeleteGroupsRequest{GroupIDs: []string{b.group}}); err != nil {
			b.tb.Fatalf("deleting the group of %s: %v", b.run, err)
		}
	}
	// A run that is repeated has topics of its own: the old ones may be there for a moment.
	name := fmt.Sprintf("%s.%08x", run, rand.Uint32())
	b.run, b.topic, b.group, b.dead = run, name, name+".group", name+".dead"
	b.server.CreateTopic(b.tb, b.topic, b.size)
	// A consumer whose clock is an hour ahead could not dead-letter otherwise: its Run ends then.
	b.server.CreateTopic(b.tb, b.dead, 1, "message.timestamp.after.max.ms="+fmt.Sprint(int64(math.MaxInt64)))
	b.partitions, b.letters = make([]int, b.size), []int{0}
	for i := range b.partitions {
		b.partitions[i] = i
	}
}

func (b *kafkaBroker) Publish(ctx context.Context, msgs []Message) error {
	records := make([]*kgo.Record, len(msgs))
	for i, m := range msgs {
		records[i] = &kgo.Record{
			Topic: b.topic, Key: binary.BigEndian.AppendUint32(nil, m.Key), Value: []byte("order " + strconv.FormatUint(uint64(m.Token), 10)),
			Headers: []kgo.RecordHeader{{Key: idem.Header, Value: []byte(history.Token(b.run, m.Token))}},
		}
	}
	return b.writer.ProduceSync(ctx, records...).FirstErr()
}

// ends are the offsets behind the last messages of a topic.
func (b *kafkaBroker) ends(ctx context.Context, topic string, partitions []int) (map[int]int64, error) {
	ask := make([]kafka.OffsetRequest, len(partitions))
	for i, p := range partitions {
		ask[i] = kafka.LastOffsetOf(p)
	}
	resp, err := b.admin.ListOffsets(ctx, &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{topic: ask}})
	if err != nil {
		return nil, err
	}
	ends := make(map[int]int64, len(partitions))
	for _, p := range resp.Topics[topic] {
		if p.Error != nil {
			return nil, p.Error
		}
		ends[p.Partition] = p.LastOffset
	}
	if len(ends) != len(partitions) {
		return nil, fmt.Errorf("offsets of %d partitions of %s, of %d", len(ends), topic, len(partitions))
	}
	return ends, nil
}

func (b *kafkaBroker) Owed(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	ends, err := b.ends(ctx, b.topic, b.partitions)
	if err != nil {
		return 0, err
	}
	resp, err := b.admin.OffsetFetch(ctx, &kafka.OffsetFetchRequest{GroupID: b.group, Topics: map[string][]int{b.topic: b.partitions}})
	if err == nil {
		err = resp.Error
	}
	if err != nil {
		return 0, err
	}
	owed := 0
	for _, p := range resp.Topics[b.topic] {
		if p.Error != nil {
			return 0, p.Error
		}
		owed += int(ends[p.Partition] - max(0, p.CommittedOffset))
		delete(ends, p.Partition)
	}
	for _, end := range ends {
		owed += int(end)
	}
	return owed, nil
}

func (b *kafkaBroker) DeadLetters(ctx context.Context) ([]uint32, error) {
	ends, err := b.ends(ctx, b.dead, b.letters)
	if err != nil {
		return nil, err
	}
	if ends[0] == 0 {
		return nil, nil
	}
	reader, err := kgo.NewClient(
		kgo.SeedBrokers(b.server.Addr()), kgo.FetchMaxWait(100*time.Millisecond),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{b.dead: {0: kgo.NewOffset().AtStart()}}),
	)
	if err != nil {
		return nil, err
	}
	defer reader.Close()
	var tokens []uint32
	for next := int64(0); next < ends[0]; {
		fetches := reader.PollFetches(ctx)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		for _, e := range fetches.Errors() {
			if !kerr.IsRetriable(e.Err) {
				return nil, e.Err
			}
		}
		for r := range fetches.RecordsAll() {
			next = r.Offset + 1
			n, err := b.token(r)
			if err != nil {
				return nil, err
			}
			tokens = append(tokens, n)
		}
	}
	return tokens, nil
}

func (b *kafkaBroker) token(r *kgo.Record) (uint32, error) {
	for _, h := range r.Headers {
		if h.Key == idem.Header {
			return number(b.run, string(h.Value))
		}
	}
	return 0, errors.New("a dead letter without a token")
}

// number is the number of a dead letter's token.
func number(run, token string) (uint32, error) {
	n, ok := history.Number(run, token)
	if !ok {
		return 0, fmt.Errorf("a dead letter with the token %q, which is not of the run %s", token, run)
	}
	return n, nil
}
