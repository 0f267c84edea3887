package redistest

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
)

// Proxy stands between a client and a Redis server and breaks what it is told
// to. It is safe for concurrent use and ends, goroutines included, with its test.
type Proxy struct {
	target   string
	listener net.Listener
	wg       sync.WaitGroup
	done     chan struct{}

	mu    sync.Mutex
	links map[*link]struct{}
	cut   bool
	gate  chan struct{} // closed while requests and replies pass
	armed []byte        // nil: not armed

	conns, requests atomic.Int64
	swallowed       chan struct{}
}

// NewProxy listens on a free port and forwards to target.
func NewProxy(tb testing.TB, target string) *Proxy {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	p := &Proxy{
		target: target, listener: l, done: make(chan struct{}), links: make(map[*link]struct{}),
		gate: make(chan struct{}), swallowed: make(chan struct{}, 1024),
	}
	close(p.gate)
	p.wg.Go(p.accept)
	tb.Cleanup(p.close)
	return p
}

// Addr is where clients connect.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// SwallowReply arms the proxy once. The next command whose bytes contain match,
// without regard to case, is executed by the server; its reply and all that
// follow it are dropped, and the client's connection is closed. An empty match
// fits any command but those with which clients open a connection (HELLO, AUTH, CLIENT, SELECT).
func (p *Proxy) SwallowReply(match string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.armed = bytes.ToLower([]byte(match))
	if p.armed == nil {
		p.armed = []byte{}
	}
}

// Swallowed receives once for each reply dropped by SwallowReply, when the server has
// executed the command.
func (p *Proxy) Swallowed() <-chan struct{} { return p.swallowed }

// Cut ends all connections, and each new one as soon as it is made.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = true
	for l := range p.links {
		l.close()
	}
}

// Restore ends a Cut.
func (p *Proxy) Restore() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = false
}

// Hold keeps back all requests and replies. Connections are accepted.
func (p *Proxy) Hold() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.gate:
		p.gate = make(chan struct{})
	default:
	}
}

// Unhold lets pass what Hold kept back, requests of clients that have given up included.
func (p *Proxy) Unhold() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.gate:
	default:
		close(p.gate)
	}
}

// Conns is how many connections were accepted, those under Cut included.
func (p *Proxy) Conns() int { return int(p.conns.Load()) }

// Requests is how many round trips were begun: what a client writes until
// something is answered counts once, however many commands it holds.
func (p *Proxy) Requests() int { return int(p.requests.Load()) }

func (p *Proxy) close() {
	close(p.done)
	_ = p.listener.Close()
	p.Cut()
	p.wg.Wait()
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.conns.Add(1)
		p.wg.Go(func() { p.serve(client) })
	}
}

func (p *Proxy) serve(client net.Conn) {
	l := &link{p: p, client: client}
	if !p.add(l) {
		l.close()
		return
	}
	defer p.remove(l)
	server, err := net.Dial("tcp", p.target)
	if err != nil {
		l.close()
		return
	}
	l.setServer(server)
	var wg sync.WaitGroup
	wg.Go(func() { l.forwardRequests(); l.close() })
	wg.Go(func() { l.forwardReplies(); l.close() })
	wg.Wait()
}

func (p *Proxy) add(l *link) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.cut {
		p.links[l] = struct{}{}
	}
	return !p.cut
}

func (p *Proxy) remove(l *link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.links, l)
}

// pass waits while the proxy holds. It is false when the proxy ends.
func (p *Proxy) pass() bool {
	p.mu.Lock()
	gate := p.gate
	p.mu.Unlock()
	select {
	case <-gate:
		return true
	case <-p.done:
		return false
	}
}

// fires tells whether command is the one whose reply is to be swallowed.
func (p *Proxy) fires(command []byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	lower := bytes.ToLower(command)
	if p.armed == nil || !bytes.Contains(lower, p.armed) || len(p.armed) == 0 && opensConnection(lower) {
		return false
	}
	p.armed = nil
	return true
}

// opensConnection tells whether a command, in lower case, is one of a client's first.
func opensConnection(command []byte) bool {
	_, rest, _ := bytes.Cut(command, []byte("\r\n$"))
	_, name, _ := bytes.Cut(rest, []byte("\r\n"))
	name, _, _ = bytes.Cut(name, []byte("\r\n"))
	switch string(name) {
	case "hello", "auth", "client", "select":
		return true
	}
	return false
}

// link is one client's connection and its counterpart to the server.
type link struct {
	p        *Proxy
	client   net.Conn
	awaiting atomic.Bool            // requested, and nothing answered since
	sentinel atomic.Pointer[[]byte] // set: drop all replies up to the one that holds it

	mu     sync.Mutex
	server net.Conn
	closed bool
}

func (l *link) setServer(c net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.server = c
	if l.closed {
		_ = c.Close()
	}
}

// close resets the client's connection, so that it learns at once.
func (l *link) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.closed = true
	if c, ok := l.client.(*net.TCPConn); ok {
		_ = c.SetLinger(0)
	}
	_ = l.client.Close()
	if l.server != nil {
		_ = l.server.Close()
	}
}

// counter notes a round trip when the first bytes of a request arrive.
type counter struct{ l *link }

func (c counter) Read(b []byte) (int, error) {
	n, err := c.l.client.Read(b)
	if n > 0 && !c.l.awaiting.Swap(true) {
		c.l.p.requests.Add(1)
	}
	return n, err
}

// forwardRequests passes the client's commands on, as many at a time as have
// arrived. Behind the one that fires it sends an ECHO: when that is answered, the
// command has been executed.
func (l *link) forwardRequests() {
	in := bufio.NewReaderSize(counter{l}, 64<<10)
	out := bufio.NewWriterSize(l.server, 64<<10)
	for n := 0; ; n++ {
		command, err := readCommand(in)
		if err != nil || !l.p.pass() {
			return
		}
		var echo []byte
		if l.p.fires(command) {
			word := fmt.Appendf(nil, "swallowed-%p-%d", l, n)
			l.sentinel.Store(&word)
			echo = fmt.Appendf(nil, "*2\r\n$4\r\nECHO\r\n$%d\r\n%s\r\n", len(word), word)
		}
		_, _ = out.Write(command)
		_, _ = out.Write(echo)
		if in.Buffered() == 0 || echo != nil {
			if out.Flush() != nil {
				return
			}
		}
	}
}

func (l *link) forwardReplies() {
	buf := make([]byte, 64<<10)
	var dropped []byte
	for {
		n, err := l.server.Read(buf)
		if err != nil || !l.p.pass() {
			return
		}
		if word := l.sentinel.Load(); word != nil {
			dropped = append(dropped, buf[:n]...)
			if bytes.Contains(dropped, *word) {
				select {
				case l.p.swallowed <- struct{}{}:
				default:
				}
				return
			}
			continue
		}
		l.awaiting.Store(false)
		if _, err := l.client.Write(buf[:n]); err != nil {
			return
		}
	}
}

// readCommand reads one command as it stands: an array of bulk strings, or an
// inline line.
func readCommand(in *bufio.Reader) ([]byte, error) {
	raw, err := in.ReadBytes('\n')
	if err != nil || raw[0] != '*' {
		return raw, err
	}
	items, err := length(raw)
	if err != nil {
		return nil, err
	}
	for range items {
		head, err := in.ReadBytes('\n')
		if err != nil {
			return nil, err
		}
		size, err := length(head)
		if err != nil {
			return nil, err
		}
		raw = append(raw, head...)
		at := len(raw)
		raw = append(raw, make([]byte, size+2)...)
		if _, err := io.ReadFull(in, raw[at:]); err != nil {
			return nil, err
		}
	}
	return raw, nil
}

// length is the number in "*3\r\n" or "$12\r\n".
func length(head []byte) (int, error) {
	n, err := strconv.Atoi(string(bytes.TrimSpace(head[1:])))
	if err != nil || n < 0 {
		return 0, fmt.Errorf("not a request: %q", head)
	}
	return n, nil
}
