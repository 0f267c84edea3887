package idemamqp_test

import (
	"context"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/idemq/idemq/consumers"
	idemamqp "github.com/idemq/idemq/consumers/amqp"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/internal/testenv"
)

// A token header of any type that AMQP has: a name is taken, what is none is refused by
// policy, and neighbours do not suffer.
func TestTokenTypes(t *testing.T) {
	tests := []struct {
		name   string
		value  any
		token  string // empty: refused
		says   string
		reason string
	}{
		{"string", "a", "a", "", ""},
		{"bytes", []byte("bytes\x00\xff"), "bytes\x00\xff", "", "clients of other languages send strings so"},
		{"int32", int32(17), "17", "", "an order's number is a name"},
		{"int64", int64(-18), "-18", "", ""},
		{"uint32", uint32(19), "19", "", ""},
		{"byte", byte(20), "20", "", ""},
		{"255 bytes", strings.Repeat("x", 255), strings.Repeat("x", 255), "", "the longest that may be"},
		{"array of one", []any{"one"}, "one", "", "a repeated header"},
		{"array of the same", []any{"two", "two"}, "two", "", "repeated with one value"},
		{"nil", nil, "", "empty", "a header without a value"},
		{"empty", "", "", "empty", ""},
		{"empty array", []any{}, "", "array, not a string", ""},
		{"256 bytes", strings.Repeat("x", 256), "", "256 bytes", ""},
		{"bool", true, "", "bool, not a string", "true would make one message of all that have it"},
		{"float", 1.5, "", "float64, not a string", ""},
		{"time", time.Unix(1, 0), "", "time.Time, not a string", ""},
		{"decimal", amqp.Decimal{Scale: 1, Value: 3}, "", "Decimal, not a string", ""},
		{"table", amqp.Table{"a": "b"}, "", "Table, not a string", ""},
		{"array of two", []any{"a", "b"}, "", "different values", "which of them?"},
		{"array with a table", []any{amqp.Table{}}, "", "Table, not a string", ""},
	}
	v := setup(t)
	var want []string
	for _, test := range tests {
		v.send(amqp.Publishing{Headers: amqp.Table{"IDEMPOTENCY-key": test.value}, Body: []byte(test.name)})
		if test.token != "" {
			want = append(want, test.name+" "+test.token)
		}
	}
	v.publish("neighbour")
	var j journal
	v.run(func(ctx context.Context, d amqp.Delivery) error {
		c, _ := idem.FromContext(ctx)
		token, ok := idemamqp.TokenOf(d)
		if !ok || token != c.Token() {
			t.Errorf("%s: TokenOf says %q, %v, the claim %q", d.Body, token, ok, c.Token())
		}
		j.add("%s %s", d.Body, token)
		return nil
	}, v.deadLetter())
	v.settled()
	j.want(t, append(want, "neighbour neighbour")...)
	letters := map[string]amqp.Delivery{}
	for _, d := range v.deadLetters() {
		letters[string(d.Body)] = d
		if _, ok := idemamqp.TokenOf(d); ok {
			t.Errorf("%s: TokenOf finds a token", d.Body)
		}
	}
	for _, test := range tests {
		if test.token != "" {
			continue
		}
		d, ok := letters[test.name]
		text := fmt.Sprint(d.Headers[consumers.HeaderError])
		if !ok || d.Headers[consumers.HeaderReason] != consumers.ReasonToken || !strings.Contains(text, test.says) || !strings.Contains(text, idem.Header) {
			t.Errorf("%s: letter with reason %v, error %q, want %q: %s", test.name, d.Headers[consumers.HeaderReason], text, test.says, test.reason)
		}
	}
	if n := len(want); len(letters) != len(tests)-n {
		t.Errorf("%d dead letters, want %d", len(letters), len(tests)-n)
	}
}

// A message without a token goes by the policy: AMQP gives it no other name.
func TestNoToken(t *testing.T) {
	v := setup(t)
	v.send(amqp.Publishing{Body: []byte("x"), MessageId: "id"})
	if err := v.run((&journal{}).handle).result(); err == nil || !strings.Contains(err.Error(), "has no token") {
		t.Errorf("Run returned %v", err)
	}
	v.wantOwed(1)
	var j journal
	r := v.run(j.handle, consumers.TrustMessageID())
	v.settled()
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	j.want(t, "x")
	v.send(amqp.Publishing{Body: []byte("y")})
	v.run(j.handle, v.deadLetter())
	v.settled()
	if all := v.deadLetters(); len(all) != 1 || all[0].Headers[consumers.HeaderReason] != consumers.ReasonToken {
		t.Errorf("dead letters %v", all)
	}
}

// What TokenFrom, and CloudEvents, find in a message.
func TestHeadersAndProperties(t *testing.T) {
	v := setup(t)
	now := time.Now().Truncate(time.Second)
	v.send(amqp.Publishing{
		Headers: amqp.Table{
			"Color": "red", "COLOR": "blue", "n": int32(7), "yes": true, "none": nil, "at": time.Unix(60, 0), "pi": 3.5,
			"price": amqp.Decimal{Scale: 2, Value: 123}, "list": []any{"a", int64(2)}, "table": amqp.Table{"k": "v"}, "type": "header's",
		},
		ContentType: "application/cloudevents+json", ContentEncoding: "utf-8", CorrelationId: "corr", ReplyTo: "reply", MessageId: "id",
		Type: "property's", AppId: "app", UserId: "guest", Timestamp: now, Body: []byte("body"),
	})
	seen := make(chan struct{})
	v.run((&journal{}).handle, consumers.TokenFrom(func(m consumers.Message) (string, error) {
		defer close(seen)
		for name, want := range map[string][]string{
			"color": {"blue", "red"}, "N": {"7"}, "yes": {"true"}, "none": {""}, "at": {"1970-01-01T00:01:00Z"}, "pi": {"3.5"},
			"price": {"123e-2"}, "list": {"a", "2"}, "table": {"map[k:v]"}, "nowhere": nil,
			"Content-Type": {"application/cloudevents+json"}, "content-encoding": {"utf-8"}, "correlation-id": {"corr"},
			"reply-to": {"reply"}, "message-id": {"id"}, "type": {"header's"}, "app-id": {"app"}, "user-id": {"guest"},
		} {
			if got := m.Header(name); !reflect.DeepEqual(got, want) {
				t.Errorf("header %s is %q, want %q", name, got, want)
			}
		}
		if m.Coordinates() != nil || m.ID() != "id" || !m.Time().Equal(now) || string(m.Body()) != "body" {
			t.Errorf("coordinates %v, id %q, time %v, body %q", m.Coordinates(), m.ID(), m.Time(), m.Body())
		}
		if s := m.String(); !strings.Contains(s, `queue "`+v.queue+`"`) || !strings.Contains(s, "delivery 1") || !strings.Contains(s, `routing key "`+v.queue+`"`) {
			t.Errorf("String: %s", s)
		}
		return "a", nil
	}))
	<-seen
	v.settled()
}

// CloudEvents in binary mode, in the two spellings of their AMQP binding, and in the
// structured mode, which the content-type property names.
func TestCloudEvents(t *testing.T) {
	v := setup(t)
	for _, prefix := range []string{"cloudEvents:", "cloudEvents_"} {
		v.send(amqp.Publishing{Headers: amqp.Table{prefix + "id": "1", prefix + "source": "/orders", prefix + "type": "t"}, Body: []byte("x")})
	}
	v.send(amqp.Publishing{ContentType: "application/cloudevents+json; charset=utf-8", Body: []byte(`{"specversion": "1.0", "id": "1", "source": "/orders", "type": "t"}`)})
	var j journal
	v.run(func(ctx context.Context, _ amqp.Delivery) error {
		c, _ := idem.FromContext(ctx)
		if c.Token() != idem.TokenFor("/orders", "1") {
			t.Errorf("token %q", c.Token())
		}
		j.add("x")
		return nil
	})
	v.settled()
	j.want(t, "x")
}

// Headers of any number and size: what the protocol carries is handled and dead-lettered,
// what it does not the client or the broker refuses to publish.
func TestLargeHeaders(t *testing.T) {
	v := setup(t)
	many := amqp.Table{idem.Header: "many"}
	for i := range 8000 {
		many[fmt.Sprint("h", i)] = nil
	}
	v.send(amqp.Publishing{Headers: many, Body: []byte("many")})
	// One frame carries all headers: 131072 bytes unless both sides agree on more.
	nearly := amqp.Table{idem.Header: "nearly", "large": strings.Repeat("x", 131072-200)}
	v.send(amqp.Publishing{Headers: nearly, Body: []byte("nearly")})
	ch := v.channel(v.dial())
	closed := ch.NotifyClose(make(chan *amqp.Error, 1))
	if err := ch.Confirm(false); err != nil {
		t.Fatal(err)
	}
	c, err := ch.PublishWithDeferredConfirm("", v.queue, true, false, amqp.Publishing{Headers: amqp.Table{idem.Header: "large", "large": strings.Repeat("x", 1<<20)}})
	if err == nil {
		if c.Wait() {
			t.Error("the broker took a header of 1 MB in a frame")
		}
		err = <-closed
	}
	t.Logf("a header of 1 MB: %v", err)
	v.wantOwed(2)

	var j journal
	r := v.run(func(ctx context.Context, d amqp.Delivery) error {
		if err := j.handle(ctx, d); err != nil {
			return err
		}
		return idem.Permanent(errTest)
	}, v.deadLetter())
	// The copy has more headers than the message: there is no room for them.
	err = r.result()
	if err == nil || !strings.Contains(err.Error(), "undeliverable") || !strings.Contains(err.Error(), "one frame") {
		t.Errorf("Run returned %v, want one that says why the copy is undeliverable", err)
	}
	testenv.Await(t, "the first to be dead-lettered", func() bool { return len(v.deadLetters()) == 1 })
	v.wantOwed(1)
	v.run(j.handle, v.deadLetter())
	v.settled()
}

// unreadable publishes a message with more headers than the client reads.
func (v *env) unreadable() {
	v.t.Helper()
	many := amqp.Table{idem.Header: "many"}
	for i := range 10_000 {
		many[fmt.Sprint("h", i)] = nil
	}
	v.send(amqp.Publishing{Headers: many})
}

// Sessions that are of no use come at longer and longer intervals, whatever is delivered
// in them.
func TestUnreadableMessagePauses(t *testing.T) {
	v := setup(t)
	v.publish("a")
	v.unreadable()
	finish := make(chan struct{})
	defer close(finish)
	v.run(func(context.Context, amqp.Delivery) error {
		<-finish
		return nil
	}, idemamqp.Concurrency(2))
	testenv.Await(t, "some pauses", func() bool { return len(v.events.of(idem.EventWaiting)) >= 5 })
	if w := v.events.of(idem.EventWaiting)[4].Wait; w < 800*time.Millisecond {
		t.Errorf("the fifth pause is %v long", w)
	}
}

// What is before a message that the client cannot read is handled: it is delivered alone.
func TestBeforeUnreadableMessage(t *testing.T) {
	v := setup(t)
	v.publish("a", "b", "c")
	v.unreadable()
	started, finish := make(chan struct{}), make(chan struct{})
	var j journal
	v.run(func(ctx context.Context, d amqp.Delivery) error {
		if string(d.Body) == "a" {
			close(started)
			<-finish
		}
		return j.handle(ctx, d)
	})
	<-started
	testenv.Await(t, "a session with a alone", func() bool {
		q, err := v.ch.QueueDeclarePassive(v.queue, false, false, false, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		return q.Consumers == 1 && q.Messages == 3
	})
	close(finish)
	testenv.Await(t, "all but it to be handled", func() bool { return v.owed() == 1 })
	j.want(t, "a", "b", "c")
	if _, err := v.ch.QueuePurge(v.queue, false); err != nil {
		t.Fatal(err)
	}
}

// A message that the client cannot read breaks each connection that it is delivered on:
// nothing is lost, and the consumer says what it is.
func TestUnreadableMessage(t *testing.T) {
	v := setup(t)
	v.publish("a")
	v.unreadable()
	v.publish("b")
	var j journal
	r := v.run(j.handle)
	const says = "more than 8192 headers"
	testenv.Await(t, "the consumer to say so", func() bool {
		n := 0
		for _, ev := range v.events.of(idem.EventWaiting) {
			if strings.Contains(ev.Err.Error(), says) {
				n++
			}
		}
		return n > 1
	})
	if n := v.owed(); n < 2 {
		t.Errorf("the broker owes %d messages", n)
	}
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	if err := v.runOn(v.source(), j.handle).result(); err == nil || !strings.Contains(err.Error(), "NotifyClose") {
		t.Errorf("Run of NewConsumer returned %v", err)
	}
}

// A stream keeps no account of acks: each of the three ways refuses its messages.
func TestStream(t *testing.T) {
	v := setup(t, amqp.Table{"x-queue-type": "stream"})
	subscribe := func() <-chan amqp.Delivery {
		ch := v.channel(v.dial())
		if err := ch.Qos(prefetch, 0, false); err != nil {
			t.Fatal(err)
		}
		deliveries, err := ch.Consume(v.queue, "", false, false, false, false, amqp.Table{"x-stream-offset": "first"})
		if err != nil {
			t.Fatal(err)
		}
		return deliveries
	}
	var j journal
	r := v.run(j.handle)
	testenv.Await(t, "the end of Run", func() bool {
		v.publish("a") // it gets what comes after its subscription
		return len(r.done) == 1
	})
	if err := r.result(); err == nil || !strings.Contains(err.Error(), "stream") || !strings.Contains(err.Error(), v.queue) {
		t.Errorf("Run of NewQueueConsumer returned %v", err)
	}
	c, err := idemamqp.NewConsumer(subscribe(), v.guard, j.handle, idemamqp.Prefetch(prefetch))
	if err != nil {
		t.Fatal(err)
	}
	if err := v.start(c).result(); err == nil || !strings.Contains(err.Error(), "stream") {
		t.Errorf("Run of NewConsumer returned %v", err)
	}
	if err := v.wrap(j.handle)(t.Context(), <-subscribe()); err == nil || !strings.Contains(err.Error(), "stream") {
		t.Errorf("Wrap: %v", err)
	}
	j.want(t)
}

// A subscription whose deliveries do not come from a channel cannot be watched.
func TestForeignAcknowledger(t *testing.T) {
	v := setup(t)
	deliveries := make(chan amqp.Delivery, 1)
	deliveries <- amqp.Delivery{Acknowledger: &fake{}, DeliveryTag: 1, Headers: amqp.Table{idem.Header: "a"}}
	c, err := idemamqp.NewConsumer(deliveries, v.guard, (&journal{}).handle, idemamqp.Prefetch(1))
	if err != nil {
		t.Fatal(err)
	}
	if err := v.start(c).result(); err == nil || !strings.Contains(err.Error(), "Acknowledger is a *idemamqp_test.fake") {
		t.Errorf("Run returned %v", err)
	}
	f, err := idemamqp.Wrap(v.guard, (&journal{}).handle)
	if err != nil {
		t.Fatal(err)
	}
	if err := f(t.Context(), amqp.Delivery{}); err == nil || !strings.Contains(err.Error(), "Acknowledger") {
		t.Errorf("Wrap: %v", err)
	}
}

type fake struct{ amqp.Acknowledger }

// Tags that go back are those of a channel that was opened again, or of several
// subscriptions: nothing is settled by them.
func TestTagsGoBack(t *testing.T) {
	v := setup(t)
	v.publish("a", "b")
	s := v.source()
	a, b := <-s.deliveries, <-s.deliveries
	swapped := make(chan amqp.Delivery, 2)
	swapped <- b
	swapped <- a
	c, err := idemamqp.NewConsumer(swapped, v.guard, func(ctx context.Context, _ amqp.Delivery) error {
		<-ctx.Done()
		return context.Cause(ctx)
	}, idemamqp.Prefetch(prefetch), consumers.DrainTimeout(time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	if err := v.start(c).result(); err == nil || !strings.Contains(err.Error(), "tag 1 came after 2") {
		t.Errorf("Run returned %v", err)
	}
	v.wantOwed(2)
}

// Deliveries of two channels in one: a close of either would not be told from the
// other's.
func TestTwoChannels(t *testing.T) {
	v := setup(t)
	v.publish("a", "b")
	one, two := v.source(), v.source()
	merged := make(chan amqp.Delivery, 2)
	merged <- <-one.deliveries
	select {
	case d := <-two.deliveries:
		merged <- d
	case d := <-one.deliveries:
		d.Acknowledger = two.ch
		merged <- d
	}
	c, err := idemamqp.NewConsumer(merged, v.guard, func(ctx context.Context, _ amqp.Delivery) error {
		<-ctx.Done()
		return context.Cause(ctx)
	}, idemamqp.Prefetch(prefetch), consumers.DrainTimeout(time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	if err := v.start(c).result(); err == nil || !strings.Contains(err.Error(), "two channels") {
		t.Errorf("Run returned %v", err)
	}
	v.wantOwed(2)
}
