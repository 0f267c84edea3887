// Package role is what a consumer process of the torture runs is told.
package role

import (
	"strings"
	"time"

	"github.com/idemq/idemq/e2e/history"
)

// Config is a consumer process. It is handed over as JSON in the environment variable
// [Env]; on its standard input the process reads commands, a line each: see [Slow] and
// [Clock].
type Config struct {
	Number  uint16 // of the process: no two of a run have the same
	History string // the file that it records in
	Run     string // what every token of the run begins with: see [Token]

	Broker Broker
	Store  Store

	Lease       time.Duration
	Retention   time.Duration // zero is the library's default
	Budget      int
	Concurrency int    // handlers at a time; in a lane, where the broker has lanes
	Ahead       int    // claims made ahead; zero is the library's default, [NoneAhead] none
	NearCache   int    // tokens of it; zero for none
	Batch       int    // messages that a handler is given at most; zero for a handler of one
	PGX         bool   // PostgreSQL is used by pgxstore
	Instance    string // empty for none

	FailEvery   int           // one token in so many fails on its first attempt; zero for none
	PoisonEvery int           // one token in so many fails always, and is dead-lettered; zero for none
	Work        time.Duration // what a handler takes

	StatsEvery time.Duration // how often a line of Stats is written; zero for never
}

// Env names the variable with the Config.
const Env = "IDEM_TORTURE_CONSUMER"

// Commands, each followed by a space and a duration, as in "slow 500ms".
const (
	Slow  = "slow"  // what handlers take from now on, on top of Work
	Clock = "clock" // how far the wall clock of the process is off, for builds with the overlay that can
)

// NoneAhead is an Ahead.
const NoneAhead = -1

// Broker is where messages come from.
type Broker struct {
	Kind   string // "kafka-reader", "kafka-group", "nats", "amqp-classic", "amqp-quorum"
	Addr   string // of the proxy; a URL where the client wants one
	Source string // topic, stream, queue
	Group  string // consumer group, durable consumer
	DeadTo string // topic, subject, queue
}

// Store is where records are kept.
type Store struct {
	Kind   string // "redis", "redis-compact", "nats", "postgres", "mariadb", "sqlite"
	Addr   string // of the proxy: host and port, URL, DSN, file
	Bucket string // of NATS
	Prefix string
}

// Stats are the figures of a consumer process: a line of JSON in its [StatsFile].
type Stats struct {
	At          int64  `json:"at"` // of history.Now
	Number      uint16 `json:"number"`
	RSS         int64  `json:"rss"`  // bytes
	Heap        int64  `json:"heap"` // bytes that were in use when they were last collected
	Goroutines  int    `json:"goroutines"`
	Descriptors int    `json:"descriptors"`
}

// StatsFile is where a process writes its Stats, beside the file that it records in.
func StatsFile(file string) string {
	return strings.TrimSuffix(file, history.Suffix) + ".stats"
}
