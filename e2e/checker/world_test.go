package checker_test

import (
	"time"

	"github.com/idemq/idemq/e2e/checker"
	"github.com/idemq/idemq/e2e/history"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/rules"
)

const (
	lease = 2 * time.Second
	epoch = int64(1_700_000_000_000_000_000) // what the store's clock is ahead
)

// world makes histories: consumer processes on a clock of their own, and a store that
// keeps the rules.
type world struct {
	now     time.Duration
	events  []history.Event
	records map[uint32]*rules.Record
	last    uint64 // claim
	seq     uint32
}

func newWorld() *world { return &world{now: time.Second, records: map[uint32]*rules.Record{}} }

// add records an event, a millisecond after the one before.
func (w *world) add(e history.Event) {
	w.now += time.Millisecond
	e.At = int64(w.now)
	w.events = append(w.events, e)
}

func (w *world) publish(token, key uint32) {
	w.seq++
	w.add(history.Event{Kind: history.Published, Token: token, Key: key, Seq: w.seq})
}

// fate is what happens to an operation on its way.
type fate int

const (
	arrives fate = iota
	replyLost
	requestLost
)

// ask has the store execute an operation, and returns its answer.
func (w *world) ask(process uint16, op store.Op, token uint32, claim uint64, f fate) store.Reply {
	e := history.Event{Kind: history.Asked, Process: process, Op: uint8(op.Kind), Token: token, Claim: claim, Attempt: uint16(op.Attempt)}
	if op.Counted {
		e.Flags = history.Counted
	}
	w.add(e)
	e.Kind, e.Attempt, e.Flags = history.Answered, 0, 0
	r := w.records[token]
	if r == nil {
		r = &rules.Record{}
		w.records[token] = r
	}
	op.Claim = string(rune(claim))
	x := rules.Execution{
		Batch: &store.Batch{Lease: lease, Retention: time.Hour},
		Now:   rules.Instant(int64(w.now) + epoch),
		Time:  func(rules.Instant) time.Time { return time.Time{} },
	}
	var reply store.Reply
	if f != requestLost {
		reply, _ = x.Do(&op, r, &rules.Issued{})
	}
	if f != arrives {
		e.Flags = history.Failed
	} else {
		e.Status, e.Attempt, e.Store = uint8(reply.Status), uint16(reply.Attempt), int64(x.Now)
	}
	w.add(e)
	return reply
}

// claim is one that a process was granted.
type claim struct {
	w       *world
	process uint16
	token   uint32
	id      uint64
	attempt int
}

// begin asks for a claim with a new id.
func (w *world) begin(process uint16, token uint32) (claim, store.Reply) {
	w.last++
	c := claim{w: w, process: process, token: token, id: w.last}
	reply := c.begin(arrives)
	c.attempt = reply.Attempt
	return c, reply
}

func (c *claim) begin(f fate) store.Reply {
	r := c.w.ask(c.process, store.Op{Kind: store.Begin}, c.token, c.id, f)
	c.attempt = r.Attempt
	return r
}

func (c *claim) commit(f fate) store.Reply {
	return c.w.ask(c.process, store.Op{Kind: store.Commit, Attempt: c.attempt}, c.token, c.id, f)
}

func (c *claim) release(counted bool) store.Reply {
	return c.w.ask(c.process, store.Op{Kind: store.Release, Counted: counted}, c.token, c.id, arrives)
}

func (c *claim) bury() store.Reply {
	return c.w.ask(c.process, store.Op{Kind: store.Bury}, c.token, c.id, arrives)
}

// again has the store execute a copy of an operation that came late: nobody sees it.
func (c *claim) again(op store.Op) {
	seen := len(c.w.events)
	c.w.ask(c.process, op, c.token, c.id, arrives)
	c.w.events = c.w.events[:seen]
}

func (c *claim) event(k history.Kind, f history.Flags) {
	c.w.add(history.Event{Kind: k, Process: c.process, Token: c.token, Attempt: uint16(c.attempt), Flags: f})
}

func (c *claim) start()  { c.event(history.Started, 0) }
func (c *claim) effect() { c.event(history.Effect, 0) }
func (c *claim) ack()    { c.event(history.Acked, 0) }
func (c *claim) fail()   { c.event(history.Returned, history.Failed) }

// run is a handler that takes effect.
func (c *claim) run() {
	c.start()
	c.effect()
	c.event(history.Returned, 0)
}

// The kinds of faults.
const (
	kill = iota + 1
	pause
	stop
	brokerAway
	storeAway
)

var effects = map[uint8]checker.Effect{kill: checker.Ends, pause: checker.Holds, stop: checker.Drains, storeAway: checker.HitsStore}

func (w *world) kill(process uint16) { w.fault(kill, process) }

// pause stops a process for some time.
func (w *world) pause(process uint16, d time.Duration) {
	from := int64(w.now)
	w.now += d
	w.events = append(w.events, history.Event{Kind: history.Fault, Op: pause, Process: process, At: from, Until: int64(w.now)})
}

func (w *world) fault(kind uint8, process uint16) {
	w.now += time.Millisecond
	w.events = append(w.events, history.Event{Kind: history.Fault, Op: kind, Process: process, At: int64(w.now), Until: int64(w.now)})
}

// stories are what may become of a message, in histories that keep the promise.
var stories = map[string]func(w *world, token uint32){
	"handled": func(w *world, token uint32) {
		c, _ := w.begin(1, token)
		c.run()
		c.commit(arrives)
		c.ack()
	},
	"delivered again when it is done": func(w *world, token uint32) {
		c, _ := w.begin(1, token)
		c.run()
		c.commit(arrives)
		again, _ := w.begin(2, token)
		again.ack()
	},
	"in progress elsewhere": func(w *world, token uint32) {
		c, _ := w.begin(1, token)
		c.start()
		w.begin(2, token)
		c.effect()
		c.event(history.Returned, 0)
		c.commit(arrives)
		c.ack()
	},
	"failed at first": func(w *world, token uint32) {
		c, _ := w.begin(1, token)
		c.start()
		c.fail()
		c.release(true)
		c, _ = w.begin(1, token)
		c.run()
		c.commit(arrives)
		c.ack()
	},
	"given to a handler together with others, and left to its next attempt": func(w *world, token uint32) {
		c, _ := w.begin(1, token)
		c.event(history.Started, history.Together)
		c.event(history.Returned, history.Failed|history.Unspent)
		c.release(false)
		c, _ = w.begin(1, token)
		c.run()
		c.commit(arrives)
		c.ack()
	},
	"dead-lettered": func(w *world, token uint32) {
		c, _ := w.begin(1, token)
		c.start()
		c.fail()
		c.bury()
		c.ack()
		w.add(history.Event{Kind: history.DeadLettered, Token: token})
	},
	"killed between effect and record": func(w *world, token uint32) {
		process := 100 + uint16(token) // which ends once
		c, _ := w.begin(process, token)
		c.start()
		c.effect()
		w.kill(process)
		w.now += lease
		c, _ = w.begin(1, token)
		c.run()
		c.commit(arrives)
		c.ack()
	},
	"killed while its completion was under way, which arrived": func(w *world, token uint32) {
		process := 100 + uint16(token)
		c, _ := w.begin(process, token)
		c.run()
		c.commit(replyLost)
		w.kill(process)
		again, _ := w.begin(1, token)
		again.ack()
	},
	"the lease was lost, and somebody took over": func(w *world, token uint32) {
		c, _ := w.begin(1, token)
		c.start()
		w.pause(1, lease)
		other, _ := w.begin(2, token)
		c.effect()
		c.event(history.Returned, 0)
		c.commit(arrives) // lost
		other.run()
		other.commit(arrives)
		other.ack()
		c.begin(arrives) // a duplicate
		c.ack()
	},
	"a late completion, when who took over gave back": func(w *world, token uint32) {
		c, _ := w.begin(1, token)
		c.run()
		w.now += lease
		other, _ := w.begin(2, token)
		other.release(false)
		c.commit(arrives)
		c.ack()
	},
	"a completion that was refused arrives again, when who took over gave back": func(w *world, token uint32) {
		c, _ := w.begin(1, token)
		c.run()
		w.now += lease
		other, _ := w.begin(2, token)
		c.commit(arrives)
		other.release(false)
		c.again(store.Op{Kind: store.Commit, Attempt: c.attempt})
		c, _ = w.begin(1, token) // a duplicate
		c.ack()
	},
	"the reply to Begin is lost, and asked for again": func(w *world, token uint32) {
		c, _ := w.begin(1, 0xFFFF_0000+token) // a claim id
		c.token = token
		c.begin(replyLost)
		w.begin(2, token) // in progress
		c.begin(arrives)
		c.run()
		c.commit(replyLost)
		c.commit(arrives)
		c.ack()
	},
	"the request is lost": func(w *world, token uint32) {
		c, _ := w.begin(1, 0xFFFF_0000+token)
		c.token = token
		c.begin(requestLost)
		other, _ := w.begin(2, token)
		other.run()
		other.commit(arrives)
		c.begin(arrives)
		c.ack()
	},
}
