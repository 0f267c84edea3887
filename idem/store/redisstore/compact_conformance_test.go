package redisstore_test

import (
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/redisstore"
	"github.com/idemq/idemq/idem/store/storetest"
	"github.com/idemq/idemq/internal/redistest"
)

// roomy are settings that the suite's retentions fit in.
var roomy = redisstore.Compact{Retention: 3 * time.Hour, Tokens: 100_000}

func compactHarness(c redis.UniversalClient, lease time.Duration) storetest.Harness {
	h := harness(c, lease)
	h.Open = func(testing.TB) store.Store { return redisstore.New(c, redisstore.WithCompact(roomy)) }
	return h
}

func TestCompactStore(t *testing.T) {
	t.Parallel()
	for _, v := range redistest.Versions(t) {
		t.Run(v.Name, func(t *testing.T) {
			t.Parallel()
			c := v.Start(t).Client(t)
			storetest.Run(t, named(t, compactHarness(c, unit), v.Name+", compact", c))
		})
	}
}

func TestCompactHistories(t *testing.T) {
	t.Parallel()
	storetest.Histories(t, compactHarness(redistest.Start(t).Client(t), shortUnit))
}

func TestCompactStoreOnCluster(t *testing.T) {
	t.Parallel()
	c := redistest.StartCluster(t).Client(t)
	storetest.Run(t, named(t, compactHarness(c, unit), redistest.Versions(t)[0].Name+", Cluster, compact", c))
}

func TestCompactHistoriesOnCluster(t *testing.T) {
	t.Parallel()
	storetest.Histories(t, compactHarness(redistest.StartCluster(t).Client(t), shortUnit))
}
