package redisstore

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"strconv"
	"time"

	"github.com/idemq/idemq/idem/store"
)

const (
	defaultRetention = 24 * time.Hour
	defaultTokens    = 10_000_000

	// bucketTokens is how many tokens of one generation a bucket is made for. Redis keeps a
	// set compact up to its set-max-intset-entries, 512 by default; between them is room for
	// chance, and for more tokens than were expected.
	bucketTokens = 320

	maxTokens    = int64(1_000_000_000_000)
	maxRetention = 100 * 365 * 24 * time.Hour
)

// Compact are the settings of the compact layout. Zero values mean the default. They are
// kept in Redis when a prefix is first used, and a store with others is refused: it would
// not find what was done.
type Compact struct {
	// Retention is the longest that a batch may ask for, and for how long at least a done
	// token is remembered, whatever its batch asked for: up to twice as long, and a
	// second. The default is 24 hours.
	Retention time.Duration

	// Tokens is how many tokens, of all groups together, are expected to be done in one
	// Retention; the default is 10 million. With up to a third more a token costs what it
	// should; with twice as many it costs up to eight times that, and nothing else changes. A
	// number that is too high costs less.
	Tokens int

	// FromRecords takes over a prefix that is laid out as records. Stop all of its consumers
	// first: one that goes on in the old layout does not find what is done in the new one, and
	// would handle it again. What is done in the old one is found until its own retention
	// ends. When the prefix is taken over, at its first use, the setting has no more to do, and
	// can be left out.
	FromRecords bool
}

// WithCompact keeps of a done token 64 bits of a hash of prefix, group and token, for those
// who have tens of millions of tokens to remember. Tokens in progress, released, dead or
// forgotten are kept as without it, and so are issued ones.
//
// Of a done token nothing is known but that it is done: not when, on which attempt, or
// with which result. Payload fingerprints are neither kept nor compared. A Commit on it is
// OK, whoever completed it. A Forget starts its attempts anew, so that a claim of before the
// completion can commit again when the token was claimed and released since. For
// store.CheckMemory a Spend can be repeated, and its token be buried; a repeat after that
// is a Duplicate, the Bury is Lost.
//
// A token that was never seen is taken for a done one if its 64 bits are those of another one in
// its bucket: with probability n/2^64 where n are looked at, which are some hundred.
// Then its message is lost. docs/redis.md has the figures.
func WithCompact(c Compact) Option {
	return func(s *Store) { s.compact = &compact{Compact: c} }
}

// compact is the compact layout with its settings.
type compact struct {
	Compact
	tags       int
	buckets    uint64 // of one tag
	generation uint64 // how long one lasts, ms
}

// Validate returns all that is wrong with the settings, or nil.
func (c Compact) Validate() error {
	var errs []error
	if c.Retention != 0 && (c.Retention < time.Millisecond || c.Retention > maxRetention) {
		errs = append(errs, fmt.Errorf("WithCompact: a Retention of %v: must be 1ms to 100 years, or 0 for the default, %v", c.Retention, defaultRetention))
	}
	if c.Tokens < 0 || int64(c.Tokens) > maxTokens {
		errs = append(errs, fmt.Errorf("WithCompact: %d Tokens: must be 1 to %d, or 0 for the default, %d", c.Tokens, maxTokens, defaultTokens))
	}
	return errors.Join(errs...)
}

// complete fills in defaults, and what follows from settings that are right.
func (c *compact) complete(tags int) {
	c.Retention = cmp.Or(c.Retention, defaultRetention)
	c.Tokens = cmp.Or(c.Tokens, defaultTokens)
	c.tags = tags
	tokens := uint64(tags) * bucketTokens // in a bucket of each tag
	c.buckets = (uint64(c.Tokens) + tokens - 1) / tokens
	c.generation = uint64(ceilMilliseconds(c.Retention) + time.Second.Milliseconds())
}

func (c *compact) tooShort(asked time.Duration) error {
	return fmt.Errorf("redisstore: a retention of %v is asked for, and done tokens are kept for %v: give WithCompact a Retention of %v, "+
		"or shorten what is asked for", asked, c.Retention, asked)
}

// place is where it is said that a token is done.
type place struct {
	sets        [2]string // of the even and the odd generation
	fingerprint string
	phase       string // of the bucket, ms; empty: nothing is added
}

// placed is false for operations to which a done token is as one without a record.
func placed(k store.Kind) bool { return k != store.Release && k != store.Renew }

// adds tells whether an operation may add its token to those that are done.
func adds(k store.Kind) bool { return k == store.Commit || k == store.Spend }

// write writes the strings of an operation's place, in the order of its fields.
func (c *compact) write(s *scratch, k *keys, tag int, op *store.Op) {
	sum := c.hash(s, k, op)
	fingerprint, bucket := binary.BigEndian.Uint64(sum[:8]), binary.BigEndian.Uint64(sum[8:16])%c.buckets
	for generation := range int64(2) {
		s.text = k.appendBucket(s.text, tag, bucket, generation)
		s.end()
	}
	s.text = strconv.AppendInt(s.text, int64(fingerprint), 10)
	s.end()
	if adds(op.Kind) {
		s.text = strconv.AppendUint(s.text, c.phase(tag, bucket), 10)
	}
	s.end()
}

// hash is of prefix, group and token. None of them runs into the next: their lengths are
// hashed before them. It uses the room behind the text.
func (c *compact) hash(s *scratch, k *keys, op *store.Op) [sha256.Size]byte {
	from := len(s.text)
	for _, part := range [...]string{k.head, op.Group} {
		s.text = append(binary.AppendUvarint(s.text, uint64(len(part))), part...)
	}
	s.text = append(s.text, op.Token...)
	sum := sha256.Sum256(s.text[from:])
	s.text = s.text[:from]
	return sum
}

// phase spreads the generations' beginnings, over the buckets of one tag as well.
func (c *compact) phase(tag int, bucket uint64) uint64 {
	hi, lo := bits.Mul64(bucket*uint64(c.tags)+uint64(tag), c.generation)
	phase, _ := bits.Div64(hi, lo, c.buckets*uint64(c.tags))
	return phase
}

// keepable is an operation without what the layout does not keep.
func (c *compact) keepable(op *store.Op) *store.Op {
	if op.Fingerprint == "" && len(op.Result) == 0 {
		return op
	}
	kept := *op
	kept.Fingerprint, kept.Result = "", nil
	return &kept
}

// scripts are those of the store's layout.
func (s *Store) scripts() *scripts {
	if s.compact != nil {
		return compactScripts
	}
	return recordsScripts
}

// generation is how long one lasts, in milliseconds; empty: there are none.
func (s *Store) generation() string {
	if s.compact == nil {
		return ""
	}
	return strconv.FormatUint(s.compact.generation, 10)
}
