package redisstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/idemq/idemq/idem/store"
)

// execution is one Apply.
type execution struct {
	s     *Store
	p     *prefix
	b     *store.Batch
	terms *[8]any

	// What is known of nothing: calls whose server was not reached, did not confirm,
	// or, as one of several, refused. Later calls of their tags are not sent, to keep
	// the order.
	lost int // operations
	down map[int]error

	reasons map[string]error // what refusals mean, by what the server said: asking for it takes time
}

func (x *execution) run(ctx context.Context) error {
	b := x.b
	b.Replies = slices.Grow(b.Replies[:0], len(b.Ops))[:len(b.Ops)]
	clear(b.Replies)
	b.Now = time.Time{}
	x.terms = x.p.arguments(b)
	made := scratches.Get().(*scratch)
	items, err := made.fill(b, &x.p.keys, x.s.compact)
	if err != nil {
		return err
	}
	for _, round := range x.divide(items) {
		if err := x.finish(ctx, round); err != nil {
			return err
		}
	}
	made.free() // each command that points into it was answered, or failed
	if len(b.Ops) > 0 && x.s.several {
		return nil // an error would hold up what other servers keep
	}
	if x.lost == len(b.Ops) || b.Now.IsZero() {
		for _, err := range x.down {
			return err
		}
	}
	return nil
}

// lose answers the operations of a call of which nothing is known.
func (x *execution) lose(c *call, err error) {
	if x.down == nil {
		x.down = make(map[int]error)
	}
	x.down[c.tag] = err
	x.lost += len(c.items)
	for _, it := range c.items {
		*it.reply = store.Reply{Err: err}
	}
}

// divide makes calls of the items. The calls of a round touch different records and
// may travel together; the rounds follow one another, so that operations on one record
// keep their order whatever becomes of a call. A batch without operations is a
// call too: it reads the clock.
func (x *execution) divide(items []item) [][]*call {
	var order []*call
	if !x.s.perTag.Load() || len(items) == 0 {
		order = []*call{{items: items, undivided: !x.s.perTag.Load(), scripts: x.s.scripts()}}
	} else {
		byTag := make(map[int]*call)
		for _, it := range items {
			tag := x.p.keys.tag(it.op.Token)
			c := byTag[tag]
			if c == nil {
				c = &call{tag: tag, scripts: x.s.scripts()}
				byTag[tag] = c
				order = append(order, c)
			}
			c.items = append(c.items, it)
		}
	}
	var rounds [][]*call
	for _, c := range order {
		for n := 0; c != nil; n++ {
			var rest *call
			if len(c.items) > maxOps {
				more := *c
				c.items, more.items = c.items[:maxOps], c.items[maxOps:]
				rest = &more
			}
			c.choose()
			if n == len(rounds) {
				rounds = append(rounds, nil)
			}
			rounds[n] = append(rounds[n], c)
			c = rest
		}
	}
	return rounds
}

// finish sends calls until each is answered. What was refused as a whole for a
// reason that can be helped is sent again: without a script (with its source), at
// maxmemory (without its claims), across slots (divided by tag).
func (x *execution) finish(ctx context.Context, calls []*call) error {
	for len(calls) > 0 {
		calls = slices.DeleteFunc(calls, func(c *call) bool {
			err := x.down[c.tag]
			if err != nil {
				x.lose(c, err)
			}
			return err != nil
		})
		var again []*call
		for i, cmd := range x.send(ctx, calls) {
			c := calls[i]
			var err error
			if cmd != nil {
				err = cmd.Err()
			}
			if err != nil {
				x.p.replaceSpare()
			}
			switch {
			case cmd != nil && err == nil:
				if err := x.take(c, cmd); err != nil {
					return err
				}
				if c.failed == nil {
					if c = x.unconfirmed(c); c != nil {
						again = append(again, c)
					}
					continue
				}
				if err := x.fail(c); err != nil {
					return err
				}
			case isNoScript(err) && !c.whole:
				c.whole, c.failed = true, nil
				again = append(again, c)
			case isFull(err) && c.script == c.scripts.claim:
				if c = c.withoutClaims(err); c != nil {
					again = append(again, c)
				}
			case isCrossSlot(err) && c.undivided:
				x.s.perTag.Store(true)
				return x.finishDivided(ctx, c)
			default:
				if err != nil {
					c.failed = x.reason(ctx, c, err)
				}
				if err := x.fail(c); err != nil {
					return err
				}
			}
		}
		calls = again
	}
	return nil
}

// reason is why a call failed.
func (x *execution) reason(ctx context.Context, c *call, err error) error {
	said := err.Error()
	if reason := x.reasons[said]; reason != nil && isReply(err) {
		return reason
	}
	if x.reasons == nil {
		x.reasons = make(map[string]error)
	}
	ctx, cancel := share(ctx)
	defer cancel()
	x.reasons[said] = x.s.failure(ctx, x.p, fmt.Sprintf("executing %d operations", len(c.items)), err)
	return x.reasons[said]
}

// fail answers the operations of a call that failed, or returns what stops the others
// too: the refusal of the only server, and what no server said.
func (x *execution) fail(c *call) error {
	switch {
	case c.confirms: // the store was reached, and has these: that is no outage
		for _, it := range c.items {
			*it.reply = store.Reply{Err: fmt.Errorf("redisstore: %w: the token is done on the primary, and may be forgotten: %s", store.ErrRefused, c.failed.Error())}
		}
	case errors.Is(c.failed, store.ErrUnavailable):
		x.lose(c, c.failed)
	case x.s.several && len(x.b.Ops) > 0 && isReply(c.failed):
		x.lose(c, x.s.partly(c.failed))
	default:
		return c.failed
	}
	return nil
}

// finishDivided goes on with the only call of a round, which Redis refused because
// it touches several slots.
func (x *execution) finishDivided(ctx context.Context, c *call) error {
	for _, round := range x.divide(c.items) {
		if err := x.finish(ctx, round); err != nil {
			return err
		}
	}
	return nil
}

// withoutClaims answers what Redis has no room for, and returns a call with the
// rest; nil if nothing is left.
func (c *call) withoutClaims(err error) *call {
	var rest []item
	for _, it := range c.items {
		if claims(it.op.Kind) {
			it.reply.Err = fmt.Errorf("redisstore: %w: %w; raise Redis' maxmemory, or shorten the retention", store.ErrFull, err)
		} else {
			rest = append(rest, it)
		}
	}
	return c.of(rest)
}

// of returns a call with some of the items; nil if there are none.
func (c *call) of(items []item) *call {
	if len(items) == 0 {
		return nil
	}
	some := &call{tag: c.tag, undivided: c.undivided, scripts: c.scripts, items: items}
	some.choose()
	return some
}

// unconfirmed returns a call that asks again for what was answered as done, where replicas may
// not have it: its completion may not have been confirmed, and whoever is told of it acks. Nil
// if there is nothing of the kind. In a call that must survive all was waited for.
//
// What is not confirmed then is refused: it is waited for, and nobody handles it again since
// the store were out of reach.
func (x *execution) unconfirmed(c *call) *call {
	if x.s.replicas == 0 || c.mustSurvive() {
		return nil
	}
	var told []item
	for _, it := range c.items {
		if it.reply.Status == store.Duplicate {
			told = append(told, it)
		}
	}
	again := c.of(told)
	if again != nil {
		again.confirms = true
	}
	return again
}

// take reads the answer to a call.
func (x *execution) take(c *call, cmd *redis.Cmd) error {
	v, err := cmd.Slice()
	if err != nil {
		return fmt.Errorf("redisstore: a script's reply is no list: %w", err)
	}
	now, epoch, err := c.unpack(v)
	if err != nil {
		return err
	}
	if now.After(x.b.Now) {
		x.b.Now = now
	}
	x.p.saw(c.tag, c.before, epoch)
	return nil
}

// processor is what a call is sent with: a client or a pipeline.
type processor interface {
	Process(ctx context.Context, cmd redis.Cmder) error
}

// queue sends a call, or gives it to a pipeline. The error is the command's.
func (x *execution) queue(ctx context.Context, to processor, c *call) *redis.Cmd {
	cmd := c.command(ctx, x.p, x.terms, x.s.generation(), x.s.replicas > 0 && c.mustSurvive())
	_ = to.Process(ctx, cmd)
	return cmd
}

// send sends calls together and returns an answer for each; nil where the call was not
// sent. A call that is marked as failed is not known to be done, whatever its answer.
func (x *execution) send(ctx context.Context, calls []*call) []*redis.Cmd {
	if len(calls) == 0 {
		return nil
	}
	cmds := make([]*redis.Cmd, len(calls))
	wait := false
	switch client := x.s.client.(type) {
	case *redis.ClusterClient:
		x.scatter(ctx, client, calls, cmds)
		return cmds
	case *redis.Client:
		wait = x.s.replicas > 0 && slices.ContainsFunc(calls, (*call).mustSurvive)
	}
	if len(calls) == 1 && !wait {
		cmds[0] = x.queue(ctx, x.s.client, calls[0])
		return cmds
	}
	x.pipeline(ctx, x.s.client.Pipeline(), &trip{calls: calls, cmds: cmds, wait: wait})
	return cmds
}

// trip is what goes to one server together.
type trip struct {
	calls []*call
	cmds  []*redis.Cmd
	wait  bool // for replicas
}

// pipeline sends calls in a pipeline and fills cmds. The errors of commands are theirs;
// Exec only repeats the first.
//
// Where calls must survive, the primary waits for its replicas in the same pipeline: WAIT is
// about the writes of its own connection. The script writes the epoch key in such
// calls, so that a repeat that finds everything done waits too. Where replicas do
// not confirm, all calls are marked as failed, the claims among them too: what cannot be
// completed is not to be started. Scripts are still loaded, and completions are on the
// primary.
func (x *execution) pipeline(ctx context.Context, pipe redis.Pipeliner, t *trip) {
	for i, c := range t.calls {
		c.failed = nil
		t.cmds[i] = x.queue(ctx, pipe, c)
	}
	var wait *redis.IntCmd
	if t.wait {
		wait = redis.NewIntCmd(ctx, "wait", x.s.replicas, x.s.replicaTimeout.Milliseconds())
		_ = pipe.Process(ctx, wait)
	}
	_, _ = pipe.Exec(ctx)
	if wait == nil {
		return
	}
	if err := x.confirmed(ctx, wait); err != nil {
		for _, c := range t.calls {
			c.failed = err
		}
	}
}

// confirmed is nil if enough replicas have what was written.
func (x *execution) confirmed(ctx context.Context, wait *redis.IntCmd) error {
	n, err := wait.Result()
	if err != nil {
		return x.s.failure(ctx, x.p, "waiting for replicas", err)
	}
	if int(n) < x.s.replicas {
		return fmt.Errorf("redisstore: %w: what was written stands on the primary, and %d of %d replicas confirmed it within %v; "+
			"it does not count until that many do: see to the replicas, or lower WithReplicas", store.ErrUnavailable, n, x.s.replicas, x.s.replicaTimeout)
	}
	return nil
}
