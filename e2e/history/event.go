// Package history keeps what happened in a run of consumer processes, in files that
// survive a SIGKILL of whoever writes them. It needs a Unix that maps files.
package history

import (
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"
)

// Kind says what happened.
type Kind uint8

// The kinds, and the fields of [Event] that each fills besides At and Kind. The first
// two, Stored and Fault are the harness's, the others a consumer's own.
const (
	Published    Kind = iota + 1 // the broker confirmed a copy: Token, Key, and Seq, the number of the copy within its key
	DeadLettered                 // a copy was found in the dead-letter destination, at the end: Token
	Stored                       // an effect was found in a transactional store, at the end: Token, Attempt, Process
	Asked                        // an operation is about to be sent to the store: Op, Token, Claim, Attempt (of a Commit), Counted; Key, a hash of the owner, Store, its incarnation, and Until, the MaxExpiries
	Answered                     // its answer: Op, Token, Claim, Status, Attempt, Store; Failed: none came, or an error
	Started                      // a handler was entered: Token, Attempt; Together: with other messages
	Effect                       // it took effect: the same
	Returned                     // it returned: the same; Failed: an error; Unspent: one that spends no budget
	Acked                        // the ack of a delivery, or the commit of an offset past it, is about to be sent: Token
	Fault                        // Op, the kind of fault; Process, where it hit one; Until, when it was over
)

var kindNames = [...]string{
	Published: "published", DeadLettered: "dead-lettered", Stored: "stored", Asked: "asked", Answered: "answered",
	Started: "started", Effect: "effect", Returned: "returned", Acked: "acked", Fault: "fault",
}

// String returns the kind in a word.
func (k Kind) String() string {
	if int(k) < len(kindNames) && kindNames[k] != "" {
		return kindNames[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Event is something that happened.
type Event struct {
	At    int64  // [Now] of whoever records it
	Store int64  // the store's clock, nanoseconds since 1970, but see Asked
	Until int64  // as At
	Claim uint64 // [ClaimID]

	Token, Key, Seq  uint32
	Process, Attempt uint16

	Kind       Kind
	Op, Status uint8 // store.Kind and store.Status
	Flags      Flags
}

// Flags are what is true of an event.
type Flags uint8

// The flags.
const (
	Failed   Flags = 1 << iota // see [Answered] and [Returned]
	Counted                    // see [Asked]
	Together                   // see [Started]
	Unspent                    // see [Returned]
)

// Has reports whether all of f are set.
func (e *Event) Has(f Flags) bool { return e.Flags&f == f }

// ClaimID is a hash of a claim id: the id itself has no room in an Event.
func ClaimID(id string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(id))
	return h.Sum64()
}

// Token is the token of a number in a run.
func Token(run string, n uint32) string { return run + "-" + strconv.FormatUint(uint64(n), 10) }

// Number is the number of a token that belongs to the run.
func Number(run, token string) (n uint32, ok bool) {
	digits, ok := strings.CutPrefix(token, run+"-")
	if !ok {
		return 0, false
	}
	v, err := strconv.ParseUint(digits, 10, 32)
	return uint32(v), err == nil
}
