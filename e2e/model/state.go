package model

import (
	"cmp"
	"hash/maphash"
	"slices"

	"github.com/idemq/idemq/idem/store"
)

// Bounds of a configuration.
const (
	maxProcs  = 3
	maxGroups = 2
	maxTokens = 3
	maxItems  = 3
	maxMsgs   = 5
	maxParts  = 2
	maxSlots  = 6
	maxN      = 5 // redrive numbers
	maxLate   = 2
	maxClaims = 128
)

// Times of a lease, on the store's clock.
const (
	fresh  = 1
	missed = 2 // a renewal is overdue: a higher incarnation may take over
	over   = 3
)

// record is rules.Record without times in numbers.
type record struct {
	St, Claim, Attempt, Spent, Expiries, Redrive, Fence, ForgotBy uint8
	BySpend                                                       bool
	Lease, Owner, Inc, FP                                         uint8
}

func (r *record) running() bool { return r.St == uint8(store.Running) }

// issued is rules.Issued, likewise.
type issued struct {
	Known, Over bool
	CheckedBy   uint8
}

// phase is how far a process has come with a delivery.
type phase uint8

const (
	none      phase = iota
	queued          // no claim
	asking          // Begin or Spend has no answer yet
	claimed         // not started
	running         // in the handler
	backoff         // the handler failed; the claim is kept until the next try
	retrying        // Release and the next Begin have no answer yet
	returned        // the handler returned nil; the completion is not recorded
	releasing       // Release has no answer yet
	posting         // the dead-letter copy is not confirmed
	burying         // Bury has no answer yet
	solitude        // waits to ask with nothing beside it
	waiting         // somebody else has it in progress
	unguarded       // in the handler, without a claim
	settling        // to be acked
	marked          // Kafka: done, behind a message that is not
	left            // Kafka: not done, and nobody works on it: no offset passes it
)

// Flags of a slot.
const (
	fTaken     uint16 = 1 << iota // a worker has it
	fTried                        // a claim ahead was refused
	fAlone                        // to be asked for in solitude
	fSolo                         // and was
	fGone                         // its lane has ended: the partition or the session is lost
	fPrev                         // the same token stands before it in the lane
	fPrevDone                     // and that one completed
	fEnded                        // repeats do not wait for it any more
	fCounted                      // its Release spends budget
	fNak                          // goes back to the broker after its Release
	fFinal                        // the broker's last delivery
	fCompleted                    // the ack is that of a completion
	fLost                         // the lease is known to be lost
	fDropped                      // at most once: it has failed, and nothing more is to be posted

	gEffect // the run's effect has landed, and is not recorded
	gOver   // the lease has run out
)

// How a claim came to be another's while its holder's clock still counted.
const (
	stolen = 1 + iota // by a higher incarnation
	forgot            // by a store that lost the record
	fenced            // by an operator, who had the token forgotten
)

// slot is a delivery in the hands of a process.
type slot struct {
	Msg   uint8 // its number, from 1
	Ph    phase
	F     uint16
	C, C2 uint8 // claim ids; C2 of the next try
	A     uint8 // attempt
	N     uint8 // redrive number of the record
	Sp    uint8 // spent before this attempt
	Fail  uint8 // failures without a claim
	How   uint8
	Why   uint8 // settling: what justifies the ack
}

func (sl *slot) is(f uint16) bool { return sl.F&f != 0 }

type proc struct {
	Up, Stop bool
	Inc      uint8
	S        [maxSlots]slot // in order of arrival, lane by lane
	// Kafka, of a partition: what to fetch, what was fetched last, what to commit.
	Pos, Last, Next [maxParts]uint8
}

// message is a message in the broker: an item, with its redrive number.
type message struct{ Item, N, Part uint8 }

// late is a store command that its sender has given up, or sends again, and that may
// still be executed.
type late struct{ Op, G, T, Item, C, A, N, FP, Max, Owner, Inc, Counted uint8 }

// checker is a caller of Check.
type checker struct{ Ph, C uint8 }

// State is the whole world. Its fields from Done on are looked at by checks only.
type State struct {
	Rec    [maxGroups][maxTokens]record
	Snap   [maxGroups][maxTokens]record // what the replica has
	Lags   bool
	Issued [maxTokens]issued
	P      [maxProcs]proc
	M      [maxMsgs]message
	NM     uint8
	Owner  [maxGroups][maxParts]uint8 // Kafka: process + 1
	Offset [maxGroups][maxParts]uint8
	B      [maxGroups][maxMsgs]uint8 // others: ready, process + 1, acked, dropped
	Count  [maxGroups][maxMsgs]uint8
	Dlq    [maxGroups][maxItems][maxN]uint8
	Late   [maxLate]late
	Check  [2]checker

	Faults, Redrives, Forgets, Failovers uint8

	Done   [maxGroups][maxTokens]bool  // its completion was recorded
	Given  [maxGroups][maxTokens]uint8 // the highest attempt that was given
	Blame  [maxGroups][maxTokens]uint8 // what may spend budget
	Why    [maxGroups][maxTokens]uint8 // windows that were entered
	Cause  [maxGroups][maxItems]bool   // an ack is justified
	Effect [maxGroups][maxItems]uint8
	Starts [maxGroups][maxItems]uint8
	Gave   bool  // a Check was given up
	Passed uint8 // how many Checks passed
}

// What a broker other than Kafka has of a message, besides who it is with.
const (
	ready   = 0
	acked   = 10
	dropped = 11
)

// Windows that were entered, in State.Why.
const (
	wDied uint8 = 1 << iota
	wLate
	wForgot
	wOpen
	wStolen
)

// renumber makes equal what differs by names only: claim ids by order of appearance,
// incarnations by rank, attempts by rank and by whether they are neighbours.
func (s *State) renumber(c *Config) {
	s.arrange(c)
	s.renumberClaims()
	for g := range c.groups {
		for t := range c.tokens {
			s.renumberAttempts(c, g, t)
		}
	}
	if c.Names != nil {
		s.renumberIncarnations(c)
	}
}

// arrange orders slots by lane; within one the order stays. What is free goes last.
func (s *State) arrange(c *Config) {
	slices.SortFunc(s.Late[:], func(a, b late) int {
		return cmp.Or(cmp.Compare(b.Op, a.Op), cmp.Compare(a.G, b.G), cmp.Compare(a.T, b.T))
	})
	for p := range c.Procs {
		slices.SortStableFunc(s.P[p].S[:], func(a, b slot) int { return cmp.Compare(s.rank(c, &a), s.rank(c, &b)) })
	}
}

func (s *State) rank(c *Config, sl *slot) int {
	if sl.Ph == none {
		return 1 << 10
	}
	return s.laneOf(c, sl)
}

// laneOf numbers the lanes of a process.
func (s *State) laneOf(c *Config, sl *slot) int {
	it := &c.Items[s.M[sl.Msg-1].Item]
	l := 0
	if c.Broker.isKafka() {
		l = int(s.M[sl.Msg-1].Part)<<4 | it.Lane<<1
	} else if c.ByKey {
		l = it.Lane << 1
	}
	if sl.is(fGone) {
		l |= 1
	}
	return l
}

// claims calls f with each claim id that is kept somewhere.
func (s *State) claims(f func(*uint8)) {
	for g := range s.Rec {
		for t := range s.Rec[g] {
			for _, r := range [...]*record{&s.Rec[g][t], &s.Snap[g][t]} {
				f(&r.Claim)
				f(&r.ForgotBy)
			}
		}
	}
	for p := range s.P {
		for i := range s.P[p].S {
			f(&s.P[p].S[i].C)
			f(&s.P[p].S[i].C2)
		}
	}
	for i := range s.Late {
		f(&s.Late[i].C)
	}
	for i := range s.Issued {
		f(&s.Issued[i].CheckedBy)
	}
	for i := range s.Check {
		f(&s.Check[i].C)
	}
}

func (s *State) renumberClaims() {
	var to [maxClaims]uint8
	next := uint8(1)
	s.claims(func(id *uint8) {
		if *id == 0 {
			return
		}
		if to[*id] == 0 {
			to[*id] = next
			next++
		}
		*id = to[*id]
	})
}

func (s *State) newClaim() uint8 {
	last := uint8(0)
	s.claims(func(id *uint8) { last = max(last, *id) })
	return last + 1
}

func (s *State) renumberAttempts(c *Config, g, t int) {
	var all [2*maxProcs*maxSlots + 8]*uint8
	n := 0
	add := func(a *uint8) {
		if *a > 0 {
			all[n] = a
			n++
		}
	}
	for _, r := range [...]*record{&s.Rec[g][t], &s.Snap[g][t]} {
		add(&r.Attempt)
		add(&r.Fence)
	}
	add(&s.Given[g][t])
	for p := range c.Procs {
		if c.Procs[p] != g {
			continue
		}
		for i := range s.P[p].S {
			if sl := &s.P[p].S[i]; sl.Ph != none && c.token(s, sl) == t {
				add(&sl.A)
			}
		}
	}
	for i := range s.Late {
		if l := &s.Late[i]; l.Op != 0 && int(l.G) == g && int(l.T) == t {
			add(&l.A)
		}
	}
	sorted := all[:n]
	slices.SortFunc(sorted, func(a, b *uint8) int { return cmp.Compare(*a, *b) })
	was, is := uint8(0), uint8(0)
	for _, a := range sorted {
		if *a != was {
			is += min(*a-was, 2)
			was = *a
		}
		*a = is
	}
}

func (s *State) renumberIncarnations(c *Config) {
	for name := uint8(1); name <= maxProcs; name++ {
		var seen, to [maxClaims]uint8
		all := func(f func(*uint8)) {
			for p := range c.Procs {
				if c.name(p) == name && s.P[p].Up {
					f(&s.P[p].Inc)
				}
			}
			for g := range s.Rec {
				for t := range s.Rec[g] {
					for _, r := range [...]*record{&s.Rec[g][t], &s.Snap[g][t]} {
						if r.Owner == name {
							f(&r.Inc)
						}
					}
				}
			}
			for i := range s.Late {
				if s.Late[i].Owner == name {
					f(&s.Late[i].Inc)
				}
			}
		}
		all(func(n *uint8) { seen[*n] = 1 })
		next := uint8(1)
		for n := 1; n < maxClaims; n++ {
			if seen[n] == 1 {
				to[n] = next
				next++
			}
		}
		all(func(n *uint8) { *n = to[*n] })
	}
}

// newIncarnation is higher than any that is kept somewhere.
func (s *State) newIncarnation() uint8 {
	last := uint8(0)
	for p := range s.P {
		last = max(last, s.P[p].Inc)
	}
	for g := range s.Rec {
		for t := range s.Rec[g] {
			last = max(last, s.Rec[g][t].Inc, s.Snap[g][t].Inc)
		}
	}
	for i := range s.Late {
		last = max(last, s.Late[i].Inc)
	}
	return last + 1
}

// key identifies a state. Two that differ in which of several like processes is which
// have one key.
type key [2]uint64

type hasher [2]maphash.Seed

func newHasher() hasher { return hasher{maphash.MakeSeed(), maphash.MakeSeed()} }

func (h *hasher) of(s *State) key {
	return key{maphash.Comparable(h[0], *s), maphash.Comparable(h[1], *s)}
}

// key renumbers s, and returns its key.
func (h *hasher) key(c *Config, s *State) key {
	s.renumber(c)
	k := h.of(s)
	for _, swap := range c.swaps {
		other := *s
		other.exchange(swap[0], swap[1])
		other.renumber(c)
		if o := h.of(&other); o[0] < k[0] || o[0] == k[0] && o[1] < k[1] {
			k = o
		}
	}
	return k
}

// exchange gives two processes of one group each other's place.
func (s *State) exchange(a, b int) {
	s.P[a], s.P[b] = s.P[b], s.P[a]
	change := func(n *uint8) {
		switch int(*n) {
		case a + 1:
			*n = uint8(b + 1)
		case b + 1:
			*n = uint8(a + 1)
		}
	}
	for g := range s.Owner {
		for i := range s.Owner[g] {
			change(&s.Owner[g][i])
		}
		for i := range s.B[g] {
			change(&s.B[g][i])
		}
	}
}
