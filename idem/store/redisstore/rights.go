package redisstore

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// right is what a user is allowed by one rule of its ACL.
type right struct {
	rule string
	call string // a command that needs it, as rights.lua takes it
}

// The rights beside the one to the keys. docs/redis.md and the package's doc list them,
// and the tests run with exactly that list.
var (
	storeRights = []right{
		{"+eval", "eval x 0"},
		{"+evalsha", "evalsha x 0"},
		{"+get", "get K"},
		{"+set", "set K x"},
		{"+pttl", "pttl K"},
		{"+time", "time"},
	}
	clusterRights = []right{
		{"+cluster|slots", "cluster slots"},
		{"+asking", "asking"},
	}
	replicaRights = []right{{"+wait", "wait 1 1"}}
	compactRights = []right{
		{"+del", "del K"},
		{"+pexpireat", "pexpireat K 1"},
		{"+pexpiretime", "pexpiretime K"},
		{"+sadd", "sadd K 1"},
		{"+sismember", "sismember K 1"},
		{"+srem", "srem K 1"},
	}
)

// rights are what this store's user needs.
func (s *Store) rights() []right {
	all := slices.Clone(storeRights)
	if _, cluster := s.client.(*redis.ClusterClient); cluster {
		all = append(all, clusterRights...)
	}
	if s.replicas > 0 {
		all = append(all, replicaRights...)
	}
	if s.compact != nil {
		all = append(all, compactRights...)
	}
	return all
}

// asked is what a server says of its user's rights, and of its clock.
type asked struct {
	denied []string  // the rules that the user lacks
	clock  time.Time // zero: not known
}

// askRights asks one server what the user lacks.
func (s *Store) askRights(ctx context.Context, c *redis.Client, p *prefix) (a asked, err error) {
	all := s.rights()
	keys := []any{p.keys.descriptor(), p.keys.epoch(0), p.keys.record(0, "g", "t"), p.keys.issued(0, "t"), p.keys.incarnation("n")}
	args := append([]any{len(keys)}, keys...)
	for _, r := range all {
		args = append(args, r.call)
	}
	cmd := c.EvalSha(ctx, rightsScript.sha, nil, args...)
	if isNoScript(cmd.Err()) || isDenied(cmd.Err()) {
		cmd = c.Eval(ctx, rightsScript.source, nil, args...)
	}
	v, err := cmd.StringSlice()
	if err != nil {
		return asked{}, err
	}
	if len(v) < 2 {
		return asked{}, fmt.Errorf("redisstore: the rights script answered %q", v)
	}
	if micros, err := strconv.ParseInt(v[0], 10, 64); err == nil {
		a.clock = time.UnixMicro(micros)
	}
	if v[1] == "1" {
		a.denied = append(a.denied, p.keys.pattern())
	}
	for _, no := range v[2:] {
		i, err := strconv.Atoi(no)
		if err != nil || i < 1 || i > len(all) {
			return asked{}, fmt.Errorf("redisstore: the rights script answered %q", v)
		}
		a.denied = append(a.denied, all[i-1].rule)
	}
	return a, nil
}

// isDenied tells whether Redis refused a command, or one in a script, for want of a
// right.
func isDenied(err error) bool {
	return redis.HasErrorPrefix(err, "NOPERM") || redis.HasErrorPrefix(err, "ACL failure in script") ||
		redis.HasErrorPrefix(err, "The user executing the script can't") // Redis 7.0
}

var deniedCommand = regexp.MustCompile(`permissions to run the '([^']+)' command`)

// lacking is the error for missing rights; none: they are not known.
func lacking(doing string, lacks []string, err error) error {
	if len(lacks) == 0 {
		return explain(doing, err)
	}
	slices.Sort(lacks)
	lacks = slices.Compact(lacks)
	const cure = "the client's user lacks %s: give it with ACL SETUSER, on each server"
	text := fmt.Sprintf(cure, strings.Join(lacks, " "))
	if err == nil {
		return fmt.Errorf("redisstore: %s: %s", doing, text)
	}
	return fmt.Errorf("redisstore: %s: %w (%s)", doing, err, text)
}
