package bench

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"

	"github.com/idemq/idemq/idem"
)

// What a Redis holds after a consumer had millions of messages: written as the library writes
// it, by mass insertion, which is several times as fast. TestFillIsWhatTheLibraryWrites
// compares the two.
const (
	fillGroup = "orders" // the consumer group
	fillTags  = 64       // what the store has by default
	// fillBucket is how many tokens of one generation the compact layout puts into a set.
	fillBucket = 320
)

// filler fills a Redis.
type filler struct {
	addr string
	seed *rand.Rand
	now  time.Time
	next int // tokens made so far
}

func newFiller(addr string) *filler {
	return &filler{addr: addr, seed: rand.New(rand.NewPCG(1, 2)), now: time.Now()}
}

// token is a UUID.
func (f *filler) token() string {
	var u uuid.UUID
	binary.BigEndian.PutUint64(u[:], f.seed.Uint64())
	binary.BigEndian.PutUint64(u[8:], f.seed.Uint64())
	return u.String()
}

// recordKey is a record's, whose tag is one of the prefix's. Which one the library takes for a
// token makes no difference to what it costs.
func (f *filler) recordKey(token string) string {
	return idem.DefaultPrefix + ":{" + strconv.Itoa(f.seed.IntN(fillTags)) + "}:" + fillGroup + ":" + token
}

// record is a token's that was done on its first attempt.
func (f *filler) record() string {
	f.next++
	return fmt.Sprintf("%d%06d", f.now.UnixMilli(), f.next%1_000_000)
}

// records adds done tokens in the layout of records.
func (f *filler) records(ctx context.Context, n int) error {
	px := strconv.FormatInt(idem.DefaultRetention.Milliseconds(), 10)
	return f.insert(ctx, func(ins *inserter) error {
		for range n {
			if err := ins.do("SET", f.recordKey(f.token()), f.record(), "PX", px); err != nil {
				return err
			}
		}
		return nil
	})
}

func (f *filler) insert(ctx context.Context, commands func(*inserter) error) error {
	ins, err := newInserter(ctx, f.addr)
	if err != nil {
		return err
	}
	return ins.end(commands(ins))
}

// bucketsFor is how many buckets the compact layout has under each tag for so many tokens.
func bucketsFor(tokens int) int {
	return (tokens + fillTags*fillBucket - 1) / (fillTags * fillBucket)
}

// setKey is the set of a bucket for a generation, 0 or 1. Buckets are counted over all tags.
func setKey(bucket, generation int) string {
	return idem.DefaultPrefix + ":{" + strconv.Itoa(bucket%fillTags) + "}:%b:" + strconv.Itoa(bucket/fillTags) + ":" + strconv.Itoa(generation)
}

// fingerprint is 64 random bits, as those of a hash are.
func (f *filler) fingerprint() string { return strconv.FormatInt(int64(f.seed.Uint64()), 10) }

// compact adds done tokens of one generation in a layout for so many. One at a time they come
// as a consumer's do, in all buckets by turns; otherwise a bucket is filled at once.
func (f *filler) compact(ctx context.Context, n, tokens, generation int, oneAtATime bool) error {
	buckets := bucketsFor(tokens) * fillTags
	goes := strconv.FormatInt(f.now.Add(2*idem.DefaultRetention).UnixMilli(), 10)
	return f.insert(ctx, func(ins *inserter) error {
		held := make([]int32, buckets) // tokens of each bucket
		for range n {
			bucket := f.seed.IntN(buckets)
			if held[bucket]++; !oneAtATime {
				continue
			}
			key := setKey(bucket, generation)
			if err := ins.do("SADD", key, f.fingerprint()); err != nil {
				return err
			}
			if held[bucket] > 1 {
				continue
			}
			if err := ins.do("PEXPIREAT", key, goes); err != nil {
				return err
			}
		}
		for bucket := 0; bucket < buckets && !oneAtATime; bucket++ {
			if held[bucket] == 0 {
				continue
			}
			if err := f.set(ins, setKey(bucket, generation), int(held[bucket]), goes); err != nil {
				return err
			}
		}
		return nil
	})
}

// set fills a set at once.
func (f *filler) set(ins *inserter, key string, n int, goes string) error {
	args := make([]string, 2, 2+n)
	args[0], args[1] = "SADD", key
	for range n {
		args = append(args, f.fingerprint())
	}
	if err := ins.do(args...); err != nil {
		return err
	}
	return ins.do("PEXPIREAT", key, goes)
}

// redisMemory is what a server holds, what its process has, and by which allocator.
type redisMemory struct {
	used, rss int64 // bytes
	allocator string
}

func memoryOf(ctx context.Context, c *redis.Client) (m redisMemory, err error) {
	info, err := c.InfoMap(ctx, "memory").Result()
	if err != nil {
		return m, fmt.Errorf("asking Redis for its memory: %w", err)
	}
	memory := info["Memory"]
	if m.used, err = strconv.ParseInt(memory["used_memory"], 10, 64); err == nil {
		m.rss, err = strconv.ParseInt(memory["used_memory_rss"], 10, 64)
	}
	m.allocator = memory["mem_allocator"]
	return m, err
}
