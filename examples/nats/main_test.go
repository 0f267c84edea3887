package main

import (
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/idemq/idemq/internal/child"
	"github.com/idemq/idemq/internal/natstest"
	"github.com/idemq/idemq/internal/program"
	"github.com/idemq/idemq/internal/redistest"
)

func TestHandledOnce(t *testing.T) {
	broker, store := natstest.Start(t), redistest.Start(t)
	bin := program.Build(t)
	for n, want := range map[string]string{
		"1":   "1 orders, each published twice: 1 handled, 0 dead-lettered, 1 duplicates dropped\n",
		"100": "100 orders, each published twice: 98 handled, 2 dead-lettered, 100 duplicates dropped\n",
	} {
		status, out, errs := program.Run(t, bin, "-nats", broker.URL(), "-redis", "redis://"+store.Addr()+"/0", "-n", n)
		if status != 0 || out != want || errs != "" {
			t.Errorf("-n %s: exit status %d, output:\n%s%swant:\n%s", n, status, out, errs, want)
		}
	}
	left := broker.JetStream(t).StreamNames(t.Context())
	for name := range left.Name() {
		t.Errorf("stream %s was left behind", name)
	}
	if err := left.Err(); err != nil {
		t.Error(err)
	}
}

func TestBrokenPromise(t *testing.T) {
	s := &shop{handled: map[string]int{"0": 1, "1": 1, "2": 1}}
	if err := s.verify(3); err != nil {
		t.Errorf("all is well, and it says: %v", err)
	}
	if s.verify(4) == nil {
		t.Error("a lost order goes unnoticed")
	}
	s.handled["1"]++
	if s.verify(3) == nil {
		t.Error("a doubled order goes unnoticed")
	}
	s.handled["1"], s.deadLettered = 1, 1
	if s.verify(3) == nil {
		t.Error("a dead letter too many goes unnoticed")
	}
}

func TestCannotRun(t *testing.T) {
	store := redistest.Start(t)
	noJetStream := natstest.Start(t, func(o *server.Options) { o.JetStream = false })
	bin, redis := program.Build(t), "redis://"+store.Addr()+"/0"
	for _, c := range []struct {
		flag string
		args []string
	}{
		{"-nats", []string{"-redis", redis, "-nats", "nats://" + child.FreeAddr(t)}},
		{"-nats: write it as", []string{"-redis", redis, "-nats", "nonsense"}},
		{"-nats", []string{"-redis", redis, "-nats", "nats://localhost:99999"}},
		{"-nats", []string{"-redis", redis, "-nats", noJetStream.URL()}},
		{"-redis", []string{"-redis", "redis://" + child.FreeAddr(t) + "/0"}},
		{"-redis", []string{"-redis", "nonsense"}},
		{"-n", []string{"-n", "0"}},
	} {
		status, out, errs := program.Run(t, bin, c.args...)
		if status != 2 || out != "" {
			t.Errorf("%q: exit status %d, want 2; output %q", c.args, status, out)
		}
		if strings.Count(errs, "\n") != 1 || !strings.HasPrefix(errs, "nats: ") || !strings.Contains(errs, c.flag) {
			t.Errorf("%q: stderr is not one line that names %s:\n%s", c.args, c.flag, errs)
		}
	}
}
