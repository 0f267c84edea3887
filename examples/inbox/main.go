// Command inbox books payments into a SQL database, where the records of idem are kept
// as well, so that a payment and its completion commit in one transaction. Each payment
// is published twice; consumers, processes of their own, are killed at random while they
// work; at the end a query over the tables says whether each payment was booked exactly
// once.
//
//	go run ./examples/inbox
//	go run ./examples/inbox -db postgres://user@localhost/test -n 20000 -kills 500
//
// Without -db the database is SQLite in a file of its own, and without -nats the broker
// is a NATS server inside this program, so it needs nothing but Go. The exit status is 1
// if a payment was lost or booked twice, and 2 if the program could not do its work. It
// removes what it made, unless -keep is given.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/idemq/idemq/idem"
)

// settings are what the processes of one run have in common.
type settings struct {
	db      string // URL or file
	nats    string // URL
	name    string // of the stream, and of the tables
	replica string // of a consumer; empty: the one who runs them
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}

// run returns the exit status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var s settings
	var t trial
	flags := flag.NewFlagSet("inbox", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&s.db, "db", "", "`URL` of a PostgreSQL database, postgres://..., or a file for SQLite (default: SQLite in a temporary file)")
	flags.StringVar(&s.nats, "nats", "", "`URL` of a NATS server with JetStream (default: one inside this program)")
	flags.IntVar(&t.payments, "n", 500, "`number` of payments")
	flags.IntVar(&t.kills, "kills", 10, "how `many` consumers are killed, as long as there is work")
	flags.IntVar(&t.replicas, "consumers", 3, "`number` of consumers at a time")
	flags.Uint64Var(&t.seed, "seed", uint64(time.Now().UnixNano()), "`number` that the times of the kills are drawn with")
	flags.BoolVar(&t.keep, "keep", false, "keep the tables and the stream")
	flags.StringVar(&s.name, "name", "", "of a run; for its consumers")
	flags.StringVar(&s.replica, "replica", "", "be this consumer of the run")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	}
	fail := func(err error) int {
		fmt.Fprintf(stderr, "inbox: %v\n", err)
		return 2
	}
	if s.replica != "" {
		if err := consume(ctx, s); err != nil {
			return fail(fmt.Errorf("%s: %w", s.replica, err))
		}
		return 0
	}
	if t.payments < 1 || t.kills < 0 || t.replicas < 1 {
		return fail(errors.New("-n and -consumers must be more than zero, and -kills not less"))
	}
	s.name = "inbox_" + idem.NewToken()[24:]
	t.settings, t.stderr = s, stderr
	result, err := t.run(ctx, stdout)
	if err != nil {
		return fail(err)
	}
	fmt.Fprintf(stdout, "%d payments, each published twice: %d booked, %d lost, %d doubled, %d wrong balances; %d consumers killed\n",
		t.payments, result.booked, result.lost, result.doubled, result.wrong, t.killed)
	if !result.exact() {
		fmt.Fprintf(stderr, "inbox: the promise was broken; -seed %d\n", t.seed)
		return 1
	}
	return 0
}
