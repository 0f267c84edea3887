package idem

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jellydator/ttlcache/v3"

	"github.com/idemq/idemq/idem/store"
)

// WithNearCache remembers in this process up to size tokens that are done, each for ttl, so
// that Begin, BeginAll and Do answer their duplicates without a trip to the store, also while
// it is away: for storms of redeliveries. Zero is DefaultNearTTL. Off by default. The groups
// of a guard share it.
//
// It holds what the store last said was done, and can be behind it for ttl. A Forget by
// another guard or process is seen after that: a message that is sent again sooner is dropped
// as a duplicate here. So forget through every guard, or send it after ttl. A Forget by this
// guard is seen when it returns. A SQL database that fails over and forgets a commit has lost
// the effect with it; a redelivery within ttl, which would have made it anew, is dropped. When
// the store tells that it lost records, the cache is emptied.
//
// An entry is made by a Commit of this guard that the store acknowledged, on the first try, to
// a claim whose lease had not run out, and by a Begin that the store answered with
// ErrDuplicate. Not kept are tokens with a result, dead-lettered ones, and what a handler's
// transaction commits, until their first duplicate. No entry is older than the retention, counted from the
// completion: a longer ttl is cut to that. Where the store does not say when a token was
// completed (compact), an entry may outlive its record by ttl.
//
// The store is always asked by Check, Spend and Claim.Retry, for requests with a Payload or a
// Redrive, and for all that consumers ask with Fingerprints or AtMostOnce. Of a token that this
// guard completed, DuplicateError.At is the store's clock at the answer to its Commit: up to
// one trip later than the record's.
//
// An entry takes about 400 bytes with a UUID as its token (measured, Go 1.26, amd64); the least
// recently used goes first. The cache has no goroutine and no timer: entries whose time is over
// take their room until others need it.
func WithNearCache(size int, ttl time.Duration) Option {
	return func(o *Options) { o.near = &nearTerms{size: size, ttl: ttl} }
}

type nearTerms struct {
	size int
	ttl  time.Duration
}

func (n *nearTerms) faults() (faults []error) {
	if n == nil {
		return nil
	}
	if n.size <= 0 {
		faults = append(faults, fmt.Errorf("WithNearCache: a size of %d tokens: it must be positive; leave the option out for no near cache", n.size))
	}
	if n.ttl < 0 {
		faults = append(faults, fmt.Errorf("WithNearCache: a ttl of %v is negative; zero is %v", n.ttl, DefaultNearTTL))
	}
	return faults
}

// nearCache is what WithNearCache keeps. Nil is none. It is safe for concurrent use.
type nearCache struct {
	ttl, retention time.Duration
	entries        *ttlcache.Cache[run, completion] // not started: it expires entries when they are read

	// An answer of the store that is older than a Forget, or than a loss, must not bring
	// back what that dropped: only calls that were made in the current age may add.
	age atomic.Uint64
	mu  sync.Mutex // held by whoever adds or drops
}

// completion is what a DuplicateError says of a token that was handled.
type completion struct {
	at               time.Time
	attempt, redrive int
}

func newNearCache(o *Options) *nearCache {
	if o.near == nil {
		return nil
	}
	n := &nearCache{ttl: o.near.ttl, retention: o.retention}
	if n.ttl == 0 {
		n.ttl = DefaultNearTTL
	}
	n.entries = ttlcache.New(
		ttlcache.WithCapacity[run, completion](uint64(max(o.near.size, 1))),
		ttlcache.WithDisableTouchOnHit[run, completion](),
	)
	return n
}

// now is the age that a call is made in.
func (n *nearCache) now() uint64 {
	if n == nil {
		return 0
	}
	return n.age.Load()
}

// known answers a request that does not need the store; nil is no answer.
func (n *nearCache) known(r run, req *Request) *DuplicateError {
	if n == nil || req.Redrive > 0 || req.Payload != nil {
		return nil
	}
	entry := n.entries.Get(r)
	if entry == nil {
		return nil
	}
	c := entry.Value()
	return &DuplicateError{Token: r.token, At: c.at, Attempt: c.attempt, Redrive: c.redrive}
}

// add remembers what the answer to a call says was completed.
func (n *nearCache) add(answered *call, c completion) {
	keep := n.ttl
	if !c.at.IsZero() {
		keep = min(keep, n.retention-max(answered.now.Sub(c.at), 0))
	}
	keep -= time.Since(answered.sent) + 1 // the cache counts the last instant in
	if keep <= 0 {
		return
	}
	// The token may be a part of something larger, which an entry must not keep alive.
	r := run{group: answered.op.Group, token: strings.Clone(answered.op.Token)}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.age.Load() == answered.age {
		n.entries.Set(r, c, keep)
	}
}

// duplicate is called with a call that the store answered with Duplicate. What Spend made
// done may become dead by its spender, and dead tokens may be redriven.
func (n *nearCache) duplicate(answered *call) {
	r := &answered.reply
	if n == nil || answered.op.Kind != store.Begin || r.Dead || len(r.Result) > 0 {
		return
	}
	n.add(answered, completion{at: r.At, attempt: r.Attempt, redrive: r.Redrive})
}

// committed is called with a Commit that the store acknowledged. Once its lease has run out,
// or where an earlier try may have been executed, it is not known what the record says.
func (n *nearCache) committed(c *claim, answered *call) {
	if n == nil || answered.resent || !time.Now().Before(c.leaseEnd()) {
		return
	}
	if c.guard.core.opts.store.Capabilities().NoDoneDetails {
		n.add(answered, completion{})
		return
	}
	if len(answered.op.Result) == 0 {
		n.add(answered, completion{at: answered.now, attempt: c.attempt, redrive: c.redrive})
	}
}

// drop forgets a token, and keeps it out while older answers are on their way.
func (n *nearCache) drop(r run) {
	if n == nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.age.Add(1)
	n.entries.Delete(r)
}

// empty forgets all tokens, likewise.
func (n *nearCache) empty() {
	if n == nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.age.Add(1)
	n.entries.DeleteAll()
}
