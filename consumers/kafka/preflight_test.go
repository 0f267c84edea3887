package idemkafka_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/idemq/idemq/consumers"
	idemkafka "github.com/idemq/idemq/consumers/kafka"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/memstore"
	"github.com/idemq/idemq/internal/redistest"
)

// quiet makes the store find nothing: what is found is the brokers'.
func (v *env) quiet() {
	v.store.OnVerify(func(context.Context) ([]store.Finding, error) { return nil, nil })
}

// wellSet is a config that gives nothing to say.
func (v *env) wellSet() kafka.ReaderConfig {
	config := v.config()
	config.OffsetOutOfRangeError = true
	return config
}

// preflight asks once, one way or the other.
func (v *env) preflight(way string, config kafka.ReaderConfig, opts ...idemkafka.Option) ([]idem.Finding, error) {
	v.t.Helper()
	c, end, err := v.consumer(way, config, v.guard, (&journal{}).handle, opts...)
	if err != nil {
		v.t.Fatal(err)
	}
	defer end()
	return c.Preflight(v.t.Context())
}

// wantFound asks and wants these findings, each of them whole.
func (v *env) wantFound(way string, config kafka.ReaderConfig, opts []idemkafka.Option, want ...string) {
	v.t.Helper()
	found, err := v.preflight(way, config, opts...)
	if err != nil {
		v.t.Fatalf("%s: Preflight: %v", way, err)
	}
	ids := make([]string, 0, len(found))
	for _, f := range found {
		ids = append(ids, f.ID)
		for _, s := range []string{f.What, f.Consequence, f.Cure} {
			if s == "" || !strings.HasSuffix(s, ".") || strings.ToUpper(s[:1]) != s[:1] {
				v.t.Errorf("%s: %q is no sentence", f.ID, s)
			}
		}
	}
	if !slices.Equal(ids, want) {
		v.t.Errorf("%s: found %q, want %q\n%v", way, ids, want, found)
	}
}

// Brokers and a store that are set up well give nothing to say, and Strict lets them
// pass.
func TestNoFindings(t *testing.T) {
	t.Parallel()
	records := redistest.Start(t, "--appendonly", "yes").Client(t)
	for _, way := range ways {
		v := setup(t, 2, "retention.ms=3600000")
		v.guard = idem.New(idem.WithRedis(records), idem.WithObserver(v.events))
		opts := []idemkafka.Option{v.deadLetter(), consumers.Strict()}
		v.wantFound(way, v.wellSet(), opts)
		v.publish("a")
		r := v.runWith(way, v.wellSet(), (&journal{}).handle, opts...)
		v.settled()
		v.wantFound(way, v.wellSet(), opts) // beside it
		r.mustStop()
		if n := v.events.of(idem.EventFinding); len(n) != 0 {
			t.Errorf("findings about nothing: %+v", n)
		}
	}
}

func TestFindings(t *testing.T) {
	t.Parallel()
	const hour = "retention.ms=3600000"
	for _, c := range []struct {
		name    string
		configs []string
		edit    func(*kafka.ReaderConfig)
		want    []string
		reader  []string // and over a Reader
	}{
		{"a retention as long as the guard's", []string{"retention.ms=604800000"}, nil, nil, nil},
		{"a longer retention", []string{"retention.ms=604800001"}, nil, []string{"kafka-retention"}, nil},
		{"no end", []string{"retention.ms=-1"}, nil, []string{"kafka-retention"}, nil},
		{"hardly an end", []string{"retention.ms=9223372036854775807"}, nil, []string{"kafka-retention"}, nil},
		{"compacted, whatever the age", []string{"cleanup.policy=compact", "retention.ms=-1"}, nil, []string{"kafka-compact"}, nil},
		{"compacted and deleted", []string{"cleanup.policy=compact,delete", hour}, nil, []string{"kafka-compact"}, nil},
		{"compacted and deleted late", []string{"cleanup.policy=compact,delete", "retention.ms=-1"}, nil, []string{"kafka-compact", "kafka-retention"}, nil},
		{"LastOffset", []string{hour}, func(c *kafka.ReaderConfig) { c.StartOffset = kafka.LastOffset }, []string{"kafka-last-offset"}, nil},
		{"a Reader that passes over", []string{hour}, func(c *kafka.ReaderConfig) { c.OffsetOutOfRangeError = false }, nil, []string{"kafka-out-of-range"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			v := setup(t, 1, c.configs...)
			v.quiet()
			for _, way := range ways {
				config := v.wellSet()
				if c.edit != nil {
					c.edit(&config)
				}
				want := c.want
				if way == "reader" {
					want = append(c.reader, want...)
				}
				v.wantFound(way, config, []idemkafka.Option{v.deadLetter()}, want...)
			}
		})
	}
}

// Each of a group's topics is asked about.
func TestFindingsOfGroupTopics(t *testing.T) {
	t.Parallel()
	v := setup(t, 1, "retention.ms=3600000")
	v.quiet()
	config := v.wellSet()
	config.Topic, config.GroupTopics = "", []string{v.topic, unique("more")}
	v.srv.CreateTopic(t, config.GroupTopics[1], 1, "retention.ms=-1")
	for _, way := range ways {
		v.wantFound(way, config, nil, "kafka-retention")
	}
}

// three are three fake brokers: a real one is a cluster of its own here.
func three(t *testing.T) (v *env, fake *kfake.Cluster) {
	t.Helper()
	fake, err := kfake.NewCluster(kfake.NumBrokers(3))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fake.Close)
	v = setup(t, 1)
	v.quiet()
	v.topic, v.dead = unique("orders"), unique("dead")
	return v, fake
}

func (v *env) create(addrs []string, topic string, replicas int) {
	v.t.Helper()
	transport := &kafka.Transport{}
	defer transport.CloseIdleConnections()
	client := &kafka.Client{Addr: kafka.TCP(addrs...), Transport: transport}
	answer, err := client.CreateTopics(v.t.Context(), &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{{Topic: topic, NumPartitions: 1, ReplicationFactor: replicas}}})
	if err == nil {
		err = answer.Errors[topic]
	}
	if err != nil {
		v.t.Fatal(err)
	}
}

func TestLettersLessSafeThanMessages(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name           string
		messages, dead int
		acks           kafka.RequiredAcks
		want           []string
	}{
		{"one replica", 3, 1, kafka.RequireAll, []string{"kafka-letters-replicas"}},
		{"one replica, like the messages", 1, 1, kafka.RequireOne, nil},
		{"confirmed by one", 3, 3, kafka.RequireOne, []string{"kafka-letters-acks"}},
		{"as safe", 3, 3, kafka.RequireAll, nil},
		{"safer", 1, 3, kafka.RequireAll, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			v, fake := three(t)
			v.create(fake.ListenAddrs(), v.topic, c.messages)
			v.create(fake.ListenAddrs(), v.dead, c.dead)
			w := v.writer()
			w.Addr, w.RequiredAcks = kafka.TCP(fake.ListenAddrs()...), c.acks
			config := v.wellSet()
			config.Brokers = fake.ListenAddrs()
			for _, way := range ways {
				v.wantFound(way, config, []idemkafka.Option{idemkafka.DeadLetter(w, v.dead)}, c.want...)
			}
		})
	}
}

// A user who may not read the settings is told what is not known.
func TestSettingsThatMayNotBeRead(t *testing.T) {
	t.Parallel()
	v, fake := three(t)
	v.create(fake.ListenAddrs(), v.topic, 1)
	fake.ControlKey(int16(kmsg.DescribeConfigs), func(req kmsg.Request) (kmsg.Response, error, bool) {
		fake.KeepControl()
		resp, ok := req.ResponseKind().(*kmsg.DescribeConfigsResponse)
		if !ok {
			return nil, nil, false
		}
		r := kmsg.NewDescribeConfigsResponseResource()
		r.ErrorCode, r.ResourceType, r.ResourceName = kerr.TopicAuthorizationFailed.Code, kmsg.ConfigResourceTypeTopic, v.topic
		resp.Resources = append(resp.Resources, r)
		return resp, nil, true
	})
	config := v.wellSet()
	config.Brokers = fake.ListenAddrs()
	for _, way := range ways {
		v.wantFound(way, config, nil, "kafka-config-unknown")
	}
}

// What would end Run is Preflight's error.
func TestPreflightErrors(t *testing.T) {
	t.Parallel()
	v := setup(t, 1)
	v.store.OnVerify(func(context.Context) ([]store.Finding, error) {
		return []store.Finding{{ID: "store-test", What: "It tests.", Consequence: "It is found.", Cure: "Accept it."}}, nil
	})
	nowhere, away, beyond := v.wellSet(), v.wellSet(), v.wellSet()
	nowhere.Topic = "nowhere"
	away.Brokers = []string{"127.0.0.1:1"}
	away.Dialer = &kafka.Dialer{Timeout: time.Second}
	v.commit(7)
	fresh := v.wellSet()
	fresh.GroupID = unique("fresh")
	for _, way := range ways {
		for _, c := range []struct {
			config kafka.ReaderConfig
			opt    idemkafka.Option
			want   string
		}{
			{nowhere, consumers.Budget(1), `topic "nowhere": it does not exist`},
			{fresh, idemkafka.DeadLetter(v.w, "nowhere"), `DeadLetter: topic "nowhere"`},
			{away, consumers.Budget(1), "connecting to Kafka"},
			{beyond, consumers.Budget(1), "is 7, beyond its end at 0"},
			{fresh, consumers.Strict(), `Strict("store-test")`},
		} {
			found, err := v.preflight(way, c.config, c.opt)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "idemkafka: preflight: ") || len(found) == 0 {
				t.Errorf("%s: found %v, %v, want %q", way, found, err, c.want)
			}
		}
		v.wantFound(way, fresh, []idemkafka.Option{consumers.Strict("store-test")}, "store-test")
	}
}

// Strict ends Run before the group is joined, or fetched from.
func TestStrictFetchesNothing(t *testing.T) {
	t.Parallel()
	for _, way := range ways {
		v := setup(t, 1, "retention.ms=-1")
		v.publish("a")
		var j journal
		err := v.runWith(way, v.wellSet(), j.handle, consumers.Strict("memory-forgets")).result()
		if err == nil || !strings.Contains(err.Error(), `Strict("kafka-retention")`) {
			t.Errorf("%s: Run returned %v", way, err)
		}
		if j.len() != 0 || v.owed() != 1 {
			t.Errorf("%s: handled %q, owed %d", way, j.list(), v.owed())
		}
		v.runWith(way, v.wellSet(), j.handle, consumers.Strict("kafka-retention", "memory-forgets"))
		v.settled()
		j.want(t, "a")
	}
}

// The source of a caller's own is never asked for a message that Strict does not let
// through.
func TestStrictLeavesTheReaderAlone(t *testing.T) {
	t.Parallel()
	v := setup(t, 1)
	source := &untouched{config: kafka.ReaderConfig{GroupID: "g", Topic: "orders", StartOffset: kafka.LastOffset, OffsetOutOfRangeError: true}}
	c, err := idemkafka.NewConsumer(source, v.guard, (&journal{}).handle, consumers.Strict("memory-forgets"))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Run(t.Context()); err == nil || !strings.Contains(err.Error(), `Strict("kafka-last-offset")`) {
		t.Errorf("Run returned %v", err)
	}
	if source.fetches != 0 {
		t.Errorf("%d fetches", source.fetches)
	}
}

type untouched struct {
	config  kafka.ReaderConfig
	fetches int
}

func (u *untouched) FetchMessage(context.Context) (kafka.Message, error) {
	u.fetches++
	return kafka.Message{}, errTest
}
func (u *untouched) CommitMessages(context.Context, ...kafka.Message) error { return nil }
func (u *untouched) Config() kafka.ReaderConfig                             { return u.config }

func TestStrictIsNotForWrap(t *testing.T) {
	g := idem.New(idem.WithStore(memstore.New())).Group("g")
	if _, err := idemkafka.Wrap(g, (&journal{}).handle, consumers.Strict()); err == nil || !strings.Contains(err.Error(), "Guard.Preflight") {
		t.Errorf("Wrap: %v", err)
	}
}
