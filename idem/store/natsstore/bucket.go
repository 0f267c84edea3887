package natsstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/rules"
)

// prefix is what the store knows of one prefix.
type prefix struct {
	name string
	keys keys

	describing chan struct{} // filled while the descriptor is asked for

	mu         sync.Mutex
	ready      bool // the bucket is as it must be, and has the descriptor
	generation int  // how often it was made ready
	created    time.Time
	seq        uint64 // of the descriptor
	at         rules.Instant
	acked      uint64 // the highest sequence that was acknowledged
	tight      bool   // in its last sixteenth, as last seen: no room for claims
	losses     int    // how often it was found that records were lost
	notice     string // of the last loss
}

// prefix returns a prefix whose bucket and descriptor are as they must be.
func (s *Store) prefix(ctx context.Context, name string) (*prefix, error) {
	s.mu.Lock()
	p := s.prefixes[name]
	if p == nil {
		p = &prefix{name: name, keys: newKeys(name), describing: make(chan struct{}, 1)}
		s.prefixes[name] = p
	}
	s.mu.Unlock()
	if p.isReady() {
		return p, nil
	}
	return p, s.describe(ctx, p)
}

func (p *prefix) isReady() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ready
}

// describe makes p ready: it looks at the bucket, or creates it, and reads the
// descriptor, or writes it. One caller does it for all that wait.
func (s *Store) describe(ctx context.Context, p *prefix) error {
	select {
	case p.describing <- struct{}{}:
		defer func() { <-p.describing }()
	case <-ctx.Done():
		return s.failure("waiting for the descriptor", ctx.Err())
	}
	if p.isReady() {
		return nil
	}
	for try := 0; ; try++ {
		err := s.connected(ctx)
		if err == nil {
			err = s.tryDescribe(ctx, p)
		}
		if err == nil {
			return nil
		}
		if isFinal(err) || isClosed(err) || !pause(ctx, try) {
			return s.failure(fmt.Sprintf("preparing prefix %q", p.name), err)
		}
	}
}

func (s *Store) tryDescribe(ctx context.Context, p *prefix) error {
	d, err := s.look(ctx)
	if errors.Is(err, errMissing) {
		if s.existing {
			return s.missing()
		}
		d, err = s.create(ctx)
	}
	if err != nil {
		return err
	}
	if err := s.usable(d); err != nil {
		return err
	}
	f, err := s.descriptor(ctx, p)
	if err != nil {
		return err
	}
	if f.gone {
		v, err := json.Marshal(descriptorValue{Version: version, Layout: layout})
		if err != nil {
			return err
		}
		if _, err := s.wire.write(ctx, p.keys.descriptor(), v, f.seq, never); err != nil {
			return err // errConflict as well: it is read again
		}
		if f, err = s.descriptor(ctx, p); err != nil {
			return err
		}
		if f.gone {
			return errMissing
		}
	}
	i := &d.info
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.generation > 0 && (!p.created.Equal(i.Created) || p.seq != f.seq || p.at != f.at) {
		s.memory.clear() // before anybody takes p for ready
		p.lost(s.wire.bucket)
	}
	p.ready = true
	p.generation++
	p.created, p.seq, p.at, p.acked = i.Created, f.seq, f.at, 0
	p.tight = tight(i)
	return nil
}

// descriptor reads the descriptor, and compares it with what this store would write.
func (s *Store) descriptor(ctx context.Context, p *prefix) (found, error) {
	r := s.wire.getRequest(p.keys.descriptor())
	s.wire.ask(ctx, r)
	f, err := r.found()
	if err != nil || f.gone {
		return f, err
	}
	var v descriptorValue
	err = decode(f.value, &v, &v.Version)
	if err == nil && v.Layout != layout {
		err = fmt.Errorf("%w: the layout %q", store.ErrNewer, v.Layout)
	}
	if err != nil {
		return f, &refusal{
			cause: fmt.Errorf("the descriptor under key %q: %w", p.keys.descriptor(), err),
			cure:  "use a version of this library that knows it, or another prefix",
		}
	}
	return f, nil
}

func (s *Store) look(ctx context.Context) (*details, error) {
	r := s.wire.infoRequest()
	s.wire.ask(ctx, r)
	return r.details()
}

// create makes the bucket, as the client's own CreateKeyValue would, but without the
// markers of what has expired: nobody waits for them, and each is a write.
//
// Its revisions begin at the number of microseconds since 1970, so that those of a
// bucket that is deleted and created again are never taken for those of the old one.
// The clock is the client's, and decides nothing else.
func (s *Store) create(ctx context.Context) (*details, error) {
	maxBytes := s.maxBytes
	if maxBytes == 0 {
		maxBytes = -1
	}
	before := s.wire.told()
	_, err := s.js.CreateStream(ctx, jetstream.StreamConfig{
		Name:              s.wire.stream,
		Description:       "idem: records of handled messages",
		Subjects:          []string{s.wire.kv + ">"},
		Storage:           s.storage,
		Replicas:          s.replicas,
		Discard:           jetstream.DiscardNew,
		MaxMsgsPerSubject: 1,
		MaxMsgs:           -1,
		MaxBytes:          maxBytes,
		MaxConsumers:      -1,
		MaxMsgSize:        -1,
		AllowMsgTTL:       true,
		AllowRollup:       true,
		AllowDirect:       true,
		DenyDelete:        true,
		FirstSeq:          uint64(max(1, time.Now().UnixMicro())),
	})
	if err != nil && !errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
		var api *jetstream.APIError
		switch errors.As(err, &api); {
		case api == nil, api.ErrorCode == codeNoPeers: // there may be, when all servers are up
		case api.ErrorCode == codeNotClustered:
			return nil, &refusal{cause: fmt.Errorf("creating the bucket: %w", err), cure: "run the servers as a cluster, or drop WithReplicas"}
		case api.Code < 500:
			return nil, &refusal{cause: fmt.Errorf("creating the bucket: %w", err), cure: "create it by hand, or change the store's options"}
		}
		if said := s.wire.unanswered(s.wire.api+"STREAM.CREATE."+s.wire.stream, before, err); isFinal(said) {
			return nil, said
		}
		return nil, fmt.Errorf("creating the bucket: %w", err)
	}
	return s.look(ctx)
}

// usable is an error if the bucket's settings would lose records, or admit none.
func (s *Store) usable(d *details) error {
	c := &d.Config
	edit := "nats stream edit " + c.Name + " "
	// Somebody else's keys may be in it.
	change := func(flag, does string) string {
		return "use a bucket of its own: give natsstore.New another name; or, if nothing else uses this one, " + edit + flag + ", which " + does
	}
	if err := s.takesRecords(); err != nil {
		return err
	}
	switch {
	case c.MaxMsgSize >= 0 && c.MaxMsgSize < leastSize:
		return unusable(fmt.Sprintf("takes no value larger than %d bytes (its MaxMsgSize), and a record may need %d", c.MaxMsgSize, leastSize),
			edit+"--max-msg-size=-1")
	case c.Mirror != nil:
		return unusable("is a mirror of another", "use the bucket that it mirrors, in that one's JetStream domain")
	case len(c.Sources) > 0:
		return unusable("takes keys from other buckets", "use one without sources")
	case c.SubjectTransform != nil || !slices.Contains(c.Subjects, s.wire.kv+">"):
		return unusable(fmt.Sprintf("is a stream of the subjects %q", strings.Join(c.Subjects, ", ")), "use a bucket that nats kv add, or this store, created")
	case !c.AllowMsgTTL:
		return unusable("allows no TTL of single messages", cureTTL+" ("+edit+"--allow-msg-ttl)")
	case c.MaxMsgsPerSubject != 1:
		return unusable(fmt.Sprintf("keeps a history of %d values, and an earlier one comes back when the last expires", c.MaxMsgsPerSubject),
			change("--max-msgs-per-subject=1", "deletes all values but the last of every key in it"))
	case c.MaxAge != 0:
		return unusable(fmt.Sprintf("forgets every key after %v (its TTL)", c.MaxAge),
			change("--max-age=0", "deletes nothing, but keeps for ever whatever was to expire"))
	case c.Discard != jetstream.DiscardNew:
		return unusable("forgets the oldest keys when it is full (discard old)",
			change("--discard=new", "has every write refused when it is full"))
	case c.DiscardNewPerSubject:
		return unusable("refuses to change a key (discard new per subject)",
			change("--no-discard-per-subject", "lets every key in it be overwritten"))
	case c.Retention != jetstream.LimitsPolicy:
		return unusable(fmt.Sprintf("has the retention policy %v", c.Retention), "use a bucket that nats kv add, or this store, created")
	case c.NoAck:
		return unusable("acknowledges no writes (no ack)", change("--ack", "has every write to it acknowledged"))
	}
	return nil
}

// leastSize is what any record without a result fits in, with room for names; with less
// than goodSize results soon do not.
const (
	leastSize = 4 << 10
	goodSize  = 64 << 10
)

// takesRecords is an error if the server that the client is connected to takes none,
// whatever the bucket is.
func (s *Store) takesRecords() error {
	n := s.wire.nc.MaxPayload()
	if n >= leastSize {
		return nil
	}
	return &refusal{
		cause: fmt.Errorf("the server takes no message larger than %d bytes (max_payload), and a record may need %d", n, leastSize),
		cure:  "raise max_payload",
	}
}

const cureTTL = "allow TTLs: the server must be 2.11 or later"

func unusable(what, cure string) error {
	return &refusal{cause: errors.New("the bucket " + what), cure: cure}
}

// tight tells whether the bucket has no more room for claims: the last sixteenth is
// for completions.
func tight(i *info) bool {
	over := func(used uint64, limit int64) bool {
		return limit > 0 && used >= uint64(limit)-uint64(limit)/16
	}
	return over(i.State.Bytes, i.Limits.MaxBytes) || over(i.State.Msgs, i.Limits.MaxMsgs)
}

// saw takes in what the leader said of the bucket, in answer to a question that was
// asked when p was of a generation and had seen a write acknowledged. It reports
// whether records were lost since.
func (p *prefix) saw(i *info, generation int, acked uint64, bucket string) (lost bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.generation != generation || !p.ready {
		return p.generation == generation
	}
	p.tight = tight(i)
	// The descriptor stays for ever: no first message is later than it.
	gone := !i.Created.Equal(p.created) || i.State.Msgs == 0 || i.State.FirstSeq > p.seq ||
		rules.Instant(i.State.FirstTime.UnixNano()) > p.at
	// A leader of several may have been cut off, and not know the last writes; a write tells then.
	short := i.Limits.Replicas <= 1 && i.State.LastSeq < acked
	if !gone && !short {
		return false
	}
	if p.ready = false; !gone {
		p.lost(bucket) // else it is told when the descriptor is written anew
	}
	return true
}

// vanished takes in that the bucket was not there for a request that was sent when p
// was of a generation.
func (p *prefix) vanished(generation int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.generation == generation {
		p.ready = false
	}
}

// lost counts a loss, for guards to be told of it. p.mu is held.
func (p *prefix) lost(bucket string) {
	p.losses++
	p.notice = fmt.Sprintf("The NATS bucket %q came back without records of prefix %q that it had acknowledged, "+
		"or was replaced by another: what it forgot can be handled again.", bucket, p.name)
}

// lossesSoFar is how often records were lost, and what is to be told of the last time.
func (p *prefix) lossesSoFar() (int, string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.losses, p.notice
}

// state is what a question about the bucket has to be compared with, and whether the
// bucket had room for claims.
func (p *prefix) state() (generation int, acked uint64, tight bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.generation, p.acked, p.tight
}

// stored takes in that a write, or a proof, was acknowledged with a sequence. It reports
// whether the stream went back: else the sequence is higher than acked, the highest that
// had been acknowledged before the write was sent.
func (p *prefix) stored(seq uint64, generation int, acked uint64, bucket string) (lost bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.generation != generation {
		return false
	}
	if seq > acked {
		p.acked = max(p.acked, seq)
		return false
	}
	if p.ready {
		p.ready = false
		p.lost(bucket)
	}
	return true
}
