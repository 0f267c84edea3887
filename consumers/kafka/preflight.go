package idemkafka

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/segmentio/kafka-go"
)

// askTimeout bounds a question to the brokers.
const askTimeout = 5 * time.Second

// brokers is whom a consumer can ask. With no address, a Reader that is none of
// kafka-go's, nothing is asked.
type brokers struct {
	addrs  []string
	dialer *kafka.Dialer
	start  int64
}

// client returns a client that connects as the readers do.
func (b brokers) client() (c *kafka.Client, closeIt func()) {
	t := &kafka.Transport{}
	if d := b.dialer; d != nil {
		t.Dial, t.TLS, t.SASL, t.ClientID = d.DialFunc, d.TLS, d.SASLMechanism, d.ClientID
	}
	return &kafka.Client{Addr: kafka.TCP(b.addrs...), Timeout: askTimeout, Transport: t}, t.CloseIdleConnections
}

// connect tries whether the brokers can be connected to: the error of a Dialer says why
// not, that of a Client may not.
func (b brokers) connect(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	for _, addr := range b.addrs {
		var conn *kafka.Conn
		if conn, err = b.theDialer().DialContext(ctx, "tcp", addr); err == nil {
			_ = conn.Close()
			return nil
		}
	}
	return fmt.Errorf("connecting to Kafka: %w", err)
}

func (b brokers) theDialer() *kafka.Dialer {
	if b.dialer == nil {
		return kafka.DefaultDialer
	}
	return b.dialer
}

// ends returns the first offset of a partition, and the one behind its last.
func (b brokers) ends(ctx context.Context, topic string, id int) (first, last int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	for _, addr := range b.addrs {
		var conn *kafka.Conn
		if conn, err = b.theDialer().DialLeader(ctx, "tcp", addr, topic, id); err != nil {
			continue
		}
		_ = conn.SetDeadline(time.Now().Add(askTimeout)) // a closed one fails below
		first, last, err = conn.ReadOffsets()
		_ = conn.Close()
		if err == nil {
			return first, last, nil
		}
	}
	return 0, 0, err
}

// preflight asks whether the topics are there, waiting for the brokers as long as ctx
// lasts. What would lose messages is an error; what weakens the promise is an
// EventStoreNotice.
func (c *Consumer) preflight(ctx context.Context) error {
	if len(c.ask.addrs) == 0 {
		return nil
	}
	client, closeIt := c.ask.client()
	defer closeIt()
	var p pause
	for {
		err := c.ask.connect(ctx)
		if err == nil {
			err = c.checkTopics(ctx, client)
		}
		if err == nil {
			err = c.checkLetters(ctx)
		}
		if err == nil && c.source != nil { // a membership of its own asks in each generation
			err = c.checkOffsets(ctx, client)
		}
		switch {
		case err == nil:
			c.noticeRetention(ctx, client)
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, errMissing), errors.Is(err, errBeyondEnd), isRefusal(err):
			return err
		}
		p.wait(ctx, c.s.guard, err)
	}
}

// errMissing: a topic does not exist.
var errMissing = errors.New("it does not exist: create it first")

func (c *Consumer) checkTopics(ctx context.Context, client *kafka.Client) error {
	for _, topic := range c.topics {
		if err := hasTopic(ctx, client, topic); err != nil {
			return fmt.Errorf("topic %q: %w", topic, err)
		}
	}
	return nil
}

func (c *Consumer) checkLetters(ctx context.Context) error {
	l := c.s.conf.letters
	if l == nil || l.w.AllowAutoTopicCreation {
		return nil
	}
	client := &kafka.Client{Addr: l.w.Addr, Timeout: askTimeout, Transport: l.w.Transport}
	if err := hasTopic(ctx, client, l.name()); err != nil {
		return fmt.Errorf("DeadLetter: topic %q: %w", l.name(), err)
	}
	return nil
}

// checkOffsets looks for offsets of the group beyond the end of their partition.
func (c *Consumer) checkOffsets(ctx context.Context, client *kafka.Client) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	meta, err := client.Metadata(ctx, &kafka.MetadataRequest{Topics: c.topics})
	if err != nil {
		return fmt.Errorf("asking %s: %w", client.Addr, err)
	}
	partitions := make(map[string][]int)
	ends := make(map[string][]kafka.OffsetRequest)
	for _, t := range meta.Topics {
		for _, p := range t.Partitions {
			partitions[t.Name] = append(partitions[t.Name], p.ID)
			ends[t.Name] = append(ends[t.Name], kafka.LastOffsetOf(p.ID))
		}
	}
	committed, err := client.OffsetFetch(ctx, &kafka.OffsetFetchRequest{GroupID: c.source.Config().GroupID, Topics: partitions})
	if err == nil {
		err = committed.Error
	}
	if errors.Is(err, kafka.GroupIdNotFound) {
		return nil // a group that is new
	}
	if err != nil {
		return fmt.Errorf("asking for the group's offsets: %w", err)
	}
	last, err := client.ListOffsets(ctx, &kafka.ListOffsetsRequest{Topics: ends})
	if err != nil {
		return fmt.Errorf("asking for the topics' ends: %w", err)
	}
	for topic, all := range committed.Topics {
		for _, p := range all {
			for _, end := range last.Topics[topic] {
				if end.Partition == p.Partition && end.Error == nil && p.Error == nil && p.CommittedOffset > end.LastOffset {
					return beyondEnd(topic, p.Partition, p.CommittedOffset, end.LastOffset)
				}
			}
		}
	}
	return nil
}

// hasTopic asks for a topic, and creates none.
func hasTopic(ctx context.Context, client *kafka.Client, topic string) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	answer, err := client.Metadata(ctx, &kafka.MetadataRequest{Topics: []string{topic}})
	if err != nil {
		return fmt.Errorf("asking %s: %w", client.Addr, err)
	}
	for _, t := range answer.Topics {
		switch {
		case t.Name != topic:
		case errors.Is(t.Error, kafka.UnknownTopicOrPartition):
			return errMissing
		default:
			return t.Error
		}
	}
	return errMissing
}

// isRefusal reports whether waiting does not mend err.
func isRefusal(err error) bool {
	for _, e := range []kafka.Error{
		kafka.SASLAuthenticationFailed, kafka.UnsupportedSASLMechanism, kafka.IllegalSASLState,
		kafka.TopicAuthorizationFailed, kafka.GroupAuthorizationFailed, kafka.ClusterAuthorizationFailed,
		kafka.InvalidTopic, kafka.InvalidGroupId, kafka.InvalidSessionTimeout, kafka.InconsistentGroupProtocol,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// noticeRetention compares how long the topics and the guard remember.
func (c *Consumer) noticeRetention(ctx context.Context, client *kafka.Client) {
	if c.ask.start == kafka.LastOffset {
		c.notice("StartOffset is LastOffset: what arrives before this group has committed an offset for a partition is not handled")
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	req := &kafka.DescribeConfigsRequest{}
	for _, topic := range c.topics {
		req.Resources = append(req.Resources, kafka.DescribeConfigRequestResource{
			ResourceType: kafka.ResourceTypeTopic, ResourceName: topic, ConfigNames: []string{"retention.ms", "cleanup.policy"},
		})
	}
	answer, err := client.DescribeConfigs(ctx, req)
	if err != nil {
		return // it needs a right that consumers need not have
	}
	keep := c.s.guard.Settings().Retention
	for _, r := range answer.Resources {
		settings := make(map[string]string)
		for _, entry := range r.ConfigEntries {
			settings[entry.ConfigName] = entry.ConfigValue
		}
		ms, err := strconv.ParseInt(settings["retention.ms"], 10, 64)
		switch age := time.Duration(ms) * time.Millisecond; {
		case err != nil:
		case settings["cleanup.policy"] == "compact", ms < 0:
			c.notice("topic %s keeps messages for ever, the guard remembers them for %v: one that is fetched again later is handled again: set retention.ms, or a longer WithRetention", r.ResourceName, keep)
		case age > keep:
			c.notice("topic %s keeps messages for %v, the guard remembers them for %v: one that is fetched again later (offsets that were reset, say) is handled again: set WithRetention to more than %v", r.ResourceName, age, keep, age)
		}
	}
}
