package e2e_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/idemq/idemq/consumers"
	idemkafka "github.com/idemq/idemq/consumers/kafka"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/internal/testenv"
)

// A message that a killed process held is handled again within the lease and a second
// of its redelivery, and within half the lease where the next process carries the same
// name.
func TestKafkaTakeover(t *testing.T) {
	t.Parallel()
	const lease = 6 * time.Second
	servers := newKafkaSite(t)
	t.Run("constructors", func(t *testing.T) { // side by side: they wait
		for _, c := range constructors {
			for _, instance := range []string{"", "pod-0"} {
				name, limit := "any instance", lease+time.Second
				if instance != "" {
					name, limit = "same instance", lease/2
				}
				t.Run(c.name+", "+name, func(t *testing.T) {
					t.Parallel()
					s := servers.with(t, "takeover-"+c.name+instance, 1)
					r := s.role(c.owns)
					r.Lease, r.Instance, r.Hold = lease, instance, "held"
					s.publish("held")
					first := mustSpawn(t, kafkaRoleEnv, r)
					testenv.Await(t, "the first process holds the message", seldom(func() bool { return len(s.noted(noteStart, "held")) == 1 }))
					first.Kill()
					killed := time.Now()
					second := mustSpawn(t, kafkaRoleEnv, r)
					s.awaitSettled()
					effects := s.noted(noteEffect, "held")
					if len(effects) != 1 || effects[0].Attempt != 2 || effects[0].PID != second.Pid() {
						t.Fatalf("effects %+v, want one, by attempt 2, of process %d", effects, second.Pid())
					}
					var redelivered time.Time
					for _, f := range s.noted(noteFetch, "held") {
						if f.PID == second.Pid() && redelivered.IsZero() {
							redelivered = f.At
						}
					}
					if redelivered.IsZero() {
						t.Fatal("the second process never had the message")
					}
					wait := effects[0].At.Sub(redelivered)
					t.Logf("lease %v: redelivered %v after SIGKILL, handled again %v after that (limit %v)",
						lease, redelivered.Sub(killed).Round(time.Millisecond), wait.Round(time.Millisecond), limit)
					if wait > limit {
						t.Errorf("handled again %v after its redelivery, want at most %v", wait, limit)
					}
					if err := second.terminate(); err != nil {
						t.Error(err)
					}
				})
			}
		}
	})
}

// A message that fails for long, while those behind it succeed and the process is
// killed: its offset is not passed before it is done.
func TestSkipTrap(t *testing.T) {
	t.Parallel()
	const before, after = 10, 5000
	failing := 6 * time.Second
	if isFull() {
		failing = 30 * time.Second
	}
	servers := newKafkaSite(t)
	t.Run("constructors", func(t *testing.T) {
		for _, c := range constructors {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				s := servers.with(t, "skip-"+c.name, 1)
				s.publish(tokens("before", before)...)
				s.publish("stubborn")
				s.publish(tokens("after", after)...)
				r := s.role(c.owns)
				r.Concurrency, r.Budget = 16, 10_000
				r.Failing = "stubborn"

				// The journal is read after the offset: what the offset passed is in it.
				highest := int64(-1)
				check := func() {
					t.Helper()
					committed, ok := s.kafka.Committed(t, s.group, s.topic)[0]
					if !ok || committed <= highest {
						return
					}
					highest = committed
					if committed > before && len(s.noted(noteEffect, "stubborn")) == 0 {
						t.Fatalf("offset %d is committed, and the message at %d is not done", committed, before)
					}
				}
				first := mustSpawn(t, kafkaRoleEnv, r)
				behind := func() int { return s.once() - before }
				testenv.Await(t, "most messages behind the one that fails are done", seldom(func() bool { check(); return behind() >= after*4/5 }))
				failed := func(p process) bool {
					return slices.ContainsFunc(s.noted(noteFail, "stubborn"), func(n note) bool { return n.PID == p.Pid() })
				}
				half := func(p process) {
					t.Helper()
					testenv.Await(t, "it has failed", seldom(func() bool { check(); return failed(p) }))
					until := time.Now().Add(failing / 2)
					testenv.Await(t, "half the time has passed", seldom(func() bool { check(); return time.Now().After(until) }))
				}
				half(first)
				ahead := behind()
				first.Kill()
				second := mustSpawn(t, kafkaRoleEnv, r)
				half(second)
				aheadAgain := behind()
				if err := s.rdb.Set(t.Context(), mendedKey(s.prefix), 1, 0).Err(); err != nil {
					t.Fatal(err)
				}
				testenv.Await(t, "all offsets are committed", seldom(func() bool { check(); return s.owed() == 0 }))
				if err := second.terminate(); err != nil {
					t.Error(err)
				}

				effects := map[string]int{}
				for _, e := range s.journal() {
					if e.What == noteEffect {
						effects[e.Token]++
					}
				}
				doubled := 0
				for token, n := range effects {
					if n > 1 {
						doubled++
						if n > 2 || token == "stubborn" {
							t.Errorf("%s: %d effects", token, n)
						}
					}
				}
				if len(effects) != before+1+after {
					t.Errorf("%d messages took effect, want %d", len(effects), before+1+after)
				}
				t.Logf("while one message failed, %d behind it were done before SIGKILL, %d in all; %d took effect again because of SIGKILL", ahead, aheadAgain, doubled)
				if doubled > r.Concurrency {
					t.Errorf("%d took effect again: more than were in a handler", doubled)
				}
			})
		}
	})
}

// A process that is killed in the handler, again and again: the message is
// dead-lettered when its budget is used up, and all others are handled. The copy that is
// moved back is handled, once; a stray redelivery is not.
func TestKafkaPoison(t *testing.T) {
	t.Parallel()
	servers := newKafkaSite(t)
	t.Run("constructors", func(t *testing.T) {
		for _, c := range constructors {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				s := servers.with(t, "poison-"+c.name, 3)
				innocent := tokens("innocent", 150)
				poison := s.order("poison")
				s.publish(innocent[:60]...)
				s.write(poison)
				s.publish(innocent[60:]...)
				r := s.role(c.owns)
				r.Poison, r.Budget, r.Session = []string{"poison"}, 3, time.Second
				stop := keepAlive(t, kafkaRoleEnv, r)
				s.awaitSettled()
				kills := stop()

				var attempts []int
				for _, start := range s.noted(noteStart, "poison") {
					attempts = append(attempts, start.Attempt)
				}
				if !slices.IsSorted(attempts) || len(slices.Compact(slices.Clone(attempts))) != len(attempts) {
					t.Errorf("attempts %v do not rise", attempts)
				}
				// The processes that died are those that started the poison.
				dead := map[int]killing{}
				for _, start := range s.noted(noteStart, "poison") {
					dead[start.PID] = killing{start.At, start.At.Add(time.Second)}
				}
				sum := s.tally(innocent, dead)
				t.Logf("%d processes killed, attempts %v; of %d neighbours %d took effect again because their process was killed before that was recorded", kills, attempts, len(innocent), sum.windows)
				if sum.lost > 0 || sum.broken > 0 {
					t.Errorf("%d neighbours are lost, %d took effect again without a cause", sum.lost, sum.broken)
				}
				letters := s.kafka.All(t, s.dead)
				if len(letters) != 1 {
					t.Fatalf("%d dead letters, want 1", len(letters))
				}
				letter := letters[0]
				if string(letter.Key) != string(poison.Key) || string(letter.Value) != string(poison.Value) {
					t.Errorf("the copy has key %q and value %q", letter.Key, letter.Value)
				}
				for name, want := range map[string]string{idem.Header: "poison", idem.RedriveHeader: "1", consumers.HeaderReason: consumers.ReasonBudget} {
					if got := headerOf(letter, name); got != want {
						t.Errorf("header %s: %q, want %q", name, got, want)
					}
				}

				// The cause is mended. The original comes once more, then the copy.
				r.Poison = nil
				stop = keepAlive(t, kafkaRoleEnv, r)
				s.write(poison)
				s.awaitSettled()
				if n := len(s.noted(noteEffect, "poison")); n != 0 {
					t.Errorf("a stray redelivery was handled")
				}
				s.write(kafka.Message{Topic: s.topic, Key: letter.Key, Value: letter.Value, Headers: letter.Headers})
				s.write(poison)
				s.awaitSettled()
				stop()
				if n := len(s.noted(noteEffect, "poison")); n != 1 {
					t.Errorf("the copy that was moved back had %d effects, want 1", n)
				}
				if n := len(s.kafka.All(t, s.dead)); n != 1 {
					t.Errorf("%d dead letters, want no more than 1", n)
				}
			})
		}
	})
}

func headerOf(msg kafka.Message, name string) string {
	for _, h := range msg.Headers {
		if strings.EqualFold(h.Key, name) {
			return string(h.Value)
		}
	}
	return ""
}

// One message, published ten thousand times with one token, is handled once.
func TestKafkaDuplicateStorm(t *testing.T) {
	const n = 10_000
	servers := newKafkaSite(t)
	for _, c := range constructors {
		t.Run(c.name, func(t *testing.T) {
			s := servers.with(t, "storm-"+c.name, 1)
			s.publish(slices.Repeat([]string{"the one"}, n)...)
			var l ledger
			var requests requestCounter
			config := s.config()
			config.Dialer = requests.dialer()
			before, began := s.scripts(), time.Now()
			stop := s.consume(c.owns, config, s.guard(), l.kafka)
			s.awaitSettled()
			took := time.Since(began)
			stop()
			calls := s.scripts() - before
			l.wantOnce(t, []string{"the one"})
			commits, fetches := requests.of(apiOffsetCommit), requests.of(apiFetch)
			t.Logf("%d duplicates in %v: %d script calls (%s each), %d offset commits (%s each), %d fetches (%s each)",
				n-1, took.Round(time.Millisecond), calls, per(calls, n-1), commits, per(commits, n-1), fetches, per(fetches, n-1))
			if calls > n {
				t.Errorf("%d script calls for %d duplicates: more than one each", calls, n-1)
			}
			if commits == 0 || commits > n/100 {
				t.Errorf("%d offset commits for %d messages", commits, n)
			}
			if rec, err := s.guard().Group(s.group+"/"+s.topic).Inspect(t.Context(), "the one"); err != nil || rec.State != store.Done || rec.Attempt != 1 {
				t.Errorf("record %+v, %v, want done by attempt 1", rec, err)
			}
		})
	}
}

// The broker is killed while messages flow, and comes back: Run goes on by itself, and
// everything is handled once.
func TestKafkaBrokerAway(t *testing.T) {
	for _, c := range constructors {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			const n, away = 3000, 2 * time.Second
			s := newKafkaSite(t).with(t, "away", 4)
			all := tokens("order", n)
			var l ledger
			stop := s.consume(c.owns, s.config(), s.guard(), l.kafka)
			published := make(chan struct{})
			w, ctx := s.writer(), t.Context()
			go func() {
				defer close(published)
				tick := time.NewTicker(20 * time.Millisecond)
				defer tick.Stop()
				for chunk := range slices.Chunk(all, 20) {
					msgs := make([]kafka.Message, len(chunk))
					for i, token := range chunk {
						msgs[i] = s.order(token)
					}
					for w.WriteMessages(ctx, msgs...) != nil { // published again: some of them are there
						if ctx.Err() != nil {
							return
						}
						<-tick.C
					}
					<-tick.C
				}
			}()
			testenv.Await(t, "a third is handled", func() bool { return l.len() > n/3 })
			s.kafka.Kill()
			down := time.Now()
			testenv.Await(t, "the broker is away for a while", func() bool { return time.Since(down) > away })
			handled := l.len()
			s.kafka.Restart()
			up := time.Now()
			testenv.Await(t, "handling goes on", func() bool { return l.len() > handled })
			t.Logf("the broker was away for %v; the next message was handled %v after its return", up.Sub(down).Round(time.Millisecond), time.Since(up).Round(time.Millisecond))
			select {
			case <-published:
			case <-time.After(time.Minute):
				t.Fatal("the producer does not come through")
			}
			s.awaitSettled()
			stop()
			l.wantOnce(t, all)
		})
	}
}

// values notes the messages that were handled, by offset.
type values struct {
	mu sync.Mutex
	by map[int64][]string
}

func (v *values) handle(_ context.Context, msg kafka.Message) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.by == nil {
		v.by = map[int64][]string{}
	}
	text := fmt.Sprintf("%s=%s", msg.Key, msg.Value)
	if msg.Value == nil {
		text = string(msg.Key) + " deleted"
	}
	v.by[msg.Offset] = append(v.by[msg.Offset], text)
	return nil
}

func (v *values) at(offset int64) []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.by[offset])
}

func (v *values) len() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.by)
}

// A compacted topic: gaps between the offsets, tombstones, messages without a token.
func TestKafkaCompacted(t *testing.T) {
	t.Parallel()
	servers := newKafkaSite(t, "log.cleaner.backoff.ms=100", "log.cleaner.threads=1", "log.initial.task.delay.ms=100", "log.retention.check.interval.ms=100")
	for _, c := range constructors {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := servers.with(t, "table-"+c.name, 1,
				"cleanup.policy=compact", "segment.ms=100", "min.cleanable.dirty.ratio=0.001", "delete.retention.ms=600000")
			const keys, rounds = 20, 5
			w := s.writer()
			put := func(key, value string, deleted bool) {
				msg := kafka.Message{Topic: s.topic, Key: []byte(key), Value: []byte(value)}
				if deleted {
					msg.Value = nil
				}
				if err := w.WriteMessages(t.Context(), msg); err != nil {
					t.Fatal(err)
				}
			}
			for round := range rounds {
				for key := range keys {
					put(fmt.Sprintf("key-%d", key), fmt.Sprintf("round %d", round), round == rounds-1 && key < 5)
				}
			}
			// A segment is closed when a later message comes; only closed ones are compacted.
			gaps := func() int { return int(s.kafka.Ends(t, s.topic)[0]) - len(s.kafka.All(t, s.topic)) }
			n := 0
			testenv.Await(t, "the topic is compacted", seldom(func() bool {
				put("filler", fmt.Sprint(n), false)
				n++
				return gaps() >= keys*(rounds-1)
			}))
			there := s.kafka.All(t, s.topic)
			var v values
			stop := s.consume(c.owns, s.config(), s.guard(), v.handle)
			s.awaitSettled()
			stop()
			left := s.kafka.All(t, s.topic) // it may have been compacted further meanwhile
			deleted := 0
			for _, msg := range left {
				if n := len(v.at(msg.Offset)); n != 1 {
					t.Errorf("offset %d (%s) was handled %d times", msg.Offset, msg.Key, n)
				}
				if strings.HasSuffix(strings.Join(v.at(msg.Offset), ""), " deleted") {
					deleted++
				}
			}
			if v.len() > len(there) || v.len() < len(left) {
				t.Errorf("%d messages handled; %d were there at first, %d at last", v.len(), len(there), len(left))
			}
			if deleted != 5 {
				t.Errorf("%d tombstones handled, want 5", deleted)
			}
			t.Logf("%d offsets, %d of them gone: %d handled, %d tombstones", s.kafka.Ends(t, s.topic)[0], gaps(), v.len(), deleted)
		})
	}
}

// A topic of transactions, its last offset a marker, read with ReadCommitted: what was
// committed is handled once, what is open is waited for, and nothing stands still.
// kafka-go hands over the markers, and the messages of aborted transactions, like any
// others; how many is logged.
func TestKafkaTransactions(t *testing.T) {
	t.Parallel()
	servers := newKafkaSite(t)
	for _, c := range constructors {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := servers.with(t, "ledger-"+c.name, 1)
			producer, err := kgo.NewClient(kgo.SeedBrokers(s.kafka.Addr()), kgo.TransactionalID(s.topic), kgo.DefaultProduceTopic(s.topic))
			if err != nil {
				t.Fatal(err)
			}
			defer producer.Close()
			begin := func(values ...string) {
				t.Helper()
				if err := producer.BeginTransaction(); err != nil {
					t.Fatal(err)
				}
				for _, value := range values {
					if err := producer.ProduceSync(t.Context(), kgo.StringRecord(value)).FirstErr(); err != nil {
						t.Fatal(err)
					}
				}
			}
			end := func(how kgo.TransactionEndTry) {
				t.Helper()
				if err := producer.EndTransaction(t.Context(), how); err != nil {
					t.Fatal(err)
				}
			}
			begin("committed 1", "committed 2")
			end(kgo.TryCommit)
			begin("aborted")
			end(kgo.TryAbort)
			begin("committed 3")
			end(kgo.TryCommit)

			var mu sync.Mutex
			handled := map[string]int{}
			times := func(value string) int {
				mu.Lock()
				defer mu.Unlock()
				return handled[value]
			}
			markers := 0
			config := s.config()
			config.IsolationLevel = kafka.ReadCommitted
			stop := s.consume(c.owns, config, s.guard(), func(_ context.Context, msg kafka.Message) error {
				mu.Lock()
				defer mu.Unlock()
				if isMarker(msg) {
					markers++
				} else {
					handled[string(msg.Value)]++
				}
				return nil
			}, idemkafka.SkipTransactionMarkers())
			// All but the marker at the end, should that not be handed over.
			testenv.Await(t, "the offsets are committed", seldom(func() bool { return s.owed() <= 1 }))
			begin("committed 4")
			behind := s.kafka.Ends(t, s.topic)[0] - 1
			open := time.Now()
			testenv.Await(t, "the transaction is open for a while", func() bool { return time.Since(open) > time.Second })
			if times("committed 4") != 0 || s.kafka.Committed(t, s.group, s.topic)[0] > behind {
				t.Error("a message of an open transaction was handled")
			}
			end(kgo.TryCommit)
			testenv.Await(t, "it is handled", func() bool { return times("committed 4") == 1 })
			testenv.Await(t, "the offsets are committed", seldom(func() bool { return s.owed() <= 1 }))
			stop()
			for i := 1; i <= 4; i++ {
				if value := fmt.Sprint("committed ", i); times(value) != 1 {
					t.Errorf("%s: %d effects, want 1", value, times(value))
				}
			}
			if markers != 0 {
				t.Errorf("the handler was given %d markers", markers)
			}
			t.Logf("%d offsets, %d not committed; the handler was given %d of 4 markers, and %d of 1 message of an aborted transaction",
				s.kafka.Ends(t, s.topic)[0], s.owed(), markers, times("aborted"))
		})
	}
}

// isMarker tells the control record that ends a transaction: its key is a version and
// whether it commits.
func isMarker(msg kafka.Message) bool {
	return len(msg.Key) == 4 && len(msg.Value) == 6 && len(msg.Headers) == 0
}
