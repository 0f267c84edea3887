package e2e_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/segmentio/kafka-go"

	"github.com/idemq/idemq/consumers"
	idemkafka "github.com/idemq/idemq/consumers/kafka"
	"github.com/idemq/idemq/idem"
)

const kafkaRoleEnv = "IDEM_E2E_KAFKA"

// kafkaRole is what a process that consumes from Kafka is told.
type kafkaRole struct {
	Kafka, Redis   string
	Topic, Group   string
	Owns           bool   // it joins the group itself, instead of reading from a kafka.Reader
	Prefix, DeadTo string // of the records and the journal; the dead-letter topic
	Session, Lease time.Duration
	Budget         int
	Concurrency    int
	Instance       string
	Poison         []string // tokens whose handler kills the process
	Hold           string   // the token whose handler waits for its end
	Failing        string   // the token that fails until its failing is ended
	FailFirst      int      // one token in so many fails on its first attempt
}

// What is noted in the journal.
const (
	noteFetch  = "fetch"  // a message came from the broker
	noteStart  = "start"  // its handler started: for poison and held messages
	noteFail   = "fail"   // its handler failed: for the one that fails for long
	noteEffect = "effect" // its handler took effect
	noteCommit = "commit" // its completion was recorded
	noteLost   = "lost"   // its lease was lost
)

// note is an entry of the journal: a list in Redis that handlers and observers of all
// processes append to, apart from the library's records.
type note struct {
	What    string
	Token   string
	Attempt int
	PID     int
	At      time.Time
}

func journalKey(prefix string) string { return prefix + "-journal" }

// mendedKey ends the failing of what fails for long.
func mendedKey(prefix string) string { return prefix + "-mended" }

// onceKey is a hash that a token is put into by HSETNX: an effect that may be repeated.
func onceKey(prefix string) string { return prefix + "-once" }

func (r kafkaRole) note(ctx context.Context, rdb redis.Cmdable, what, token string, attempt int) error {
	text, err := json.Marshal(note{what, token, attempt, os.Getpid(), time.Now()})
	if err != nil {
		return err
	}
	return rdb.RPush(ctx, journalKey(r.Prefix), text).Err()
}

// consumeKafka is a process that consumes from Kafka.
func consumeKafka(config string) int {
	var r kafkaRole
	if err := json.Unmarshal([]byte(config), &r); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := r.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// readerConfig is that of a group whose dead members are missed after a session timeout.
func readerConfig(addr, group, topic string, session time.Duration) kafka.ReaderConfig {
	return kafka.ReaderConfig{
		Brokers: []string{addr}, GroupID: group, Topic: topic,
		SessionTimeout: session, HeartbeatInterval: session / 6, RebalanceTimeout: 5 * time.Second,
		JoinGroupBackoff: 500 * time.Millisecond, MaxWait: 250 * time.Millisecond,
	}
}

// kafkaConsumer makes a consumer by one constructor or the other; done closes its reader.
func kafkaConsumer(owns bool, config kafka.ReaderConfig, g *idem.Guard, h idemkafka.Handler, opts ...idemkafka.Option) (c *idemkafka.Consumer, done func(), err error) {
	if owns {
		c, err = idemkafka.NewGroupConsumer(config, g, h, opts...)
		return c, func() {}, err
	}
	reader := kafka.NewReader(config)
	c, err = idemkafka.NewConsumer(reader, g, h, opts...)
	return c, func() { _ = reader.Close() }, err
}

func (r kafkaRole) run(ctx context.Context) error {
	// A command that is sent twice would be an effect that the handler doubles itself.
	rdb := redis.NewClient(&redis.Options{Addr: r.Redis, MaxRetries: -1, ReadTimeout: 30 * time.Second})
	defer rdb.Close()
	observer := idem.ObserverFunc(func(e idem.Event) {
		switch e.Kind {
		case idem.EventCommitted:
			_ = r.note(context.Background(), rdb, noteCommit, e.Token, e.Attempt)
		case idem.EventLeaseLost:
			_ = r.note(context.Background(), rdb, noteLost, e.Token, e.Attempt)
		}
	})
	options := []idem.Option{
		idem.WithRedis(redis.NewClient(&redis.Options{Addr: r.Redis})), idem.WithPrefix(r.Prefix), idem.WithLease(r.Lease),
		idem.WithObserver(observer),
	}
	if r.Instance != "" {
		options = append(options, idem.WithInstance(r.Instance))
	}
	letters := &kafka.Writer{Addr: kafka.TCP(r.Kafka), RequiredAcks: kafka.RequireAll, BatchTimeout: time.Millisecond}
	defer letters.Close()
	opts := []idemkafka.Option{
		idemkafka.DeadLetter(letters, r.DeadTo), consumers.Budget(r.Budget),
		consumers.Backoff(10*time.Millisecond, 200*time.Millisecond),
	}
	if r.Concurrency > 1 {
		opts = append(opts, idemkafka.Concurrency(r.Concurrency))
	}
	if r.Hold != "" {
		// The token is looked for when the message comes.
		opts = append(opts, consumers.TokenFrom(func(m consumers.Message) (string, error) {
			if token, _ := consumers.TokenIn(m); token == r.Hold {
				return token, r.note(ctx, rdb, noteFetch, token, 0)
			}
			return "", nil
		}))
	}
	handle := func(ctx context.Context, msg kafka.Message) error { return r.handle(ctx, rdb, msg) }
	config := readerConfig(r.Kafka, r.Group, r.Topic, r.Session)
	c, done, err := kafkaConsumer(r.Owns, config, idem.New(options...), handle, opts...)
	if err != nil {
		return err
	}
	defer done()
	return c.Run(ctx)
}

func (r kafkaRole) handle(ctx context.Context, rdb *redis.Client, _ kafka.Message) error {
	claim, _ := idem.FromContext(ctx)
	token, attempt := claim.Token(), claim.Attempt()
	if slices.Contains(r.Poison, token) {
		if err := r.note(ctx, rdb, noteStart, token, attempt); err != nil {
			return err
		}
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
	if token == r.Hold && attempt == 1 {
		if err := r.note(ctx, rdb, noteStart, token, attempt); err != nil {
			return err
		}
		<-ctx.Done()
		return context.Cause(ctx)
	}
	if token == r.Failing {
		mended, err := rdb.Exists(ctx, mendedKey(r.Prefix)).Result()
		if err != nil {
			return err
		}
		if mended == 0 {
			return cmp.Or(r.note(ctx, rdb, noteFail, token, attempt), errors.New("not yet"))
		}
	}
	if r.FailFirst > 0 && attempt == 1 && failsFirst(token, r.FailFirst) {
		return errors.New("the first time it fails")
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	// From here on it takes effect, whatever becomes of the context: an effect that is
	// reported as a failure would be the handler's own fault.
	ctx = context.WithoutCancel(ctx)
	_, err := rdb.TxPipelined(ctx, func(p redis.Pipeliner) error {
		p.HSetNX(ctx, onceKey(r.Prefix), token, os.Getpid())
		return r.note(ctx, p, noteEffect, token, attempt)
	})
	return err
}

func failsFirst(token string, every int) bool {
	h := fnv.New32a()
	_, _ = h.Write([]byte(token))
	return h.Sum32()%uint32(every) == 0
}
