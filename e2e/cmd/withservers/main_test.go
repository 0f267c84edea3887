package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
)

// asCommand, set in the environment, makes the test binary the command that is run.
const asCommand = "WITHSERVERS_TEST_COMMAND"

func TestMain(m *testing.M) {
	if does := os.Getenv(asCommand); does != "" {
		os.Exit(command(does))
	}
	os.Exit(m.Run())
}

// command is what the test binary does as a command; it returns the exit status.
func command(does string) int {
	switch does {
	case "env":
		fmt.Print(os.Getenv("IDEM_REDIS_ADDR"))
	case "fail":
		return 7
	case "wait":
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		fmt.Println("ready")
		<-ctx.Done()
		return 5
	}
	return 0
}

// fakeServer counts how often it was started and stopped.
type fakeServer struct {
	starts, stops int
	startErr      error
	stopErr       error
	stopCtxErr    error
}

func (f *fakeServer) start(context.Context) (server, error) {
	f.starts++
	return server{env: "IDEM_REDIS_ADDR=host:1", stop: func(ctx context.Context) error {
		f.stops++
		f.stopCtxErr = ctx.Err()
		return f.stopErr
	}}, f.startErr
}

func TestRun(t *testing.T) {
	self := os.Args[0]
	for name, tc := range map[string]struct {
		command      string // what the test binary does as a command
		args         []string
		fake         fakeServer
		code         int
		out, errText string
		starts       int
		stops        int
	}{
		"the command finds the server": {
			command: "env", args: []string{self}, out: "host:1", starts: 1, stops: 1,
		},
		"its exit status is passed on": {
			command: "fail", args: []string{self}, code: 7, starts: 1, stops: 1,
		},
		"a command that is not there": {
			args: []string{self + "-nowhere"}, code: 1, errText: "no such file", starts: 1, stops: 1,
		},
		"no command": {
			code: 2, errText: "usage: withservers",
		},
		"a server that does not start": {
			command: "env", args: []string{self}, fake: fakeServer{startErr: errors.New("no engine")},
			code: 1, errText: "starting the server: no engine", starts: 1,
		},
		"a server that does not stop": {
			command: "env", args: []string{self}, fake: fakeServer{stopErr: errors.New("stuck")},
			code: 1, out: "host:1", errText: "stopping the server: stuck", starts: 1, stops: 1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(asCommand, tc.command)
			var stdout, stderr bytes.Buffer
			code := run(t.Context(), tc.args, tc.fake.start, &stdout, &stderr)
			if code != tc.code {
				t.Errorf("exit status %d, want %d; stderr: %s", code, tc.code, &stderr)
			}
			if got := stdout.String(); got != tc.out {
				t.Errorf("stdout %q, want %q", got, tc.out)
			}
			if got := stderr.String(); !strings.Contains(got, tc.errText) || tc.errText == "" && got != "" {
				t.Errorf("stderr %q, want %q in it", got, tc.errText)
			}
			if tc.fake.starts != tc.starts || tc.fake.stops != tc.stops {
				t.Errorf("%d starts and %d stops, want %d and %d", tc.fake.starts, tc.fake.stops, tc.starts, tc.stops)
			}
		})
	}
}

// cancelOnWrite calls cancel when the command writes.
type cancelOnWrite struct{ cancel context.CancelFunc }

func (w cancelOnWrite) Write(p []byte) (int, error) {
	w.cancel()
	return len(p), nil
}

func TestAnInterruptEndsTheCommandThenTheServer(t *testing.T) {
	t.Setenv(asCommand, "wait")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var fake fakeServer
	var stderr bytes.Buffer
	code := run(ctx, os.Args[:1], fake.start, cancelOnWrite{cancel}, &stderr)
	if code != 5 || fake.stops != 1 {
		t.Errorf("exit status %d and %d stops, want 5 and 1; stderr: %s", code, fake.stops, &stderr)
	}
	if fake.stopCtxErr != nil {
		t.Errorf("the server was stopped with an ended context: %v", fake.stopCtxErr)
	}
}
