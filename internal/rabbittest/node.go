package rabbittest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/idemq/idemq/internal/child"
)

const (
	startTimeout = 5 * time.Minute // Erlang takes 10 CPU seconds and more
	pollEvery    = 20 * time.Millisecond
)

// node is a server, its port mapper, and the shell that asks it.
type node struct {
	bins  bins
	dir   string
	port  int
	dist  int
	epmd  int
	proc  *child.Process
	ports *child.Process // epmd

	mu    sync.Mutex
	shell *child.Process
	in    io.WriteCloser
	out   *bufio.Reader
}

func newNode(tb testing.TB, dir string, confLines []string) *node {
	tb.Helper()
	n := &node{bins: programs(tb), dir: dir}
	files := map[string]string{
		"plugins":         "[].\n",
		"advanced.config": "[].\n",
		".erlang.cookie":  "rabbittest",
		"rabbitmq.conf":   strings.Join(confLines, "\n") + "\n",
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o400); err != nil {
			tb.Fatal(err)
		}
	}
	return n
}

// boot tries a few ports: a free one may be taken before the server binds it.
func (n *node) boot(tb testing.TB) {
	tb.Helper()
	var err error
	for range 3 {
		n.port, n.dist, n.epmd = child.FreePort(tb), child.FreePort(tb), child.FreePort(tb)
		if err = n.startEpmd(); err != nil {
			continue
		}
		if err = n.run(); err == nil {
			return
		}
	}
	tb.Fatalf("starting %s: %v", n.bins.server, err)
}

// startEpmd runs a port mapper of this server's own: one that Erlang starts by itself
// stays for ever.
func (n *node) startEpmd() error {
	if n.ports != nil {
		n.ports.Kill()
	}
	cmd := exec.Command(n.bins.epmd)
	cmd.Env = n.env()
	ports, err := child.Start(cmd)
	if err != nil {
		return err
	}
	n.ports = ports
	return n.await(ports, "epmd", func() bool { return listens(n.epmd) })
}

func (n *node) name() string { return fmt.Sprintf("rabbittest%d@localhost", n.port) }

func (n *node) env() []string {
	in := func(name string) string { return filepath.Join(n.dir, name) }
	env := make([]string, 0, len(os.Environ()))
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "RABBITMQ_") && !strings.HasPrefix(e, "NOTIFY_SOCKET=") {
			env = append(env, e)
		}
	}
	return append(env,
		"HOME="+n.dir,
		"ERL_EPMD_ADDRESS=127.0.0.1",
		"ERL_EPMD_PORT="+strconv.Itoa(n.epmd),
		"RUNNING_UNDER_SYSTEMD=true", // no process between this one and the virtual machine
		"RABBITMQ_NODENAME="+n.name(),
		"RABBITMQ_NODE_IP_ADDRESS=127.0.0.1",
		"RABBITMQ_NODE_PORT="+strconv.Itoa(n.port),
		"RABBITMQ_DIST_PORT="+strconv.Itoa(n.dist),
		"RABBITMQ_CTL_DIST_PORT_MIN=1025",
		"RABBITMQ_CTL_DIST_PORT_MAX=65535",
		"RABBITMQ_MNESIA_BASE="+in("mnesia"),
		"RABBITMQ_LOG_BASE="+in("log"),
		"RABBITMQ_CONFIG_FILE="+in("rabbitmq.conf"),
		"RABBITMQ_ADVANCED_CONFIG_FILE="+in("advanced.config"),
		"RABBITMQ_CONF_ENV_FILE="+in("none"),
		"RABBITMQ_PID_FILE="+in("pid"),
		"RABBITMQ_FEATURE_FLAGS_FILE="+in("feature_flags"),
		"RABBITMQ_ENABLED_PLUGINS_FILE="+in("plugins"),
		"RABBITMQ_GENERATED_CONFIG_DIR="+in("generated"),
	)
}

func (n *node) run() error {
	logfile, err := os.OpenFile(filepath.Join(n.dir, "server.log"), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer logfile.Close()
	cmd := exec.Command(n.bins.server)
	cmd.Env, cmd.Dir = n.env(), n.dir
	cmd.Stdout, cmd.Stderr = logfile, logfile
	if n.proc, err = child.Start(cmd); err != nil {
		return err
	}
	return n.await(n.proc, "the server", func() bool { return speaks(n.port) })
}

func (n *node) await(proc *child.Process, what string, ready func() bool) error {
	deadline := time.Now().Add(startTimeout)
	for !ready() {
		select {
		case <-proc.Done():
			text, _ := os.ReadFile(filepath.Join(n.dir, "server.log"))
			return fmt.Errorf("%s ended at once: %s", what, child.Tail(text))
		case <-time.After(pollEvery):
		}
		if time.Now().After(deadline) {
			proc.Kill()
			return fmt.Errorf("%s does not answer", what)
		}
	}
	return nil
}

func dial(port int) (net.Conn, error) {
	return net.DialTimeout("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), time.Second)
}

func listens(port int) bool {
	conn, err := dial(port)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// speaks tells whether an AMQP server answers.
func speaks(port int) bool {
	conn, err := dial(port)
	if err != nil {
		return false
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	if _, err := conn.Write([]byte("AMQP\x00\x00\x09\x01")); err != nil {
		return false
	}
	_, err = conn.Read(make([]byte, 1))
	return err == nil
}

// stop ends everything. What the virtual machine started ends when its pipe closes.
func (n *node) stop() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range []*child.Process{n.shell, n.proc, n.ports} {
		if p != nil {
			p.Kill()
		}
	}
}

// loop is the shell: it reads a line, has the server evaluate it, and prints the answer.
const loop = `N = '%s', L = fun(L) -> case io:get_line("") of eof -> halt(); {error, _} -> halt(); Line -> ` +
	`R = (catch begin {ok, T, _} = erl_scan:string(Line), {ok, E} = erl_parse:parse_exprs(T), rpc:call(N, erl_eval, exprs, [E, []]) end), ` +
	`io:format("~0tp~n", [case R of {value, V, _} -> V; _ -> {failed, R} end]), L(L) end end, L(L).`

// Eval evaluates an Erlang expression in the server and returns the answer on one line. A
// call takes a millisecond; rabbitmqctl takes hundreds.
func (n *node) Eval(tb testing.TB, expression string) string {
	tb.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	answer, err := n.ask(expression)
	if err != nil {
		tb.Fatalf("evaluating %s: %v", expression, err)
	}
	return answer
}

func (n *node) ask(expression string) (string, error) {
	if n.shell == nil {
		if err := n.startShell(); err != nil {
			return "", err
		}
	}
	if _, err := fmt.Fprintf(n.in, "%s.\n", strings.ReplaceAll(expression, "\n", " ")); err != nil {
		return "", err
	}
	line, err := n.out.ReadString('\n')
	line = strings.TrimSpace(line)
	if err == nil && strings.HasPrefix(line, "{failed,") {
		err = errors.New(line)
	}
	return line, err
}

func (n *node) startShell() error {
	cmd := exec.Command(n.bins.erl, "-noinput", "-noshell", "-hidden", "-start_epmd", "false",
		"-sname", fmt.Sprintf("shell%d@localhost", n.port), "-eval", fmt.Sprintf(loop, n.name()))
	cmd.Env, cmd.Dir = n.env(), n.dir
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	n.shell, err = child.Start(cmd)
	if err != nil {
		return err
	}
	n.in, n.out = in, bufio.NewReader(out)
	return nil
}
