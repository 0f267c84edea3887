package idem_test

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/memstore"
	"github.com/idemq/idemq/internal/storefault"
)

const txLease = 3 * time.Second

func newDatabase() (*idem.Guard, *storefault.Database) {
	d := storefault.NewDatabase(memstore.New())
	return idem.New(idem.WithStore(d), idem.WithLease(txLease)).Group("g"), d
}

// wants fails unless exactly these effects were kept and the token's record is in the
// state, with so much of the budget spent.
func wants(t *testing.T, g *idem.Guard, d *storefault.Database, state store.State, spent int, kept ...string) {
	t.Helper()
	if got := d.Kept(); !slices.Equal(got, kept) {
		t.Errorf("effects %q, want %q", got, kept)
	}
	r, err := g.Inspect(t.Context(), "a")
	if err != nil || r.State != state || r.Spent != spent {
		t.Errorf("the record is %v with %d spent (%v), want %v with %d", r.State, r.Spent, err, state, spent)
	}
}

func TestDoInTransaction(t *testing.T) {
	write := func(ctx context.Context) error { return storefault.Write(ctx, "e") }
	for _, tc := range []struct {
		name   string
		why    string
		faults []storefault.TxFault
		fn     func(context.Context) error
		want   error // nil: Do returns none
		kept   []string
		state  store.State
		spent  int
		asked  int
	}{
		{
			name: "commits", why: "effect and completion commit together",
			fn: write, kept: []string{"e"}, state: store.Done,
		},
		{
			name: "Rollback on its own claim", why: "only an error undoes what a handler wrote",
			fn: func(ctx context.Context) error {
				err := write(ctx)
				c, _ := idem.FromContext(ctx)
				c.Rollback()
				return err
			},
			kept: []string{"e"}, state: store.Done,
		},
		{
			name: "not used", why: "a handler that opens no transaction is recorded as ever",
			fn: func(context.Context) error { return nil }, state: store.Done,
		},
		{
			name: "error", why: "a failed handler's effect is rolled back, and spends budget",
			fn:   func(ctx context.Context) error { return errors.Join(write(ctx), errBoom) },
			want: errBoom, state: store.Released, spent: 1,
		},
		{
			name: "rolled back at commit", why: "a serialization failure is nobody's fault: no budget, no completion",
			faults: []storefault.TxFault{storefault.RollsBack}, fn: write, want: idem.ErrRolledBack, state: store.Released,
		},
		{
			name: "rolled back before", why: "a deadlock that the handler returns is the same",
			fn:   func(ctx context.Context) error { return errors.Join(write(ctx), storefault.ErrDeadlock) },
			want: idem.ErrRolledBack, state: store.Released,
		},
		{
			name: "refused", why: "a deferred constraint is the handler's own error, and spends budget",
			faults: []storefault.TxFault{storefault.Breaks}, fn: write, want: storefault.ErrBroken, state: store.Released, spent: 1,
		},
		{
			name: "answer lost, committed", why: "an outcome that is not known is asked for, never guessed",
			faults: []storefault.TxFault{storefault.Silent}, fn: write, kept: []string{"e"}, state: store.Done, asked: 1,
		},
		{
			name: "answer lost, rolled back", why: "a plain Commit now would record an effect that did not happen",
			faults: []storefault.TxFault{storefault.SilentlyLost}, fn: write, want: idem.ErrRolledBack, state: store.Released, asked: 1,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, d := newDatabase()
				d.Next(tc.faults...)
				err := g.Do(t.Context(), "a", tc.fn)
				if tc.want == nil && err != nil || !errors.Is(err, tc.want) {
					t.Errorf("%s: %v, want %v", tc.why, err, tc.want)
				}
				wants(t, g, d, tc.state, tc.spent, tc.kept...)
				if d.Asked() != tc.asked {
					t.Errorf("%s: asked %d times, want %d", tc.why, d.Asked(), tc.asked)
				}
			})
		})
	}
}

// A handler whose lease was lost, and taken, has its effect rolled back.
func TestTransactionOfALostClaim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, d := newDatabase()
		other := idem.New(idem.WithStore(d), idem.WithLease(txLease)).Group("g")
		err := g.Do(t.Context(), "a", func(ctx context.Context) error {
			if err := storefault.Write(ctx, "first"); err != nil {
				return err
			}
			d.On(func(b *store.Batch) storefault.Fault { // no renewal gets through
				if b.Ops[0].Kind == store.Renew {
					return storefault.Away
				}
				return storefault.None
			})
			time.Sleep(2 * txLease)
			if !errors.Is(context.Cause(ctx), idem.ErrLeaseLost) {
				t.Errorf("the handler's context ended by %v", context.Cause(ctx))
			}
			if err := other.Do(ctx, "a", func(ctx context.Context) error { return nil }); err == nil {
				t.Error("under an ended context")
			}
			return other.Do(context.WithoutCancel(ctx), "a", func(ctx context.Context) error { return storefault.Write(ctx, "second") })
		})
		if !errors.Is(err, idem.ErrLeaseLost) && !errors.Is(err, idem.ErrRolledBack) {
			t.Errorf("Do: %v", err)
		}
		wants(t, g, d, store.Done, 0, "second")
	})
}

// Where the transaction is the lease, a handler that takes longer keeps its claim.
func TestTransactionThatHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, d := newDatabase()
		d.Holds = true
		err := g.Do(t.Context(), "a", func(ctx context.Context) error {
			if err := storefault.Write(ctx, "e"); err != nil {
				return err
			}
			d.On(func(b *store.Batch) storefault.Fault {
				if b.Ops[0].Kind == store.Renew {
					t.Error("a claim that the transaction holds is renewed")
				}
				return storefault.None
			})
			time.Sleep(3 * txLease)
			return context.Cause(ctx)
		})
		if err != nil {
			t.Errorf("Do: %v", err)
		}
		wants(t, g, d, store.Done, 0, "e")
	})
}

// What is written in a transaction that keeps everybody out is undone before its claim
// is ended otherwise.
func TestTransactionIsOverFirst(t *testing.T) {
	for name, fn := range map[string]func(context.Context) error{
		"error":      func(context.Context) error { return errBoom },
		"goexit":     func(context.Context) error { runtime.Goexit(); return nil },
		"panic":      func(context.Context) error { panic("boom") },
		"deadlock":   func(context.Context) error { return storefault.ErrDeadlock },
		"retryafter": func(context.Context) error { return idem.RetryAfter(errBoom, time.Second) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, d := newDatabase()
				d.Holds = true
				var wg sync.WaitGroup
				wg.Go(func() {
					defer func() { _ = recover() }()
					_ = g.Do(t.Context(), "a", func(ctx context.Context) error {
						return errors.Join(storefault.Write(ctx, "e"), fn(ctx))
					})
				})
				wg.Wait()
				if r, err := g.Inspect(t.Context(), "a"); err != nil || r.State != store.Released {
					t.Errorf("the record is %v (%v), want released", r.State, err)
				}
				if len(d.Kept()) != 0 {
					t.Errorf("kept %q", d.Kept())
				}
			})
		})
	}
}

// A claim of Begin commits by the transaction of its context, and after a rollback
// cannot be committed without its effect.
func TestManualTransaction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, d := newDatabase()
		d.Holds = true
		d.Next(storefault.RollsBack)
		c, err := g.Begin(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		if err := storefault.Write(c.Context(), "e"); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := c.Commit(t.Context()); !errors.Is(err, idem.ErrRolledBack) {
				t.Errorf("Commit: %v", err)
			}
		}
		wants(t, g, d, store.Running, 0)
		if err := c.GiveBack(t.Context()); err != nil {
			t.Errorf("GiveBack: %v", err)
		}
		c, err = g.Begin(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		if err := storefault.Write(c.Context(), "failed"); err != nil {
			t.Fatal(err)
		}
		c, err = c.Retry(t.Context(), true, idem.Request{})
		if err != nil || d.Open() > 0 {
			t.Fatalf("%v, %d transactions open", err, d.Open())
		}
		if err := errors.Join(storefault.Write(c.Context(), "e"), c.Commit(t.Context())); err != nil {
			t.Error(err)
		}
		wants(t, g, d, store.Done, 0, "e")
		if err := storefault.Write(c.Context(), "late"); err == nil {
			t.Error("a transaction was written to after its end")
		}
	})
}

// CommitWith commits in a transaction of the user's, in a handler too: what the handler
// returns then changes nothing.
func TestCommitWith(t *testing.T) {
	for _, tc := range []struct {
		name   string
		fault  storefault.TxFault
		result error
		want   error
		state  store.State
		kept   []string
	}{
		{name: "nil", state: store.Done, kept: []string{"e"}},
		{name: "late error", result: errBoom, want: errBoom, state: store.Done, kept: []string{"e"}},
		{name: "answer lost", fault: storefault.Silent, state: store.Done, kept: []string{"e"}},
		{name: "rolled back", fault: storefault.RollsBack, want: idem.ErrRolledBack, state: store.Released},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, d := newDatabase()
				d.Next(tc.fault)
				err := g.Do(t.Context(), "a", func(ctx context.Context) error {
					c, _ := idem.FromContext(ctx)
					if err := d.CommitWith(ctx, "e", c); err != nil {
						return err
					}
					if ctx.Err() != nil {
						t.Error("the handler's context ended with its commit")
					}
					time.Sleep(2 * txLease)
					if err := d.CommitWith(ctx, "again", c); err == nil {
						t.Error("committed twice")
					}
					return tc.result
				})
				if tc.want == nil && err != nil || !errors.Is(err, tc.want) {
					t.Errorf("Do: %v, want %v", err, tc.want)
				}
				wants(t, g, d, tc.state, 0, tc.kept...)
			})
		})
	}
}

// A handler that lost its claim and commits by itself is refused, and its token stays
// its own until it returns.
func TestCommitWithALostClaim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, d := newDatabase()
		other := idem.New(idem.WithStore(d), idem.WithLease(txLease)).Group("g")
		err := g.Do(t.Context(), "a", func(ctx context.Context) error {
			d.Set(storefault.Away)
			time.Sleep(2 * txLease)
			d.Set(storefault.None)
			ctx = context.WithoutCancel(ctx)
			if err := other.Do(ctx, "a", func(ctx context.Context) error { return storefault.Write(ctx, "second") }); err != nil {
				t.Error(err)
			}
			c, _ := idem.FromContext(ctx)
			err := d.CommitWith(ctx, "first", c)
			if _, err := g.Begin(ctx, "a"); !errors.Is(err, idem.ErrInProgress) {
				t.Errorf("Begin while the handler runs: %v", err)
			}
			return err
		})
		if !errors.Is(err, idem.ErrLeaseLost) {
			t.Errorf("Do: %v", err)
		}
		wants(t, g, d, store.Done, 0, "second")
	})
}

// After CommitWith the store's own transaction is not opened any more: what a handler
// wrote there would be rolled back while its message is done.
func TestNoTransactionAfterCommitWith(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, d := newDatabase()
		err := g.Do(t.Context(), "a", func(ctx context.Context) error {
			c, _ := idem.FromContext(ctx)
			if err := d.CommitWith(ctx, "e", c); err != nil {
				return err
			}
			if err := storefault.Write(ctx, "two"); err == nil {
				t.Error("a transaction was opened whose effect nobody commits")
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		wants(t, g, d, store.Done, 0, "e")
	})
}

// A handler that passes over the error of its CommitWith has not handled its message:
// the completion alone is not recorded.
func TestCommitAfterFailedCommitWith(t *testing.T) {
	for fault, want := range map[storefault.TxFault]struct {
		err   error
		state store.State
		kept  []string
	}{
		storefault.RollsBack:    {idem.ErrRolledBack, store.Released, nil},
		storefault.SilentlyLost: {idem.ErrRolledBack, store.Released, nil},
		storefault.Silent:       {nil, store.Done, []string{"e"}},
	} {
		synctest.Test(t, func(t *testing.T) {
			g, d := newDatabase()
			d.Next(fault)
			err := g.Do(t.Context(), "a", func(ctx context.Context) error {
				c, _ := idem.FromContext(ctx)
				_ = d.CommitWith(ctx, "e", c)
				c.Rollback() // a handler's own claim: nothing
				return nil
			})
			if want.err == nil && err != nil || !errors.Is(err, want.err) {
				t.Errorf("fault %v: Do: %v, want %v", fault, err, want.err)
			}
			wants(t, g, d, want.state, 0, want.kept...)
		})
	}
}

// The transaction of a handler is not that of a handler inside it whose records are kept
// elsewhere: the two would not commit together.
func TestTransactionOfAnotherGuard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _ := newDatabase()
		elsewhere := idem.New(idem.WithStore(memstore.New())).Group("g")
		err := g.Do(t.Context(), "a", func(ctx context.Context) error {
			return elsewhere.Do(ctx, "b", func(ctx context.Context) error {
				if err := storefault.Write(ctx, "inner"); err == nil {
					t.Error("the outer handler's transaction was found")
				}
				return nil
			})
		})
		if err != nil {
			t.Error(err)
		}
	})
}

// An outage of somebody else's store, which a handler returns, is no rollback of this
// claim's transaction.
func TestForeignOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, d := newDatabase()
		err := g.Do(t.Context(), "a", func(context.Context) error { return store.ErrUnavailable })
		if errors.Is(err, idem.ErrRolledBack) {
			t.Errorf("Do: %v", err)
		}
		wants(t, g, d, store.Released, 1)
	})
}

// What the store says of a loss at a commit is told as at any other time.
func TestNoticeAtCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		told := 0
		d := storefault.NewDatabase(memstore.New())
		g := idem.New(idem.WithStore(d), idem.WithHaltOnDataLoss(), idem.WithObserver(idem.ObserverFunc(func(e idem.Event) {
			if e.Kind == idem.EventStoreNotice {
				told++
			}
		}))).Group("g")
		err := g.Do(t.Context(), "a", func(ctx context.Context) error {
			c, _ := idem.FromContext(ctx)
			asked := false
			return c.CommitWith(ctx, func(ctx context.Context, s store.Store, b *store.Batch) error {
				err := s.Apply(ctx, b)
				b.Notice = "The tables were made anew."
				if !asked { // what came with an error says nothing
					asked, err = true, store.ErrUnavailable
				}
				return err
			})
		})
		if err != nil || told != 1 {
			t.Errorf("%v, told %d times", err, told)
		}
		if _, err := g.Begin(t.Context(), "b"); !errors.Is(err, idem.ErrDataLoss) {
			t.Errorf("Begin after the loss: %v", err)
		}
	})
}

// A panic in CommitWith leaves the claim to whoever recovers: Do gives it back, and the token
// can be claimed again.
func TestCommitWithPanics(t *testing.T) {
	g := idem.New(idem.WithStore(memstore.New())).Group("g")
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic was swallowed")
			}
		}()
		_ = g.Do(t.Context(), "t", func(ctx context.Context) error {
			c, _ := idem.FromContext(ctx)
			return c.CommitWith(ctx, func(context.Context, store.Store, *store.Batch) error { panic("driver") })
		})
	}()
	c, err := g.Begin(t.Context(), "t")
	if err != nil {
		t.Fatal(err)
	}
	if c.Attempt() != 2 {
		t.Errorf("attempt %d", c.Attempt())
	}
	if err := c.Commit(t.Context()); err != nil {
		t.Error(err)
	}
}

// So does one that comes after the handler, when Do commits by the same function.
func TestCommitPanicsAfterTheHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _ := newDatabase()
		func() {
			defer func() {
				if recover() == nil {
					t.Error("the panic was swallowed")
				}
			}()
			_ = g.Do(t.Context(), "a", func(ctx context.Context) error {
				c, _ := idem.FromContext(ctx)
				returned := false
				_ = c.CommitWith(ctx, func(context.Context, store.Store, *store.Batch) error {
					if returned {
						panic("driver")
					}
					return errBoom
				})
				returned = true
				return nil
			})
		}()
		c, err := g.Begin(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		c.Abandon()
	})
}

// A handler that returns while its CommitWith is still under way leaves no claim behind: what
// comes of that decides, or the lease does.
func TestCommitWithOutlivesItsHandler(t *testing.T) {
	do := func(returns error) func(context.Context, *idem.Guard, func(context.Context)) error {
		return func(ctx context.Context, g *idem.Guard, handle func(context.Context)) error {
			return g.Do(ctx, "a", func(ctx context.Context) error { handle(ctx); return returns })
		}
	}
	retry := func(ctx context.Context, g *idem.Guard, handle func(context.Context)) error {
		c := g.BeginAll(ctx, []idem.Request{{Token: "a", Patient: true}})[0].Claim
		run, err := c.Start(ctx)
		if err != nil {
			return err
		}
		handle(run)
		_, err = c.Retry(ctx, true, idem.Request{Patient: true})
		return err
	}
	for ending, handled := range map[string]func(context.Context, *idem.Guard, func(context.Context)) error{
		"nil": do(nil), "error": do(errBoom), "retry": retry,
	} {
		for commits, outcome := range map[string]func(apply func() error) error{
			"committed":     func(apply func() error) error { return apply() },
			"not committed": func(func() error) error { return errBoom },
			"not known":     func(func() error) error { return store.ErrUnavailable },
			"panics":        func(func() error) error { panic("driver") },
		} {
			t.Run(ending+", "+commits, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					g, _ := newDatabase()
					returned := make(chan struct{})
					err := handled(t.Context(), g, func(ctx context.Context) {
						c, _ := idem.FromContext(ctx)
						go func() {
							defer func() { _ = recover() }()
							_ = c.CommitWith(ctx, func(ctx context.Context, s store.Store, b *store.Batch) error {
								<-returned
								return outcome(func() error { return s.Apply(ctx, b) })
							})
						}()
						synctest.Wait()
					})
					if err == nil || ending == "retry" && !errors.Is(err, idem.ErrInProgress) {
						t.Errorf("while it is not known whether it commits: %v", err)
					}
					if ending == "nil" && (!errors.Is(err, idem.ErrClaimEnded) || !strings.Contains(err.Error(), "not known")) {
						t.Errorf("Do: %v, want an error that says that the outcome is not known", err)
					}
					if _, err := g.Begin(t.Context(), "a"); !errors.Is(err, idem.ErrInProgress) {
						t.Errorf("Begin while it commits: %v", err)
					}
					close(returned)
					time.Sleep(2 * txLease)
					c, err := g.Begin(t.Context(), "a")
					switch done := errors.Is(err, idem.ErrDuplicate); {
					case done != (commits == "committed"), !done && err != nil:
						t.Errorf("Begin a lease later: %v", err)
					case !done:
						c.Abandon()
					}
				})
			})
		}
	}
}

// slowRenewals is a store that answers the first renewal when it may, and says that it is
// lost, as one does that comes while the claim is being committed.
type slowRenewals struct {
	store.Store
	may   chan struct{}
	first sync.Once
}

func (s *slowRenewals) Apply(ctx context.Context, b *store.Batch) error {
	err := s.Store.Apply(ctx, b)
	if b.Ops[0].Kind == store.Renew {
		s.first.Do(func() {
			<-s.may
			b.Replies[0] = store.Reply{Status: store.Lost}
		})
	}
	return err
}

// What a renewal is answered that was sent before a COMMIT failed says nothing: the claim is
// held, and renewed again.
func TestRenewalDuringFailedCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slowRenewals{Store: memstore.New(), may: make(chan struct{})}
		g := idem.New(idem.WithStore(s), idem.WithLease(txLease)).Group("g")
		c := begin(t, g, "a")
		err := c.CommitWith(t.Context(), func(context.Context, store.Store, *store.Batch) error {
			time.Sleep(txLease / 5) // a renewal is due
			return errBoom
		})
		if !errors.Is(err, errBoom) {
			t.Errorf("CommitWith: %v", err)
		}
		close(s.may)
		time.Sleep(2 * txLease)
		if cause := context.Cause(c.Context()); cause != nil {
			t.Errorf("the claim's context: %v", cause)
		}
		if r, err := g.Inspect(t.Context(), "a"); err != nil || r.State != store.Running {
			t.Errorf("the record is %v, %v", r.State, err)
		}
		if err := c.GiveBack(t.Context()); err != nil {
			t.Errorf("GiveBack: %v", err)
		}
	})
}
