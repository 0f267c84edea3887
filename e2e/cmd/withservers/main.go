// Command withservers runs a command beside a Redis server in a container, and
// removes the container when the command has ended.
//
//	withservers go test ./...
//
// The command finds the server's address in IDEM_REDIS_ADDR. Its exit status is
// passed on; 1 says that the server did not start or the command could not be
// run, 2 that no command was given. An interrupt is passed to the command, and
// the container is removed after it.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"
)

const (
	startTimeout = 3 * time.Minute // the image may have to be pulled
	stopTimeout  = 30 * time.Second
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], startRedis, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// server is something that the command needs while it runs.
type server struct {
	env  string // what the command finds in its environment, NAME=value
	stop func(context.Context) error
}

// run starts the server, runs the command and stops the server, whatever
// becomes of the command.
func run(ctx context.Context, args []string, start func(context.Context) (server, error), stdout, stderr io.Writer) (code int) {
	if len(args) == 0 {
		fmt.Fprintln(stderr, "usage: withservers command [argument...]")
		return 2
	}
	startCtx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	srv, err := start(startCtx)
	if err != nil {
		fmt.Fprintln(stderr, "withservers: starting the server:", err)
		return 1
	}
	defer func() {
		// ctx may be what ended the command.
		stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		if err := srv.stop(stopCtx); err != nil {
			fmt.Fprintln(stderr, "withservers: stopping the server:", err)
			code = max(code, 1)
		}
	}()

	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), srv.env)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, stdout, stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopTimeout
	err = cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.Exited() {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(stderr, "withservers:", err)
		return 1
	}
	return 0
}
