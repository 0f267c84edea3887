package inbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/rules"
)

const (
	// maxOps is how many operations one transaction takes.
	maxOps = 500
	// patience is how long a row is tried that somebody else holds: longer than their
	// transactions take, and well below what a caller waits for a batch.
	patience = 300 * time.Millisecond
	// smallStatement is what every MySQL takes.
	smallStatement = 1024
	// shortest is the least that MySQL waits for a row.
	shortest = time.Second
	// searching is how long a row is looked for that somebody else inserts.
	searching = time.Second
	// hurry is the patience with what was waited for already.
	hurry = 10 * time.Millisecond
	// heldRetry is the RetryAfter of a claim whose row stays locked.
	heldRetry = 200 * time.Millisecond
)

// Apply implements store.Store. A batch is one transaction for each 500 operations.
func (s *Store) Apply(ctx context.Context, b *store.Batch) error {
	b.Notice, b.Losses = "", 0
	if err := s.prepare(ctx); err != nil {
		return err
	}
	for i := range b.Ops {
		if err := checkOp(&b.Ops[i]); err != nil {
			return fmt.Errorf("%s: operation %d: %w", s.config.Package, i, err)
		}
	}
	b.Replies = slices.Grow(b.Replies[:0], len(b.Ops))[:len(b.Ops)]
	clear(b.Replies)
	b.Now = time.Time{}
	epoch := ""
	for from := 0; from == 0 || from < len(b.Ops); from += maxOps {
		to := min(from+maxOps, len(b.Ops))
		var err error
		if epoch, err = s.apply(ctx, b, b.Ops[from:to], b.Replies[from:to], time.Time{}); err != nil {
			return s.failure("executing "+plural(len(b.Ops), "operation"), err)
		}
	}
	s.sweepSometimes(ctx, b)
	s.tell(b, epoch)
	return nil
}

func checkOp(op *store.Op) error {
	switch {
	case op.Kind < store.Begin || op.Kind > store.Check:
		return fmt.Errorf("there is no kind %d", op.Kind)
	case len(op.Token) > 255:
		return fmt.Errorf("the token has %d bytes; at most 255 are allowed", len(op.Token))
	case !isClaim(op.Claim):
		return fmt.Errorf("the claim id %q is none", op.Claim)
	case len(op.Fingerprint) > 64:
		return fmt.Errorf("the fingerprint has %d bytes; at most 64 are allowed", len(op.Fingerprint))
	}
	return nil
}

// execution is one try of some operations.
type execution struct {
	s       *Store
	b       *store.Batch
	ops     []store.Op
	replies []store.Reply
	yield   bool  // operations whose rows are held by others are answered so
	wait    []key // rows that others held at the last try, and then at this one

	patience time.Duration // with these rows
	handlers bool          // the transaction is a handler's

	rows    *needs // of the operations, once they are known
	records map[key]*row
	issued  map[key]*issuedRow
	held    map[key]bool // rows that others hold
	heldToo map[key]bool // and registrations
	rules   rules.Execution
	now     int64
	epoch   string
}

// errHeld: somebody else holds a row that is needed.
var errHeld = errors.New("another transaction holds a record that is needed")

// errEpoch: the tables are not those that were known.
var errEpoch = errors.New("the tables have changed")

// errFaster: what was absent is there.
var errFaster = errors.New("another transaction was faster")

// errInserting: somebody else inserts a row that is needed, and does not commit.
var errInserting = errors.New("another transaction is inserting a record that is needed")

// apply executes operations in one transaction. Where that is more than the server takes, or
// somebody else is inserting one of its rows (which cannot be seen, only waited for), it
// halves them until that row stands alone and is answered as held. The first insert that is
// waited for in vain sets until: after that time no half is divided for its claims; those of
// rows that are not there are answered as in progress, and the rest is executed.
func (s *Store) apply(ctx context.Context, b *store.Batch, ops []store.Op, replies []store.Reply, until time.Time) (epoch string, err error) {
	epoch, err = s.applyAtOnce(ctx, b, ops, replies, until)
	inserting := errors.Is(err, errInserting)
	if err == nil || !inserting && !s.isTooLarge(ctx, err, ops) {
		return epoch, err
	}
	if inserting && until.IsZero() {
		until = time.Now().Add(within(ctx, searching))
	}
	if half := len(ops) / 2; half > 0 {
		if epoch, err = s.apply(ctx, b, ops[:half], replies[:half], until); err != nil {
			return epoch, err
		}
		return s.apply(ctx, b, ops[half:], replies[half:], until)
	}
	if inserting {
		replies[0] = s.insertingReply(&ops[0], b)
		return epoch, nil
	}
	tooLarge := s.tooLargeError(&ops[0], err)
	look := []store.Op{{Kind: store.Inspect, Group: ops[0].Group, Token: ops[0].Token}}
	if epoch, err = s.applyAtOnce(ctx, b, look, replies, until); err == nil { // there is an answer, and a clock
		replies[0] = store.Reply{Err: tooLarge}
	}
	return epoch, err
}

// tooLargeError is the error of an operation that does not fit, ever. It wraps no error of
// the connection, which would pass.
func (s *Store) tooLargeError(op *store.Op, err error) error {
	return fmt.Errorf("%s: token %q, with a result of %d bytes, is more than the server takes in one statement: %s (%s)",
		s.config.Package, op.Token, len(op.Result), err.Error(), s.smaller())
}

// isTooLarge tells whether err comes of the operations' size. MySQL breaks the connection
// while it is being sent more than it takes.
func (s *Store) isTooLarge(ctx context.Context, err error, ops []store.Op) bool {
	switch k := s.kind(err); {
	case k == tooLarge:
		return true
	case k != unreachable || s.config.Dialect != MySQL:
		return false
	}
	size := int64(0)
	for i := range ops {
		size += 100 + 2*int64(len(ops[i].Result)+len(ops[i].Token))
	}
	if size < smallStatement {
		return false
	}
	limit, _, err := s.number(ctx, s.db, "largest", nil)
	return err == nil && size > limit
}

// within bounds a time by a part of the context's, or one row that is held would fail the
// whole batch.
func within(ctx context.Context, d time.Duration) time.Duration {
	if end, ok := ctx.Deadline(); ok {
		return min(d, time.Until(end)/3)
	}
	return d
}

// applyAtOnce executes operations, in one transaction that is tried until it goes through.
func (s *Store) applyAtOnce(ctx context.Context, b *store.Batch, ops []store.Op, replies []store.Reply, until time.Time) (epoch string, err error) {
	start, limit := time.Now(), within(ctx, patience)
	if !until.IsZero() {
		limit = min(limit, hurry)
	}
	var wait []key
	err = s.persist(ctx, func() error {
		x := &execution{s: s, b: b, ops: ops, replies: replies, yield: time.Since(start) > limit, wait: wait, patience: limit}
		clear(replies)
		err := x.run(ctx)
		wait, epoch = x.wait, x.epoch
		if s.kind2(err) == full {
			noRoom := fmt.Errorf("%s: %w: %w; see to the database's disk", s.config.Package, store.ErrFull, err)
			err = x.withoutClaims(ctx, err, func(*store.Op) store.Reply { return store.Reply{Err: noRoom} })
		}
		if late := !until.IsZero() && time.Now().After(until); late && errors.Is(err, errInserting) {
			err = x.withoutClaims(ctx, err, func(op *store.Op) store.Reply { return s.insertingReply(op, b) })
		}
		if errors.Is(err, errInserting) && time.Since(start) > limit {
			return err
		}
		return s.mark(err)
	})
	return epoch, err
}

func (s *Store) kind2(err error) kind {
	if err == nil {
		return refused
	}
	return s.kind(err)
}

// withoutClaims answers what makes new records, and executes the rest: of a record that is
// there too, since it may be the caller's own claim, whose answer was lost. Where there is no
// room, only if it stays as it is.
func (x *execution) withoutClaims(ctx context.Context, cause error, answer func(*store.Op) store.Reply) error {
	var rest []int
	noRoom := x.s.kind(cause) == full
	for i := range x.ops {
		switch x.ops[i].Kind {
		case store.Begin, store.Spend, store.Issue:
			if stored, changed := x.found(i); !stored || changed && noRoom {
				continue
			}
		}
		rest = append(rest, i)
	}
	if len(rest) == len(x.ops) {
		return cause
	}
	ops, replies := make([]store.Op, len(rest)), make([]store.Reply, len(rest))
	for i, n := range rest {
		ops[i] = x.ops[n]
	}
	y := &execution{s: x.s, b: x.b, ops: ops, replies: replies, yield: x.yield, patience: x.patience}
	if err := y.run(ctx); err != nil {
		return err
	}
	for i := range x.replies {
		x.replies[i] = answer(&x.ops[i])
	}
	for i, n := range rest {
		x.replies[n] = replies[i]
	}
	return nil
}

// found tells whether the record of an operation, or the registration that it makes, was
// there, and whether the operations have changed it.
func (x *execution) found(i int) (stored, changed bool) {
	if x.rows == nil {
		return false, false
	}
	if x.ops[i].Kind == store.Issue {
		r := x.issued[x.rows.issued[i]]
		return r != nil && r.stored, r != nil && r.changed
	}
	r := x.records[x.rows.records[i]]
	return r != nil && r.stored, r != nil && r.changed
}

func (x *execution) run(ctx context.Context) error {
	need, err := x.need(ctx)
	if err != nil {
		return err
	}
	x.rows = need
	if !need.writes {
		return x.read(ctx, need)
	}
	tx, err := x.s.db.Begin(ctx, x.s.statements.begin)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if err := x.await(ctx, tx); err != nil {
		return err
	}
	if err := x.load(ctx, tx, need); err != nil {
		return err
	}
	x.execute(need)
	if err := x.write(ctx, tx); err != nil {
		return err
	}
	if err := tx.Commit(ctx); err != nil {
		return err
	}
	x.s.settled(x)
	return nil
}

// needs are the rows of some operations.
type needs struct {
	records, issued []key // of each operation; gid zero: none

	lock       []key // records
	readOnly   []key // records that are only inspected
	lockIssued []key
	readIssued []key
	writes     bool
}

func (x *execution) need(ctx context.Context) (*needs, error) {
	n := &needs{records: make([]key, len(x.ops)), issued: make([]key, len(x.ops))}
	lock, look := map[key]bool{}, map[key]bool{}
	lockIssued, lookIssued := map[key]bool{}, map[key]bool{}
	for i := range x.ops {
		op := &x.ops[i]
		record, issued := rules.Needs(op, x.b)
		if record {
			gid, err := x.s.gid(ctx, ofGroup, x.b.Prefix, op.Group, op.Kind != store.Inspect)
			if err != nil {
				return nil, err
			}
			k := key{gid, op.Token}
			if op.Kind == store.Renew && x.s.isCommitting(lease{k, op.Claim}) {
				// Answered as Lost, as it would be after COMMIT. The guard that is committing the claim
				// ignores it (claim.wasEnding); waiting for the row would be told as an outage.
				continue
			}
			n.records[i] = k
			if op.Kind == store.Inspect {
				look[k] = true
			} else {
				lock[k] = true
			}
		}
		if issued {
			gid, err := x.s.gid(ctx, ofIssued, x.b.Prefix, "", op.Kind == store.Issue)
			if err != nil {
				return nil, err
			}
			n.issued[i] = key{gid, op.Token}
			if op.Kind == store.Issue || op.Kind == store.Check {
				lockIssued[n.issued[i]] = true
			} else {
				lookIssued[n.issued[i]] = true
			}
		}
	}
	for _, m := range []map[key]bool{look, lockIssued, lookIssued} {
		maps.DeleteFunc(m, func(k key, _ bool) bool { return k.gid == 0 })
	}
	for k := range lock {
		delete(look, k)
	}
	for k := range lockIssued {
		delete(lookIssued, k)
	}
	n.lock, n.readOnly, n.lockIssued, n.readIssued = sorted(lock), sorted(look), sorted(lockIssued), sorted(lookIssued)
	n.writes = len(n.lock)+len(n.lockIssued) > 0
	return n, nil
}

func sorted[V any](m map[key]V) []key { return slices.SortedFunc(maps.Keys(m), compareKeys) }

// read answers operations that only look.
func (x *execution) read(ctx context.Context, n *needs) error {
	if err := x.look(ctx, x.s.db, "read", n.readOnly); err != nil {
		return err
	}
	if err := x.readIssued(ctx, x.s.db, "read_issued", n.readIssued); err != nil {
		return err
	}
	if err := x.leases(ctx, x.s.db, n); err != nil {
		return err
	}
	x.execute(n)
	return nil
}

// lockWait is how long the server may wait for a row: milliseconds in PostgreSQL, seconds in
// MySQL. Zero in MySQL: do not wait. Zero in PostgreSQL: leave the setting, since in a handler's
// transaction ours would stay until its end.
func (x *execution) lockWait(ctx context.Context) int64 {
	switch {
	case x.s.config.Dialect != MySQL && x.handlers:
		return 0
	case x.s.config.Dialect != MySQL:
		return max(1, x.patience.Milliseconds())
	}
	if d, ok := ctx.Deadline(); x.patience < patience || ok && time.Until(d) < shortest+x.patience {
		return 0
	}
	return 1
}

// await takes the locks that others held at the last try, in the order of the keys and
// before any other: nobody who waits here holds what somebody else waits for.
func (x *execution) await(ctx context.Context, tx Tx) error {
	if len(x.wait) == 0 {
		return nil
	}
	wait := x.lockWait(ctx)
	if wait == 0 {
		return nil // the next try comes soon
	}
	if _, err := x.s.exec(ctx, tx, "patient", values{"wait": wait}); err != nil {
		return err
	}
	_, _, err := x.s.number(ctx, tx, "wait", values{"keys": keyTable(x.wait)})
	if x.s.config.Dialect == MySQL {
		_, reset := x.s.exec(ctx, tx, "impatient", nil)
		err = errors.Join(err, reset)
	}
	if err != nil {
		x.wait = nil // the next try looks first
	}
	return err
}

// load locks the rows and reads them.
func (x *execution) load(ctx context.Context, tx Tx, n *needs) error {
	if err := x.look(ctx, tx, "lock", n.lock); err != nil {
		return err
	}
	wait, inspected := make(map[key]bool), n.readOnly
	for i, k := range n.records {
		if !x.held[k] {
			continue
		}
		switch {
		case x.ops[i].Kind == store.Inspect:
			inspected = append(inspected, k)
		case !x.yield:
			wait[k] = true
		}
	}
	if x.wait = sorted(wait); len(wait) > 0 {
		return again{errHeld}
	}
	if len(inspected) > 0 {
		slices.SortFunc(inspected, compareKeys)
		if err := x.look(ctx, tx, "read", slices.Compact(inspected)); err != nil {
			return err
		}
	}
	if len(n.lockIssued) > 0 {
		if err := x.readIssued(ctx, tx, "lock_issued", n.lockIssued); err != nil {
			return err
		}
	}
	if err := x.readIssued(ctx, tx, "read_issued", n.readIssued); err != nil {
		return err
	}
	return x.leases(ctx, tx, n)
}

func keyTable(keys []key) table {
	t := table{columns: []string{"gid", "token"}, rows: make([][]any, len(keys))}
	for i, k := range keys {
		t.rows[i] = []any{k.gid, []byte(k.token)}
	}
	return t
}

// idle is after how long the server ends a transaction of a process that was stopped, as
// far as its settings reach.
func (s *Store) idle(lease time.Duration) string {
	return fmt.Sprint(min(max(lease, time.Second).Milliseconds(), math.MaxInt32))
}

// look reads rows, and the clock with them. The clock is never later than the locks:
// an earlier one only makes leases look longer.
func (x *execution) look(ctx context.Context, c Conn, statement string, keys []key) error {
	if x.records == nil {
		x.records, x.held = make(map[key]*row), make(map[key]bool)
	}
	var there []key
	var r scanned
	dest := r.dest()
	known := false
	v := values{"keys": keyTable(keys), "idle": x.s.idle(x.b.Lease), "now": now()}
	err := x.s.query(ctx, c, statement, v, func(rows Rows) error {
		r.token, r.owner, r.fingerprint, r.result = nil, nil, nil, nil
		if err := rows.Scan(dest...); err != nil {
			return err
		}
		switch r.kind {
		case 0:
			known = true
			x.now, x.epoch = r.expires, r.claim
			return x.s.agree(r.version)
		case 1:
			x.records[r.key()] = r.row()
		case 2:
			there = append(there, r.key())
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := x.checkMeta(known); err != nil {
		return err
	}
	x.rules = rules.Execution{Batch: x.b, Now: fromMicros(x.now), Time: toTime}
	for _, k := range there {
		if x.records[k] == nil {
			x.held[k] = true
		}
	}
	return nil
}

// checkMeta tells what is to be done first about the tables, found or not.
func (x *execution) checkMeta(found bool) error {
	if !found {
		return olderSchemaError{x.s, 0}
	}
	if !x.s.knows(x.epoch) {
		x.s.saw(x.epoch)
		return again{errEpoch}
	}
	return nil
}

func (x *execution) readIssued(ctx context.Context, c Conn, statement string, keys []key) error {
	if x.issued == nil {
		x.issued, x.heldToo = make(map[key]*issuedRow), make(map[key]bool)
	}
	if len(keys) == 0 {
		return nil
	}
	var there []key
	err := x.s.query(ctx, c, statement, values{"keys": keyTable(keys)}, func(rows Rows) error {
		var kind, gid, v, checkBy, expires, due int64
		var token []byte
		var checkedBy string
		if err := rows.Scan(&kind, &gid, &token, &v, &checkBy, &checkedBy, &expires, &due); err != nil {
			return err
		}
		k := key{gid, string(token)}
		if kind == 2 {
			there = append(there, k)
			return nil
		}
		x.issued[k] = readIssuedRow(k, v, checkBy, checkedBy, expires, due)
		return nil
	})
	if err != nil {
		return err
	}
	for _, k := range there {
		if x.issued[k] == nil {
			if !x.yield {
				return again{errHeld}
			}
			x.heldToo[k] = true
		}
	}
	return nil
}

// leases reads the renewals of the records whose lease somebody else asks about, or
// whose time has passed without them. It is a statement of its own, after the locks:
// one with them would show what was there before they were waited for.
func (x *execution) leases(ctx context.Context, c Conn, n *needs) error {
	wanted := make(map[key]bool)
	for i, k := range n.records {
		r := x.records[k]
		if r == nil || r.err != nil || r.record.State != store.Running {
			continue
		}
		if r.record.Claim != x.ops[i].Claim || r.record.Expires <= x.rules.Now {
			wanted[k] = true
		}
	}
	return x.merge(ctx, c, sorted(wanted))
}

func (x *execution) merge(ctx context.Context, c Conn, keys []key) error {
	if len(keys) == 0 {
		return nil
	}
	return x.s.query(ctx, c, "leases", values{"keys": keyTable(keys)}, func(rows Rows) error {
		var gid, renewed, length, expires int64
		var token []byte
		var claim string
		if err := rows.Scan(&gid, &token, &claim, &renewed, &length, &expires); err != nil {
			return err
		}
		r := x.records[key{gid, string(token)}]
		if r == nil || r.record.Claim != claim || fromMicros(renewed) < r.record.Renewed {
			return nil
		}
		r.record.Renewed, r.record.Lease = fromMicros(renewed), time.Duration(fromMicros(length))
		r.record.Expires = max(r.record.Expires, fromMicros(expires))
		return nil
	})
}

// execute runs the rules.
func (x *execution) execute(n *needs) {
	if at := toTime(x.rules.Now); at.After(x.b.Now) {
		x.b.Now = at
	}
	for i := range x.ops {
		x.replies[i] = x.do(&x.ops[i], n.records[i], n.issued[i])
	}
}

// insertingReply is the answer to an operation whose row somebody else is inserting, or may be:
// each batch that asks again pays for the search.
func (s *Store) insertingReply(op *store.Op, b *store.Batch) store.Reply {
	return s.heldReply(op, max(heldRetry, b.Lease/3))
}

// heldReply is the answer to an operation whose row somebody else holds.
func (s *Store) heldReply(op *store.Op, after time.Duration) store.Reply {
	switch op.Kind {
	case store.Begin, store.Spend, store.Forget:
		return store.Reply{Status: store.InProgress, RetryAfter: after}
	}
	return store.Reply{Err: fmt.Errorf("%s: token %q: %w: %w", s.config.Package, op.Token, store.ErrUnavailable, errHeld)}
}

func (x *execution) do(op *store.Op, k, ik key) store.Reply {
	if x.held[k] && op.Kind != store.Inspect || x.heldToo[ik] {
		return x.s.heldReply(op, heldRetry)
	}
	var rec rules.Record
	var iss rules.Issued
	r, i := x.records[k], x.issued[ik]
	if k.gid != 0 && r == nil {
		r = &row{key: k}
		x.records[k] = r
	}
	if ik.gid != 0 && i == nil {
		i = &issuedRow{key: ik}
		x.issued[ik] = i
	}
	switch {
	case r != nil && r.err != nil:
		return store.Reply{Err: fmt.Errorf("%s: %w", x.s.config.Package, r.err)}
	case i != nil && i.err != nil:
		return store.Reply{Err: fmt.Errorf("%s: %w", x.s.config.Package, i.err)}
	}
	if r != nil && r.record.Expires > x.rules.Now {
		rec = r.record
	}
	if i != nil && i.issued.Expires > x.rules.Now {
		iss = i.issued
	}
	reply, changed := x.rules.Do(op, &rec, &iss)
	switch {
	case !changed:
	case k.gid == 0:
		i.issued, i.changed = iss, true
	default:
		r.record = rec
		if op.Kind == store.Renew {
			r.renewed = true
		} else {
			r.changed = true
		}
	}
	return reply
}

// write writes what has changed.
func (x *execution) write(ctx context.Context, tx Tx) error {
	var fresh, known, renewals, freshIssued, knownIssued [][]any
	for _, k := range sorted(x.records) {
		switch r := x.records[k]; {
		case r.changed && r.stored:
			known = append(known, r.values(x.b.Lease))
		case r.changed:
			fresh = append(fresh, r.values(x.b.Lease))
		case r.renewed:
			renewals = append(renewals, []any{
				k.gid, []byte(k.token), r.record.Claim, int64(r.record.Renewed / 1000), int64(r.record.Lease / 1000), toMicros(r.record.Expires),
			})
		}
	}
	for _, k := range sorted(x.issued) {
		switch r := x.issued[k]; {
		case r.changed && r.stored:
			knownIssued = append(knownIssued, r.values())
		case r.changed:
			freshIssued = append(freshIssued, r.values())
		}
	}
	if err := x.writeRows(ctx, tx, "", recordColumns, fresh, known); err != nil {
		return err
	}
	if len(renewals) > 0 {
		t := table{columns: []string{"gid", "token", "claim", "renewed", "lease", "expires"}, rows: renewals}
		if _, err := x.s.exec(ctx, tx, "renew", values{"rows": t}); err != nil {
			return err
		}
	}
	return x.writeRows(ctx, tx, "_issued", issuedColumns, freshIssued, knownIssued)
}

// writeRows writes rows of records or of issued: new ones in the order of their keys, and
// others, which are there and locked. A row that somebody else is inserting is waited for.
func (x *execution) writeRows(ctx context.Context, tx Conn, which string, columns []string, fresh, known [][]any) error {
	s := x.s
	if len(fresh)+len(known) == 0 {
		return nil
	}
	wait := x.lockWait(ctx)
	if s.config.Dialect != Postgres {
		if len(fresh) > 0 {
			if _, err := s.exec(ctx, tx, "insert"+which, values{"wait": wait, "rows": table{rows: fresh}}); err != nil {
				return s.inserting(err)
			}
		}
		if len(known) > 0 {
			_, err := s.exec(ctx, tx, "update"+which, values{"rows": table{rows: known}})
			return err
		}
		return nil
	}
	t := table{columns: append([]string{"fresh"}, columns...)}
	for i, r := range append(fresh, known...) {
		isNew := int64(0)
		if i < len(fresh) {
			isNew = 1
		}
		t.rows = append(t.rows, append([]any{isNew}, r...))
	}
	n, _, err := s.number(ctx, tx, "write"+which, values{"wait": wait, "rows": t})
	err = s.inserting(err)
	if err == nil && n != int64(len(t.rows)) {
		err = again{errFaster}
	}
	return err
}

// inserting wraps the error of an insert that waited too long.
func (s *Store) inserting(err error) error {
	if err != nil && s.timedOut(err) {
		return fmt.Errorf("%w: %w", errInserting, err)
	}
	return err
}

// maxEnded bounds what is kept in mind of the leases' rows; the others are swept when
// their records' time has passed.
const maxEnded = 100_000

// settled keeps account of the leases' rows, after the commit.
func (s *Store) settled(x *execution) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, r := range x.records {
		switch claim := s.renewed[k]; {
		case r.renewed && !r.changed:
			if claim == "" {
				makeRoom(s.renewed, maxEnded)
			}
			s.renewed[k] = r.record.Claim
		case claim != "" && (r.record.State != store.Running || r.record.Claim != claim):
			s.forgetLease(k, claim)
		}
	}
}

// makeRoom forgets some entry of a map that is full.
func makeRoom[K comparable, V any](m map[K]V, limit int) {
	if len(m) < limit {
		return
	}
	for k := range m {
		delete(m, k)
		return
	}
}

// commits notes that COMMIT of a claim's completion is under way, or is not any more.
func (s *Store) commits(l lease, underWay bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if underWay {
		s.committing[l] = struct{}{}
	} else {
		delete(s.committing, l)
	}
}

// isCommitting reports whether COMMIT of a claim's completion is under way in this process.
func (s *Store) isCommitting(l lease) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, is := s.committing[l]
	return is
}

// claimOver is called where COMMIT is known to have ended the claim: one that fails leaves it
// held, for as long as its row says.
func (s *Store) claimOver(l lease) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if claim := s.renewed[l.key]; claim != "" && claim == l.claim {
		s.forgetLease(l.key, claim)
	}
}

// forgetLease is called with mu held, when a claim that had been renewed is over.
func (s *Store) forgetLease(k key, claim string) {
	delete(s.renewed, k)
	if len(s.ended) < maxEnded {
		s.ended = append(s.ended, lease{k, claim})
	}
}
