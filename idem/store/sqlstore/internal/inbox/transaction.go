package inbox

import (
	"cmp"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/idemq/idemq/idem/store"
)

// Handler is the transaction of one run of a handler.
type Handler struct {
	s      *Store
	parent context.Context //nolint:containedctx // Enlist's: the transaction ends with it
	lease  time.Duration
	op     store.Op // the Commit; none: Kind zero
	prefix string
	hold   func()

	adopted bool // the user opened the transaction

	mu          sync.Mutex
	tx          Tx
	err         error // why there is no transaction any more, or never was
	used        bool
	unknown     bool  // COMMIT was sent, and not answered
	claim       lease // that it completes
	rollbackErr error // of ROLLBACK
	final       error // of Commit, which failed before COMMIT: the answer from then on
}

var _ store.Tx = (*Handler)(nil)

// Enlist implements store.Transactor.
func (s *Store) Enlist(ctx context.Context, terms *store.Batch, hold func()) (context.Context, store.Tx) {
	h := &Handler{s: s, lease: terms.Lease, prefix: terms.Prefix, hold: hold}
	if len(terms.Ops) > 0 {
		h.op = terms.Ops[0]
	}
	h.parent = ctx
	return context.WithValue(ctx, store.TxKey{}, h), h
}

// FromContext is the transaction of the handler that runs in ctx, opened at the first call.
func FromContext(ctx context.Context, pkg string) (Tx, error) {
	h, ok := ctx.Value(store.TxKey{}).(*Handler)
	if !ok || h.s.config.Package != pkg {
		return nil, fmt.Errorf("%s: there is no transaction in this context: Tx is for handlers, with the context that they are given, "+
			"of a guard whose store is a %s.Store", pkg, pkg)
	}
	return h.open(ctx)
}

// Adopt is a transaction that the user opened, in a context, to end a claim with.
func (s *Store) Adopt(ctx context.Context, tx Tx) *Handler {
	return &Handler{s: s, parent: ctx, tx: tx, used: true, adopted: true}
}

// openError is an error of opening the transaction of one run of a handler.
type openError struct {
	error
	of *Handler
}

func (e openError) Unwrap() error { return e.error }

func (h *Handler) open(ctx context.Context) (Tx, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.tx != nil || h.err != nil {
		return h.tx, h.err
	}
	tx, err := h.tryOpen(ctx)
	if err != nil {
		return nil, openError{err, h}
	}
	h.tx, h.used = tx, true
	if h.s.config.Dialect == SQLite && h.hold != nil {
		h.hold()
	}
	return tx, nil
}

func (h *Handler) tryOpen(ctx context.Context) (Tx, error) {
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
	return tx, nil
}

// The savepoint is there until its transaction ends, whoever ends it.
const (
	setSavepoint     = "SAVEPOINT idemq_tx"
	releaseSavepoint = "RELEASE SAVEPOINT idemq_tx"
)

// begin opens the transaction, and sets the savepoint.
func (h *Handler) begin(ctx context.Context) (Tx, error) {
	tx, err := h.beginTx(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := tx.Exec(ctx, setSavepoint); err != nil {
		tx.Rollback()
		return nil, err
	}
	return tx, nil
}

// beginTx opens the transaction. In SQLite it takes the write lock at once, on the condition
// that the claim is still held: nobody can take it then while the transaction is open.
func (h *Handler) beginTx(ctx context.Context) (Tx, error) {
	if h.s.config.Dialect != SQLite {
		return h.s.db.Open(h.parent, ctx)
	}
	statement, v := "hold_all", values(nil)
	if h.op.Kind != 0 {
		gid, err := h.s.gid(ctx, ofGroup, h.prefix, h.op.Group, true)
		if err != nil {
			return nil, err
		}
		statement, v = "hold", values{"gid": gid, "token": []byte(h.op.Token), "claim": h.op.Claim}
	}
	tx, err := h.s.db.Open(h.parent, ctx)
	if err != nil {
		return nil, err
	}
	n, err := h.s.exec(ctx, tx, statement, v)
	if err == nil && n == 0 {
		err = h.s.rolledBack("opening the handler's transaction", fmt.Errorf("the claim of token %q is not held any more: somebody took over", h.op.Token))
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
		if tx, ok := h.tx.(interface{ Ended() error }); ok {
			h.rollbackErr = tx.Ended()
		}
		h.tx = nil
	}
	if h.err == nil {
		h.err = why
	}
}

// RolledBack implements store.Tx. An error of the network may be any other connection's:
// then the transaction's own is asked.
func (h *Handler) RolledBack(err error) bool {
	var opening openError
	if errors.As(err, &opening) && opening.of == h {
		return errors.Is(err, store.ErrUnavailable)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	switch h.s.kind(err) {
	case busy:
		return true
	case unreachable:
		switch {
		case h.parent.Err() != nil && h.used:
			return true
		case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
			return false // a time limit of the handler's own
		case h.tx == nil:
			return h.rollbackErr != nil && h.s.kind(h.rollbackErr) == unreachable
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
	case h.unknown:
		return h.find(ctx, b)
	case h.final != nil:
		return h.final
	case h.tx == nil:
		return h.s.rolledBack("committing the handler's transaction", cmp.Or(h.err, errNone))
	}
	reply := store.Reply{Status: store.OK}
	err := h.prepare(ctx)
	if err == nil && len(b.Ops) > 0 {
		reply, err = h.complete(ctx, b)
	}
	if err != nil {
		h.rollback(errEnded)
		if h.final = h.before(err); len(b.Ops) > 0 && h.s.isTooLarge(ctx, err, b.Ops) {
			h.final = h.s.tooLargeError(&b.Ops[0], err)
		}
		return h.final
	}
	if reply.Status != store.OK || h.tx == nil {
		b.Replies[0] = reply
		h.rollback(errEnded)
		return nil
	}
	if err := h.send(ctx); err != nil {
		return err
	}
	if len(b.Ops) > 0 {
		b.Replies[0] = reply
		h.s.claimOver(h.claim)
	}
	return nil
}

// find asks whether COMMIT was executed. Until that is certain it is not known.
func (h *Handler) find(ctx context.Context, b *store.Batch) error {
	const doing = "asking whether the handler's transaction was committed"
	if len(b.Ops) == 0 {
		return fmt.Errorf("%s: committing the handler's transaction: %w: COMMIT was not answered, and of a transaction without a claim nothing tells what became of it",
			h.s.config.Package, store.ErrUnavailable)
	}
	err := h.s.failure(doing, h.ask(ctx, b))
	switch {
	case err == nil:
		h.s.claimOver(h.claim)
	case errors.Is(err, store.ErrRolledBack):
		h.unknown = false
	case !errors.Is(err, store.ErrUnavailable):
		err = fmt.Errorf("%s: %s: %w: %w", h.s.config.Package, doing, store.ErrUnavailable, err)
	}
	return err
}

// errEndedBefore is what a transaction's savepoint says that is not there.
var errEndedBefore = errors.New("the transaction was ended before the handler returned: by COMMIT, ROLLBACK or BEGIN, " +
	"by DDL (which in MySQL commits what was written before it), or by the database, after an error that the handler passed over (a deadlock, say); " +
	"what the handler wrote may be there or not; see the package's documentation")

// prepare makes sure that the transaction is the one that was opened, and its database the
// store's: what is written outside of a transaction stays, whatever becomes of the claim.
func (h *Handler) prepare(ctx context.Context) error {
	if err := h.s.prepare(ctx); err != nil {
		return err
	}
	if h.adopted {
		if err := h.probe(ctx); err != nil {
			return err
		}
		return h.sameDatabase(ctx)
	}
	if tx, ok := h.tx.(interface{ Intact() error }); ok && tx.Intact() != nil {
		return tx.Intact()
	}
	_, err := h.tx.Exec(ctx, releaseSavepoint)
	if h.s.noSavepoint(err) {
		err = fmt.Errorf("%w: %w", errEndedBefore, err)
	}
	return err
}

// probe makes sure that there is a transaction. In SQLite a savepoint would begin one, in
// MySQL there is none where none is open.
func (h *Handler) probe(ctx context.Context) error {
	if h.s.config.Dialect == SQLite {
		_, err := h.tx.Exec(ctx, "BEGIN")
		switch {
		case err == nil:
			return errEndedBefore
		case strings.Contains(err.Error(), "within a transaction"):
			return nil
		}
		return err
	}
	for _, statement := range []string{setSavepoint, releaseSavepoint} {
		if _, err := h.tx.Exec(ctx, statement); err != nil {
			if h.s.noSavepoint(err) {
				err = fmt.Errorf("%w: %w", errEndedBefore, err)
			}
			return err
		}
	}
	return nil
}

// noSavepoint tells whether an error says that a savepoint, or the transaction that it
// would be in, is not there.
func (s *Store) noSavepoint(err error) bool {
	if err == nil {
		return false
	}
	c := codeOf(err)
	switch s.config.Dialect {
	case Postgres:
		return c.state == "3B001" || c.state == "25P01"
	case MySQL:
		return c.number == 1305
	}
	return strings.Contains(c.text, "no such savepoint")
}

// sameDatabase compares the epochs. Those of the store's tables may have changed since.
func (h *Handler) sameDatabase(ctx context.Context) error {
	var v int64
	var epoch string
	err := h.s.query(ctx, h.tx, "meta", nil, func(r Rows) error { return r.Scan(&v, &epoch) })
	if err != nil || h.s.knows(epoch) {
		return err
	}
	current, err := h.s.readMeta(ctx)
	if err != nil {
		return err
	}
	if current != epoch {
		return fmt.Errorf("the transaction is of another database than the store's: the epoch in its %smeta is another", h.s.config.Tables)
	}
	return nil
}

// rolledBack is the error that nothing was committed, for a reason that is not the
// message's.
func (s *Store) rolledBack(doing string, err error) error {
	return fmt.Errorf("%s: %s: %w: %w", s.config.Package, doing, store.ErrRolledBack, err)
}

// before is the error of a transaction to which COMMIT was not sent, and that has been
// rolled back: nothing of it stays, unless it was ended before.
func (h *Handler) before(err error) error {
	const doing = "completing the claim in the handler's transaction"
	k := h.s.kind(err)
	switch {
	case errors.Is(err, errEndedBefore):
		return h.s.failure(doing, err)
	case h.parent.Err() != nil && errors.Is(err, sql.ErrTxDone): // database/sql does not tell by whom
		return h.s.rolledBack(doing, fmt.Errorf("the handler's context has ended, and the transaction with it, "+
			"unless the handler had ended that itself: then what it wrote may be there: %w (%w)", context.Cause(h.parent), err))
	case h.parent.Err() != nil:
		return h.s.rolledBack(doing, fmt.Errorf("the handler's context has ended: %w (%w)", context.Cause(h.parent), err))
	case errors.Is(err, sql.ErrTxDone) && h.adopted:
		return fmt.Errorf("%s: %s: it was ended before CommitTx, by Commit or Rollback or at the end of the context that it was opened in; "+
			"what was written in it may be there or not: %w", h.s.config.Package, doing, err)
	case errors.Is(err, sql.ErrTxDone):
		return fmt.Errorf("%s: %s: the handler ended the transaction of %s.Tx itself, by Commit or Rollback (a deferred one, say): leave that to the library; "+
			"what the handler wrote may be there or not: %w", h.s.config.Package, doing, h.s.config.Package, err)
	case errors.Is(err, driver.ErrBadConn) && h.rollbackErr == nil, strings.Contains(err.Error(), "conn busy"):
		// pgx: the connection did not take a statement, and then, the rows closed, ROLLBACK.
		return fmt.Errorf("%s: %s: the connection is in use: did the handler leave a result open? Close its rows: %w", h.s.config.Package, doing, err)
	case errors.Is(err, driver.ErrBadConn) && h.s.config.Dialect == MySQL: // which drops a connection that is in use
		return h.s.rolledBack(doing, fmt.Errorf("%w (the connection broke, or was in use: did the handler leave a result open? Close its rows)", err))
	case k == busy, k == conflict, k == unreachable, k == full, passes(err):
		return h.s.rolledBack(doing, err)
	}
	return h.s.failure(doing, err)
}

// send sends COMMIT.
func (h *Handler) send(ctx context.Context) error {
	const doing = "committing the handler's transaction"
	tx := h.tx
	h.tx, h.err = nil, errEnded
	h.s.commits(h.claim, true)
	defer h.s.commits(h.claim, false)
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

// errAbsent has a transaction rolled back that asked for a record which is not there.
var errAbsent = errors.New("there is no record")

// ask looks, with the row locked, whether the transaction was committed. While a COMMIT is
// under way on the server it holds that row, or the key of one that the completion made,
// so the answer is certain, as far as the record was not deleted since.
func (h *Handler) ask(ctx context.Context, b *store.Batch) error {
	op := &b.Ops[0]
	return h.s.persist(ctx, func() error {
		err := h.s.within(ctx, func(tx Tx) error {
			r, err := h.s.one(ctx, tx, b)
			switch {
			case err != nil:
				return err
			case !r.stored:
				if err := h.s.awaitInserter(ctx, tx, r, b); err != nil {
					return err
				}
				return errAbsent
			case r.record.Claim == op.Claim && r.record.State == store.Done:
				b.Replies[0].Status = store.OK
			case r.record.Claim == op.Claim && r.record.State == store.Running:
				return h.s.rolledBack("committing the handler's transaction", errors.New("it was asked for, and is not there"))
			default:
				b.Replies[0].Status = store.Lost
			}
			return nil
		})
		if errors.Is(err, errAbsent) {
			b.Replies[0].Status, err = store.Lost, nil
		}
		return h.s.mark(err)
	})
}

// awaitInserter waits until nobody is inserting a row, by inserting it: the caller rolls back.
func (s *Store) awaitInserter(ctx context.Context, tx Tx, r *row, b *store.Batch) error {
	x := &execution{s: s, patience: within(ctx, patience)}
	return x.writeRows(ctx, tx, "", recordColumns, [][]any{r.values(b.Lease)}, nil)
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
	if err := checkOp(op); err != nil {
		return store.Reply{}, err
	}
	gid, err := h.gid(ctx, b.Prefix, op.Group)
	if err != nil {
		return store.Reply{}, err
	}
	h.claim = lease{key{gid, op.Token}, op.Claim}
	n, err := h.s.exec(ctx, h.tx, "finish", values{
		"gid": gid, "token": []byte(op.Token), "claim": op.Claim, "attempt": small(op.Attempt), "result": blob(op.Result),
		"retention": max(0, min(b.Retention.Microseconds(), 1<<52)), "slack": slack(b.Lease), "idle": h.s.idle(b.Lease), "now": now(),
	})
	if err != nil {
		return store.Reply{}, err
	}
	if n == 1 {
		return store.Reply{Status: store.OK}, nil
	}
	return h.slowly(ctx, b)
}

// gid is the group's number, looked for in the transaction: the pool may have no other
// connection.
func (h *Handler) gid(ctx context.Context, prefix, group string) (int64, error) {
	hash := hash(ofGroup, prefix, group)
	id, epoch := h.s.knownGid(hash)
	if id != 0 {
		return id, nil
	}
	id, found, err := h.s.number(ctx, h.tx, "group", values{"hash": hash})
	switch {
	case err != nil:
		return 0, err
	case !found: // the transaction may not see it
		return h.s.gid(ctx, ofGroup, prefix, group, true)
	}
	h.s.keepGid(hash, id, epoch)
	return id, nil
}

// slowly completes a claim that is not in progress any more, where the rules allow it.
func (h *Handler) slowly(ctx context.Context, b *store.Batch) (store.Reply, error) {
	var x *execution
	err := h.s.persist(ctx, func() error {
		x = &execution{s: h.s, b: b, ops: b.Ops, replies: make([]store.Reply, 1), patience: within(ctx, patience), handlers: true}
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
