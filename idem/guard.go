package idem

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"runtime"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/idemq/idemq/idem/store"
)

// Guard gives out claims on tokens, for one consumer group. It is safe for
// concurrent use, and needs no closing: it has no goroutine while no claim is held and no
// call is under way, and its last timer runs out within a lease.
type Guard struct {
	core  *core
	group string
}

// Idempotent is the name that Guard had in the component that this library
// descends from.
type Idempotent = Guard

// New makes a guard without a group. It dials nothing and reads no configuration
// but its options; what is wrong with them is reported by Err, and by every call.
// A guard without a store can be made, and answers ErrRedisNotEnabled.
func New(opts ...Option) *Guard {
	o, err := newOptions(opts)
	c := &core{opts: o, err: err}
	c.batcher.core, c.batcher.yield = c, runtime.Gosched
	c.leases.core = c
	c.incarnation.turn = make(chan struct{}, 1)
	c.trip = bound{least: c.tripTimeout() * 15 / 16, most: c.tripTimeout()}
	c.ending = bound{least: o.lease * 15 / 16, most: o.lease}
	c.quick = bound{least: c.quickTimeout() / 2, most: c.quickTimeout()}
	s, may := o.store.(store.Bounded)
	c.bounded = may && s.Bounded()
	_, c.transacts = o.store.(store.Transactor)
	var random [13]byte
	_, _ = rand.Read(random[:]) // does not fail since Go 1.24
	c.nonce = base64.RawURLEncoding.EncodeToString(random[:9])
	c.counter.Store(1_000_000 + uint64(binary.BigEndian.Uint32(random[9:]))%1_000_000)
	c.runs = make(map[run]struct{})
	c.near = newNearCache(o)
	return &Guard{core: c}
}

// Group returns the same guard for one consumer group. Each group handles each
// message once. The groups of one guard share its trips to the store, its renewals
// and its options. Any bytes; an empty name is no group.
func (g *Guard) Group(name string) *Guard {
	return &Guard{core: g.core, group: name}
}

// Err reports everything that is wrong with the options, or nil. It asks no
// store.
func (g *Guard) Err() error { return g.core.err }

// Settings is what a guard was made with.
type Settings struct {
	Prefix     string
	Group      string
	Lease      time.Duration
	Retention  time.Duration
	Expire     time.Duration
	Instance   string
	IssuedOnly bool
	Store      store.Store // nil: none
}

// Settings returns what the guard was made with.
func (g *Guard) Settings() Settings {
	o := g.core.opts
	return Settings{
		Prefix: o.prefix, Group: g.group, Lease: o.lease, Retention: o.retention,
		Expire: o.checkWithin(), Instance: o.instance, IssuedOnly: o.issuedOnly, Store: o.store,
	}
}

// Emit tells the guard's observers of an event in its group. It is for consumers.
func (g *Guard) Emit(e Event) {
	if len(g.core.opts.observers) > 0 {
		e.Group = g.group
		g.core.opts.observers.emit(e)
	}
}

// Verify asks the store whether it can be used, for readiness probes. What weakens
// the promise without preventing work is Preflight's.
func (g *Guard) Verify(ctx context.Context) error {
	_, err := g.Preflight(ctx)
	return err
}

// Finding is something that weakens the promise without preventing work: what was
// found, what can come of it, and what to do about it.
type Finding = store.Finding

// Preflight asks the store, and returns what in its servers and their settings
// weakens the promise: one that may forget, say. The error is what prevents work.
// Consumers do this when they start, ask their broker as well, and log what they find.
func (g *Guard) Preflight(ctx context.Context) ([]Finding, error) {
	if err := g.core.ready(); err != nil {
		return nil, err
	}
	found, err := g.core.opts.store.Verify(ctx, g.core.opts.prefix)
	if err != nil {
		return found, fmt.Errorf("idem: preflight: %w", err)
	}
	return found, nil
}

func (o *Options) checkWithin() time.Duration { return time.Duration(o.expire) * time.Minute }

// core is what the groups of a guard share.
type core struct {
	opts      *Options
	err       error
	nonce     string // of this guard; claim ids start with it
	counter   atomic.Uint64
	batcher   batcher
	leases    leases
	trip      bound      // of one trip
	ending    bound      // one lease: how long the end of a claim is tried
	quick     bound      // of a trip that a caller makes itself
	bounded   bool       // a trip ends in its time, whatever becomes of the store
	transacts bool       // handlers have transactions of the store's
	near      *nearCache // nil: none

	incarnation incarnation

	dataLoss atomic.Bool // new claims are refused

	mu   sync.Mutex
	runs map[run]struct{} // tokens that are asked for, held, or still being handled here

	answered bool // the store has
	losses   int  // of the store, that are known
}

// run is the identity of a record within the prefix.
type run struct{ group, token string }

// ready returns what prevents any operation.
func (c *core) ready() error {
	if c.err != nil {
		return c.err
	}
	if c.opts.store == nil {
		return ErrRedisNotEnabled
	}
	return nil
}

// claimable returns what prevents a new claim.
func (c *core) claimable() error {
	if err := c.ready(); err != nil {
		return err
	}
	if c.dataLoss.Load() {
		return ErrDataLoss
	}
	return nil
}

// noticed takes in what a store says that it lost, and returns what to tell, if that is
// new. Where it is known, what has to come of it is done. What was lost before this guard asked
// for anything is not its loss.
func (c *core) noticed(b *store.Batch) (Event, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fresh := b.Losses == 0 || c.answered && b.Losses > c.losses
	c.answered, c.losses = true, max(c.losses, b.Losses)
	if b.Notice == "" || !fresh {
		return Event{}, false
	}
	c.near.empty()
	if c.opts.haltOnLoss {
		c.dataLoss.Store(true)
	}
	return Event{Kind: EventStoreNotice, Text: b.Notice}, true
}

// claimID makes an id that was never used before: 72 random bits of the guard, and
// a count of seven digits or more. Drivers may tell claims of a done token apart by the last
// six, so the count begins anywhere.
func (c *core) claimID() string {
	return c.nonce + strconv.FormatUint(c.counter.Add(1), 10)
}

// enter reserves a token in this process, until leave. Only one holder at a time:
// a token is never started while its earlier run has not returned.
func (c *core) enter(r run) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := len(c.runs)
	c.runs[r] = struct{}{}
	return len(c.runs) > before
}

func (c *core) leave(r run) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.runs, r)
}

// tripTimeout bounds one trip: a connection that hangs must leave time for another
// try within the lease.
func (c *core) tripTimeout() time.Duration { return max(c.opts.lease/3, 250*time.Millisecond) }

// quickTimeout is for how long a caller whose context ends may be held up.
func (c *core) quickTimeout() time.Duration { return min(c.opts.lease/10, 100*time.Millisecond) }

// apply makes one trip. A panic of the driver, or of a hook in its client, is a failure of the
// trip: whoever waits for the answers is not the one it panics on.
func (c *core) apply(ctx context.Context, b *store.Batch) (err error) {
	o := c.opts
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the driver %T panicked: %v\n%s", o.store, r, debug.Stack())
		}
	}()
	c.terms(b)
	if o.instance != "" {
		n, err := c.incarnation.draw(ctx, o)
		switch {
		case err != nil:
			return err
		case n != 0:
			b.Owner, b.Incarnation = o.instance, n
		}
	}
	if err := o.store.Apply(ctx, b); err != nil {
		return err
	}
	if len(b.Replies) != len(b.Ops) {
		return fmt.Errorf("the driver %T gave %d replies to %d operations", o.store, len(b.Replies), len(b.Ops))
	}
	return nil
}

// senseless is the error for an answer that no operation of its kind has.
func (c *core) senseless(r store.Reply) error {
	return fmt.Errorf("the driver %T gave an answer that makes no sense: status %d", c.opts.store, r.Status)
}

// terms fills in what all batches have in common.
func (c *core) terms(b *store.Batch) {
	o := c.opts
	b.Prefix, b.Lease, b.Retention = o.prefix, o.lease, o.retention
	b.CheckWithin, b.IssuedOnly = o.checkWithin(), o.issuedOnly
}
