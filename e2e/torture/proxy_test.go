package torture

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// echo is a server that answers each line with itself and a name, and counts them.
type echo struct {
	name  string
	addr  string
	lines atomic.Int32
}

func startEcho(t *testing.T, name string) *echo {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	e := &echo{name: name, addr: l.Addr().String()}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				for lines := bufio.NewScanner(conn); lines.Scan(); {
					e.lines.Add(1)
					if _, err := fmt.Fprintln(conn, lines.Text(), name); err != nil {
						return
					}
				}
			}()
		}
	}()
	return e
}

// line is a client of an echo.
type line struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Reader
}

func dialEcho(t *testing.T, p *Proxy) *line {
	t.Helper()
	conn, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &line{t, conn, bufio.NewReader(conn)}
}

func (l *line) send(text string) {
	l.t.Helper()
	if _, err := fmt.Fprintln(l.conn, text); err != nil {
		l.t.Fatal(err)
	}
}

// answer waits for so long.
func (l *line) answer(within time.Duration) (string, error) {
	_ = l.conn.SetReadDeadline(time.Now().Add(within))
	text, err := l.in.ReadString('\n')
	return strings.TrimSpace(text), err
}

const (
	soon = 20 * time.Second // for what comes
	long = 200 * time.Millisecond
)

func (l *line) want(text string) {
	l.t.Helper()
	if got, err := l.answer(soon); err != nil || got != text {
		l.t.Fatalf("%q, %v, want %q", got, err, text)
	}
}

func (l *line) wantSilence() {
	l.t.Helper()
	if got, err := l.answer(long); !errors.Is(err, os.ErrDeadlineExceeded) {
		l.t.Fatalf("%q, %v, want silence", got, err)
	}
}

func (l *line) wantReset() {
	l.t.Helper()
	if got, err := l.answer(soon); !errors.Is(err, syscall.ECONNRESET) {
		l.t.Fatalf("%q, %v, want a reset", got, err)
	}
}

// wantSwallowed sends until swallow takes an answer: a slow machine's comes when that is over.
func (l *line) wantSwallowed(e *echo, swallow func()) {
	l.t.Helper()
	for {
		before := e.lines.Load()
		swallow()
		l.send("swallowed")
		got, err := l.answer(soon)
		switch n := e.lines.Load() - before; {
		case n != 1:
			l.t.Fatalf("the server had %d lines, want the one whose answer was swallowed", n)
		case errors.Is(err, syscall.ECONNRESET):
			return
		case err != nil:
			l.t.Fatalf("%q, %v, want a reset", got, err)
		}
	}
}

func TestProxy(t *testing.T) {
	t.Parallel()
	e := startEcho(t, "one")
	p := NewProxy(t, e.addr)
	first := dialEcho(t, p)
	first.send("a")
	first.want("a one")

	p.BlackHole(true)
	second := dialEcho(t, p) // is accepted
	first.send("b")
	second.send("c")
	first.wantSilence()
	second.wantSilence()
	if n := e.lines.Load(); n != 1 {
		t.Errorf("%d lines came through a black hole", n-1)
	}
	p.BlackHole(false)
	first.want("b one")
	second.want("c one")

	idle := dialEcho(t, p)
	first.wantSwallowed(e, func() { p.SwallowReplies(long) })
	idle.send("e") // it had nothing to lose
	idle.want("e one")
	third := dialEcho(t, p)
	third.wantSwallowed(e, func() {
		p.SwallowReplies(time.Hour)
		time.AfterFunc(long, p.Clear)
	})

	p.Latency(100*time.Millisecond, 50*time.Millisecond)
	began := time.Now()
	for i := range 10 { // they are late side by side
		second.send(fmt.Sprint(i))
	}
	for i := range 10 {
		second.want(fmt.Sprint(i, " one"))
	}
	if d := time.Since(began); d < 200*time.Millisecond {
		t.Errorf("with 100 ms each way, ten lines and their answers took %v", d)
	}
	p.Clear()

	p.Bandwidth(100)
	began = time.Now()
	text := strings.Repeat("x", 20_000)
	second.send(text)
	second.want(text + " one")
	if d := time.Since(began); d < 350*time.Millisecond {
		t.Errorf("at 100 kB a second, 20 kB and their answer took %v", d)
	}
	p.Clear()

	second.send("g")
	second.want("g one")
	p.Reset()
	second.wantReset()
	idle.wantReset()

	other := startEcho(t, "other")
	fourth := dialEcho(t, p)
	fourth.send("h")
	fourth.want("h one")
	p.SetUpstream(other.addr)
	fourth.wantReset()
	fifth := dialEcho(t, p)
	fifth.send("i")
	fifth.want("i other")
}

// A fault is there at once, and so is its end, also where somebody does not read what was
// sent to it: as a process that is stopped does not.
func TestProxyWaitsForNobody(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.Copy(conn, zeros{})
			}()
		}
	}()
	p := NewProxy(t, l.Addr().String())
	for range 3 {
		_ = dialEcho(t, p) // reads nothing
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.BlackHole(true)
		p.BlackHole(false)
		p.SwallowReplies(time.Millisecond)
		p.Latency(time.Second, 0)
		p.Clear()
		p.Reset()
	}()
	select {
	case <-done:
	case <-time.After(soon):
		t.Fatal("a fault waits for connections that stand still")
	}
	late := dialEcho(t, p)
	if _, err := late.in.ReadByte(); err != nil {
		t.Errorf("a connection that is made then: %v", err)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}
