// Package natsstore keeps the records in a NATS JetStream key-value bucket, so that
// who has NATS runs nothing else. It needs nats-server 2.11 or later.
//
// Each token of a group is one key, my_app.record.<group>.<token>, whose value the
// nats tool shows (nats kv get). Whatever is no letter, digit, '-', '_' or '/' is
// escaped in a key as '=' and two hexadecimal digits, and a part of more than 96 bytes
// is its SHA-256. Each value has a TTL of its own, so a bucket may serve many prefixes
// and retentions. Nothing is purged but by the server.
//
// # Time
//
// All time is that of the server that leads the bucket's stream: the times of a record
// count from the message's own. When the lead moves, another clock goes on counting.
// So the clocks of the servers of a cluster must agree to well below an eighth of the
// lease, which is the margin of a takeover: keep them within 100 ms for the default
// lease of 10 seconds. A clock that is ahead by more ends leases early; two handlers
// can then overlap, and the claim id still admits one completion.
//
// # What is sent
//
// A batch is a write for each record that it changes, with the expected revision, and
// one question for the server's time and the bucket's state, all sent together: one
// round trip for fresh tokens and for what this process itself claimed or released. What
// turns out to have been changed elsewhere is read from the leader, and tried again:
// two more.
//
// An answer that changes nothing is never taken from memory, and not from a replica
// that may lag. With one replica the leader's read is the truth. With more, a leader
// that was cut off may take itself for the leader for up to some 20 seconds more: so
// before it is answered that a token is a duplicate, unknown or lost, a write that
// depends on the revision that was read goes through the quorum (the key
// my_app.proof). Only "ask again later" is answered without.
//
// # What can be lost
//
// JetStream acknowledges a write when its file has been written, and has it on disk
// (fsync) within 2 minutes, unless the server's sync_interval is "always", which a
// client cannot see. A crash of the machine, not of the process, can lose what was
// acknowledged since, and what it forgets can happen again. With three replicas it takes
// the crash of two machines. A bucket in memory forgets with its server. A store that
// sees the bucket come back without what it knew, if it has several replicas by its next
// write, says so in store.Batch's Notice and Losses, in every batch from then on: each
// guard on the store tells it once.
//
// A bucket with a limit (MaxBytes) refuses claims with store.ErrFull when the last
// sixteenth of it is begun, so that completions still go through; what fills that too,
// somebody else's keys or large results, makes completions wait, also with
// store.ErrFull. With several replicas an answer that changes nothing needs a write as
// well, and waits likewise. A limit of the account, or of the server, reserves nothing:
// when it is reached, claims and completions wait alike. A bucket never evicts.
//
// A result that is larger than the bucket (MaxMsgSize) or the server (max_payload, 1 MB
// by default) takes, with a third more for base64, is no matter of waiting: its Commit
// is answered with an error that says so, and the claim goes on.
//
// # Permissions
//
// Beside its subscription to its inbox (_INBOX.>) a client's user needs to publish to
//
//	$JS.API.STREAM.INFO.KV_<bucket>
//	$JS.API.STREAM.MSG.GET.KV_<bucket>
//	$KV.<bucket>.<prefix>.>
//	$JS.API.STREAM.CREATE.KV_<bucket>   where it is to create the bucket
//
// With an API prefix, or the domain of another server than the one that the client is
// connected to, all four begin with it, the third as well:
// $JS.<domain>.API.$KV.<bucket>.<prefix>.>
package natsstore

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/idemq/idemq/idem/store"
)

// Option changes a [Store].
type Option func(*Store)

// WithReplicas sets how many servers keep the bucket, where the store creates it;
// default 1. With 3 it survives the loss of one server, and each write waits for two.
// [Store.Verify] compares what is set, here and below, with what it finds: an existing
// bucket stays as it is.
func WithReplicas(n int) Option {
	return func(s *Store) { s.replicas, s.given.replicas = n, true }
}

// WithStorage sets where the bucket is kept, where the store creates it; default
// jetstream.FileStorage. What jetstream.MemoryStorage keeps is gone with the last of
// its servers.
func WithStorage(t jetstream.StorageType) Option {
	return func(s *Store) { s.storage, s.given.storage = t, true }
}

// WithMaxBytes bounds the size of the bucket, where the store creates it; default, and
// zero, is no bound. A completed token takes about 260 bytes in each replica, and its
// result. Some accounts allow no bucket without a bound.
func WithMaxBytes(n int64) Option {
	return func(s *Store) { s.maxBytes, s.given.maxBytes = n, true }
}

// WithoutCreate has the store use an existing bucket only: without it every call fails.
//
// A store without this option creates the bucket whenever it is not there, also one that
// vanished under it: work goes on, what was recorded is forgotten and told as a loss
// (store.Batch's Losses). With it, work waits until somebody has restored the bucket.
func WithoutCreate() Option { return func(s *Store) { s.existing = true } }

// Store is a store.Store on a key-value bucket. It is safe for concurrent use, starts
// no goroutine that outlives a call, and does not close the connection.
type Store struct {
	js   jetstream.JetStream
	wire wire
	err  error // what makes every call fail

	replicas int
	storage  jetstream.StorageType
	maxBytes int64
	existing bool
	given    struct{ replicas, storage, maxBytes bool } // which of the options were
	patience time.Duration                              // of a call whose context has no deadline

	memory memory

	mu       sync.Mutex
	prefixes map[string]*prefix
}

var _ store.Store = (*Store)(nil)

var validBucket = regexp.MustCompile(`^[a-zA-Z0-9_-]+$`)

// New returns a store on a bucket. It sends nothing: the bucket is looked at, and
// created if it is not there, at first use. With a nil js, or settings that cannot be,
// every call fails with an error that says so.
//
// A call whose context has no deadline is given js's default timeout, and as much again
// for each 256 operations of a batch.
func New(js jetstream.JetStream, bucket string, opts ...Option) *Store {
	s := &Store{replicas: 1, prefixes: make(map[string]*prefix)}
	for _, o := range opts {
		o(s)
	}
	var errs []error
	if isNil(js) {
		errs = append(errs, errors.New("js is nil: give New what jetstream.New returned"))
	}
	if !validBucket.MatchString(bucket) {
		errs = append(errs, fmt.Errorf("the bucket's name %q: letters, digits, '-' and '_' make one", bucket))
	}
	if s.replicas < 1 || s.replicas > 5 {
		errs = append(errs, fmt.Errorf("WithReplicas(%d): JetStream keeps 1 to 5", s.replicas))
	}
	if s.maxBytes < 0 {
		errs = append(errs, fmt.Errorf("WithMaxBytes(%d): a bound cannot be negative", s.maxBytes))
	}
	if s.storage != jetstream.FileStorage && s.storage != jetstream.MemoryStorage {
		errs = append(errs, fmt.Errorf("WithStorage(%d): use jetstream.FileStorage or jetstream.MemoryStorage", s.storage))
	}
	if len(errs) > 0 {
		s.err = fmt.Errorf("natsstore: %w", errors.Join(errs...))
		return s
	}
	s.js, s.wire = js, newWire(js, bucket)
	s.patience = js.Options().DefaultTimeout
	if s.patience <= 0 {
		s.patience = 5 * time.Second
	}
	return s
}

func isNil(js jetstream.JetStream) bool {
	if js == nil {
		return true
	}
	v := reflect.ValueOf(js)
	return v.Kind() == reflect.Pointer && v.IsNil()
}

// Capabilities implements store.Store: nothing is lacking.
func (s *Store) Capabilities() store.Capabilities { return store.Capabilities{} }

// Apply implements store.Store. See the package's documentation for what it sends. A
// write whose acknowledgement does not come is asked for again, until ctx ends.
func (s *Store) Apply(ctx context.Context, b *store.Batch) error {
	b.Losses, b.Notice = 0, ""
	if s.err != nil {
		return s.err
	}
	ctx, cancel := s.bounded(ctx, len(b.Ops))
	defer cancel()
	p, err := s.prefix(ctx, b.Prefix)
	if err != nil {
		return err
	}
	x := &execution{s: s, p: p, b: b}
	err = x.run(ctx)
	b.Losses, b.Notice = p.lossesSoFar()
	return err
}

// Incarnation implements store.Store: one more than the last, but not less than the
// server's clock in nanoseconds, which keeps the numbers rising when the last is lost.
func (s *Store) Incarnation(ctx context.Context, prefix, name string) (uint64, error) {
	if s.err != nil {
		return 0, s.err
	}
	ctx, cancel := s.bounded(ctx, 1)
	defer cancel()
	p, err := s.prefix(ctx, prefix)
	if err != nil {
		return 0, err
	}
	key := p.keys.incarnation(name)
	doing := fmt.Sprintf("drawing an incarnation from key %q", key)
	for try := 0; ; try++ {
		generation, _, _ := p.state()
		n, err := s.draw(ctx, key)
		if err == nil {
			return n, nil
		}
		if isFinal(err) || isClosed(err) || !pause(ctx, try) {
			return 0, s.failure(doing, err)
		}
		if errors.Is(err, errMissing) || errors.Is(err, errNobody) {
			p.vanished(generation)
			if err := s.describe(ctx, p); err != nil {
				return 0, err
			}
		}
	}
}

func (s *Store) draw(ctx context.Context, key string) (uint64, error) {
	reqs := []*request{s.wire.infoRequest(), s.wire.getRequest(key)}
	s.wire.exchange(ctx, reqs)
	i, err := reqs[0].info()
	if err != nil {
		return 0, err
	}
	f, err := reqs[1].found()
	if err != nil {
		return 0, err
	}
	var last uint64
	if !f.gone {
		if last, err = decodeIncarnation(f.value); err != nil {
			return 0, &refusal{cause: err, cure: "see what wrote it, then delete it"}
		}
	}
	n := max(last+1, uint64(max(0, i.Now.UnixNano())))
	_, err = s.wire.write(ctx, key, encodeIncarnation(n), f.seq, time.Hour)
	return n, err
}

// write is one put, with its answer.
func (w *wire) write(ctx context.Context, key string, value []byte, seq uint64, keep time.Duration) (uint64, error) {
	r := w.putRequest(key, value, seq, keep)
	w.ask(ctx, r)
	return r.seq()
}

// bounded is ctx with a deadline, for a number of operations.
func (s *Store) bounded(ctx context.Context, operations int) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, s.patience*time.Duration(1+operations/window))
}

// connected waits until the client is connected: what is sent before is kept by the
// client, and arrives when nobody waits for it any more.
func (s *Store) connected(ctx context.Context) error {
	for {
		switch s.wire.nc.Status() {
		case nats.CONNECTED, nats.DRAINING_SUBS, nats.DRAINING_PUBS:
			return ctx.Err()
		case nats.CLOSED:
			return closedForGood()
		default:
		}
		t := time.NewTimer(5 * time.Millisecond)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return fmt.Errorf("not connected to a server: %w", ctx.Err())
		}
	}
}
