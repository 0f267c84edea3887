package redisstore

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/idemq/idemq/idem/store"
)

// needs is what every message about a server's age ends with.
const needs = "needs Redis 7.0 or later, or Valkey 8 or later"

// refusals are what Redis answers when it will not do something, by how the answer
// begins, and what to do.
var refusals = []struct{ prefix, cure string }{
	{"NOAUTH", "give the client a username and a password"},
	{"WRONGPASS", "the client's username or password is not right"},
	{"NOPERM", "allow the client's user the commands EVAL, EVALSHA, GET, SET, PEXPIRE, PTTL and TIME on the keys of the prefix"},
	{"READONLY", "this is a replica: connect to the primary, through Sentinel or a cluster client if it changes"},
	{"OOM", "Redis is at maxmemory: raise it, or shorten the retention"},
	{"MISCONF", "Redis cannot save its data and takes no writes: see its log and its disk"},
	{"NOREPLICAS", "Redis has fewer replicas than min-replicas-to-write: see to the replicas"},
	{"MOVED", "this is a node of a cluster: use redis.NewClusterClient"},
	{"ASK", "this is a node of a cluster: use redis.NewClusterClient"},
	{"CROSSSLOT", "this is a cluster: use redis.NewClusterClient"},
	{"WRONGTYPE", "another program uses keys of this prefix: choose another prefix"},
	{"ERR unknown command", "the server " + needs + ", with scripts allowed"},
	{"ERR Error compiling script", "the server " + needs},
	{"ERR syntax error", "the server " + needs},
}

// outages are answers that mean "not now": they pass by themselves.
var outages = []string{
	"LOADING", "CLUSTERDOWN", "TRYAGAIN", "MASTERDOWN", "BUSY", "UNKILLABLE", "ERR max number of clients",
	"UNBLOCKED", "ERR WAIT cannot be used with replica", // the primary was made a replica
}

// redirections are answers of a cluster whose slots have gone elsewhere. Its client follows
// them, but not for ever, and not on the connection of one node.
var redirections = []string{"MOVED", "ASK", "READONLY"}

// failure says what went wrong while doing what. It wraps store.ErrUnavailable
// unless Redis answered and will answer the same again.
func failure(doing string, err error) error {
	if !isReply(err) {
		return fmt.Errorf("redisstore: %s: %w: %w", doing, store.ErrUnavailable, err)
	}
	for _, prefix := range outages {
		if redis.HasErrorPrefix(err, strings.TrimPrefix(prefix, "ERR ")) {
			return fmt.Errorf("redisstore: %s: %w: %w", doing, store.ErrUnavailable, err)
		}
	}
	for _, r := range refusals {
		if redis.HasErrorPrefix(err, strings.TrimPrefix(r.prefix, "ERR ")) {
			return fmt.Errorf("redisstore: %s: %w (%s)", doing, err, r.cure)
		}
	}
	return fmt.Errorf("redisstore: %s: %w", doing, err)
}

// rerouted returns failure, which was made of err, or the better one if err is a
// cluster's that moves slots. A cluster's client is told to look for the homes of the
// slots: by itself it does so when it is redirected only, and would ask a primary that
// died for its ClusterStateReloadInterval, a minute by default.
func (s *Store) rerouted(ctx context.Context, err, failure error) error {
	cluster, ok := s.client.(*redis.ClusterClient)
	if !ok || errors.Is(err, redis.ErrClosed) || errors.Is(err, context.Canceled) {
		return failure
	}
	for _, prefix := range redirections {
		if redis.HasErrorPrefix(err, prefix) {
			failure = fmt.Errorf("redisstore: %w: the cluster is moving slots: %w", store.ErrUnavailable, err)
		}
	}
	if errors.Is(failure, store.ErrUnavailable) {
		cluster.ReloadState(ctx)
	}
	return failure
}

// isReply tells whether err was said by Redis.
func isReply(err error) bool {
	var reply redis.Error
	return errors.As(err, &reply) && !errors.Is(err, redis.Nil)
}

func isNoScript(err error) bool  { return redis.HasErrorPrefix(err, "NOSCRIPT") }
func isFull(err error) bool      { return redis.HasErrorPrefix(err, "OOM") }
func isCrossSlot(err error) bool { return redis.HasErrorPrefix(err, "CROSSSLOT") }

// isHelped tells whether a refused call is sent again in another form.
func isHelped(err error) bool { return isNoScript(err) || isFull(err) || isCrossSlot(err) }
