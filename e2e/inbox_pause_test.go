package e2e_test

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store/sqlstore"
	"github.com/idemq/idemq/internal/testenv"
)

// pauseCase is a place where a consumer stands still for longer than its lease.
type pauseCase struct {
	variant
	at      spot
	contend bool // the second consumer needs a row that the first has written
	keeps   bool // nobody can take the claim meanwhile, and the first consumer books
}

func (c pauseCase) String() string {
	text := fmt.Sprintf("%s, %v", c.at, c.variant)
	if c.contend {
		text += ", both write one row"
	}
	return text
}

func pauseCases(e sqlEngine) (all []pauseCase) {
	if e.dialect == sqlstore.SQLite {
		return []pauseCase{
			{at: beforeBegin, variant: variant{byTx, sql.LevelDefault}},
			{at: afterFirst, variant: variant{byTx, sql.LevelDefault}, keeps: true},
			{at: beforeCommit, variant: variant{byTx, sql.LevelDefault}, keeps: true},
			{at: afterFirst, variant: variant{byCommitTx, sql.LevelDefault}, keeps: true},
		}
	}
	// With the completion written the record is locked. PostgreSQL is told to end such a
	// transaction when nothing comes for a lease; MariaDB waits.
	keeps := e.dialect == sqlstore.MySQL
	if !isFull() {
		return []pauseCase{
			{at: afterFirst, variant: variant{byTx, sql.LevelReadCommitted}},
			{at: afterFirst, variant: variant{byCommitTx, sql.LevelReadCommitted}}, // only the claim's id keeps this one from doubling
			{at: afterFirst, variant: variant{byCommitTx, sql.LevelRepeatableRead}},
			{at: beforeCompletion, variant: variant{byTx, sql.LevelSerializable}},
			{at: beforeCompletion, variant: variant{byCommitTx, sql.LevelReadCommitted}},
			{at: beforeCompletion, variant: variant{byCommitTx, sql.LevelReadCommitted}, contend: true},
			{at: beforeCommit, variant: variant{byTx, sql.LevelReadCommitted}, keeps: keeps},
		}
	}
	for _, by := range []road{byTx, byCommitTx} {
		for _, level := range []sql.IsolationLevel{sql.LevelReadCommitted, sql.LevelRepeatableRead, sql.LevelSerializable} {
			v := variant{by, level}
			all = append(all,
				pauseCase{at: beforeBegin, variant: v},
				pauseCase{at: afterFirst, variant: v},
				pauseCase{at: beforeCompletion, variant: v},
				pauseCase{at: beforeCompletion, variant: v, contend: true},
				pauseCase{at: beforeCommit, variant: v, keeps: keeps},
			)
		}
	}
	return all
}

// A consumer process is stopped for longer than its lease, at a place of its transaction.
// Another takes its claim over and books. Then the first goes on: its transaction is rolled
// back. In MariaDB from the completion on, in SQLite from the transaction's beginning, the
// database itself lets nobody take over: then the first one's transaction counts.
func TestInboxPaused(t *testing.T) {
	t.Parallel()
	for _, e := range []sqlEngine{onPostgres, onMariaDB, onSQLite} {
		t.Run(e.name, func(t *testing.T) {
			t.Parallel()
			dsn := ""
			if e.start != nil {
				dsn = e.start(t).DSN()
			}
			for i, c := range pauseCases(e) {
				d := e.at(dsn, fmt.Sprintf("p%d_", i))
				t.Run(c.String(), func(t *testing.T) {
					t.Parallel()
					if e.start == nil {
						d = e.database(t)
					}
					pauseConsumer(t, d, c)
				})
			}
		})
	}
}

func pauseConsumer(t *testing.T, d database, c pauseCase) {
	const lease = time.Second
	s := newBroker(t, time.Second)
	b := newBank(t, d, 2)
	s.publish(payments(1)...)
	r := inboxRole{
		NATS: s.nats.URL(), Stream: stream, Durable: durable, Database: d, Instance: "first", Lease: lease, Concurrency: 1,
		Isolation: c.isolation, Own: c.by == byCommitTx, Tells: true, Doom: doom{Spot: c.at, Nth: 1, Signal: syscall.SIGSTOP},
	}
	p, out, err := r.spawn(t)
	if err != nil {
		t.Fatal(err)
	}
	testenv.Await(t, "the first consumer to stand still", out.has("stopping"))
	stopped := time.Now() // its claim is older

	var claimed, committed, refused atomic.Int32
	var heard eventLog
	defer func() {
		if t.Failed() {
			t.Logf("the first consumer tells:\n%s\nthe second tells:\n%s", out, &heard)
		}
	}()
	note := idem.ObserverFunc(func(ev idem.Event) {
		heard.note(ev)
		switch ev.Kind {
		case idem.EventClaimed:
			claimed.Add(1)
		case idem.EventCommitted:
			committed.Add(1)
		case idem.EventInProgress, idem.EventStoreDown, idem.EventWaiting:
			refused.Add(1)
		}
	})
	second := d
	if !c.contend {
		second.Shard = 1
	}
	end := second.booker(t, c.by, c.isolation, nil)
	g := idem.New(idem.WithStore(end.store), idem.WithPrefix(prefix), idem.WithLease(lease), idem.WithObserver(note))
	stop := s.consume(g, func(ctx context.Context, _ jetstream.Msg) error {
		claim, _ := idem.FromContext(ctx)
		return end.book(ctx, claim, "second")
	}, consumers.Budget(1000))
	s.publish(payments(1)...) // a second delivery
	switch {
	case c.keeps:
		testenv.Await(t, "three leases to pass", func() bool { return time.Since(stopped) > 3*lease && refused.Load() > 0 })
		if n := b.bookings("payment = 0"); n != 0 || committed.Load() != 0 {
			t.Errorf("%d bookings while the first transaction was open", n)
		}
	case c.contend:
		testenv.Await(t, "the second consumer to take over", func() bool { return claimed.Load() > 0 && time.Since(stopped) > lease })
	default:
		testenv.Await(t, "the second consumer to book", func() bool { return committed.Load() > 0 && time.Since(stopped) > lease })
	}
	paused := time.Since(stopped)
	if err := p.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	testenv.Await(t, "the first consumer to settle its message", func() bool {
		return out.has("duplicate payment-0")() || out.has("committed payment-0")()
	})
	s.publish("payment-1") // both still work
	testenv.Await(t, "all to be settled", seldom(func() bool { return s.owed() == 0 && b.bookings("payment = 1") > 0 }))
	if err := p.terminate(); err != nil {
		t.Error(err)
	}
	stop()
	by := "consumer = 'second'"
	switch {
	case c.keeps && c.at == beforeCommit:
		by = "consumer <> ''" // after so long the first takes its COMMIT for unanswered, and may have cut it off
	case c.keeps:
		by = "consumer = 'first'"
	}
	t.Logf("stopped for %v; the first consumer tells: %s", paused.Round(time.Millisecond), strings.Join(strings.Split(strings.TrimSpace(out.String()), "\n"), ", "))
	b.audit()
	if n := b.bookings("payment = 0 AND " + by); n != 1 {
		t.Errorf("%d bookings with %s, want one", n, by)
	}
}

// eventLog is what a guard of this process tells, for a test that fails.
type eventLog struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *eventLog) note(ev idem.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(&l.text, "%s %v %s %d %v %v\n", time.Now().Format("05.000"), ev.Kind, ev.Token, ev.Attempt, ev.Err, ev.Text)
}

func (l *eventLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
