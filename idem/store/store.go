// Package store is the interface between the guard and whatever keeps its
// records: Redis, memory, a SQL database.
//
// A driver executes batches of small operations on records. It decides nothing
// about messages: what an answer means is the business of package idem. What an
// operation does to a record is written at its [Kind]; package storetest holds a
// driver to it, case by case.
//
// # Records
//
// A record belongs to a prefix, a group and a token, and is in one of these
// states:
//
//	absent --Begin--> in progress --Commit--> done
//	                    |   ^   \
//	              Release   |    \--Bury--> dead
//	                    v   |                 |
//	                  released <---redrive----+
//
// Forget leaves a mark, [Forgotten], that keeps the counts and fences the claims
// made before. Issued tokens are records of their own, which belong to a prefix
// and no group.
//
// # The claim id
//
// A claim id is made for each claim and never used again. It alone fences, and
// it makes each operation safe to repeat: a driver's client may resend a command
// whose reply was lost, and the second execution answers as the first would have.
//
// # Time
//
// All time is the store's own clock, kept to the millisecond or finer. A caller's clock
// never decides anything.
package store

import (
	"context"
	"errors"
	"time"
)

// Store is a driver. Its methods are safe for concurrent use.
type Store interface {
	// Apply executes the operations of b and fills b.Replies, one per operation,
	// and b.Now. Each operation is atomic; the batch as a whole is not.
	// Operations on one record take effect in the order they are listed in, so a
	// Release and the next Begin of one token can travel together.
	//
	// An error means that nothing is known of any operation: some, all or none
	// may have been executed, or will be later. The caller resends them under the
	// same claim ids. An error that wraps [ErrUnavailable] says that the store was
	// not reached or gave no answer; any other error is a refusal by a store that
	// was reached. What is wrong with one operation only is that Reply's Err and
	// leaves its neighbours alone.
	//
	// Where ctx ends first, Apply returns soon, with an error that wraps [ErrUnavailable].
	// How soon a client of the store's lets it return is for [Bounded] to say.
	//
	// A store of several servers answers item by item (Reply's Err) where one of them
	// is away or refuses, also where the batch has nothing for the others: an error of
	// Apply holds up everything.
	//
	// Apply keeps no reference to b after it returned.
	Apply(ctx context.Context, b *Batch) error

	// Incarnation draws a number for an instance name, higher than any drawn for
	// the same prefix and name before, also after the store lost its data, as far
	// as its clock did not go backwards. What a part of the store refuses wraps
	// [ErrRefused]: the guard does without a number until it has one.
	Incarnation(ctx context.Context, prefix, name string) (uint64, error)

	// Verify asks whether the store can be used as it is, for readiness probes and
	// at the start of consumers. It changes nothing that a consumer could notice.
	// The error says what to do. The findings are what weakens the promise: a
	// store that may forget what it acknowledged.
	Verify(ctx context.Context, prefix string) ([]Finding, error)

	// Capabilities says what this driver cannot do.
	Capabilities() Capabilities
}

// Capabilities lists what a driver may lack. The zero value is a driver that
// can do everything.
type Capabilities struct {
	// NoDoneDetails: of a done token only that it is done is known, and its fingerprint,
	// but for NoFingerprints; not when it was completed, by which claim, on which attempt,
	// or with which result. So a Commit on what another claim completed may be OK, and it
	// may be remembered for longer than the retention. Attempt and Redrive need not survive
	// a Forget of it, which need not fence, nor know its own repeat.
	NoDoneDetails bool
	// NoFingerprints: a fingerprint is neither kept nor compared.
	NoFingerprints bool
}

// Bounded is a Store that can say that Apply returns when its context's deadline has passed,
// also while a server hangs. While nothing else is under way, whoever calls a guard then makes
// the trip on its own goroutine, which is quicker, under a context of 100 ms or a tenth of the
// lease, if that is less: no longer is it held up when its own context ends. What that cuts off
// is sent again under a trip's usual context, from another goroutine.
type Bounded interface {
	Bounded() bool
}

// Finding is something about a server, or its settings, that weakens the promise
// without preventing work.
type Finding struct {
	// ID names the kind of finding, and never changes: "redis-eviction". It is what
	// people give to accept one, and search for.
	ID string
	// What was found and where, what can come of it, and what to do about it: a
	// full sentence each.
	What, Consequence, Cure string
	// Lost says that messages are lost already, not that they can be.
	Lost bool
}

// String is the whole finding, as logs show it.
func (f Finding) String() string {
	return f.What + " " + f.Consequence + " " + f.Cure + " (" + f.ID + ")"
}

// Batch is a number of operations under common terms, and their replies.
type Batch struct {
	// Prefix separates applications that share a store. Any bytes, at most 255.
	Prefix string
	// Owner is the instance name of the claims that this batch makes; empty for
	// none. Any bytes, at most 255.
	Owner string
	// Incarnation orders the processes that bear one Owner.
	Incarnation uint64
	// Lease is how long a claim is held without renewal. Guards send the Renew, Commit,
	// Release and Bury of a claim with the Lease and the Retention of its Begin. With others
	// the answers are the same, but a driver may keep what is completed for either retention.
	Lease time.Duration
	// Retention is how long done and dead records are kept, counted from their
	// completion; a driver may keep them for up to a thousandth longer. In-progress,
	// released and forgotten records are kept at least as long after their last change.
	Retention time.Duration
	// CheckWithin is how long an issued token may wait for its Check.
	CheckWithin time.Duration
	// IssuedOnly makes Begin and Spend admit issued tokens only. Issued tokens
	// are then kept for the longer of CheckWithin and Retention.
	IssuedOnly bool

	Ops []Op

	// Replies is set by Apply: one per operation, in the same order. Apply uses
	// the room that is there.
	Replies []Reply
	// Now is set by Apply: the store's clock when the batch was executed; zero where
	// there are operations, and each reply is an error.
	Now time.Time
	// Notice is set by Apply when the store found out that it lost records that
	// it had acknowledged: a sentence that says what was seen. Else empty.
	// In batches after that it may be set again; Losses tells whether it is new.
	Notice string
	// Losses is set by Apply: how many losses this Store has noticed for the prefix so
	// far, for guards to compare with what they knew. Zero where a driver does not
	// count: then each Notice is a new one.
	Losses int
}

// Kind names an operation.
type Kind uint8

// The operations. "Live" is a claim in progress whose lease has not run out.
const (
	// Begin asks for a claim. The first that fits:
	//
	//   - released, or forgotten, under this very claim id: Lost; a claim does not
	//     come back.
	//   - absent, released, forgotten: Claimed. The attempt goes up by one.
	//   - in progress under this claim id, run out or not: Claimed, the lease
	//     starts anew, nothing is counted.
	//   - in progress under another id that is live: InProgress with RetryAfter.
	//     Where the record's owner is this batch's Owner (and not empty): if the
	//     record's incarnation is lower and its last renewal is longer ago than
	//     [TakeoverAfter] of the record's lease, it is taken over as if its lease
	//     had run out (before that, RetryAfter is the time until then); if it is
	//     higher, Superseded.
	//   - in progress under another id that has run out: taken over: expiries and
	//     spent go up by one, the attempt by one, Claimed.
	//   - done: Duplicate. Dead: Duplicate with Dead.
	//
	// A Redrive higher than the record's, on a record that is absent, released,
	// forgotten, dead or run out (or to be taken over), is taken over into the record
	// and sets spent and expiries to zero, the claim that was found run out not
	// counted; on dead it leads to Claimed. On a live claim and on done it changes
	// nothing.
	//
	// If the expiries (the one that this Begin itself finds included) reach
	// MaxExpiries, and MaxExpiries is not zero: NeedAlone, and the record stays as it
	// was.
	//
	// If both the operation and the record carry a fingerprint and they differ,
	// and no higher Redrive is accepted: Conflict, before any other answer but
	// Unknown; the record stays as it was. A repeat under the record's own claim id
	// is no conflict. An accepted claim keeps the operation's fingerprint, or else
	// the record's; where they differ, it fences the claims from before as Forget does.
	//
	// IssuedOnly: a token without a record in this group, with Redrive zero, that
	// was never issued (or whose registration has expired), is Unknown. A token
	// that Check has spent was issued.
	Begin Kind = iota + 1

	// Commit ends a claim as done and keeps Result. The expiry counts from now.
	//
	//   - in progress under this claim id, run out or not: OK.
	//   - absent, released, dead: OK, whoever held it last.
	//   - done under this claim id: OK, nothing changes.
	//   - in progress under another id, done by another, forgotten: Lost.
	//
	// Of the claim id of a token that is done at its first attempt drivers may keep no more
	// than the last six characters: another claim of a first attempt, of before the records
	// were lost, is taken for it if its id ends in the same.
	//
	// Lost besides, but on done, where the operation's Attempt shows that the claim was
	// made before a Forget, or before a redrive of another payload.
	Commit

	// Release ends a claim as to be tried again. Counted, it raises spent by one.
	//
	//   - in progress under this claim id, run out or not: OK.
	//   - released under this claim id: OK, nothing is counted again.
	//   - all else: Lost.
	Release

	// Renew starts the lease anew: OK if the record is in progress under this
	// claim id, run out or not; else Lost.
	Renew

	// Bury records that the message was handed to the dead-letter destination.
	//
	//   - in progress under this claim id, run out or not: dead, OK. Spent and
	//     expiries go to zero.
	//   - done by Spend under this claim id: dead, OK.
	//   - dead under this claim id: OK.
	//   - all else: Lost.
	Bury

	// Spend is the one-phase form for at-most-once: done before the handler runs. The
	// first that fits:
	//
	//   - forgotten under this claim id: Lost.
	//   - absent, forgotten: done, Claimed; the attempt goes up by one.
	//   - dead, with a higher Redrive: the same, and the Redrive is taken over.
	//   - released, or in progress and run out: the same; Spent of the reply tells
	//     whether an earlier handler may have started (run out adds one), unless a
	//     higher Redrive set it to zero.
	//   - done by Spend under this claim id: Claimed, nothing changes.
	//   - in progress and live: InProgress with RetryAfter.
	//   - done, dead: Duplicate.
	//
	// Conflict and Unknown as for Begin.
	Spend

	// Forget makes a token as if it had never been seen, but for the attempt and
	// Redrive, which stay: state Forgotten, spent and expiries zero. The first that fits:
	//
	//   - forgotten under this claim id already, whatever came of the record
	//     since: OK, nothing changes.
	//   - live: InProgress with RetryAfter.
	//   - absent: OK, nothing is kept.
	//   - all else: forgotten, OK. Claims made before are fenced: their attempts
	//     are not higher than the record's at this moment.
	Forget

	// Inspect reads: OK with Record; an absent one has State Absent.
	Inspect

	// Issue registers Token for Check (Group is not looked at): OK. A token that
	// is registered and not spent may wait for CheckWithin from now; one that is
	// spent stays spent.
	Issue

	// Check spends an issued token (Group is not looked at): Claimed once. A
	// repeat under the same claim id is Claimed again, for at least
	// [CheckMemory] after the first. Unknown, expired, or spent by another: Lost.
	Check
)

// TakeoverAfter is how long after its last renewal a claim can be taken over by
// a higher incarnation of its owner: a third of the lease, in which a renewal was
// due, and a margin of an eighth.
func TakeoverAfter(lease time.Duration) time.Duration { return lease/3 + lease/8 }

// CheckMemory is how long at least a spent token remembers the claim id that
// spent it, so that a lost reply is answered again.
const CheckMemory = 5 * time.Minute

// Op is one operation.
type Op struct {
	Kind  Kind
	Group string // any bytes
	Token string // 1 to 255 bytes, any
	// Claim is the claim id: made by package idem of the characters A-Z, a-z,
	// 0-9, '-' and '_', at most 40, of which the last six or more are a count.
	// Forget and Check carry one too, for repeats.
	// Inspect and Issue have none.
	Claim string

	Attempt int // Commit: as answered to the claim's Begin; at least 1

	Redrive     int    // Begin, Spend: see Begin; at most MaxRedrive
	MaxExpiries int    // Begin: see Begin; zero is no limit
	Fingerprint string // Begin, Spend: of the payload, without '|', at most 64 bytes; empty is none

	Counted bool   // Release: spends budget
	Result  []byte // Commit: kept with the completion; a driver takes 64 KiB, or more
}

// MaxRedrive is the highest redrive number: to there each is exact in every store.
const MaxRedrive = 1 << 53

// Status is the answer to an operation.
type Status uint8

// The answers.
const (
	// OK: the operation took effect, now or when it was executed first.
	OK Status = iota + 1
	// Claimed: the token is this claim's. Attempt, Spent, Expiries and Redrive
	// are set.
	Claimed
	// Duplicate: done or dead. At, Attempt, Dead, Redrive and Result are set as
	// far as the driver knows them.
	Duplicate
	// InProgress: somebody else's claim is live. RetryAfter, which is positive, is what is
	// left of its lease, or of the time until it can be taken over.
	InProgress
	// NeedAlone: the claim would have brought Expiries to MaxExpiries, and was not made.
	// Spent, Expiries and Redrive are what they would have been.
	NeedAlone
	// Superseded: a higher incarnation of the same owner holds the token. RetryAfter,
	// which is positive, is what is left of its lease.
	Superseded
	// Unknown: the token was never issued.
	Unknown
	// Conflict: the record is of another payload.
	Conflict
	// Lost: the claim is not the record's (any more).
	Lost
)

// Reply is the answer to one operation.
type Reply struct {
	Status Status
	// Err is set instead of Status where this record alone cannot be worked on. It wraps
	//
	//   - [ErrUnreadable], [ErrNewer] or [ErrFull];
	//   - [ErrUnavailable] or [ErrRefused], where the part of the store that keeps the
	//     record was not reached, or refused, and others worked: nothing is known of this
	//     operation;
	//   - or none of them: the error is final, and will be the same again.
	Err error

	Attempt  int
	Spent    int
	Expiries int
	Redrive  int

	At         time.Time // when it was completed or buried
	Dead       bool
	Result     []byte
	RetryAfter time.Duration

	Record *Record // Inspect
}

// State is the state of a record.
type State uint8

// The states.
const (
	Absent State = iota
	Running
	Released
	Done
	Dead
	Forgotten
)

// String returns the state in lower case, as logs show it.
func (s State) String() string {
	switch s {
	case Absent:
		return "absent"
	case Running:
		return "in progress"
	case Released:
		return "released"
	case Done:
		return "done"
	case Dead:
		return "dead"
	case Forgotten:
		return "forgotten"
	}
	return "unknown"
}

// Record is what a store knows of a token in a group.
type Record struct {
	State       State
	Claim       string        // of the last claim; done, or forgotten since: perhaps '~' and its end, see Commit
	Attempt     int           // starts so far, crashes included
	Spent       int           // of the budget; zero when done or dead
	Expiries    int           // claims that ended by their lease running out; zero when done or dead
	Redrive     int           // the redrive number
	At          time.Time     // done, dead: since when
	Lease       time.Duration // in progress: left; zero or less when it has run out
	Owner       string        // in progress
	Incarnation uint64        // in progress
	Fingerprint string
	Result      []byte        // done
	Issued      bool          // the token is registered, for Check or IssuedOnly
	Checked     bool          // Check has spent it
	Expires     time.Duration // until the record goes; zero if there is none
}

// Errors of Apply, and of single replies. Drivers wrap them with what happened.
var (
	// ErrUnavailable: the store was not reached, or gave no answer.
	ErrUnavailable = errors.New("store unavailable")
	// ErrRefused: a part of the store was reached, and refused; others work on. In a
	// Reply it is waited for like ErrUnavailable, and never counts for FailOpen.
	ErrRefused = errors.New("refused by a part of the store")
	// ErrFull: the store has no room for a claim now (Redis at maxmemory).
	// Completions and releases still go through, as far as a driver can reserve room.
	ErrFull = errors.New("store full")
	// ErrUnreadable: what stands in the record's place is not a record.
	ErrUnreadable = errors.New("unreadable record")
	// ErrNewer: the record was written by a newer version of this library.
	ErrNewer = errors.New("record of a newer version")
)
