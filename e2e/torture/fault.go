package torture

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/idemq/idemq/e2e/checker"
	"github.com/idemq/idemq/e2e/history"
	"github.com/idemq/idemq/e2e/torture/role"
)

// Site is where a round happens.
type Site struct {
	Broker Broker
	Store  Store
}

// String names it as the flag for sites does.
func (s Site) String() string { return s.Broker.Kind() + "/" + s.Store.Kind() }

// offer is what can be done to the site.
func (s Site) offer() Offer {
	_, forgets := s.Store.(Forgetter)
	_, fills := s.Store.(Filler)
	o := Offer{StoreProxy: s.Store.Proxy() != nil, Forgets: forgets, Fills: fills}
	if s.Broker.Kind() == "amqp-quorum" {
		o.RestartAfter = quorumSettles
	}
	return o
}

// quorumSettles is how long a quorum queue is left alone at first: of one that was
// declared less than a few seconds before its only node was killed, RabbitMQ 3.10 finds no
// leader any more, and nothing can be said about it.
const quorumSettles = 5 * time.Second

// faults carries out a schedule.
type faults struct {
	site   Site
	fleet  *fleet
	record func(history.Event)

	broker sync.Mutex // held by whoever calls the broker's methods, but for Publish
	store  sync.Mutex // likewise

	mu     sync.Mutex
	done   map[Kind]int
	forgot []checker.Forgot
}

// carryOut does one fault, and returns when it is over. The end of ctx ends what lasts, but
// for a pause. One that was cut short is not counted.
func (f *faults) carryOut(ctx context.Context, fault Fault) {
	if !f.happen(ctx, fault) {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.done[fault.Kind]++
}

// happen reports whether a fault came about, and lasted as long as it should.
func (f *faults) happen(ctx context.Context, fault Fault) (lasted bool) {
	slot := f.fleet.slots[fault.Slot]
	switch fault.Kind { // these record what they did to which process
	case Kill:
		return f.fleet.kill(ctx, slot, fault.For)
	case Pause:
		return f.fleet.pause(ctx, slot, fault.For)
	case Deploy:
		return f.fleet.deploy(ctx, fault.For)
	case Rebalance:
		return f.fleet.join(ctx, fault.For)
	}
	e := history.Event{Kind: history.Fault, Op: uint8(fault.Kind), At: history.Now()}
	lasted = true
	switch fault.Kind {
	case Slow:
		e.Process = slot.command(role.Slow, fault.Amount)
		lasted = pass(ctx, fault.For) && e.Process != 0
		slot.command(role.Slow, 0)
	case Clock:
		e.Process = slot.command(role.Clock, fault.Amount)
		lasted = e.Process != 0
	case BrokerRestart:
		f.restartBroker()
	case StoreRestart, StoreEmpty, StoreFailover, StoreFull:
		lasted = f.hitStore(ctx, fault)
	case BrokerReset, BrokerBlackHole, BrokerSwallow, BrokerLatency, BrokerBandwidth:
		lasted = hitProxy(ctx, f.site.Broker.Proxy(), fault)
	default:
		lasted = hitProxy(ctx, f.site.Store.Proxy(), fault)
	}
	e.Until = history.Now()
	f.record(e)
	return lasted
}

// restartBroker leaves the broker to others even where the test ends in it, as one does
// whose server does not come back.
func (f *faults) restartBroker() {
	f.broker.Lock()
	defer f.broker.Unlock()
	f.site.Broker.Restart()
}

func (f *faults) hitStore(ctx context.Context, fault Fault) (lasted bool) {
	f.store.Lock()
	defer f.store.Unlock()
	began := history.Now()
	forgets, _ := f.site.Store.(Forgetter)
	switch fault.Kind {
	case StoreRestart:
		f.site.Store.Restart()
	case StoreEmpty:
		forgets.RestartEmpty()
		f.forget(0, began)
	case StoreFailover:
		f.forget(forgets.FailOver(), began)
	case StoreFull:
		filler := f.site.Store.(Filler)
		filler.Fill()
		defer filler.Empty()
		return pass(ctx, fault.For)
	}
	return true
}

// forget notes that what the store had acknowledged since then may be gone: it went at
// some time between began and now.
func (f *faults) forget(since, began int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.forgot = append(f.forgot, checker.Forgot{Since: since, At: began, Until: history.Now()})
}

// hitProxy does to the connections to a server what the kinds for brokers and stores have
// in common.
func hitProxy(ctx context.Context, p *Proxy, fault Fault) (lasted bool) {
	switch fault.Kind {
	case BrokerReset, StoreReset:
		p.Reset()
	case BrokerBlackHole, StoreBlackHole:
		p.BlackHole(true)
		defer p.BlackHole(false)
		return pass(ctx, fault.For)
	case BrokerSwallow, StoreSwallow:
		p.SwallowReplies(fault.For)
	case BrokerLatency, StoreLatency:
		p.Latency(fault.Amount, fault.Amount/2)
		defer p.Clear()
		return pass(ctx, fault.For)
	case BrokerBandwidth, StoreBandwidth:
		p.Bandwidth(fault.Rate)
		defer p.Clear()
		return pass(ctx, fault.For)
	default:
		panic(fmt.Sprintf("%s is no fault of a connection", fault.Kind))
	}
	return true
}

// run carries out a schedule, and returns when ctx has ended and everything is well
// again. It calls giveUp when that cannot be.
func (f *faults) run(ctx context.Context, plan []Fault, giveUp context.CancelCauseFunc) {
	began := time.Now()
	var wg sync.WaitGroup
	for _, fault := range plan {
		pass(ctx, fault.At-time.Since(began))
		if ctx.Err() != nil {
			break
		}
		wg.Go(func() {
			over := false
			defer func() {
				if !over { // the test has failed, which ends this goroutine only
					giveUp(fmt.Errorf("%s: the server did not do what it was told", fault))
				}
			}()
			f.carryOut(ctx, fault)
			over = true
		})
	}
	<-ctx.Done()
	wg.Wait()
	f.site.Broker.Proxy().Clear()
	if p := f.site.Store.Proxy(); p != nil {
		p.Clear()
	}
}
