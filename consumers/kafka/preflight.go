package idemkafka

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/idem"
)

// askTimeout bounds a question to the brokers.
const askTimeout = 5 * time.Second

// brokers is whom a consumer can ask. With no address, a Reader that is none of
// kafka-go's, nothing is asked.
type brokers struct {
	addrs  []string
	dialer *kafka.Dialer
	group  string
	start  int64
}

// client returns a client that connects as the readers do. Until it is closed it asks for
// the leaders of these topics every few seconds; with none, of all that the cluster has.
func (b brokers) client(topics ...string) (c *kafka.Client, closeIt func()) {
	t := &kafka.Transport{MetadataTopics: topics}
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
		stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
		first, last, err = conn.ReadOffsets()
		stop()
		_ = conn.Close()
		if err == nil {
			return first, last, nil
		}
	}
	return 0, 0, err
}

// errMissing: a topic does not exist.
var errMissing = errors.New("it does not exist: create it first")

// Preflight asks the store and the brokers, and returns what weakens the promise: topics
// that keep messages for longer than the guard remembers them, that may delete them
// unhandled (compaction), or that did (kafka-deleted); a dead-letter topic that is less safe
// than the topics; settings of the reader; and what the store finds (Guard.Preflight). The
// error is what would end Run: a topic that is missing, a committed offset beyond the end of
// its partition, what consumers.Strict does not let pass; or that a server did not answer.
// docs/preflight.md lists all findings. It changes nothing, and may be called at any time,
// also while Run is at work. A loop around Wrap has Guard.Preflight for the store.
//
// Reading the topics' settings needs the right to describe their configs. With a Reader
// that is none of kafka-go's, and names no brokers, these are not asked.
func (c *Consumer) Preflight(ctx context.Context) ([]idem.Finding, error) {
	var lost []idem.Finding
	found, err := consumers.Preflight(ctx, c.s.guard, c.policy, func(ctx context.Context) ([]idem.Finding, error) {
		found, err := c.examine(ctx)
		if err == nil {
			lost, err = c.checkOffsets(ctx)
		}
		return found, err
	})
	found = append(found, lost...) // Strict refuses none of them: no delay brings them back
	if err != nil {
		return found, fmt.Errorf("idemkafka: preflight: %w", err)
	}
	return found, nil
}

// examine asks the brokers once. What would lose messages is an error.
func (c *Consumer) examine(ctx context.Context) ([]idem.Finding, error) {
	found := c.readerFindings()
	if len(c.ask.addrs) == 0 {
		return found, nil
	}
	client, closeIt := c.ask.client()
	defer closeIt()
	if err := c.ask.connect(ctx); err != nil {
		return found, err
	}
	replicas := 0
	for _, topic := range c.topics {
		n, err := replicasOf(ctx, client, topic)
		if err != nil {
			return found, fmt.Errorf("topic %q: %w", topic, err)
		}
		replicas = max(replicas, n)
	}
	letters, err := c.letterFindings(ctx, replicas)
	if err != nil {
		return found, err
	}
	found = append(found, letters...)
	for _, topic := range c.topics {
		found = append(found, c.topicFindings(ctx, client, topic)...)
	}
	return found, nil
}

// isFinal reports whether waiting does not mend an error of examine.
func isFinal(err error) bool {
	return errors.Is(err, errMissing) || errors.Is(err, errBeyondEnd) || isRefusal(err)
}

// readerFindings are those that need no broker.
func (c *Consumer) readerFindings() (found []idem.Finding) {
	if c.ask.start == kafka.LastOffset {
		found = append(found, idem.Finding{
			ID:          "kafka-last-offset",
			What:        "StartOffset is LastOffset.",
			Consequence: "What arrives before the group has committed an offset for a partition, a new one for example, is never handled.",
			Cure:        "Set StartOffset to FirstOffset.",
		})
	}
	if c.blind {
		found = append(found, idem.Finding{
			ID:          "kafka-out-of-range",
			What:        "OffsetOutOfRangeError of the Reader is false.",
			Consequence: "If a topic is deleted and made again while Run is at work, its new messages are passed over, up to the old offset.",
			Cure:        "Set OffsetOutOfRangeError to true, or use NewGroupConsumer.",
		})
	}
	return found
}

// letterFindings looks at the dead-letter topic, beside topics with that many replicas.
func (c *Consumer) letterFindings(ctx context.Context, replicas int) (found []idem.Finding, err error) {
	l := c.s.conf.letters
	if l == nil {
		return nil, nil
	}
	client := &kafka.Client{Addr: l.w.Addr, Timeout: askTimeout, Transport: l.w.Transport}
	n, err := replicasOf(ctx, client, l.name())
	switch {
	case errors.Is(err, errMissing) && l.w.AllowAutoTopicCreation:
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("DeadLetter: topic %q: %w", l.name(), err)
	}
	if n < 2 && replicas > 1 {
		found = append(found, idem.Finding{
			ID:          "kafka-letters-replicas",
			What:        fmt.Sprintf("The dead-letter topic %s has no second replica, while the messages themselves have %d.", l.name(), replicas),
			Consequence: "A broker that loses its disk loses dead letters whose messages were committed.",
			Cure:        fmt.Sprintf("Give the dead-letter topic %d replicas.", replicas),
		})
	}
	if n > 1 && l.w.RequiredAcks == kafka.RequireOne {
		found = append(found, idem.Finding{
			ID:          "kafka-letters-acks",
			What:        fmt.Sprintf("RequiredAcks of the writer for the dead-letter topic %s is RequireOne.", l.name()),
			Consequence: "A copy that its leader confirmed is lost if that broker fails before another has it, and its message was committed.",
			Cure:        "Set RequiredAcks to kafka.RequireAll.",
		})
	}
	return found, nil
}

// checkOffsets looks for offsets of the group beyond the end of their partition, which is an
// error, and for those before its beginning.
func (c *Consumer) checkOffsets(ctx context.Context) (lost []idem.Finding, err error) {
	if len(c.ask.addrs) == 0 {
		return nil, nil
	}
	client, closeIt := c.ask.client()
	defer closeIt()
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	meta, err := client.Metadata(ctx, &kafka.MetadataRequest{Topics: c.topics})
	if err != nil {
		return nil, fmt.Errorf("asking %s: %w", client.Addr, err)
	}
	partitions := make(map[string][]int)
	bounds := make(map[string][]kafka.OffsetRequest)
	for _, t := range meta.Topics {
		for _, p := range t.Partitions {
			partitions[t.Name] = append(partitions[t.Name], p.ID)
			bounds[t.Name] = append(bounds[t.Name], kafka.FirstOffsetOf(p.ID), kafka.LastOffsetOf(p.ID))
		}
	}
	committed, err := client.OffsetFetch(ctx, &kafka.OffsetFetchRequest{GroupID: c.ask.group, Topics: partitions})
	if err == nil {
		err = committed.Error
	}
	if errors.Is(err, kafka.GroupIdNotFound) {
		return nil, nil // a group that is new
	}
	if err != nil {
		return nil, fmt.Errorf("asking for the group's offsets: %w", err)
	}
	there, err := client.ListOffsets(ctx, &kafka.ListOffsetsRequest{Topics: bounds})
	if err != nil {
		return nil, fmt.Errorf("asking for the topics' ends: %w", err)
	}
	for topic, all := range committed.Topics {
		for _, p := range all {
			for _, has := range there.Topics[topic] {
				switch at := p.CommittedOffset; {
				case has.Partition != p.Partition || has.Error != nil || p.Error != nil:
				case at > has.LastOffset:
					return nil, beyondEnd(topic, p.Partition, at, has.LastOffset)
				case at >= 0 && at < has.FirstOffset:
					lost = append(lost, deleted(topic, p.Partition, at, has.FirstOffset))
				}
			}
		}
	}
	return lost, nil
}

// replicasOf asks for a topic, creating none, and returns how many replicas each of its
// partitions has at least.
func replicasOf(ctx context.Context, client *kafka.Client, topic string) (n int, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	answer, err := client.Metadata(ctx, &kafka.MetadataRequest{Topics: []string{topic}})
	if err != nil {
		return 0, fmt.Errorf("asking %s: %w", client.Addr, err)
	}
	for _, t := range answer.Topics {
		switch {
		case t.Name != topic:
		case errors.Is(t.Error, kafka.UnknownTopicOrPartition):
			return 0, errMissing
		case t.Error != nil:
			return 0, t.Error
		default:
			for i, p := range t.Partitions {
				if i == 0 || len(p.Replicas) < n {
					n = len(p.Replicas)
				}
			}
			return n, nil
		}
	}
	return 0, errMissing
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

// topicFindings compares how long a topic and the guard remember.
func (c *Consumer) topicFindings(ctx context.Context, client *kafka.Client, topic string) (found []idem.Finding) {
	settings, err := settingsOf(ctx, client, topic)
	if err != nil {
		return []idem.Finding{{
			ID:          "kafka-config-unknown",
			What:        fmt.Sprintf("The settings of topic %s could not be read (%v).", topic, err),
			Consequence: "Whether it keeps messages for longer than the guard remembers them, or deletes them before they are handled, is not known.",
			Cure:        "Allow the user to describe the topic's configs (ACL operation DescribeConfigs).",
		}}
	}
	keep := c.s.guard.Settings().Retention
	if slices.Contains(strings.Split(settings[policySetting], ","), "compact") {
		found = append(found, idem.Finding{
			ID:          "kafka-compact",
			What:        fmt.Sprintf("Topic %s is compacted (%s is %s).", topic, policySetting, settings[policySetting]),
			Consequence: "A message that a later one of its key replaces can be deleted before it is handled, and the last of each key outlives the guard's memory of it.",
			Cure:        fmt.Sprintf("Set %s to delete, unless only the last message of a key matters.", policySetting),
		})
	}
	if settings[policySetting] == "compact" {
		return found // the age does not count
	}
	ms, err := strconv.ParseInt(settings[ageSetting], 10, 64)
	if err != nil || ms >= 0 && ms <= keep.Milliseconds() {
		return found
	}
	age := "for ever"
	if ms >= 0 && ms <= math.MaxInt64/int64(time.Millisecond) {
		age = fmt.Sprint("for ", time.Duration(ms)*time.Millisecond)
	}
	return append(found, idem.Finding{
		ID:          "kafka-retention",
		What:        fmt.Sprintf("Topic %s keeps messages %s, the guard remembers them for %v.", topic, age, keep),
		Consequence: "One that is fetched again later, because offsets were reset for example, is handled again.",
		Cure:        fmt.Sprintf("Set %s of the topic, and WithRetention to more than that.", ageSetting),
	})
}

const (
	policySetting = "cleanup.policy"
	ageSetting    = "retention.ms"
)

// settingsOf asks for the settings of a topic.
func settingsOf(ctx context.Context, client *kafka.Client, topic string) (map[string]string, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	answer, err := client.DescribeConfigs(ctx, &kafka.DescribeConfigsRequest{Resources: []kafka.DescribeConfigRequestResource{{
		ResourceType: kafka.ResourceTypeTopic, ResourceName: topic, ConfigNames: []string{ageSetting, policySetting},
	}}})
	if err != nil {
		return nil, err
	}
	settings := make(map[string]string)
	for _, r := range answer.Resources {
		if r.Error != nil {
			return nil, r.Error
		}
		for _, entry := range r.ConfigEntries {
			settings[entry.ConfigName] = entry.ConfigValue
		}
	}
	return settings, nil
}
