// Package rules executes the operations of package store on records in memory: what
// drivers share that read a record, decide, and write it back in one atomic step. What
// the operations do is said at [store.Kind]; this package knows no database, and reads
// no clock.
package rules

import (
	"math"
	"time"

	"github.com/idemq/idemq/idem/store"
)

// Instant is a point on a store's clock, in nanoseconds since an origin that the
// driver chooses and keeps.
type Instant int64

// Plus adds d; it stays at the end of time instead of wrapping around.
func (t Instant) Plus(d time.Duration) Instant {
	if d > 0 && t > math.MaxInt64-Instant(d) {
		return math.MaxInt64
	}
	return t + Instant(d)
}

// Until is the time from t to u.
func (t Instant) Until(u Instant) time.Duration { return time.Duration(u - t) }

// Record is all that is kept of a token in a group. The zero value is an absent one.
type Record struct {
	State    store.State
	Claim    string // of the last claim
	Attempt  int
	Spent    int // kept on done by Spend, for repeated answers
	Expiries int // the same
	Redrive  int

	Fence    int    // claims of attempts up to this one were made before a Forget, or of another payload
	ForgotBy string // the claim id of the last Forget
	BySpend  bool   // done, by Spend

	At          Instant       // done, dead: since when
	Renewed     Instant       // in progress, as the next three: when the lease started last
	Lease       time.Duration // how long it was then
	Owner       string
	Incarnation uint64

	Fingerprint string
	Result      []byte

	Expires Instant // the driver drops the record then, or later
}

// LeaseEnd is when the lease of a record in progress runs out.
func (r *Record) LeaseEnd() Instant { return r.Renewed.Plus(r.Lease) }

// Issued is the registration of an issued token. The zero value is none.
type Issued struct {
	Known     bool
	CheckBy   Instant // how long it may wait for its Check
	CheckedBy string  // the claim id of the Check that spent it

	Expires Instant // the driver drops it then, or later
}
