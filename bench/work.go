// Package bench measures this library's consumers beside what people run today, on real
// servers. README.md says what is measured, and how to run it.
package bench

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"

	"github.com/idemq/idemq/idem"
)

const (
	payloadSize = 100
	partitions  = 4

	// A copy of a token comes once in each period, never within its last partitions
	// messages: so the last message of every partition is a fresh one, and whoever handles
	// in order is through with everything when the last effect happens.
	copyEvery = 10
	copyAt    = 5

	// nearby is how far back the nearer half of the copies have their original, at most.
	nearby = 64
)

// Work is the messages that a row is given, in the order in which they are published.
// One in ten carries a token that was there before, half of these a short while ago, half
// at any time.
type Work struct {
	tokens     []string
	messages   []int // each one's token, as an index
	partitions int
}

// NewWork makes n messages, a multiple of ten. The same seed gives the same order.
func NewWork(n int, seed uint64) (*Work, error) {
	if n <= 0 || n%copyEvery != 0 {
		return nil, fmt.Errorf("%d messages: must be a multiple of %d, above zero", n, copyEvery)
	}
	w := &Work{messages: make([]int, 0, n), partitions: partitions}
	r := rand.New(rand.NewPCG(seed, 0))
	for i := range n {
		switch {
		case i%copyEvery != copyAt:
			w.messages = append(w.messages, len(w.tokens))
			w.tokens = append(w.tokens, idem.NewToken())
		case i/copyEvery%2 == 0:
			w.messages = append(w.messages, w.messages[i-1-r.IntN(min(i, nearby))])
		default:
			w.messages = append(w.messages, w.messages[r.IntN(i)])
		}
	}
	return w, nil
}

// Messages is how many messages there are.
func (w *Work) Messages() int { return len(w.messages) }

// Distinct is how many tokens they have.
func (w *Work) Distinct() int { return len(w.tokens) }

// message is one message as it is published.
type message struct {
	token     string
	partition int // the same for all copies
	payload   []byte
}

// at is the i-th message.
func (w *Work) at(i int) message {
	n := w.messages[i]
	return w.message(n, w.tokens[n])
}

// message is of a token, with whose number its payload begins.
func (w *Work) message(n int, token string) message {
	payload := make([]byte, payloadSize)
	binary.BigEndian.PutUint64(payload, uint64(n))
	return message{token: token, partition: n % w.partitions, payload: payload}
}

// numberOf is the number of a message's token.
func numberOf(payload []byte) (uint64, error) {
	if len(payload) != payloadSize {
		return 0, fmt.Errorf("a message of %d bytes, which was not published", len(payload))
	}
	return binary.BigEndian.Uint64(payload), nil
}
