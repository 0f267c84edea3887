package inbox

import (
	"context"
	"errors"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/rules"
)

// answers is a database that finds one number, whatever it is asked, and takes no
// transaction.
type answers struct{ within time.Duration } // of the last Begin

func (answers) Exec(context.Context, string, ...any) (int64, error) { return 1, nil }

func (answers) Query(context.Context, string, ...any) (Rows, error) { return &one{}, nil }

func (answers) Open(context.Context, context.Context) (Tx, error) {
	return nil, errors.ErrUnsupported
}

func (a *answers) Begin(ctx context.Context, _ []string) (Tx, error) {
	d, _ := ctx.Deadline()
	a.within = time.Until(d)
	return nil, errors.ErrUnsupported
}

type one struct{ read bool }

func (r *one) Next() bool {
	first := !r.read
	r.read = true
	return first
}

func (*one) Scan(dest ...any) error {
	*dest[0].(*int64) = 7
	return nil
}

func (*one) Err() error { return nil }
func (*one) Close()     {}

// However many groups there are, the numbers of some are kept in mind.
func TestGroupsInMind(t *testing.T) {
	s := New(&answers{}, Config{Package: "inbox", Dialect: SQLite})
	for i := range maxGroups + 100 {
		if id, err := s.gid(t.Context(), ofGroup, "p", strconv.Itoa(i), true); id != 7 || err != nil {
			t.Fatal(id, err)
		}
	}
	if n := len(s.gids); n > maxGroups {
		t.Errorf("%d groups are kept in mind", n)
	}
}

// A sweep holds a batch's replies up: for a part of the lease only, and long enough to get
// somewhere.
func TestSweepIsShort(t *testing.T) {
	for lease, want := range map[time.Duration]time.Duration{
		10 * time.Millisecond: 100 * time.Millisecond, 3 * time.Second: 300 * time.Millisecond, time.Minute: time.Second,
	} {
		synctest.Test(t, func(t *testing.T) {
			db := &answers{}
			s := New(db, Config{Package: "inbox", Dialect: SQLite})
			s.sweepSometimes(t.Context(), &store.Batch{Lease: lease, Now: time.Now()})
			if db.within != want {
				t.Errorf("with a lease of %v a sweep may take %v, want %v", lease, db.within, want)
			}
		})
	}
}

// However many renewed claims nobody ends here, the last ones are kept in mind.
func TestRenewedInMind(t *testing.T) {
	s := New(&answers{}, Config{Package: "inbox", Dialect: SQLite})
	for i := range maxEnded + 10 {
		k := key{1, strconv.Itoa(i)}
		r := &row{key: k, renewed: true, record: rules.Record{State: store.Running, Claim: "c"}}
		s.settled(&execution{s: s, records: map[key]*row{k: r}})
		if s.renewed[k] != "c" {
			t.Fatalf("of %d, the last one is not kept in mind", i+1)
		}
	}
	if n := len(s.renewed); n > maxEnded {
		t.Errorf("%d renewed claims are kept in mind", n)
	}
}
