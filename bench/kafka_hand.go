package bench

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/segmentio/kafka-go"
	"golang.org/x/sync/errgroup"

	"github.com/idemq/idemq/idem"
)

const (
	commitEvery = 1000 // messages, in what is written by hand
	workers     = 64
	markBatch   = 200  // marks in a pipeline
	leaseBatch  = 1000 // leases in a pipeline, and completions in the next

	seenFor  = 24 * time.Hour // as long as our retention
	leaseFor = 30 * time.Second
	leased   = "leased"
	finished = "done"
)

// The rows that are measured behind a network as well.
const (
	leaseMany      = "lease and done, 64 goroutines"
	leasePipelines = "lease and done, 2 pipelines per 1,000"
)

// kafkaByHand are consumers as they are written by hand over kafka-go and go-redis.
func kafkaByHand() []Row {
	row := func(name string, by func(rdb *redis.Client, handle effect) taking) Row {
		return Row{Name: name, Kind: ByHand, consume: func(ctx context.Context, s *Site, r *Run) error {
			return readAll(ctx, s, r, by(s.Redis, func(m kafka.Message) error { return r.Handle(m.Value) }))
		}}
	}
	none := row("no deduplication", func(_ *redis.Client, handle effect) taking {
		return one(func(_ context.Context, m kafka.Message) error { return handle(m) })
	})
	none.Kind, none.Repeats = Baseline, true
	single := row("lease and done, 1 goroutine", func(rdb *redis.Client, handle effect) taking { return one(lease(rdb, handle)) })
	single.flood = 20_000
	return []Row{
		none,
		row("SETNX, 1 goroutine", func(rdb *redis.Client, handle effect) taking { return one(mark(rdb, handle)) }),
		row("SETNX, 64 goroutines", func(rdb *redis.Client, handle effect) taking { return many(workers, mark(rdb, handle)) }),
		row("SETNX, pipelines of 200", func(rdb *redis.Client, handle effect) taking { return gathered(markBatch, markAll(rdb, handle)) }),
		single,
		row(leaseMany, func(rdb *redis.Client, handle effect) taking { return many(workers, lease(rdb, handle)) }),
		row(leasePipelines, func(rdb *redis.Client, handle effect) taking {
			return gathered(leaseBatch, leaseAll(rdb, handle))
		}),
	}
}

// effect is the handler.
type effect = func(kafka.Message) error

// taking is what a loop does with messages: take each, and finish all that were taken
// before their offsets are committed.
type taking struct {
	take   func(ctx context.Context, m kafka.Message) error
	finish func(ctx context.Context) error
}

// readAll is the loop of everything written by hand: fetch, take, and commit after every
// thousand.
func readAll(ctx context.Context, s *Site, r *Run, t taking) error {
	reader := kafka.NewReader(s.reader())
	defer reader.Close()
	last := map[int]kafka.Message{}
	for left := r.work.Messages(); left > 0; left -= commitEvery {
		for range min(left, commitEvery) {
			m, err := reader.FetchMessage(ctx)
			if err != nil {
				return fmt.Errorf("fetching: %w", err)
			}
			r.Begin()
			last[m.Partition] = m
			if err := t.take(ctx, m); err != nil {
				return err
			}
		}
		if err := t.finish(ctx); err != nil {
			return err
		}
		if err := reader.CommitMessages(ctx, slices.Collect(maps.Values(last))...); err != nil {
			return fmt.Errorf("committing: %w", err)
		}
		clear(last)
	}
	return nil
}

// one takes messages one after another.
func one(take func(context.Context, kafka.Message) error) taking {
	return taking{take: take, finish: func(context.Context) error { return nil }}
}

// many takes up to n messages at a time, in any order.
func many(n int, take func(context.Context, kafka.Message) error) taking {
	var g errgroup.Group
	g.SetLimit(n)
	return taking{
		take: func(ctx context.Context, m kafka.Message) error {
			g.Go(func() error { return take(ctx, m) })
			return nil
		},
		finish: func(context.Context) error { return g.Wait() },
	}
}

// gathered takes messages n at a time, and what is left before the commit.
func gathered(n int, take func(context.Context, []kafka.Message) error) taking {
	var some []kafka.Message
	flush := func(ctx context.Context) error {
		defer func() { some = some[:0] }()
		if len(some) == 0 {
			return nil
		}
		return take(ctx, some)
	}
	return taking{
		take: func(ctx context.Context, m kafka.Message) error {
			if some = append(some, m); len(some) < n {
				return nil
			}
			return flush(ctx)
		},
		finish: flush,
	}
}

// key is where Redis has a message's mark.
func key(m kafka.Message) string {
	for _, h := range m.Headers {
		if strings.EqualFold(h.Key, idem.Header) {
			return "seen:" + string(h.Value)
		}
	}
	return "seen:"
}

// mark sets the mark, and handles what had none.
func mark(rdb *redis.Client, handle effect) func(context.Context, kafka.Message) error {
	return func(ctx context.Context, m kafka.Message) error {
		first, err := rdb.SetNX(ctx, key(m), 1, seenFor).Result()
		if err != nil || !first {
			return err
		}
		return handle(m)
	}
}

// markAll is mark for many messages in one trip.
func markAll(rdb *redis.Client, handle effect) func(context.Context, []kafka.Message) error {
	return func(ctx context.Context, some []kafka.Message) error {
		first := make([]*redis.BoolCmd, len(some))
		_, err := rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
			for i, m := range some {
				first[i] = p.SetNX(ctx, key(m), 1, seenFor)
			}
			return nil
		})
		if err != nil {
			return err
		}
		for i, m := range some {
			if first[i].Val() {
				if err := handle(m); err != nil {
					return err
				}
			}
		}
		return nil
	}
}

// claim takes the lease, or tells what is there.
var claim = redis.SetArgs{Mode: "NX", Get: true, TTL: leaseFor}

// lease handles under a lease, and records that it did.
func lease(rdb *redis.Client, handle effect) func(context.Context, kafka.Message) error {
	return func(ctx context.Context, m kafka.Message) error {
		return leaseOne(ctx, rdb, key(m), func() error { return handle(m) })
	}
}

// leaseOne is two phases: lease, handle, record.
func leaseOne(ctx context.Context, rdb redis.UniversalClient, k string, handle func() error) error {
	for {
		there, err := rdb.SetArgs(ctx, k, leased, claim).Result()
		if errors.Is(err, redis.Nil) {
			break
		}
		if err != nil || there == finished {
			return err
		}
		// Somebody has it in hand.
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := handle(); err != nil {
		return errors.Join(err, rdb.Del(ctx, k).Err())
	}
	return rdb.Set(ctx, k, finished, seenFor).Err()
}

// leaseAll is lease for many messages in two trips. It does not wait for somebody else's
// lease: the loop ends, and its supervisor starts it again.
func leaseAll(rdb *redis.Client, handle effect) func(context.Context, []kafka.Message) error {
	return func(ctx context.Context, some []kafka.Message) error {
		claims := make([]*redis.StatusCmd, len(some))
		// Pipelined returns the first nil as an error: each command has its own.
		_, err := rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
			for i, m := range some {
				claims[i] = p.SetArgs(ctx, key(m), leased, claim)
			}
			return nil
		})
		if err != nil && !errors.Is(err, redis.Nil) {
			return err
		}
		ours := map[string]bool{}
		for i, m := range some {
			switch there, err := claims[i].Result(); {
			case errors.Is(err, redis.Nil):
				if err := handle(m); err != nil {
					return err
				}
				ours[key(m)] = true
			case err != nil:
				return err
			case there != finished && !ours[key(m)]:
				return fmt.Errorf("%s is leased by somebody else", key(m))
			}
		}
		_, err = rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
			for k := range ours {
				p.Set(ctx, k, finished, seenFor)
			}
			return nil
		})
		return err
	}
}
