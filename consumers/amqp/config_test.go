package idemamqp_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/idemq/idemq/consumers"
	idemamqp "github.com/idemq/idemq/consumers/amqp"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store/memstore"
)

// What the constructors refuse, and that they name all faults at once.
func TestFaults(t *testing.T) {
	t.Parallel()
	const url = "amqp://guest:secret@localhost:1/"
	g := idem.New(idem.WithStore(memstore.New())).Group("billing")
	h := (&journal{}).handle
	ch := make(chan amqp.Delivery)
	dial := func(context.Context) (*amqp.Connection, error) { return nil, errTest }
	letters := idemamqp.DeadLetter("", "dead")
	long := strings.Repeat("n", 255)
	queue := func(opts ...idemamqp.Option) error {
		_, err := idemamqp.NewQueueConsumer(url, "q", g, h, opts...)
		return err
	}
	channel := func(opts ...idemamqp.Option) error {
		_, err := idemamqp.NewConsumer(ch, g, h, append(opts, idemamqp.Prefetch(4))...)
		return err
	}
	wrap := func(opts ...idemamqp.Option) error {
		_, err := idemamqp.Wrap(g, h, opts...)
		return err
	}
	batch := func(context.Context, []amqp.Delivery) []error { return nil }
	of := func(_ any, err error) error { return err }
	for name, c := range map[string]struct {
		err  error
		want string // empty: none
	}{
		"queue":                  {queue(), ""},
		"channel":                {channel(), ""},
		"wrap":                   {wrap(), ""},
		"shared options":         {queue(consumers.Budget(3), consumers.AtMostOnce()), ""},
		"no url":                 {of(idemamqp.NewQueueConsumer("", "q", g, h)), "amqp://"},
		"bad url":                {of(idemamqp.NewQueueConsumer("http://guest:secret@x:y/", "q", g, h)), "amqp://"},
		"Dial needs no url":      {of(idemamqp.NewQueueConsumer("", "q", g, h, idemamqp.Dial(dial))), ""},
		"no queue":               {of(idemamqp.NewQueueConsumer(url, "", g, h)), "queue is empty"},
		"no handler":             {of(idemamqp.NewQueueConsumer(url, "q", g, nil)), "handler is nil"},
		"no guard":               {of(idemamqp.NewQueueConsumer(url, "q", nil, h)), "guard is nil"},
		"the queue is the group": {of(idemamqp.NewQueueConsumer(url, "q", idem.New(idem.WithStore(memstore.New())), h)), ""},
		"no store":               {of(idemamqp.NewQueueConsumer(url, "q", idem.New(), h)), "redis not enabled"},
		"guard's fault":          {of(idemamqp.NewQueueConsumer(url, "q", idem.New(idem.WithLease(1)), h)), "WithLease"},
		"channel, no deliveries": {of(idemamqp.NewConsumer(nil, g, h, idemamqp.Prefetch(1))), "deliveries are nil"},
		"channel, no Prefetch":   {of(idemamqp.NewConsumer(ch, g, h)), "Channel.Qos"},
		"channel, no handler":    {of(idemamqp.NewConsumer(ch, g, nil, idemamqp.Prefetch(1))), "handler is nil"},
		"channel, no guard":      {of(idemamqp.NewConsumer(ch, nil, h, idemamqp.Prefetch(1))), "guard is nil"},
		"two handlers":           {of(idemamqp.NewQueueConsumer(url, "q", g, h, idemamqp.HandleBatches(0, batch))), "give the constructor nil"},
		"batches":                {of(idemamqp.NewQueueConsumer(url, "q", g, nil, idemamqp.HandleBatches(0, batch))), ""},
		"batches of -1":          {of(idemamqp.NewQueueConsumer(url, "q", g, nil, idemamqp.HandleBatches(-1, batch))), "-1: must not be negative"},
		"batches, no handler":    {of(idemamqp.NewQueueConsumer(url, "q", g, nil, idemamqp.HandleBatches(5, nil))), "HandleBatches: the handler is nil"},
		"wrap, batches":          {wrap(idemamqp.HandleBatches(5, batch)), "not for Wrap"},
		"wrap, no handler":       {of(idemamqp.Wrap(g, nil)), "handler is nil"},
		"wrap, no guard":         {of(idemamqp.Wrap(nil, h)), "guard is nil"},
		"Concurrency 0":          {queue(idemamqp.Concurrency(0)), "Concurrency"},
		"Prefetch 0":             {queue(idemamqp.Prefetch(0)), "Prefetch"},
		"Prefetch too large":     {queue(idemamqp.Prefetch(65536)), "65535"},
		"Prefetch < Concurrency": {queue(idemamqp.Prefetch(2), idemamqp.Concurrency(3)), "never run"},
		"HoldLimit 0":            {queue(idemamqp.HoldLimit(0)), "HoldLimit"},
		"HoldLimit too small":    {queue(idemamqp.HoldLimit(999 * time.Millisecond)), "1s at least"},
		"least HoldLimit":        {queue(idemamqp.HoldLimit(time.Second)), ""},
		"longest names":          {of(idemamqp.NewQueueConsumer(url, long, g, h, idemamqp.DeadLetter(long, long))), ""},
		"queue name too long":    {of(idemamqp.NewQueueConsumer(url, long+"q", g, h)), "queue is 256 bytes"},
		"exchange too long":      {queue(idemamqp.DeadLetter(long+"x", "k")), "exchange is 256 bytes"},
		"key too long":           {queue(idemamqp.DeadLetter("", long+"k")), "key is 256 bytes"},
		"DeliveryLimit 0":        {queue(idemamqp.DeliveryLimit(0)), "DeliveryLimit"},
		"small DeliveryLimit":    {queue(idemamqp.DeliveryLimit(10)), ""},
		"and a Prefetch":         {queue(idemamqp.DeliveryLimit(10), idemamqp.Prefetch(2)), "within the budget of 10"},
		"large DeliveryLimit":    {queue(idemamqp.DeliveryLimit(11), idemamqp.Prefetch(2)), ""},
		"channel, small limit":   {channel(idemamqp.DeliveryLimit(10)), "Concurrency of 1"},
		"Dial nil":               {queue(idemamqp.Dial(nil)), "Dial"},
		"Dial and Config":        {queue(idemamqp.Dial(dial), idemamqp.Config(amqp.Config{})), "exclude each other"},
		"Recovery":               {queue(idemamqp.Config(amqp.Config{Recovery: &amqp.Recovery{}})), "Recovery"},
		"DeadLetter to nowhere":  {queue(idemamqp.DeadLetter("", "")), "both empty"},
		"DeadLetter to itself":   {queue(idemamqp.DeadLetter("", "q")), "come back"},
		"two ways to bury":       {queue(letters, idemamqp.RejectToDLX()), "exclude each other"},
		"queue, PublishOn":       {queue(letters, idemamqp.PublishOn(&amqp.Channel{})), "PublishOn"},
		"channel, no PublishOn":  {channel(letters), "PublishOn"},
		"wrap, no PublishOn":     {wrap(letters), "PublishOn"},
		"channel, PublishOn":     {channel(letters, idemamqp.PublishOn(&amqp.Channel{})), ""},
		"PublishOn alone":        {channel(idemamqp.PublishOn(&amqp.Channel{})), "is missing"},
		"PublishOn nil":          {channel(letters, idemamqp.PublishOn(nil)), "channel is nil"},
		"channel, Dial":          {channel(idemamqp.Dial(dial)), "not for NewConsumer"},
		"channel, Config":        {channel(idemamqp.Config(amqp.Config{})), "not for NewConsumer"},
		"wrap, Dial":             {wrap(idemamqp.Dial(dial)), "not for Wrap"},
		"wrap, Prefetch":         {wrap(idemamqp.Prefetch(3)), "not for Wrap"},
		"wrap, Concurrency":      {wrap(idemamqp.Concurrency(3)), "not for Wrap"},
		"another broker's":       {queue(consumers.NewOption("DoubleAck", func(*int) {})), "DoubleAck: this option belongs to another"},
		"all at once":            {of(idemamqp.NewQueueConsumer(url, "", g, nil, idemamqp.Concurrency(0))), "Concurrency: 0: must be more than zero\nthe queue is empty: name the one to consume\nthe handler is nil"},
	} {
		switch {
		case c.want == "" && c.err != nil:
			t.Errorf("%s: %v", name, c.err)
		case c.want != "" && (c.err == nil || !strings.Contains(c.err.Error(), c.want)):
			t.Errorf("%s: %v, want %q", name, c.err, c.want)
		case c.err != nil && strings.Contains(c.err.Error(), "secret"):
			t.Errorf("%s: the error tells the password: %v", name, c.err)
		}
	}
	none := idem.New(idem.WithStore(memstore.New()))
	if _, err := idemamqp.NewConsumer(ch, none, h, idemamqp.Prefetch(1)); !errors.Is(err, idem.ErrNoGroup) {
		t.Errorf("NewConsumer without a group: %v", err)
	}
	if _, err := idemamqp.Wrap(none, h); !errors.Is(err, idem.ErrNoGroup) {
		t.Errorf("Wrap without a group: %v", err)
	}
}

// The group is the queue's name where the guard has none.
func TestGroupOfQueue(t *testing.T) {
	v := setup(t)
	v.guard = idem.New(idem.WithStore(v.store))
	v.publish("a")
	var j journal
	v.run(j.handle)
	v.settled()
	rec, err := v.guard.Group(v.queue).Inspect(t.Context(), "a")
	if err != nil || rec.Attempt != 1 {
		t.Errorf("record %+v, %v", rec, err)
	}
}

// Dial's connections are used, and closed at the end.
func TestDial(t *testing.T) {
	v := setup(t)
	v.publish("a", "b")
	conns := make(chan *amqp.Connection, 8)
	var j journal
	r := v.runAt("", func(ctx context.Context, d amqp.Delivery) error {
		if string(d.Body) == "b" {
			return bury(ctx, d)
		}
		return j.handle(ctx, d)
	}, v.deadLetter(), idemamqp.Dial(func(context.Context) (*amqp.Connection, error) {
		conn, err := amqp.DialConfig(v.srv.URL(), amqp.Config{Heartbeat: 7 * time.Second})
		if err == nil {
			conns <- conn
		}
		return conn, err
	}))
	v.settled()
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	close(conns)
	n := 0
	for conn := range conns {
		n++
		if !conn.IsClosed() {
			t.Error("a connection was left open")
		}
	}
	if n != 2 {
		t.Errorf("%d connections, want one to consume and one for dead letters", n)
	}
	j.want(t, "a")
}
