package redisstore

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"

	"github.com/idemq/idemq/idem/store"
)

// needs is what every message about a server's age ends with.
const needs = "needs Redis 7.0 or later, or Valkey 8 or later"

// answers are what Redis says when it will not do something, by how the answer begins,
// and what to do. What passes by itself is an outage, waited for like a server that is
// away; the others are refusals, which stand until somebody acts.
var answers = []struct {
	prefix string
	outage bool
	cure   string
}{
	{"LOADING", true, "Redis is loading its data; if that takes long, see its log"},
	{"CLUSTERDOWN", true, "the cluster misses slots: see CLUSTER INFO and to its failed nodes"},
	{"TRYAGAIN", true, "the cluster is moving slots"},
	{"MASTERDOWN", true, "this is a replica that has lost its primary: connect to the primary, through Sentinel or a cluster client if it changes"},
	{"BUSY", true, "a script of another program runs for long: see SLOWLOG, or end it with SCRIPT KILL"},
	{"UNKILLABLE", true, "a script of another program runs for long: see SLOWLOG"},
	{"ERR max number of clients", true, "raise Redis' maxclients, or lower the clients' PoolSize"},
	{"UNBLOCKED", true, "the primary was made a replica"},
	{"ERR WAIT cannot be used with replica", true, "the primary was made a replica"},

	{"NOAUTH", false, "give the client a username and a password"},
	{"ERR Protocol error: unauthenticated", false, "give the client a username and a password"}, // to a long command
	{"WRONGPASS", false, "the client's username or password is not right, or ACL SETUSER has not made the user on this server"},
	{"NOPERM", false, "the client's user lacks a right: docs/redis.md lists what it needs"},
	{"READONLY", false, "this is a replica: connect to the primary, through Sentinel or a cluster client if it changes"},
	{"OOM", false, "Redis is at maxmemory: raise it, or shorten the retention"},
	{"MISCONF", false, "Redis cannot save its data and takes no writes until it can: see its log, and whether its disk is full or read-only"},
	{"NOREPLICAS", false, "Redis has fewer replicas than min-replicas-to-write: see to the replicas"},
	{"MOVED", false, "this is a node of a cluster: use redis.NewClusterClient"},
	{"ASK", false, "this is a node of a cluster: use redis.NewClusterClient"},
	{"CROSSSLOT", false, "this is a cluster: use redis.NewClusterClient"},
	{"WRONGTYPE", false, "another program uses keys of this prefix: choose another prefix"},
	{"ERR unknown command", false, "the server " + needs + ", with scripts allowed"},
	{"ERR Error compiling script", false, "the server " + needs},
	{"ERR syntax error", false, "the server " + needs},
}

// redirections are answers of a cluster whose slots have gone elsewhere. Its client follows
// them, but not for ever, and not on the connection of one node.
var redirections = []string{"MOVED", "ASK", "READONLY"}

// explain says what went wrong while doing what. It wraps store.ErrUnavailable
// unless Redis answered and will answer the same again, or the client was closed.
func explain(doing string, err error) error {
	if errors.Is(err, redis.ErrClosed) {
		return fmt.Errorf("redisstore: %s: %w (it was closed by this program: close it after its last use)", doing, err)
	}
	if !isReply(err) {
		return fmt.Errorf("redisstore: %s: %w: %w", doing, store.ErrUnavailable, err)
	}
	for _, a := range answers {
		if !redis.HasErrorPrefix(err, strings.TrimPrefix(a.prefix, "ERR ")) {
			continue
		}
		if a.outage {
			return fmt.Errorf("redisstore: %s: %w: %w (%s)", doing, store.ErrUnavailable, err, a.cure)
		}
		return fmt.Errorf("redisstore: %s: %w (%s)", doing, err, a.cure)
	}
	return fmt.Errorf("redisstore: %s: %w", doing, err)
}

// failure says what went wrong while doing what: as explain does, but that it
// names the rights that are missing, and that what a failover passes by is an outage.
func (s *Store) failure(ctx context.Context, p *prefix, doing string, err error) error {
	if !isDenied(err) {
		return s.rerouted(ctx, err, explain(doing, err))
	}
	var mu sync.Mutex
	var lacks []string
	_ = s.eachPrimary(ctx, func(ctx context.Context, c *redis.Client) error {
		a, err := s.askRights(ctx, c, p)
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		lacks = append(lacks, a.denied...)
		return nil
	})
	if m := deniedCommand.FindStringSubmatch(err.Error()); len(lacks) == 0 && m != nil {
		lacks = []string{"+" + m[1]}
	}
	return lacking(doing, lacks, err)
}

// rerouted returns failure, which was made of err, or the better one if err is a
// cluster's that moves slots. A cluster's client is told to look for the homes of the
// slots: by itself it does so when it is redirected only, and would ask a primary that
// died for its ClusterStateReloadInterval, a minute by default.
func (s *Store) rerouted(ctx context.Context, err, failure error) error {
	if s.underSentinel() && redis.HasErrorPrefix(err, "READONLY") {
		return fmt.Errorf("redisstore: %w: Sentinel is making another server the primary: %w", store.ErrUnavailable, err)
	}
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

// partly marks a failure as that of a part of the store, where it is the refusal of one server of
// several.
func (s *Store) partly(failure error) error {
	if s.several && isReply(failure) && !errors.Is(failure, store.ErrUnavailable) {
		return fmt.Errorf("%w: %w", store.ErrRefused, failure)
	}
	return failure
}

// failoverAddr is what go-redis calls the address of a client that asks Sentinel.
const failoverAddr = "FailoverClient"

func (s *Store) underSentinel() bool {
	c, ok := s.client.(*redis.Client)
	return ok && c.Options().Addr == failoverAddr
}

// isReply tells whether err was said by Redis.
func isReply(err error) bool {
	var reply redis.Error
	return errors.As(err, &reply) && !errors.Is(err, redis.Nil)
}

func isNoScript(err error) bool  { return redis.HasErrorPrefix(err, "NOSCRIPT") }
func isFull(err error) bool      { return redis.HasErrorPrefix(err, "OOM") }
func isCrossSlot(err error) bool { return redis.HasErrorPrefix(err, "CROSSSLOT") }
