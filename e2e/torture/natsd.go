package torture

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/idemq/idemq/e2e/history"
	"github.com/idemq/idemq/internal/child"
	"github.com/idemq/idemq/internal/testenv"
)

// natsServer is a nats-server in a process of its own, so that it can be killed: package
// natstest's run inside the test's.
type natsServer struct {
	tb   testing.TB
	bin  string
	dir  string
	port int
	proc *child.Process

	nc *nats.Conn
	js jetstream.JetStream
}

func startNATS(tb testing.TB) *natsServer {
	tb.Helper()
	root := testenv.Root(tb)
	s := &natsServer{tb: tb, bin: filepath.Join(root, ".cache", "bin", "nats-server"), dir: tb.TempDir()}
	build := exec.Command("go", "build", "-C", filepath.Join(root, "e2e"), "-ldflags=-w", "-o", s.bin, "github.com/nats-io/nats-server/v2")
	if out, err := build.CombinedOutput(); err != nil {
		tb.Fatalf("building nats-server: %v\n%s", err, out)
	}
	tb.Cleanup(func() {
		if s.proc != nil {
			s.proc.Kill()
		}
	})
	for range 3 { // a free port may be taken before the server has it
		s.port = child.FreePort(tb)
		err := s.run()
		if err == nil {
			s.connect()
			return s
		}
		tb.Log(err)
	}
	tb.Fatal("nats-server did not start")
	return nil
}

func (s *natsServer) data() string { return filepath.Join(s.dir, "data") }
func (s *natsServer) log() string  { return filepath.Join(s.dir, "log") }
func (s *natsServer) addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

func (s *natsServer) run() error {
	proc, err := child.Start(exec.Command(s.bin, "-a", "127.0.0.1", "-p", strconv.Itoa(s.port), "-js", "-sd", s.data(), "-l", s.log()))
	if err != nil {
		return err
	}
	s.proc = proc
	deadline := time.Now().Add(time.Minute)
	for !s.ready() {
		select {
		case <-proc.Done():
			text, _ := os.ReadFile(s.log())
			return fmt.Errorf("nats-server ended at once: %s", child.Tail(text))
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			proc.Kill()
			return fmt.Errorf("nats-server is not ready after a minute")
		}
	}
	return nil
}

// ready tells whether JetStream answers.
func (s *natsServer) ready() bool {
	nc, err := nats.Connect("nats://"+s.addr(), nats.Timeout(time.Second))
	if err != nil {
		return false
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_, err = js.AccountInfo(ctx)
	return err == nil
}

// connect makes the harness's own connection.
func (s *natsServer) connect() {
	s.tb.Helper()
	var err error
	s.nc, err = nats.Connect("nats://"+s.addr(), nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond), nats.ReconnectJitter(0, 0))
	if err == nil {
		s.tb.Cleanup(s.nc.Close)
		s.js, err = jetstream.New(s.nc, jetstream.WithPublishAsyncMaxPending(8192))
	}
	if err != nil {
		s.tb.Fatalf("connecting to %s: %v", s.addr(), err)
	}
}

func (s *natsServer) version() string { return "NATS " + s.nc.ConnectedServerVersion() }

// restart kills the server and starts it again, with what is in its folder then.
func (s *natsServer) restart(meanwhile func() error) {
	s.tb.Helper()
	s.proc.Kill()
	err := meanwhile()
	if err == nil {
		err = s.run()
	}
	if err != nil {
		s.tb.Fatalf("restarting nats-server: %v", err)
	}
}

// save keeps what the server's folder holds now, as a crash of its machine might leave it,
// and says when that was.
func (s *natsServer) save(to string) (at int64) {
	s.tb.Helper()
	at = history.Now()
	err := s.proc.Signal(syscall.SIGSTOP)
	if err == nil {
		testenv.Await(s.tb, "nats-server to stand still", func() bool { return stopped(s.proc.Pid()) })
		err = os.CopyFS(to, os.DirFS(s.data()))
	}
	if err == nil {
		err = s.proc.Signal(syscall.SIGCONT)
	}
	if err != nil {
		s.tb.Fatalf("saving the data of nats-server: %v", err)
	}
	return at
}

// stopped tells whether all threads of a process have been stopped.
func stopped(pid int) bool {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil || len(threads) == 0 {
		return false
	}
	for _, file := range threads {
		text, err := os.ReadFile(file)
		if err != nil {
			return false
		}
		_, state, _ := strings.Cut(string(text), ") ") // the name before may hold anything but this
		if !strings.HasPrefix(state, "T") {
			return false
		}
	}
	return true
}
