package main

import (
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/idemq/idemq/internal/child"
	"github.com/idemq/idemq/internal/natstest"
	"github.com/idemq/idemq/internal/program"
	"github.com/idemq/idemq/internal/sqltest"
)

var last = regexp.MustCompile(`^(\d+) payments, each published twice: (\d+) booked, 0 lost, 0 doubled, 0 wrong balances; (\d+) consumers killed\n$`)

func TestBookedOnce(t *testing.T) {
	bin := program.Build(t)
	for name, args := range map[string][]string{
		"SQLite":     {"-n", "300", "-kills", "5"},
		"PostgreSQL": {"-n", "300", "-kills", "5", "-db", sqltest.StartPostgres(t, "").DSN(), "-nats", natstest.Start(t).URL()},
	} {
		status, out, errs := program.Run(t, bin, args...)
		found := last.FindStringSubmatch(out)
		if status != 0 || found == nil || found[2] != "300" || found[3] == "0" || errs != "" {
			t.Errorf("%s: exit status %d, output:\n%s%s", name, status, out, errs)
		}
	}
}

// The audit is asked about tables in which something is wrong.
func TestBrokenPromise(t *testing.T) {
	for _, tc := range []struct {
		name string
		sql  string
		want result
	}{
		{"right", "", result{owed: 2, booked: 2}},
		{"lost", "DELETE FROM bookings WHERE payment = 1", result{owed: 2, booked: 1, lost: 1}},
		{"doubled", "INSERT INTO bookings VALUES (1, 2)", result{owed: 2, booked: 3, doubled: 1}},
		{"lost and doubled", "UPDATE bookings SET payment = 0", result{owed: 2, booked: 2, lost: 1, doubled: 1}},
		{"balance", "UPDATE accounts SET cents = cents + 1 WHERE id = 0", result{owed: 2, booked: 2, wrong: 1}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b, err := open(settings{db: filepath.Join(t.TempDir(), "bank.db"), name: "t"})
			if err != nil {
				t.Fatal(err)
			}
			defer b.db.Close()
			if err := b.create(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := b.owe(t.Context(), 2); err != nil {
				t.Fatal(err)
			}
			for _, query := range []string{
				"INSERT INTO bookings VALUES (0, 1), (1, 1)",
				"UPDATE accounts SET cents = (SELECT sum(cents) FROM payments WHERE account = accounts.id) WHERE id < 2",
				tc.sql,
			} {
				if _, err := b.db.ExecContext(t.Context(), b.sql(query)); err != nil {
					t.Fatal(err)
				}
			}
			got, err := b.audit(t.Context())
			if err != nil || got != tc.want || got.exact() != (tc.name == "right") {
				t.Errorf("%+v (%v), want %+v", got, err, tc.want)
			}
		})
	}
}

func TestCannotRun(t *testing.T) {
	bin := program.Build(t)
	for _, c := range []struct {
		word string
		args []string
	}{
		{"-db", []string{"-db", "postgres://" + child.FreeAddr(t) + "/test?connect_timeout=2"}},
		{"-db", []string{"-db", filepath.Join(t.TempDir(), "no", "folder")}},
		{"-nats", []string{"-nats", "nats://" + child.FreeAddr(t)}},
		{"-n", []string{"-n", "0"}},
		{"-kills", []string{"-kills", "-1"}},
	} {
		status, out, errs := program.Run(t, bin, c.args...)
		if status != 2 || out != "" || !strings.HasPrefix(errs, "inbox: ") || !strings.Contains(errs, c.word) {
			t.Errorf("%q: exit status %d, want 2; output %q, stderr does not name %s:\n%s", c.args, status, out, c.word, errs)
		}
	}
}
