package inbox

import (
	"cmp"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/rules"
)

// version is that of the tables and of a row.
const version = 1

// Rows hold microseconds since 1970, rules count nanoseconds.
func fromMicros(n int64) rules.Instant {
	return rules.Instant(max(math.MinInt64/1000, min(n, math.MaxInt64/1000)) * 1000)
}

// toMicros rounds up: what ends does not end early.
func toMicros(t rules.Instant) int64 {
	n := int64(t / 1000)
	if t%1000 > 0 {
		n++
	}
	return n
}

func toTime(t rules.Instant) time.Time { return time.UnixMicro(int64(t) / 1000) }

// bucket is the unit of due, in microseconds.
const bucket = 60_000_000

// dueOf is when a row is deleted that expires then, in buckets. The one that it has is
// kept if it is not much too late: due is indexed, and a row whose indexed columns stay
// as they are is cheaper to change.
func dueOf(expires, had int64, lease time.Duration) int64 {
	want := expires/bucket + 1
	if had >= want && had <= want+slack(lease) {
		return had
	}
	return want + 1
}

// slack is how much too late a due may be: a claim's row is kept for a lease more than
// that of its completion, and a bucket more than it needs.
func slack(lease time.Duration) int64 { return 3 + max(0, lease.Microseconds())/bucket }

// key is where a row is.
type key struct {
	gid   int64
	token string
}

func compareKeys(a, b key) int {
	return cmp.Or(cmp.Compare(a.gid, b.gid), strings.Compare(a.token, b.token))
}

// The states of rows that are not those of package store.
const spent = 6 // done, by Spend

// row is a record as the table has it, and what becomes of it.
type row struct {
	key    key
	record rules.Record
	stored bool // there is a row, expired or not
	due    int64
	err    error // it cannot be read

	changed bool
	renewed bool // only that
}

// recordColumns are those that rows are written with.
var recordColumns = []string{
	"gid", "token", "version", "state", "claim", "attempt", "expires", "due", "at", "renewed", "lease", "incarnation", "spent", "expiries",
	"redrive", "fence", "forgot_by", "owner", "fingerprint", "result",
}

// scanned are the columns of the statements lock and read: kind 0 is the clock, the
// version and the epoch, 1 a row, 2 the key of a row that is there.
type scanned struct {
	kind, gid, version, state, attempt, expires, due int64
	at, renewed, lease, incarnation, spent, expiries int64
	redrive, fence                                   int64
	token                                            []byte
	claim, forgotBy                                  string
	owner, fingerprint, result                       []byte
}

func (s *scanned) dest() []any {
	return []any{
		&s.kind, &s.gid, &s.token, &s.version, &s.state, &s.claim, &s.attempt, &s.expires, &s.due, &s.at, &s.renewed, &s.lease,
		&s.incarnation, &s.spent, &s.expiries, &s.redrive, &s.fence, &s.forgotBy, &s.owner, &s.fingerprint, &s.result,
	}
}

func (s *scanned) key() key { return key{gid: s.gid, token: string(s.token)} }

func (s *scanned) row() *row {
	r := &row{key: s.key(), stored: true, due: s.due}
	switch {
	case s.version > version:
		r.err = fmt.Errorf("the row of token %q (gid %d): %w; update this program", r.key.token, s.gid, store.ErrNewer)
		return r
	case s.version < 1 || s.state < 1 || s.state > spent:
		r.err = fmt.Errorf("the row of token %q (gid %d) has version %d and state %d: %w; see what wrote it, then delete it",
			r.key.token, s.gid, s.version, s.state, store.ErrUnreadable)
		return r
	case !isClaim(s.claim) || !isClaim(s.forgotBy):
		r.err = fmt.Errorf("the row of token %q (gid %d) has claims %q and %q: %w; see what wrote it, then delete it",
			r.key.token, s.gid, s.claim, s.forgotBy, store.ErrUnreadable)
		return r
	case min(s.attempt, s.spent, s.expiries, s.redrive, s.fence, s.at, s.renewed, s.lease) < 0 ||
		max(s.attempt, s.spent, s.expiries, s.fence) >= math.MaxInt32: // more could not be kept
		r.err = fmt.Errorf("the row of token %q (gid %d) has numbers that were never counted: %w; see what wrote it, then delete it",
			r.key.token, s.gid, store.ErrUnreadable)
		return r
	}
	r.record = rules.Record{
		State: store.State(s.state), Claim: s.claim, Attempt: int(s.attempt), Spent: int(s.spent), Expiries: int(s.expiries), Redrive: int(s.redrive),
		Fence: int(s.fence), ForgotBy: s.forgotBy, BySpend: s.state == spent,
		At: fromMicros(s.at), Renewed: fromMicros(s.renewed), Lease: time.Duration(fromMicros(s.lease)),
		Owner: string(s.owner), Incarnation: uint64(s.incarnation),
		Fingerprint: string(s.fingerprint), Expires: fromMicros(s.expires),
	}
	if s.state == spent {
		r.record.State = store.Done
	}
	if len(s.result) > 0 {
		r.record.Result = s.result
	}
	return r
}

// values are a row's, under [recordColumns].
func (r *row) values(lease time.Duration) []any {
	rec := &r.record
	expires := toMicros(rec.Expires)
	state := int64(rec.State)
	if rec.State == store.Done && rec.BySpend {
		state = spent
	}
	var at, renewed, length any
	switch rec.State {
	case store.Running:
		renewed, length = int64(rec.Renewed/1000), int64(rec.Lease/1000)
	case store.Done, store.Dead:
		at = int64(rec.At / 1000)
	}
	return []any{
		r.key.gid, []byte(r.key.token), int64(version), state, rec.Claim, small(rec.Attempt), expires, dueOf(expires, r.due, lease), at, renewed, length,
		number(int64(rec.Incarnation)), number(small(rec.Spent)), number(small(rec.Expiries)), number(int64(rec.Redrive)), number(small(rec.Fence)),
		text(rec.ForgotBy), blob([]byte(rec.Owner)), blob([]byte(rec.Fingerprint)), blob(rec.Result),
	}
}

// isClaim tells what is a claim id, or none. What is not is never written into a statement
// again: it may end the literal.
func isClaim(s string) bool { return len(s) <= 40 && plain(s) }

// small is a count in the room of its column.
func small(n int) int64 { return int64(min(n, math.MaxInt32)) }

// What is zero or empty is NULL.
func number(n int64) any {
	if n == 0 {
		return nil
	}
	return n
}

func text(s string) any {
	if s == "" {
		return nil
	}
	return s
}

func blob(b []byte) any {
	if len(b) == 0 {
		return nil
	}
	return b
}

// issuedRow is a registration as the table has it, and what becomes of it.
type issuedRow struct {
	key     key
	issued  rules.Issued
	stored  bool
	due     int64
	err     error
	changed bool
}

// readIssuedRow is a row of registrations, of these columns.
func readIssuedRow(k key, v, checkBy int64, checkedBy string, expires, due int64) *issuedRow {
	r := &issuedRow{key: k, stored: true, due: due}
	switch {
	case v > version:
		r.err = fmt.Errorf("the registration of token %q (gid %d): %w; update this program", k.token, k.gid, store.ErrNewer)
	case v < 1 || !isClaim(checkedBy):
		r.err = fmt.Errorf("the registration of token %q (gid %d) has version %d, and was spent by %q: %w; see what wrote it, then delete it",
			k.token, k.gid, v, checkedBy, store.ErrUnreadable)
	}
	r.issued = rules.Issued{Known: true, CheckBy: fromMicros(checkBy), CheckedBy: checkedBy, Expires: fromMicros(expires)}
	return r
}

var issuedColumns = []string{"gid", "token", "version", "check_by", "checked_by", "expires", "due"}

func (r *issuedRow) values() []any {
	expires := toMicros(r.issued.Expires)
	return []any{
		r.key.gid, []byte(r.key.token), int64(version), int64(r.issued.CheckBy / 1000), text(r.issued.CheckedBy), expires, dueOf(expires, r.due, 0),
	}
}
