package redisstore

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/idemq/idemq/idem/store"
)

// maxOps is how many operations one script call takes: a long script keeps
// everybody else waiting.
const maxOps = 1000

// call is one script call: operations whose keys it may touch together.
type call struct {
	tag     int
	items   []item
	scripts *scripts

	undivided bool // of all tags
	confirms  bool // what was answered before is to be answered anew, once replicas have it
	trial     bool // sets no epoch

	script script
	whole  bool // send the script's source, not its digest

	before string // the epoch seen when it was sent
	failed error  // why nothing is known of it, whatever the server answered
}

// claims tells whether an operation may need room for a new record.
func claims(k store.Kind) bool {
	return k == store.Begin || k == store.Spend || k == store.Issue
}

// mustSurvive tells whether what an operation did must not be undone by a failover. A claim may
// be: its message is not acked yet.
func mustSurvive(k store.Kind) bool {
	switch k {
	case store.Commit, store.Bury, store.Spend, store.Check, store.Forget, store.Issue:
		return true
	}
	return false
}

func (c *call) mustSurvive() bool {
	if c.confirms {
		return true
	}
	for _, it := range c.items {
		if mustSurvive(it.op.Kind) {
			return true
		}
	}
	return false
}

// choose sets the script.
func (c *call) choose() {
	c.script, c.whole = c.scripts.completion, false
	for _, it := range c.items {
		if claims(it.op.Kind) {
			c.script = c.scripts.claim
			return
		}
	}
}

var (
	ownerEscapes   = strings.NewReplacer("%", "%25", "|", "%7C")
	ownerUnescapes = strings.NewReplacer("%25", "%", "%7C", "|")
)

func ceilMilliseconds(d time.Duration) int64 {
	return max(1, int64((d+time.Millisecond-1)/time.Millisecond))
}

// terms are the arguments that all calls of a batch have in common, and what they are made
// of. A guard's batches have the same ones.
type terms struct {
	lease, retention, check time.Duration
	issuedOnly              bool
	owner                   string
	incarnation             uint64
	args                    *[8]any
}

func termsOf(b *store.Batch) terms {
	return terms{
		lease: b.Lease, retention: b.Retention, check: b.CheckWithin, issuedOnly: b.IssuedOnly,
		owner: b.Owner, incarnation: b.Incarnation,
	}
}

// complete makes the arguments.
func (t *terms) complete() {
	issued := t.check
	only := ""
	if t.issuedOnly {
		issued, only = max(issued, t.retention), "1"
	}
	t.args = &[8]any{
		max(0, t.lease.Microseconds()),
		strconv.FormatUint(t.incarnation, 10) + "|" + ownerEscapes.Replace(t.owner),
		ceilMilliseconds(t.retention + t.lease),
		ceilMilliseconds(t.retention),
		max(0, t.check.Microseconds()),
		ceilMilliseconds(issued),
		store.CheckMemory.Milliseconds(),
		only,
	}
}

// command makes the command with its KEYS and ARGV; see records.lua and compact.lua.
func (c *call) command(ctx context.Context, p *prefix, terms *[8]any, generation string, touch bool) *redis.Cmd {
	const firstKey, common = 3, 13
	begin := c.script.bySHA
	if c.whole {
		begin = c.script.bySource
	}
	var fresh string
	if !c.trial {
		c.before, fresh = p.epochs(c.tag)
	}
	all := make([]any, firstKey, firstKey+1+common+c.room())
	copy(all, begin[:])
	all = append(all, p.epochKey(c.tag))
	// Pointers to strings, where there are many: they need no memory of their own.
	for i := range c.items {
		it := &c.items[i]
		if it.place != nil {
			all = append(all, &it.place.sets[0], &it.place.sets[1])
		}
		all = append(all, &it.key)
		if it.ikey != "" {
			all = append(all, &it.ikey)
		}
	}
	all[firstKey-1] = len(all) - firstKey
	touched := ""
	if touch {
		touched = "1"
	}
	usual := c.usualMax()
	codes := make([]byte, len(c.items))
	all = append(append(append(all, fresh, touched), terms[:]...), usual, codes, generation)
	for i := range c.items {
		it := &c.items[i]
		if it.place != nil {
			all = append(all, &it.place.fingerprint)
			if it.place.phase != "" {
				all = append(all, &it.place.phase)
			}
		}
		var param string
		codes[i], param = encode(it.op, usual)
		all = append(all, &it.op.Claim)
		if param != "" {
			all = append(all, param)
		}
	}
	cmd := redis.NewCmd(ctx, all...)
	cmd.SetFirstKeyPos(firstKey)
	return cmd
}

// room is for how many keys and arguments the items have, but for parameters.
func (c *call) room() (n int) {
	for i := range c.items {
		n += 2
		if c.items[i].place != nil {
			n += 4
		}
		if c.items[i].ikey != "" {
			n++
		}
	}
	return n
}

// usualMax is the MaxExpiries that is sent once: the first Begin's.
func (c *call) usualMax() int {
	for _, it := range c.items {
		if it.op.Kind == store.Begin {
			return it.op.MaxExpiries
		}
	}
	return 0
}

// encode is an operation's letter, and its parameter if it has one.
func encode(op *store.Op, usualMax int) (code byte, param string) {
	switch op.Kind {
	case store.Begin:
		if op.Redrive <= 0 && op.Fingerprint == "" && op.MaxExpiries == usualMax {
			return 'b', ""
		}
		return 'B', claimParam(op)
	case store.Spend:
		return 'S', claimParam(op)
	case store.Commit:
		if len(op.Result) == 0 && op.Attempt == 1 && endsInDigits(op.Claim) {
			return 'c', ""
		}
		return 'C', strconv.Itoa(max(0, op.Attempt)) + "|" + string(op.Result)
	case store.Release:
		if op.Counted {
			return 'R', ""
		}
		return 'r', ""
	case store.Renew:
		return 'w', ""
	case store.Bury:
		return 'y', ""
	case store.Forget:
		return 'f', ""
	case store.Inspect:
		return 'q', ""
	case store.Issue:
		return 't', ""
	default:
		return 'k', ""
	}
}

// endsInDigits tells whether the record of a done token can be a number.
func endsInDigits(claim string) bool {
	const digits = 6
	if len(claim) < digits {
		return false
	}
	for _, c := range []byte(claim[len(claim)-digits:]) {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}

func claimParam(op *store.Op) string {
	return strconv.Itoa(max(0, op.Redrive)) + "|" + strconv.Itoa(max(0, op.MaxExpiries)) + "|" + op.Fingerprint
}

// unpack reads the script's reply into the items' replies.
func (c *call) unpack(v []any) (now time.Time, epoch string, err error) {
	for i := range v {
		if _, ok := v[i].(string); !ok {
			return now, "", fmt.Errorf("redisstore: part %d of a script's reply is a %T", i, v[i])
		}
	}
	if len(v) < 3 {
		return now, "", fmt.Errorf("redisstore: a script's reply has %d parts", len(v))
	}
	clock, epoch, rest := v[0].(string), v[1].(string), v[2].(string)
	micros, err := strconv.ParseInt(clock, 10, 64)
	if err != nil {
		return now, "", fmt.Errorf("redisstore: a script's clock reads %q", clock)
	}
	now = time.UnixMicro(micros)
	if n := strings.Count(rest, "\n") + 1; n != len(c.items) && len(c.items) > 0 {
		return now, "", fmt.Errorf("redisstore: a script answered %d operations with %d lines", len(c.items), n)
	}
	for i := range c.items {
		var line string
		line, rest, _ = strings.Cut(rest, "\n")
		if err := c.items[i].read(line, v[3:]); err != nil {
			return now, "", err
		}
	}
	return now, epoch, nil
}

// read sets the reply from a line.
func (it *item) read(line string, stringsSent []any) error {
	r := it.reply
	if line == "" {
		r.Status = store.OK
		switch it.op.Kind {
		case store.Begin, store.Spend:
			*r = store.Reply{Status: store.Claimed, Attempt: 1, Redrive: max(0, it.op.Redrive)}
		case store.Check:
			r.Status = store.Claimed
		}
		return nil
	}
	f := fields{rest: line[1:]}
	switch line[0] {
	case 'k':
		r.Status, r.Attempt, r.Spent, r.Expiries, r.Redrive = store.Claimed, f.int(), f.int(), f.int(), f.int()
	case 'd', 'x':
		r.Status, r.Dead = store.Duplicate, line[0] == 'x'
		r.At, r.Attempt, r.Redrive = time.UnixMilli(f.int64()), f.int(), f.int()
		if no := f.int(); no > 0 {
			r.Result = []byte(f.string(stringsSent, no))
		}
	case 'D':
		r.Status = store.Duplicate
	case 'i', 's':
		r.Status = store.InProgress
		if line[0] == 's' {
			r.Status = store.Superseded
		}
		r.RetryAfter = time.Duration(f.int64()) * time.Microsecond
	case 'n':
		r.Status, r.Spent, r.Expiries, r.Redrive = store.NeedAlone, f.int(), f.int(), f.int()
	case 'u':
		r.Status = store.Unknown
	case 'c':
		r.Status = store.Conflict
	case 'l':
		r.Status = store.Lost
	case 'q':
		r.Status, r.Record = store.OK, readRecord(&f, stringsSent)
	case '!':
		r.Err = it.broken(f.rest)
	default:
		return fmt.Errorf("redisstore: a script answered %q", line)
	}
	if f.bad { // the record's numbers are none: its fault alone
		*r = store.Reply{Err: it.broken("u1")}
	}
	return nil
}

// broken is the error for a key that holds no record. code is the reason, and
// which of the item's keys.
func (it *item) broken(code string) error {
	key, kind := it.key, "string"
	switch no := code[len(code)-1]; {
	case no == '2':
		key = it.ikey
	case no >= '3' && it.place != nil:
		key, kind = it.place.sets[no-'3'], "set"
	}
	switch code[:1] {
	case "n":
		return fmt.Errorf("redisstore: key %q: %w; update this program", key, store.ErrNewer)
	case "t":
		return fmt.Errorf("redisstore: key %q: %w: it is no %s; see what wrote it, then delete it", key, store.ErrUnreadable, kind)
	}
	return fmt.Errorf("redisstore: key %q: %w; see what wrote it, then delete it", key, store.ErrUnreadable)
}

var states = map[string]store.State{
	"-": store.Absent, "p": store.Running, "r": store.Released, "d": store.Done, "s": store.Done, "x": store.Dead, "f": store.Forgotten,
}

func readRecord(f *fields, stringsSent []any) *store.Record {
	rec := &store.Record{State: states[f.next()]}
	rec.Attempt, rec.Spent, rec.Expiries, rec.Redrive = f.int(), f.int(), f.int(), f.int()
	if at := f.int64(); at != 0 {
		rec.At = time.UnixMilli(at)
	}
	rec.Lease = time.Duration(f.int64()) * time.Microsecond
	rec.Incarnation = f.uint64()
	rec.Expires = time.Duration(max(0, f.int64())) * time.Millisecond
	issued := f.int()
	rec.Issued, rec.Checked = issued > 0, issued > 1
	no := f.int()
	rec.Claim = f.string(stringsSent, no)
	rec.Owner = ownerUnescapes.Replace(f.string(stringsSent, no+1))
	rec.Fingerprint = f.string(stringsSent, no+2)
	if result := f.string(stringsSent, no+3); result != "" {
		rec.Result = []byte(result)
	}
	return rec
}

// fields reads the numbers of a line.
type fields struct {
	rest string
	bad  bool
}

func (f *fields) next() string {
	s, rest, _ := strings.Cut(f.rest, "|")
	f.rest = rest
	return s
}

func (f *fields) int64() int64 {
	n, err := strconv.ParseInt(f.next(), 10, 64)
	f.bad = f.bad || err != nil
	return n
}

func (f *fields) int() int { return int(f.int64()) }

func (f *fields) uint64() uint64 {
	n, err := strconv.ParseUint(f.next(), 10, 64)
	f.bad = f.bad || err != nil
	return n
}

// string is the byte string of a number, counted from 1.
func (f *fields) string(sent []any, no int) string {
	if no < 1 || no > len(sent) {
		f.bad = true
		return ""
	}
	return sent[no-1].(string)
}
