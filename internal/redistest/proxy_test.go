package redistest

import (
	"context"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

func throughProxy(t *testing.T, retries int) (*Proxy, *redis.Client, *redis.Client) {
	t.Helper()
	s := Start(t, "--maxclients", "100")
	p := NewProxy(t, s.Addr())
	o := s.Options()
	o.Addr = p.Addr()
	o.MaxRetries = retries
	o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	c := redis.NewClient(o)
	t.Cleanup(func() { _ = c.Close() })
	if err := c.Ping(context.Background()).Err(); err != nil {
		t.Fatal(err)
	}
	return p, c, s.Client(t)
}

func TestSwallowReply(t *testing.T) {
	p, c, direct := throughProxy(t, -1)
	ctx := context.Background()
	p.SwallowReply("InCr")
	if err := c.Ping(ctx).Err(); err != nil {
		t.Fatalf("a command that does not match: %v", err)
	}
	if err := c.Incr(ctx, "n").Err(); err == nil {
		t.Fatal("the reply came through")
	}
	<-p.Swallowed()
	if n, err := direct.Get(ctx, "n").Int(); err != nil || n != 1 {
		t.Fatalf("executed %d times, %v", n, err)
	}
	if n, err := c.Incr(ctx, "n").Result(); err != nil || n != 2 {
		t.Fatalf("armed once, yet: %d, %v", n, err)
	}
}

func TestSwallowReplyInPipeline(t *testing.T) {
	p, c, direct := throughProxy(t, 1)
	ctx := context.Background()
	p.SwallowReply("")
	pipe := c.Pipeline()
	big := make([]byte, 300<<10)
	pipe.Incr(ctx, "n")
	pipe.Set(ctx, "big", big, 0)
	last := pipe.Incr(ctx, "n")
	if _, err := pipe.Exec(ctx); err != nil {
		t.Fatal(err)
	}
	<-p.Swallowed()
	if last.Val() < 3 {
		t.Fatalf("the pipeline was resent after its first command, yet the last of it answered %d", last.Val())
	}
	if n, err := direct.StrLen(ctx, "big").Result(); err != nil || int(n) != len(big) {
		t.Fatalf("%d bytes, %v", n, err)
	}
}

func TestCut(t *testing.T) {
	p, c, _ := throughProxy(t, -1)
	ctx := context.Background()
	p.Cut()
	before := p.Conns()
	if err := c.Ping(ctx).Err(); err == nil {
		t.Fatal("answered while cut")
	}
	if err := c.Ping(ctx).Err(); err == nil {
		t.Fatal("answered while cut")
	}
	if p.Conns() == before {
		t.Fatal("no connection was counted while cut")
	}
	p.Restore()
	if err := c.Ping(ctx).Err(); err != nil {
		t.Fatal(err)
	}
}

func TestHold(t *testing.T) {
	p, c, direct := throughProxy(t, -1)
	p.Hold()
	before := p.Requests()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := c.Incr(ctx, "n").Err(); err == nil {
		t.Fatal("answered while held")
	}
	if n := p.Requests() - before; n != 1 {
		t.Fatalf("%d round trips were counted while held", n)
	}
	if n, _ := direct.Exists(context.Background(), "n").Result(); n != 0 {
		t.Fatal("executed while held")
	}
	p.Unhold()
	if err := c.Ping(context.Background()).Err(); err != nil {
		t.Fatal(err)
	}
}

func TestRequestsCountRoundTrips(t *testing.T) {
	p, c, _ := throughProxy(t, -1)
	ctx := context.Background()
	before := p.Requests()
	pipe := c.Pipeline()
	for range 1000 {
		pipe.Set(ctx, "k", "a value of some length", 0)
	}
	if _, err := pipe.Exec(ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.Ping(ctx).Err(); err != nil {
		t.Fatal(err)
	}
	// Redis may answer the head of a long pipeline while its end is on the way.
	if n := p.Requests() - before; n < 2 || n > 20 {
		t.Fatalf("%d round trips for a pipeline and a PING", n)
	}
}
