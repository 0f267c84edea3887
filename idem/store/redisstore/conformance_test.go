package redisstore_test

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/redisstore"
	"github.com/idemq/idemq/idem/store/storetest"
	"github.com/idemq/idemq/internal/redistest"
)

// unit is the suite's lease; histories wait for some thousand of shortUnit.
const (
	unit      = 60 * time.Millisecond
	shortUnit = 20 * time.Millisecond
)

// harness runs the suite on a client.
func harness(c redis.UniversalClient, lease time.Duration) storetest.Harness {
	return storetest.Harness{
		Open:  func(testing.TB) store.Store { return redisstore.New(c) },
		Wait:  func(tb testing.TB, d time.Duration) { waitFor(tb, c, d) },
		Lease: lease,
		Corrupt: func(tb testing.TB, _ store.Store, prefix, group, token string, how storetest.Corruption) {
			corrupt(tb, c, recordKey(tb, c, prefix, group, token), how)
		},
	}
}

// waitFor returns when d has passed on every server's clock.
func waitFor(tb testing.TB, c redis.UniversalClient, d time.Duration) {
	tb.Helper()
	ctx := context.Background()
	wait := func(ctx context.Context, c *redis.Client) error {
		now, err := c.Time(ctx).Result()
		for end := now.Add(d); err == nil && !now.After(end); now, err = c.Time(ctx).Result() {
			<-time.After(end.Sub(now) + time.Millisecond) // and look at the server's clock again
		}
		return err
	}
	var err error
	if cluster, ok := c.(*redis.ClusterClient); ok {
		err = cluster.ForEachMaster(ctx, wait)
	} else {
		err = wait(ctx, c.(*redis.Client))
	}
	if err != nil {
		tb.Fatal(err)
	}
}

// recordKey finds a record's key without knowing its tag. The suite corrupts
// records of plain names only.
func recordKey(tb testing.TB, c redis.UniversalClient, prefix, group, token string) string {
	tb.Helper()
	for tag := range 64 {
		key := fmt.Sprintf("%s:{%d}:%s:%s", prefix, tag, group, token)
		if n, err := c.Exists(context.Background(), key).Result(); err != nil {
			tb.Fatal(err)
		} else if n == 1 {
			return key
		}
	}
	tb.Fatalf("there is no record of prefix %q, group %q, token %q", prefix, group, token)
	return ""
}

func corrupt(tb testing.TB, c redis.UniversalClient, key string, how storetest.Corruption) {
	tb.Helper()
	ctx := context.Background()
	var err error
	switch how {
	case storetest.WrongType:
		if err = c.Del(ctx, key).Err(); err == nil {
			err = c.LPush(ctx, key, "x").Err()
		}
	case storetest.Garbage:
		err = c.Set(ctx, key, "garbage", 0).Err()
	case storetest.NewerVersion:
		err = c.Set(ctx, key, "2p|of another shape", 0).Err()
	}
	if err != nil {
		tb.Fatal(err)
	}
}

// named gives a harness its name in reports.
func named(t *testing.T, h storetest.Harness, name string, c redis.UniversalClient) storetest.Harness {
	t.Helper()
	h.Name, h.Server = name, serverVersion(t, c)
	return h
}

// serverVersion is what a server calls itself.
func serverVersion(t *testing.T, c redis.UniversalClient) string {
	t.Helper()
	text, err := c.Info(context.Background(), "server").Result()
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"valkey", "redis"} {
		if m := regexp.MustCompile(kind + `_version:(\S+)`).FindStringSubmatch(text); m != nil {
			return strings.ToUpper(kind[:1]) + kind[1:] + " " + m[1]
		}
	}
	t.Fatalf("no version in %s", text)
	return ""
}

func TestStore(t *testing.T) {
	t.Parallel()
	versions := redistest.Versions(t)
	for _, v := range versions {
		t.Run(v.Name, func(t *testing.T) {
			t.Parallel()
			c := v.Start(t).Client(t)
			storetest.Run(t, named(t, harness(c, unit), v.Name, c))
		})
	}
	first := versions[0].Name
	t.Run("Sentinel", func(t *testing.T) {
		t.Parallel()
		c := redistest.StartSentinel(t, 1).Client(t)
		storetest.Run(t, named(t, harness(c, unit), first+", Sentinel", c))
	})
	t.Run("TLS", func(t *testing.T) {
		t.Parallel()
		c := redistest.StartTLS(t).Client(t)
		storetest.Run(t, named(t, harness(c, unit), first+", TLS", c))
	})
}

func TestHistories(t *testing.T) {
	t.Parallel()
	storetest.Histories(t, harness(redistest.Start(t).Client(t), shortUnit))
}

func TestStoreOnCluster(t *testing.T) {
	t.Parallel()
	c := redistest.StartCluster(t).Client(t)
	storetest.Run(t, named(t, harness(c, unit), redistest.Versions(t)[0].Name+", Cluster", c))
}

func TestHistoriesOnCluster(t *testing.T) {
	t.Parallel()
	storetest.Histories(t, harness(redistest.StartCluster(t).Client(t), shortUnit))
}
