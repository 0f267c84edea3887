package inbox

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/idemq/idemq/idem/store"
)

// hash identifies names, which may be of any length.
func hash(kind byte, prefix, name string) []byte {
	h := sha256.New()
	h.Write([]byte{kind})
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(prefix))))
	h.Write([]byte(prefix))
	h.Write([]byte(name))
	return h.Sum(nil)
}

// What a hash is of.
const (
	ofGroup    = 'g'
	ofIssued   = 'i'
	ofInstance = 'n'
)

// prepare looks at the schema at first use.
func (s *Store) prepare(ctx context.Context) error {
	if s.err != nil {
		return s.err
	}
	s.mu.Lock()
	ready := s.ready
	s.mu.Unlock()
	if ready {
		return nil
	}
	epoch, err := s.readMeta(ctx)
	if err != nil && s.config.Create && (s.kind(err) == missing || errors.As(err, new(olderSchemaError))) {
		if err = s.Create(ctx); err == nil {
			epoch, err = s.readMeta(ctx)
		}
	}
	if err != nil {
		return s.failure("looking at the schema", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ready = true
	if s.epoch == "" {
		s.epoch, s.told = epoch, epoch
	}
	return nil
}

func (s *Store) readMeta(ctx context.Context) (epoch string, err error) {
	v, found := int64(0), false
	err = s.persist(ctx, func() error {
		return s.mark(s.query(ctx, s.db, "meta", nil, func(r Rows) error {
			found = true
			return r.Scan(&v, &epoch)
		}))
	})
	if err != nil {
		return "", err
	}
	if !found {
		return "", olderSchemaError{s, 0}
	}
	return epoch, s.agree(v)
}

// olderSchemaError is the error of tables that an earlier version made.
type olderSchemaError struct {
	s       *Store
	version int64
}

func (e olderSchemaError) Error() string {
	return fmt.Sprintf("the tables %s... are of schema version %d, and this version of the library needs %d: "+
		"upgrade them with %s.Store's Create, or execute what %s.Schema prints",
		e.s.config.Tables, e.version, version, e.s.config.Package, e.s.config.Package)
}

// agree compares the schema's version with this library's.
func (s *Store) agree(v int64) error {
	switch {
	case v < version:
		return olderSchemaError{s, v}
	case v > version:
		return fmt.Errorf("the tables %s... are of schema version %d, which is newer than this program, that knows %d: update this program",
			s.config.Tables, v, version)
	}
	return nil
}

// saw takes in the epoch. Changed, the tables are others than before: what is known of
// them is forgotten.
func (s *Store) saw(epoch string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.epoch == epoch {
		return
	}
	s.epoch = epoch
	clear(s.gids)
	clear(s.renewed)
	s.ended = nil
}

// tell says in a batch that was executed under an epoch what has become of the tables. Only
// Apply counts a loss, since whatever else meets a new epoch has nobody to tell it to.
func (s *Store) tell(b *store.Batch, epoch string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if epoch == s.epoch && epoch != s.told {
		s.told = epoch
		s.losses++
	}
	if b.Losses = s.losses; b.Losses == 0 {
		return
	}
	b.Notice = fmt.Sprintf("The tables %s... were made anew, or are another database's (the epoch in %smeta has changed): "+
		"what the former ones held can be handled again.", s.config.Tables, s.config.Tables)
}

func (s *Store) knows(epoch string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.epoch == epoch
}

// groupID is the number that a new group is given at the nth try; another group has it,
// seldom. It comes from the names: a database that has forgotten its last commits gives
// the same group the same number again, and no other group a number that programs still
// know.
func groupID(hash []byte, n int) int64 {
	var word uint32
	if at := 4 * n; at < len(hash) {
		word = binary.BigEndian.Uint32(hash[at:])
	} else {
		word = rand.Uint32()
	}
	return max(1, int64(word&math.MaxInt32))
}

// maxGroups bounds the numbers that are kept in mind.
const maxGroups = 10_000

// gid is the number of a prefix's group, or of its issued tokens. It is zero where there is
// none, and none is to be made.
func (s *Store) gid(ctx context.Context, kind byte, prefix, group string, create bool) (int64, error) {
	h := hash(kind, prefix, group)
	id, epoch := s.knownGid(h)
	if id != 0 {
		return id, nil
	}
	v := values{"hash": h, "prefix": []byte(prefix), "group": []byte(group)}
	if kind == ofIssued {
		v["group"] = nil
	}
	tries, ok := 0, false
	err := s.persist(ctx, func() (err error) {
		if id, ok, err = s.number(ctx, s.db, "group", v); err != nil || ok || !create {
			return s.mark(err)
		}
		v["id"] = groupID(h, tries)
		tries++
		if _, err = s.exec(ctx, s.db, "new_group", v); err != nil && s.kind(err) != conflict {
			return s.mark(err)
		}
		if id, ok, err = s.number(ctx, s.db, "group", v); err == nil && !ok {
			err = again{errors.New("a new group is not seen")}
		}
		return s.mark(err)
	})
	if err != nil || !ok {
		return 0, err
	}
	s.keepGid(h, id, epoch)
	return id, nil
}

// knownGid is the number that is kept in mind for a hash, or zero.
func (s *Store) knownGid(h []byte) (id int64, epoch string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gids[string(h)], s.epoch
}

// keepGid keeps a number in mind that was seen in an epoch.
func (s *Store) keepGid(h []byte, id int64, epoch string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.epoch != epoch {
		return
	}
	makeRoom(s.gids, maxGroups)
	s.gids[string(h)] = id
}

// Incarnation implements store.Store.
func (s *Store) Incarnation(ctx context.Context, prefix, name string) (n uint64, err error) {
	if err := s.prepare(ctx); err != nil {
		return 0, err
	}
	err = s.persist(ctx, func() error {
		return s.mark(s.within(ctx, func(tx Tx) error {
			v := values{"hash": hash(ofInstance, prefix, name), "prefix": []byte(prefix), "group": []byte(name), "now": now()}
			if _, err := s.exec(ctx, tx, "draw", v); err != nil {
				return err
			}
			drawn, _, err := s.number(ctx, tx, "drawn", v)
			n = uint64(drawn)
			return err
		}))
	})
	if err != nil {
		return 0, s.failure(fmt.Sprintf("drawing an incarnation of %q", name), err)
	}
	return n, nil
}

// Create makes the tables that are not there, and upgrades older ones.
func (s *Store) Create(ctx context.Context) error {
	if s.err != nil {
		return s.err
	}
	s.creating.Lock()
	defer s.creating.Unlock()
	err := s.persist(ctx, func() error { return s.mark(s.create(ctx)) })
	if err != nil && s.kind(err) == denied {
		return fmt.Errorf("%s: creating the tables: %w (grant the user CREATE, or have the owner execute what %[1]s.Schema prints)", s.config.Package, err)
	}
	return s.failure(creatingTables, err)
}

// newer is a schema that is not touched.
func (s *Store) newer(ctx context.Context) error {
	_, err := s.readMeta(ctx)
	if err == nil || s.kind(err) == missing || errors.As(err, new(olderSchemaError)) {
		return nil
	}
	return err
}

func (s *Store) create(ctx context.Context) error {
	if err := s.newer(ctx); err != nil {
		return err
	}
	begin := s.statements.begin
	if s.config.Dialect == Postgres {
		// CREATE ... IF NOT EXISTS fails where two do it at once.
		begin = append(slices.Clip(begin), "SELECT pg_advisory_xact_lock(hashtext('"+s.config.Tables+"'))")
	}
	tx, err := s.db.Begin(ctx, begin)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	for _, statement := range split(s.Schema()) {
		if _, err := tx.Exec(ctx, statement); err != nil {
			return err
		}
	}
	return tx.Commit(ctx)
}
