// Package redistest starts real Redis and Valkey servers for tests: alone, in a cluster,
// under Sentinel, with TLS.
package redistest

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/idemq/idemq/internal/child"
	"github.com/idemq/idemq/internal/testenv"
)

const (
	envBinary = "IDEM_REDIS_SERVER"
	envAddr   = "IDEM_REDIS_ADDR"

	startTimeout = 20 * time.Second
	pollEvery    = 2 * time.Millisecond
)

// Server is a Redis (or Valkey) server for one test. Its methods are called from
// the test's own goroutine; they end the test when the server does not do what it is told.
type Server struct {
	tb   testing.TB
	addr string
	bin  string // empty: a server that was started elsewhere
	dir  string
	args []string
	port int
	proc *child.Process

	tls      *tls.Config           // a client's; nil: no TLS
	sentinel func(port int) string // a Sentinel's configuration; nil: none
}

// Start runs a server of the test's own: free port, own folder, no persistence
// unless args (options of redis-server, "--maxmemory", "4mb") say so. It is gone
// when the test ends, also when the test process is killed (Linux).
//
// The program is what IDEM_REDIS_SERVER names, else redis-server, else
// valkey-server of the PATH. Without one, and with no args, the server at
// IDEM_REDIS_ADDR is used: it is shared, so tests must choose their own prefixes.
// Without either the test ends as [testenv.Missing] says.
func Start(tb testing.TB, args ...string) *Server {
	tb.Helper()
	bin := binary(tb)
	if bin == "" {
		addr := os.Getenv(envAddr)
		switch {
		case addr == "":
			missing(tb)
		case len(args) > 0:
			needsProgram(tb)
		}
		return &Server{tb: tb, addr: addr}
	}
	return startServer(&Server{tb: tb, bin: bin, args: args})
}

// startServer starts what s says, for as long as its test.
func startServer(s *Server) *Server {
	s.tb.Helper()
	s.dir = s.tb.TempDir()
	s.start()
	s.tb.Cleanup(func() { s.proc.Kill() })
	return s
}

// needsProgram skips a test that a shared server cannot serve, also where servers are
// required: whoever gave only a shared one chose so.
func needsProgram(tb testing.TB) {
	tb.Helper()
	tb.Skip("needs a server of its own: put redis-server into the PATH, or name it in " + envBinary)
}

func missing(tb testing.TB) {
	tb.Helper()
	testenv.Missing(tb, "redis-server", "apt-get install redis-server, or make test")
}

// binary is the server program, empty if there is none.
func binary(tb testing.TB) string {
	tb.Helper()
	if name := os.Getenv(envBinary); name != "" {
		bin, err := exec.LookPath(name)
		if err != nil {
			tb.Fatalf("%s: %v", envBinary, err)
		}
		return bin
	}
	for _, name := range []string{"redis-server", "valkey-server"} {
		if bin, err := exec.LookPath(name); err == nil {
			return bin
		}
	}
	return ""
}

// start tries a few ports: a free one may be taken before the server binds it.
func (s *Server) start() {
	s.tb.Helper()
	var err error
	for range 5 {
		s.port = child.FreePort(s.tb)
		s.addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port))
		if err = s.run(); err == nil {
			return
		}
	}
	s.tb.Fatalf("starting %s: %v", s.bin, err)
}

func (s *Server) run() error {
	logfile := filepath.Join(s.dir, "server.log")
	args, err := s.commandLine(logfile)
	if err != nil {
		return err
	}
	proc, err := child.Start(exec.Command(s.bin, args...))
	if err != nil {
		return err
	}
	s.proc = proc
	deadline := time.Now().Add(startTimeout)
	for !s.answers() {
		select {
		case <-proc.Done():
			text, _ := os.ReadFile(logfile)
			return fmt.Errorf("it ended at once: %s", child.Tail(text))
		case <-time.After(pollEvery):
		}
		if time.Now().After(deadline) {
			proc.Kill()
			return errors.New("it does not answer")
		}
	}
	return nil
}

// commandLine is what the program is started with.
func (s *Server) commandLine(logfile string) ([]string, error) {
	if s.sentinel != nil {
		conf := filepath.Join(s.dir, "sentinel.conf")
		text := fmt.Sprintf("bind 127.0.0.1\nport %d\ndir %q\nlogfile %q\n%s", s.port, s.dir, logfile, s.sentinel(s.port))
		return []string{conf, "--sentinel"}, os.WriteFile(conf, []byte(text), 0o600)
	}
	ports := []string{"--port", strconv.Itoa(s.port)}
	if s.tls != nil {
		ports = []string{"--port", "0", "--tls-port", strconv.Itoa(s.port)}
	}
	return slices.Concat(ports, []string{
		"--bind", "127.0.0.1", "--dir", s.dir,
		"--logfile", logfile, "--daemonize", "no", "--save", "", "--appendonly", "no",
	}, s.args), nil
}

func (s *Server) answers() bool {
	if s.tls == nil {
		return answers(s.addr)
	}
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: time.Second}, "tcp", s.addr, s.tls)
	return err == nil && pong(conn)
}

// answers tells whether the server has loaded its data and executes commands.
func answers(addr string) bool {
	conn, err := net.DialTimeout("tcp", addr, time.Second)
	return err == nil && pong(conn)
}

// pong asks on a connection, and closes it.
func pong(conn net.Conn) bool {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	if _, err := conn.Write([]byte("PING\r\n")); err != nil {
		return false
	}
	reply := make([]byte, 64)
	n, _ := conn.Read(reply)
	return bytes.HasPrefix(reply[:n], []byte("+PONG")) || bytes.HasPrefix(reply[:n], []byte("-NOAUTH"))
}

// Addr is the server's host and port.
func (s *Server) Addr() string { return s.addr }

// Options are the settings of [Server.Client], for tests that change one of them.
func (s *Server) Options() *redis.Options {
	o := clientOptions(s.addr)
	o.TLSConfig = s.tls
	return o
}

func clientOptions(addr string) *redis.Options {
	return &redis.Options{
		Addr:                  addr,
		DialTimeout:           2 * time.Second,
		ReadTimeout:           2 * time.Second,
		WriteTimeout:          2 * time.Second,
		MaxRetries:            1,
		ContextTimeoutEnabled: true,
		DisableIdentity:       true,
	}
}

// Client is a client of the server, closed when tb ends.
func (s *Server) Client(tb testing.TB) *redis.Client {
	tb.Helper()
	c := redis.NewClient(s.Options())
	tb.Cleanup(func() { _ = c.Close() })
	return c
}

func (s *Server) needsProcess(verb string) {
	s.tb.Helper()
	if s.bin == "" {
		s.tb.Skipf("cannot %s the shared server of %s: needs a redis-server of its own", verb, envAddr)
	}
}

// Kill ends the server with SIGKILL and returns when it is gone.
func (s *Server) Kill() {
	s.tb.Helper()
	s.needsProcess("kill")
	s.proc.Kill()
}

// Discard ends the server for good, and deletes its folder.
func (s *Server) Discard() {
	s.tb.Helper()
	s.Kill()
	if err := os.RemoveAll(s.dir); err != nil {
		s.tb.Error(err)
	}
}

// Restart starts a killed server again, on the same port and with what its
// folder holds; without persistence that is nothing.
func (s *Server) Restart() {
	s.tb.Helper()
	s.needsProcess("restart")
	s.proc.Kill()
	if err := s.run(); err != nil {
		s.tb.Fatalf("restarting %s: %v", s.bin, err)
	}
}

// Pause stops the server with SIGSTOP: connections are accepted by the kernel,
// nothing is answered. Requests sent meanwhile are executed after [Server.Resume].
func (s *Server) Pause() {
	s.tb.Helper()
	s.needsProcess("pause")
	s.signal(syscall.SIGSTOP)
}

// Resume ends a Pause.
func (s *Server) Resume() {
	s.tb.Helper()
	s.needsProcess("resume")
	s.signal(syscall.SIGCONT)
}

func (s *Server) signal(sig syscall.Signal) {
	s.tb.Helper()
	if err := s.proc.Signal(sig); err != nil {
		s.tb.Fatalf("%v to %s: %v", sig, s.bin, err)
	}
}

// field is the value of one line of an INFO-like text.
func field(text, name string) string {
	for line := range strings.SplitSeq(text, "\n") {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), name+":"); ok {
			return v
		}
	}
	return ""
}
