package e2e_test

import (
	"context"
	"database/sql"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/redis/go-redis/v9"

	"github.com/idemq/idemq/consumers"
	idemnats "github.com/idemq/idemq/consumers/nats"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/natsstore"
	"github.com/idemq/idemq/idem/store/redisstore"
	"github.com/idemq/idemq/internal/natstest"
	"github.com/idemq/idemq/internal/redistest"
	"github.com/idemq/idemq/internal/sqltest"
	"github.com/idemq/idemq/internal/testenv"
)

// The way to the database is cut, and then the server itself is killed and comes back,
// while payments are booked: consumers wait, no attempt counts, and they go on by
// themselves.
func TestInboxOutage(t *testing.T) {
	t.Parallel()
	const n, away, within = 600, 3 * time.Second, 10 * time.Second
	for _, e := range []sqlEngine{onPostgres, onMariaDB} {
		t.Run(e.name, func(t *testing.T) {
			t.Parallel()
			server := e.start(t)
			proxy := sqltest.StartProxy(t, server)
			s := newBroker(t, 5*time.Second)
			b := newBank(t, e.at(server.DSN(), ""), n)
			var committed, waits atomic.Int32
			note := idem.ObserverFunc(func(ev idem.Event) {
				switch ev.Kind {
				case idem.EventCommitted:
					committed.Add(1)
				case idem.EventStoreDown:
					waits.Add(1)
				}
			})
			var stops []func()
			for i := range 2 {
				end := e.at(proxy.DSN(), "").booker(t, byTx, sql.LevelReadCommitted, nil)
				g := idem.New(idem.WithStore(end.store), idem.WithPrefix(prefix), idem.WithLease(2*time.Second), idem.WithObserver(note))
				stops = append(stops, s.consume(g, func(ctx context.Context, _ jetstream.Msg) error {
					claim, _ := idem.FromContext(ctx)
					select { // so that there is work for all that happens
					case <-time.After(2 * time.Millisecond):
					case <-ctx.Done():
						return context.Cause(ctx)
					}
					return end.book(ctx, claim, fmt.Sprint("consumer ", i))
				}, idemnats.Concurrency(4)))
			}
			all := payments(n)
			for i, outage := range []struct {
				name     string
				down, up func()
			}{
				{"the network is cut", proxy.Cut, proxy.Restore},
				{"the network is silent", proxy.Hold, proxy.Release},
				{"the server is killed", server.Kill, server.Restart},
			} {
				some := all[i*n/3 : (i+1)*n/3]
				before := committed.Load()
				s.publish(some[:n/6]...)
				testenv.Await(t, "some to be booked", func() bool { return committed.Load() > before+n/30 })
				missed := waits.Load()
				outage.down()
				began := time.Now()
				s.publish(some[n/6:]...)
				s.publish(some...)
				at := committed.Load()
				testenv.Await(t, "the outage to last", func() bool { return time.Since(began) > away })
				if missed == waits.Load() || s.owed() < n/6 {
					t.Errorf("%s: %d outages seen, %d messages are left: the test shows nothing", outage.name, waits.Load()-missed, s.owed())
				}
				at = max(at, committed.Load())
				outage.up()
				up := time.Now()
				testenv.Await(t, "work to go on", func() bool { return committed.Load() > at })
				recovered := time.Since(up)
				testenv.Await(t, "all to be settled", seldom(func() bool { return s.owed() == 0 }))
				t.Logf("%s for %v: work goes on %v later, all is settled %v later", outage.name, away, recovered.Round(time.Millisecond), time.Since(up).Round(time.Millisecond))
				if recovered > within {
					t.Errorf("%s: work goes on only %v after its end", outage.name, recovered)
				}
			}
			for _, stop := range stops {
				stop()
			}
			b.audit()
			if letters := len(s.letters()); letters != 0 {
				t.Errorf("%d dead letters", letters)
			}
		})
	}
}

// awayStore is a store that can be taken away.
type awayStore struct {
	store    store.Store
	down, up func()
}

// What each store's outage does: an effect that is finished is recorded when the store is
// back, and its message is not acked meanwhile, for longer than its lease and the broker's
// AckWait; a message that comes meanwhile waits, or is handled under FailOpen, and nothing
// knows of it then.
func TestStoreOutages(t *testing.T) {
	const lease, ackWait, failOpen, away = time.Second, time.Second, 700 * time.Millisecond, 4 * time.Second
	onSQL := func(e sqlEngine) func(t *testing.T) awayStore {
		return func(t *testing.T) awayStore {
			server := e.start(t)
			d := e.at(server.DSN(), "")
			db := d.open(nil)
			t.Cleanup(func() { _ = db.Close() })
			s := d.store(db)
			if err := s.Create(t.Context()); err != nil {
				t.Fatal(err)
			}
			return awayStore{s, server.Kill, server.Restart}
		}
	}
	for _, test := range []struct {
		name  string
		start func(t *testing.T) awayStore
	}{
		{"Redis", func(t *testing.T) awayStore {
			server := redistest.Start(t)
			proxy := redistest.NewProxy(t, server.Addr())
			rdb := redis.NewClient(&redis.Options{Addr: proxy.Addr(), ContextTimeoutEnabled: true})
			t.Cleanup(func() { _ = rdb.Close() })
			return awayStore{redisstore.New(rdb), proxy.Cut, proxy.Restore}
		}},
		{"NATS KV", func(t *testing.T) awayStore {
			server := natstest.Start(t)
			return awayStore{natsstore.New(server.JetStream(t), "idem"), server.Stop, server.Restart}
		}},
		{"PostgreSQL", onSQL(onPostgres)},
		{"MariaDB", onSQL(onMariaDB)},
	} {
		for _, open := range []bool{false, true} {
			name := test.name + ", Wait"
			if open {
				name = test.name + ", FailOpen"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel() // they wait most of the time
				s, place := newBroker(t, ackWait), test.start(t)
				g := idem.New(idem.WithStore(place.store), idem.WithPrefix(prefix), idem.WithLease(lease))
				opts := []idemnats.Option{idemnats.Concurrency(2), consumers.Budget(2)}
				if open {
					opts = append(opts, consumers.FailOpen(failOpen))
				}
				var l ledger
				started, finish := make(chan struct{}), make(chan struct{})
				var once sync.Once
				stop := s.consume(g, func(ctx context.Context, _ jetstream.Msg) error {
					c, _ := idem.FromContext(ctx)
					if c.Token() == "first" {
						once.Do(func() { close(started) })
						<-finish
					}
					l.add(c.Token())
					return nil
				}, opts...)
				s.publish("first")
				<-started
				place.down()
				began := time.Now()
				close(finish)
				s.publish("second")
				want := 2 // messages that are left
				if open {
					want = 1
				}
				testenv.Await(t, "the outage to last", func() bool { return time.Since(began) > away })
				testenv.Await(t, "what is to be settled", func() bool { return s.owed() == want })
				if first, second := l.of("first"), l.of("second"); first != 1 || second != 2-want {
					t.Errorf("%d and %d effects, want 1 and %d", first, second, 2-want)
				}
				place.up()
				up := time.Now()
				testenv.Await(t, "all to be settled", func() bool { return s.owed() == 0 })
				t.Logf("away for %v, a lease is %v: all is settled %v later", up.Sub(began).Round(time.Millisecond), lease, time.Since(up).Round(time.Millisecond))
				if first, second := l.of("first"), l.of("second"); first != 1 || second != 1 {
					t.Errorf("%d and %d effects, want 1 and 1", first, second)
				}
				stop()
				for token, done := range map[string]bool{"first": true, "second": !open} {
					rec, err := g.Group(group).Inspect(t.Context(), token)
					if isDone := rec.State == store.Done; err != nil || isDone != done {
						t.Errorf("%s: %v, %v; done: want %v", token, rec.State, err, done)
					}
				}
			})
		}
	}
}

// of is how many effects a token had.
func (l *ledger) of(token string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.n[token]
}
