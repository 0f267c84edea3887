package redisstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/idemq/idemq/idem/store"
)

// silenceLasts is for how long calls that travel with others are not sent to a node that
// gave no answer. A guard sends what waits for such a node by itself, at the latest 2.5
// seconds after it was silent last, and renewals about a sixth of a lease after: the
// node's answer ends its silence before this does, and nothing else waits for it meanwhile.
// Where nobody asks the node alone, what travels together finds out, once in this time.
const silenceLasts = 3 * time.Second

// silences are the nodes of a cluster that gave no answer when they were asked last.
type silences struct {
	mu    sync.Mutex
	nodes map[string]*silence // by address
}

type silence struct {
	since time.Time
	asked int // calls that are on their way
}

// silent tells whether a node is known to give no answer. While somebody asks it again it
// stays so.
func (s *silences) silent(addr string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.nodes[addr]
	return n != nil && (n.asked > 0 || time.Since(n.since) < silenceLasts)
}

// hearing is what came of asking a node.
type hearing int

const (
	unknown hearing = iota // the caller did not wait for it
	heard
	unheard
)

// ask is called before a node is asked, and done with what came of it.
func (s *silences) ask(addr string) (done func(hearing)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.nodes[addr]
	if before != nil {
		before.asked++
	}
	return func(h hearing) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if before != nil {
			before.asked--
		}
		now := s.nodes[addr]
		switch {
		case h == heard:
			delete(s.nodes, addr)
		case h == unheard && now != nil:
			now.since = time.Now()
		case h == unheard:
			if s.nodes == nil {
				s.nodes = make(map[string]*silence)
			}
			maps.DeleteFunc(s.nodes, func(_ string, n *silence) bool { // may have left the cluster
				return n.asked == 0 && time.Since(n.since) > 20*silenceLasts
			})
			s.nodes[addr] = &silence{since: time.Now()}
		}
	}
}

// share is a context that ends after half of the time that is left: the other half is for
// what comes after a node that hangs.
func share(ctx context.Context) (context.Context, context.CancelFunc) {
	end, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, time.Until(end)/2)
}

// scatter sends each primary of a cluster its calls, all primaries at once. The cluster's
// client would wait for the slowest, and forget the answers of the others if the time
// ended before that one's.
func (x *execution) scatter(ctx context.Context, cluster *redis.ClusterClient, calls []*call, cmds []*redis.Cmd) {
	groups := x.primaries(ctx, cluster, calls)
	var silent []*redis.Client
	for primary := range groups {
		if x.s.silences.silent(primary.Options().Addr) {
			silent = append(silent, primary)
		}
	}
	if len(silent) > 0 && len(silent) < len(groups) { // else somebody has to ask
		cluster.ReloadState(ctx) // another may be in its place
		for _, primary := range silent {
			for _, i := range groups[primary] {
				calls[i].failed = fmt.Errorf("redisstore: %w: the node %s gave no answer when it was asked last",
					store.ErrUnavailable, primary.Options().Addr)
			}
			delete(groups, primary)
		}
	}
	var wg sync.WaitGroup
	for primary, indexes := range groups {
		wg.Go(func() {
			t := &trip{cmds: make([]*redis.Cmd, len(indexes))}
			for _, i := range indexes {
				t.calls = append(t.calls, calls[i])
			}
			t.wait = x.s.replicas > 0 && slices.ContainsFunc(t.calls, (*call).mustSurvive)
			x.visit(ctx, cluster, primary, t)
			for j, i := range indexes {
				cmds[i] = t.cmds[j]
			}
		})
	}
	wg.Wait()
}

// primaries groups the calls by the server that they go to. Calls that go nowhere are
// marked as failed.
func (x *execution) primaries(ctx context.Context, cluster *redis.ClusterClient, calls []*call) map[*redis.Client][]int {
	groups := make(map[*redis.Client][]int)
	for i, c := range calls {
		c.failed = nil
		primary, err := cluster.MasterForKey(ctx, x.p.keys.epoch(c.tag))
		if err != nil {
			c.failed = x.s.failure(ctx, x.p, "finding a primary", err)
			continue
		}
		groups[primary] = append(groups[primary], i)
	}
	return groups
}

// visit sends a primary its calls, in a time of its own.
func (x *execution) visit(trip context.Context, cluster *redis.ClusterClient, primary *redis.Client, t *trip) {
	ctx, cancel := share(trip)
	defer cancel()
	done := x.s.silences.ask(primary.Options().Addr)
	x.pipeline(ctx, primary.Pipeline(), t)
	if slices.ContainsFunc(t.cmds, func(cmd *redis.Cmd) bool { return isBroken(cmd.Err()) }) && ctx.Err() == nil {
		x.pipeline(ctx, primary.Pipeline(), t) // a node's client repeats nothing by itself, unless it is told to
	}
	switch {
	case !slices.ContainsFunc(t.cmds, func(cmd *redis.Cmd) bool { return isSilence(cmd.Err()) }):
		done(heard)
	case errors.Is(trip.Err(), context.Canceled):
		done(unknown)
	default:
		done(unheard)
	}
	x.follow(ctx, cluster, t)
}

// follow sends the calls that a node has no slot for once more, through the cluster's client,
// which goes where it is redirected to. Those that wait for replicas are not sent: the
// client keeps for itself which connection they took, and WAIT is about the writes of its
// own. They are answered as an outage, and find their node when they come again,
// if the slot has moved by then.
func (x *execution) follow(ctx context.Context, cluster *redis.ClusterClient, t *trip) {
	var wg sync.WaitGroup
	for i, cmd := range t.cmds {
		c := t.calls[i]
		switch err := cmd.Err(); {
		case errors.Is(err, redis.ErrClosed):
			// A node that has left the cluster, or the client that was closed.
			if err := cluster.Get(ctx, x.p.keys.descriptor()).Err(); !errors.Is(err, redis.ErrClosed) {
				c.failed = fmt.Errorf("redisstore: %w: a node has left the cluster", store.ErrUnavailable)
				t.cmds[i] = nil
			}
		case isRedirection(err) && c.failed == nil && (x.s.replicas == 0 || !c.mustSurvive()):
			wg.Go(func() { t.cmds[i] = x.queue(ctx, cluster, c) })
		}
	}
	wg.Wait()
}

// isBroken tells whether a connection ended, which may have been an old one's fault.
func isBroken(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// isSilence tells whether err means that a node gave no answer.
func isSilence(err error) bool {
	return err != nil && !isReply(err) && !errors.Is(err, redis.Nil) && !errors.Is(err, redis.ErrClosed)
}

func isRedirection(err error) bool {
	return redis.HasErrorPrefix(err, "MOVED") || redis.HasErrorPrefix(err, "ASK")
}
