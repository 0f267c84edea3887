// Package storetest holds a store driver to the rules of package store.
//
// A driver's own test calls both parts with one [Harness]:
//
//	func TestStore(t *testing.T)     { storetest.Run(t, harness) }
//	func TestHistories(t *testing.T) { storetest.Histories(t, harness) }
//
// [Run] goes through the rules one at a time; each failure starts with the rule
// that was broken and what would be lost or doubled by it. [Histories] runs
// random sequences of operations against a small model of the rules, and finds
// what no case thought of.
package storetest

import (
	"testing"
	"time"

	"github.com/idemq/idemq/idem/store"
)

// Harness is what the suite needs of a driver.
type Harness struct {
	// Name is the store's, for reports ("Redis 7.0, Cluster"), and Server the exact
	// version that is tested. Without a name there is no report; see [EnvReports].
	Name, Server string

	// Open returns the store under test; called once by Run and once by
	// Histories. The suite uses fresh random prefixes, so the store need not be
	// empty. What is to be closed is registered with tb.Cleanup.
	Open func(tb testing.TB) store.Store

	// Wait returns when at least d has passed on the store's clock. It advances
	// a fake clock, or waits.
	Wait func(tb testing.TB, d time.Duration)

	// Lease is the unit of all times of the suite: leases that are to run out
	// last this long, retentions that are to end some times as long. With a real
	// clock it should be well above a round trip; zero is 50 ms.
	Lease time.Duration

	// Corrupt damages the record of a token, which exists; nil skips the cases
	// that need it.
	Corrupt func(tb testing.TB, s store.Store, prefix, group, token string, how Corruption)
}

// Corruption is a way to damage a record.
type Corruption int

// The corruptions.
const (
	// WrongType: something else stands in the record's place: in Redis, a key of
	// another type. Answered with [store.ErrUnreadable].
	WrongType Corruption = iota
	// Garbage: a value that is no record. Answered with [store.ErrUnreadable].
	Garbage
	// NewerVersion: a record whose version mark is higher than any that the
	// driver knows. Answered with [store.ErrNewer].
	NewerVersion
)

// String names the corruption in failures.
func (c Corruption) String() string {
	switch c {
	case WrongType:
		return "wrong type"
	case Garbage:
		return "garbage"
	case NewerVersion:
		return "newer version"
	}
	return "unknown corruption"
}

func (h Harness) unit() time.Duration {
	if h.Lease <= 0 {
		return 50 * time.Millisecond
	}
	return h.Lease
}

// testCase is one rule, and the function that tries it.
type testCase struct {
	name string
	// explanation says the rule and what breaking it would cost; failures start
	// with it.
	explanation string
	run         func(*env)
}

// Run tries every rule, each in a subtest of its own. Cases that need Corrupt
// are skipped without it; what the driver declared that it cannot do is not
// asked for.
func Run(t *testing.T, h Harness) {
	s := h.Open(t)
	sections := []struct {
		name  string
		cases []testCase
	}{
		{"Begin", beginCases},
		{"Redrive", redriveCases},
		{"Alone", aloneCases},
		{"Takeover", takeoverCases},
		{"Fingerprint", fingerprintCases},
		{"Commit", commitCases},
		{"Release", releaseCases},
		{"Renew", renewCases},
		{"Bury", buryCases},
		{"Spend", spendCases},
		{"Forget", forgetCases},
		{"Inspect", inspectCases},
		{"Issue", issueCases},
		{"IssuedOnly", issuedOnlyCases},
		{"Retention", retentionCases},
		{"Names", nameCases},
		{"Batch", batchCases},
		{"Concurrency", concurrencyCases},
		{"Store", storeCases},
		{"Corruption", corruptionCases},
	}
	var outcomes reporter
	all := 0
	defer func() { outcomes.write(t, h, s.Capabilities(), all) }()
	for _, section := range sections {
		all += len(section.cases)
		t.Run(section.name, func(t *testing.T) {
			for _, c := range section.cases {
				t.Run(c.name, func(t *testing.T) {
					outcomes.watch(t)
					c.run(newEnv(t, h, s, c.explanation))
				})
			}
		})
	}
}
