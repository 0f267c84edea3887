package inbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/idemq/idemq/idem/store"
)

// contextKey is under which a package's transaction stands in a handler's context.
type contextKey string

// Handler is the transaction of one run of a handler.
type Handler struct {
	s      *Store
	parent context.Context //nolint:containedctx // Enlist's: the transaction ends with it
	lease  time.Duration
	op     store.Op // the Commit; none: Kind zero
	prefix string
	hold   func()

	mu      sync.Mutex
	tx      Tx
	err     error // why there is no transaction any more, or never was
	used    bool
	unknown bool // COMMIT was sent, and not answered
}

var _ store.Tx = (*Handler)(nil)

// Enlist implements store.Transactor.
func (s *Store) Enlist(ctx context.Context, terms *store.Batch, hold func()) (context.Context, store.Tx) {
	h := &Handler{s: s, lease: terms.Lease, prefix: terms.Prefix, hold: hold}
	if len(terms.Ops) > 0 {
		h.op = terms.Ops[0]
	}
	h.parent = ctx
	return context.WithValue(ctx, contextKey(s.config.Package), h), h
}

// FromContext is the transaction of the handler that runs in ctx, opened at the first call.
func FromContext(ctx context.Context, pkg string) (Tx, error) {
	h, ok := ctx.Value(contextKey(pkg)).(*Handler)
	if !ok {
		return nil, fmt.Errorf("%s: there is no transaction in this context: Tx is for handlers, with the context that they are given, "+
			"of a guard whose store is a %s.Store", pkg, pkg)
	}
	return h.open(ctx)
}

// Adopt is a transaction that the user opened and that ends the claim of op.
func (s *Store) Adopt(tx Tx) *Handler {
	return &Handler{s: s, parent: context.Background(), tx: tx, used: true}
}

func (h *Handler) open(ctx context.Context) (Tx, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.tx != nil || h.err != nil {
		return h.tx, h.err
	}
	if err := h.s.prepare(ctx); err != nil {
		return nil, err
	}
	var tx Tx
	err := h.s.persist(ctx, func() (err error) {
		tx, err = h.begin(ctx)
		return h.s.mark(err)
	})
	if err != nil {
		return nil, h.s.failure("opening the handler's transaction", err)
	}
	h.tx, h.used = tx, true
	if h.s.config.Dialect == SQLite && h.hold != nil {
		h.hold()
	}
	return tx, nil
}

// begin opens the transaction. In SQLite it takes the write lock at once, on the condition
// that the claim is still held: nobody can take it then while the transaction is open.
func (h *Handler) begin(ctx context.Context) (Tx, error) {
	if h.s.config.Dialect != SQLite {
		return h.s.db.Open(h.parent)
	}
	statement, v := "hold_all", values(nil)
	if h.op.Kind != 0 {
		gid, err := h.s.gid(ctx, ofGroup, h.prefix, h.op.Group, true)
		if err != nil {
			return nil, err
		}
		statement, v = "hold", values{"gid": gid, "token": []byte(h.op.Token), "claim": h.op.Claim}
	}
	tx, err := h.s.db.Open(h.parent)
	if err != nil {
		return nil, err
	}
	n, err := h.s.exec(ctx, tx, statement, v)
	if err == nil && n == 0 {
		err = fmt.Errorf("the claim of token %q is not held any more: somebody took over", h.op.Token)
	}
	if err != nil {
		tx.Rollback()
		return nil, err
	}
	return tx, nil
}

// Used implements store.Tx.
func (h *Handler) Used() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.used
}

// errEnded is why a transaction is not used any more.
var errEnded = errors.New("the handler's transaction has ended")

// errNone is why there is nothing to commit.
var errNone = errors.New("the handler has opened none")

// Rollback implements store.Tx.
func (h *Handler) Rollback() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.rollback(errEnded)
}

// rollback is called with mu held. What is not known stays so.
func (h *Handler) rollback(why error) {
	if h.tx != nil {
		h.tx.Rollback()
		h.tx = nil
	}
	if h.err == nil {
		h.err = why
	}
}

// RolledBack implements store.Tx. An error of the network may be any other connection's:
// then the transaction's own is asked.
func (h *Handler) RolledBack(err error) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch h.s.kind(err) {
	case busy:
		return true
	case unreachable:
		if h.tx == nil {
			return false
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(h.parent), time.Second)
		defer cancel()
		_, err := h.tx.Exec(ctx, "SELECT 1")
		return err != nil && h.s.kind(err) == unreachable
	}
	return false
}

// Commit implements store.Tx.
func (h *Handler) Commit(ctx context.Context, b *store.Batch) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	b.Notice = ""
	b.Replies = append(b.Replies[:0], make([]store.Reply, len(b.Ops))...)
	switch {
	case h.unknown && len(b.Ops) > 0:
		return h.s.failure("asking whether the handler's transaction was committed", h.ask(ctx, b))
	case h.tx == nil:
		return h.s.rolledBack("committing the handler's transaction", cmp.Or(h.err, errNone))
	case len(b.Ops) == 0:
		return h.send(ctx)
	}
	reply, err := h.complete(ctx, b)
	if err != nil {
		err = h.before(err)
		h.rollback(errEnded)
		return err
	}
	if b.Replies[0] = reply; reply.Status != store.OK || h.tx == nil {
		h.rollback(errEnded)
		return nil
	}
	if err := h.send(ctx); err != nil {
		clear(b.Replies)
		return err
	}
	return nil
}

// rolledBack is the error that nothing was committed, for a reason that is not the
// message's.
func (s *Store) rolledBack(doing string, err error) error {
	return fmt.Errorf("%s: %s: %w: %w", s.config.Package, doing, store.ErrRolledBack, err)
}

// before is the error of a transaction to which COMMIT was not sent: nothing of it stays.
func (h *Handler) before(err error) error {
	const doing = "completing the claim in the handler's transaction"
	switch h.s.kind(err) {
	case busy, conflict, unreachable, full:
		return h.s.rolledBack(doing, err)
	}
	if passes(err) {
		return h.s.rolledBack(doing, err)
	}
	return h.s.failure(doing, err)
}

// send sends COMMIT.
func (h *Handler) send(ctx context.Context) error {
	const doing = "committing the handler's transaction"
	tx := h.tx
	h.tx, h.err = nil, errEnded
	err := tx.Commit(ctx)
	tx.Rollback() // gives the connection back, whatever state it is in
	if err == nil {
		return nil
	}
	switch k := h.s.kind(err); {
	case k == violation || k == conflict:
		return fmt.Errorf("%s: %s: nothing was committed: a constraint that is checked at the end: %w", h.s.config.Package, doing, err)
	case k == failed:
		return h.s.failure(doing, err)
	case k == busy && h.s.config.Dialect != SQLite, k == full && h.s.config.Dialect == Postgres:
		return h.s.rolledBack(doing, err)
	}
	h.unknown = true
	return fmt.Errorf("%s: %s: whether it was is not known yet: %w: %w", h.s.config.Package, doing, store.ErrUnavailable, err)
}

// ask looks, with the row locked, whether the transaction was committed. The row stays
// locked as long as a COMMIT is under way on the server, so the answer is certain.
func (h *Handler) ask(ctx context.Context, b *store.Batch) error {
	op := &b.Ops[0]
	return h.s.persist(ctx, func() error {
		return h.s.mark(h.s.within(ctx, func(tx Tx) error {
			r, err := h.s.one(ctx, tx, b)
			switch {
			case err != nil:
				return err
			case r.record.Claim == op.Claim && r.record.State == store.Done:
				b.Replies[0].Status = store.OK
			case r.record.Claim == op.Claim && r.record.State == store.Running:
				return h.s.rolledBack("committing the handler's transaction", errors.New("it was asked for, and is not there"))
			default:
				b.Replies[0].Status = store.Lost
			}
			return nil
		}))
	})
}

// one locks and reads the record of a batch's only operation.
func (s *Store) one(ctx context.Context, tx Tx, b *store.Batch) (*row, error) {
	x := &execution{s: s, b: b, ops: b.Ops}
	n, err := x.need(ctx)
	if err != nil {
		return nil, err
	}
	if err := x.load(ctx, tx, n); err != nil {
		return nil, err
	}
	r := x.records[n.records[0]]
	if r == nil {
		r = &row{key: n.records[0]}
	}
	return r, r.err
}

// complete records the completion in the transaction. Where that ends without anything
// to commit, the reply is OK and the transaction is gone.
func (h *Handler) complete(ctx context.Context, b *store.Batch) (store.Reply, error) {
	op := &b.Ops[0]
	if err := h.s.prepare(ctx); err != nil {
		return store.Reply{}, err
	}
	if err := checkOp(op); err != nil {
		return store.Reply{}, err
	}
	gid, err := h.s.gid(ctx, ofGroup, b.Prefix, op.Group, true)
	if err != nil {
		return store.Reply{}, err
	}
	k := key{gid, op.Token}
	n, err := h.s.exec(ctx, h.tx, "finish", values{
		"gid": gid, "token": []byte(op.Token), "claim": op.Claim, "attempt": small(op.Attempt), "result": blob(op.Result),
		"retention": max(0, min(b.Retention.Microseconds(), 1<<52)), "slack": slack(b.Lease), "idle": h.s.idle(b.Lease), "now": now(),
	})
	if err != nil {
		return store.Reply{}, err
	}
	if n == 1 {
		h.s.mu.Lock()
		defer h.s.mu.Unlock()
		if h.s.renewed[k] == op.Claim {
			h.s.forgetLease(k, op.Claim)
		}
		return store.Reply{Status: store.OK}, nil
	}
	return h.slowly(ctx, b)
}

// slowly completes a claim that is not in progress any more, where the rules allow it.
func (h *Handler) slowly(ctx context.Context, b *store.Batch) (store.Reply, error) {
	var x *execution
	err := h.s.persist(ctx, func() error {
		x = &execution{s: h.s, b: b, ops: b.Ops, replies: make([]store.Reply, 1)}
		n, err := x.need(ctx)
		if err != nil {
			return err
		}
		if err := x.load(ctx, h.tx, n); err != nil {
			return err // only what is held passes: the transaction stands
		}
		x.execute(n)
		return nil
	})
	if err != nil {
		return store.Reply{}, err
	}
	reply := x.replies[0]
	if reply.Err != nil {
		return reply, reply.Err
	}
	for _, r := range x.records {
		if reply.Status == store.OK && !r.changed {
			h.rollback(errEnded) // done by this claim already: this effect is a second one
		}
	}
	if h.tx == nil {
		return reply, nil
	}
	return reply, x.write(ctx, h.tx)
}
