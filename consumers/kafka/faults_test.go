package idemkafka_test

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
	"github.com/segmentio/kafka-go/sasl/plain"
	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/idemq/idemq/consumers"
	idemkafka "github.com/idemq/idemq/consumers/kafka"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store/memstore"
	"github.com/idemq/idemq/internal/kafkatest"
	"github.com/idemq/idemq/internal/testenv"
)

// Every fault of a constructor's arguments is named, with its cure.
func TestConstructors(t *testing.T) {
	t.Parallel()
	addr := kafka.TCP("127.0.0.1:1")
	g := idem.New(idem.WithStore(memstore.New()))
	handle := func(context.Context, kafka.Message) error { return nil }
	batch := func(context.Context, []kafka.Message) []error { return nil }
	config := kafka.ReaderConfig{Brokers: []string{"127.0.0.1:1"}, GroupID: "g", Topic: "orders"}
	confirms := &kafka.Writer{Addr: addr, RequiredAcks: kafka.RequireAll}
	for _, c := range []struct {
		name   string
		config kafka.ReaderConfig
		g      *idem.Guard
		h      idemkafka.Handler
		opts   []idemkafka.Option
		want   string
		is     error
	}{
		{name: "no group id: nothing would be committed", config: kafka.ReaderConfig{Brokers: config.Brokers, Topic: "orders"}, g: g, h: handle, want: "GroupID", is: idem.ErrNoGroup},
		{name: "no topic", config: kafka.ReaderConfig{Brokers: config.Brokers, GroupID: "g"}, g: g, h: handle, want: "topic"},
		{name: "no guard", config: config, h: handle, want: "guard is nil"},
		{name: "a guard without a store", config: config, g: idem.New(), h: handle, want: "WithRedis", is: idem.ErrRedisNotEnabled},
		{name: "no handler", config: config, g: g, want: "handler is nil"},
		{name: "no handler, and no store: all faults are named", config: config, g: idem.New(), want: "handler is nil", is: idem.ErrRedisNotEnabled},
		{name: "an unconfirmed writer, kafka-go's default", config: config, g: g, h: handle, opts: []idemkafka.Option{idemkafka.DeadLetter(&kafka.Writer{Addr: addr}, "dead")}, want: "RequireNone"},
		{name: "an asynchronous writer", config: config, g: g, h: handle, opts: []idemkafka.Option{idemkafka.DeadLetter(&kafka.Writer{Addr: addr, RequiredAcks: kafka.RequireOne, Async: true}, "dead")}, want: "Async"},
		{name: "no writer", config: config, g: g, h: handle, opts: []idemkafka.Option{idemkafka.DeadLetter(nil, "dead")}, want: "writer is nil"},
		{name: "a writer to nowhere", config: config, g: g, h: handle, opts: []idemkafka.Option{idemkafka.DeadLetter(&kafka.Writer{RequiredAcks: kafka.RequireAll}, "dead")}, want: "Addr"},
		{name: "no dead-letter topic", config: config, g: g, h: handle, opts: []idemkafka.Option{idemkafka.DeadLetter(confirms, "")}, want: "topic is empty"},
		{name: "two dead-letter topics", config: config, g: g, h: handle, opts: []idemkafka.Option{idemkafka.DeadLetter(&kafka.Writer{Addr: addr, RequiredAcks: kafka.RequireAll, Topic: "other"}, "dead")}, want: `"other"`},
		{name: "dead letters that come back", config: config, g: g, h: handle, opts: []idemkafka.Option{idemkafka.DeadLetter(confirms, "orders")}, want: "come back"},
		{name: "two handlers", config: config, g: g, h: handle, opts: []idemkafka.Option{idemkafka.HandleBatches(0, batch)}, want: "give the constructor nil"},
		{name: "batches of fewer than none", config: config, g: g, opts: []idemkafka.Option{idemkafka.HandleBatches(-1, batch)}, want: "-1: must not be negative"},
		{name: "batches, and no handler", config: config, g: g, opts: []idemkafka.Option{idemkafka.HandleBatches(5, nil)}, want: "HandleBatches: the handler is nil"},
		{name: "no concurrency", config: config, g: g, h: handle, opts: []idemkafka.Option{idemkafka.Concurrency(0)}, want: "Concurrency"},
		{name: "no commits", config: config, g: g, h: handle, opts: []idemkafka.Option{idemkafka.CommitEvery(1, 0)}, want: "CommitEvery"},
		{name: "no buffer", config: config, g: g, h: handle, opts: []idemkafka.Option{idemkafka.Buffer(0, 1)}, want: "Buffer"},
		{name: "another broker's option", config: config, g: g, h: handle, opts: []idemkafka.Option{consumers.NewOption("DoubleAck", func(*struct{}) {})}, want: "another broker"},
	} {
		_, errs := make2(c.config, c.g, c.h, c.opts)
		for way, err := range errs {
			if err == nil || !strings.Contains(err.Error(), c.want) || c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("%s, %s: %v, want %q in it", c.name, way, err, c.want)
			}
		}
	}
	if _, errs := make2(config, g, handle, []idemkafka.Option{idemkafka.DeadLetter(confirms, "dead"), consumers.Budget(3)}); errs["reader"] != nil || errs["group"] != nil {
		t.Errorf("what is right is refused: %v", errs)
	}
	var none *kafka.Reader
	if _, err := idemkafka.NewConsumer(none, g, handle); err == nil || !strings.Contains(err.Error(), "reader is nil") {
		t.Errorf("a nil reader: %v", err)
	}
	if _, err := idemkafka.NewGroupConsumer(kafka.ReaderConfig{GroupID: "g", Topic: "orders"}, g, handle); err == nil || !strings.Contains(err.Error(), "broker") {
		t.Errorf("no brokers: %v", err)
	}
	bad := config
	bad.MinBytes, bad.MaxBytes = 10, 5
	if _, err := idemkafka.NewGroupConsumer(bad, g, handle); err == nil {
		t.Error("a config that kafka-go panics on is accepted")
	}
	bad = config
	bad.ReadBackoffMin = 2 * time.Second
	if _, err := idemkafka.NewGroupConsumer(bad, g, handle); err == nil || !strings.Contains(err.Error(), "ReadBackoffMin") {
		t.Errorf("a backoff that kafka-go panics on: %v", err)
	}
	if _, err := idemkafka.Wrap(g, handle); !errors.Is(err, idem.ErrNoGroup) {
		t.Errorf("Wrap without a group: %v", err)
	}
	if _, err := idemkafka.Wrap(nil, nil, idemkafka.Concurrency(2), idemkafka.Buffer(1, 1)); err == nil || !strings.Contains(err.Error(), "Concurrency: is for") || !strings.Contains(err.Error(), "handler is nil") || !strings.Contains(err.Error(), "guard is nil") {
		t.Errorf("Wrap with every fault: %v", err)
	}
}

func make2(config kafka.ReaderConfig, g *idem.Guard, h idemkafka.Handler, opts []idemkafka.Option) (map[string]*idemkafka.Consumer, map[string]error) {
	cs, errs := map[string]*idemkafka.Consumer{}, map[string]error{}
	s := newScript()
	s.config = config
	cs["reader"], errs["reader"] = idemkafka.NewConsumer(s, g, h, opts...)
	cs["group"], errs["group"] = idemkafka.NewGroupConsumer(config, g, h, opts...)
	return cs, errs
}

// What is not there ends Run, with its name.
func TestMissingTopics(t *testing.T) {
	t.Parallel()
	v := setup(t, 1)
	for _, way := range ways {
		config := v.config()
		config.Topic = "nowhere"
		if err := v.runWith(way, config, (&journal{}).handle).result(); err == nil || !strings.Contains(err.Error(), `topic "nowhere": it does not exist`) {
			t.Errorf("%s: Run: %v", way, err)
		}
		if err := v.run(way, (&journal{}).handle, idemkafka.DeadLetter(v.w, "nowhere")).result(); err == nil || !strings.Contains(err.Error(), `DeadLetter: topic "nowhere"`) {
			t.Errorf("%s: Run: %v", way, err)
		}
	}
}

// Wrong credentials end Run: no waiting mends them.
func TestWrongCredentials(t *testing.T) {
	t.Parallel()
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.EnableSASL(), kfake.Superuser("PLAIN", "admin", "secret"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	for _, way := range ways {
		config := kafka.ReaderConfig{
			Brokers: c.ListenAddrs(), GroupID: "g", Topic: "orders",
			Dialer: &kafka.Dialer{Timeout: time.Second, SASLMechanism: plain.Mechanism{Username: "admin", Password: "wrong"}},
		}
		v := &env{t: t, guard: idem.New(idem.WithStore(memstore.New())), events: &events{}}
		err := v.runWith(way, config, (&journal{}).handle).result()
		if !errors.Is(err, kafka.SASLAuthenticationFailed) || strings.Contains(err.Error(), "wrong") {
			t.Errorf("%s: Run: %v", way, err)
		}
	}
}

// A broker that is not there is waited for, and said.
func TestBrokerAwayAtTheStart(t *testing.T) {
	t.Parallel()
	for _, way := range ways {
		ev := &events{}
		v := &env{t: t, guard: idem.New(idem.WithStore(memstore.New()), idem.WithObserver(ev)), events: ev}
		r := v.runWith(way, kafka.ReaderConfig{Brokers: []string{"127.0.0.1:1"}, GroupID: "g", Topic: "orders"}, (&journal{}).handle)
		testenv.Await(t, "the second try", func() bool { return len(ev.of(idem.EventWaiting)) > 1 })
		r.mustStop()
	}
}

// Headers of every kind reach a decision, and lose nothing.
func TestBadInput(t *testing.T) {
	t.Parallel()
	v := setup(t, 1, "max.message.bytes=4000000")
	v.w.BatchBytes = 8 << 20
	many := kafka.Message{Value: []byte("many")}
	for i := range 10_000 {
		many.Headers = append(many.Headers, kafka.Header{Key: fmt.Sprintf("h%d", i), Value: []byte("v")})
	}
	idemkafka.SetToken(&many, "many")
	huge := kafka.Message{Value: []byte("huge"), Headers: []kafka.Header{{Key: "big", Value: []byte(strings.Repeat("x", 1<<20))}}}
	idemkafka.SetToken(&huge, "huge")
	tokens := func(values ...string) kafka.Message {
		m := kafka.Message{Value: []byte(strings.Join(values, ",") + "!")}
		for _, value := range values {
			m.Headers = append(m.Headers, kafka.Header{Key: idem.Header, Value: []byte(value)})
		}
		return m
	}
	nilValue := kafka.Message{Value: []byte("nil header"), Headers: []kafka.Header{{Key: idem.Header, Value: nil}}}
	hugeToken := kafka.Message{Value: []byte("huge token"), Headers: []kafka.Header{{Key: idem.Header, Value: []byte(strings.Repeat("x", 1<<20))}}}
	tombstone := kafka.Message{Key: []byte("k"), Value: nil}
	idemkafka.SetToken(&tombstone, "tombstone")
	v.send(many, huge, nilValue, hugeToken, tokens("a", "b"), tokens(""), tokens("same", "same"), tombstone,
		kafka.Message{Value: []byte("odd"), Headers: []kafka.Header{{Key: "", Value: nil}, {Key: idem.Header, Value: []byte("\xff\x00{}")}}},
		kafka.Message{Value: []byte("anonymous")},
		kafka.Message{Value: []byte("redrive"), Headers: []kafka.Header{{Key: idem.RedriveHeader, Value: []byte("-1")}}})
	for _, way := range ways {
		t.Run(way, func(t *testing.T) {
			v.group = unique("billing")
			v.guard = v.newGuard().Group(v.group)
			before := len(v.letters())
			var j journal
			r := v.run(way, func(ctx context.Context, msg kafka.Message) error {
				if msg.Value == nil {
					msg.Value = []byte("tombstone")
				}
				return j.handle(ctx, msg)
			}, v.deadLetter())
			v.settled()
			r.mustStop()
			j.want(t, "many", "huge", "same,same!", "tombstone", "odd", "anonymous")
			var dead []string
			for _, m := range v.letters()[before:] {
				dead = append(dead, string(m.Value))
			}
			if want := []string{"nil header", "huge token", "a,b!", "!", "redrive"}; !slices.Equal(dead, want) {
				t.Errorf("dead letters %q, want %q", dead, want)
			}
		})
	}
}

// A dead-letter topic that the broker creates when it is first written to is unknown for
// a moment: that is waited out.
func TestLetterTopicIsCreated(t *testing.T) {
	t.Parallel()
	v := setupOn(t, kafkatest.Start(t, "auto.create.topics.enable=true"), 1)
	v.publish("bad", "good")
	v.w.AllowAutoTopicCreation = true
	dead := unique("created")
	r := v.run("group", func(_ context.Context, msg kafka.Message) error {
		if string(msg.Value) == "bad" {
			return idem.Permanent(errTest)
		}
		return nil
	}, idemkafka.DeadLetter(v.w, dead))
	v.settled()
	r.mustStop()
	if n := len(v.srv.All(t, dead)); n != 1 {
		t.Errorf("%d letters", n)
	}
}

// A writer that was changed since the constructor saw it confirms nothing: nothing is
// written with it.
func TestLetterWriterChanged(t *testing.T) {
	t.Parallel()
	for _, change := range []func(*kafka.Writer){
		func(w *kafka.Writer) { w.Async = true },
		func(w *kafka.Writer) { w.RequiredAcks = kafka.RequireNone },
	} {
		v := setup(t, 1)
		w := v.writer()
		r := v.run("reader", func(context.Context, kafka.Message) error { change(w); return idem.Permanent(errTest) }, idemkafka.DeadLetter(w, v.dead))
		v.publish("bad")
		if err := r.result(); !errors.Is(err, consumers.ErrUndeliverable) {
			t.Errorf("Run: %v", err)
		}
		if n, m := v.owed(), len(v.letters()); n != 1 || m != 0 {
			t.Errorf("%d messages are owed, %d letters", n, m)
		}
	}
}

// A writer that was closed under the consumer ends Run: it will not write again.
func TestLetterWriterClosed(t *testing.T) {
	t.Parallel()
	v := setup(t, 1)
	w := v.writer()
	r := v.run("reader", func(context.Context, kafka.Message) error { _ = w.Close(); return idem.Permanent(errTest) }, idemkafka.DeadLetter(w, v.dead))
	v.publish("bad")
	if err := r.result(); !errors.Is(err, consumers.ErrUndeliverable) || !strings.Contains(err.Error(), "writer was closed") {
		t.Errorf("Run: %v", err)
	}
	if n := v.owed(); n != 1 {
		t.Errorf("%d messages are owed", n)
	}
}

// A dead-letter copy that cannot arrive ends Run, and the message is not passed over.
func TestUndeliverableLetter(t *testing.T) {
	t.Parallel()
	for _, way := range ways {
		for _, c := range []struct {
			name string
			to   func(v *env) idemkafka.Option
			want string
		}{
			{"a topic that is not there", func(v *env) idemkafka.Option {
				// It may be created when it is written to: so it is not asked for at the start.
				w := v.writer()
				w.MaxAttempts, w.AllowAutoTopicCreation = 1, true
				return idemkafka.DeadLetter(w, "in/valid")
			}, "in/valid"},
			{"a copy that is too large", func(v *env) idemkafka.Option {
				w := v.writer()
				w.BatchBytes = 100
				return idemkafka.DeadLetter(w, v.dead)
			}, "BatchBytes"},
		} {
			t.Run(way+", "+c.name, func(t *testing.T) {
				v := setup(t, 1)
				v.publish("bad", "good")
				r := v.run(way, func(context.Context, kafka.Message) error { return idem.Permanent(errTest) }, c.to(v))
				if err := r.result(); !errors.Is(err, consumers.ErrUndeliverable) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), `"bad"`) {
					t.Errorf("Run: %v", err)
				}
				if n := v.owed(); n != 2 {
					t.Errorf("%d messages are owed, want both", n)
				}
				var j journal
				again := v.run(way, j.handle, v.deadLetter())
				v.settled()
				again.mustStop()
				j.want(t, "bad", "good")
			})
		}
	}
}

// The copy says where it came from, and keeps key, value and headers.
func TestDeadLetterCopy(t *testing.T) {
	t.Parallel()
	v := setup(t, 1)
	msg := kafka.Message{Key: []byte("key"), Value: []byte("value"), Headers: []kafka.Header{{Key: "Color", Value: []byte("red")}, {Key: "Color", Value: []byte("blue")}}}
	idemkafka.SetToken(&msg, "a")
	v.publish("before")
	v.send(msg)
	w := v.writer()
	w.Topic = v.dead // a writer with a topic of its own
	r := v.run("group", func(_ context.Context, m kafka.Message) error {
		if string(m.Key) == "key" {
			return idem.Permanent(errTest)
		}
		return nil
	}, idemkafka.DeadLetter(w, ""))
	v.settled()
	r.mustStop()
	letters := v.letters()
	if len(letters) != 1 {
		t.Fatalf("%d letters", len(letters))
	}
	l := letters[0]
	if string(l.Key) != "key" || string(l.Value) != "value" {
		t.Errorf("key %q, value %q", l.Key, l.Value)
	}
	got := map[string]string{}
	for _, h := range l.Headers {
		got[h.Key] += string(h.Value) + ";"
	}
	for name, want := range map[string]string{
		"Color": "red;blue;", idem.Header: "a;", idem.RedriveHeader: "1;",
		idemkafka.HeaderTopic: v.topic + ";", idemkafka.HeaderPartition: "0;", idemkafka.HeaderOffset: "1;",
		consumers.HeaderReason: consumers.ReasonPermanent + ";", consumers.HeaderAttempt: "1;",
		consumers.HeaderGroup: v.group + "/" + v.topic + ";",
	} {
		if got[name] != want {
			t.Errorf("header %s is %q, want %q", name, got[name], want)
		}
	}
}

// A copy whose time the broker refuses, as it does where the clock of the consumer's machine
// is an hour ahead, ends Run: consumers whose clock is right take over. Here copies are late
// for a topic that takes none of a moment ago.
func TestLetterTimeRefused(t *testing.T) {
	t.Parallel()
	v := setup(t, 1)
	dead := unique("punctual")
	v.srv.CreateTopic(t, dead, 1, "message.timestamp.before.max.ms=1")
	w := v.writer()
	w.Transport = &kafka.Transport{Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, network, addr)
		return lateConn{conn}, err
	}}
	t.Cleanup(w.Transport.(*kafka.Transport).CloseIdleConnections)
	r := v.run("reader", func(context.Context, kafka.Message) error { return idem.Permanent(errTest) }, idemkafka.DeadLetter(w, dead))
	v.publish("bad")
	if err := r.result(); !errors.Is(err, consumers.ErrUndeliverable) || !errors.Is(err, kafka.InvalidTimestamp) || !strings.Contains(err.Error(), "set the clock") {
		t.Errorf("Run: %v", err)
	}
	if n, m := v.owed(), len(v.srv.All(t, dead)); n != 1 || m != 0 {
		t.Errorf("%d messages are owed, %d letters", n, m)
	}
}

// lateConn sends everything a little later.
type lateConn struct{ net.Conn }

func (c lateConn) Write(b []byte) (int, error) {
	<-time.After(20 * time.Millisecond)
	return c.Conn.Write(b)
}
