package idem

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/idemq/idemq/idem/store"
)

// Claim is the right to handle one token now. Its methods are safe for concurrent
// use.
type Claim struct {
	*claim
	borrowed bool // a handler's: whoever began the claim ends it
}

type claim struct {
	guard   *Guard
	id      string
	token   string
	attempt int
	spent   int
	redrive int
	at      time.Time
	oneTrip bool // made by Spend: nothing to renew, commit or release
	patient bool

	renewal renewal // guarded by the leases' mutex

	mu sync.Mutex // guards what follows

	// A claim is held, then ending while Commit, Release, Bury or CommitWith is under way, then
	// held again, or ended. What a handler's CommitWith has committed is held until the handler
	// returns. What was abandoned ends with what is under way, whatever comes of that.
	ending, ended, committed, abandoned bool

	lost     bool
	entered  bool      // holds the token in this guard
	failed   time.Time // when what was to end it failed last
	deadline time.Time // of the lease, on this process's clock
	result   []byte
	derived  map[string]any

	parent      context.Context
	handling    context.Context // that the handler is given
	lazy        handlerContext  // which is this, or made of it
	ctx         context.Context // what it is made of; nil: it was not asked for yet
	cancel      context.CancelCauseFunc
	cancelBatch context.CancelCauseFunc // of the context that it shares with others; see StartAll
	stopAfter   func() bool

	tx       store.Tx                                  // the handler's transaction, where the store has any
	commitFn func(context.Context, *store.Batch) error // see committer
}

func (g *Guard) newClaim(ctx context.Context, answered *call) *Claim {
	r := answered.reply
	made := &struct {
		handle Claim
		state  claim
	}{state: claim{
		guard: g, id: answered.op.Claim, token: answered.op.Token,
		attempt: r.Attempt, spent: r.Spent, redrive: r.Redrive, at: answered.now,
		oneTrip: answered.op.Kind == store.Spend, patient: answered.patient,
		deadline: answered.sent.Add(g.core.opts.lease), parent: ctx,
		entered: answered.op.Kind != store.Spend,
	}}
	c := &made.handle
	c.claim = &made.state
	if c.oneTrip {
		g.core.leave(g.run(c.token)) // it is done: a repeat is a duplicate
	} else {
		g.core.leases.add(c.claim)
	}
	return c
}

// Token returns the claimed token, without its signature: the same for a message whatever
// key it was signed with.
func (c *Claim) Token() string { return c.token }

// Attempt counts the starts for this token in this group, this one included,
// crashes included. It never goes down within the retention.
func (c *Claim) Attempt() int { return c.attempt }

// Spent returns how many of the earlier attempts count against a budget: handlers
// that failed, and claims that ended by their lease running out.
func (c *Claim) Spent() int { return c.spent }

// Redrive returns the record's redrive number.
func (c *Claim) Redrive() int { return c.redrive }

// ClaimedAt returns when the claim was made, by the store's clock.
func (c *Claim) ClaimedAt() time.Time { return c.at }

// SetResult keeps result with the completion; later duplicates are given it. The
// slice must not be changed after the call. Keep it small: each duplicate fetches it, and
// one that is larger than the store takes (NATS: about 750 KB by default; MySQL: a
// fraction of max_allowed_packet) cannot be recorded, which ends a consumer. Redis' compact
// layout keeps none.
func (c *Claim) SetResult(result []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.result = result
}

// Start is to be called just before the handler is: it returns the handler's
// context, derived from ctx, or ErrLeaseLost where the lease has run out by this
// process's clock. Then the handler must not start. The handler's own claim, which
// FromContext finds, cannot be ended: that is for the caller of Start.
func (c *Claim) Start(ctx context.Context) (context.Context, error) {
	if err := c.startable(); err != nil {
		return nil, err
	}
	return c.start(ctx), nil
}

// startable returns why the handler must not start.
func (c *claim) startable() error {
	if !c.oneTrip && !time.Now().Before(c.leaseEnd()) {
		c.lose()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.lost:
		return fmt.Errorf("idem: token %q: attempt %d: %w before its handler started", c.token, c.attempt, ErrLeaseLost)
	case c.ended:
		return fmt.Errorf("idem: token %q: %w", c.token, ErrClaimEnded)
	}
	return nil
}

// start returns the handler's context. A claim that was lost a moment ago has one that is
// over.
func (c *claim) start(ctx context.Context) context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.handling == nil {
		c.parent = ctx
	}
	return c.context(nil)
}

// Commit records that the message was handled. After ErrLeaseLost somebody else
// has the message; after another error it is not known whether the completion was
// recorded, and Commit may be called again, unless the claim was abandoned meanwhile.
//
// Where the handler wrote in the store's own transaction (sqlstore.Tx), the completion
// commits with it, or neither does. ErrRolledBack says that neither did, and the claim is
// still held: give it back, and the message can be handled again.
//
// A claim whose lease ran out may still be committed, unless somebody holds it now
// or has completed it. So that shutdown strands no finished work, an end of ctx does
// not prevent the attempt: it takes one lease at most (a Patient claim's, as long as
// ctx).
func (c *Claim) Commit(ctx context.Context) error {
	return c.end(ctx, store.Commit, false)
}

// Release gives the claim back, as to be tried again: this spends budget. The
// message can be claimed again at once. ErrLeaseLost says that it was lost
// before. Like Commit, it does not mind the end of ctx.
func (c *Claim) Release(ctx context.Context) error {
	return c.end(ctx, store.Release, true)
}

// GiveBack releases the claim without spending budget: for a message that was not
// started, or whose failure is not its own.
func (c *Claim) GiveBack(ctx context.Context) error {
	return c.end(ctx, store.Release, false)
}

// Bury records that the message was handed to a dead-letter destination, and that
// the destination confirmed it. Redeliveries are duplicates from then on, but for
// one with a higher redrive number.
func (c *Claim) Bury(ctx context.Context) error {
	return c.end(ctx, store.Bury, false)
}

// Abandon gives the claim up in this process only: the store is told nothing, and the lease
// runs out. Call it when Commit, Release or Bury has failed and the handler has returned. What is
// under way to end the claim, a CommitWith of the handler's, say, goes on, and this guard does not
// claim the token again before that is over or, where the context of Begin has ended, the lease is.
func (c *Claim) Abandon() {
	if c.borrowed {
		return
	}
	c.mu.Lock()
	c.abandoned = true
	c.mu.Unlock()
	c.StopRenewing()
	if c.beginEnd() == nil { // else it has ended, or does when finish sees the flag
		c.Rollback()
		c.finish(true)
	}
}

// StopRenewing leaves the claim to its lease, for a handler that does not return. The
// claim can still be ended; until then, this guard does not claim the token again.
func (c *Claim) StopRenewing() {
	if !c.borrowed {
		c.stopRenewing()
	}
}

func (c *claim) stopRenewing() { c.guard.core.leases.remove(c) }

// Retry gives the claim back and claims the token anew, in one trip: the next
// attempt. Counted, it spends budget. Whatever the answer, this claim has ended, or, where its
// handler did not wait for a CommitWith, ends with that: until then the answer is ErrInProgress.
// The next one is renewed until it is ended, whatever becomes of ctx.
func (c *Claim) Retry(ctx context.Context, counted bool, req Request) (*Claim, error) {
	g := c.guard
	req.Token = c.token
	err := g.check(&req)
	if err == nil {
		err = c.beginEnd()
	}
	if err != nil {
		c.Abandon()
		if errors.Is(err, errEnding) { // by a CommitWith that the handler did not wait for
			err = inProgress(c.token, g.core.opts.lease/3)
		}
		return nil, err
	}
	c.Rollback()
	c.mu.Lock()
	entered := c.entered
	c.entered = false // the next claim's, whatever lapse does meanwhile
	c.mu.Unlock()
	if !entered && !g.core.enter(g.run(c.token)) { // Begin's context ended long ago
		c.finish(true)
		return nil, inProgress(c.token, g.core.opts.lease/3)
	}
	next := new(call)
	g.claimCall(store.Begin, req, next)
	release := c.op(store.Release, counted)
	next.before = &release
	g.core.batcher.do(ctx, next)
	c.finish(true)
	b := g.begun(ctx, next)
	return b.Claim, b.Err
}

// CommitAll commits many claims of this guard, 256 in a trip, and answers each in its
// place.
func (g *Guard) CommitAll(ctx context.Context, claims []*Claim) []error {
	return g.endAll(ctx, claims, store.Commit, false)
}

// ReleaseAll releases many claims of this guard, 256 in a trip. Counted, each spends
// budget.
func (g *Guard) ReleaseAll(ctx context.Context, claims []*Claim, counted bool) []error {
	return g.endAll(ctx, claims, store.Release, counted)
}

func (c *Claim) end(ctx context.Context, kind store.Kind, counted bool) error {
	made := newCall()
	if sends, err := c.ends(ctx, kind, counted, made); !sends {
		made.free()
		return err
	}
	if !c.patient {
		ctx = c.guard.core.ending.with(ctx)
	}
	answered := c.guard.core.batcher.do(ctx, made)
	err := c.endedBy(made)
	if answered {
		made.free()
	}
	return err
}

// ends begins the end of the claim and makes the call for it, or ends it without one.
func (c *Claim) ends(ctx context.Context, kind store.Kind, counted bool, made *call) (sends bool, _ error) {
	if err := c.beginEnd(); err != nil {
		return false, err
	}
	if by := c.commitsBy(); kind == store.Commit && by != nil {
		return false, c.commitBy(ctx, by)
	}
	c.Rollback()
	if c.oneTrip && kind != store.Bury || c.isCommitted() {
		c.finish(true)
		return false, nil
	}
	made.op, made.patient, made.age = c.op(kind, counted), c.patient, c.guard.core.near.now()
	return true, nil
}

func (g *Guard) endAll(ctx context.Context, claims []*Claim, kind store.Kind, counted bool) []error {
	errs := make([]error, len(claims))
	l := newCalls(len(claims))
	patient := true
	for i, c := range claims {
		if c.guard.core != g.core {
			errs[i] = fmt.Errorf("idem: token %q: the claim is another guard's, and is ended there", c.token)
			continue
		}
		var sends bool
		if sends, errs[i] = c.ends(ctx, kind, counted, &l.made[i]); !sends {
			continue
		}
		patient = patient && c.patient
		l.send(i)
	}
	if !patient {
		ctx = g.core.ending.with(ctx)
	}
	answered := len(l.sent) == 0 || g.core.batcher.do(ctx, l.sent...)
	for i, c := range l.sent {
		errs[l.places[i]] = claims[l.places[i]].endedBy(c)
	}
	if answered {
		l.free()
	}
	return errs
}

// beginEnd keeps a second Commit, Release or Bury out until finish.
func (c *Claim) beginEnd() error {
	if c.borrowed {
		return fmt.Errorf("idem: token %q: %w", c.token, ErrClaimBorrowed)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.setEnding()
}

// setEnding is called with mu held.
func (c *claim) setEnding() error {
	switch {
	case c.ending:
		return fmt.Errorf("idem: token %q: attempt %d: %w", c.token, c.attempt, errEnding)
	case c.ended:
		return fmt.Errorf("idem: token %q: attempt %d: %w", c.token, c.attempt, ErrClaimEnded)
	}
	c.ending = true
	return nil
}

func (c *claim) op(kind store.Kind, counted bool) store.Op {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.opLocked(kind, counted)
}

// opLocked is called with mu held.
func (c *claim) opLocked(kind store.Kind, counted bool) store.Op {
	return store.Op{
		Kind: kind, Group: c.guard.group, Token: c.token, Claim: c.id, Attempt: c.attempt,
		Counted: counted, Result: c.result,
	}
}

var endVerbs = map[store.Kind]struct {
	verb  string
	event EventKind
}{
	store.Commit:  {"commit", EventCommitted},
	store.Release: {"release", EventReleased},
	store.Bury:    {"bury", EventBuried},
}

func (c *Claim) endedBy(answered *call) error {
	how := endVerbs[answered.op.Kind]
	if c.oneTrip && answered.op.Kind == store.Bury {
		c.guard.core.near.drop(c.guard.run(c.token)) // it was done, and may be dead now
	}
	switch {
	case answered.err != nil:
		c.finish(false)
		return fmt.Errorf("idem: %s token %q: attempt %d: %w", how.verb, c.token, c.attempt, answered.err)
	case answered.reply.Status != store.OK && answered.reply.Status != store.Lost:
		c.finish(false)
		return fmt.Errorf("idem: %s token %q: %w", how.verb, c.token, c.guard.core.senseless(answered.reply))
	case answered.reply.Status == store.Lost:
		c.lose()
		c.finish(true)
		return fmt.Errorf("idem: %s token %q: attempt %d: %w", how.verb, c.token, c.attempt, ErrLeaseLost)
	}
	if answered.op.Kind == store.Commit {
		c.guard.core.near.committed(c.claim, answered)
	}
	c.finish(true)
	c.guard.Emit(Event{Kind: how.event, Token: c.token, Attempt: c.attempt})
	return nil
}

// finish undoes beginEnd. An ended claim is not renewed, its context is over, and its token
// may be claimed here again.
func (c *Claim) finish(ended bool) {
	c.mu.Lock()
	over := c.abandoned && !ended
	ended = ended || over
	if c.ending, c.ended = false, ended; !ended {
		c.failed = time.Now()
		c.mu.Unlock()
		return
	}
	if c.cancel != nil {
		c.cancel(nil)
	}
	stop, held := c.stopAfter, c.entered
	c.entered = false
	c.mu.Unlock()
	c.stopRenewing()
	if over {
		c.rollback()
	}
	if stop != nil {
		stop()
	}
	if held {
		c.guard.core.leave(c.guard.run(c.token))
	}
}

// lapse is called when the context of Begin ends: the claim is not renewed any more,
// and when its lease has run out this guard may claim the token again. It can still be
// committed, as far as nobody else holds the token then.
func (c *Claim) lapse() {
	c.StopRenewing()
	time.AfterFunc(time.Until(c.leaseEnd()), func() {
		c.mu.Lock()
		held := c.entered
		c.entered = false
		c.mu.Unlock()
		if held {
			c.guard.core.leave(c.guard.run(c.token))
		}
	})
}

// wasEnding reports whether the claim is being ended, or was at some time after since.
func (c *claim) wasEnding(since time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ending || !c.failed.Before(since)
}

func (c *claim) isLost() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lost
}

func (c *claim) leaseEnd() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.deadline
}

// lose tells the handler that the lease is gone. The claim stays entered until it
// is ended: its handler may still run.
func (c *claim) lose() {
	c.mu.Lock()
	first := !c.lost && !c.ended && !c.committed
	if first {
		c.lost = true
		for _, cancel := range [...]context.CancelCauseFunc{c.cancel, c.cancelBatch} {
			if cancel != nil {
				cancel(ErrLeaseLost)
			}
		}
	}
	c.mu.Unlock()
	if first {
		c.stopRenewing()
		c.guard.Emit(Event{Kind: EventLeaseLost, Token: c.token, Attempt: c.attempt})
	}
}

// Detached returns a claim for a handler that runs without one, where the store is away
// or duplicates are handled on purpose: it names the token and derives tokens as ever, on
// attempt zero, and holds nothing in the store.
func (g *Guard) Detached(ctx context.Context, token string) *Claim {
	return &Claim{claim: &claim{guard: g, token: token, oneTrip: true, parent: ctx}}
}

// Derive makes a token for something that the handler of this claim sends on, from
// the claim's token, its group and name: the same on every attempt, so that a
// handler that runs twice sends the same token twice. Give each message of one
// handler a name of its own. Under WithTokenKeys it is signed, for consumers with the same
// prefix and keys; for others, have their guard Sign TokenFor(c.Token(), name).
func (c *Claim) Derive(name string) string {
	return c.guard.core.sign(TokenFor("idem derive", c.token, c.guard.group, name))
}

// DeriveFor is Derive for one message, target, which must be comparable: an error
// if this attempt gave name to another one, because consumers would drop that as a
// duplicate. Under WithIssuedOnly it registers the token.
func (c *Claim) DeriveFor(ctx context.Context, name string, target any) (string, error) {
	c.mu.Lock()
	other, named := c.derived[name]
	if !named {
		if c.derived == nil {
			c.derived = make(map[string]any)
		}
		c.derived[name] = target
	}
	c.mu.Unlock()
	if named && other != target {
		return "", fmt.Errorf("idem: token %q: name %q was given to another message in this attempt: give each message a name of its own", c.token, name)
	}
	token := c.Derive(name)
	if c.guard.core.opts.issuedOnly {
		if err := c.guard.Issue(ctx, token); err != nil {
			return "", err
		}
	}
	return token, nil
}
