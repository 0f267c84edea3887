// Package torture runs consumers of every broker with every store under faults, and
// holds what they did to the promise.
package torture

import (
	"context"

	"github.com/idemq/idemq/e2e/torture/role"
	"github.com/idemq/idemq/idem/store"
)

// Message is one to be published.
type Message struct {
	Token uint32
	Key   uint32 // messages of a key are in order, where the broker keeps one
}

// Broker is a real broker, which consumers reach by way of its proxy, and the harness
// directly. Its methods are called from one goroutine, but for Publish, which runs
// beside the others, and end the test when the server does not do what it is told.
type Broker interface {
	// Round makes a new source and a new dead-letter destination, which are empty, and
	// has all that follows mean these; those of the round before are deleted. The tokens
	// of what is published begin with run (history.Token). It is called before anything
	// else of the round, while no consumer runs.
	Round(run string)

	Kind() string    // as in role.Broker
	Version() string // of the server
	Role() role.Broker
	Proxy() *Proxy

	// Publish returns when the broker has confirmed every message, or ctx ends. It
	// tries again while the broker is away: a message may be published twice.
	Publish(ctx context.Context, msgs []Message) error
	// Owed is how many messages are not settled. An error passes: ask again.
	Owed(ctx context.Context) (int, error)
	// DeadLetters are the tokens of the copies in the dead-letter destination.
	DeadLetters(ctx context.Context) ([]uint32, error)
	// Ordered tells whether messages of a key are handled in the order of their
	// publishing.
	Ordered() bool

	// Restart kills the server and starts it again, with what it had confirmed.
	Restart()
}

// Store is a real store, which consumers reach by way of its proxy. What else can be
// done to it is in the interfaces below.
type Store interface {
	// Round empties the store, for the records of a new run; see Broker.Round.
	Round(run string)

	Kind() string
	Version() string
	Role() role.Store
	Proxy() *Proxy // nil where there is no connection: SQLite

	// Restart kills the server and starts it again, with what it had acknowledged. A
	// store without a server does nothing.
	Restart()
}

// Forgetter can lose what it had acknowledged.
type Forgetter interface {
	// RestartEmpty kills the server and starts it again with nothing.
	RestartEmpty()
	// FailOver puts a replica that lags in the place of the server: what was
	// acknowledged in the last moments is forgotten. It returns since when, on the
	// clock of the histories.
	FailOver() (since int64)
}

// Filler can run out of room.
type Filler interface {
	Fill()  // nothing more can be written
	Empty() // there is room again
}

// Limited is a store whose driver may lack something.
type Limited interface {
	Capabilities() store.Capabilities
}

// Transactional is a store whose effects are rows, written in the transaction of the
// completion.
type Transactional interface {
	Effects(ctx context.Context) ([]Row, error)
}

// Row is an effect in a database.
type Row struct {
	Token   uint32
	Attempt uint16
	Process uint16
}
