package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/idemq/idemq/internal/child"
)

// process is a consumer that runs as one of its own: this test's program, which TestMain
// turns into what env says. It ends with the test, and with the test's process.
type process struct {
	*child.Process
	cmd *exec.Cmd
}

// spawn starts a process whose role is in the variable env, and whose standard output goes to
// out, or nowhere. It may be called on any goroutine.
func spawn(t *testing.T, env string, role any, out io.Writer) (process, error) {
	config, err := json.Marshal(role)
	if err != nil {
		return process{}, err
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), env+"="+string(config))
	cmd.Stdout, cmd.Stderr = out, os.Stderr
	p, err := child.Start(cmd)
	if err != nil {
		return process{}, err
	}
	t.Cleanup(p.Kill)
	return process{p, cmd}, nil
}

func mustSpawn(t *testing.T, env string, role any) process {
	t.Helper()
	p, err := spawn(t, env, role, nil)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// terminate asks the process to stop, and returns how it ended. One that dies of the signal
// had only just started, or was through: in between it takes signals.
func (p process) terminate() error {
	if err := p.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-p.Done()
	if !p.cmd.ProcessState.Success() && p.DiedOf() != syscall.SIGTERM {
		return fmt.Errorf("consumer process %d: %v", p.Pid(), p.cmd.ProcessState)
	}
	return nil
}

// keepAlive starts a process again each time it dies of SIGKILL, until stop is called, which
// returns how often it did.
func keepAlive(t *testing.T, env string, role any) (stop func() int) {
	t.Helper()
	ending := make(chan struct{})
	killed := make(chan int, 1)
	p := mustSpawn(t, env, role)
	go func() {
		n := 0
		defer func() { killed <- n }()
		for {
			select {
			case <-ending:
				switch err := p.terminate(); {
				case err == nil:
				case p.DiedOf() == syscall.SIGKILL:
					n++
				default:
					t.Error(err)
				}
				return
			case <-p.Done():
				if p.DiedOf() != syscall.SIGKILL {
					t.Errorf("consumer process %d ended by itself: %v", p.Pid(), p.cmd.ProcessState)
					return
				}
				n++
			}
			var err error
			if p, err = spawn(t, env, role, nil); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	return func() int {
		close(ending)
		return <-killed
	}
}
