// Package kafkatest starts real Kafka brokers for tests, each a cluster of one (KRaft),
// and a fake one for tests that need no real broker.
package kafkatest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/idemq/idemq/internal/child"
	"github.com/idemq/idemq/internal/testenv"
)

const (
	envHome    = "IDEM_KAFKA_HOME"
	envVersion = "IDEM_KAFKA_VERSION"

	defaultVersion = "4.3.0"

	startTimeout = 60 * time.Second
	pollEvery    = 10 * time.Millisecond
)

// Server is a Kafka broker. Its methods are called from the test's own goroutine; they
// end the test when the broker does not do what it is told.
type Server struct {
	tb         testing.TB
	addr       string
	lib        string // the folder of the jars; empty: the fake
	dir        string
	props      []string
	advertise  func(upstream string) string // of a second listener; nil: none
	controller string
	proc       *child.Process
}

// Start runs a broker on free ports, with a data folder of its own. It is gone when the
// test ends, also when the test process is killed (Linux). Topics are not created by
// themselves, and a group's first member does not wait for others; props, lines of
// server.properties ("auto.create.topics.enable=true"), come last and win.
//
// The jars are those in lib or libs of IDEM_KAFKA_HOME, else those that .ci/kafka put
// into .cache: of Kafka 4.3.0, or of the version in IDEM_KAFKA_VERSION. Without jars or
// Java the test ends as [testenv.Missing] says.
func Start(tb testing.TB, props ...string) *Server {
	tb.Helper()
	return startServer(&Server{tb: tb, props: props})
}

// StartBehind is Start with a second listener, for clients that are to reach the broker
// by way of a proxy, and to go on doing so: advertise has the proxy forward to upstream,
// and returns the proxy's address. It may be called again, where a port was taken.
func StartBehind(tb testing.TB, advertise func(upstream string) (addr string), props ...string) *Server {
	tb.Helper()
	return startServer(&Server{tb: tb, advertise: advertise, props: props})
}

// startServer starts what s says, for as long as its test.
func startServer(s *Server) *Server {
	s.tb.Helper()
	s.lib, s.dir = jars(s.tb), s.tb.TempDir()
	s.start()
	s.tb.Cleanup(func() { s.proc.Kill() })
	return s
}

// jars is the folder of the broker's jars, on a machine that can run them.
func jars(tb testing.TB) string {
	tb.Helper()
	if _, err := exec.LookPath("java"); err != nil {
		testenv.Missing(tb, "Java 17 or later", "apt-get install default-jre-headless, or make test")
	}
	home := os.Getenv(envHome)
	given := home != ""
	if !given {
		version := os.Getenv(envVersion)
		if version == "" {
			version = defaultVersion
		}
		home = filepath.Join(testenv.Root(tb), ".cache", "kafka-"+version)
	}
	for _, name := range []string{"lib", "libs"} {
		lib := filepath.Join(home, name)
		if found, _ := filepath.Glob(filepath.Join(lib, "kafka-clients-*.jar")); len(found) > 0 {
			return lib
		}
	}
	if given {
		tb.Fatalf("%s: no Kafka jars in lib or libs of %s", envHome, home)
	}
	testenv.Missing(tb, "the jars of a Kafka broker", "bash .ci/kafka, or make test")
	return ""
}

// start tries a few ports: a free one may be taken before the broker binds it.
func (s *Server) start() {
	s.tb.Helper()
	var err error
	for range 3 {
		s.addr, s.controller = child.FreeAddr(s.tb), child.FreeAddr(s.tb)
		if err = s.format(); err == nil {
			err = s.run()
		}
		if err == nil {
			return
		}
	}
	s.tb.Fatalf("starting Kafka from %s: %v", s.lib, err)
}

func (s *Server) data() string       { return filepath.Join(s.dir, "data") }
func (s *Server) logfile() string    { return filepath.Join(s.dir, "server.log") }
func (s *Server) properties() string { return filepath.Join(s.dir, "server.properties") }

// java is a command that runs a class of the jars. Compiling little and collecting
// simply starts fastest, and leaves the other core to the test.
func (s *Server) java(class string, args ...string) *exec.Cmd {
	return exec.Command("java", append([]string{
		"-Xms64m", "-Xmx512m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto",
		"-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true",
		"-cp", filepath.Join(s.lib, "*"), class,
	}, args...)...)
}

// format writes the settings and makes the data folder anew.
func (s *Server) format() error {
	listeners, advertised := "PLAINTEXT://"+s.addr, "PLAINTEXT://"+s.addr
	if s.advertise != nil {
		upstream := child.FreeAddr(s.tb)
		listeners += ",BEHIND://" + upstream
		advertised += ",BEHIND://" + s.advertise(upstream)
	}
	lines := append([]string{
		"process.roles=broker,controller",
		"node.id=1",
		"controller.quorum.voters=1@" + s.controller,
		"listeners=" + listeners + ",CONTROLLER://" + s.controller,
		"advertised.listeners=" + advertised,
		"controller.listener.names=CONTROLLER",
		"listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,BEHIND:PLAINTEXT",
		"inter.broker.listener.name=PLAINTEXT",
		"log.dirs=" + s.data(),
		// A restarted broker waits until its predecessor's session has ended.
		"broker.session.timeout.ms=2000",
		"broker.heartbeat.interval.ms=500",
		"auto.create.topics.enable=false",
		"group.initial.rebalance.delay.ms=0",
		"offsets.topic.replication.factor=1",
		"offsets.topic.num.partitions=4",
		"transaction.state.log.replication.factor=1",
		"transaction.state.log.min.isr=1",
		"transaction.state.log.num.partitions=4",
		"share.coordinator.state.topic.replication.factor=1",
		"share.coordinator.state.topic.min.isr=1",
		"share.coordinator.state.topic.num.partitions=1",
	}, s.props...)
	if err := os.RemoveAll(s.data()); err != nil {
		return err
	}
	if err := os.WriteFile(s.properties(), []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		return err
	}
	out, err := s.java("kafka.tools.StorageTool", "format", "-t", "MkU3OEVBNTcwNTJENDM2Qg", "-c", s.properties()).CombinedOutput()
	if err != nil {
		return fmt.Errorf("formatting its data folder: %w: %s", err, child.Tail(out))
	}
	return nil
}

// run starts the broker and returns when every partition has a leader and groups have
// their coordinator.
func (s *Server) run() error {
	logfile, err := os.OpenFile(s.logfile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer logfile.Close()
	cmd := s.java("kafka.Kafka", s.properties())
	cmd.Stdout, cmd.Stderr = logfile, logfile
	proc, err := child.Start(cmd)
	if err != nil {
		return err
	}
	s.proc = proc
	deadline := time.Now().Add(startTimeout)
	for {
		notReady := ready(s.addr)
		if notReady == nil {
			return nil
		}
		select {
		case <-proc.Done():
			return errors.New("it ended at once: " + s.logTail())
		case <-time.After(pollEvery):
		}
		if time.Now().After(deadline) {
			proc.Kill()
			return fmt.Errorf("not ready within %v: %w: %s", startTimeout, notReady, s.logTail())
		}
	}
}

func (s *Server) logTail() string {
	text, _ := os.ReadFile(s.logfile())
	return string(child.Tail(text))
}

// Addr is the broker's host and port.
func (s *Server) Addr() string { return s.addr }

// Version is the broker's, as its jars say; empty for the fake.
func (s *Server) Version() string {
	const before, after = "kafka-clients-", ".jar"
	found, _ := filepath.Glob(filepath.Join(s.lib, before+"*"+after))
	if s.lib == "" || len(found) == 0 {
		return ""
	}
	return strings.TrimSuffix(strings.TrimPrefix(filepath.Base(found[0]), before), after)
}

// Pid is the broker's process.
func (s *Server) Pid() int {
	s.needsProcess("tell the process of")
	return s.proc.Pid()
}

func (s *Server) needsProcess(verb string) {
	s.tb.Helper()
	if s.proc == nil {
		what := "a broker that other tests use"
		if s.lib == "" {
			what = "a fake"
		}
		s.tb.Fatalf("cannot %s %s: use kafkatest.Start", verb, what)
	}
}

// Kill ends the broker with SIGKILL and returns when it is gone.
func (s *Server) Kill() {
	s.tb.Helper()
	s.needsProcess("kill")
	s.proc.Kill()
}

// Restart starts the broker again on the same port and with its data, after a Kill or
// after killing it now. It returns when all partitions have their leader.
func (s *Server) Restart() {
	s.tb.Helper()
	s.needsProcess("restart")
	s.proc.Kill()
	if err := s.run(); err != nil {
		s.tb.Fatalf("restarting Kafka: %v", err)
	}
}

// Pause stops the broker with SIGSTOP: connections are accepted by the kernel, nothing
// is answered. Requests sent meanwhile are executed after [Server.Resume]; when that
// took more than two seconds, the partitions may have no leader for a moment.
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
		s.tb.Fatalf("%v to Kafka: %v", sig, err)
	}
}
