// Package rabbittest runs a real RabbitMQ for tests.
package rabbittest

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/idemq/idemq/internal/testenv"
)

const (
	envBinary = "IDEM_RABBITMQ_SERVER"

	// packaged is where Debian's package keeps the programs themselves. What it puts into
	// the PATH changes the user, and a process that does so outlives the test.
	packaged = "/usr/lib/rabbitmq/bin"
)

// Server is a RabbitMQ server, seen by one test. Its methods are called from the test's
// own goroutine; they end the test when the server does not do what it is told.
type Server struct {
	tb testing.TB
	*node
}

// Start runs a server of the test's own: free ports, own folder, as the user who runs
// the test. confLines are lines of rabbitmq.conf. It takes about six seconds. The server
// is gone when the test ends, also when the test process is killed (Linux).
//
// The program is what IDEM_RABBITMQ_SERVER names, else rabbitmq-server. Without it, or
// without Erlang's erl and epmd, the test ends as [testenv.Missing] says.
func Start(tb testing.TB, confLines ...string) *Server {
	tb.Helper()
	s := &Server{tb, newNode(tb, tb.TempDir(), confLines)}
	tb.Cleanup(s.stop)
	s.boot(tb)
	return s
}

// Shared is one server for the tests of a package that do not kill it, started when the
// first asks. Its zero value is ready; TestMain calls Stop.
type Shared struct {
	mu   sync.Mutex
	node *node
	dir  string
}

// Server returns the server as tb sees it.
func (s *Shared) Server(tb testing.TB, confLines ...string) *Server {
	tb.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.node == nil {
		programs(tb) // before a folder is made
		dir, err := os.MkdirTemp("", "rabbittest")
		if err != nil {
			tb.Fatal(err)
		}
		s.dir = dir
		n := newNode(tb, dir, confLines)
		defer func() {
			if s.node == nil {
				n.stop()
			}
		}()
		n.boot(tb)
		s.node = n
	}
	return &Server{tb, s.node}
}

// Stop ends the server.
func (s *Shared) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.node != nil {
		s.node.stop()
		s.node = nil
	}
	if s.dir != "" {
		_ = os.RemoveAll(s.dir)
	}
}

// program files of a server.
type bins struct{ server, ctl, erl, epmd string }

func programs(tb testing.TB) bins {
	tb.Helper()
	const cure = "apt-get install rabbitmq-server, or name the program in " + envBinary
	name := os.Getenv(envBinary)
	given := name != ""
	if !given {
		name = "rabbitmq-server"
		for _, dir := range []string{packaged, "/usr/sbin"} {
			if _, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
				name = filepath.Join(dir, name)
				break
			}
		}
	}
	server, err := exec.LookPath(name)
	switch {
	case err != nil && given:
		tb.Fatalf("%s: %v", envBinary, err)
	case err != nil:
		testenv.Missing(tb, "rabbitmq-server", cure)
	}
	if path, err := filepath.EvalSymlinks(server); err == nil {
		server = path
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(server), "rabbitmq-env")); err != nil {
		server = filepath.Join(packaged, "rabbitmq-server") // it was the one that changes the user
	}
	b := bins{server: server, ctl: filepath.Join(filepath.Dir(server), "rabbitmqctl")}
	for _, p := range []struct {
		name string
		path *string
	}{{"erl", &b.erl}, {"epmd", &b.epmd}} {
		*p.path, err = exec.LookPath(p.name)
		if err != nil {
			testenv.Missing(tb, "Erlang's "+p.name, cure)
		}
	}
	return b
}

// URL is the server's address for a client, with the user guest.
func (s *Server) URL() string { return "amqp://guest:guest@" + s.Addr() + "/" }

// URLAt is URL by way of a proxy at addr.
func (s *Server) URLAt(addr string) string {
	u := url.URL{Scheme: "amqp", User: url.UserPassword("guest", "guest"), Host: addr, Path: "/"}
	return u.String()
}

// Addr is the server's host and port.
func (s *Server) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

// Pid is the server's process, or the one that started it.
func (s *Server) Pid() int { return s.proc.Pid() }

// Kill ends the server with SIGKILL and returns when it is gone.
func (s *Server) Kill() { s.proc.Kill() }

// Restart starts a killed server again, on the same port and with what its folder holds.
func (s *Server) Restart() {
	s.tb.Helper()
	s.proc.Kill()
	if err := s.run(); err != nil {
		s.tb.Fatalf("restarting %s: %v", s.bins.server, err)
	}
}

// Pause stops the server with SIGSTOP: connections are accepted by the kernel, nothing
// is answered.
func (s *Server) Pause() { s.signal(syscall.SIGSTOP) }

// Resume ends a Pause.
func (s *Server) Resume() { s.signal(syscall.SIGCONT) }

func (s *Server) signal(sig syscall.Signal) {
	s.tb.Helper()
	if err := s.proc.Signal(sig); err != nil {
		s.tb.Fatalf("%v to %s: %v", sig, s.bins.server, err)
	}
}

// Ctl runs rabbitmqctl and returns what it prints.
func (s *Server) Ctl(tb testing.TB, args ...string) string {
	tb.Helper()
	cmd := exec.Command(s.bins.ctl, append([]string{"--quiet"}, args...)...)
	cmd.Env = s.env()
	cmd.Dir = s.dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		tb.Fatalf("rabbitmqctl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// CloseConnections closes all client connections from the server's side.
func (s *Server) CloseConnections(tb testing.TB, reason string) {
	tb.Helper()
	s.Ctl(tb, "close_all_connections", reason)
}

// SetPolicy gives the queues whose names match pattern a policy, a JSON object.
func (s *Server) SetPolicy(tb testing.TB, name, pattern, definition string) {
	tb.Helper()
	s.Ctl(tb, "set_policy", "--apply-to", "queues", name, pattern, definition)
}

// Messages is how many messages a queue has, those that are delivered and not settled
// included; minus one where there is no such queue.
func (s *Server) Messages(tb testing.TB, queue string) int {
	tb.Helper()
	n, err := s.Count(queue)
	if err != nil {
		tb.Fatal(err)
	}
	return n
}

// Count is Messages for tests that go on when the server does not know, as when it has
// just been started again.
func (s *Server) Count(queue string) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	answer, err := s.ask(fmt.Sprintf(count, binary(queue)))
	if err != nil {
		return 0, fmt.Errorf("messages of queue %s: %w", queue, err)
	}
	n, err := strconv.Atoi(answer)
	if err != nil {
		return 0, fmt.Errorf("messages of queue %s: %s", queue, answer)
	}
	return n, nil
}

// count asks the queue itself: what list_queues says of a quorum queue is a moment old.
const count = `case rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, %s)) of ` +
	`{ok, Q} -> case rabbit_amqqueue:is_replicated(Q) of ` +
	`true -> {ok, N, _} = ra:consistent_query(amqqueue:get_pid(Q), fun rabbit_fifo:query_messages_total/1), N; ` +
	`false -> [{messages, N}] = rabbit_amqqueue:info(Q, [messages]), N end; ` +
	`_ -> -1 end`

// binary writes an Erlang binary.
func binary(s string) string {
	bytes := make([]string, len(s))
	for i := range len(s) {
		bytes[i] = strconv.Itoa(int(s[i]))
	}
	return "<<" + strings.Join(bytes, ",") + ">>"
}
