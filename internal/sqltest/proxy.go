package sqltest

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"regexp"
	"sync"
	"testing"
)

// Where [Proxy.CutNextCommit] cuts.
const (
	CutBefore Cut = iota + 1 // the server never sees the COMMIT
	CutAfter                 // the server has executed and answered the COMMIT, the client never hears
)

// Cut is a side of a COMMIT.
type Cut int

// Proxy stands between clients and a server and breaks what it is told to. It understands
// clients that do not encrypt and that await each answer, as those of database/sql do. It
// is safe for concurrent use and ends, goroutines included, with its test.
type Proxy struct {
	server   *Server
	listener net.Listener
	wg       sync.WaitGroup
	done     chan struct{}
	cuts     chan struct{}

	mu     sync.Mutex
	links  map[*link]struct{}
	refuse bool
	gate   chan struct{} // closed while bytes pass
	armed  Cut
	marker []byte
}

// StartProxy listens on a free port in front of a server.
func StartProxy(tb testing.TB, s *Server) *Proxy {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	p := &Proxy{
		server: s, listener: l, done: make(chan struct{}), cuts: make(chan struct{}, 1024),
		links: make(map[*link]struct{}), gate: make(chan struct{}),
	}
	close(p.gate)
	p.wg.Go(p.accept)
	tb.Cleanup(p.close)
	return p
}

// Addr is where clients connect.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// DSN is [Server.DSN] by way of the proxy.
func (p *Proxy) DSN() string { return p.server.DSNAt(p.Addr()) }

// CutNextCommit arms the proxy once, in place of what it was armed with before. The next
// COMMIT that is sent as a statement of its own, by a connection that has sent marker
// since its last BEGIN or START TRANSACTION, is not forwarded (CutBefore), or its answer
// is dropped (CutAfter); then both sides are closed. An empty marker fits every COMMIT.
//
// A marker is found where it is sent as it is: in the text of a statement, or in an
// argument of text or bytes, but not in the text of one that was prepared before.
func (p *Proxy) CutNextCommit(how Cut, marker string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.armed, p.marker = how, []byte(marker)
}

// Cuts receives once for each COMMIT that was cut, before the client hears of it: when the
// COMMIT has arrived (CutBefore; the server rolls back a moment later, when it misses the
// connection), or when the server has answered it (CutAfter).
func (p *Proxy) Cuts() <-chan struct{} { return p.cuts }

// Cut resets all connections, and each new one as soon as it is made.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuse = true
	for l := range p.links {
		l.close()
	}
}

// Restore ends a Cut.
func (p *Proxy) Restore() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuse = false
}

// Hold keeps back all that is sent, either way. Connections are accepted.
func (p *Proxy) Hold() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.gate:
		p.gate = make(chan struct{})
	default:
	}
}

// Release lets pass what Hold kept back, statements of clients that have given up included.
func (p *Proxy) Release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.gate:
	default:
		close(p.gate)
	}
}

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
		p.wg.Go(func() { p.serve(client) })
	}
}

func (p *Proxy) serve(client net.Conn) {
	l := &link{p: p, client: client, wire: p.server.engine.wire()}
	defer l.close()
	if !p.add(l) {
		return
	}
	defer p.remove(l)
	server, err := net.Dial("tcp", p.server.Addr())
	if err != nil {
		return
	}
	l.setServer(server)
	var wg sync.WaitGroup
	wg.Go(func() {
		if l.forwardStatements() {
			l.close()
		}
	})
	wg.Go(func() { l.forwardAnswers(); l.close() })
	wg.Wait()
}

func (p *Proxy) add(l *link) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.refuse {
		p.links[l] = struct{}{}
	}
	return !p.refuse
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

// fires says how to cut the COMMIT of a transaction that sent these bytes; zero: not at all.
func (p *Proxy) fires(transaction []byte) Cut {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !bytes.Contains(transaction, p.marker) {
		return 0
	}
	how := p.armed
	p.armed = 0
	return how
}

func (p *Proxy) noteCut() {
	select {
	case p.cuts <- struct{}{}:
	default:
	}
}

// wire is one of the two protocols.
type wire interface {
	// request reads one message of the client's, and the statement that it is, if it is one.
	request(in *bufio.Reader) (raw, statement []byte, err error)
	// answered reads the rest of an answer.
	answered(in *bufio.Reader) error
}

// link is one client's connection and its counterpart to the server.
type link struct {
	p      *Proxy
	client net.Conn
	wire   wire

	mu        sync.Mutex
	server    net.Conn
	closed    bool
	swallowed bool // no more answers for the client
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
	if l.server != nil {
		_ = l.server.Close()
	}
	if c, ok := l.client.(*net.TCPConn); ok {
		_ = c.SetLinger(0)
	}
	_ = l.client.Close()
}

// drop has the answers swallowed from now on.
func (l *link) drop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.swallowed = true
}

func (l *link) drops() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.swallowed
}

// forwardStatements passes on what the client sends, as many messages at a time as have
// arrived. It is false when the answer to the last of them ends the connection.
func (l *link) forwardStatements() bool {
	in := bufio.NewReaderSize(l.client, 64<<10)
	out := bufio.NewWriterSize(l.server, 64<<10)
	var sent transaction
	for {
		raw, statement, err := l.wire.request(in)
		if err != nil || !l.p.pass() {
			return true
		}
		var how Cut
		if sent.ends(statement) {
			how = l.p.fires(sent.bytes)
		}
		sent.add(raw, statement)
		switch how {
		case CutBefore:
			l.p.noteCut()
			return true
		case CutAfter:
			l.drop()
		}
		_, _ = out.Write(raw)
		if how == CutAfter || in.Buffered() == 0 {
			if out.Flush() != nil {
				return true
			}
		}
		if how == CutAfter {
			return false
		}
	}
}

func (l *link) forwardAnswers() {
	in := bufio.NewReaderSize(l.server, 64<<10)
	for {
		_, err := in.Peek(1)
		if l.drops() {
			if err == nil && l.wire.answered(in) == nil {
				l.p.noteCut()
			}
			return
		}
		if err != nil || !l.p.pass() {
			return
		}
		if _, err := io.CopyN(l.client, in, int64(in.Buffered())); err != nil {
			return
		}
	}
}

// transaction is what a connection has sent since its last BEGIN.
type transaction struct {
	open  bool
	bytes []byte
}

var (
	begins  = regexp.MustCompile(`(?i)^\s*(begin|start\s+transaction)\b`)
	commits = regexp.MustCompile(`(?i)^\s*commit\b`)
	aborts  = regexp.MustCompile(`(?i)^\s*rollback[\s;]*$`) // and not to a savepoint
)

func (*transaction) ends(statement []byte) bool { return commits.Match(statement) }

func (t *transaction) add(raw, statement []byte) {
	switch {
	case begins.Match(statement):
		t.open, t.bytes = true, nil
	case commits.Match(statement), aborts.Match(statement):
		t.open, t.bytes = false, nil
	}
	if t.open {
		t.bytes = append(t.bytes, raw...)
	}
}
