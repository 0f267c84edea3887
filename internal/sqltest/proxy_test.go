package sqltest

import (
	"context"
	"database/sql"
	"testing"
)

// transact inserts a row in a transaction.
func transact(t *testing.T, db *sql.DB, name string) error {
	t.Helper()
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	insert := "INSERT INTO things VALUES ('" + name + "')"
	if _, err := tx.ExecContext(t.Context(), insert); err != nil {
		t.Fatal(err)
	}
	return tx.Commit()
}

// place is what a statement has in place of an argument.
func (k kind) place() string {
	if k.driver == "pgx" {
		return "$1"
	}
	return "?"
}

func TestCutNextCommit(t *testing.T) {
	each(t, func(t *testing.T, k kind) {
		s := k.start(t)
		direct := open(t, k, s.DSN())
		run(t, direct, "CREATE TABLE things (name varchar(20))")
		p := StartProxy(t, s)
		db := open(t, k, p.DSN())
		rows := func(name, want string) {
			t.Helper()
			if n := count(t, direct, name); n != want {
				t.Errorf("%s: %s rows, want %s", name, n, want)
			}
		}
		cut := func(want int) {
			t.Helper()
			n := 0
			for len(p.Cuts()) > 0 {
				<-p.Cuts()
				n++
			}
			if n != want {
				t.Errorf("%d commits were cut, want %d", n, want)
			}
		}

		if err := transact(t, db, "untouched"); err != nil {
			t.Errorf("not armed: %v", err)
		}
		rows("untouched", "1")

		p.CutNextCommit(CutBefore, "")
		if err := transact(t, db, "before"); err == nil {
			t.Error("a commit that the server has not seen succeeded")
		}
		cut(1)
		rows("before", "0")

		p.CutNextCommit(CutAfter, "")
		if err := transact(t, db, "after"); err == nil {
			t.Error("a commit whose answer was dropped succeeded")
		}
		cut(1)
		rows("after", "1")

		if err := transact(t, db, "next"); err != nil {
			t.Errorf("the proxy fired twice: %v", err)
		}
		rows("next", "1")

		// With a marker, only the transaction that has it is cut.
		for how, want := range map[Cut]string{CutBefore: "0", CutAfter: "1"} {
			run(t, direct, "DELETE FROM things")
			p.CutNextCommit(how, "marked")
			tx, err := db.BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			// In an argument, and in the transaction before.
			if _, err := tx.ExecContext(t.Context(), "INSERT INTO things VALUES ("+k.place()+")", "marked"); err != nil {
				t.Fatal(err)
			}
			if err := transact(t, db, "other"); err != nil {
				t.Errorf("another connection's commit: %v", err)
			}
			if err := tx.Rollback(); err != nil {
				t.Fatal(err)
			}
			if err := transact(t, db, "later"); err != nil {
				t.Errorf("a later transaction's commit: %v", err)
			}
			cut(0)
			if tx, err = db.BeginTx(t.Context(), &sql.TxOptions{Isolation: sql.LevelSerializable}); err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"marked", "second"} {
				if _, err := tx.ExecContext(t.Context(), "INSERT INTO things VALUES ("+k.place()+")", name); err != nil {
					t.Fatal(err)
				}
			}
			if err := tx.Commit(); err == nil {
				t.Error("the commit that has the marker was not cut")
			}
			cut(1)
			rows("other", "1")
			rows("later", "1")
			rows("marked", want)
			rows("second", want)
		}
	})
}

func TestProxyCut(t *testing.T) {
	each(t, func(t *testing.T, k kind) {
		s := k.start(t)
		p := StartProxy(t, s)
		db := open(t, k, p.DSN())
		session, err := db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer session.Close()
		p.Cut()
		if _, err := session.ExecContext(t.Context(), "SELECT 1"); err == nil {
			t.Error("a session outlived the cut")
		}
		if err := db.PingContext(t.Context()); err == nil {
			t.Error("a session was opened over the cut")
		}
		p.Restore()
		if err := db.PingContext(t.Context()); err != nil {
			t.Errorf("after the cut: %v", err)
		}

		p.Hold()
		p.Hold()
		briefly(t, "a held session", db.PingContext)
		briefly(t, "a new session", func(ctx context.Context) error {
			other, err := db.Conn(ctx)
			if err == nil {
				_ = other.Close()
			}
			return err
		})
		p.Release()
		p.Release()
		if err := db.PingContext(t.Context()); err != nil {
			t.Errorf("after the hold: %v", err)
		}
		p.Hold() // the proxy ends while it holds
	})
}
