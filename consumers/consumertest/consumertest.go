// Package consumertest is the conformance suite for adapters: an adapter that
// passes it settles a broker's deliveries as package consumers promises. It runs
// against the real broker.
//
// The consumer that it wants handles one message at a time, in the order of the broker,
// and tries a failed one again before the next: what an adapter does besides, concurrently
// or out of order, is for tests of its own.
//
//	func TestConformance(t *testing.T) {
//		consumertest.Run(t, func(tb testing.TB) consumertest.Queue { return newQueue(tb) })
//	}
package consumertest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/memstore"
	"github.com/idemq/idemq/internal/storefault"
)

// Message is a message as the suite sees it.
type Message struct {
	Headers map[string]string
	Body    string
}

// Handler is a handler of the suite.
type Handler func(ctx context.Context, m Message) error

// Queue is one queue (topic, stream) of a broker, empty at first, with a
// dead-letter destination of its own, and its adapter. Its methods fail the test
// themselves when the broker does not work.
type Queue interface {
	// Publish sends a message as it is: nothing is stamped.
	Publish(tb testing.TB, m Message)
	// Consume runs the adapter's consumer until ctx ends and returns what its Run
	// returned. It handles one message at a time, in order. deadLetters says whether
	// it has the dead-letter destination.
	Consume(ctx context.Context, g *idem.Guard, h Handler, deadLetters bool, opts ...consumers.Option) error
	// Owed returns how many messages the broker has not been told to be done with,
	// those in a consumer's hands included: exactly, and as of now, since the suite takes
	// zero for the end. What is counted with delay or estimated lets faults pass.
	Owed(tb testing.TB) int
	// DeadLetters returns the copies at the dead-letter destination, the oldest first.
	DeadLetters(tb testing.TB) []Message
	// Patience is longer than the broker waits for the settlement of a message that a
	// living consumer does not extend; zero where it has no such limit.
	Patience() time.Duration
}

// Breakable is a Queue whose dead-letter destination can fail for a while. Without it the
// case of copies that are not confirmed is skipped.
type Breakable interface {
	// BreakDeadLetters has the destination take no copy, for a reason that may pass, until
	// mend is called. Consumers are running then; none starts before mend.
	BreakDeadLetters(tb testing.TB) (mend func())
}

// limit bounds each wait of the suite, which may be for a few times the broker's patience.
func (e *env) limit() time.Duration { return max(30*time.Second, 6*e.q.Patience()) }

// Run runs the suite, each case on a queue of its own.
func Run(t *testing.T, open func(tb testing.TB) Queue) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			c.run(&env{T: t, explanation: c.explanation, q: open(t), store: storefault.New(memstore.New())})
		})
	}
}

var cases = []struct {
	name        string
	explanation string
	run         func(*env)
}{
	{
		"handled once, in order",
		"A message is acked after its completion was recorded, and one lane's messages reach the handler in the order of the broker.",
		func(e *env) {
			want := e.publish("a", "b", "c", "d", "e")
			stop := e.consume(e.note(nil))
			e.await("all are handled and acked", func() bool { return e.owed() == 0 && len(e.handled()) >= len(want) })
			e.end(stop)
			e.wantHandled(want...)
		},
	},
	{
		"duplicates of the producer",
		"A message that was published twice under one token is handled once, and both are acked.",
		func(e *env) {
			e.publish("a", "b", "a", "a", "c", "b")
			stop := e.consume(e.note(nil))
			e.await("all are acked", func() bool { return e.owed() == 0 })
			e.end(stop)
			e.wantHandled("a", "b", "c")
		},
	},
	{
		"a failing handler",
		"A failed message is tried again, with a higher attempt, and nothing overtakes it.",
		func(e *env) {
			e.publish("a", "b")
			fails := 3
			stop := e.consume(e.note(func(ctx context.Context, _ Message) error {
				c, _ := idem.FromContext(ctx)
				if c.Token() == "a" && c.Attempt() <= fails {
					return errors.New("not yet")
				}
				return nil
			}))
			e.await("both are acked", func() bool { return e.owed() == 0 })
			e.end(stop)
			e.wantHandled("a", "a", "a", "a", "b")
		},
	},
	{
		"dead letters",
		"What no retry can mend is handed over, confirmed, with everything that is needed to understand it and to bring it back; then it is settled.",
		func(e *env) {
			e.q.Publish(e, Message{Headers: map[string]string{idem.Header: "a", "Color": "red"}, Body: "body of a"})
			e.publish("b")
			stop := e.consume(e.note(func(ctx context.Context, _ Message) error {
				if c, _ := idem.FromContext(ctx); c.Token() == "a" {
					return idem.Permanent(errors.New("cannot be\nparsed"))
				}
				return nil
			}))
			e.await("both are settled", func() bool { return e.owed() == 0 })
			e.end(stop)
			e.wantHandled("a", "b")
			l := e.letters(1)[0]
			for header, want := range map[string]string{
				idem.Header: "a", "Color": "red", idem.RedriveHeader: "1",
				consumers.HeaderReason: consumers.ReasonPermanent, consumers.HeaderAttempt: "1", consumers.HeaderGroup: "conformance",
			} {
				if got := l.header(header); got != want {
					e.errorf("header %s is %q, want %q", header, got, want)
				}
			}
			if l.Body != "body of a" {
				e.errorf("the copy's body is %q", l.Body)
			}
			if l.header(consumers.HeaderSource) == "" || !strings.Contains(l.header(consumers.HeaderError), "parsed") {
				e.errorf("the copy does not say where it came from and why: %v", l.Headers)
			}
		},
	},
	{
		"dead letters that are not confirmed",
		"Until the destination has confirmed its copy, a message stays owed: settled before, it would be gone.",
		func(e *env) {
			q, ok := e.q.(Breakable)
			if !ok {
				e.Skip("this queue's dead-letter destination cannot be broken")
			}
			e.publish("a")
			stop := e.consume(e.note(func(ctx context.Context, _ Message) error {
				if c, _ := idem.FromContext(ctx); c.Token() == "b" {
					return idem.Permanent(errors.New("broken"))
				}
				return nil
			}))
			e.await("the consumer is at work", func() bool { return e.owed() == 0 })
			mend := q.BreakDeadLetters(e)
			e.publish("b")
			e.await("the copy is not taken", func() bool {
				return slices.Contains(e.kinds(), idem.EventWaiting) || len(e.handled()) == 2 && e.owed() == 0
			})
			if n := e.owed(); n != 1 {
				e.errorf("the broker owes %d messages while the copy of one is not taken, want 1", n)
			}
			mend()
			e.await("it is settled", func() bool { return e.owed() == 0 })
			e.end(stop)
			e.wantHandled("a", "b")
			e.letters(1)
		},
	},
	{
		"dead letters moved back",
		"A copy that is published again with its headers is handled again; a stray redelivery of the original is not.",
		func(e *env) {
			var mu sync.Mutex
			broken := true
			e.publish("a")
			stop := e.consume(e.note(func(context.Context, Message) error {
				mu.Lock()
				defer mu.Unlock()
				if broken {
					return idem.Permanent(errors.New("broken"))
				}
				return nil
			}))
			e.await("it is dead-lettered", func() bool { return e.owed() == 0 && len(e.q.DeadLetters(e)) == 1 })
			e.publish("a")
			e.await("the stray one is acked", func() bool { return e.owed() == 0 })
			e.wantHandled("a")
			mu.Lock()
			broken = false
			mu.Unlock()
			e.q.Publish(e, e.letters(1)[0].Message)
			e.await("the copy is handled", func() bool { return e.owed() == 0 && len(e.handled()) == 2 })
			e.end(stop)
			e.letters(1)
		},
	},
	{
		"no dead-letter destination",
		"A consumer without one stops rather than skip a message: Run returns an error that names it, and the broker still owes it.",
		func(e *env) {
			e.publish("a", "b")
			err := e.ended(func(context.Context, Message) error { return idem.Permanent(errors.New("broken")) }, false)
			if !strings.Contains(err.Error(), `"a"`) {
				e.errorf("Run returned %v, want an error that names token \"a\"", err)
			}
			if n := e.owed(); n != 2 {
				e.errorf("the broker owes %d messages, want 2", n)
			}
			stop := e.consume(e.note(nil))
			e.await("the next consumer gets both", func() bool { return e.owed() == 0 })
			e.end(stop)
		},
	},
	{
		"bad tokens",
		"A token that cannot be one is no reason to lose the message, nor to hold up its neighbours.",
		func(e *env) {
			e.q.Publish(e, Message{Headers: map[string]string{idem.Header: strings.Repeat("x", idem.MaxTokenLen+1)}, Body: "long"})
			e.q.Publish(e, Message{Headers: map[string]string{idem.Header: ""}, Body: "empty"})
			e.publish("fine")
			stop := e.consume(e.note(nil))
			e.await("all are settled", func() bool { return e.owed() == 0 && len(e.handled()) == 1 })
			e.end(stop)
			for i, body := range []string{"long", "empty"} {
				if l := e.letters(2)[i]; l.Body != body || l.header(consumers.HeaderReason) != consumers.ReasonToken {
					e.errorf("letter %d: %+v", i, l)
				}
			}
		},
	},
	{
		"no tokens",
		"A message without a token is told from others by its place in the broker, which is the same at each delivery; where messages have none it is dead-lettered. Told by less it would be taken for the duplicate of another, by more never for its own.",
		func(e *env) {
			var mu sync.Mutex
			tokens := map[string][]string{} // by body
			handle := func(mended bool) Handler {
				return func(ctx context.Context, m Message) error {
					c, _ := idem.FromContext(ctx)
					mu.Lock()
					defer mu.Unlock()
					tokens[m.Body] = append(tokens[m.Body], c.Token())
					if m.Body == "one" && !mended {
						return idem.RetryAfter(errors.New("not yet"), 0) // which spends no budget
					}
					return nil
				}
			}
			count := func(body string) int {
				mu.Lock()
				defer mu.Unlock()
				return len(tokens[body])
			}
			for _, body := range []string{"one", "two"} {
				e.q.Publish(e, Message{Body: body})
			}
			stop := e.consume(handle(false))
			e.await("the first has failed, or both are settled", func() bool { return count("one") > 0 || e.owed() == 0 })
			e.end(stop)
			stop = e.consume(handle(true))
			e.await("both are settled", func() bool { return e.owed() == 0 })
			e.end(stop)
			if len(tokens) == 0 { // they have no place
				for i, body := range []string{"one", "two"} {
					if l := e.letters(2)[i]; l.Body != body || l.header(consumers.HeaderReason) != consumers.ReasonToken {
						e.errorf("letter %d: %+v", i, l)
					}
				}
				return
			}
			one, two := slices.Compact(slices.Clone(tokens["one"])), tokens["two"]
			if len(one) != 1 || len(tokens["one"]) < 2 || len(two) != 1 || one[0] == two[0] {
				e.errorf("the first was handled as %q, the second as %q", tokens["one"], two)
			}
			e.letters(0)
		},
	},
	{
		"the store away",
		"While the store gives no answer nothing is acked and nothing is spent; afterwards everything is handled, once.",
		func(e *env) {
			tokens := e.publish("a", "b", "c", "d")
			stop := e.consume(e.note(func(ctx context.Context, _ Message) error {
				if c, _ := idem.FromContext(ctx); c.Token() == "b" && c.Attempt() == 1 {
					e.store.Set(storefault.Away)
				}
				return nil
			}))
			e.await("the store is away", func() bool { return slices.Contains(e.handled(), "b") })
			outage := time.Now()
			e.await("the outage has lasted", func() bool { return time.Since(outage) > max(2*e.q.Patience(), time.Second) })
			if n := e.owed(); n < 2 {
				e.errorf("the broker owes %d messages: some were acked without a record", n)
			}
			e.store.Set(storefault.None)
			e.await("all are acked", func() bool { return e.owed() == 0 })
			e.end(stop)
			e.wantHandled(tokens...)
		},
	},
	{
		"a handler that takes long",
		"From receipt to settlement a delivery is extended, the waiting ones included: a broker's patience must not be spent by work.",
		func(e *env) {
			if e.q.Patience() == 0 {
				e.Skip("this broker has no limit to outlast")
			}
			e.publish("a", "b")
			stop := e.consume(e.note(func(ctx context.Context, _ Message) error {
				if c, _ := idem.FromContext(ctx); c.Token() == "a" {
					work := time.NewTimer(3 * e.q.Patience())
					defer work.Stop()
					select {
					case <-work.C:
					case <-ctx.Done():
						return ctx.Err()
					}
				}
				return nil
			}))
			e.await("both are acked", func() bool { return e.owed() == 0 })
			e.end(stop)
			e.wantHandled("a", "b")
		},
	},
	{
		"a stop",
		"At the end of Run's context what has started is finished and acked, and what has not comes to the next consumer, soon.",
		func(e *env) {
			all := e.publish("a", "b", "c", "d", "e", "f")
			started, finish := make(chan struct{}), make(chan struct{})
			var once sync.Once
			stop := e.consume(e.note(func(ctx context.Context, _ Message) error {
				if c, _ := idem.FromContext(ctx); c.Token() == "b" {
					once.Do(func() { close(started) })
					<-finish
				}
				return nil
			}))
			<-started
			ended := make(chan error, 1)
			go func() { ended <- stop() }()
			close(finish)
			if err := <-ended; err != nil {
				e.errorf("Run returned %v", err)
			}
			again := e.consume(e.note(nil))
			e.await("the rest is handled", func() bool { return e.owed() == 0 })
			e.end(again)
			e.wantEachOnce(all...)
		},
	},
	{
		"two consumers",
		"Two consumers of one group handle each message once between them, and come to an end.",
		func(e *env) {
			var tokens []string
			for i := range 100 {
				tokens = append(tokens, fmt.Sprintf("token-%d", i))
			}
			e.publish(append(slices.Clone(tokens), tokens...)...)
			stop1, stop2 := e.consume(e.note(nil)), e.consume(e.note(nil))
			e.await("all are acked", func() bool { return e.owed() == 0 })
			e.end(stop1)
			e.end(stop2)
			e.wantEachOnce(tokens...)
		},
	},
	{
		"findings at the start",
		"What weakens the promise is told before anything is handled. Strict ends Run for it, names all of it, and takes no message; what it accepts stops nobody.",
		func(e *env) {
			e.publish("a", "b")
			e.store.OnVerify(e.finds("conformance-test"))
			err := e.fails(consumers.Strict())
			told := e.told()
			if !slices.Contains(told, "conformance-test") {
				e.errorf("observers were told of %q, and not of what the store found", told)
			}
			for _, id := range told {
				if !strings.Contains(err.Error(), "("+id+")") {
					e.errorf("the error does not list %s: %v", id, err)
				}
			}
			if n := e.owed(); n != 2 || len(e.handled()) > 0 {
				e.errorf("handled %q, the broker owes %d messages", e.handled(), n)
			}
			stop := e.consume(e.note(nil), consumers.Strict(told...))
			e.await("both are acked", func() bool { return e.owed() == 0 })
			e.end(stop)
			e.wantHandled("a", "b")
			if kinds := e.kinds(); slices.Index(kinds, idem.EventFinding) > slices.Index(kinds, idem.EventClaimed) {
				e.errorf("a message was claimed before the findings were told")
			}
		},
	},
	{
		"the store at the start",
		"A store that refuses ends Run before a message is taken. One that gives no answer does not, and delays it little; by Strict it is waited for.",
		func(e *env) {
			refused := errors.New("refused by a test")
			away := func(context.Context) ([]store.Finding, error) {
				return nil, fmt.Errorf("a test: %w", store.ErrUnavailable)
			}
			e.publish("a")
			e.store.OnVerify(func(context.Context) ([]store.Finding, error) { return nil, refused })
			if err := e.fails(); !errors.Is(err, refused) {
				e.errorf("Run returned %v, want the store's refusal", err)
			}
			if n := e.owed(); n != 1 || len(e.handled()) > 0 {
				e.errorf("handled %q, the broker owes %d messages", e.handled(), n)
			}
			e.store.OnVerify(away)
			stop := e.consume(e.note(nil))
			e.await("it is acked", func() bool { return e.owed() == 0 })
			e.end(stop)
			e.wantHandled("a")

			e.publish("b")
			accepted := slices.DeleteFunc(e.told(), func(id string) bool { return id == "store-silent" })
			stop = e.consume(e.note(nil), consumers.Strict(accepted...))
			began := time.Now()
			e.await("Run waits for the store, longer than it would without Strict", func() bool { return time.Since(began) > 8*time.Second })
			e.wantHandled("a")
			e.store.OnVerify(e.finds())
			e.await("it goes on", func() bool { return e.owed() == 0 })
			e.end(stop)
			e.wantHandled("a", "b")
		},
	},
}

// env is what a case works with.
type env struct {
	*testing.T
	explanation string
	q           Queue
	store       *storefault.Store

	mu     sync.Mutex
	tokens []string
	events []idem.Event
}

func (e *env) errorf(format string, args ...any) {
	e.Helper()
	e.Errorf("%s\n%s", e.explanation, fmt.Sprintf(format, args...))
}

func (e *env) guard() *idem.Guard {
	return idem.New(idem.WithStore(e.store), idem.WithLease(2*time.Second), idem.WithObserver(idem.ObserverFunc(func(ev idem.Event) {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.events = append(e.events, ev)
	}))).Group("conformance")
}

// kinds lists what observers were told of.
func (e *env) kinds() (kinds []idem.EventKind) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, ev := range e.events {
		kinds = append(kinds, ev.Kind)
	}
	return kinds
}

// told lists the findings that observers were told of.
func (e *env) told() (ids []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, ev := range e.events {
		if ev.Kind == idem.EventFinding && ev.Finding != nil {
			ids = append(ids, ev.Finding.ID)
		}
	}
	return ids
}

// finds is a Verify that finds.
func (e *env) finds(ids ...string) func(context.Context) ([]store.Finding, error) {
	return func(context.Context) (found []store.Finding, err error) {
		for _, id := range ids {
			found = append(found, store.Finding{ID: id, What: "This is a test.", Consequence: "It finds something.", Cure: "Accept it."})
		}
		return found, nil
	}
}

func (e *env) publish(tokens ...string) []string {
	e.Helper()
	for _, token := range tokens {
		e.q.Publish(e, Message{Headers: map[string]string{idem.Header: token}, Body: "body of " + token})
	}
	return tokens
}

// fails runs a consumer that ends by itself before it handles anything.
func (e *env) fails(opts ...consumers.Option) error {
	e.Helper()
	return e.ended(e.note(nil), true, opts...)
}

// ended waits for the end of a consumer that ends by itself, and returns its error.
func (e *env) ended(h Handler, deadLetters bool, opts ...consumers.Option) error {
	e.Helper()
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { done <- e.q.Consume(ctx, e.guard(), h, deadLetters, opts...) }()
	select {
	case err := <-done:
		if err == nil {
			e.Fatalf("%s\nRun returned no error", e.explanation)
		}
		return err
	case <-time.After(e.limit()):
		e.Fatalf("%s\nRun did not end within %v", e.explanation, e.limit())
		return nil
	}
}

// consume starts a consumer, and returns what stops it.
func (e *env) consume(h Handler, opts ...consumers.Option) (stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- e.q.Consume(ctx, e.guard(), h, true, append([]consumers.Option{consumers.Backoff(time.Millisecond, 10*time.Millisecond)}, opts...)...)
	}()
	var once sync.Once
	var err error
	stop = func() error {
		once.Do(func() {
			cancel()
			err = <-done
		})
		return err
	}
	e.Cleanup(func() { _ = stop() })
	return stop
}

func (e *env) end(stop func() error) {
	e.Helper()
	if err := stop(); err != nil {
		e.errorf("Run returned %v", err)
	}
}

// note records which tokens are handled, in order.
func (e *env) note(h Handler) Handler {
	return func(ctx context.Context, m Message) error {
		c, ok := idem.FromContext(ctx)
		if !ok {
			e.errorf("the handler's context has no claim")
			return nil
		}
		if want := "body of " + c.Token(); m.Body != want {
			e.errorf("the handler of %q was given %q", c.Token(), m.Body)
		}
		e.mu.Lock()
		e.tokens = append(e.tokens, c.Token())
		e.mu.Unlock()
		if h == nil {
			return nil
		}
		return h(ctx, m)
	}
}

func (e *env) handled() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.tokens)
}

func (e *env) owed() int { return e.q.Owed(e) }

func (e *env) wantHandled(want ...string) {
	e.Helper()
	if got := e.handled(); !slices.Equal(got, want) {
		e.errorf("handled %q, want %q", got, want)
	}
}

func (e *env) wantEachOnce(want ...string) {
	e.Helper()
	counts := map[string]int{}
	for _, token := range e.handled() {
		counts[token]++
	}
	for _, token := range want {
		if counts[token] != 1 {
			e.errorf("%s was handled %d times", token, counts[token])
		}
	}
	if len(counts) != len(want) {
		e.errorf("handled %q, want only %q", slices.Sorted(maps.Keys(counts)), want)
	}
}

// deadLetter is a copy at the dead-letter destination.
type deadLetter struct{ Message }

func (l deadLetter) header(name string) string {
	for k, v := range l.Headers {
		if strings.EqualFold(k, name) {
			return v
		}
	}
	return ""
}

func (e *env) letters(want int) []deadLetter {
	e.Helper()
	all := e.q.DeadLetters(e)
	if len(all) != want {
		e.Fatalf("%s\n%d dead letters, want %d: %+v", e.explanation, len(all), want, all)
	}
	letters := make([]deadLetter, len(all))
	for i, m := range all {
		letters[i] = deadLetter{m}
	}
	return letters
}

// await asks again and again, as the brokers have no other way to tell.
func (e *env) await(what string, cond func() bool) {
	e.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(e.limit())
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			e.Fatalf("%s\nnot within %v: %s (owed %d, handled %q)", e.explanation, e.limit(), what, e.owed(), e.handled())
		}
	}
}
