package idem

import (
	"context"
	"fmt"

	"github.com/idemq/idemq/idem/store"
)

// Record is what the store knows of a token in a group.
type Record = store.Record

// Inspect reads the record of a token in the guard's group, from the primary. A
// token that was never seen has the state store.Absent, and no error. Inspect and Forget
// take a token with or without its signature.
func (g *Guard) Inspect(ctx context.Context, token string) (Record, error) {
	reply, err := g.single(ctx, "inspect", store.Op{Kind: store.Inspect, Group: g.group, Token: g.core.bare(token)})
	if err != nil {
		return Record{}, err
	}
	if reply.Record == nil {
		return Record{}, fmt.Errorf("idem: inspect token %q: the driver %T gave no record", token, g.core.opts.store)
	}
	return *reply.Record, nil
}

// Forget makes the guard's group handle a token again, at its next delivery. What
// was spent of its budget is spent no more; its attempts go on counting. Claims
// made before are void. A token that somebody holds now is ErrInProgress. Other guards
// WithNearCache may answer ErrDuplicate for the time that they were given there.
func (g *Guard) Forget(ctx context.Context, token string) error {
	token = g.core.bare(token)
	defer g.core.near.drop(g.run(token)) // after an error too: it may have been forgotten
	reply, err := g.single(ctx, "forget", store.Op{Kind: store.Forget, Group: g.group, Token: token, Claim: g.core.claimID()})
	if err != nil {
		return err
	}
	switch reply.Status {
	case store.OK:
		return nil
	case store.InProgress:
		return inProgress(token, reply.RetryAfter)
	}
	return fmt.Errorf("idem: forget token %q: %w", token, g.core.senseless(reply))
}

func (g *Guard) single(ctx context.Context, verb string, op store.Op) (store.Reply, error) {
	if err := g.core.ready(); err != nil {
		return store.Reply{}, err
	}
	if err := CheckToken(op.Token); err != nil {
		return store.Reply{}, err
	}
	c := &call{op: op}
	g.core.batcher.do(ctx, c)
	if c.err != nil {
		return store.Reply{}, fmt.Errorf("idem: %s token %q: %w", verb, op.Token, c.err)
	}
	return c.reply, nil
}
