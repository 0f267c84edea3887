package consumers_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/memstore"
	"github.com/idemq/idemq/internal/storefault"
)

// Three processes of three lanes each handle 600 messages for ten minutes in which the
// store goes away, loses replies, hangs and comes late, lanes are lost and consumers are
// stopped; then all is calm. Whatever happened: every message is settled, none is
// started that is known to be done or dead, no token runs twice at a time in one guard,
// and nothing is settled twice.
func TestChaos(t *testing.T) {
	for seed := range uint64(18) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { newChaos(t, seed).run() })
		})
	}
}

type chaos struct {
	t       *testing.T
	workers int
	batches bool // the handler takes several messages at a time
	records *memstore.Store
	calm    chan struct{}

	mu      sync.Mutex
	rnd     *rand.Rand
	all     []*strayMessage
	ready   []*strayMessage
	running map[string]int // by guard and token
}

type strayMessage struct {
	message
	done bool
}

func newChaos(t *testing.T, seed uint64) *chaos {
	c := &chaos{
		t: t, workers: 1 + int(seed%3), batches: seed >= 12, records: memstore.New(), calm: make(chan struct{}),
		rnd: rand.New(rand.NewPCG(seed, 1)), running: map[string]int{},
	}
	for i := range 600 {
		token := fmt.Sprint("token-", i)
		if seed%2 == 1 && i%4 == 3 {
			token = fmt.Sprint("token-", i-1-c.rnd.IntN(3)) // published twice
		}
		c.all = append(c.all, &strayMessage{message: message{id: i, headers: map[string][]string{idem.Header: {token}}}})
	}
	c.ready = slices.Clone(c.all)
	return c
}

func (c *chaos) run() {
	ctx, cancel := context.WithCancel(context.Background())
	var processes sync.WaitGroup
	for i := range 3 {
		processes.Go(func() { c.process(ctx, i) })
	}
	time.Sleep(10 * time.Minute)
	close(c.calm)
	time.Sleep(10 * time.Minute)
	cancel()
	processes.Wait()
	time.Sleep(time.Minute)
	left := 0
	for _, m := range c.all {
		if !m.done {
			left++
		}
	}
	if left > 0 {
		c.t.Errorf("%d of %d messages are not settled", left, len(c.all))
	}
}

func (c *chaos) isCalm() bool {
	select {
	case <-c.calm:
		return true
	default:
		return false
	}
}

func (c *chaos) random(n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rnd.IntN(n)
}

// process runs one consumer after another, on one guard: it is stopped now and then.
func (c *chaos) process(ctx context.Context, i int) {
	faulty := storefault.New(c.records)
	faulty.Delay(20 * time.Millisecond)
	faulty.On(func(*store.Batch) storefault.Fault {
		switch k := c.random(40); {
		case c.isCalm():
		case int(time.Now().Unix()/25)%5 == i: // an outage longer than the lease
			return []storefault.Fault{storefault.Away, storefault.Swallow}[k%2]
		case k < 2:
			return storefault.Away
		case k < 4:
			return storefault.Swallow
		case k == 4:
			return storefault.Late
		case k == 5:
			return storefault.Hang
		}
		return storefault.None
	})
	guard := idem.New(idem.WithStore(faulty), idem.WithLease(lease)).Group("billing")
	policy, err := consumers.Configure(&struct{}{}, []consumers.Option{
		consumers.Budget(4), consumers.Backoff(100*time.Millisecond, 2*time.Second), consumers.DrainTimeout(5 * time.Second),
	})
	for ctx.Err() == nil && err == nil {
		var e *consumers.Engine
		shape := consumers.Broker{DeadLetters: true, Workers: c.workers, MaxHeld: 40}
		if c.batches {
			shape.HandleAll, shape.MaxBatch = handleStrays, 8
		}
		if e, err = consumers.New(guard, shape, policy); err != nil {
			break
		}
		life, stop := context.WithCancel(ctx)
		if !c.isCalm() {
			life, stop = context.WithTimeout(ctx, time.Duration(10+c.random(60))*time.Second)
		}
		err = e.Run(life, func(ctx context.Context) error { return c.fetch(ctx, e, i) })
		stop()
	}
	if err != nil {
		c.t.Error(err)
	}
}

// fetch feeds three lanes, any of which may be lost: what it held goes to others.
func (c *chaos) fetch(ctx context.Context, e *consumers.Engine, process int) error {
	type lane struct {
		*consumers.Lane
		ctx  context.Context
		lose context.CancelFunc
		held []*strayDelivery
	}
	newLane := func() *lane {
		ours, lose := context.WithCancel(context.Background())
		return &lane{Lane: e.Lane(ours), ctx: ours, lose: lose}
	}
	lanes := []*lane{newLane(), newLane(), newLane()}
	for {
		n, err := e.Room(ctx)
		if err != nil {
			return err
		}
		c.mu.Lock()
		n = min(n, len(c.ready), 5)
		batch := slices.Clone(c.ready[:n])
		c.ready = slices.Delete(c.ready, 0, n)
		c.mu.Unlock()
		i := c.random(len(lanes))
		l := lanes[i]
		for _, m := range batch {
			d := &strayDelivery{strayMessage: m, c: c, process: process, ours: l.ctx}
			l.held = append(l.held, d)
			l.Add(d)
		}
		if !c.isCalm() && c.random(15) == 0 {
			l.lose()
			l.Wait()
			for _, d := range l.held {
				d.toOthers()
			}
			lanes[i] = newLane()
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// strayDelivery implements consumers.Delivery.
type strayDelivery struct {
	*strayMessage
	c       *chaos
	process int
	ours    context.Context
	settled bool
}

// toOthers makes the message ready again, if this delivery did not settle it.
func (d *strayDelivery) toOthers() {
	d.c.mu.Lock()
	defer d.c.mu.Unlock()
	if !d.settled {
		d.c.ready = append(d.c.ready, d.strayMessage)
	}
}

func (d *strayDelivery) settle(done bool) error {
	d.c.mu.Lock()
	defer d.c.mu.Unlock()
	if d.settled {
		d.c.t.Errorf("%s was settled twice by one delivery", d)
	}
	if d.ours.Err() != nil {
		return errors.New("not ours any more")
	}
	d.settled = true
	if d.done = done; !done {
		d.c.ready = append(d.c.ready, d.strayMessage)
	}
	return nil
}

func (d *strayDelivery) Ack(context.Context) error { return d.settle(true) }

func (d *strayDelivery) Terminate(context.Context) error { return d.settle(true) }

func (d *strayDelivery) Redeliver(context.Context, time.Duration) error     { return d.settle(false) }
func (d *strayDelivery) DeadLetter(context.Context, consumers.Letter) error { return nil }
func (d *strayDelivery) Extend(context.Context) error                       { return nil }

// handleStrays handles the messages of a batch side by side.
func handleStrays(ctx context.Context, all []consumers.Delivery) []error {
	claims, _ := idem.ClaimsFromContext(ctx)
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, d := range all {
		wg.Go(func() { errs[i] = d.Handle(claims[i].Context()) })
	}
	wg.Wait()
	return errs
}

func (d *strayDelivery) Handle(ctx context.Context) error {
	claim, _ := idem.FromContext(ctx)
	token := claim.Token()
	look := &store.Batch{Prefix: idem.DefaultPrefix, Ops: []store.Op{{Kind: store.Inspect, Group: "billing", Token: token}}}
	if err := d.c.records.Apply(context.Background(), look); err != nil {
		d.c.t.Error(err)
	}
	if s := look.Replies[0].Record.State; s == store.Done || s == store.Dead {
		d.c.t.Errorf("%s was started though it is %v", token, s)
	}
	run := fmt.Sprint(d.process, token)
	d.c.mu.Lock()
	d.c.running[run]++
	if d.c.running[run] > 1 {
		d.c.t.Errorf("%s runs twice at a time in process %d", token, d.process)
	}
	d.c.mu.Unlock()
	defer func() {
		d.c.mu.Lock()
		defer d.c.mu.Unlock()
		d.c.running[run]--
	}()
	work := time.Duration(d.c.random(2000)) * time.Millisecond
	if d.c.random(20) == 0 {
		work *= 15 // longer than a lease
	}
	heeds, fate := d.c.random(2) == 0, d.c.random(100)
	select {
	case <-time.After(work):
	case <-ctx.Done():
		if heeds {
			return ctx.Err()
		}
	}
	switch {
	case fate < 10:
		return errBoom
	case fate < 13:
		return idem.RetryAfter(errBoom, time.Second)
	case fate < 15:
		return idem.Permanent(errBoom)
	}
	return nil
}
