package main

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/idemq/idemq/internal/child"
	"github.com/idemq/idemq/internal/natstest"
	"github.com/idemq/idemq/internal/program"
	"github.com/idemq/idemq/internal/redistest"
)

func execute(t *testing.T, bin string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, bin, args...)
	temp := t.TempDir()
	cmd.Env = append(cmd.Environ(), "TMPDIR="+temp)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(temp, "*")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

var (
	lastLine = regexp.MustCompile(`\nwith idem: 1000 messages, (\d+) deliveries, 1000 effects, 0 doubled, 0 lost\n$`)
	byAck    = regexp.MustCompile(`(?m)^by hand: handle, then ack +1000 +(\d+) +(\d+) +(\d+) +0$`)
	bySetnx  = regexp.MustCompile(`(?m)^by hand: SETNX, then handle +1000 +(\d+) +(\d+) +0 +(\d+)$`)
)

// checkStory holds a run to what the program is there to show.
func checkStory(t *testing.T, status int, out, errs string) {
	t.Helper()
	if status != 0 || errs != "" {
		t.Errorf("exit status %d, stderr %q", status, errs)
	}
	m := lastLine.FindStringSubmatch(out)
	if m == nil || number(m[1]) <= 1100 {
		t.Errorf("the last line is not as promised:\n%s", out)
	}
	if m := byAck.FindStringSubmatch(out); m == nil || number(m[3]) == 0 {
		t.Errorf("handle, then ack: nothing was doubled, or something was lost:\n%s", out)
	}
	if m := bySetnx.FindStringSubmatch(out); m == nil || number(m[3]) == 0 {
		t.Errorf("SETNX, then handle: nothing was lost, or something was doubled:\n%s", out)
	}
	if strings.ContainsAny(out, "\r\x1b") {
		t.Error("a progress bar was drawn where there is no terminal")
	}
}

func number(s string) int {
	n, _ := strconv.Atoi(s)
	return n
}

func TestNothingButGo(t *testing.T) {
	status, out, errs := execute(t, program.Build(t))
	checkStory(t, status, out, errs)
}

func TestServersOfYours(t *testing.T) {
	broker, store := natstest.Start(t), redistest.Start(t)
	status, out, errs := execute(t, program.Build(t), "-nats", broker.URL(), "-redis", "redis://"+store.Addr()+"/0")
	checkStory(t, status, out, errs)

	js, err := jetstream.New(broker.Connect(t))
	if err != nil {
		t.Fatal(err)
	}
	for name := range js.StreamNames(t.Context()).Name() {
		t.Errorf("stream %s was left behind", name)
	}
	if keys := store.Client(t).Keys(t.Context(), "idem_quickstart_*").Val(); len(keys) > 0 {
		t.Errorf("%d keys were left behind, %q among them", len(keys), keys[0])
	}
}

func TestServerAway(t *testing.T) {
	bin := program.Build(t)
	noStreams := natstest.Start(t, func(o *server.Options) { o.JetStream = false })
	for _, args := range [][]string{
		{"-nats", "nats://" + child.FreeAddr(t)},
		{"-nats", "nats://[nonsense"},
		{"-nats", noStreams.URL()},
		{"-redis", "redis://" + child.FreeAddr(t) + "/0"},
		{"-redis", "nonsense"},
	} {
		begin := time.Now()
		status, out, errs := execute(t, bin, args...)
		if status != 2 || out != "" {
			t.Errorf("%s: exit status %d, want 2; output %q", args, status, out)
		}
		if strings.Count(errs, "\n") != 1 || !strings.HasPrefix(errs, "quickstart: ") || !strings.Contains(errs, args[0]) {
			t.Errorf("%s: stderr is not one line that names the flag:\n%s", args, errs)
		}
		if took := time.Since(begin); took > 10*time.Second {
			t.Errorf("%s: the answer took %v", args, took)
		}
	}
}

func TestCount(t *testing.T) {
	l := newLedger()
	for n := range 10 {
		l.sent(n)
	}
	for n, times := range []int{0, 1, 2, 3, 1, 1, 1, 1, 1, 0} {
		for range times {
			l.effect(n)
		}
	}
	if got, want := l.count(15), (counts{messages: 10, deliveries: 15, effects: 11, doubled: 3, lost: 2}); got != want {
		t.Errorf("counted %+v, want %+v", got, want)
	}
}
