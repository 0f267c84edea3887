// Package redisstore keeps the records in Redis 7.0 or later, or Valkey 8 or later:
// standalone, Sentinel, Cluster or Ring.
//
// Each token of a group is one key, which holds a string that redis-cli shows:
//
//	1p|claim|attempt|spent|expiries|redrive|fp|fence|fence id|deadline|lease|incarnation|owner
//	1r|claim|attempt|spent|expiries|redrive|fp|fence|fence id                     released
//	1f|claim|attempt|spent|expiries|redrive|fp|fence|fence id                     forgotten
//	at and the last six digits of the claim                                       done
//	1d|claim|at|attempt|redrive|fp|fence|fence id|spent|expiries|result           done, in full
//
// The first character of those with a letter is the version. A token done by Spend has s instead of d,
// a dead one x. Times are of Redis' own clock: at in milliseconds, the others in
// microseconds. fence is the
// attempt up to which a Forget voids claims, fence id that Forget's claim id. In the
// owner '%' and '|' are escaped.
//
// Most records are done, and have attempt 1 and nothing else to say. Theirs is a number,
// which Redis keeps without a string: 13 digits of time, and six of the claim, by which a
// repeat of its completion is known. (One in a million of the claims from before a loss of
// records is taken for it: its completion is answered as recorded, which the token is.)
// Where the claim id does not end in six digits, or the clock is not of the years 2001 to
// 2286, it is 1d|claim|at, as for s and x.
//
// That is the layout of records. [WithCompact] chooses the other, which keeps of a done
// token 64 bits of its hash only.
//
// What Redis forgets can happen again: a failover to a replica that lags, a restart
// without persistence, an eviction. [Store.Verify] warns of each; a Redis that came
// back empty is told in store.Batch's Notice.
//
// # Rights
//
// The client's user needs these rights (ACL), here with the prefix "idempotent", and no
// others. What is missing is named by the error, and by [Store.Verify] before it is missed.
//
//	~idempotent:{*}:* +eval +evalsha +get +set +pttl +time
//	+cluster|slots +asking      on each node of a cluster
//	+wait                       WithReplicas
//	+del +pexpireat +pexpiretime +sadd +sismember +srem     WithCompact
//	+info +config|get           for the findings of Verify
//
// docs/redis.md has the commands that make such a user, and what each way to run Redis
// promises.
package redisstore

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/idemq/idemq/idem/store"
)

const defaultTags = 64

// Option changes a [Store].
type Option func(*Store)

// WithTags sets into how many hash tags the tokens of a prefix are divided; default
// 64. On a cluster a batch is one script call for each tag in it, and the tags
// spread the load over the nodes: more tags spread better and cost more calls. The
// number is kept in Redis when a prefix is first used. A store with another number
// is refused, because it would not find the records.
func WithTags(n int) Option {
	return func(s *Store) { s.tags = n }
}

// WithReplicas has completions, a Forget and an Issue wait (Redis' WAIT) until n replicas
// have them, for at most timeout, which should be well below the client's ReadTimeout. A
// failover to such a replica forgets nothing that was answered as done, to whoever completed
// it or to whoever was told that it is a duplicate; each batch with either costs the replicas'
// round trip, and one with duplicates and nothing else that waits another trip before.
//
// If fewer replicas confirm in time, what waited, and what travelled to the same
// primary with it, is answered with store.ErrUnavailable: on a cluster in the replies
// concerned, on a single server by Apply. It stands on the primary, is not answered as
// done, and is waited for again when it is resent. A duplicate is answered with
// store.ErrRefused, in its reply on a single server too. With too few replicas connected
// nothing completes, and no duplicate is dropped. It works with *redis.Client and
// *redis.ClusterClient.
func WithReplicas(n int, timeout time.Duration) Option {
	return func(s *Store) { s.replicas, s.replicaTimeout = n, timeout }
}

// Store is a store.Store on Redis. It is safe for concurrent use, leaves no
// goroutine behind, and does not close the client it was given.
type Store struct {
	client redis.UniversalClient
	err    error // what makes every call fail

	tags           int
	replicas       int
	replicaTimeout time.Duration
	compact        *compact // nil: the layout of records

	// perTag: a script call may only touch one hash tag. Otherwise one takes all.
	perTag atomic.Bool

	several  bool // servers: what one cannot do, others can
	silences silences

	now func() time.Time // this process' clock; nothing but Verify's look at clocks uses it

	mu       sync.Mutex
	prefixes map[string]*prefix
}

var _ store.Store = (*Store)(nil)

// New returns a store on a client. It dials nothing. With a nil client, or settings
// that cannot be, every call fails with an error that says so.
//
// A context's deadline bounds a call only where the client's ContextTimeoutEnabled is
// set; else its timeouts and retries do. Retries are safe. Hooks of the client see keys and
// claim ids as *string, which must not be read after the command was processed.
func New(c redis.UniversalClient, opts ...Option) *Store {
	s := &Store{client: c, tags: defaultTags, now: time.Now, prefixes: make(map[string]*prefix)}
	for _, o := range opts {
		o(s)
	}
	_, single := c.(*redis.Client)
	s.several = !single
	s.perTag.Store(s.several)

	var errs []error
	if isNil(c) {
		errs = append(errs, errors.New("the client is nil: give New a connected *redis.Client, *redis.ClusterClient or *redis.Ring"))
	}
	if s.tags < 1 || s.tags > 16384 {
		errs = append(errs, fmt.Errorf("WithTags(%d): the number of tags must be 1 to 16384", s.tags))
	}
	if s.replicas < 0 || s.replicas > 0 && s.replicaTimeout < time.Millisecond {
		errs = append(errs, fmt.Errorf("WithReplicas(%d, %v): needs a number of replicas, and a timeout of at least 1ms (0 would wait for ever)",
			s.replicas, s.replicaTimeout))
	}
	if _, cluster := c.(*redis.ClusterClient); s.replicas > 0 && !single && !cluster {
		errs = append(errs, fmt.Errorf("WithReplicas does not work with a %T: use *redis.Client or *redis.ClusterClient", c))
	}
	if s.compact != nil {
		if err := s.compact.Validate(); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		s.err = fmt.Errorf("redisstore: %w", errors.Join(errs...))
	} else if s.compact != nil {
		s.compact.complete(s.tags)
	}
	return s
}

func isNil(c redis.UniversalClient) bool {
	if c == nil {
		return true
	}
	v := reflect.ValueOf(c)
	return v.Kind() == reflect.Pointer && v.IsNil()
}

// Capabilities implements store.Store: nothing is lacking, but with WithCompact.
func (s *Store) Capabilities() store.Capabilities {
	return store.Capabilities{NoDoneDetails: s.compact != nil, NoFingerprints: s.compact != nil}
}

// Bounded implements store.Bounded: with ContextTimeoutEnabled a *redis.Client ends a call
// with its context's deadline.
func (s *Store) Bounded() bool {
	c, single := s.client.(*redis.Client)
	return single && c != nil && c.Options().ContextTimeoutEnabled
}

// Apply implements store.Store. A batch is one script call on a single server, and
// one for each hash tag, sent together, elsewhere; more than 1,000 operations are
// divided. Where there are several servers, one that is away or refuses is an error of
// the replies that concern it.
func (s *Store) Apply(ctx context.Context, b *store.Batch) error {
	b.Notice, b.Losses = "", 0
	if c := s.compact; c != nil && s.err == nil && b.Retention > c.Retention {
		return c.tooShort(b.Retention)
	}
	p, err := s.prefix(ctx, b.Prefix)
	if err != nil {
		return err
	}
	x := &execution{s: s, p: p, b: b}
	err = x.run(ctx)
	b.Losses, b.Notice = p.losses()
	return err
}

// Incarnation implements store.Store.
func (s *Store) Incarnation(ctx context.Context, prefix, name string) (uint64, error) {
	p, err := s.prefix(ctx, prefix)
	if err != nil {
		return 0, err
	}
	key := p.keys.incarnation(name)
	v, err := s.eval(ctx, incarnationScript, key, time.Hour.Milliseconds()).Text()
	if err != nil {
		return 0, s.partly(s.failure(ctx, p, fmt.Sprintf("drawing an incarnation from %q", key), err))
	}
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("redisstore: drawing an incarnation from %q: answered %q", key, v)
	}
	return n, nil
}
