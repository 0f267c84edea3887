package storefault

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/idemq/idemq/idem/store"
)

// TxFault is what happens to a transaction at its commit.
type TxFault int

const (
	// Commits is no fault.
	Commits TxFault = iota
	// RollsBack has the database give it up, and take it later.
	RollsBack
	// Breaks has the database refuse it for good.
	Breaks
	// Silent commits, and the answer is lost.
	Silent
	// SilentlyLost rolls back, and the answer is lost.
	SilentlyLost
)

// ErrBroken is the answer to a transaction that Breaks.
var ErrBroken = errors.New("storefault: constraint violated")

// ErrNoTx is Write's error while the database is Unreachable.
var ErrNoTx = fmt.Errorf("storefault: opening the transaction: %w", store.ErrUnavailable)

// ErrDeadlock is an error of a statement that ends its transaction.
var ErrDeadlock = errors.New("storefault: deadlock")

// Database is a Store with transactions: what a handler writes through [Write] is kept
// when the transaction commits. It is safe for concurrent use.
type Database struct {
	*Store
	Holds bool // an open transaction is the lease, and keeps everybody else out

	mu     sync.Mutex
	noTx   int // so many transactions are not opened
	open   int // transactions that hold
	kept   []string
	faults []TxFault // of the next commits
	asked  int
}

var _ store.Transactor = (*Database)(nil)

// NewDatabase makes transactions over s.
func NewDatabase(s store.Store) *Database { return &Database{Store: New(s)} }

// Apply implements store.Store.
func (d *Database) Apply(ctx context.Context, b *store.Batch) error {
	if d.Open() > 0 {
		return fmt.Errorf("storefault: the database is locked: %w", store.ErrUnavailable)
	}
	return d.Store.Apply(ctx, b)
}

// Open returns how many transactions keep everybody else out.
func (d *Database) Open() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.open
}

// Unreachable has the next n transactions not open.
func (d *Database) Unreachable(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.noTx = n
}

// Next sets the faults of the next commits, one each.
func (d *Database) Next(faults ...TxFault) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.faults = append(d.faults, faults...)
}

// Kept returns what was committed.
func (d *Database) Kept() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.kept)
}

// Asked returns how often an outcome that was not known was asked for.
func (d *Database) Asked() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.asked
}

// tx is one transaction.
type tx struct {
	d    *Database
	hold func()

	mu      sync.Mutex
	ctx     context.Context
	used    bool
	over    bool
	unknown bool
	landed  bool // committed, and nobody was told
	written []string
}

// Enlist implements store.Transactor.
func (d *Database) Enlist(ctx context.Context, _ *store.Batch, hold func()) (context.Context, store.Tx) {
	t := &tx{d: d, hold: hold, ctx: ctx}
	return context.WithValue(ctx, store.TxKey{}, t), t
}

// Write writes in the handler's transaction.
func Write(ctx context.Context, text string) error {
	t, ok := ctx.Value(store.TxKey{}).(*tx)
	if !ok {
		return errors.New("storefault: no transaction here")
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		return errors.New("storefault: the transaction is over")
	}
	t.d.mu.Lock()
	t.d.noTx--
	refused := !t.used && t.d.noTx >= 0
	t.d.mu.Unlock()
	if refused {
		return ErrNoTx
	}
	if !t.used && t.d.Holds {
		t.d.mu.Lock()
		t.d.open++
		t.d.mu.Unlock()
		t.hold()
	}
	t.used = true
	t.written = append(t.written, text)
	return nil
}

func (t *tx) Used() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.used
}

func (t *tx) Rollback() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.end()
}

// end is called with mu held.
func (t *tx) end() {
	if t.used && !t.over && t.d.Holds {
		t.d.mu.Lock()
		t.d.open--
		t.d.mu.Unlock()
	}
	t.over = true
}

func (t *tx) RolledBack(err error) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return !t.over && errors.Is(err, ErrDeadlock) || errors.Is(err, ErrNoTx)
}

// Commit implements store.Tx.
func (t *tx) Commit(ctx context.Context, b *store.Batch) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.unknown:
		t.d.mu.Lock()
		t.d.asked++
		t.d.mu.Unlock()
		inspect := *b
		inspect.Ops = []store.Op{{Kind: store.Inspect, Group: b.Ops[0].Group, Token: b.Ops[0].Token}}
		if err := t.d.Apply(ctx, &inspect); err != nil {
			return err
		}
		if !t.landed {
			return fmt.Errorf("storefault: asked: %w", store.ErrRolledBack)
		}
		return t.d.Apply(ctx, b) // done under this claim id
	case t.over, t.ctx.Err() != nil:
		t.end()
		return fmt.Errorf("storefault: %w", store.ErrRolledBack)
	}
	t.end()
	fault := Commits
	t.d.mu.Lock()
	if len(t.d.faults) > 0 {
		fault, t.d.faults = t.d.faults[0], t.d.faults[1:]
	}
	t.d.mu.Unlock()
	switch fault {
	case RollsBack:
		return fmt.Errorf("storefault: %w", store.ErrRolledBack)
	case Breaks:
		return ErrBroken
	case SilentlyLost:
		t.unknown = true
		return fmt.Errorf("storefault: no answer: %w", store.ErrUnavailable)
	}
	if len(b.Ops) > 0 {
		if err := t.d.Apply(ctx, b); err != nil || b.Replies[0].Status != store.OK {
			t.unknown = err != nil
			return err
		}
	}
	t.d.mu.Lock()
	t.d.kept = append(t.d.kept, t.written...)
	t.d.mu.Unlock()
	if fault == Silent {
		t.unknown, t.landed = true, true
		return fmt.Errorf("storefault: no answer: %w", store.ErrUnavailable)
	}
	return nil
}

// CommitWith commits text and the claim's completion in a transaction that the caller
// opened, as a driver's CommitTx does.
func (d *Database) CommitWith(ctx context.Context, text string, claim interface {
	CommitWith(context.Context, func(context.Context, store.Store, *store.Batch) error) error
},
) error {
	t := &tx{d: d, hold: func() {}, ctx: ctx, used: true, written: []string{text}}
	return claim.CommitWith(ctx, func(ctx context.Context, _ store.Store, b *store.Batch) error { return t.Commit(ctx, b) })
}
