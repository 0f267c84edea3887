package bench

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// trips counts the round trips of a client: a pipeline is one.
type trips struct{ n atomic.Int64 }

// DialHook implements redis.Hook.
func (t *trips) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

// ProcessHook implements redis.Hook.
func (t *trips) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		t.n.Add(1)
		return next(ctx, cmd)
	}
}

// ProcessPipelineHook implements redis.Hook.
func (t *trips) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		t.n.Add(1)
		return next(ctx, cmds)
	}
}

// emptied has the server forget everything. It frees each key before it answers: seconds for
// millions.
func emptied(ctx context.Context, c *redis.Client) error {
	if err := c.WithTimeout(runLimit).FlushAll(ctx).Err(); err != nil {
		return fmt.Errorf("emptying Redis: %w", err)
	}
	return nil
}

// redisUse is what a Redis server has done.
type redisUse struct {
	cpu      time.Duration
	commands int64 // those that scripts call included
}

// useOf asks the server what it has done.
func useOf(ctx context.Context, c *redis.Client) (u redisUse, err error) {
	info, err := c.InfoMap(ctx, "cpu", "commandstats").Result()
	if err != nil {
		return u, fmt.Errorf("asking Redis what it used: %w", err)
	}
	for _, field := range []string{"used_cpu_user", "used_cpu_sys"} {
		seconds, err := strconv.ParseFloat(info["CPU"][field], 64)
		if err != nil {
			return u, fmt.Errorf("%s of Redis: %w", field, err)
		}
		u.cpu += time.Duration(seconds * float64(time.Second))
	}
	for name, stats := range info["Commandstats"] {
		if ofHarness[strings.TrimPrefix(name, "cmdstat_")] {
			continue
		}
		calls, _, _ := strings.Cut(strings.TrimPrefix(stats, "calls="), ",")
		n, err := strconv.ParseInt(calls, 10, 64)
		if err != nil {
			return u, fmt.Errorf("%s of Redis: %w", name, err)
		}
		u.commands += n
	}
	return u, nil
}

// ofHarness are the commands that connect, ask and empty.
var ofHarness = map[string]bool{"info": true, "flushall": true, "ping": true, "hello": true, "client|setinfo": true, "client|maint_notifications": true}
