// Package inbox is the inbox of sqlstore and pgxstore: a store.Transactor on a database
// that is reached through a small interface, [DB].
package inbox

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/idemq/idemq/idem/store"
)

// Config is what the constructors set.
type Config struct {
	Package string // in errors: "sqlstore"
	Dialect Dialect
	Tables  string // the prefix of their names
	Create  bool   // at first use
	NoSweep bool   // but by Sweep
}

// Store is the inbox.
type Store struct {
	db         DB
	config     Config
	statements *statements
	err        error // what makes every call fail

	mu         sync.Mutex
	ready      bool               // the schema has been looked at
	epoch      string             // as last seen
	told       string             // the epoch that guards know of
	losses     int                // how often it was another
	gids       map[string]int64   // by the names' hash
	renewed    map[key]string     // claims that have a row among the leases, as far as known
	ended      []lease            // rows among the leases that nobody needs any more
	committing map[lease]struct{} // claims whose COMMIT is under way
	sweep      schedule

	creating sync.Mutex
}

// lease is a row among the leases.
type lease struct {
	key
	claim string
}

// New returns a store; what is wrong is told by each call.
func New(db DB, c Config, faults ...error) *Store {
	if c.Tables == "" {
		c.Tables = DefaultTables
	}
	s := &Store{db: db, config: c, gids: make(map[string]int64), renewed: make(map[key]string), committing: make(map[lease]struct{})}
	if err := check(c.Dialect, c.Tables); err != nil {
		faults = append(faults, err)
	}
	for _, err := range faults {
		switch {
		case err == nil:
		case s.err == nil:
			s.err = fmt.Errorf("%s: %w", c.Package, err)
		default:
			s.err = fmt.Errorf("%w; %w", s.err, err)
		}
	}
	if s.err == nil {
		s.statements, s.err = load(c.Dialect, c.Tables)
	}
	return s
}

// Capabilities implements store.Store: nothing is lacking.
func (s *Store) Capabilities() store.Capabilities { return store.Capabilities{} }

// Schema is the DDL of the store's tables.
func (s *Store) Schema() string {
	text, _ := Schema(s.config.Dialect, s.config.Tables)
	return text
}

// now is SQLite's clock, in microseconds.
func now() int64 { return time.Now().UnixMicro() }

// query executes a statement and calls scan for each row.
func (s *Store) query(ctx context.Context, c Conn, name string, v values, scan func(Rows) error) error {
	text, params := s.statements.bind(name, v)
	rows, err := c.Query(ctx, text, params...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

func (s *Store) exec(ctx context.Context, c Conn, name string, v values) (int64, error) {
	text, params := s.statements.bind(name, v)
	return c.Exec(ctx, text, params...)
}

// number reads one number.
func (s *Store) number(ctx context.Context, c Conn, name string, v values) (n int64, found bool, err error) {
	err = s.query(ctx, c, name, v, func(r Rows) error {
		found = true
		return r.Scan(&n)
	})
	return n, found, err
}

// within runs fn in a short transaction, which is committed if fn returns nil.
func (s *Store) within(ctx context.Context, fn func(Tx) error) error {
	tx, err := s.db.Begin(ctx, s.statements.begin)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if err := fn(tx); err != nil {
		return err
	}
	return tx.Commit(ctx)
}

// pause waits a little before the nth repetition.
func pause(ctx context.Context, n int) error {
	d := min(time.Millisecond<<min(n, 10), 32*time.Millisecond)
	t := time.NewTimer(d/2 + rand.N(d))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// persist runs fn until it succeeds, or fails for a reason that does not pass: a busy
// database, a deadlock and their like do, within ctx.
func (s *Store) persist(ctx context.Context, fn func() error) error {
	var last error
	for n := 0; ; n++ {
		err := fn()
		if err == nil {
			return nil
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		if !passes(err) {
			return err
		}
		if pause(ctx, n) != nil {
			return last
		}
	}
}
