package idem

import (
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/redisstore"
)

// Defaults of the options.
const (
	DefaultPrefix    = "idempotent"
	DefaultExpire    = 60 // minutes
	DefaultRetention = 24 * time.Hour
	DefaultLease     = 10 * time.Second
	DefaultNearTTL   = time.Minute
)

const (
	minLease      = 10 * time.Millisecond // below it a garbage collection loses leases
	maxLease      = 365 * 24 * time.Hour  // what a dead process held waits for the rest of it
	maxRetention  = 100 * 365 * 24 * time.Hour
	maxNameLength = 255
)

// Options is what New was given. It is filled by Option functions only.
type Options struct {
	store      store.Store
	redis      redis.UniversalClient // on which the store is made, where none is given
	compact    *redisstore.Compact
	prefix     string
	expire     int
	retention  time.Duration
	lease      time.Duration
	instance   string
	issuedOnly bool
	keys       []signer // the current one first; none: tokens are not signed
	unsigned   bool
	haltOnLoss bool
	near       *nearTerms
	observers  observers
	faults     []error
}

// Option sets one of the Options. Where two set the same thing, the later wins.
type Option = func(*Options)

// WithRedis keeps the records in Redis 7.0 or later, or Valkey 8 or later. A nil
// client, a typed nil included, is ignored. The client stays the caller's to close.
//
// Set ContextTimeoutEnabled in the client's options, and a ReadTimeout well below a
// third of the lease: else a connection that hangs holds its batch up for the client's
// own timeouts and retries, in which leases run out. With it a lone caller makes its trips on
// its own goroutine, which is quicker; there it notices the end of its context up to 100 ms, or
// a tenth of the lease, late.
func WithRedis(c redis.UniversalClient) Option {
	return func(o *Options) {
		if isNil(c) {
			return
		}
		o.redis, o.store = c, nil
	}
}

// WithCompact has WithRedis keep of a handled token 64 bits of a hash, a tenth of what a
// record takes, for those who have tens of millions to remember. The settings' Retention is
// WithRetention's: leave it out. Both are fixed when a prefix is first used, with the number of
// Tokens; a guard with others is refused by its store, since it would forget.
//
// What duplicates are told about the first handling is lost: when, on which attempt, with which
// result. Payload fingerprints are ErrNoFingerprints. A new token is taken for a handled one, and its
// message dropped, with a probability that docs/redis.md states: 1.5e-5 a year at a billion
// messages a day. A token that Spend took, also under AtMostOnce, can be dead-lettered for five
// minutes: the failure of a handler that takes longer is reported, and its message dropped.
func WithCompact(c redisstore.Compact) Option {
	return func(o *Options) { o.compact = &c }
}

// WithStore keeps the records in a store of another kind.
func WithStore(s store.Store) Option {
	return func(o *Options) {
		if isNil(s) {
			o.faults = append(o.faults, errors.New("WithStore: the store is nil"))
			return
		}
		o.store, o.redis = s, nil
	}
}

// WithPrefix separates applications that share a store; the default is
// DefaultPrefix. Any bytes. An empty prefix is ignored. Another prefix finds none
// of the records made under the old one.
func WithPrefix(p string) Option {
	return func(o *Options) {
		if p != "" {
			o.prefix = p
		}
	}
}

// WithExpire sets how many minutes an issued token may wait for its Check; the
// default is 60. Zero and less are ignored.
func WithExpire(minutes int) Option {
	return func(o *Options) {
		if minutes > 0 {
			o.expire = minutes
		}
	}
}

// WithRetention sets how long a handled token is remembered, counted from its
// completion, or up to a thousandth longer; the default is 24 hours. A redelivery after
// that is handled again: make it longer than the broker can still redeliver. Costs the
// store's memory.
func WithRetention(d time.Duration) Option {
	return func(o *Options) { o.retention = d }
}

// WithLease sets how long a claim is held without renewal; the default is 10
// seconds. Claims are renewed at least each third of it, all of a guard in one
// trip. A message of a process that was killed waits for the rest of its lease; a
// pause of the process, or a network cut, that lasts longer lets a second handler
// start beside the first. From 10 milliseconds to a year.
func WithLease(d time.Duration) Option {
	return func(o *Options) { o.lease = d }
}

// WithInstance names this process, the same each time it is started (the name of
// a pod of a StatefulSet): a new process takes over the claims of its dead
// predecessor as soon as these have missed a renewal, not at the end of their
// lease. Two processes that live at the same time must not share a name: the older
// one is refused with ErrSuperseded where they meet.
func WithInstance(name string) Option {
	return func(o *Options) { o.instance = name }
}

// WithIssuedOnly makes Begin, Do and Spend admit only tokens that Token or Issue
// registered; others are ErrUnknownToken. It costs the producer a round trip.
//
// It finds producers that forgot to stamp, and tokens that are too old; it is no
// defence against a sender who wants to be admitted: a message that bears RedriveHeader
// passes, since dead letters that are moved back must.
func WithIssuedOnly() Option {
	return func(o *Options) { o.issuedOnly = true }
}

// WithHaltOnDataLoss makes the guard refuse new claims, with ErrDataLoss, from the moment
// that its store says it lost records that it had acknowledged: a Redis that came back
// empty, a table or bucket that was made anew. Consumers stop then, with nothing skipped,
// and somebody can look before messages that were completed are handled again. Claims that
// are held go on, and are recorded; so does what had just been spent, at most once. A new guard, after a restart of the process, goes on
// with what the store has.
//
// Without it the guard goes on, tells EventStoreNotice, and handles again what was
// forgotten and is delivered again. Nothing is lost either way. A store that nobody asked
// between its loss and the restart of the process is not noticed by that process.
func WithHaltOnDataLoss() Option {
	return func(o *Options) { o.haltOnLoss = true }
}

// WithObserver tells obs of every event. May be given several times.
func WithObserver(obs Observer) Option {
	return func(o *Options) {
		if isNil(obs) {
			o.faults = append(o.faults, errors.New("WithObserver: the observer is nil"))
			return
		}
		o.observers = append(o.observers, obs)
	}
}

// WithLogger logs events: what happens to every message at debug level, the rest
// above. Without it the library logs nothing.
func WithLogger(l *slog.Logger) Option {
	return func(o *Options) {
		if l == nil {
			o.faults = append(o.faults, errors.New("WithLogger: the logger is nil"))
			return
		}
		o.observers = append(o.observers, logObserver{l})
	}
}

func newOptions(opts []Option) (*Options, error) {
	o := &Options{prefix: DefaultPrefix, expire: DefaultExpire, retention: DefaultRetention, lease: DefaultLease}
	for _, opt := range opts {
		if opt != nil {
			opt(o)
		}
	}
	faults := o.faults
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if len(o.prefix) > maxNameLength {
		fault("WithPrefix: %d bytes are too many, at most %d", len(o.prefix), maxNameLength)
	}
	if len(o.instance) > maxNameLength {
		fault("WithInstance: %d bytes are too many, at most %d", len(o.instance), maxNameLength)
	}
	if limit := int(maxRetention / time.Minute); o.expire > limit {
		fault("WithExpire: %d minutes are too many, at most %d", o.expire, limit)
	}
	if o.lease < minLease {
		fault("WithLease: %v is too short, at least %v", o.lease, minLease)
	}
	if o.lease > maxLease {
		fault("WithLease: %v is too long, at most a year", o.lease)
	}
	if o.retention > maxRetention {
		fault("WithRetention: %v is too long, at most 100 years", o.retention)
	}
	if o.retention < o.lease {
		fault("WithRetention: %v is shorter than the lease, %v", o.retention, o.lease)
	}
	faults = append(faults, o.near.faults()...)
	faults = append(faults, o.layOut()...)
	if len(faults) > 0 {
		return o, fmt.Errorf("idem: options: %w", errors.Join(faults...))
	}
	return o, nil
}

// layOut makes the store of a Redis client, and returns what is wrong with its layout.
func (o *Options) layOut() (faults []error) {
	var layout []redisstore.Option
	if o.compact != nil {
		c := *o.compact
		if c.Retention != 0 && c.Retention != o.retention {
			faults = append(faults, fmt.Errorf("WithCompact: a Retention of %v, and WithRetention is %v: leave it out of WithCompact", c.Retention, o.retention))
		}
		if o.store != nil {
			faults = append(faults, errors.New("WithCompact: it is for the store of WithRedis; one that is given by WithStore has its layout: see redisstore.WithCompact"))
		}
		c.Retention = o.retention
		if err := c.Validate(); err != nil {
			faults = append(faults, err)
		}
		layout = append(layout, redisstore.WithCompact(c))
	}
	if o.redis != nil {
		o.store = redisstore.New(o.redis, layout...)
	}
	return faults
}

func isNil(v any) bool {
	if v == nil {
		return true
	}
	switch r := reflect.ValueOf(v); r.Kind() {
	case reflect.Pointer, reflect.Map, reflect.Slice, reflect.Func, reflect.Interface, reflect.Chan:
		return r.IsNil()
	}
	return false
}
