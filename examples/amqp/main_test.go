package main

import (
	"strings"
	"testing"

	"github.com/idemq/idemq/internal/child"
	"github.com/idemq/idemq/internal/program"
	"github.com/idemq/idemq/internal/rabbittest"
	"github.com/idemq/idemq/internal/redistest"
)

func TestProgram(t *testing.T) {
	broker, store := rabbittest.Start(t), redistest.Start(t)
	bin, redis := program.Build(t), "redis://"+store.Addr()+"/0"
	t.Run("handled once", func(t *testing.T) {
		for n, want := range map[string]string{
			"1":   "1 orders, each published twice: 1 handled, 0 dead-lettered, 1 duplicates dropped\n",
			"100": "100 orders, each published twice: 98 handled, 2 dead-lettered, 100 duplicates dropped\n",
		} {
			status, out, errs := program.Run(t, bin, "-amqp", broker.URL(), "-redis", redis, "-n", n)
			if status != 0 || out != want || errs != "" {
				t.Errorf("-n %s: exit status %d, output:\n%s%swant:\n%s", n, status, out, errs, want)
			}
		}
		if left := broker.Eval(t, "length(rabbit_amqqueue:list())"); left != "0" {
			t.Errorf("%s queues were left behind", left)
		}
	})
	t.Run("cannot run", func(t *testing.T) {
		for _, c := range []struct {
			flag string
			args []string
		}{
			{"-amqp", []string{"-redis", redis, "-amqp", "amqp://guest:guest@" + child.FreeAddr(t) + "/"}},
			{"-amqp", []string{"-redis", redis, "-amqp", strings.Replace(broker.URL(), "guest:guest", "guest:secret", 1)}},
			{"-amqp: write it as", []string{"-redis", redis, "-amqp", "nonsense"}},
			{"-redis", []string{"-redis", "redis://" + child.FreeAddr(t) + "/0"}},
			{"-redis", []string{"-redis", "nonsense"}},
			{"-n", []string{"-n", "0"}},
		} {
			status, out, errs := program.Run(t, bin, c.args...)
			if status != 2 || out != "" {
				t.Errorf("%q: exit status %d, want 2; output %q", c.args, status, out)
			}
			if strings.Count(errs, "\n") != 1 || !strings.HasPrefix(errs, "amqp: ") || !strings.Contains(errs, c.flag) || strings.Contains(errs, "secret") {
				t.Errorf("%q: stderr is not one line that names %s, and no password:\n%s", c.args, c.flag, errs)
			}
		}
	})
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
	s.deadLettered, s.left = 0, 1
	if s.verify(3) == nil {
		t.Error("a message left in the queue goes unnoticed")
	}
}
