package rabbittest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/goleak"

	"github.com/idemq/idemq/internal/child"
	"github.com/idemq/idemq/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const envVictim = "RABBITTEST_VICTIM"

// A server keeps what it confirmed over a SIGKILL, is asked by both ways, and closes
// connections when told to.
func TestServer(t *testing.T) {
	s := Start(t)
	conn, ch := open(t, s)
	q, err := ch.QueueDeclare("q", true, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	publish(t, ch, q.Name)
	if n := s.Messages(t, "q"); n != 1 {
		t.Errorf("the queue has %d messages, want 1", n)
	}
	quorum, err := ch.QueueDeclare("quorum", true, false, false, false, amqp.Table{"x-queue-type": "quorum"})
	if err != nil {
		t.Fatal(err)
	}
	publish(t, ch, quorum.Name)
	if _, ok, err := ch.Get(quorum.Name, false); !ok || err != nil {
		t.Fatal(ok, err)
	}
	publish(t, ch, quorum.Name)
	if n := s.Messages(t, "quorum"); n != 2 {
		t.Errorf("the quorum queue has %d messages, one of them delivered, want 2", n)
	}
	if n := s.Messages(t, "nowhere"); n != -1 {
		t.Errorf("a queue that is not there has %d messages", n)
	}
	closed := conn.NotifyClose(make(chan *amqp.Error, 1))
	s.CloseConnections(t, "a test")
	if err := <-closed; err == nil || !strings.Contains(err.Reason, "a test") {
		t.Errorf("the connection ended with %v", err)
	}
	s.Kill()
	if _, err := amqp.Dial(s.URL()); err == nil {
		t.Error("a killed server answers")
	}
	s.Restart()
	s.SetPolicy(t, "limit", "^q$", `{"max-length": 7}`)
	if text := s.Ctl(t, "list_queues", "--no-table-headers", "name", "messages", "policy"); !strings.Contains(strings.Join(strings.Fields(text), " "), "q 1 limit") {
		t.Errorf("after the restart: %q", text)
	}
	if n := s.Messages(t, "q"); n != 1 {
		t.Errorf("after the restart the queue has %d messages, want 1", n)
	}
}

func open(t *testing.T, s *Server) (*amqp.Connection, *amqp.Channel) {
	t.Helper()
	conn, err := amqp.Dial(s.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	return conn, ch
}

func publish(t *testing.T, ch *amqp.Channel, queue string) {
	t.Helper()
	if err := ch.Confirm(false); err != nil {
		t.Fatal(err)
	}
	c, err := ch.PublishWithDeferredConfirm("", queue, true, false, amqp.Publishing{DeliveryMode: amqp.Persistent})
	if err != nil {
		t.Fatal(err)
	}
	if ok, err := c.WaitContext(t.Context()); err != nil || !ok {
		t.Fatalf("not confirmed: %v, %v", ok, err)
	}
}

// A server dies with the test process, though that is killed, and so does whatever was
// started beside it.
func TestDiesWithTheTest(t *testing.T) {
	if os.Getenv(envVictim) != "" {
		s := Start(t)
		s.Eval(t, "ok")
		if _, err := os.Stdout.WriteString(s.dir); err != nil {
			t.Fatal(err)
		}
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	if !child.DiesWithParent {
		t.Skip("children outlive a killed parent on this system")
	}
	programs(t)
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestDiesWithTheTest$")
	cmd.Env = append(os.Environ(), envVictim+"=1")
	out, _ := cmd.Output()
	dir := string(out)
	if !filepath.IsAbs(dir) {
		t.Fatalf("the victim printed %q", out)
	}
	t.Cleanup(func() { _ = os.RemoveAll(filepath.Dir(dir)) })
	testenv.Await(t, "all processes of the server to be gone", func() bool { return len(living(t, dir)) == 0 })
}

// A server that was stopped leaves no process.
func TestStops(t *testing.T) {
	var s Shared
	dir := s.Server(t).dir
	if n := len(living(t, dir)); n < 2 {
		t.Fatalf("%d processes are found while the server runs: the test shows nothing", n)
	}
	if other := s.Server(t); other.dir != dir {
		t.Error("the second call started another server")
	}
	s.Stop()
	testenv.Await(t, "all processes of the server to be gone", func() bool { return len(living(t, dir)) == 0 })
	if _, err := os.Stat(dir); err == nil {
		t.Error("its folder is still there")
	}
}

// living lists the processes whose home is dir.
func living(t *testing.T, dir string) (pids []string) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil || len(all) == 0 {
		t.Skip("needs /proc")
	}
	for _, file := range all {
		env, err := os.ReadFile(file)
		if err == nil && strings.Contains("\x00"+string(env), "\x00HOME="+dir+"\x00") {
			pids = append(pids, filepath.Base(filepath.Dir(file)))
		}
	}
	return pids
}
