// Package sqltest starts real PostgreSQL and MariaDB servers for tests, one a test.
package sqltest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/idemq/idemq/internal/child"
	"github.com/idemq/idemq/internal/testenv"
)

const (
	startTimeout = 60 * time.Second
	stopTimeout  = 10 * time.Second
	pollEvery    = 5 * time.Millisecond
)

// Server is a PostgreSQL or MariaDB server for one test. Its methods are called from the
// test's own goroutine; they end the test when the server does not do what it is told.
//
// What was committed outlives [Server.Kill]: the servers write as they do in production,
// but do not wait for the disk, and so it would not outlive the machine.
type Server struct {
	tb     testing.TB
	engine engine
	as     *account
	dir    string // of what is not data
	data   string
	args   []string
	port   int
	proc   *child.Process
	guard  *exec.Cmd // while paused
}

// engine is what the two kinds of servers differ in.
type engine interface {
	name() string
	// users are those who may run the server where the test runs as root.
	users() []string
	// create makes the data folder of a new server.
	create(s *Server) error
	// command runs the server; first says that it has not run before.
	command(s *Server, first bool) *exec.Cmd
	// answers tells whether a server executes statements.
	answers(addr string) bool
	dsn(addr string) string
	replica(origin *Server) engine
	// wire reads what a new client sends, and what it is answered.
	wire() wire
	// quit ends a server in no time, or does nothing where only a SIGKILL does that.
	quit(s *Server)
	// gone cleans up after a server that will not run again.
	gone(s *Server)
}

// start runs a server whose data are in a new folder in the folder in; empty: in one of
// the test's.
func start(tb testing.TB, e engine, in string, args []string) *Server {
	tb.Helper()
	s := &Server{tb: tb, engine: e, dir: tb.TempDir(), args: args}
	if in == "" {
		in = s.dir
	}
	if err := s.prepare(in); err != nil {
		tb.Fatalf("starting %s: %v", e.name(), err)
	}
	tb.Cleanup(s.stop)
	if err := e.create(s); err != nil {
		tb.Fatalf("making the data folder of %s: %v", e.name(), err)
	}
	s.boot()
	return s
}

// prepare makes the folders of the server, for the user that runs it.
func (s *Server) prepare(in string) error {
	var err error
	if s.as, err = unprivileged(s.engine.users()); err != nil {
		return err
	}
	if err = errors.Join(s.as.enters(s.dir), s.as.enters(in)); err != nil {
		return err
	}
	if s.data, err = os.MkdirTemp(in, s.engine.name()); err != nil {
		return err
	}
	return errors.Join(s.as.owns(s.dir), s.as.owns(s.data))
}

// empty has nothing left in the data folder.
func (s *Server) empty() error {
	if err := os.RemoveAll(s.data); err != nil {
		return err
	}
	if err := os.Mkdir(s.data, 0o700); err != nil {
		return err
	}
	return s.as.owns(s.data)
}

// boot tries a few ports: a free one may be taken before the server binds it.
func (s *Server) boot() {
	s.tb.Helper()
	var err error
	for range 3 {
		s.port = child.FreePort(s.tb)
		if err = s.run(true); err == nil {
			return
		}
	}
	s.tb.Fatalf("starting %s: %v", s.engine.name(), err)
}

func (s *Server) logfile() string { return filepath.Join(s.dir, "server.log") }

// do runs a program of the server's to its end.
func (s *Server) do(name string, args ...string) error {
	cmd := exec.Command(name, args...)
	out, err := os.OpenFile(s.logfile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	proc, err := s.launch(cmd)
	if err != nil {
		return err
	}
	<-proc.Done()
	if !cmd.ProcessState.Success() {
		return fmt.Errorf("%s: %v: %s", name, cmd.ProcessState, s.log())
	}
	return nil
}

func (s *Server) launch(cmd *exec.Cmd) (*child.Process, error) {
	if err := s.as.enters(filepath.Dir(cmd.Path)); err != nil {
		return nil, err
	}
	s.as.runs(cmd)
	cmd.Dir = s.dir
	return child.Start(cmd)
}

func (s *Server) log() []byte {
	text, _ := os.ReadFile(s.logfile())
	return child.Tail(text)
}

// run starts the server and returns when it executes statements.
func (s *Server) run(first bool) error {
	out, err := os.OpenFile(s.logfile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := s.engine.command(s, first)
	cmd.Stdout, cmd.Stderr = out, out
	if s.proc, err = s.launch(cmd); err != nil {
		return err
	}
	deadline := time.Now().Add(startTimeout)
	for !s.engine.answers(s.Addr()) {
		select {
		case <-s.proc.Done():
			return fmt.Errorf("it ended at once: %s", s.log())
		case <-time.After(pollEvery):
		}
		if time.Now().After(deadline) {
			s.Kill()
			return fmt.Errorf("it does not answer: %s", s.log())
		}
	}
	return nil
}

// stop ends the server for good.
func (s *Server) stop() {
	if s.proc == nil {
		return
	}
	if s.guard != nil {
		s.Resume()
	}
	s.engine.quit(s)
	s.Kill()
	s.engine.gone(s)
}

// Addr is the server's host and port.
func (s *Server) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

// DSN is the server's address for database/sql: of the driver pgx, or of the driver mysql.
func (s *Server) DSN() string { return s.DSNAt(s.Addr()) }

// DSNAt is DSN by way of a proxy at addr.
func (s *Server) DSNAt(addr string) string { return s.engine.dsn(addr) }

// StartReplica runs a server that follows this one and refuses to write: a hot standby of
// PostgreSQL, which begins with all that was committed; a replica of MariaDB's with
// read_only, which takes it up from the binary log, and whose DSN names a user whom
// read_only stops. Both are asynchronous: await what they are to show. The replica has
// the settings of this server.
func (s *Server) StartReplica(tb testing.TB) *Server {
	tb.Helper()
	return start(tb, s.engine.replica(s), "", s.args)
}

// Kill ends the server, all its processes, with SIGKILL and returns when it is gone.
func (s *Server) Kill() {
	s.tb.Helper()
	pids := s.freeze() // nothing is forked while they are counted
	s.proc.Kill()
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	testenv.Await(s.tb, s.engine.name()+"'s processes to be gone", func() bool { return !anyAlive(pids) })
	s.unwatch()
}

// Restart starts a killed server again, on the same port and with what its folder holds.
func (s *Server) Restart() {
	s.tb.Helper()
	s.Kill()
	if err := s.run(false); err != nil {
		s.tb.Fatalf("restarting %s: %v", s.engine.name(), err)
	}
}

// Pause stops the server, all its processes, with SIGSTOP: connections are accepted by
// the kernel, nothing is answered. What was sent meanwhile is executed after
// [Server.Resume].
func (s *Server) Pause() {
	s.tb.Helper()
	pids := s.freeze()
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGSTOP)
	}
	if err := s.watch(pids); err != nil {
		s.tb.Fatalf("pausing %s: %v", s.engine.name(), err)
	}
}

// Resume ends a Pause.
func (s *Server) Resume() {
	s.tb.Helper()
	s.unwatch()
	for _, pid := range s.freeze() {
		_ = syscall.Kill(pid, syscall.SIGCONT)
	}
	if err := s.proc.Signal(syscall.SIGCONT); err != nil {
		s.tb.Fatalf("resuming %s: %v", s.engine.name(), err)
	}
}

// freeze stops the server's first process and returns the others, none where it has ended.
func (s *Server) freeze() []int {
	select {
	case <-s.proc.Done():
		return nil
	default:
		_ = s.proc.Signal(syscall.SIGSTOP)
		return children(s.proc.Pid())
	}
}
