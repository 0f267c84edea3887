package torture

import (
	"math/rand/v2"
	"time"

	"github.com/Shopify/toxiproxy/v2/stream"
	"github.com/Shopify/toxiproxy/v2/toxics"
)

const gateType = "torture_gate"

// gate is what all that a connection sends in one direction passes: the one toxic of a
// proxy. Toxics that come and go would be toxiproxy's way, but there it waits for
// connections that stand still, as those of a stopped process do, and all others with it.
type gate struct {
	proxy   *Proxy
	replies bool // the server's direction
}

// GetBufferSize implements toxics.BufferedToxic.
func (*gate) GetBufferSize() int { return gateBuffer }

// Pipe implements toxics.Toxic.
func (g *gate) Pipe(stub *toxics.ToxicStub) {
	if g.pass(stub) {
		return
	}
	stub.Close()
	for chunk := range stub.Input { // until the connection has ended too
		if chunk == nil {
			return
		}
	}
}

// pass lets through what may, until the connection has to end: then it returns false.
func (g *gate) pass(stub *toxics.ToxicStub) (interrupted bool) {
	begun := g.proxy.now().resets
	dropped := false
	for {
		w := g.proxy.now()
		left := time.Until(w.swallowed)
		if w.resets != begun || dropped && left <= 0 {
			return false
		}
		var over <-chan time.Time
		if dropped {
			over = time.After(left)
		}
		select {
		case <-stub.Interrupt:
			return true
		case <-w.changed:
		case <-over:
		case chunk, open := <-stub.Input:
			switch {
			case !open || chunk == nil:
				return false
			case g.replies && time.Until(g.proxy.now().swallowed) > 0:
				dropped = true
			case !dropped && !g.send(stub, chunk, begun):
				return false
			}
		}
	}
}

// send passes a chunk on when its time has come. It returns false when the connection has
// to end.
func (g *gate) send(stub *toxics.ToxicStub, chunk *stream.StreamChunk, begun int) bool {
	jitter := rand.Float64()
	for {
		w := g.proxy.now()
		if w.resets != begun {
			return false
		}
		late := w.latency + time.Duration(jitter*float64(w.jitter))
		due := time.Until(chunk.Timestamp.Add(late))
		switch {
		case w.hole:
			<-w.changed
			continue
		case late > 0 && due > 0:
			wait(due, w.changed)
			continue
		}
		part := int64(len(chunk.Data))
		if w.rate > 0 {
			part = min(part, max(1, w.rate/bandwidthSlice))
			wait(time.Duration(part)*time.Second/time.Duration(w.rate), nil)
		}
		stub.Output <- &stream.StreamChunk{Data: chunk.Data[:part], Timestamp: chunk.Timestamp}
		if chunk.Data = chunk.Data[part:]; len(chunk.Data) == 0 {
			return true
		}
	}
}

// wait waits for d, or for less.
func wait(d time.Duration, less <-chan struct{}) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-less:
	}
}
