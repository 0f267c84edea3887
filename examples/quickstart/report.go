package main

import (
	"fmt"
	"io"
	"os"
	"sync/atomic"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// ledger is the outside world: it counts what was sent, and the effects on each
// order.
type ledger struct {
	published [orders]atomic.Bool
	effects   [orders]atomic.Int64
}

func newLedger() *ledger { return &ledger{} }

func (l *ledger) sent(n int)   { l.published[n].Store(true) }
func (l *ledger) effect(n int) { l.effects[n].Add(1) }

// counts is what became of the orders.
type counts struct {
	messages   int // orders that were published
	deliveries int // by the server, to any consumer
	effects    int
	doubled    int // effects beyond the first of each order
	lost       int // orders without effect
}

func (l *ledger) count(deliveries int) counts {
	c := counts{deliveries: deliveries}
	for n := range orders {
		if !l.published[n].Load() {
			continue
		}
		c.messages++
		e := int(l.effects[n].Load())
		c.effects += e
		c.doubled += max(e-1, 0)
		if e == 0 {
			c.lost++
		}
	}
	return c
}

func printTable(w io.Writer, table []counts) {
	fmt.Fprintf(w, "%-29s%10s%12s%9s%9s%6s\n", "", "messages", "deliveries", "effects", "doubled", "lost")
	for i, c := range table {
		fmt.Fprintf(w, "%-29s%10d%12d%9d%9d%6d\n", ways[i].name, c.messages, c.deliveries, c.effects, c.doubled, c.lost)
	}
}

// progress shows how many messages are settled, where the output is a terminal.
type progress struct {
	bar   *progressbar.ProgressBar // nil: no terminal
	total int
}

func newProgress(w io.Writer, what string, total int) *progress {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return &progress{}
	}
	return &progress{total: total, bar: progressbar.NewOptions(total,
		progressbar.OptionSetWriter(w), progressbar.OptionSetDescription(fmt.Sprintf("%-28s", what)),
		progressbar.OptionSetWidth(30), progressbar.OptionSetPredictTime(false), progressbar.OptionClearOnFinish())}
}

func (p *progress) left(n int) {
	if p.bar != nil {
		_ = p.bar.Set(max(p.total-n, 0))
	}
}

func (p *progress) end() {
	if p.bar != nil {
		_ = p.bar.Finish()
	}
}
