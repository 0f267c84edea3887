package natsstore

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/rules"
)

// execution is one Apply. It goes in rounds: each sends what the slots want next, all
// together, and takes in the answers, until no slot wants anything.
type execution struct {
	s     *Store
	p     *prefix
	b     *store.Batch
	slots []*slot

	now        rules.Instant // the server's clock; zero: not known yet
	replicated bool          // the bucket has more than one replica
	tight      bool          // the bucket has no room for claims
	losses     int           // of the bucket, as far as the slots know
	maxSize    int64         // of a message of the bucket; zero or less: not bounded
	maxBytes   int64         // of the bucket, likewise
	last       error         // the last that kept a slot waiting
	stalled    bool          // a slot got no further in this round, and tries again
}

// slot is one key, and the operations that may change it, in their order. They are
// executed together, and what comes of them is written once; if it could not be
// written, none of them had an effect.
type slot struct {
	key    string
	issued bool  // a registration, else a record
	ops    []int // indexes

	registration *slot // which the operations of this record look at; may be nil

	step    step
	trusted bool  // base was read in this call, not assumed or remembered
	read    found // what stands there: base, encoded
	err     error // base is unreadable
	record  rules.Record
	reg     rules.Issued

	after   []issuedAfter // a registration's states, as the operations changed it
	value   []byte        // to be written, or what was, without an answer
	keep    time.Duration
	result  rules.Record // value, as if it were written at zero
	noRoom  int          // how often the server had no room for value
	tooBig  int          // how often value was larger than the server takes
	proofs  []proof
	request []*request
}

type step uint8

const (
	reading   step = iota
	executing      // as soon as the registration is known
	writing
	proving
	finished
)

// issuedAfter is a registration after an operation.
type issuedAfter struct {
	op  int
	reg rules.Issued
}

// proof is a key that an answer was taken from, without writing it.
type proof struct {
	key string
	seq uint64
}

func (x *execution) run(ctx context.Context) error {
	b := x.b
	b.Replies = slices.Grow(b.Replies[:0], len(b.Ops))[:len(b.Ops)]
	clear(b.Replies)
	b.Now = time.Time{}
	for i := range b.Ops {
		if k := b.Ops[i].Kind; k < store.Begin || k > store.Check {
			return fmt.Errorf("natsstore: operation %d: there is no kind %d", i, k)
		}
	}
	_, _, x.tight = x.p.state()
	x.losses, _ = x.p.lossesSoFar()
	x.plan()
	for try := 0; !x.complete(); {
		err := x.round(ctx)
		if err == nil && !x.stalled {
			continue
		}
		if isFinal(err) || isClosed(err) || !pause(ctx, try) {
			return x.s.failure(fmt.Sprintf("%d of %d operations were not answered", x.open(), len(b.Ops)), x.cause(ctx, err))
		}
		try++
	}
	b.Now = time.Unix(0, int64(x.now))
	return nil
}

// cause is why there is no answer: at the end of ctx, what stood in the way before.
func (x *execution) cause(ctx context.Context, err error) error {
	switch end := ctx.Err(); {
	case end == nil || x.last == nil:
		return cmp.Or(err, end)
	case errors.Is(x.last, end):
		return x.last
	default:
		return fmt.Errorf("%w; %w", x.last, end)
	}
}

func (x *execution) complete() bool { return x.now != 0 && x.open() == 0 }

// open is the number of operations that are not answered yet.
func (x *execution) open() int {
	n := 0
	for _, sl := range x.slots {
		if sl.step != finished {
			n += len(sl.ops)
		}
	}
	return n
}

// plan makes the slots, and what each begins with.
func (x *execution) plan() {
	conns := x.s.wire.nc.Stats().Reconnects
	byKey := make(map[string]*slot, len(x.b.Ops))
	get := func(key string, issued bool) *slot {
		sl := byKey[key]
		if sl == nil {
			sl = &slot{key: key, issued: issued}
			byKey[key] = sl
			x.slots = append(x.slots, sl)
		}
		return sl
	}
	for i := range x.b.Ops {
		op := &x.b.Ops[i]
		record, issued := rules.Needs(op, x.b)
		if !record {
			sl := get(x.p.keys.issued(op.Token), true)
			sl.ops = append(sl.ops, i)
			continue
		}
		sl := get(x.p.keys.record(op.Group, op.Token), false)
		sl.ops = append(sl.ops, i)
		if issued {
			sl.registration = get(x.p.keys.issued(op.Token), true)
		}
	}
	for _, sl := range x.slots {
		x.begin(sl, conns)
	}
}

// begin spares a slot its read, where it is likely to be of no use: the revision
// tells when it was.
func (x *execution) begin(sl *slot, conns uint64) {
	if x.tight || sl.registration != nil || len(sl.ops) == 0 {
		return
	}
	if !sl.issued {
		if m, ok := x.s.memory.get(sl.key, conns); ok {
			sl.read, sl.record = found{seq: m.seq}, m.record
			x.execute(sl)
			return
		}
	}
	switch x.b.Ops[sl.ops[0]].Kind {
	case store.Begin, store.Spend, store.Issue:
		sl.read = found{gone: true}
		x.execute(sl)
	default:
	}
}

// load decodes what was read. What has expired is not there.
func (sl *slot) load(now rules.Instant) {
	sl.record, sl.reg, sl.err = rules.Record{}, rules.Issued{}, nil
	switch {
	case sl.read.gone:
	case sl.issued:
		if sl.reg, sl.err = decodeIssued(sl.read.value, sl.read.at); sl.reg.Expires <= now {
			sl.reg = rules.Issued{}
		}
	default:
		if sl.record, sl.err = decodeRecord(sl.read.value, sl.read.at); sl.record.Expires <= now {
			sl.record = rules.Record{}
		}
	}
}

// registered is the registration as the operation finds it.
func (sl *slot) registered(op int) rules.Issued {
	r := sl.reg
	for _, a := range sl.after {
		if a.op < op {
			r = a.reg
		}
	}
	return r
}

// settled tells whether the registration will not change any more.
func (sl *slot) settled() bool { return sl == nil || sl.step == finished }

// execute executes the operations of a slot on what it is known to be, and decides
// what has to be sent. Where that is assumed or remembered, the clock stands still at
// zero, and no answer may depend on it.
func (x *execution) execute(sl *slot) {
	var now rules.Instant
	if sl.trusted {
		now = x.now
	}
	ex := rules.Execution{Batch: x.b, Now: now, Time: func(t rules.Instant) time.Time { return time.Unix(0, int64(t)) }}
	r, reg := sl.record, sl.reg
	sl.after = sl.after[:0]
	changed, all := false, true // some operation took effect; each did
	for _, i := range sl.ops {
		op, reply := &x.b.Ops[i], &x.b.Replies[i]
		if sl.err != nil {
			*reply = store.Reply{Err: x.broken(sl.key, sl.err)}
			continue
		}
		seen := &reg
		if _, needs := rules.Needs(op, x.b); needs && !sl.issued {
			if err := sl.registration.err; err != nil {
				*reply = store.Reply{Err: x.broken(sl.registration.key, err)}
				continue
			}
			found := sl.registration.registered(i)
			seen = &found
		}
		r0, reg0 := r, reg
		answer, c := ex.Do(op, &r, seen)
		asks := claims(op.Kind) && (op.Claim == "" || r0.Claim != op.Claim) // for room that it has not taken yet
		if c && (sl.noRoom > 1 || asks && (x.tight || sl.noRoom > 0)) {
			r, reg, c = r0, reg0, false
			answer = store.Reply{Err: x.full(op.Kind)}
		}
		if c && sl.tooBig > 0 {
			if err := x.fits(sl, &r, &reg, now); err != nil {
				r, reg, c = r0, reg0, false
				answer = store.Reply{Err: err}
			}
		}
		*reply = answer
		changed, all = changed || c, all && c
		if c && sl.issued {
			sl.after = append(sl.after, issuedAfter{op: i, reg: reg})
		}
	}
	switch {
	case !sl.trusted && !all: // a Conflict, say, is none once the lease has run out
		sl.step = reading
	case changed:
		x.encode(sl, &r, &reg, now)
	case x.replicated:
		x.prove(sl)
	default:
		sl.step = finished
	}
}

func claims(k store.Kind) bool { return k == store.Begin || k == store.Spend || k == store.Issue }

// fits is an error, which is final, if an operation makes of a slot what the server
// will not take.
func (x *execution) fits(sl *slot, r *rules.Record, reg *rules.Issued, now rules.Instant) error {
	var value []byte
	var keep time.Duration
	var err error
	if sl.issued {
		value, keep, err = encodeIssued(reg, now)
	} else {
		value, keep, err = encodeRecord(r, now)
	}
	if err != nil {
		return nil //nolint:nilerr // encode answers it
	}
	size := x.s.wire.putRequest(sl.key, value, sl.read.seq, keep).size()
	limit, cure := x.s.wire.nc.MaxPayload(), "raise max_payload of the server"
	if x.maxSize > 0 && x.maxSize < limit {
		limit, cure = x.maxSize, fmt.Sprintf("raise --max-value-size of the bucket (nats stream edit %s --max-msg-size=-1)", x.s.wire.stream)
	}
	if x.maxBytes > 0 && x.maxBytes < limit {
		limit, cure = x.maxBytes, "raise MaxBytes of the bucket"
	}
	if size <= limit {
		return nil
	}
	what, smaller := "with its names", "use smaller names"
	if len(r.Result) > 0 {
		what, smaller = fmt.Sprintf("with a result of %d bytes, which are kept as base64", len(r.Result)), "give it a smaller result"
	}
	return fmt.Errorf("natsstore: key %q in bucket %q: it would take %d bytes (%s), larger than the %d that are allowed: %s, or %s",
		sl.key, x.s.wire.bucket, size, what, limit, cure, smaller)
}

func (x *execution) encode(sl *slot, r *rules.Record, reg *rules.Issued, now rules.Instant) {
	var err error
	if sl.issued {
		sl.value, sl.keep, err = encodeIssued(reg, now)
	} else {
		sl.value, sl.keep, err = encodeRecord(r, now)
		sl.result = *r
		sl.result.At, sl.result.Renewed, sl.result.Expires = 0, 0, rules.Instant(sl.keep)
	}
	if sl.step = writing; err != nil {
		x.fail(sl, fmt.Errorf("%w: %w", store.ErrUnreadable, err))
	}
}

// prove has what was read confirmed by the bucket's quorum, unless all that came of it
// is that somebody is to ask again.
func (x *execution) prove(sl *slot) {
	sl.proofs = sl.proofs[:0]
	for _, i := range sl.ops {
		switch r := &x.b.Replies[i]; {
		case r.Err != nil, r.Status == store.InProgress, r.Status == store.Superseded, r.Status == store.NeedAlone:
			continue
		case r.Status == store.Unknown, r.Record != nil:
			if reg := sl.registration; reg != nil && len(reg.ops) == 0 {
				sl.proofs = append(sl.proofs, proof{key: reg.key, seq: reg.read.seq})
			}
		}
		sl.proofs = append(sl.proofs, proof{key: sl.key, seq: sl.read.seq})
	}
	slices.SortFunc(sl.proofs, func(a, b proof) int { return strings.Compare(a.key, b.key) })
	sl.proofs = slices.Compact(sl.proofs)
	if sl.step = proving; len(sl.proofs) == 0 {
		sl.step = finished
	}
}

// fail answers the operations of a slot that were to change it.
func (x *execution) fail(sl *slot, err error) {
	for _, i := range sl.ops {
		x.b.Replies[i] = store.Reply{Err: fmt.Errorf("natsstore: key %q in bucket %q: %w", sl.key, x.s.wire.bucket, err)}
	}
	sl.step = finished
}

func (x *execution) broken(key string, err error) error {
	cure := "see what wrote it, then delete it"
	if errors.Is(err, store.ErrNewer) {
		cure = "update this program"
	}
	return fmt.Errorf("natsstore: key %q in bucket %q: %w; %s", key, x.s.wire.bucket, err, cure)
}

func (x *execution) full(k store.Kind) error {
	if claims(k) {
		return fmt.Errorf("natsstore: bucket %q: %w: raise its MaxBytes, or the account's limit, or shorten the retention", x.s.wire.bucket, store.ErrFull)
	}
	return fmt.Errorf("natsstore: bucket %q: %w, for completions as well: something else fills it; raise its MaxBytes, or the account's limit",
		x.s.wire.bucket, store.ErrFull)
}

// round sends what the slots want and takes in what is answered. An error is what
// stands in the way of all slots; what stands in the way of one has it try again.
func (x *execution) round(ctx context.Context) error {
	if err := x.s.connected(ctx); err != nil {
		return err
	}
	if err := x.s.ready(ctx, x.p); err != nil {
		return err
	}
	generation, acked, _ := x.p.state()
	if losses, _ := x.p.lossesSoFar(); losses != x.losses {
		x.startOver() // before anything is sent that was remembered
		x.losses = losses
	}
	w := &x.s.wire
	asked := w.infoRequest()
	reqs := []*request{}
	needInfo := x.now == 0
	for _, sl := range x.slots {
		sl.request = sl.request[:0]
		switch sl.step {
		case reading:
			needInfo = true
			sl.request = append(sl.request, w.getRequest(sl.key))
		case writing:
			sl.request = append(sl.request, w.putRequest(sl.key, sl.value, sl.read.seq, sl.keep))
		case proving:
			for _, p := range sl.proofs {
				sl.request = append(sl.request, w.proofRequest(x.p.keys.proof(), p.key, p.seq))
			}
		default:
		}
		reqs = append(reqs, sl.request...)
	}
	if needInfo {
		reqs = append([]*request{asked}, reqs...)
	}
	w.exchange(ctx, reqs)

	x.stalled, x.last = false, nil
	lost, err := false, error(nil)
	if needInfo {
		lost, err = x.takeInfo(asked, generation, acked)
	}
	if lost {
		x.s.memory.clear()
	}
	for _, sl := range x.slots {
		if lost && sl.step == writing {
			x.takeDoubtful(sl)
			continue
		}
		x.take(sl, generation, acked)
	}
	if lost {
		x.startOver()
		return x.s.ready(ctx, x.p) // and have it told with this batch
	}
	if err != nil {
		return err
	}
	for more := true; more; { // a registration that is settled lets its records go on
		more = false
		for _, sl := range x.slots {
			if sl.step == executing && sl.registration.settled() {
				x.execute(sl)
				more = true
			}
		}
	}
	return x.hopeless()
}

// hopeless is what one slot met and all others will.
func (x *execution) hopeless() error {
	var r *refusal
	if errors.As(x.last, &r) || isClosed(x.last) {
		return x.last
	}
	return nil
}

// takeInfo takes in the server's time and the bucket's state.
func (x *execution) takeInfo(asked *request, generation int, acked uint64) (lost bool, err error) {
	i, err := asked.info()
	if err != nil {
		if errors.Is(err, errMissing) {
			x.p.vanished(generation)
			return true, nil
		}
		x.last = err
		return false, err
	}
	x.now = rules.Instant(i.Now.UnixNano())
	x.replicated = i.Limits.Replicas > 1
	x.tight = tight(i)
	x.maxSize, x.maxBytes = i.Limits.MaxSize, i.Limits.MaxBytes
	return x.p.saw(i, generation, acked, x.s.wire.bucket), nil
}

// startOver forgets what was read and remembered of a bucket that is no more. What is
// still to be read is left: it may be found to be what was written.
func (x *execution) startOver() {
	x.s.memory.clear()
	for _, sl := range x.slots {
		if sl.step != finished && sl.step != reading {
			sl.step, sl.trusted, sl.value = reading, false, nil
		}
	}
}

// wentBack takes in the sequence of a write, or a proof, and reports whether it tells that
// the bucket lost what came after it.
func (x *execution) wentBack(seq uint64, generation int, acked uint64) bool {
	lost := x.p.stored(seq, generation, acked, x.s.wire.bucket)
	if lost {
		x.s.memory.clear()
	}
	return lost
}

// takeDoubtful takes in the answer to a write, or a proof, in a round in which the bucket
// was found to be another, or to have gone back: the write may have gone to either. So it
// counts as unanswered, and is looked for.
func (x *execution) takeDoubtful(sl *slot) {
	if seq, err := sl.request[0].seq(); err == nil {
		sl.read.seq = seq - 1
	}
	x.s.memory.drop(sl.key)
	sl.step, sl.trusted = reading, false
}

// take takes in the answers to a slot's requests.
func (x *execution) take(sl *slot, generation int, acked uint64) {
	switch sl.step {
	case reading:
		x.takeRead(sl)
	case writing:
		x.takeWrite(sl, generation, acked)
	case proving:
		for _, r := range sl.request {
			seq, err := r.seq()
			switch {
			case errors.Is(err, errNoRoom):
				x.fail(sl, fmt.Errorf("%w, to confirm what was read: %w", store.ErrFull, err))
				return
			case err != nil:
				x.again(sl, err)
				return
			case x.wentBack(seq, generation, acked):
				x.takeDoubtful(sl)
				return
			}
		}
		sl.step = finished
	default:
	}
}

func (x *execution) takeRead(sl *slot) {
	f, err := sl.request[0].found()
	if err != nil {
		x.again(sl, err)
		return
	}
	if x.now == 0 {
		return // the time is missing: it is read again
	}
	before := sl.read.seq
	sl.read, sl.trusted = f, true
	if sl.value != nil && f.seq > before && bytes.Equal(f.value, sl.value) {
		x.written(sl, f.seq) // the write whose acknowledgement did not come
		return
	}
	sl.value = nil
	sl.load(x.now)
	if sl.step = executing; len(sl.ops) == 0 {
		sl.step = finished
	}
}

func (x *execution) takeWrite(sl *slot, generation int, acked uint64) {
	seq, err := sl.request[0].seq()
	switch {
	case err == nil && x.wentBack(seq, generation, acked):
		x.takeDoubtful(sl)
	case err == nil:
		x.written(sl, seq)
	case errors.Is(err, errTooLarge) && sl.tooBig > 0:
		x.fail(sl, fmt.Errorf("%w: raise max_payload of the server, or --max-value-size of the bucket, or store a smaller result", err))
	case errors.Is(err, errTooLarge), errors.Is(err, errNoRoom) && x.maxBytes > 0 && sl.request[0].size() > x.maxBytes:
		sl.tooBig++
		x.refused(sl)
	case errors.Is(err, errNoRoom):
		sl.noRoom++
		x.refused(sl)
	case errors.Is(err, errConflict):
		sl.value = nil // it was not written, and will not be
		x.again(sl, err)
	default:
		x.again(sl, err)
	}
}

// refused has the operations of a slot repeated: what came of them was not written, and
// will not be.
func (x *execution) refused(sl *slot) {
	if sl.value = nil; sl.trusted {
		sl.step = executing
	} else {
		sl.step = reading
	}
}

// again has a slot read, and its operations repeated.
func (x *execution) again(sl *slot, err error) {
	if guess := errors.Is(err, errConflict) && !sl.trusted; !guess {
		x.stalled, x.last = true, err
	}
	x.s.memory.drop(sl.key)
	sl.step, sl.trusted = reading, false
}

func (x *execution) written(sl *slot, seq uint64) {
	sl.step, sl.read.seq = finished, seq
	switch sl.result.State {
	case store.Running, store.Released:
		x.s.memory.put(sl.key, remember(seq, sl.result))
	default:
		x.s.memory.drop(sl.key)
	}
}

// ready is describe, where p is not ready any more.
func (s *Store) ready(ctx context.Context, p *prefix) error {
	if p.isReady() {
		return nil
	}
	return s.describe(ctx, p)
}
