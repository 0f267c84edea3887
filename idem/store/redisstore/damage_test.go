package redisstore_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/redisstore"
	"github.com/idemq/idemq/internal/redistest"
)

// Every number of a record, damaged: that record cannot be read, is left as it is, and
// fails no neighbour in its batch.
func TestDamagedNumbers(t *testing.T) {
	t.Parallel()
	c := redistest.Start(t).Client(t)
	ctx := context.Background()
	s := redisstore.New(c)
	if r := apply(t, s, batch("p", op(store.Begin, "bad", "seed"))); r[0].Status != store.Claimed {
		t.Fatalf("%+v", r)
	}
	key := c.Keys(ctx, "*:g:*").Val()[0]
	whole := map[string]string{
		"in progress": c.Get(ctx, key).Val(),
		"released":    "1r|seed|1|0|0|0|||",
		"forgotten":   "1f|seed|1|0|0|0||1|seed",
		"done, short": "1d|seed|1700000000000",
		"done":        "1d|seed|1700000000000|2|0||||0|0|r",
		"dead":        "1x|seed|1700000000000|2|0||||0|0|",
	}
	n := 0
	for state, record := range whole {
		fields := strings.Split(record, "|")
		for i := 2; i < len(fields); i++ {
			if fields[i] == "" || strings.Trim(fields[i], "0123456789") != "" {
				continue // no number
			}
			for _, bad := range []string{strings.Repeat("9", 25), "-1", "1e5", ""} {
				damaged := append([]string(nil), fields...)
				damaged[i] = bad
				value := strings.Join(damaged, "|")
				if bad == "" && state == "forgotten" && i == 7 {
					continue // a fence may be missing
				}
				for _, kind := range []store.Kind{store.Begin, store.Commit, store.Release, store.Renew, store.Bury, store.Spend, store.Forget, store.Inspect} {
					if err := c.Set(ctx, key, value, time.Hour).Err(); err != nil {
						t.Fatal(err)
					}
					bad := op(kind, "bad", "seed")
					bad.Attempt = 1
					bad.Result = []byte("r") // a Commit that has to read the record
					n++
					replies := apply(t, s, batch("p", bad, op(store.Begin, fmt.Sprint("neighbour", n), "n")))
					if !errors.Is(replies[0].Err, store.ErrUnreadable) {
						t.Errorf("%s, kind %d, on %q: %+v, want ErrUnreadable", state, kind, value, replies[0])
					}
					if replies[1].Status != store.Claimed {
						t.Errorf("%s, kind %d, on %q: its neighbour got %+v", state, kind, value, replies[1])
					}
					if now := c.Get(ctx, key).Val(); now != value {
						t.Errorf("%s, kind %d, on %q: it was overwritten with %q", state, kind, value, now)
					}
				}
			}
		}
	}
	if n < 500 {
		t.Errorf("only %d damaged records were tried", n)
	}
}
