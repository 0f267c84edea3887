package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"

	"github.com/idemq/idemq/consumers"
	idemamqp "github.com/idemq/idemq/consumers/amqp"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/internal/child"
	"github.com/idemq/idemq/internal/rabbittest"
	"github.com/idemq/idemq/internal/redistest"
	"github.com/idemq/idemq/internal/testenv"
)

// TestAMQP runs what follows on one real RabbitMQ and one real Redis, each test with
// queues and records of its own.
func TestAMQP(t *testing.T) {
	s := &amqpSite{rabbit: rabbittest.Start(t), redis: redistest.Start(t)}
	s.rdb = s.redis.Client(t)
	for _, test := range []struct {
		name  string
		alone bool // it counts what all of the process or of the servers do
		run   func(*amqpSite)
	}{
		{"connections", true, amqpConnections},
		{"duplicates", true, amqpDuplicates},
		{"kill", false, amqpKill},
		{"poison", false, amqpPoison},
		{"unroutable", false, amqpUnroutable},
		{"delivery limit", false, amqpDeliveryLimit},
	} {
		t.Run(test.name, func(t *testing.T) {
			if !test.alone {
				t.Parallel()
			}
			test.run(s.with(t))
		})
	}
}

// amqpSite is a queue, a dead-letter queue and records for one test.
type amqpSite struct {
	t                   *testing.T
	rabbit              *rabbittest.Server
	redis               *redistest.Server
	rdb                 *redis.Client
	queue, dead, prefix string
	args                amqp.Table
}

func (s *amqpSite) with(t *testing.T) *amqpSite {
	t.Helper()
	x := *s
	x.t = t
	name := strings.NewReplacer("/", "-", " ", "-").Replace(t.Name())
	x.queue, x.dead, x.prefix = name, name+"-dead", name
	return &x
}

// do calls f with a channel in confirm mode, on a connection of its own.
func (s *amqpSite) do(f func(ch *amqp.Channel) error) {
	s.t.Helper()
	conn, err := amqp.Dial(s.rabbit.URL())
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err == nil {
		err = ch.Confirm(false)
	}
	if err == nil {
		err = f(ch)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *amqpSite) declare() {
	s.t.Helper()
	s.do(func(ch *amqp.Channel) error {
		_, err := ch.QueueDeclare(s.queue, true, false, false, false, s.args)
		if err == nil {
			_, err = ch.QueueDeclare(s.dead, true, false, false, false, nil)
		}
		return err
	})
}

// publish returns when the broker has confirmed all.
func (s *amqpSite) publish(tokens ...string) {
	s.t.Helper()
	s.do(func(ch *amqp.Channel) error {
		confirms := make([]*amqp.DeferredConfirmation, len(tokens))
		for i, token := range tokens {
			msg := amqp.Publishing{DeliveryMode: amqp.Persistent, Body: []byte("order " + token)}
			idemamqp.SetToken(&msg, token)
			var err error
			if confirms[i], err = ch.PublishWithDeferredConfirm("", s.queue, true, false, msg); err != nil {
				return err
			}
		}
		for _, c := range confirms {
			if !c.Wait() {
				return errors.New("not confirmed")
			}
		}
		return nil
	})
}

func (s *amqpSite) owed() int {
	s.t.Helper()
	return s.rabbit.Messages(s.t, s.queue)
}

func (s *amqpSite) settled() {
	s.t.Helper()
	testenv.Await(s.t, "all are settled", func() bool { return s.owed() == 0 })
}

// letters returns the dead-letter copies, and leaves them there.
func (s *amqpSite) letters() (all []amqp.Delivery) {
	s.t.Helper()
	s.do(func(ch *amqp.Channel) error {
		for {
			d, ok, err := ch.Get(s.dead, false)
			if err != nil || !ok {
				return err
			}
			all = append(all, d)
		}
	})
	return all
}

func (s *amqpSite) guard(opts ...idem.Option) *idem.Guard {
	return idem.New(append([]idem.Option{idem.WithRedis(s.rdb), idem.WithPrefix(s.prefix), idem.WithLease(5 * time.Second)}, opts...)...)
}

func (s *amqpSite) role() amqpRole {
	return amqpRole{
		URL: s.rabbit.URL(), Redis: s.redis.Addr(), Queue: s.queue, DeadTo: s.dead, Prefix: s.prefix,
		Lease: time.Second, Budget: 4,
	}
}

// consume runs a consumer in this process until stop is called, which returns what its
// Run returned.
func (s *amqpSite) consume(url string, g *idem.Guard, h idemamqp.Handler, opts ...idemamqp.Option) (stop func() error) {
	s.t.Helper()
	c, err := idemamqp.NewQueueConsumer(url, s.queue, g, h, opts...)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	stop = func() error {
		cancel()
		err := <-done
		done <- err
		return err
	}
	s.t.Cleanup(func() { _ = stop() })
	return stop
}

// attempts are the starts of poison and held messages, in any process.
func (s *amqpSite) attempts() []string {
	s.t.Helper()
	all, err := s.rdb.LRange(s.t.Context(), attemptsKey(s.prefix), 0, -1).Result()
	if err != nil {
		s.t.Fatal(err)
	}
	return all
}

func (s *amqpSite) effects(token string) int {
	s.t.Helper()
	n, err := s.rdb.HGet(s.t.Context(), ledgerKey(s.prefix), token).Int()
	if err != nil && !errors.Is(err, redis.Nil) {
		s.t.Fatal(err)
	}
	return n
}

// A process is killed in the handler: the message is handled again within the lease and
// a second of its redelivery, and within half the lease where the one that comes instead
// has its instance name.
func amqpKill(s *amqpSite) {
	const lease = 4 * time.Second
	for _, test := range []struct {
		name, instance string
		within         time.Duration
	}{
		{"another instance", "", lease + time.Second},
		{"the same instance", "pod-0", lease / 2},
	} {
		s.t.Run(test.name, func(t *testing.T) {
			s := s.with(t)
			s.declare()
			s.publish("held")
			r := s.role()
			r.Lease, r.Instance, r.Hold = lease, test.instance, []string{"held"}
			p := mustSpawn(t, amqpRoleEnv, r)
			testenv.Await(t, "the first process to hold it", func() bool { return len(s.attempts()) == 1 })
			p.Kill()

			redelivered, started := make(chan time.Time, 1), make(chan int, 1)
			note := idem.ObserverFunc(func(ev idem.Event) {
				if ev.Kind == idem.EventInProgress || ev.Kind == idem.EventClaimed {
					select {
					case redelivered <- time.Now():
					default:
					}
				}
			})
			opts := []idem.Option{idem.WithLease(lease), idem.WithObserver(note)}
			if test.instance != "" {
				opts = append(opts, idem.WithInstance(test.instance))
			}
			stop := s.consume(s.rabbit.URL(), s.guard(opts...), func(ctx context.Context, _ amqp.Delivery) error {
				c, _ := idem.FromContext(ctx)
				started <- c.Attempt()
				return nil
			})
			begin := <-redelivered
			attempt := <-started
			took := time.Since(begin)
			t.Logf("lease %v: handled again %v after its redelivery, on attempt %d", lease, took.Round(time.Millisecond), attempt)
			if took > test.within {
				t.Errorf("it took %v, want no more than %v", took, test.within)
			}
			if attempt != 2 {
				t.Errorf("attempt %d, want 2", attempt)
			}
			s.settled()
			if err := stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

// Twenty times the connections are lost while messages are handled, half of them closed
// by an operator, half with their sockets: nothing is lost, nothing is doubled, the
// consumer comes back by itself, and leaves nothing behind.
func amqpConnections(s *amqpSite) {
	const kills = 20
	const spare = 5 // goroutines, which the client and the proxy use now and then: a leak would be one a kill
	n := 5000
	if isFull() {
		n = 50_000
	}
	t := s.t
	s.declare()
	orders := tokens("order", n)
	s.publish(orders[0])
	proxy := toxiproxy.NewProxy(toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop()), "rabbitmq", child.FreeAddr(t), s.rabbit.Addr())
	if err := proxy.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(proxy.Stop)

	counts := make([]atomic.Int32, n)
	var handled, waits, lapsed atomic.Int32
	due := make(chan struct{})
	note := idem.ObserverFunc(func(ev idem.Event) {
		switch ev.Kind {
		case idem.EventWaiting:
			waits.Add(1)
		case idem.EventLeaseLost:
			lapsed.Add(1)
		}
	})
	var before, after footprint
	stop := s.consume(s.rabbit.URLAt(proxy.Listen), s.guard(idem.WithObserver(note)), func(ctx context.Context, _ amqp.Delivery) error {
		c, _ := idem.FromContext(ctx)
		_, number, _ := strings.Cut(c.Token(), "-")
		i, err := strconv.Atoi(number)
		if err != nil {
			return err
		}
		done := int(handled.Add(1))
		if step := n / (kills + 1); done%step == 0 && done/step <= kills {
			due <- struct{}{} // seven others are in their handlers
		}
		counts[i].Add(1)
		return nil
	}, idemamqp.Concurrency(8), idemamqp.DeadLetter("", s.dead))
	same := 0 // how often in a row the footprint was the same
	testenv.Await(t, "the consumer to be at rest at first", func() bool {
		now := measure()
		if same++; now.goroutines != before.goroutines {
			same = 0
		}
		before = now
		return same > 20 && handled.Load() == 1 && s.owed() == 0 && s.subscriptions() == 1
	})
	began := time.Now()
	s.publish(orders[1:]...)
	for i := range kills {
		<-due
		testenv.Await(t, "a subscription", func() bool { return s.subscriptions() == 1 })
		lost := waits.Load()
		if i%2 == 0 {
			s.rabbit.CloseConnections(t, "a test")
		} else {
			proxy.Stop()
			if err := proxy.Start(); err != nil {
				t.Fatal(err)
			}
		}
		testenv.Await(t, "the consumer to miss it", func() bool { return waits.Load() > lost })
	}
	testenv.Await(t, "all are handled", func() bool { return int(handled.Load()) >= n && s.owed() == 0 })
	took := time.Since(began)
	testenv.Await(t, "the consumer to be at rest", func() bool {
		if s.subscriptions() != 1 {
			return false
		}
		after = measure()
		return after.goroutines <= before.goroutines+spare
	})
	if err := stop(); err != nil {
		t.Error(err)
	}
	lost, doubled := 0, 0
	for i := range counts {
		switch k := counts[i].Load(); {
		case k == 0:
			lost++
		case k > 1:
			doubled++
		}
	}
	t.Logf("%d messages and %d kills in %v: %d lost, %d doubled; the consumer waited %d times; goroutines %d before, %d after; heap %d KiB before, %d KiB after",
		n, kills, took.Round(time.Millisecond), lost, doubled, waits.Load(), before.goroutines, after.goroutines, before.heap>>10, after.heap>>10)
	if lost > 0 || doubled > 0 {
		t.Errorf("%d lost, %d doubled", lost, doubled)
	}
	if int(waits.Load()) < kills {
		t.Errorf("the consumer lost its connection %d times, want %d: the test shows less than it says", waits.Load(), kills)
	}
	if after.heap > before.heap+8<<20 {
		t.Errorf("the heap grew from %d to %d KiB", before.heap>>10, after.heap>>10)
	}
	if letters := len(s.letters()); letters != 0 || lapsed.Load() != 0 {
		t.Errorf("%d dead letters, %d leases lost", letters, lapsed.Load())
	}
}

// subscriptions is how many the broker knows of.
func (s *amqpSite) subscriptions() int {
	s.t.Helper()
	n, err := strconv.Atoi(s.rabbit.Eval(s.t, `{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"`+s.queue+`">>)), length(rabbit_amqqueue:consumers(Q))`))
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

// footprint is what a process holds.
type footprint struct {
	goroutines int
	heap       uint64
}

func measure() footprint {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return footprint{runtime.NumGoroutine(), m.HeapAlloc}
}

// One token, published ten thousand times, is handled once; what a duplicate costs.
func amqpDuplicates(s *amqpSite) {
	const n = 10_000
	t := s.t
	s.declare()
	all := make([]string, n)
	for i := range all {
		all[i] = "the-one"
	}
	s.publish(all...)
	var handled atomic.Int32
	before := (&site{t: t, rdb: s.rdb}).scripts()
	began := time.Now()
	stop := s.consume(s.rabbit.URL(), s.guard(idem.WithLease(time.Minute)), func(context.Context, amqp.Delivery) error {
		handled.Add(1)
		return nil
	})
	s.settled()
	took := time.Since(began)
	calls := (&site{t: t, rdb: s.rdb}).scripts() - before
	if err := stop(); err != nil {
		t.Error(err)
	}
	t.Logf("%d messages with one token in %v: handled %d times; %d script calls in Redis, %.4f a duplicate; the broker is sent one ack each, and waited for never", n, took.Round(time.Millisecond), handled.Load(), calls, float64(calls)/n)
	if handled.Load() != 1 {
		t.Errorf("handled %d times", handled.Load())
	}
	if calls > n {
		t.Errorf("%d script calls, more than one a duplicate", calls)
	}
}

// checkNeighbours reports the messages that poison cost more than it may.
func (s *amqpSite) checkNeighbours(tokens []string) (again int) {
	s.t.Helper()
	effects, err := s.rdb.HGetAll(s.t.Context(), ledgerKey(s.prefix)).Result()
	if err != nil {
		s.t.Fatal(err)
	}
	for _, token := range tokens {
		n, _ := strconv.Atoi(effects[token])
		if n == 0 {
			s.t.Errorf("%s is lost", token)
		}
		again += max(n-1, 0)
	}
	return again
}

// A message that kills its process each time is dead-lettered after its budget, and its
// neighbours are handled; moved back after the cause was mended, it is handled.
func amqpPoison(s *amqpSite) {
	for _, concurrency := range []int{1, 8} {
		s.t.Run(fmt.Sprintf("concurrency %d", concurrency), func(t *testing.T) {
			t.Parallel()
			s := s.with(t)
			s.declare()
			neighbours := tokens("innocent", 100)
			s.publish("poison-1")
			s.publish(neighbours[:40]...)
			s.publish("poison-2")
			s.publish(neighbours[40:]...)
			r := s.role()
			r.Concurrency, r.Poison = concurrency, []string{"poison-1", "poison-2"}
			stop := keepAlive(t, amqpRoleEnv, r)
			s.settled()
			deaths := stop()
			again := s.checkNeighbours(neighbours)
			letters := s.letters()
			var buried []string
			for _, d := range letters {
				token, _ := idemamqp.TokenOf(d)
				buried = append(buried, token)
				if reason := d.Headers[consumers.HeaderReason]; reason != consumers.ReasonBudget {
					t.Errorf("reason %v", reason)
				}
			}
			slices.Sort(buried)
			if !slices.Equal(buried, r.Poison) {
				t.Fatalf("dead letters %q, want %q", buried, r.Poison)
			}
			t.Logf("%d processes died; starts of the poison: %q; effects that happened again because their process died before they were recorded: %d of 100", deaths, s.attempts(), again)

			first := letters[0]
			token, _ := idemamqp.TokenOf(first)
			r.Poison = nil
			stop = keepAlive(t, amqpRoleEnv, r)
			defer stop()
			s.publish(token) // a stray redelivery of the original
			s.settled()
			if n := s.effects(token); n != 0 {
				t.Error("a stray redelivery was handled")
			}
			s.do(func(ch *amqp.Channel) error {
				c, err := ch.PublishWithDeferredConfirm("", s.queue, true, false, amqp.Publishing{Headers: first.Headers, DeliveryMode: amqp.Persistent, Body: first.Body})
				if err == nil && !c.Wait() {
					err = errors.New("not confirmed")
				}
				return err
			})
			testenv.Await(t, "the copy to be handled", func() bool { return s.owed() == 0 && s.effects(token) == 1 })
		})
	}
}

// A dead letter that no queue is bound for stops the consumer, and is delivered by the
// next one, once there is a queue.
func amqpUnroutable(s *amqpSite) {
	t := s.t
	s.declare()
	exchange := s.queue + "-exchange"
	s.do(func(ch *amqp.Channel) error {
		return ch.ExchangeDeclare(exchange, "topic", true, false, false, false, nil)
	})
	s.publish("a", "bad", "b")
	handler := func(ctx context.Context, _ amqp.Delivery) error {
		if c, _ := idem.FromContext(ctx); c.Token() == "bad" {
			return idem.Permanent(errors.New("broken"))
		}
		return nil
	}
	c, err := idemamqp.NewQueueConsumer(s.rabbit.URL(), s.queue, s.guard(), handler, idemamqp.DeadLetter(exchange, "letters.bad"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	err = c.Run(ctx)
	if !errors.Is(err, consumers.ErrUndeliverable) || !strings.Contains(err.Error(), exchange) || !strings.Contains(err.Error(), "letters.bad") {
		t.Errorf("Run returned %v, want one that names exchange and key", err)
	}
	t.Logf("Run returned: %v", err)
	if n := s.owed(); n != 2 {
		t.Errorf("the broker owes %d messages, want 2", n)
	}
	s.do(func(ch *amqp.Channel) error { return ch.QueueBind(s.dead, "letters.*", exchange, false, nil) })
	stop := s.consume(s.rabbit.URL(), s.guard(), handler, idemamqp.DeadLetter(exchange, "letters.bad"))
	s.settled()
	if err := stop(); err != nil {
		t.Error(err)
	}
	if n := len(s.letters()); n != 1 {
		t.Errorf("%d dead letters, want 1", n)
	}
}

// A quorum queue that drops what was returned too often, by a policy: a message that
// kills its process each time is dead-lettered before that, and its neighbours lose
// nothing.
func amqpDeliveryLimit(s *amqpSite) {
	const limit = 4
	t := s.t
	s.args = amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeQuorum}
	s.declare()
	s.rabbit.SetPolicy(t, "limit", "^"+s.queue+"$", fmt.Sprintf(`{"delivery-limit": %d}`, limit))
	neighbours := tokens("innocent", 20)
	s.publish(neighbours[:10]...)
	s.publish("poison")
	s.publish(neighbours[10:]...)
	r := s.role()
	r.Budget, r.DeliveryLimit, r.Poison = 10, limit, []string{"poison"}
	stop := keepAlive(t, amqpRoleEnv, r)
	s.settled()
	deaths := stop()
	if again := s.checkNeighbours(neighbours); again != 0 {
		t.Errorf("%d effects happened again, beside a process that holds one message at a time", again)
	}
	letters := s.letters()
	if len(letters) != 1 || letters[0].Headers[consumers.HeaderReason] != consumers.ReasonFinal {
		t.Fatalf("dead letters %v, want the poison's, as its last delivery", letters)
	}
	t.Logf("%d processes died; starts of the poison: %q", deaths, s.attempts())
	if deaths != limit || len(s.attempts()) != limit {
		t.Errorf("%d processes died in %d starts, want %d: the last delivery is not started", deaths, len(s.attempts()), limit)
	}
}
