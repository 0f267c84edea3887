package idem

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"
)

// EventKind says what happened.
type EventKind uint8

// The events. Each names the fields of Event that it fills, besides Group and
// Token.
const (
	EventClaimed      EventKind = iota + 1 // a claim was made: Attempt
	EventDuplicate                         // a token was done or dead: Attempt; Near, where WithNearCache knew it
	EventInProgress                        // a token is held elsewhere: Wait
	EventCommitted                         // a completion was recorded: Attempt
	EventReleased                          // a claim was given back: Attempt
	EventBuried                            // a dead-lettering was recorded: Attempt
	EventRefused                           // unknown token, conflict, bad record, superseded; without Token: bad signature, no number for WithInstance: Err
	EventLeaseLost                         // a claim's lease ran out or was taken: Attempt
	EventStoreDown                         // the store gave no answer, or refused: Err; once per outage
	EventStoreUp                           // the store answers again: Wait, how long it was away
	EventStoreNotice                       // the store lost records that it had acknowledged: Text
	EventFinding                           // consumers, at their start: something weakens the promise: Finding, Text
	EventRetry                             // consumers: a handler failed, its message is tried again: Attempt, Err, Wait
	EventDeadLetter                        // consumers: a message was dead-lettered, confirmed: Attempt, Err, Text (the reason)
	EventStale                             // consumers: a message older than the retention: Text
	EventUnguarded                         // consumers: FailOpen handled a message without a claim: Err
	EventUnrecorded                        // consumers: an effect could not be recorded as done: Attempt, Err
	EventShadowed                          // consumers: shadow mode handled a message that it would have dropped or held: Err
	EventSettleFailed                      // consumers: the broker did not take an ack, or that a message is still worked on; it will deliver again: Err
	EventStuck                             // consumers: a handler did not return in time: Wait
	EventDropped                           // consumers: a message is lost, or may be (at most once; a last delivery that goes back), or was terminated by option without a copy: Err
	EventWaiting                           // something holds the consumer up: Err, Wait
	EventLateError                         // consumers: a handler returned an error after its completion was committed: Attempt, Err
)

var eventNames = [...]string{
	EventClaimed: "claimed", EventDuplicate: "duplicate", EventInProgress: "in progress elsewhere",
	EventCommitted: "committed", EventReleased: "released", EventBuried: "buried", EventRefused: "refused",
	EventLeaseLost: "lease lost", EventStoreDown: "store down", EventStoreUp: "store up", EventStoreNotice: "store notice", EventFinding: "finding",
	EventRetry: "retry", EventDeadLetter: "dead-lettered", EventStale: "stale", EventUnguarded: "handled without a claim",
	EventUnrecorded: "effect not recorded", EventShadowed: "handled in shadow mode", EventSettleFailed: "settlement failed",
	EventStuck: "handler does not return", EventDropped: "dropped", EventWaiting: "waiting", EventLateError: "error after completion",
}

// String returns the kind in words.
func (k EventKind) String() string {
	if int(k) < len(eventNames) && eventNames[k] != "" {
		return eventNames[k]
	}
	return "unknown"
}

// Event is something that happened to a token, or to the store. See EventKind
// for the fields that are set.
type Event struct {
	Kind    EventKind
	Group   string
	Token   string
	Attempt int
	Wait    time.Duration
	Err     error
	Text    string
	Finding *Finding
	Near    bool
}

// Observer is told of events. Observe is called on the way of the message, from
// many goroutines at once: it must be quick and must not call the guard, nor end its goroutine
// (as t.FailNow does), which others wait for. Its panic is logged by slog.Default, and what it
// was told of goes on.
type Observer interface {
	Observe(Event)
}

// ObserverFunc is a function as an Observer.
type ObserverFunc func(Event)

// Observe calls f.
func (f ObserverFunc) Observe(e Event) { f(e) }

type observers []Observer

func (o observers) emit(e Event) {
	for _, x := range o {
		tell(x, e)
	}
}

// tell keeps a panic of x from the guard, whose claims nobody would end.
func tell(x Observer, e Event) {
	defer func() {
		if r := recover(); r != nil {
			defer func() { _ = recover() }() // of the log's handler, which may be what x writes to
			slog.Error("idem: an observer panicked", "observer", fmt.Sprintf("%T", x), "event", e.Kind.String(), "panic", r, "stack", string(debug.Stack()))
		}
	}()
	x.Observe(e)
}

// logObserver writes events to a slog.Logger: what happens to every message at
// debug level, what an operator should know at info, warn or error.
type logObserver struct{ log *slog.Logger }

func (o logObserver) Observe(e Event) {
	level := slog.LevelDebug
	switch e.Kind {
	case EventStoreUp, EventRetry, EventStale, EventShadowed:
		level = slog.LevelInfo
	case EventRefused, EventLeaseLost, EventStoreDown, EventDeadLetter, EventSettleFailed, EventStuck, EventUnguarded, EventWaiting, EventFinding, EventLateError:
		level = slog.LevelWarn
	case EventStoreNotice, EventUnrecorded, EventDropped:
		level = slog.LevelError
	}
	if e.Finding != nil && e.Finding.Lost {
		level = slog.LevelError
	}
	ctx := context.Background()
	if !o.log.Enabled(ctx, level) {
		return
	}
	attrs := make([]slog.Attr, 0, 7)
	if e.Group != "" {
		attrs = append(attrs, slog.String("group", e.Group))
	}
	if e.Token != "" {
		attrs = append(attrs, slog.String("token", e.Token))
	}
	if e.Attempt != 0 {
		attrs = append(attrs, slog.Int("attempt", e.Attempt))
	}
	if e.Near {
		attrs = append(attrs, slog.Bool("near", true))
	}
	if e.Wait != 0 {
		attrs = append(attrs, slog.Duration("wait", e.Wait))
	}
	if e.Err != nil {
		attrs = append(attrs, slog.Any("err", e.Err))
	}
	if e.Text != "" {
		attrs = append(attrs, slog.String("text", e.Text))
	}
	o.log.LogAttrs(ctx, level, "idem: "+e.Kind.String(), attrs...)
}
