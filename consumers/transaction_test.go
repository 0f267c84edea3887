package consumers_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/memstore"
	"github.com/idemq/idemq/internal/storefault"
)

func newDatabaseRig(t *testing.T, shape consumers.Broker) (*rig, *storefault.Database) {
	d := storefault.NewDatabase(memstore.New())
	d.Holds = true
	r := &rig{t: t, b: newBroker(shape), store: d.Store}
	r.guard = r.newGuard(idem.WithStore(d), idem.WithObserver(idem.ObserverFunc(func(e idem.Event) {
		if (e.Kind == idem.EventRetry || e.Kind == idem.EventDeadLetter) && d.Open() > 0 {
			t.Errorf("%v while the failed handler's transaction is open", e.Kind)
		}
	})))
	return r, d
}

// write is a handler whose effect is its token, in the store's transaction.
func write(ctx context.Context, d *delivery) error {
	return storefault.Write(ctx, d.Header(idem.Header)[0])
}

// then is write, and an error the first n times.
func then(n int, err error) handler {
	return func(ctx context.Context, d *delivery) error {
		if e := write(ctx, d); e != nil {
			return e
		}
		if n--; n >= 0 {
			return err
		}
		return nil
	}
}

// The effect of a handler that writes in the store's transaction is there exactly once,
// and the message is acked after it, whatever the database answers.
func TestTransactions(t *testing.T) {
	many := slices.Repeat([]storefault.TxFault{storefault.RollsBack}, 2*consumers.DefaultBudget)
	for _, tc := range []struct {
		name    string
		why     string
		shape   consumers.Broker
		opts    []consumers.Option
		faults  []storefault.TxFault
		handler handler
		want    []string
		kept    []string
		handled int
		letters int
		state   store.State
	}{
		{
			name: "commits", why: "in order, each before the next starts", handler: write,
			want: []string{"ack 1", "ack 2"}, kept: []string{"a", "b"}, handled: 2, state: store.Done,
		},
		{
			name: "handler fails", why: "a failed attempt leaves no effect", handler: then(2, errBoom),
			want: []string{"ack 1", "ack 2"}, kept: []string{"a", "b"}, handled: 4, state: store.Done,
		},
		{
			name: "rolled back more often than the budget", why: "deadlocks are not the message's fault", shape: deadLetters, faults: many, handler: write,
			want: []string{"ack 1", "ack 2"}, kept: []string{"a", "b"}, handled: len(many) + 2, state: store.Done,
		},
		{
			name: "deadlocks more often than the budget", why: "nor are those that a statement meets", shape: deadLetters, handler: then(20, storefault.ErrDeadlock),
			want: []string{"ack 1", "ack 2"}, kept: []string{"a", "b"}, handled: 22, state: store.Done,
		},
		{
			name: "deadlocks without end", why: "what meets one each time is no contention", shape: deadLetters, handler: then(1000, storefault.ErrDeadlock),
			want: []string{"term 1", "term 2"}, handled: 2 * 4 * consumers.DefaultBudget, letters: 2, state: store.Dead,
		},
		{
			name: "refused at commit", why: "a deferred constraint fails like any handler", shape: deadLetters, opts: []consumers.Option{consumers.Budget(2)},
			faults: []storefault.TxFault{storefault.Breaks, storefault.Breaks}, handler: write,
			want: []string{"ack 2", "term 1"}, kept: []string{"b"}, handled: 3, letters: 1, state: store.Dead,
		},
		{
			name: "answers lost", why: "what is not known is asked for before anything is acked, or run again",
			faults: []storefault.TxFault{storefault.Silent, storefault.SilentlyLost}, handler: write,
			want: []string{"ack 1", "ack 2"}, kept: []string{"a", "b"}, handled: 3, state: store.Done,
		},
		{
			name: "permanent", why: "a dead letter has no effect", shape: deadLetters, handler: then(1, idem.Permanent(errBoom)),
			want: []string{"ack 2", "term 1"}, kept: []string{"b"}, handled: 2, letters: 1, state: store.Dead,
		},
		{
			name: "at most once", why: "spent before, so a rollback is not tried again", shape: deadLetters, opts: []consumers.Option{consumers.AtMostOnce()},
			faults: []storefault.TxFault{storefault.RollsBack}, handler: write,
			want: []string{"ack 2", "term 1"}, kept: []string{"b"}, handled: 2, letters: 1, state: store.Dead,
		},
		{
			name: "where order does not matter", why: "the broker delivers again what was rolled back", shape: consumers.Broker{Redelivers: true},
			faults: []storefault.TxFault{storefault.RollsBack}, handler: write,
			want: []string{"ack 1", "ack 2", "redeliver 1"}, kept: []string{"b", "a"}, handled: 3, state: store.Done,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, d := newDatabaseRig(t, tc.shape)
				d.Next(tc.faults...)
				r.b.publish("a", "b")
				stop := r.start(tc.handler, tc.opts...)
				time.Sleep(time.Hour)
				r.mustStop(stop)
				got := r.b.settlements()
				slices.Sort(got)
				if !slices.Equal(got, tc.want) {
					t.Errorf("%s: settlements %q, want %q", tc.why, got, tc.want)
				}
				if kept := d.Kept(); !slices.Equal(kept, tc.kept) {
					t.Errorf("%s: effects %q, want %q", tc.why, kept, tc.kept)
				}
				if n := len(r.seen()); n != tc.handled {
					t.Errorf("%s: handled %d times, want %d", tc.why, n, tc.handled)
				}
				if n := len(r.b.posted()); n != tc.letters {
					t.Errorf("%s: %d letters, want %d", tc.why, n, tc.letters)
				}
				if rec, err := r.guard.Inspect(t.Context(), "a"); err != nil || rec.State != tc.state {
					t.Errorf("%s: record %+v, %v, want %v", tc.why, rec, err, tc.state)
				}
			})
		})
	}
}

// In shadow mode duplicates are handled without a claim, in transactions that are
// committed all the same.
func TestTransactionsInShadow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, d := newDatabaseRig(t, consumers.Broker{})
		d.Next(storefault.Commits, storefault.RollsBack)
		r.b.publish("a", "a")
		stop := r.start(write, consumers.Shadow())
		time.Sleep(time.Minute)
		r.mustStop(stop)
		r.wantSettled("ack 1", "ack 2")
		if kept := d.Kept(); !slices.Equal(kept, []string{"a", "a"}) {
			t.Errorf("effects %q", kept)
		}
	})
}

// A handler that commits the completion itself has handled its message, whatever it
// returns then.
func TestCommitInTheHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, d := newDatabaseRig(t, consumers.Broker{})
		r.b.publish("a", "b", "a")
		stop := r.start(func(ctx context.Context, m *delivery) error {
			c, _ := idem.FromContext(ctx)
			return errors.Join(d.CommitWith(ctx, c.Token(), c), errBoom)
		})
		time.Sleep(time.Minute)
		r.mustStop(stop)
		r.wantSettled("ack 1", "ack 2", "ack 3")
		r.wantHandled("a", "b")
		if n := r.count(idem.EventLateError); n != 2 {
			t.Errorf("%d events of a late error, want 2", n)
		}
		if kept := d.Kept(); !slices.Equal(kept, []string{"a", "b"}) {
			t.Errorf("effects %q", kept)
		}
	})
}

// A handler that returns before its CommitWith has failed, and stops no consumer: what comes of
// that is waited for, before the message is acked or handled again.
func TestCommitOutlivesItsHandler(t *testing.T) {
	for name, tc := range map[string]struct {
		commit  func(apply func() error) error
		returns error
		handled []string
	}{
		"committed, error":     {func(apply func() error) error { return apply() }, errBoom, []string{"a", "b"}},
		"committed, nil":       {func(apply func() error) error { return apply() }, nil, []string{"a", "b"}},
		"not committed, error": {func(func() error) error { return errBoom }, errBoom, []string{"a", "a", "b"}},
		"not committed, nil":   {func(func() error) error { return errBoom }, nil, []string{"a", "a", "b"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, _ := newDatabaseRig(t, consumers.Broker{})
				r.b.publish("a", "b")
				first := true
				stop := r.start(func(ctx context.Context, _ *delivery) error {
					if !first {
						return nil
					}
					first = false
					c, _ := idem.FromContext(ctx)
					go func() {
						_ = c.CommitWith(ctx, func(ctx context.Context, s store.Store, b *store.Batch) error {
							time.Sleep(lease / 3)
							return tc.commit(func() error { return s.Apply(ctx, b) })
						})
					}()
					synctest.Wait()
					return tc.returns
				})
				time.Sleep(time.Minute)
				r.mustStop(stop)
				r.wantSettled("ack 1", "ack 2")
				r.wantHandled(tc.handled...)
			})
		})
	}
}

// While it is not known whether a transaction was committed, its message is not acked,
// and at the end of a drain it is left to the broker.
func TestUnknownOutcomeAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, d := newDatabaseRig(t, consumers.Broker{})
		d.Next(storefault.Silent)
		r.b.publish("a")
		stop := r.start(func(ctx context.Context, m *delivery) error {
			committed := false // after that nobody answers
			d.On(func(b *store.Batch) storefault.Fault {
				if committed {
					return storefault.Away
				}
				committed = b.Ops[0].Kind == store.Commit
				return storefault.None
			})
			return write(ctx, m)
		}, consumers.DrainTimeout(time.Minute))
		time.Sleep(time.Hour)
		if n := d.Asked(); n < 100 {
			t.Errorf("asked %d times in an hour", n)
		}
		if got := r.b.settlements(); len(got) != 0 {
			t.Errorf("settled %q while the outcome was not known", got)
		}
		r.mustStop(stop)
		r.wantSettled("redeliver 1")
	})
}

// An outage of the database is not the messages' fault, under FailOpen as under a claim:
// none is dead-lettered for it.
func TestOutageOfTheDatabase(t *testing.T) {
	for _, opts := range [][]consumers.Option{nil, {consumers.FailOpen(time.Second)}} {
		synctest.Test(t, func(t *testing.T) {
			r, d := newDatabaseRig(t, deadLetters)
			d.Unreachable(2 * consumers.DefaultBudget)
			r.b.publish("a")
			if opts != nil {
				d.Set(storefault.Away)
			}
			stop := r.start(write, opts...)
			time.Sleep(time.Hour)
			d.Set(storefault.None)
			r.mustStop(stop)
			r.wantSettled("ack 1")
			if n := len(r.b.posted()); n != 0 {
				t.Errorf("%d letters", n)
			}
		})
	}
}

// What a handler without a claim has committed itself is done as well, whatever it returns
// then: it is neither repeated nor dead-lettered.
func TestCommitInTheHandlerWithoutAClaim(t *testing.T) {
	for _, tc := range []struct {
		name string
		opt  consumers.Option
		with func(*rig, *storefault.Database)
	}{
		{"FailOpen", consumers.FailOpen(time.Second), func(_ *rig, d *storefault.Database) { d.Set(storefault.Away) }},
		{"Shadow", consumers.Shadow(), func(r *rig, _ *storefault.Database) {
			if _, err := r.newGuard().Begin(r.t.Context(), "a"); err != nil {
				r.t.Fatal(err)
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, failure := range []error{errBoom, idem.Permanent(errBoom)} {
				synctest.Test(t, func(t *testing.T) {
					r, d := newDatabaseRig(t, deadLetters)
					tc.with(r, d)
					r.b.publish("a")
					stop := r.start(func(ctx context.Context, _ *delivery) error {
						c, _ := idem.FromContext(ctx)
						return errors.Join(d.CommitWith(ctx, c.Token(), c), failure)
					}, tc.opt)
					time.Sleep(time.Minute)
					r.mustStop(stop)
					r.wantSettled("ack 1")
					if kept := d.Kept(); !slices.Equal(kept, []string{"a"}) {
						t.Errorf("effects %q", kept)
					}
					if n := r.count(idem.EventLateError); n != 1 {
						t.Errorf("%d events of a late error, want 1", n)
					}
				})
			}
		})
	}
}
