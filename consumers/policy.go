package consumers

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// Defaults of the policies.
const (
	DefaultBudget       = 10
	DefaultFirstBackoff = 100 * time.Millisecond
	DefaultLastBackoff  = 30 * time.Second
	DefaultDrainTimeout = 20 * time.Second
)

// Policy is what the options of a consumer come to. Its zero value is the
// default.
type Policy struct {
	budget         int
	firstBackoff   time.Duration
	lastBackoff    time.Duration
	handlerTimeout time.Duration
	drainTimeout   time.Duration
	failOpen       time.Duration
	atMostOnce     bool
	shadow         bool
	stopStale      bool
	fingerprints   bool
	trustID        bool
	strict         bool
	accepted       []string // IDs of findings, with strict
	ahead          int      // one more than asked for; zero: as the engine sees fit
	tokenFrom      func(Message) (string, error)
}

// Option sets a policy that fits every broker, or something of one broker's
// adapter; an option of another broker's is refused by the constructor.
type Option struct {
	name   string
	policy func(*Policy) error
	own    any // func(*T), T an adapter's configuration
}

// NewOption makes an option of an adapter whose configuration is T. The name is
// shown where the option is given to another adapter.
func NewOption[T any](name string, set func(*T)) Option {
	return Option{name: name, own: set}
}

// Configure applies opts to the shared policy and to an adapter's own
// configuration. The error names every option that is wrong.
func Configure[T any](own *T, opts []Option) (Policy, error) {
	var p Policy
	var faults []error
	for _, o := range opts {
		switch set, mine := o.own.(func(*T)); {
		case o.policy != nil:
			if err := o.policy(&p); err != nil {
				faults = append(faults, fmt.Errorf("%s: %w", o.name, err))
			}
		case mine:
			set(own)
		case o.name != "":
			faults = append(faults, fmt.Errorf("%s: this option belongs to another broker's consumer", o.name))
		}
	}
	if p.atMostOnce && p.shadow {
		faults = append(faults, errors.New("AtMostOnce and Shadow exclude each other: shadow mode handles duplicates"))
	}
	if p.atMostOnce && p.failOpen > 0 {
		faults = append(faults, errors.New("AtMostOnce and FailOpen exclude each other: without the store a message may be handled twice"))
	}
	if len(faults) > 0 {
		return p, fmt.Errorf("options: %w", errors.Join(faults...))
	}
	return p, nil
}

// withDefaults fills in what no option set.
func (p Policy) withDefaults() Policy {
	if p.budget == 0 {
		p.budget = DefaultBudget
	}
	if p.firstBackoff == 0 {
		p.firstBackoff, p.lastBackoff = DefaultFirstBackoff, DefaultLastBackoff
	}
	if p.drainTimeout == 0 {
		p.drainTimeout = DefaultDrainTimeout
	}
	return p
}

func positive[N int | time.Duration](field func(*Policy) *N, n N) func(*Policy) error {
	return func(p *Policy) error {
		if n <= 0 {
			return fmt.Errorf("%v: must be more than zero", n)
		}
		*field(p) = n
		return nil
	}
}

// Budget sets how many attempts may fail, or die with their process, before a
// message is dead-lettered; the default is 10. See idem.RetryAfter for failures that
// are not the message's.
func Budget(n int) Option {
	return Option{name: "Budget", policy: positive(func(p *Policy) *int { return &p.budget }, n)}
}

// Backoff sets the wait before a failed message is tried again: between zero and a
// bound that starts at first and doubles up to last. The default is 100 ms and 30 s:
// with a budget of 10, about 25 s in all.
func Backoff(first, last time.Duration) Option {
	return Option{name: "Backoff", policy: func(p *Policy) error {
		if first <= 0 || last < first {
			return fmt.Errorf("%v, %v: the first must be more than zero, and the last no less than it", first, last)
		}
		p.firstBackoff, p.lastBackoff = first, last
		return nil
	}}
}

// HandlerTimeout cancels a handler's context after d, with cause
// ErrHandlerTimeout; there is none by default. A handler that has not returned after twice
// d is reported (idem.EventStuck), and goes on holding its message.
func HandlerTimeout(d time.Duration) Option {
	return Option{name: "HandlerTimeout", policy: positive(func(p *Policy) *time.Duration { return &p.handlerTimeout }, d)}
}

// DrainTimeout sets how long handlers that have started may go on when Run's context
// has ended; the default is 20 s. Then their contexts are cancelled.
func DrainTimeout(d time.Duration) Option {
	return Option{name: "DrainTimeout", policy: positive(func(p *Policy) *time.Duration { return &p.drainTimeout }, d)}
}

// FailOpen handles messages without a claim once the store has been out of reach
// for longer than after: not when it answers and refuses. Nothing is lost; what is
// handled so is not recorded, and its repeats are handled again. By default a
// consumer waits for its store.
func FailOpen(after time.Duration) Option {
	return Option{name: "FailOpen", policy: positive(func(p *Policy) *time.Duration { return &p.failOpen }, after)}
}

// AtMostOnce spends a token before the handler runs: never twice, and lost where
// the process dies in between. A handler is never retried: its message is
// dead-lettered, or, without a destination, acked and reported. So is one whose token
// was spent when its partition had gone. A token that was asked for may be spent, so its
// message does not go back to the broker before the store has answered (amqp's HoldLimit
// does not apply); a consumer that stops waits for that as long as for a handler, and
// reports as dropped what it had no answer about.
func AtMostOnce() Option {
	return Option{name: "AtMostOnce", policy: func(p *Policy) error { p.atMostOnce = true; return nil }}
}

// Shadow is for a first roll-out: records are kept as usual, and duplicates and
// messages in progress elsewhere are reported and handled all the same.
func Shadow() Option {
	return Option{name: "Shadow", policy: func(p *Policy) error { p.shadow = true; return nil }}
}

// DeadLetterStale dead-letters messages that are older than the retention, by their
// own timestamp against the store's clock, and are not known. Their record may have
// expired. By default they are handled, and reported.
func DeadLetterStale() Option {
	return Option{name: "DeadLetterStale", policy: func(p *Policy) error { p.stopStale = true; return nil }}
}

// Fingerprints refuses a token that comes with another payload than before
// (idem.ErrConflict): such a message is dead-lettered instead of dropped. It costs a
// SHA-256 of each payload, and 22 bytes a record, which make 80 in Redis, where the record of
// a done token needs no string otherwise. A guard whose store keeps none is
// refused with idem.ErrNoFingerprints.
func Fingerprints() Option {
	return Option{name: "Fingerprints", policy: func(p *Policy) error { p.fingerprints = true; return nil }}
}

// TrustMessageID takes the broker's optional message id (Nats-Msg-Id, AMQP
// message-id) for a message that has no token, before its coordinates. Two messages
// with one id are then one: say it only where the producer promises so. Under
// idem.WithTokenKeys an id is not signed, and refused.
func TrustMessageID() Option {
	return Option{name: "TrustMessageID", policy: func(p *Policy) error { p.trustID = true; return nil }}
}

// TokenFrom finds the token in the message itself, before any header is looked at.
// An empty token goes on to the headers; an error dead-letters the message, or stops
// the consumer. Under idem.WithTokenKeys the token has to be signed: find signs, by
// Guard.Sign, what it has made sure of by other means.
func TokenFrom(find func(Message) (string, error)) Option {
	return Option{name: "TokenFrom", policy: func(p *Policy) error {
		if find == nil {
			return errors.New("the function is nil")
		}
		p.tokenFrom = find
		return nil
	}}
}

// WorkAhead sets for how many of the next messages claims are made while a handler
// works; zero is none. By default the engine claims what it expects to start within
// 50 ms, 384 messages at most. It asks when fewer than half of them are claimed, for all
// that are missing, and for none while a message of the line (a partition, a consumer) waits
// for somebody else who holds its token. After a process is killed, what it had claimed ahead
// waits for the lease with the message that it died in.
func WorkAhead(n int) Option {
	return Option{name: "WorkAhead", policy: func(p *Policy) error {
		if n < 0 {
			return fmt.Errorf("%d: must not be negative", n)
		}
		p.ahead = n + 1
		return nil
	}}
}

// backoff returns the wait after the n-th failure: full jitter, as the AWS
// Architecture Blog's "Exponential Backoff And Jitter" names and compares it.
func (p *Policy) backoff(n int) time.Duration {
	bound := p.lastBackoff
	if n := max(n, 1) - 1; n < 40 {
		if d := p.firstBackoff << n; d > 0 && d < bound {
			bound = d
		}
	}
	return rand.N(bound) + 1
}

// maxExpiries is how often a token's claims may have ended by expiry for it to be
// claimed beside others.
func (p *Policy) maxExpiries() int { return max(min(2, p.budget-1), 1) }

// MaxAttempts returns the budget, for what an adapter checks at its start.
func (p Policy) MaxAttempts() int { return p.withDefaults().budget }
