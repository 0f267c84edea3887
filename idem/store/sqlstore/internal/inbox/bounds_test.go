package inbox

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
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

// slowTable is a database of rows that are due, which deletes them one a millisecond, unless
// its time is over before.
type slowTable struct {
	answers
	due   int
	tries []int
}

func (d *slowTable) Begin(context.Context, []string) (Tx, error) { return &slowTx{slowTable: d}, nil }

type slowTx struct {
	*slowTable
	found int
}

func (t *slowTx) Query(_ context.Context, statement string, _ ...any) (Rows, error) {
	if t.found = min(t.due, limitOf(statement)); strings.Contains(statement, "idemq_records r") {
		t.tries = append(t.tries, t.found)
		return &dueRows{left: t.found}, nil
	}
	return &dueRows{}, nil
}

func (t *slowTx) Exec(ctx context.Context, _ string, _ ...any) (int64, error) {
	timer := time.NewTimer(time.Duration(t.found) * time.Millisecond)
	defer timer.Stop()
	select {
	case <-timer.C:
		return int64(t.found), nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func (t *slowTx) Commit(context.Context) error {
	t.due -= t.found
	return nil
}

func (*slowTx) Rollback() {}

func limitOf(statement string) int {
	_, after, _ := strings.Cut(statement, "LIMIT ")
	n, _ := strconv.Atoi(after)
	return n
}

type dueRows struct{ left int }

func (r *dueRows) Next() bool {
	r.left--
	return r.left >= 0
}

func (r *dueRows) Scan(dest ...any) error {
	*dest[1].(*[]byte) = strconv.AppendInt(nil, int64(r.left), 10)
	return nil
}

func (*dueRows) Err() error { return nil }
func (*dueRows) Close()     {}

// A sweep that does not get done in its time tries fewer rows at the next one, and more again
// when it gets done.
func TestSweepGetsSomewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := &slowTable{due: 2000}
		s := New(db, Config{Package: "inbox", Dialect: SQLite})
		sweep := func(lease time.Duration) {
			s.sweep.next = time.Time{}
			s.sweepSometimes(t.Context(), &store.Batch{Lease: lease, Now: time.Now()})
		}
		for range 10 {
			sweep(time.Second) // may take 100 ms
		}
		if db.due > 1900 {
			t.Errorf("after ten sweeps %d rows of 2,000 are left; tried were %v", db.due, db.tries)
		}
		db.due, db.tries = 2000, nil
		for range 20 {
			sweep(time.Minute) // may take a second
		}
		if db.due > 0 || slices.Max(db.tries) < 500 {
			t.Errorf("with more time %d rows of 2,000 are left; tried were %v", db.due, db.tries)
		}
	})
}

// heldLeases is a table of rows that are due, beside leases whose deletion waits without end.
type heldLeases struct {
	slowTable
	waits int
}

func (d *heldLeases) Exec(ctx context.Context, statement string, _ ...any) (int64, error) {
	if !strings.Contains(statement, "idemq_leases") {
		return 1, nil
	}
	d.waits++
	<-ctx.Done()
	return 0, ctx.Err()
}

// Where the leases of claims that are over cannot be deleted, records are, and what was waited
// for in vain is left to the sweep of leases, which passes over what others hold.
func TestSweepBesideHeldLeases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := &heldLeases{slowTable: slowTable{due: 2000}}
		s := New(db, Config{Package: "inbox", Dialect: SQLite})
		for i := range 100 {
			s.ended = append(s.ended, lease{key{1, strconv.Itoa(i)}, "c"})
		}
		for range 10 {
			s.sweep.next = time.Time{}
			s.sweepSometimes(t.Context(), &store.Batch{Lease: 15 * time.Second, Now: time.Now()})
		}
		if db.due > 0 {
			t.Errorf("after ten sweeps %d rows of 2,000 are left; tried were %v", db.due, db.tries)
		}
		if db.waits != 1 || len(s.ended) > 0 {
			t.Errorf("the leases' rows were waited for %d times, and %d are in mind", db.waits, len(s.ended))
		}
	})
}

// However many leases of claims that are over there are, a sweep deletes its share of them.
func TestEndedLeasesAreDeletedInShares(t *testing.T) {
	s := New(&answers{}, Config{Package: "inbox", Dialect: SQLite})
	for i := range 3 * maxOps {
		s.ended = append(s.ended, lease{key{1, strconv.Itoa(i)}, "c"})
	}
	for i, limit := range []int{100, sweepLimit} {
		if err := s.endLeases(t.Context(), limit); err != nil {
			t.Fatal(err)
		}
		if want := []int{3*maxOps - 100, 2*maxOps - 100}[i]; len(s.ended) != want {
			t.Errorf("after a sweep of %d there are %d leases left, want %d", limit, len(s.ended), want)
		}
	}
}
