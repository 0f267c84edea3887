package main

import (
	"strings"
	"testing"

	"github.com/idemq/idemq/internal/child"
	"github.com/idemq/idemq/internal/kafkatest"
	"github.com/idemq/idemq/internal/program"
	"github.com/idemq/idemq/internal/redistest"
)

func TestOnceFromEndToEnd(t *testing.T) {
	broker, store := kafkatest.Start(t), redistest.Start(t)
	status, out, errs := program.Run(t, program.Build(t), "-kafka", broker.Addr(), "-redis", "redis://"+store.Addr()+"/0", "-n", "50")
	want := "50 orders, 67 receipts published, 50 receipts took effect\nfrom end to end: each order once\n"
	if status != 0 || out != want || errs != "" {
		t.Errorf("exit status %d, output:\n%s%swant:\n%s", status, out, errs, want)
	}
}

func TestBrokenPromise(t *testing.T) {
	c := &chain{effects: map[string]int{"0": 1, "1": 1}}
	if err := c.verify(2); err != nil {
		t.Errorf("all is well, and it says: %v", err)
	}
	if c.verify(3) == nil {
		t.Error("a lost receipt goes unnoticed")
	}
	c.effects["1"]++
	if c.verify(2) == nil {
		t.Error("a doubled receipt goes unnoticed")
	}
}

func TestCannotRun(t *testing.T) {
	store := redistest.Start(t)
	bin, redis := program.Build(t), "redis://"+store.Addr()+"/0"
	for _, c := range []struct {
		flag string
		args []string
	}{
		{"-kafka", []string{"-redis", redis, "-kafka", child.FreeAddr(t)}},
		{"-kafka", []string{"-redis", redis, "-kafka", "nonsense"}},
		{"-redis", []string{"-redis", "redis://" + child.FreeAddr(t) + "/0"}},
		{"-redis", []string{"-redis", "nonsense"}},
		{"-n", []string{"-n", "0"}},
	} {
		status, out, errs := program.Run(t, bin, c.args...)
		if status != 2 || out != "" {
			t.Errorf("%q: exit status %d, want 2; output %q", c.args, status, out)
		}
		if strings.Count(errs, "\n") != 1 || !strings.HasPrefix(errs, "chain: ") || !strings.Contains(errs, c.flag) {
			t.Errorf("%q: stderr is not one line that names %s:\n%s", c.args, c.flag, errs)
		}
	}
}
