package sqlstore_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/sqlstore"
)

// While a COMMIT is under way on the server, "not known" is no refusal, however short the
// time was to ask: a message would be dead-lettered that is done.
func TestNotKnownIsNoRefusal(t *testing.T) {
	t.Parallel()
	db := postgres15.database(t)
	effects(t, db)
	run(t, db, strings.ReplaceAll(slowCommit, "0.7", "2"))
	s := postgres15.store(t, db)
	ctx, tx, b := enlist(t, s, "a", "c1", 20*time.Second)
	if err := write(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	for _, d := range []int{100, 200, 400, 600} {
		soon, cancel := context.WithTimeout(t.Context(), time.Duration(d)*time.Millisecond)
		if err := tx.Commit(soon, b); !errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrRolledBack) {
			t.Errorf("Commit within %d ms: %v", d, err)
		}
		cancel()
	}
	soon, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	other := terms(commit("a", "c1", 1))
	if err := s.Apply(soon, other); err == nil {
		err = other.Replies[0].Err
		if !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("Apply meanwhile: %+v", other.Replies)
		}
	} else if !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("Apply meanwhile: %v", err)
	}
	await(t, "an answer", func() bool { return tx.Commit(t.Context(), b) == nil })
	if b.Replies[0].Status != store.OK {
		t.Errorf("the answer is %+v", b.Replies)
	}
	has(t, db, "a", 1)
	state(t, s, "a", store.Done)
}

// A database that has forgotten its last commits, a failover's say, gives a group's number
// to no other group, and to the same group again.
func TestNumbersOfGroups(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, b backend) {
		db := b.database(t)
		billing, mail, restarted := b.store(t, db), b.store(t, db), b.store(t, db)
		claim := func(s *sqlstore.Store, group, token string) store.Status {
			op := begin(token, fmt.Sprint(group, token))
			op.Group = group
			return apply(t, s, op, time.Minute).Status
		}
		if r := claim(billing, "billing", "t0"); r != store.Claimed {
			t.Fatal(r)
		}
		run(t, db, "DELETE FROM idemq_records")
		run(t, db, "DELETE FROM idemq_groups")
		if b.dialect == sqlstore.MySQL {
			run(t, db, "ALTER TABLE idemq_groups AUTO_INCREMENT = 1")
		}
		for i, step := range []struct {
			s            *sqlstore.Store
			group, token string
			want         store.Status
		}{
			{mail, "mail", "t0", store.Claimed},
			{billing, "billing", "order", store.Claimed},
			{mail, "mail", "order", store.Claimed},
			{billing, "mail", "order", store.InProgress},
			{restarted, "billing", "order", store.InProgress},
		} {
			op := begin(step.token, fmt.Sprint("c", i))
			op.Group = step.group
			if r := apply(t, step.s, op, time.Minute); r.Status != step.want {
				t.Errorf("step %d: token %s in %s: %v, want %v", i, step.token, step.group, r.Status, step.want)
			}
		}
	})
}

// A lease may be longer than any timeout that a server knows.
func TestLongLease(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, b backend) {
		s := b.store(t, b.database(t))
		g := idem.New(idem.WithStore(s), idem.WithLease(30*24*time.Hour), idem.WithRetention(60*24*time.Hour))
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := g.Do(ctx, "a", func(context.Context) error { return nil }); err != nil {
			t.Error(err)
		}
	})
}
