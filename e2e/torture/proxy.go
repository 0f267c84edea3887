package torture

import (
	"strings"
	"sync"
	"testing"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/Shopify/toxiproxy/v2/stream"
	"github.com/Shopify/toxiproxy/v2/toxics"
	"github.com/rs/zerolog"

	"github.com/idemq/idemq/internal/child"
)

const (
	// gateBuffer is how many reads of a connection, of up to 32 KiB each, are on their way
	// at a time: they are late side by side, not one after another.
	gateBuffer = 1024
	// bandwidthSlice is how much of a second is sent at a time.
	bandwidthSlice = 20
)

// Proxy stands between clients and a server and breaks what it is told to. Every
// connection that ends at it ends by a reset. What it is told holds for the connections
// that there are and for those that come. It is safe for concurrent use, and ends with its
// test.
type Proxy struct {
	tb    testing.TB
	proxy *toxiproxy.Proxy
	addr  string

	mu   sync.Mutex
	weak weakness
}

// weakness is what is wrong with the connections now.
type weakness struct {
	changed chan struct{} // closed when something else is
	resets  int

	hole            bool
	swallowed       time.Time // until then the server's answers are dropped
	latency, jitter time.Duration
	rate            int64 // bytes a second
}

// NewProxy listens on a free port and forwards to upstream.
func NewProxy(tb testing.TB, upstream string) *Proxy {
	tb.Helper()
	toxics.Register(gateType, new(gate))
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	p := &Proxy{tb: tb, proxy: toxiproxy.NewProxy(server, "torture", child.FreeAddr(tb), upstream)}
	p.weak.changed = make(chan struct{})
	for _, toxic := range []string{
		// It does nothing: where there is one, toxiproxy has connections end by a reset.
		`{"type": "reset_peer", "stream": "upstream", "toxicity": 0}`,
		`{"type": "` + gateType + `", "stream": "upstream"}`,
		`{"type": "` + gateType + `", "stream": "downstream"}`,
	} {
		w, err := p.proxy.Toxics.AddToxicJson(strings.NewReader(toxic))
		if err != nil {
			tb.Fatalf("a proxy's toxic %s: %v", toxic, err)
		}
		if g, ok := w.Toxic.(*gate); ok {
			g.proxy, g.replies = p, w.Direction == stream.Downstream
		}
	}
	if err := p.proxy.Start(); err != nil {
		tb.Fatalf("a proxy for %s: %v", upstream, err)
	}
	p.addr = p.proxy.Listen
	tb.Cleanup(func() {
		p.Clear()
		p.proxy.Stop()
	})
	return p
}

// Addr is where clients connect.
func (p *Proxy) Addr() string { return p.addr }

// SetUpstream resets all connections; those that come are forwarded to addr.
func (p *Proxy) SetUpstream(addr string) {
	p.tb.Helper()
	to := &toxiproxy.Proxy{Listen: p.addr, Upstream: addr, Enabled: true}
	if err := p.proxy.Update(to); err != nil {
		p.tb.Fatalf("a proxy at %s: %v", p.addr, err)
	}
}

func (p *Proxy) change(f func(w *weakness)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(&p.weak)
	close(p.weak.changed)
	p.weak.changed = make(chan struct{})
}

func (p *Proxy) now() weakness {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.weak
}

// Reset resets all connections: those on which somebody does not take what is sent to him,
// as soon as he does.
func (p *Proxy) Reset() { p.change(func(w *weakness) { w.resets++ }) }

// BlackHole keeps back all that is sent, either way, and lets it pass at the end. No
// connection ends, and new ones are accepted.
func (p *Proxy) BlackHole(on bool) { p.change(func(w *weakness) { w.hole = on }) }

// SwallowReplies drops what the server sends for so long, and then resets the connections
// on which something was dropped: the server has executed the requests, and the clients do
// not know.
func (p *Proxy) SwallowReplies(d time.Duration) {
	p.change(func(w *weakness) { w.swallowed = time.Now().Add(d) })
}

// Latency delays all that is sent, each way, by d and, at random, up to jitter more.
func (p *Proxy) Latency(d, jitter time.Duration) {
	p.change(func(w *weakness) { w.latency, w.jitter = d, jitter })
}

// Bandwidth limits each connection, each way, to so many kilobytes a second; zero is no
// limit.
func (p *Proxy) Bandwidth(kbps int64) { p.change(func(w *weakness) { w.rate = kbps * 1000 }) }

// Clear ends all that was told.
func (p *Proxy) Clear() {
	p.change(func(w *weakness) { *w = weakness{changed: w.changed, resets: w.resets} })
}
