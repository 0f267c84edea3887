package torture

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/idemq/idemq/e2e/checker"
	"github.com/idemq/idemq/e2e/history"
	"github.com/idemq/idemq/e2e/torture/role"
	"github.com/idemq/idemq/internal/child"
	"github.com/idemq/idemq/internal/testenv"
)

// siteConsumer is built once for the tests of this file, in a folder of the first.
var siteConsumer struct {
	once sync.Once
	bin  string
}

func TestSites(t *testing.T) {
	siteConsumer.once.Do(func() { siteConsumer.bin = BuildConsumer(t, BuildOptions{}) })
	for _, pair := range []struct {
		name   string
		broker func(testing.TB) Broker
		store  func(testing.TB) Store
		batch  int  // see role.Config
		pgx    bool // likewise
	}{
		{"kafka-reader with redis", func(tb testing.TB) Broker { return NewKafka(tb, false) }, NewRedis, 0, false},
		{"nats with redis-compact", NewNATS, NewCompactRedis, 0, false},
		{"kafka-group with postgres", func(tb testing.TB) Broker { return NewKafka(tb, true) }, func(tb testing.TB) Store { return NewPostgres(tb, "") }, 0, false},
		{"amqp-classic with mariadb", func(tb testing.TB) Broker { return NewAMQP(tb, false) }, NewMariaDB, 0, false},
		{"amqp-quorum with sqlite", func(tb testing.TB) Broker { return NewAMQP(tb, true) }, NewSQLite, 0, false},
		{"nats with nats in batches", NewNATS, NewNATSKV, maxBatch, false},
		{"amqp-quorum with postgres, by pgxstore, in batches", func(tb testing.TB) Broker { return NewAMQP(tb, true) }, func(tb testing.TB) Store { return NewPostgres(tb, "") }, maxBatch, true},
		{"kafka-group with redis in batches", func(tb testing.TB) Broker { return NewKafka(tb, true) }, NewRedis, maxBatch, false},
	} {
		t.Run(pair.name, func(t *testing.T) {
			t.Parallel()
			trySite(t, pair.broker(t), pair.store(t), pair.batch, pair.pgx)
		})
	}
}

// siteLease is long for a test: the guard gives a call to the store a third of it, in which
// a busy machine has to connect.
const siteLease = 2 * time.Second

// trySite has two consumers handle what is published, kills one, starts another, and holds
// what they did to the promise.
func trySite(t *testing.T, b Broker, s Store, batch int, pgx bool) {
	t.Helper()
	const messages, doubled = 500, 50
	const run = "try"
	dir := t.TempDir()
	b.Round(run)
	s.Round(run)
	rec, err := history.Create(filepath.Join(dir, "harness"+history.Suffix))
	if err != nil {
		t.Fatal(err)
	}
	msgs := make([]Message, messages, messages+doubled)
	for i := range msgs {
		msgs[i] = Message{Token: uint32(i), Key: uint32(i % 20)}
	}
	msgs = append(msgs, msgs[:doubled]...)
	const budget = 4
	start := func(number uint16) *process {
		t.Helper()
		return startConsumer(t, role.Config{
			Number: number, History: filepath.Join(dir, fmt.Sprint(number, history.Suffix)), Run: run, Broker: b.Role(), Store: s.Role(),
			Lease: siteLease, Budget: budget, FailEvery: 10, PoisonEvery: 50, Work: time.Millisecond, Batch: batch, PGX: pgx,
		})
	}
	began := time.Now()
	first, second := start(1), start(2)
	if err := b.Publish(t.Context(), msgs); err != nil {
		t.Fatal(err)
	}
	published := time.Since(began)
	seqs := map[uint32]uint32{}
	for _, m := range msgs {
		seqs[m.Key]++
		rec.Add(history.Event{Kind: history.Published, Token: m.Token, Key: m.Key, Seq: seqs[m.Key]})
	}
	testenv.Await(t, "the first effects", seldom(func() bool { return happened(t, dir, history.Effect, 1) > 10 }))
	killed := history.Now()
	first.Kill()
	rec.Add(history.Event{Kind: history.Fault, Op: uint8(Kill), Process: 1, At: killed, Until: history.Now()})
	third := start(3)
	testenv.Await(t, "all to be settled", seldom(func() bool {
		n, err := b.Owed(t.Context())
		return err == nil && n == 0
	}))
	settled := time.Since(began)
	for _, p := range []*process{second, third} {
		if err := p.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		<-p.Done()
		if !p.cmd.ProcessState.Success() {
			t.Errorf("process %d was told to stop, and ended with %v", p.number, p.cmd.ProcessState)
		}
	}
	letters, err := b.DeadLetters(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, token := range letters {
		rec.Add(history.Event{Kind: history.DeadLettered, Token: token})
	}
	tx, transactional := s.(Transactional)
	if transactional {
		rows, err := tx.Effects(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range rows {
			rec.Add(history.Event{Kind: history.Stored, Token: row.Token, Attempt: row.Attempt, Process: row.Process})
		}
	}
	if err := rec.Close(); err != nil {
		t.Fatal(err)
	}
	all, err := history.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	v := checker.Check(checker.Run{
		Events: all, Ordered: b.Ordered(), Transactional: transactional, NoDoneDetails: lacks(s).NoDoneDetails,
		Lease: siteLease, Budget: budget, Faults: faultEffects(),
	})
	for _, x := range v.Violations {
		t.Error(x)
	}
	if v.Undecided > 0 {
		t.Errorf("of %d messages it was not found out whether the store's answers fit", v.Undecided)
	}
	if v.Messages != messages || v.Published != messages+doubled || v.Effects < messages-v.DeadLetters || v.DeadLetters == 0 || v.Duplicates == 0 || (v.Together > 0) != (batch > 0) {
		t.Errorf("this tried less than it says: %+v", v)
	}
	t.Logf("%s with %s: published in %v, settled after %v, stopped after %v; %d effects of %d messages, %d dead letters, doubled: %v",
		b.Version(), s.Version(), published, settled, time.Since(began), v.Effects, v.Messages, v.DeadLetters, v.InWindow)
}

// seldom is a condition for Await that costs something.
func seldom(cond func() bool) func() bool {
	var last time.Time
	return func() bool {
		if time.Since(last) < 50*time.Millisecond {
			return false
		}
		last = time.Now()
		return cond()
	}
}

// happened is how often a process recorded a kind of event.
func happened(t *testing.T, dir string, kind history.Kind, process uint16) (n int) {
	t.Helper()
	for e, err := range history.Read(filepath.Join(dir, fmt.Sprint(process, history.Suffix))) {
		switch {
		case errors.Is(err, os.ErrNotExist): // it has not begun
			return 0
		case err != nil:
			t.Fatal(err)
		case e.Kind == kind:
			n++
		}
	}
	return n
}

func startConsumer(t *testing.T, c role.Config) *process {
	t.Helper()
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(siteConsumer.bin)
	cmd.Env = append(os.Environ(), role.Env+"="+string(text))
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	p, err := child.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	for command, d := range map[string]time.Duration{role.Clock: -time.Hour, role.Slow: time.Millisecond} {
		if _, err := fmt.Fprintln(in, command, d); err != nil {
			t.Fatal(err)
		}
	}
	return &process{Process: p, cmd: cmd, number: c.Number}
}
