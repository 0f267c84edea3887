package natsstore

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/internal/natsconn"
)

// Verify implements store.Store. It looks at the server's version, the bucket's
// settings, its replicas and the descriptor, and has a write refused, which tells that
// it is permitted. That the bucket does not exist yet is no error where the store may
// create it. How often JetStream has its files on disk (sync_interval) cannot be seen.
func (s *Store) Verify(ctx context.Context, name string) ([]store.Finding, error) {
	if s.err != nil {
		return nil, s.err
	}
	ctx, cancel := s.bounded(ctx, 1)
	defer cancel()
	if err := s.connected(ctx); err != nil {
		return nil, s.failure("asking the server", err)
	}
	if v := s.wire.nc.ConnectedServerVersion(); tooOld(v) {
		return nil, fmt.Errorf("natsstore: the server is nats-server %s: the store needs 2.11 or later, for TTLs of single keys", v)
	}
	d, err := s.look(ctx)
	if errors.Is(err, errMissing) && !s.existing {
		if err := s.takesRecords(); err != nil {
			return nil, s.failure("asking the server", err)
		}
		return s.ofClient(), nil
	}
	if errors.Is(err, errMissing) {
		err = s.missing()
	}
	if err == nil {
		err = s.usable(d)
	}
	if err != nil {
		return nil, s.failure("looking at the stream", err)
	}
	p := &prefix{name: name, keys: newKeys(name)}
	if _, err := s.descriptor(ctx, p); err != nil {
		return nil, s.failure(fmt.Sprintf("reading prefix %q", name), err)
	}
	r := &request{msg: &nats.Msg{
		Subject: s.wire.put + p.keys.proof(),
		Header:  nats.Header{jetstream.ExpectedStreamHeader: {"-"}}, // another's: refused
	}}
	s.wire.ask(ctx, r)
	var api *jetstream.APIError
	if _, err := r.seq(); err != nil && (!errors.As(err, &api) || api.ErrorCode != codeWrongStream) {
		return nil, s.failure(fmt.Sprintf("trying a write for prefix %q", name), err)
	}
	return s.findings(d), nil
}

func (s *Store) missing() error {
	return &refusal{cause: errMissing, cure: fmt.Sprintf("run one process without WithoutCreate, which creates it, or create it by hand: "+
		"nats stream add %s --subjects='%s>' --storage=file --replicas=%d --max-msgs-per-subject=1 --discard=new "+
		"--allow-msg-ttl --allow-rollup --allow-direct --deny-delete --defaults", s.wire.stream, s.wire.kv, s.replicas)}
}

// tooOld reports whether a server's version says that it knows no TTL of messages.
func tooOld(version string) bool {
	first, rest, _ := strings.Cut(version, ".")
	second, _, _ := strings.Cut(rest, ".")
	major, err1 := strconv.Atoi(first)
	minor, err2 := strconv.Atoi(second)
	return err1 == nil && err2 == nil && (major < 2 || major == 2 && minor < 11)
}

// ofClient is what is found of the client, and of the server that it is connected to.
func (s *Store) ofClient() (found []store.Finding) {
	if n := s.wire.nc.MaxPayload(); n < goodSize {
		found = append(found, store.Finding{
			ID: "nats-kv-value-size", What: fmt.Sprintf("The NATS server takes no message larger than %d bytes.", n),
			Consequence: tooLarge, Cure: "Raise max_payload.",
		})
	}
	o := &s.wire.nc.Opts
	what := natsconn.GivesUp(o)
	if what == "" {
		return found
	}
	return append(found, store.Finding{
		ID: "nats-kv-reconnects", What: what,
		Consequence: "After an outage that is longer, nothing can be claimed or completed until the process is started again.",
		Cure:        natsconn.ReconnectsForEver,
	})
}

const tooLarge = "A completion whose result does not fit, with a third more for its encoding, fails."

// findings is what weakens the promise.
func (s *Store) findings(d *details) []store.Finding {
	const forgets = "What it forgets can be handled again."
	found := s.ofClient()
	add := func(id, consequence, cure, format string, args ...any) {
		found = append(found, store.Finding{
			ID: id, What: fmt.Sprintf("The NATS bucket %q ", s.wire.bucket) + fmt.Sprintf(format, args...),
			Consequence: consequence, Cure: cure,
		})
	}
	c := &d.Config
	if c.Storage == jetstream.MemoryStorage {
		add("nats-kv-memory", forgets, "Use a bucket with file storage; the storage of one that exists cannot be changed.",
			"is in memory: it forgets everything when its servers stop.")
	}
	if c.PersistMode == jetstream.AsyncPersistMode {
		add("nats-kv-async", forgets, "Use a bucket with the default persist mode.",
			"acknowledges before it writes its file (persist mode async): a crash of the server forgets the last writes.")
	}
	if c.MaxMsgSize >= 0 && c.MaxMsgSize < goodSize {
		add("nats-kv-value-size", tooLarge, fmt.Sprintf("Raise it (nats stream edit %s --max-msg-size=-1).", c.Name),
			"takes no value larger than %d bytes.", c.MaxMsgSize)
	}
	const ignored = "The option has no effect: it counts where the store creates the bucket."
	if s.given.storage && c.Storage != s.storage {
		add("nats-kv-options", ignored, "Leave out WithStorage, or use another bucket: the storage of one that exists cannot be changed.",
			"has %v storage, and the store is set to %v.", c.Storage, s.storage)
	}
	if s.given.maxBytes && max(c.MaxBytes, 0) != s.maxBytes {
		limit := s.maxBytes
		if limit == 0 {
			limit = -1
		}
		add("nats-kv-options", ignored, fmt.Sprintf("Change WithMaxBytes, or, if nothing else uses the bucket, its limit (nats stream edit %s --max-bytes=%d).", c.Name, limit),
			"is bounded to %d bytes (-1: not), and the store is set to WithMaxBytes(%d).", c.MaxBytes, s.maxBytes)
	}
	if s.given.replicas && c.Replicas > s.replicas {
		add("nats-kv-options", ignored, "Change WithReplicas.",
			"has %d replicas, and the store is set to %d.", c.Replicas, s.replicas)
	}
	clustered := d.Cluster != nil && d.Cluster.Name != ""
	switch {
	case c.Replicas == 1 && clustered:
		add("nats-kv-replicas", "When that server is down nothing can be claimed or completed, and what its disk loses can be handled again.",
			fmt.Sprintf("Give it three (nats stream edit %s --replicas=3).", c.Name), "has one replica in a cluster of several servers.")
	case c.Replicas < s.replicas:
		add("nats-kv-replicas", "A failure that the wanted number outlives can stop it.",
			fmt.Sprintf("Give it %d (nats stream edit %s --replicas=%d), or change WithReplicas.", s.replicas, c.Name, s.replicas),
			"has %d replicas, and the store is set to %d.", c.Replicas, s.replicas)
	}
	if clustered {
		for _, r := range d.Cluster.Replicas {
			if !r.Current || r.Offline {
				add("nats-kv-replica-lag", "A failure of one more server can stop it, or forget what was acknowledged.",
					"See to that server.", "has a replica on %q that is offline or lags behind.", r.Name)
			}
		}
	}
	if tight(&d.info) {
		add("nats-kv-full", "New messages wait.", "Raise its limit, or shorten the retention.",
			"is full (%d of %d bytes): it takes completions, and no claims.", d.info.State.Bytes, c.MaxBytes)
	}
	return found
}
