package torture

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

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
	}{
		{"kafka-reader with redis", func(tb testing.TB) Broker { return NewKafka(tb, false) }, NewRedis},
		{"kafka-group with redis", func(tb testing.TB) Broker { return NewKafka(tb, true) }, NewRedis},
		{"amqp-classic with redis", func(tb testing.TB) Broker { return NewAMQP(tb, false) }, NewRedis},
		{"amqp-quorum with redis", func(tb testing.TB) Broker { return NewAMQP(tb, true) }, NewRedis},
		{"nats with redis", NewNATS, NewRedis},
		{"nats with nats", NewNATS, NewNATSKV},
		{"nats with postgres", NewNATS, func(tb testing.TB) Store { return NewPostgres(tb, "") }},
		{"nats with mariadb", NewNATS, NewMariaDB},
		{"nats with sqlite", NewNATS, NewSQLite},
	} {
		t.Run(pair.name, func(t *testing.T) { trySite(t, pair.broker(t), pair.store(t)) })
	}
}

// trySite has two consumers, one of which is killed, handle what is published, and counts.
func trySite(t *testing.T, b Broker, s Store) {
	const messages, doubled = 500, 50
	dir := t.TempDir()
	run := "try"
	b.Round(run)
	s.Round(run)
	msgs := make([]Message, messages, messages+doubled)
	for i := range msgs {
		msgs[i] = Message{Token: uint32(i), Key: uint32(i % 20)}
	}
	msgs = append(msgs, msgs[:doubled]...)
	start := func(number uint16) *child.Process {
		t.Helper()
		return startConsumer(t, role.Config{
			Number: number, History: filepath.Join(dir, fmt.Sprint(number, history.Suffix)), Run: run, Broker: b.Role(), Store: s.Role(),
			Lease: time.Second, Budget: 4, FailEvery: 10, PoisonEvery: 50, Work: time.Millisecond,
		})
	}
	began := time.Now()
	first, second := start(1), start(2)
	if err := b.Publish(t.Context(), msgs); err != nil {
		t.Fatal(err)
	}
	published := time.Since(began)
	testenv.Await(t, "the first effects", func() bool { return count(t, dir, history.Effect) > 20 })
	first.Kill()
	third := start(3)
	var last time.Time
	testenv.Await(t, "all to be settled", func() bool {
		if time.Since(last) < 100*time.Millisecond {
			return false
		}
		last = time.Now()
		n, err := b.Owed(t.Context())
		return err == nil && n == 0
	})
	took := time.Since(began)
	for _, p := range []*child.Process{second, third} {
		if err := p.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		<-p.Done()
	}
	letters, err := b.DeadLetters(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	judge(t, dir, messages, letters, s)
	t.Logf("%s with %s: published in %v, settled after %v, stopped after %v; %d dead letters", b.Version(), s.Version(), published, took, time.Since(began), len(letters))
}

func startConsumer(t *testing.T, c role.Config) *child.Process {
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
	for _, command := range []string{role.Clock, role.Slow} {
		if _, err := fmt.Fprintf(in, "%s 1ms\n", command); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func count(t *testing.T, dir string, kind history.Kind) (n int) {
	t.Helper()
	all, err := history.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		if e.Kind == kind {
			n++
		}
	}
	return n
}

// judge counts effects: none may be missing, or doubled but by the one kill.
func judge(t *testing.T, dir string, messages int, letters []uint32, s Store) {
	t.Helper()
	all, err := history.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	effects, kinds := make([]int, messages), map[history.Kind]int{}
	for _, e := range all {
		kinds[e.Kind]++
		if e.Kind == history.Effect {
			effects[e.Token]++
		}
	}
	t.Log(kinds)
	if tx, is := s.(Transactional); is {
		rows, err := tx.Effects(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		clear(effects)
		for _, row := range rows {
			effects[row.Token]++
		}
	}
	doubled := 0
	for token, n := range effects {
		switch dead := slices.Contains(letters, uint32(token)); {
		case n == 0 && !dead:
			t.Errorf("token %d is lost", token)
		case n > 1:
			doubled += n - 1
		}
	}
	if _, is := s.(Transactional); doubled > 10 || is && doubled > 0 {
		t.Errorf("%d effects are doubled", doubled)
	}
	if len(letters) == 0 {
		t.Error("there is no dead letter")
	}
}
