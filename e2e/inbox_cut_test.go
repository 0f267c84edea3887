package e2e_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/idemq/idemq/consumers"
	idemnats "github.com/idemq/idemq/consumers/nats"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/sqlstore"
	"github.com/idemq/idemq/idem/store/sqlstore/pgxstore"
	"github.com/idemq/idemq/internal/sqltest"
	"github.com/idemq/idemq/internal/testenv"
)

// road is how a handler gets its transaction.
type road string

const (
	byTx       road = "sqlstore.Tx"
	byCommitTx road = "sqlstore.CommitTx"
	byPgx      road = "pgxstore.Tx"
)

// booker is an end of a road: a store, and what books in its database.
type booker struct {
	store store.Store
	book  func(ctx context.Context, claim *idem.Claim, consumer string) error
}

// booker opens a road to a database. at, which may be nil, is told where a transaction of
// database/sql is.
func (d database) booker(t *testing.T, by road, isolation sql.IsolationLevel, at func(spot)) booker {
	t.Helper()
	if by == byPgx {
		pool, err := pgxpool.New(t.Context(), d.DSN)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pool.Close)
		level := pgx.TxIsoLevel(strings.ToLower(isolation.String()))
		return booker{
			store: pgxstore.New(pool, pgxstore.WithTables(d.Tables+"idemq_"), pgxstore.WithTxOptions(pgx.TxOptions{IsoLevel: level})),
			book: func(ctx context.Context, claim *idem.Claim, consumer string) error {
				tx, err := pgxstore.Tx(ctx)
				if err != nil {
					return err
				}
				return d.book(ctx, pgxExecer{tx}, claim.Token(), consumer, claim.Attempt())
			},
		}
	}
	db := d.open(at)
	t.Cleanup(func() { _ = db.Close() })
	return booker{
		store: d.store(db, sqlstore.WithTxOptions(sql.TxOptions{Isolation: isolation})),
		book: func(ctx context.Context, claim *idem.Claim, consumer string) error {
			r := inboxRole{Database: d, Isolation: isolation, Own: by == byCommitTx, Instance: consumer}
			return r.book(ctx, db, claim)
		},
	}
}

// pgxExecer is a pgx.Tx as database/sql has them.
type pgxExecer struct{ tx pgx.Tx }

func (e pgxExecer) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	_, err := e.tx.Exec(ctx, query, args...)
	return nil, err
}

// variant is one run on one server.
type variant struct {
	by        road
	isolation sql.IsolationLevel
}

func (v variant) String() string { return fmt.Sprintf("%s at %s", v.by, v.isolation) }

func variants(e sqlEngine, levels ...sql.IsolationLevel) (all []variant) {
	roads := []road{byTx, byCommitTx}
	if e.dialect == sqlstore.Postgres {
		roads = append(roads, byPgx)
	}
	for _, by := range roads {
		for _, level := range levels {
			all = append(all, variant{by, level})
		}
	}
	return all
}

// notices counts what guards tell.
type notices struct {
	unknown, rolledBack, lost, unrecorded atomic.Int32
}

func (n *notices) observer() idem.Observer {
	return idem.ObserverFunc(func(ev idem.Event) {
		switch {
		case ev.Kind == idem.EventWaiting && strings.Contains(fmt.Sprint(ev.Err), "whether the handler's transaction was committed"):
			n.unknown.Add(1)
		case ev.Kind == idem.EventRetry && errors.Is(ev.Err, idem.ErrRolledBack):
			n.rolledBack.Add(1)
		case ev.Kind == idem.EventLeaseLost:
			n.lost.Add(1)
		case ev.Kind == idem.EventUnrecorded:
			n.unrecorded.Add(1)
		}
	})
}

// The connection of a handler's transaction is cut at its COMMIT, before the server has it
// and after: the payment is booked once all the same.
func TestInboxCommitCut(t *testing.T) {
	t.Parallel()
	n, every := 90, 3
	if isFull() {
		n = 900
	}
	for _, e := range []sqlEngine{onPostgres, onMariaDB} {
		t.Run(e.name, func(t *testing.T) {
			t.Parallel()
			server := e.start(t)
			for i, v := range variants(e, sql.LevelReadCommitted, sql.LevelSerializable) {
				t.Run(v.String(), func(t *testing.T) {
					t.Parallel()
					cutCommits(t, e, server, fmt.Sprintf("v%d_", i), v, n, every)
				})
			}
		})
	}
}

func cutCommits(t *testing.T, e sqlEngine, server *sqltest.Server, tables string, v variant, n, every int) {
	s := newBroker(t, 30*time.Second)
	b := newBank(t, e.at(server.DSN(), tables), n)
	s.publish(payments(n)...)
	var seen notices
	var cut sync.Map // tokens
	var before, after atomic.Int32
	var stops []func()
	var proxies []*sqltest.Proxy
	began := time.Now()
	for i := range 2 {
		proxy := sqltest.StartProxy(t, server)
		proxies = append(proxies, proxy)
		end := e.at(proxy.DSN(), tables).booker(t, v.by, v.isolation, nil)
		g := idem.New(idem.WithStore(end.store), idem.WithPrefix(prefix), idem.WithLease(5*time.Second), idem.WithObserver(seen.observer()))
		handler := func(ctx context.Context, _ jetstream.Msg) error {
			claim, _ := idem.FromContext(ctx)
			if v.by != byCommitTx && claim.Spent() != 0 { // in a transaction of its own a handler's deadlock is its error
				t.Errorf("%s: %d attempts spent", claim.Token(), claim.Spent())
			}
			p, err := paymentOf(claim.Token())
			if err != nil {
				return err
			}
			marker := fmt.Sprintf("consumer %d: %s;", i, claim.Token())
			if _, again := cut.LoadOrStore(claim.Token(), true); p.id%every == 0 && !again {
				if p.id%(2*every) == 0 {
					before.Add(1)
					proxy.CutNextCommit(sqltest.CutBefore, marker)
				} else {
					after.Add(1)
					proxy.CutNextCommit(sqltest.CutAfter, marker)
				}
			}
			return end.book(ctx, claim, marker)
		}
		stops = append(stops, s.consume(g, handler, consumers.Budget(1000)))
	}
	testenv.Await(t, "all to be settled", seldom(func() bool { return s.owed() == 0 }))
	took := time.Since(began)
	b.audit() // before the copies come, which would make up for what is lost
	s.publish(payments(n)...)
	testenv.Await(t, "the copies to be settled", seldom(func() bool { return s.owed() == 0 }))
	for _, stop := range stops {
		stop()
	}
	cuts := 0
	for _, p := range proxies {
		cuts += len(p.Cuts())
	}
	t.Logf("%d payments in %v, and their copies: %d COMMITs cut (%d meant before the server has it, %d after); %d times it was not known, %d transactions rolled back, %d leases lost",
		n, took.Round(time.Millisecond), cuts, before.Load(), after.Load(), seen.unknown.Load(), seen.rolledBack.Load(), seen.lost.Load())
	b.audit()
	if cuts < n/every-2 {
		t.Errorf("%d COMMITs were cut, want about %d: the test shows less than it says", cuts, n/every)
	}
	if got := int(seen.unknown.Load()); got < cuts {
		t.Errorf("after %d of %d cuts it was not known whether the transaction was committed", got, cuts)
	}
	if got, want := b.bookings("attempt > 1"), int(before.Load())-2; got < want {
		t.Errorf("%d payments were booked on a later attempt, want at least %d: those whose COMMIT the server never had", got, want)
	}
	if letters := len(s.letters()); letters != 0 {
		t.Errorf("%d dead letters", letters)
	}
}

// Nothing passes any more just when a COMMIT is to be sent, for longer than a lease. Then
// the COMMIT arrives late, or never. The same payment comes to another consumer meanwhile.
func TestInboxCommitHeld(t *testing.T) {
	t.Parallel()
	const lease = time.Second
	for _, e := range []sqlEngine{onPostgres, onMariaDB} {
		t.Run(e.name, func(t *testing.T) {
			t.Parallel()
			server := e.start(t)
			i := 0
			for _, v := range variants(e, sql.LevelReadCommitted) {
				if v.by == byPgx {
					continue // it does not tell when COMMIT is to be sent
				}
				for _, late := range []bool{true, false} {
					name := string(v.by) + ", the COMMIT never arrives"
					if late {
						name = string(v.by) + ", the COMMIT arrives late"
					}
					i++
					tables := fmt.Sprintf("v%d_", i)
					t.Run(name, func(t *testing.T) {
						t.Parallel()
						holdCommit(t, e, server, tables, v, late, lease)
					})
				}
			}
		})
	}
}

func holdCommit(t *testing.T, e sqlEngine, server *sqltest.Server, tables string, v variant, late bool, lease time.Duration) {
	const n = 5
	s := newBroker(t, 30*time.Second)
	b := newBank(t, e.at(server.DSN(), tables), n)
	proxy := sqltest.StartProxy(t, server)
	var seen notices
	var once sync.Once
	held := make(chan struct{})
	guard := func(end booker) *idem.Guard {
		return idem.New(idem.WithStore(end.store), idem.WithPrefix(prefix), idem.WithLease(lease), idem.WithObserver(seen.observer()))
	}
	handler := func(end booker, name string) idemnats.Handler {
		return func(ctx context.Context, _ jetstream.Msg) error {
			claim, _ := idem.FromContext(ctx)
			return end.book(ctx, claim, name)
		}
	}
	first := e.at(proxy.DSN(), tables).booker(t, v.by, v.isolation, func(at spot) {
		if at == beforeCommit {
			once.Do(func() {
				proxy.Hold()
				close(held)
			})
		}
	})
	s.publish(payments(1)...)
	s.consume(guard(first), handler(first, "first"), consumers.Budget(1000))
	<-held
	began := time.Now()
	s.publish(payments(n)...) // the held one again, and more
	second := e.at(server.DSN(), tables).booker(t, v.by, v.isolation, nil)
	s.consume(guard(second), handler(second, "second"), consumers.Budget(1000))
	testenv.Await(t, "three leases to pass", func() bool { return time.Since(began) > 3*lease })
	if !late {
		proxy.Cut()
		proxy.Restore()
	}
	proxy.Release()
	released := time.Now()
	testenv.Await(t, "all to be settled", seldom(func() bool { return s.owed() == 0 }))
	t.Logf("held for %v; all settled %v later; %d times it was not known, %d transactions rolled back, %d leases lost, %d unrecorded; booked by the first consumer: %d, by the second: %d",
		released.Sub(began).Round(time.Millisecond), time.Since(released).Round(time.Millisecond), seen.unknown.Load(), seen.rolledBack.Load(), seen.lost.Load(),
		seen.unrecorded.Load(), b.bookings("consumer = 'first'"), b.bookings("consumer = 'second'"))
	b.audit()
	if seen.unknown.Load() == 0 {
		t.Error("the outcome of the COMMIT was known: the test shows nothing")
	}
}
