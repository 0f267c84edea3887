package redisstore

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/idemq/idemq/idem/store"
)

const (
	version = 1

	layoutRecords = "records"
	layoutCompact = "compact"
)

// prefix is what the store knows of one prefix.
type prefix struct {
	name string
	keys keys

	describing chan struct{} // filled while the descriptor is asked for

	mu     sync.Mutex
	ready  bool           // the descriptor agrees
	agreed bool           // it did at least once
	later  time.Time      // until when one that agreed before is not asked for again, its node being away or refusing
	spare  string         // the epoch that a tag gets which has none: see replaceSpare
	seen   map[int]string // each tag's epoch, as last seen
	asked  map[int]any    // each tag's epoch key, a string, made once
	terms  terms          // of the last batch
	lost   int            // how often one has changed
	loss   string         // what is to be said of the last time
}

func newPrefix(name string, tags int) *prefix {
	return &prefix{
		name: name, keys: newKeys(name, tags), describing: make(chan struct{}, 1), spare: rand.Text(),
		seen: make(map[int]string), asked: make(map[int]any),
	}
}

// descriptor says how the records of a prefix are laid out: version|layout|tags|epoch, and
// behind that in the compact layout |retention in ms|buckets of a tag. It never expires. Its
// epoch tells it from one made anew; each tag has an epoch of its own.
type descriptor struct {
	version int
	layout  string
	tags    int
	epoch   string

	retention int64  // ms
	buckets   uint64 // of one tag
}

func (d descriptor) String() string {
	s := fmt.Sprintf("%d|%s|%d|%s", d.version, d.layout, d.tags, d.epoch)
	if d.layout == layoutCompact {
		s += fmt.Sprintf("|%d|%d", d.retention, d.buckets)
	}
	return s
}

// terms is what two stores must agree on.
func (d descriptor) terms() string {
	s := fmt.Sprintf("version %d, layout %s, %d tags", d.version, d.layout, d.tags)
	if d.layout == layoutCompact {
		s += fmt.Sprintf(", a Retention of %v, and %d buckets a tag, which %d Tokens make",
			time.Duration(d.retention)*time.Millisecond, d.buckets, d.buckets*uint64(d.tags)*bucketTokens)
	}
	return s
}

func parseDescriptor(v string) (descriptor, error) {
	parts := strings.Split(v, "|")
	n, err := strconv.Atoi(parts[0])
	if err != nil {
		return descriptor{}, store.ErrUnreadable
	}
	if n > version {
		return descriptor{}, store.ErrNewer
	}
	if len(parts) < 4 || parts[3] == "" {
		return descriptor{}, store.ErrUnreadable
	}
	d := descriptor{version: n, layout: parts[1], epoch: parts[3]}
	d.tags, err = strconv.Atoi(parts[2])
	if rest := parts[4:]; d.layout == layoutCompact && len(rest) == 2 && err == nil {
		d.retention, err = strconv.ParseInt(rest[0], 10, 64)
		if err == nil {
			d.buckets, err = strconv.ParseUint(rest[1], 10, 64)
		}
	} else if len(rest) > 0 || d.layout == layoutCompact {
		return descriptor{}, store.ErrUnreadable
	}
	if err != nil {
		return descriptor{}, store.ErrUnreadable
	}
	return d, nil
}

// agree compares what stands in Redis with what this store would write.
func (s *Store) agree(p *prefix, v string) (descriptor, error) {
	d, err := parseDescriptor(v)
	if err != nil {
		return d, fmt.Errorf("redisstore: the descriptor %q of prefix %q holds %q: %w; use a version of this library that knows it, "+
			"or another prefix", p.keys.descriptor(), p.name, v, err)
	}
	want := s.descriptor(d.epoch)
	if d.terms() == want.terms() || s.takesOver(d) {
		return d, nil
	}
	change := "stop its consumers, let the retention pass, and delete"
	if d.layout == layoutRecords && want.layout == layoutCompact {
		change = "stop its consumers and start them with WithCompact's FromRecords, or, for other tags, let the retention pass and delete"
	}
	return d, fmt.Errorf("redisstore: the records of prefix %q were laid out with %s, and this store is set to %s: "+
		"set it to the former, or choose another prefix; to change the prefix itself, %s %q",
		p.name, d.terms(), want.terms(), change, p.keys.descriptor())
}

// takesOver tells whether d is of records that this store is set to take over.
func (s *Store) takesOver(d descriptor) bool {
	return s.compact != nil && s.compact.FromRecords && d.version == version && d.layout == layoutRecords && d.tags == s.tags
}

// descriptor is what this store writes.
func (s *Store) descriptor(epoch string) descriptor {
	d := descriptor{version: version, layout: layoutRecords, tags: s.tags, epoch: epoch}
	if c := s.compact; c != nil {
		d.layout, d.retention, d.buckets = layoutCompact, ceilMilliseconds(c.Retention), c.buckets
	}
	return d
}

// describe compares what Redis says of a prefix, which is the descriptor of this store if
// there was none, or one of records to take over.
func (s *Store) describe(ctx context.Context, p *prefix) error {
	key := p.keys.descriptor()
	v, err := s.read(ctx, p) // a server that takes no writes answers too
	if errors.Is(err, redis.Nil) {
		v, err = s.eval(ctx, descriptorScript, key, s.descriptor(rand.Text()).String()).Text()
	}
	for err == nil {
		d, differs := s.agree(p, v)
		if differs != nil || !s.takesOver(d) {
			return differs
		}
		v, err = s.eval(ctx, descriptorScript, key, s.descriptor(d.epoch).String(), v).Text()
	}
	return s.partly(s.failure(ctx, p, fmt.Sprintf("reading the descriptor %q", key), err))
}

// read returns a prefix's descriptor, or redis.Nil. It asks by a script: a client may be set to
// send a GET to replicas, which can lag.
func (s *Store) read(ctx context.Context, p *prefix) (string, error) {
	return s.eval(ctx, readScript, p.keys.descriptor()).Text()
}

// known returns what is known of a prefix, without asking Redis.
func (s *Store) known(name string) *prefix {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.prefixes[name]
	if p == nil {
		p = newPrefix(name, s.tags)
		s.prefixes[name] = p
	}
	return p
}

// prefix returns a prefix whose descriptor agrees with this store. The descriptor is
// asked for, or made, at first use and after Redis lost data; then it is not waited for
// if it cannot be had, because the node that keeps it may be away, or refuse, and others do not.
func (s *Store) prefix(ctx context.Context, name string) (*prefix, error) {
	if s.err != nil {
		return nil, s.err
	}
	p := s.known(name)
	ready, agreed := p.isReady()
	if ready {
		return p, nil
	}
	if agreed && s.several {
		var cancel context.CancelFunc
		ctx, cancel = share(ctx)
		defer cancel()
	}
	select {
	case p.describing <- struct{}{}:
		defer func() { <-p.describing }()
	case <-ctx.Done():
		if agreed && s.several {
			return p, nil
		}
		return nil, explain(fmt.Sprintf("waiting for the descriptor %q", p.keys.descriptor()), ctx.Err())
	}
	if ready, _ := p.isReady(); ready {
		return p, nil
	}
	if err := s.describe(ctx, p); err != nil {
		if agreed && s.several && (errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrRefused)) {
			p.putOff()
			return p, nil
		}
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ready, p.agreed = true, true
	return p, nil
}

// isReady tells whether the descriptor need not be asked for, and whether it ever agreed.
func (p *prefix) isReady() (ready, agreed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ready || time.Now().Before(p.later), p.agreed
}

// putOff has a descriptor that agreed before be asked for later.
func (p *prefix) putOff() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.later = time.Now().Add(silenceLasts)
}

// epochs returns the epoch last seen at a tag, and the one that the tag gets if it
// has none.
func (p *prefix) epochs(tag int) (seen, fresh string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen[tag], p.spare
}

// replaceSpare is for after a call that may have set the spare epoch, and did not tell: others may
// have seen it there, and would not notice that the tag came back empty if it were set again. One
// that a call told of is replaced by saw.
func (p *prefix) replaceSpare() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.spare = rand.Text()
}

// epochKey is keys.epoch, as an argument of a command.
func (p *prefix) epochKey(tag int) any {
	p.mu.Lock()
	defer p.mu.Unlock()
	key := p.asked[tag]
	if key == nil {
		key = p.keys.epoch(tag)
		p.asked[tag] = key
	}
	return key
}

// arguments are those of a batch's terms.
func (p *prefix) arguments(b *store.Batch) *[8]any {
	t := termsOf(b)
	p.mu.Lock()
	defer p.mu.Unlock()
	if t.args = p.terms.args; t != p.terms || t.args == nil {
		t.complete()
		p.terms = t
	}
	return t.args
}

// saw takes in a tag's epoch as a script answered it to a call that was made when
// this process had seen another, or the same. A change is counted once.
func (p *prefix) saw(tag int, before, now string) {
	if now == before {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.seen[tag] == now {
		return
	}
	p.seen[tag] = now
	if now == p.spare {
		p.spare = rand.Text()
	}
	if before == "" {
		return
	}
	p.ready = false // the descriptor may be gone as well
	p.lost++
	p.loss = fmt.Sprintf("Redis came back without the data of prefix %q, or was replaced by another (the epoch in %q has changed): "+
		"what it forgot can be handled again.", p.name, p.keys.epoch(tag))
}

// losses are how many losses were noticed, and a notice of the last.
func (p *prefix) losses() (n int, notice string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lost, p.loss
}
