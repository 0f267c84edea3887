// Package child runs the server processes of tests: each is waited for, and dies with
// the test process (Linux).
package child

import (
	"os/exec"
	"runtime"
	"sync"
	"syscall"
)

// Process is a child that somebody waits for. It is safe for concurrent use.
type Process struct {
	cmd  *exec.Cmd
	once sync.Once
	done chan struct{}
}

// Start starts cmd from a thread that lives as long as the child does: Linux sends
// the parent-death signal when the starting thread ends.
func Start(cmd *exec.Cmd) (*Process, error) {
	dieWithParent(cmd)
	p := &Process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
		close(p.done)
	}()
	return p, <-started
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Kill ends the process with SIGKILL and returns when it is gone.
func (p *Process) Kill() {
	p.once.Do(func() { _ = p.cmd.Process.Kill() })
	<-p.done
}

// Pid is the process's number.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// DiedOf is the signal by which a process ended that is done, zero if it ended by itself.
func (p *Process) DiedOf() syscall.Signal {
	if status, is := p.cmd.ProcessState.Sys().(syscall.WaitStatus); is && status.Signaled() {
		return status.Signal()
	}
	return 0
}

// Signal sends a signal.
func (p *Process) Signal(sig syscall.Signal) error { return p.cmd.Process.Signal(sig) }

// Tail is the end of a log, for an error.
func Tail(text []byte) []byte { return text[max(0, len(text)-1000):] }
