package redisstore_test

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/redisstore"
	"github.com/idemq/idemq/internal/redistest"
)

var layouts = map[string][]redisstore.Option{"records": nil, "compact": {redisstore.WithCompact(redisstore.Compact{Tokens: 1_000_000})}}

// BenchmarkBeginCommit claims fresh tokens and completes them, the commits of a
// batch in one call with the claims of the next. An operation is a message.
func BenchmarkBeginCommit(b *testing.B) {
	for _, layout := range slices.Sorted(maps.Keys(layouts)) {
		for _, size := range []int{1, 16, 128, 256} {
			for _, flushers := range []int{1, 2, 64} {
				if size*flushers > 1024 {
					continue
				}
				b.Run(fmt.Sprintf("layout=%s/batch=%d/flushers=%d", layout, size, flushers), func(b *testing.B) {
					c := redistest.Start(b, private...).Client(b)
					s := redisstore.New(c, layouts[layout]...)
					b.ReportAllocs()
					b.ResetTimer()
					done := make(chan error)
					for f := range flushers {
						go func() { done <- messages(s, fmt.Sprint("flusher", f), size, b.N/flushers+1) }()
					}
					for range flushers {
						if err := <-done; err != nil {
							b.Fatal(err)
						}
					}
					b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
					b.ReportMetric(float64(number(b, c, "commandstats", "cmdstat_evalsha:calls=*,usec="))/float64(b.N), "script-µs/message")
				})
			}
		}
	}
}

// BenchmarkDuplicate asks for claims of tokens that are done. An operation is a claim.
func BenchmarkDuplicate(b *testing.B) {
	for _, layout := range slices.Sorted(maps.Keys(layouts)) {
		for _, size := range []int{1, 128} {
			b.Run(fmt.Sprintf("layout=%s/batch=%d", layout, size), func(b *testing.B) {
				c := redistest.Start(b, private...).Client(b)
				s := redisstore.New(c, layouts[layout]...)
				const n = 1024
				if err := messages(s, "duplicate", 128, n); err != nil {
					b.Fatal(err)
				}
				x := batch("bench")
				b.ReportAllocs()
				b.ResetTimer()
				for i := 0; i < b.N; {
					x.Ops = x.Ops[:0]
					for ; len(x.Ops) < size; i++ {
						x.Ops = append(x.Ops, store.Op{
							Kind: store.Begin, Group: "orders", Token: benchToken("duplicate", i%n), Claim: benchClaim(n + i), MaxExpiries: 2,
						})
					}
					if err := s.Apply(context.Background(), x); err != nil {
						b.Fatal(err)
					}
					for _, r := range x.Replies {
						if r.Status != store.Duplicate {
							b.Fatalf("a done token is answered %+v", r)
						}
					}
				}
				b.ReportMetric(float64(number(b, c, "commandstats", "cmdstat_evalsha:calls=*,usec="))/float64(b.N), "script-µs/duplicate")
			})
		}
	}
}

// benchToken is as long as a UUID.
func benchToken(name string, i int) string { return fmt.Sprintf("%-20s%016d", name, i) }

// benchClaim is shaped as a guard's.
func benchClaim(i int) string { return "aaaaaaaaaaaa" + strconv.Itoa(1_000_000+i) }

// messages claims and completes n messages, size at a time.
func messages(s store.Store, name string, size, n int) error {
	x := batch("bench")
	x.Owner, x.Incarnation, x.Lease, x.Retention = "pod-1", 1790000000000000, 10*time.Second, 24*time.Hour
	var held []store.Op
	for i := 0; i < n || len(held) > 0; {
		x.Ops = append(x.Ops[:0], held...)
		held = held[:0]
		for ; len(held) < size && i < n; i++ {
			token, claim := benchToken(name, i), benchClaim(i)
			held = append(held, store.Op{Kind: store.Commit, Group: "orders", Token: token, Claim: claim, Attempt: 1})
			x.Ops = append(x.Ops, store.Op{Kind: store.Begin, Group: "orders", Token: token, Claim: claim, MaxExpiries: 2})
		}
		if err := s.Apply(context.Background(), x); err != nil {
			return err
		}
		for j, r := range x.Replies {
			if r.Status != store.OK && r.Status != store.Claimed {
				return fmt.Errorf("operation %+v was answered %+v", x.Ops[j], r)
			}
		}
	}
	return nil
}

// BenchmarkMemory reports what a done token of 36 characters costs, with keys that
// expire. An operation is a token; run it with -benchtime 300000x.
func BenchmarkMemory(b *testing.B) {
	c := redistest.Start(b, private...).Client(b)
	s := redisstore.New(c)
	before := used(b, c)
	if err := messages(s, "memory", 256, b.N); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(used(b, c)-before)/float64(b.N), "bytes/token")
}

func used(b *testing.B, c *redis.Client) int { return number(b, c, "memory", "used_memory:") }

// number reads a number out of INFO: what follows after, in which a * stands for
// another number.
func number(b *testing.B, c *redis.Client, section, after string) int {
	b.Helper()
	info, err := c.Info(context.Background(), section).Result()
	if err != nil {
		b.Fatal(err)
	}
	pattern := strings.ReplaceAll(regexp.QuoteMeta(after), `\*`, `\d+`) + `(\d+)`
	m := regexp.MustCompile(pattern).FindStringSubmatch(info)
	if m == nil {
		b.Fatalf("no %q in %s", after, info)
	}
	n, err := strconv.Atoi(m[1])
	if err != nil {
		b.Fatal(err)
	}
	return n
}

// BenchmarkReplicas completes batches without and with the confirmation of replicas, in
// turns, on one primary with two replicas on the same machine, and reports the half-way
// time of each. An operation is one batch of each kind; the claims are not counted.
func BenchmarkReplicas(b *testing.B) {
	primary := redistest.Start(b, "--repl-diskless-sync-delay", "0")
	for range 2 {
		primary.StartReplica(b)
	}
	c := primary.Client(b)
	for _, size := range []int{1, 256} {
		b.Run(fmt.Sprintf("batch=%d", size), func(b *testing.B) {
			const kinds = 3
			var stores [kinds]store.Store
			var took [kinds][]time.Duration
			for n := range stores {
				stores[n] = redisstore.New(c, redisstore.WithReplicas(n, time.Second))
			}
			for i := range b.N {
				for n, s := range stores {
					begins, commits := batch("bench"), batch("bench")
					for j := range size {
						token := fmt.Sprint(b.N, n, i, j)
						begins.Ops = append(begins.Ops, op(store.Begin, token, "a"))
						commits.Ops = append(commits.Ops, op(store.Commit, token, "a"))
					}
					apply(b, s, begins)
					began := time.Now()
					apply(b, s, commits)
					took[n] = append(took[n], time.Since(began))
				}
			}
			for n, all := range took {
				slices.Sort(all)
				b.ReportMetric(float64(all[len(all)/2].Microseconds()), fmt.Sprintf("µs/%d-replicas", n))
			}
		})
	}
}
