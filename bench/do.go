package bench

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/redisstore"
)

const (
	// batchClaims is how many claims, and completions of the batch before, one script call of
	// the limit has: a full batch of the guard's, 256 operations.
	batchClaims = 128
	flushers    = 2 // Redis is never without one of them
	pipelined   = 500
)

// benchTokens is what the compact layouts of rows are made for, where nothing else is said.
const benchTokens = 10_000_000

// layout is how the library keeps records in Redis.
type layout struct {
	name  string
	store []redisstore.Option
}

func layouts() []layout { return []layout{{name: "records"}, compactLayout(benchTokens)} }

func compactLayout(tokens int) layout {
	return layout{name: "compact", store: []redisstore.Option{redisstore.WithCompact(redisstore.Compact{Tokens: tokens})}}
}

// divided is the layout with another number of hash tags.
func (l layout) divided(tags int) layout {
	return layout{
		name:  fmt.Sprintf("%s, %d tags", l.name, tags),
		store: append(slices.Clone(l.store), redisstore.WithTags(tags)),
	}
}

// guard is a guard on the bed, with a layout.
func (b *bed) guard(l layout) *idem.Guard {
	return idem.New(idem.WithStore(redisstore.New(b.client, l.store...)))
}

// doing calls Do with fresh tokens and a handler that does nothing.
func doing(g *idem.Guard) func(context.Context, int) (int, error) {
	return func(ctx context.Context, _ int) (int, error) {
		return 1, g.Do(ctx, idem.NewToken(), func(context.Context) error { return nil })
	}
}

// leasing is two phases by hand, likewise.
func leasing(rdb redis.UniversalClient) func(context.Context, int) (int, error) {
	return func(ctx context.Context, _ int) (int, error) {
		return 1, leaseOne(ctx, rdb, "seen:"+idem.NewToken(), func() error { return nil })
	}
}

// leasingAll is the commands of two phases in pipelines: all claims, then all completions.
func leasingAll(rdb redis.UniversalClient) func(context.Context, int) (int, error) {
	return func(ctx context.Context, _ int) (int, error) {
		keys := make([]string, pipelined)
		for i := range keys {
			keys[i] = "seen:" + idem.NewToken()
		}
		_, err := rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
			for _, k := range keys {
				p.SetNX(ctx, k, leased, leaseFor)
			}
			return nil
		})
		if err != nil {
			return 0, err
		}
		_, err = rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
			for _, k := range keys {
				p.Set(ctx, k, finished, seenFor)
			}
			return nil
		})
		return pipelined, err
	}
}

// applying gives the store full batches: claims, and the completions of the batch before, in
// one script call. Each goroutine has a batch of its own.
func applying(s store.Store, prefix string, goroutines int) func(context.Context, int) (int, error) {
	var claims atomic.Int64
	claims.Store(1_000_000) // a guard's have seven digits
	held := make([][]store.Op, goroutines)
	return func(ctx context.Context, i int) (int, error) {
		x := &store.Batch{Prefix: prefix, Lease: idem.DefaultLease, Retention: idem.DefaultRetention, Ops: held[i]}
		completions := len(x.Ops)
		var next []store.Op
		for range batchClaims {
			op := store.Op{Kind: store.Begin, Group: "bench", Token: idem.NewToken(), Claim: "bench-" + strconv.FormatInt(claims.Add(1), 10), MaxExpiries: 2}
			x.Ops = append(x.Ops, op)
			next = append(next, store.Op{Kind: store.Commit, Group: op.Group, Token: op.Token, Claim: op.Claim, Attempt: 1})
		}
		held[i] = next
		if err := s.Apply(ctx, x); err != nil {
			return 0, err
		}
		for j, r := range x.Replies {
			if r.Err != nil || r.Status != store.OK && r.Status != store.Claimed {
				return 0, fmt.Errorf("an operation of kind %d was answered %+v", x.Ops[j].Kind, r)
			}
		}
		return completions, nil
	}
}

// doLoads are the loads of the part "do", in the order of its table. The first of each layout
// is its limit.
func doLoads(b *bed, length time.Duration) (all []calling) {
	add := func(name string, goroutines int, call func(context.Context, int) (int, error)) {
		all = append(all, calling{name: name, goroutines: goroutines, length: length, warm: min(warmed, length), call: call})
	}
	add(limitByHand, flushers, leasingAll(b.client))
	for _, n := range []int{1, 64, 256} {
		add("by hand: lease and done, "+goroutines(n), n, leasing(b.client))
	}
	for _, l := range layouts() {
		add(limitOf(l.name), flushers, applying(redisstore.New(b.client, l.store...), "limit", flushers))
		for _, n := range []int{1, 256} {
			add("`Guard.Do`, "+l.name+", "+goroutines(n), n, doing(b.guard(l)))
		}
	}
	return all
}

const limitByHand = "limit: `SET NX PX` and `SET PX`, pipelines of 500"

func limitOf(layout string) string {
	return fmt.Sprintf("limit: the script of %s, %d claims and %d completions a call", layout, batchClaims, batchClaims)
}

func goroutines(n int) string {
	if n == 1 {
		return "1 goroutine"
	}
	return strconv.Itoa(n) + " goroutines"
}

// measureDo runs the part, each load on an emptied Redis.
func (res *Result) measureDo(t *testing.T, length time.Duration) {
	t.Helper()
	b := newBed(t)
	res.Do = nil
	for _, c := range doLoads(b, length) {
		b.empty(t)
		l, err := b.run(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		l.PerSecond = nil
		res.Do = append(res.Do, *l)
		t.Logf("%s: %.0f/s, p50 %.3f ms", l.Name, l.Rate(), l.Latency.P50*1e3)
	}
}
