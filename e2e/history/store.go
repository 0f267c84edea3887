package history

import (
	"context"

	"github.com/idemq/idemq/idem/store"
)

// Store is s, with each operation on a token of the run recorded when it is sent and when
// it is answered. It has what is optional where s has it. The completion that the
// transaction of a [store.Transactor] commits is recorded too.
func Store(s store.Store, r *Recorder, run string) store.Store {
	x := &recording{Store: s, r: r, run: run}
	if t, is := s.(store.Transactor); is {
		return &transactor{recording: x, t: t}
	}
	return x
}

type recording struct {
	store.Store
	r   *Recorder
	run string
}

// Bounded implements store.Bounded.
func (s *recording) Bounded() bool {
	b, may := s.Store.(store.Bounded)
	return may && b.Bounded()
}

// Apply implements store.Store.
func (s *recording) Apply(ctx context.Context, b *store.Batch) error {
	return s.apply(ctx, b, s.Store.Apply)
}

func (s *recording) apply(ctx context.Context, b *store.Batch, apply func(context.Context, *store.Batch) error) error {
	for i := range b.Ops {
		if e, ok := s.event(Asked, &b.Ops[i]); ok {
			e.Key, e.Store, e.Until = owner(b.Owner), int64(b.Incarnation), int64(b.Ops[i].MaxExpiries)
			s.r.Add(e)
		}
	}
	err := apply(ctx, b)
	at := Now()
	for i := range b.Ops {
		e, ok := s.event(Answered, &b.Ops[i])
		if !ok {
			continue
		}
		e.At = at
		if err != nil || i >= len(b.Replies) || b.Replies[i].Err != nil {
			e.Flags |= Failed
		} else {
			e.Status = uint8(b.Replies[i].Status)
			if !b.Now.IsZero() {
				e.Store = b.Now.UnixNano()
			}
			if n := b.Replies[i].Attempt; n > 0 {
				e.Attempt = uint16(n)
			}
		}
		s.r.Add(e)
	}
	return err
}

func (s *recording) event(kind Kind, op *store.Op) (Event, bool) {
	n, ok := Number(s.run, op.Token)
	e := Event{Kind: kind, Op: uint8(op.Kind), Token: n, Claim: ClaimID(op.Claim), Attempt: uint16(op.Attempt)}
	if op.Counted {
		e.Flags |= Counted
	}
	return e, ok
}

// owner is a hash of an instance's name, zero for none.
func owner(name string) uint32 {
	if name == "" {
		return 0
	}
	return uint32(ClaimID(name)) | 1
}

type transactor struct {
	*recording
	t store.Transactor
}

// Enlist implements store.Transactor.
func (s *transactor) Enlist(ctx context.Context, terms *store.Batch, hold func()) (context.Context, store.Tx) {
	ctx, tx := s.t.Enlist(ctx, terms, hold)
	return ctx, &recordingTx{Tx: tx, s: s}
}

type recordingTx struct {
	store.Tx
	s *transactor
}

// Commit implements store.Tx.
func (t *recordingTx) Commit(ctx context.Context, b *store.Batch) error {
	return t.s.apply(ctx, b, t.Tx.Commit)
}
