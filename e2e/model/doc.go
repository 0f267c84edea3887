// Package model explores section 3 of the design exhaustively: every order of the
// steps of a few consumer processes, one broker, the store, the dead-letter destination
// and an operator, with a bounded number of faults in between.
//
// The store's transitions are those of package rules, which the drivers in memory, SQL
// and NATS execute, and which the conformance suite holds the Redis scripts to. The
// processes are written by hand after packages idem and consumers: lanes, claims ahead,
// the gate of solitude, backoff in place, the drain. README.md says what is left out.
package model
