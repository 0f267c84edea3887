package idemkafka

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/idemq/idemq/consumers"
)

// Headers of a dead-letter copy that say where the message was, besides those of
// package consumers.
const (
	HeaderTopic     = "Idempotency-Dead-Topic"
	HeaderPartition = "Idempotency-Dead-Partition"
	HeaderOffset    = "Idempotency-Dead-Offset"
)

// confirmTimeout bounds the wait for the confirmation of a dead-letter copy. The
// writer's own retries take ten tries, with up to a second between them, by default.
const confirmTimeout = 30 * time.Second

// creationTime is how long a topic that a broker creates may be unknown.
const creationTime = 10 * time.Second

// letters is a dead-letter destination.
type letters struct {
	w     *kafka.Writer
	topic string
}

// check lists what in the writer would leave a copy unconfirmed.
func (l *letters) check() (faults []error) {
	if l.w == nil {
		return []error{errors.New("DeadLetter: the writer is nil")}
	}
	if l.w.RequiredAcks == kafka.RequireNone {
		faults = append(faults, errors.New("DeadLetter: the writer's RequiredAcks is RequireNone, kafka-go's default: nobody would know whether a copy arrived: set it to kafka.RequireAll"))
	}
	if l.w.Async {
		faults = append(faults, errors.New("DeadLetter: the writer is Async: nobody would know whether a copy arrived: give the consumer a writer of its own that is not"))
	}
	switch {
	case l.w.Addr == nil:
		faults = append(faults, errors.New("DeadLetter: the writer has no Addr: set it with kafka.TCP"))
	case l.topic == "" && l.w.Topic == "":
		faults = append(faults, errors.New("DeadLetter: the topic is empty"))
	case l.topic != "" && l.w.Topic != "" && l.topic != l.w.Topic:
		faults = append(faults, fmt.Errorf("DeadLetter: the topic is %q, and the writer writes to %q only: leave one of them out", l.topic, l.w.Topic))
	}
	return faults
}

// name is the topic that copies go to.
func (l *letters) name() string {
	if l.topic != "" {
		return l.topic
	}
	return l.w.Topic
}

// post writes the copy, and returns nil when the broker has confirmed it.
func (l *letters) post(ctx context.Context, m message, letter consumers.Letter) error {
	if err := errors.Join(l.check()...); err != nil { // a writer's fields can change
		return fmt.Errorf("%w: %w", consumers.ErrUndeliverable, err)
	}
	ctx, cancel := context.WithTimeout(ctx, confirmTimeout)
	defer cancel()
	if l.name() == m.msg.Topic {
		return fmt.Errorf("the dead-letter topic %s is the message's own, and the copy would come back: choose another: %w", l.name(), consumers.ErrUndeliverable)
	}
	err := l.write(ctx, l.copy(m, letter))
	var tooLarge kafka.MessageTooLargeError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &tooLarge), errors.Is(err, kafka.MessageSizeTooLarge):
		return fmt.Errorf("writing to topic %s: the copy of %d bytes, with its headers, is larger than the writer (BatchBytes), or the topic (max.message.bytes) takes: raise that: %w: %w", l.name(), size(m.msg), consumers.ErrUndeliverable, err)
	case errors.Is(err, io.ErrClosedPipe):
		return fmt.Errorf("writing to topic %s: the writer was closed: close it after Run: %w: %w", l.name(), consumers.ErrUndeliverable, err)
	case errors.Is(err, kafka.UnknownTopicOrPartition), errors.Is(err, kafka.InvalidTopic):
		return fmt.Errorf("writing to topic %s: it does not exist, or cannot: create it: %w: %w", l.name(), consumers.ErrUndeliverable, err)
	case errors.Is(err, kafka.InvalidTimestamp): // the copy's time is this machine's
		return fmt.Errorf("writing to topic %s: the broker refuses the copy for its time, which is that of this machine's clock, %s: set the clock, or raise the topic's message.timestamp.after.max.ms (or before): %w: %w",
			l.name(), time.Now().Format(time.RFC3339), consumers.ErrUndeliverable, err)
	case errors.Is(err, kafka.TopicAuthorizationFailed), errors.Is(err, kafka.ClusterAuthorizationFailed):
		return fmt.Errorf("writing to topic %s: the writer's user may not: allow it: %w: %w", l.name(), consumers.ErrUndeliverable, err)
	}
	return fmt.Errorf("writing to topic %s: %w", l.name(), err)
}

// write writes a copy. A topic that is unknown may be one that the broker is just
// creating: that is tried again for a while.
func (l *letters) write(ctx context.Context, msg kafka.Message) error {
	creating := time.NewTimer(creationTime)
	defer creating.Stop()
	for {
		err := l.w.WriteMessages(ctx, msg)
		var each kafka.WriteErrors
		if errors.As(err, &each) && len(each) == 1 {
			err = each[0]
		}
		if !errors.Is(err, kafka.UnknownTopicOrPartition) && !errors.Is(err, kafka.LeaderNotAvailable) {
			return err
		}
		again := time.NewTimer(creationTime / 20)
		select {
		case <-again.C:
		case <-creating.C:
			again.Stop()
			return err
		case <-ctx.Done():
			again.Stop()
			return err
		}
	}
}

func (l *letters) copy(m message, letter consumers.Letter) kafka.Message {
	c := kafka.Message{Key: m.msg.Key, Value: m.msg.Value, Headers: m.msg.Headers}
	if l.w.Topic == "" {
		c.Topic = l.topic
	}
	for _, h := range letter.Headers(m.String()) {
		c.Headers = set(c.Headers, h[0], h[1])
	}
	for _, h := range [][2]string{
		{HeaderTopic, m.msg.Topic}, {HeaderPartition, strconv.Itoa(m.msg.Partition)}, {HeaderOffset, strconv.FormatInt(m.msg.Offset, 10)},
	} {
		c.Headers = set(c.Headers, h[0], h[1])
	}
	return c
}
