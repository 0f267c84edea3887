package e2e_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/idemq/idemq/consumers"
	idemnats "github.com/idemq/idemq/consumers/nats"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store/sqlstore"
)

const inboxRoleEnv = "IDEM_E2E_INBOX"

// inboxRole is what a consumer process of the inbox is told.
type inboxRole struct {
	NATS, Stream, Durable string
	Database              database
	Instance              string // and the name that its bookings bear
	IsInstance            bool   // to the guard as well
	Lease                 time.Duration
	Concurrency           int
	Isolation             sql.IsolationLevel
	Own                   bool // the handler opens its transaction itself, and ends it with CommitTx
	Doom                  doom
	Tells                 bool // what happens, on its standard output
}

// doom is where a process sends itself a signal.
type doom struct {
	Spot   spot // empty: nowhere
	Nth    int  // time that it comes there
	Signal syscall.Signal
	Delay  time.Duration // for duringCommit: after COMMIT was sent
}

// consumeInbox is a consumer process.
func consumeInbox(config string) int {
	var r inboxRole
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

// at is where the transactions of a process are.
func (r *inboxRole) at(passed *atomic.Int64) func(spot) {
	return func(s spot) {
		if s != r.Doom.Spot || passed.Add(1) != int64(r.Doom.Nth) {
			return
		}
		send := func() { _ = syscall.Kill(os.Getpid(), r.Doom.Signal) }
		switch {
		case s == duringCommit:
			time.AfterFunc(r.Doom.Delay, send)
		case r.Doom.Signal == syscall.SIGKILL:
			send()
			select {}
		default:
			// The signal may go to another thread, and this one go on for a moment.
			goesOn := make(chan os.Signal, 1)
			signal.Notify(goesOn, syscall.SIGCONT)
			fmt.Println("stopping")
			send()
			<-goesOn
		}
	}
}

func (r *inboxRole) run(ctx context.Context) error {
	nc, err := nats.Connect(r.NATS, nats.MaxReconnects(-1))
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	source, err := js.Consumer(ctx, r.Stream, r.Durable)
	if err != nil {
		return err
	}
	var passed atomic.Int64
	at := r.at(&passed)
	db := r.Database.open(at)
	defer db.Close()
	options := []idem.Option{
		idem.WithStore(r.Database.store(db, sqlstore.WithTxOptions(sql.TxOptions{Isolation: r.Isolation}))), idem.WithPrefix(prefix), idem.WithLease(r.Lease),
		idem.WithLogger(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))),
	}
	if r.IsInstance {
		options = append(options, idem.WithInstance(r.Instance))
	}
	if r.Tells {
		options = append(options, idem.WithObserver(idem.ObserverFunc(func(ev idem.Event) { fmt.Println(ev.Kind, ev.Token, ev.Attempt) })))
	}
	var booked sync.Map
	var first sync.Once
	opts := []idemnats.Option{consumers.Budget(1000), consumers.Backoff(5*time.Millisecond, 50*time.Millisecond)}
	if r.Concurrency > 1 {
		opts = append(opts, idemnats.Concurrency(r.Concurrency))
	}
	handler := func(ctx context.Context, _ jetstream.Msg) error {
		first.Do(func() { fmt.Println("working") })
		claim, _ := idem.FromContext(ctx)
		if err := r.book(ctx, db, claim); err != nil {
			return err
		}
		booked.Store(claim.Token(), true)
		return nil
	}
	settled := func(msg jetstream.Msg, ack func() error) error {
		token := msg.Headers().Get(idem.Header)
		if _, ok := booked.LoadAndDelete(token); !ok { // a duplicate's
			return ack()
		}
		at(beforeAck)
		err := ack()
		if r.Doom.Spot == afterAck {
			err = errors.Join(err, nc.Flush())
		}
		at(afterAck)
		return err
	}
	c, err := idemnats.NewConsumer(watchedSource{source, settled}, idem.New(options...), handler, opts...)
	if err != nil {
		return err
	}
	return c.Run(ctx)
}

// book is the handler's work.
func (r *inboxRole) book(ctx context.Context, db *sql.DB, claim *idem.Claim) error {
	if !r.Own {
		tx, err := sqlstore.Tx(ctx)
		if err != nil {
			return err
		}
		return r.Database.book(ctx, tx, claim.Token(), r.Instance, claim.Attempt())
	}
	// Only the claim ends this one, not its context.
	ctx = context.WithoutCancel(ctx)
	tx, err := db.BeginTx(ctx, &sql.TxOptions{Isolation: r.Isolation})
	if err != nil {
		return err
	}
	if err := r.Database.book(ctx, tx, claim.Token(), r.Instance, claim.Attempt()); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return sqlstore.CommitTx(ctx, tx, claim)
}

// watchedSource tells of the acks.
type watchedSource struct {
	jetstream.Consumer
	settled func(msg jetstream.Msg, ack func() error) error
}

func (s watchedSource) Fetch(n int, opts ...jetstream.FetchOpt) (jetstream.MessageBatch, error) {
	batch, err := s.Consumer.Fetch(n, opts...)
	if err != nil {
		return nil, err
	}
	all := make(chan jetstream.Msg)
	go func() {
		defer close(all)
		for msg := range batch.Messages() {
			all <- watchedMsg{msg, s.settled}
		}
	}()
	return watchedBatch{batch, all}, nil
}

type watchedBatch struct {
	jetstream.MessageBatch
	all chan jetstream.Msg
}

func (b watchedBatch) Messages() <-chan jetstream.Msg { return b.all }

type watchedMsg struct {
	jetstream.Msg
	settled func(msg jetstream.Msg, ack func() error) error
}

func (m watchedMsg) Ack() error { return m.settled(m.Msg, m.Msg.Ack) }

// spawn starts a process of the role.
func (r inboxRole) spawn(t *testing.T) (process, *said, error) {
	out := &said{working: make(chan struct{})}
	p, err := spawn(t, inboxRoleEnv, r, out)
	return p, out, err
}

// said is the standard output of a process.
type said struct {
	working chan struct{} // closed at the first line: it handles a message

	mu   sync.Mutex
	text []byte
}

func (s *said) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.text) == 0 {
		close(s.working)
	}
	s.text = append(s.text, b...)
	return len(b), nil
}

// has is a condition for Await.
func (s *said) has(line string) func() bool {
	return func() bool { return strings.Contains(s.String(), line) }
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return string(s.text)
}
