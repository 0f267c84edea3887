package idem

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/idemq/idemq/idem/store"
)

// Request asks for a claim. Only Token is needed; zero values mean the default.
type Request struct {
	Token string

	// Payload turns fingerprints on: the same token with another payload is
	// ErrConflict. Nil is none; what is kept is 128 bits of its SHA-256. A store that
	// keeps none answers ErrNoFingerprints.
	Payload []byte

	// Redrive is the number that a message bears in the header RedriveHeader:
	// higher than the record's, it makes a dead-lettered token claimable again. At most
	// 2^53.
	Redrive int

	// MaxExpiries refuses, with ErrNeedAlone, to claim a token whose earlier claims
	// ended that often, or more often, by their lease running out: for claims that
	// are made ahead, or beside others. Zero is no limit.
	MaxExpiries int

	// Patient waits for a store that does not answer, as long as the context does,
	// under one claim id. The claim's Commit, Release and Bury then do the same.
	// Else each is tried once, and the store's client decides how hard.
	Patient bool

	// FailOpen ends the wait of a patient request with the store's error once the
	// store has been out of reach for this long: not when it answers and refuses.
	// Zero is never.
	FailOpen time.Duration
}

// ClaimOption sets a field of a Request.
type ClaimOption = func(*Request)

// WithPayload turns fingerprints on for a claim. See Request.Payload.
func WithPayload(payload []byte) ClaimOption {
	return func(r *Request) {
		if payload == nil {
			payload = []byte{}
		}
		r.Payload = payload
	}
}

// WithRedrive tells the redrive number of a message. See Request.Redrive.
func WithRedrive(n int) ClaimOption {
	return func(r *Request) { r.Redrive = n }
}

// Begin claims a token for the guard's group. The errors are ErrDuplicate (ack the
// message), ErrInProgress (ask again later), ErrUnknownToken (ErrUnsigned is one), ErrConflict,
// ErrInvalidToken, ErrSuperseded, and those of the store, after which nothing is
// known.
//
// The claim is renewed until Commit, Release, or the end of ctx. Where the context
// ends first, the claim is neither committed nor released by itself: its lease runs
// out, and until somebody else claims the token it can still be committed. A token that
// is claimed in this guard and not ended is ErrInProgress without a trip, also when its
// lease was lost: its handler may still run. That ends one lease after ctx does.
func (g *Guard) Begin(ctx context.Context, token string, opts ...ClaimOption) (*Claim, error) {
	c, err := g.ask(ctx, store.Begin, newRequest(token, opts))
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, c.lapse)
	c.mu.Lock()
	c.stopAfter = stop
	c.mu.Unlock()
	return c, nil
}

// Spend marks a token as done before its handler runs: for at most once. It
// returns a claim once per token; ErrDuplicate after that, and the other errors of
// Begin. If the process dies before the effect, the effect is lost. The claim has
// no lease; Attempt and Spent tell whether an earlier handler may have started
// under the two-phase form.
func (g *Guard) Spend(ctx context.Context, token string, opts ...ClaimOption) (*Claim, error) {
	return g.ask(ctx, store.Spend, newRequest(token, opts))
}

// Begun is the answer to a Request: a claim, or an error as Begin gives it.
type Begun struct {
	Claim *Claim
	Err   error
}

// BeginAll claims many tokens, 256 in a trip, and answers each request in its place.
// The claims are renewed until each is ended by Commit, Release, Bury or Abandon;
// the end of ctx ends the wait for the answers only.
func (g *Guard) BeginAll(ctx context.Context, reqs []Request) []Begun {
	return g.askAll(ctx, store.Begin, reqs)
}

// SpendAll is Spend for many tokens, 256 in a trip.
func (g *Guard) SpendAll(ctx context.Context, reqs []Request) []Begun {
	return g.askAll(ctx, store.Spend, reqs)
}

func newRequest(token string, opts []ClaimOption) Request {
	if len(opts) == 0 {
		return Request{Token: token} // on the stack: below, options may keep r
	}
	r := Request{Token: token}
	for _, o := range opts {
		if o != nil {
			o(&r)
		}
	}
	return r
}

func (g *Guard) ask(ctx context.Context, kind store.Kind, req Request) (*Claim, error) {
	if err := g.claimable(ctx); err != nil {
		return nil, err
	}
	c := newCall()
	if err := g.prepare(kind, req, c); err != nil {
		c.free()
		return nil, err
	}
	answered := g.core.batcher.do(ctx, c)
	b := g.begun(ctx, c)
	if answered {
		c.free()
	}
	return b.Claim, b.Err
}

func (g *Guard) askAll(ctx context.Context, kind store.Kind, reqs []Request) []Begun {
	out := make([]Begun, len(reqs))
	l := newCalls(len(reqs))
	refused := g.claimable(ctx)
	for i, r := range reqs {
		if out[i].Err = refused; refused != nil {
			continue
		}
		if out[i].Err = g.prepare(kind, r, &l.made[i]); out[i].Err == nil {
			l.send(i)
		}
	}
	answered := len(l.sent) == 0 || g.core.batcher.do(ctx, l.sent...)
	for i, c := range l.sent {
		out[l.places[i]] = g.begun(ctx, c)
	}
	if answered {
		l.free()
	}
	return out
}

// claimable returns what prevents a new claim.
func (g *Guard) claimable(ctx context.Context) error {
	if err := g.core.claimable(); err != nil {
		return err
	}
	return causeOf(ctx)
}

// prepare enters the token of a request and makes its call, or returns the answer that needs
// no store.
func (g *Guard) prepare(kind store.Kind, r Request, c *call) (err error) {
	if r.Token, err = g.Identity(r.Token); err != nil {
		if errors.Is(err, ErrUnsigned) {
			g.Emit(Event{Kind: EventRefused, Err: err})
		}
		return err
	}
	if err = g.check(&r); err != nil {
		return err
	}
	if kind == store.Begin {
		if dup := g.core.near.known(g.run(r.Token), &r); dup != nil {
			g.Emit(Event{Kind: EventDuplicate, Token: r.Token, Attempt: dup.Attempt, Near: true})
			return dup
		}
	}
	if !g.core.enter(g.run(r.Token)) {
		busy := inProgress(r.Token, g.core.opts.lease/3)
		g.Emit(Event{Kind: EventInProgress, Token: r.Token, Wait: busy.RetryAfter})
		return busy
	}
	g.claimCall(kind, r, c)
	return nil
}

// check returns what no store can be asked for.
func (g *Guard) check(r *Request) error {
	if int64(r.Redrive) > store.MaxRedrive {
		return fmt.Errorf("idem: claim token %q: redrive number %d is more than 2^53, which no store keeps: count the redrives of a message, from one",
			r.Token, r.Redrive)
	}
	if r.Payload != nil && g.core.opts.store.Capabilities().NoFingerprints {
		return fmt.Errorf("idem: claim token %q: %w", r.Token, ErrNoFingerprints)
	}
	return nil
}

func (g *Guard) run(token string) run { return run{g.group, token} }

// claimCall makes an empty call one that claims.
func (g *Guard) claimCall(kind store.Kind, r Request, c *call) {
	c.op = store.Op{
		Kind: kind, Group: g.group, Token: r.Token, Claim: g.core.claimID(),
		Redrive: max(r.Redrive, 0), MaxExpiries: max(r.MaxExpiries, 0),
	}
	if r.Payload != nil {
		c.op.Fingerprint = fingerprint(r.Payload)
	}
	c.patient, c.failOpen, c.age = r.Patient, r.FailOpen, g.core.near.now()
}

// begun turns an answer into a claim, or leaves the token.
func (g *Guard) begun(ctx context.Context, c *call) Begun {
	token, r := c.op.Token, c.reply
	if c.err == nil && r.Status == store.Claimed {
		claim := g.newClaim(ctx, c)
		g.Emit(Event{Kind: EventClaimed, Token: token, Attempt: r.Attempt})
		return Begun{Claim: claim}
	}
	g.core.leave(g.run(token))
	if c.err != nil {
		err := fmt.Errorf("idem: claim token %q: %w", token, c.err)
		if errors.Is(err, store.ErrUnreadable) || errors.Is(err, store.ErrNewer) {
			g.Emit(Event{Kind: EventRefused, Token: token, Err: err})
		}
		return Begun{Err: err}
	}
	switch r.Status {
	case store.Duplicate:
		g.core.near.duplicate(c)
		g.Emit(Event{Kind: EventDuplicate, Token: token, Attempt: r.Attempt})
		return Begun{Err: &DuplicateError{Token: token, At: r.At, Attempt: r.Attempt, Dead: r.Dead, Redrive: r.Redrive, Result: r.Result}}
	case store.InProgress, store.Lost: // Lost: this very claim was given back meanwhile, or completed and forgotten
		busy := inProgress(token, r.RetryAfter)
		g.Emit(Event{Kind: EventInProgress, Token: token, Wait: busy.RetryAfter})
		return Begun{Err: busy}
	case store.NeedAlone:
		return Begun{Err: fmt.Errorf("idem: token %q: %w", token, ErrNeedAlone)}
	}
	var err error
	switch r.Status {
	case store.Superseded:
		err = fmt.Errorf("idem: token %q: instance %q: %w", token, g.core.opts.instance, ErrSuperseded)
	case store.Unknown:
		err = fmt.Errorf("idem: token %q: %w", token, ErrUnknownToken)
	case store.Conflict:
		err = fmt.Errorf("idem: token %q: %w", token, ErrConflict)
	default:
		err = fmt.Errorf("idem: claim token %q: %w", token, g.core.senseless(r))
	}
	g.Emit(Event{Kind: EventRefused, Token: token, Err: err})
	return Begun{Err: err}
}
