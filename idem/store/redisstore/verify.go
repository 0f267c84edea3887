package redisstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"

	"github.com/idemq/idemq/idem/store"
)

// Verify implements store.Store. It asks each primary for its version and settings,
// compares the descriptor, if there is one, and runs the script on nothing. What a
// server does not allow to be asked is a finding.
func (s *Store) Verify(ctx context.Context, prefix string) (findings []store.Finding, err error) {
	if s.err != nil {
		return nil, s.err
	}
	var mu sync.Mutex
	err = s.eachPrimary(ctx, func(ctx context.Context, c *redis.Client) error {
		w, err := examine(ctx, c)
		mu.Lock()
		defer mu.Unlock()
		findings = append(findings, w...)
		return err
	})
	if err != nil {
		return nil, err
	}
	p := s.known(prefix)
	switch v, err := s.client.Get(ctx, p.keys.descriptor()).Result(); {
	case errors.Is(err, redis.Nil): // made at first use
	case err != nil:
		return nil, failure(fmt.Sprintf("reading the descriptor %q", p.keys.descriptor()), err)
	default:
		if _, err := s.agree(p, v); err != nil {
			return nil, err
		}
	}
	if err := s.tryScript(ctx, p); err != nil {
		return nil, err
	}
	slices.SortFunc(findings, func(a, b store.Finding) int { return cmp.Compare(a.String(), b.String()) })
	return slices.Compact(findings), nil
}

// tryScript executes no operations, and sets no epoch.
func (s *Store) tryScript(ctx context.Context, p *prefix) error {
	c := &call{}
	c.choose()
	common := terms(&store.Batch{})
	keys, args := c.pack(p, &common, false)
	args[0] = ""
	err := s.client.EvalSha(ctx, c.script.sha, keys, args...).Err()
	if isNoScript(err) {
		err = s.client.Eval(ctx, c.script.source, keys, args...).Err()
	}
	if err != nil {
		return failure("running a script", err)
	}
	return nil
}

// eachPrimary calls fn for each server that takes writes, for several at once.
func (s *Store) eachPrimary(ctx context.Context, fn func(context.Context, *redis.Client) error) error {
	switch c := s.client.(type) {
	case *redis.Client:
		return fn(ctx, c)
	case *redis.ClusterClient:
		if err := c.ForEachMaster(ctx, fn); err != nil {
			return wrapped("asking the cluster's nodes", err)
		}
	case *redis.Ring:
		if err := c.ForEachShard(ctx, fn); err != nil {
			return wrapped("asking the shards", err)
		}
	}
	return nil
}

// wrapped is failure for errors that may have been through it.
func wrapped(doing string, err error) error {
	if strings.HasPrefix(err.Error(), "redisstore: ") {
		return err
	}
	return failure(doing, err)
}

// examine looks at one server.
func examine(ctx context.Context, c *redis.Client) ([]store.Finding, error) {
	addr := c.Options().Addr
	if err := c.Ping(ctx).Err(); err != nil {
		return nil, failure("reaching "+addr, err)
	}
	text, err := c.Info(ctx, "everything").Result()
	if err != nil {
		if !redis.IsPermissionError(err) && !redis.HasErrorPrefix(err, "unknown command") {
			return nil, failure("asking "+addr+" for INFO", err)
		}
		return []store.Finding{{
			ID:          "redis-info-denied",
			What:        fmt.Sprintf("Redis at %s does not allow INFO to be asked.", addr),
			Consequence: "Its version, eviction policy, persistence and replication are not known: it may forget tokens.",
			Cure:        "Give the user the right to INFO (ACL +info).",
		}}, nil
	}
	sv := server{addr: addr, info: parseInfo(text)}
	if err := sv.usable(); err != nil {
		return nil, err
	}
	sv.config, sv.mute = askConfig(ctx, c)
	return sv.findings(), nil
}

// server is what one server says of itself.
type server struct {
	addr   string
	info   map[string]string
	config map[string]string
	mute   bool // CONFIG GET is not allowed
}

func parseInfo(text string) map[string]string {
	info := make(map[string]string)
	for line := range strings.SplitSeq(text, "\n") {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			info[k] = v
		}
	}
	return info
}

func askConfig(ctx context.Context, c *redis.Client) (config map[string]string, mute bool) {
	config = make(map[string]string)
	for _, name := range []string{"save", "appendfsync", "maxmemory-policy", "min-replicas-to-write"} {
		v, err := c.ConfigGet(ctx, name).Result()
		if err != nil {
			return nil, true
		}
		maps.Copy(config, v)
	}
	return config, false
}

// usable is an error if the store cannot work with this server at all.
func (sv *server) usable() error {
	v := sv.info["redis_version"]
	if valkey := sv.info["valkey_version"]; valkey == "" && major(v) < 7 {
		return fmt.Errorf("redisstore: the server at %s is Redis %s: the store %s", sv.addr, v, needs)
	}
	if sv.info["role"] == "slave" {
		return fmt.Errorf("redisstore: the server at %s is a replica and takes no writes: connect to the primary, "+
			"through Sentinel or a cluster client if it changes", sv.addr)
	}
	return nil
}

func major(version string) int {
	s, _, _ := strings.Cut(version, ".")
	n, err := strconv.Atoi(s)
	if err != nil {
		return 7 // not a number that says otherwise
	}
	return n
}

// What Redis forgets.
const forgets = "The tokens it forgets can then be handled again."

func (sv *server) findings() []store.Finding {
	var found []store.Finding
	add := func(id, cure, format string, args ...any) {
		found = append(found, store.Finding{
			ID: id, What: fmt.Sprintf("Redis at %s ", sv.addr) + fmt.Sprintf(format, args...), Consequence: forgets, Cure: cure,
		})
	}

	policy := sv.info["maxmemory_policy"]
	if policy == "" {
		policy = sv.config["maxmemory-policy"]
	}
	limit := "once a maxmemory is set"
	if n := sv.info["maxmemory"]; n != "" && n != "0" {
		limit = "at its maxmemory of " + n + " bytes"
	}
	if policy != "" && policy != "noeviction" {
		add("redis-eviction", "Set maxmemory-policy to noeviction.", "has the eviction policy %s: %s it forgets tokens.", policy, limit)
	}

	aof := sv.info["aof_enabled"] == "1"
	switch {
	case sv.mute:
		add("redis-config-denied", "Give the user the right to CONFIG GET (ACL +config|get).",
			"does not allow CONFIG GET: whether it saves its data, and how often, is not known in full.")
	case !aof && sv.config["save"] == "":
		add("redis-no-persistence", "Set appendonly to yes.", "saves nothing: a restart forgets all tokens.")
	case !aof:
		add("redis-snapshots-only", "Set appendonly to yes.",
			"saves snapshots only (save %q): a crash forgets the tokens since the last.", sv.config["save"])
	case sv.config["appendfsync"] == "no":
		add("redis-appendfsync", "Set appendfsync to everysec or always.",
			"has appendfsync no: a crash of its machine forgets the tokens of up to half a minute.")
	}

	n, _ := strconv.Atoi(sv.info["connected_slaves"])
	for i := range n {
		if at, state, lag := sv.replica(i); state != "online" || lag >= lagging {
			add("redis-replica-lag", "See to the replica.",
				"has a replica, %s, that lags (%s, last heard of %d s ago): a failover to it forgets tokens.", at, state, lag)
		}
	}
	if n > 0 && !sv.mute && sv.config["min-replicas-to-write"] == "0" {
		add("redis-min-replicas", "Set min-replicas-to-write, or use WithReplicas.",
			"has replicas and takes writes without them (min-replicas-to-write 0): a failover can forget what was acknowledged.")
	}
	return found
}

// lagging is from how many seconds without a word a replica is called late; a
// replica reports each second.
const lagging = 10

func (sv *server) replica(i int) (at, state string, lag int) {
	for part := range strings.SplitSeq(sv.info["slave"+strconv.Itoa(i)], ",") {
		switch k, v, _ := strings.Cut(part, "="); k {
		case "state":
			state = v
		case "lag":
			lag, _ = strconv.Atoi(v)
		case "ip", "port":
			at += ":" + v
		}
	}
	return strings.TrimPrefix(at, ":"), state, lag
}
