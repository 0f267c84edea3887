package redisstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"

	"github.com/idemq/idemq/idem/store"
)

// Verify implements store.Store. It asks each primary for the rights of the client's
// user, its clock, version, state and settings, compares the descriptor, if there is one,
// and runs the script on nothing. A right that the store needs and the user lacks is an
// error; one that only Verify needs is a finding.
func (s *Store) Verify(ctx context.Context, prefix string) (findings []store.Finding, err error) {
	if s.err != nil {
		return nil, s.err
	}
	p := s.known(prefix)
	var mu sync.Mutex
	err = s.eachPrimary(ctx, func(ctx context.Context, c *redis.Client) error {
		f, err := s.examine(ctx, c, p)
		mu.Lock()
		defer mu.Unlock()
		findings = append(findings, f...)
		return err
	})
	if err != nil && !strings.HasPrefix(err.Error(), "redisstore: ") {
		err = s.failure(ctx, p, "asking for the servers", err) // the client's own
	}
	if err != nil {
		return nil, err
	}
	switch v, err := s.read(ctx, p); {
	case errors.Is(err, redis.Nil): // made at first use
	case err != nil:
		return nil, s.failure(ctx, p, fmt.Sprintf("reading the descriptor %q", p.keys.descriptor()), err)
	default:
		if _, err := s.agree(p, v); err != nil {
			return nil, err
		}
	}
	if err := s.tryScript(ctx, p); err != nil {
		return nil, err
	}
	if f, slow := s.clientFinding(); slow {
		findings = append(findings, f)
	}
	slices.SortFunc(findings, func(a, b store.Finding) int { return cmp.Compare(a.String(), b.String()) })
	return slices.Compact(findings), nil
}

// tryScript executes no operations, and sets no epoch.
func (s *Store) tryScript(ctx context.Context, p *prefix) error {
	c := &call{scripts: s.scripts(), trial: true}
	c.choose()
	x := &execution{s: s, p: p, terms: p.arguments(&store.Batch{})}
	err := x.queue(ctx, s.client, c).Err()
	if isNoScript(err) {
		c.whole = true
		err = x.queue(ctx, s.client, c).Err()
	}
	if err != nil {
		return s.failure(ctx, p, "running a script", err)
	}
	return nil
}

// eachPrimary calls fn for each server that takes writes, for several at once, and returns
// fn's error, or the client's.
func (s *Store) eachPrimary(ctx context.Context, fn func(context.Context, *redis.Client) error) error {
	switch c := s.client.(type) {
	case *redis.Client:
		return fn(ctx, c)
	case *redis.ClusterClient:
		return c.ForEachMaster(ctx, fn)
	case *redis.Ring:
		return c.ForEachShard(ctx, fn)
	}
	return nil
}

// examine looks at one server.
func (s *Store) examine(ctx context.Context, c *redis.Client, p *prefix) ([]store.Finding, error) {
	sv := &server{name: "Redis at " + c.Options().Addr, replicas: s.replicas}
	if c.Options().Addr == failoverAddr {
		sv.name, sv.watched = "The primary that Sentinel names", true
	}
	sent := s.now()
	a, err := s.askRights(ctx, c, p)
	if err != nil {
		return nil, s.failure(ctx, p, "asking "+sv.name+" for the rights of the client's user", err)
	}
	if len(a.denied) > 0 {
		return nil, lacking(sv.name, a.denied, nil)
	}
	sv.clock, sv.sent, sv.answered = a.clock, sent, s.now()

	text, err := c.Info(ctx, "everything").Result()
	switch {
	case err == nil:
		sv.info = parseInfo(text)
	case isDenied(err) || redis.HasErrorPrefix(err, "unknown command"):
		return append(sv.clockFinding(), sv.infoDenied()), nil
	default:
		return nil, s.failure(ctx, p, "asking "+sv.name+" for INFO", err)
	}
	if err := sv.usable(); err != nil {
		return nil, err
	}
	get := redis.NewMapStringStringCmd(ctx, append([]any{"config", "get"}, settings...)...)
	_ = c.Process(ctx, get)
	config, err := get.Result()
	switch {
	case err == nil:
		sv.config = config
	case isDenied(err) || redis.HasErrorPrefix(err, "unknown command"):
		sv.mute = true
	default:
		return nil, s.failure(ctx, p, "asking "+sv.name+" for CONFIG GET", err)
	}
	return sv.findings(), nil
}
