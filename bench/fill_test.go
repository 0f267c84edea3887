package bench

import (
	"context"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store/redisstore"
)

// held is a key as far as it costs memory.
type held struct {
	key, kind, value string
	members          int64
	bytes            int64
	left             time.Duration
}

// keysOf are those that match.
func keysOf(t *testing.T, c *redis.Client, match string) (all []held) {
	t.Helper()
	ctx := t.Context()
	for it := c.Scan(ctx, 0, match, 1000).Iterator(); it.Next(ctx); {
		h := held{key: it.Val(), bytes: c.MemoryUsage(ctx, it.Val()).Val(), left: c.PTTL(ctx, it.Val()).Val()}
		if h.kind = c.ObjectEncoding(ctx, h.key).Val(); strings.Contains(match, ":%b:") {
			h.members = c.SCard(ctx, h.key).Val()
		} else {
			h.value = c.Get(ctx, h.key).Val()
		}
		all = append(all, h)
	}
	if len(all) == 0 {
		t.Fatalf("no key matches %s", match)
	}
	return all
}

// handled has the library complete tokens.
func handled(t *testing.T, b *bed, n int, opts ...idem.Option) {
	t.Helper()
	g := idem.New(append([]idem.Option{idem.WithRedis(b.client)}, opts...)...).Group(fillGroup)
	_, err := b.run(t.Context(), calling{name: "handled", goroutines: 1, length: time.Nanosecond, call: func(ctx context.Context, _ int) (int, error) {
		for range n {
			if err := g.Do(ctx, idem.NewToken(), func(context.Context) error { return nil }); err != nil {
				return 0, err
			}
		}
		return n, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
}

var (
	recordShape = regexp.MustCompile(`^idempotent:\{(\d+)\}:orders:[0-9a-f-]{36}$`)
	valueShape  = regexp.MustCompile(`^\d{19}$`)
	setShape    = regexp.MustCompile(`^idempotent:\{(\d+)\}:%b:(\d+):[01]$`)
)

// What the sizes are measured with costs what the library's own records and sets do.
func TestFillIsWhatTheLibraryWrites(t *testing.T) {
	const tokens = 500
	ours, fills := newBed(t), newBed(t)
	c := fills.masters[0]
	f := newFiller(c.Options().Addr)

	handled(t, ours, tokens)
	if err := f.records(t.Context(), tokens); err != nil {
		t.Fatal(err)
	}
	// A key of a two-digit tag is a byte longer: those of one are compared with each other.
	cost := map[string]map[int]int64{}
	for name, all := range map[string][]held{"library": keysOf(t, ours.masters[0], "*}:[^%]*"), "fill": keysOf(t, c, "*}:[^%]*")} {
		if len(all) != tokens {
			t.Errorf("%s: %d records, want %d", name, len(all), tokens)
		}
		cost[name] = map[int]int64{}
		for _, h := range all {
			if !recordShape.MatchString(h.key) || !valueShape.MatchString(h.value) || h.kind != "int" {
				t.Fatalf("%s: %s is %q (%s)", name, h.key, h.value, h.kind)
			}
			if h.left <= idem.DefaultRetention-time.Minute || h.left > idem.DefaultRetention+idem.DefaultLease {
				t.Errorf("%s: %s has %v left", name, h.key, h.left)
			}
			cost[name][len(h.key)] = h.bytes
		}
	}
	both := 0
	for size, bytes := range cost["library"] {
		if other, is := cost["fill"][size]; is {
			if both++; other != bytes {
				t.Errorf("a record with a key of %d bytes costs %d bytes, and %d where the library wrote it", size, other, bytes)
			}
		}
	}
	if both < 2 {
		t.Errorf("%d sizes of records that both wrote, want two keys'", both)
	}
}

func TestFillIsWhatTheLibraryWritesCompact(t *testing.T) {
	const tokens, expected = 3000, 50_000
	ours, fills := newBed(t), newBed(t)
	c := fills.masters[0]
	f := newFiller(c.Options().Addr)

	handled(t, ours, tokens, idem.WithCompact(redisstore.Compact{Tokens: expected}))
	// The descriptor ends with the retention and the buckets of a tag.
	d := ours.masters[0].Get(t.Context(), "idempotent:{0}:%d").Val()
	if want := "|86400000|" + strconv.Itoa(bucketsFor(expected)); !strings.HasSuffix(d, want) {
		t.Fatalf("the library's descriptor is %q, want %q at its end", d, want)
	}
	sets := keysOf(t, ours.masters[0], "*:%b:*")
	var sum int64
	err := f.insert(t.Context(), func(ins *inserter) error {
		goes := strconv.FormatInt(f.now.Add(2*idem.DefaultRetention).UnixMilli(), 10)
		for _, s := range sets {
			m := setShape.FindStringSubmatch(s.key)
			if m == nil || s.kind != "intset" {
				t.Errorf("the library wrote %s (%s)", s.key, s.kind)
				continue
			}
			tag, _ := strconv.Atoi(m[1])
			bucket, _ := strconv.Atoi(m[2])
			if tag >= fillTags || bucket >= bucketsFor(expected) || setKey(bucket*fillTags+tag, 0)[:len(s.key)-1] != s.key[:len(s.key)-1] {
				t.Errorf("the library wrote %s", s.key)
			}
			if s.left <= idem.DefaultRetention || s.left > 2*idem.DefaultRetention+time.Minute {
				t.Errorf("%s has %v left", s.key, s.left)
			}
			sum += s.members
			if err := f.set(ins, s.key, int(s.members), goes); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if sum != tokens {
		t.Errorf("%d tokens in the library's sets, want %d", sum, tokens)
	}
	for _, s := range sets {
		if got := c.MemoryUsage(t.Context(), s.key).Val(); got != s.bytes {
			t.Errorf("%s with %d tokens costs %d bytes, and %d where the library wrote it", s.key, s.members, got, s.bytes)
		}
	}

	// One at a time, or a bucket at once: as many tokens.
	for _, oneAtATime := range []bool{true, false} {
		fills.empty(t)
		if err := f.compact(t.Context(), tokens, expected, 1, oneAtATime); err != nil {
			t.Fatal(err)
		}
		n := int64(0)
		for _, s := range keysOf(t, c, "*:%b:*") {
			if n += s.members; s.kind != "intset" || s.left <= idem.DefaultRetention {
				t.Errorf("%s is %s and has %v left", s.key, s.kind, s.left)
			}
		}
		if n != tokens {
			t.Errorf("%d tokens, want %d", n, tokens)
		}
	}
}

// A command that Redis refuses is told, and so is a connection that ends.
func TestInserterTellsWhatWasRefused(t *testing.T) {
	c := newBed(t).masters[0]
	ins, err := newInserter(t.Context(), c.Options().Addr)
	if err != nil {
		t.Fatal(err)
	}
	err = ins.do("SET", "k", "v")
	if err == nil {
		err = ins.do("SADD", "k", "1")
	}
	if err = ins.end(err); err == nil || !strings.Contains(err.Error(), "command 2 was refused") || !strings.Contains(err.Error(), "WRONGTYPE") {
		t.Errorf("ended with %v, want what Redis said of command 2", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if ins, err = newInserter(ctx, c.Options().Addr); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := ins.end(nil); err == nil {
		t.Error("a connection that was closed ended without an error")
	}
}
