package idemnats

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/internal/natsconn"
)

// streams is what a dead-letter publisher can be asked if it is a whole
// jetstream.JetStream.
type streams interface {
	Conn() *nats.Conn
	StreamNameBySubject(ctx context.Context, subject string) (string, error)
	Stream(ctx context.Context, name string) (jetstream.Stream, error)
	Consumer(ctx context.Context, stream, name string) (jetstream.Consumer, error)
}

// Preflight reads the settings of the JetStream consumer anew, asks the store, and
// returns what weakens the promise: AckWait or BackOff shorter than the guard renews its
// leases in, a finite MaxDeliver within the budget, a MaxAckPending below Concurrency, what
// has the server forget the consumer; and what the store finds (Guard.Preflight).
//
// Where DeadLetter was given a whole jetstream.JetStream of the same server, it also looks
// at the connection (whether it reconnects for ever) and at the streams: whether messages
// are kept for longer than the guard remembers them, and dead letters less safely than
// messages. Without that none of these can be asked. docs/preflight.md lists all findings.
//
// The error is what would end Run: a JetStream consumer that is not there, or that
// NewConsumer would refuse, a dead-letter subject that no stream stores, what
// consumers.Strict does not let pass; or that a server did not answer. It changes nothing,
// and may be called at any time, also while Run is at work. A loop around Wrap has
// Guard.Preflight for the store.
func (c *Consumer) Preflight(ctx context.Context) ([]idem.Finding, error) {
	found, err := consumers.Preflight(ctx, c.guard, c.policy, func(ctx context.Context) ([]idem.Finding, error) {
		_, found, err := c.examine(ctx)
		return found, err
	})
	if err != nil {
		return found, fmt.Errorf("idemnats: preflight: %w", err)
	}
	return found, nil
}

// examine asks the server once. What would lose messages is an error.
func (c *Consumer) examine(ctx context.Context) (*jetstream.ConsumerInfo, []idem.Finding, error) {
	info, err := c.settings(ctx)
	if err != nil {
		return nil, nil, err
	}
	if err := errors.Join(c.conf.check(info.Config)...); err != nil {
		return nil, nil, &refusal{err.Error()}
	}
	found := c.consumerFindings(info)
	more, err := c.streamFindings(ctx, info)
	return info, append(found, more...), err
}

// isFinal reports whether waiting does not mend an error of examine.
func isFinal(err error) bool {
	var refused *refusal
	return errors.As(err, &refused) || isMissing(err) || isClosed(err)
}

// refusal is a fault that waiting does not mend.
type refusal struct{ text string }

func (r *refusal) Error() string { return r.text }

func refuse(format string, args ...any) error { return &refusal{fmt.Sprintf(format, args...)} }

func (c *Consumer) settings(ctx context.Context) (*jetstream.ConsumerInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	info, err := c.source.Info(ctx)
	switch {
	case isMissing(err):
		old := c.source.CachedInfo()
		return nil, fmt.Errorf("the JetStream consumer %q of stream %q is not there: create it first: %w", old.Name, old.Stream, err)
	case err != nil:
		return nil, fmt.Errorf("reading the JetStream consumer's settings: %w", err)
	}
	return info, nil
}

// consumerFindings looks at settings that work and may surprise.
func (c *Consumer) consumerFindings(info *jetstream.ConsumerInfo) (found []idem.Finding) {
	cc := info.Config
	if budget := c.policy.MaxAttempts(); cc.MaxDeliver > 0 && cc.MaxDeliver <= budget {
		found = append(found, idem.Finding{
			ID:          "nats-max-deliver",
			What:        fmt.Sprintf("MaxDeliver of JetStream consumer %q is %d, within the budget of %d.", info.Name, cc.MaxDeliver, budget),
			Consequence: "Messages whose processes die are dead-lettered, or lost, before the budget is spent.",
			Cure:        "Set MaxDeliver to -1.",
		})
	}
	if cc.MaxDeliver > 0 && c.conf.letters == nil && !c.conf.terminate {
		found = append(found, idem.Finding{
			ID:          "nats-max-deliver-letters",
			What:        fmt.Sprintf("MaxDeliver of JetStream consumer %q is %d, and there is no dead-letter destination.", info.Name, cc.MaxDeliver),
			Consequence: "The last delivery of a message ends Run, and the server does not deliver it again: it is lost to this consumer.",
			Cure:        "Set MaxDeliver to -1, or give dead letters a destination with DeadLetter.",
		})
	}
	if n := max(c.conf.concurrency, 1); cc.MaxAckPending > 0 && cc.MaxAckPending < n {
		found = append(found, idem.Finding{
			ID:          "nats-max-ack-pending",
			What:        fmt.Sprintf("MaxAckPending of JetStream consumer %q is %d, less than the Concurrency of %d.", info.Name, cc.MaxAckPending, n),
			Consequence: "So many handlers never run.",
			Cure:        "Raise MaxAckPending.",
		})
	}
	if lease, wait := c.guard.Settings().Lease, shortestWait(cc); wait < lease/3 {
		found = append(found, idem.Finding{
			ID:          "nats-ack-wait",
			What:        fmt.Sprintf("AckWait (or BackOff) of JetStream consumer %q is %v, less than the %v after which a lease of %v is renewed.", info.Name, wait, lease/3, lease),
			Consequence: "A pause of the process brings each message to another consumer, which holds it until the lease ends.",
			Cure:        "Raise AckWait, or shorten the lease with WithLease.",
		})
	}
	if c.conf.redelivers(cc) && len(cc.BackOff) > 1 {
		first, later, earlier := cc.BackOff[0], slices.Max(cc.BackOff)-cc.BackOff[0], cc.BackOff[0]-slices.Min(cc.BackOff)
		if later > 0 || earlier > 0 {
			found = append(found, idem.Finding{
				ID:          "nats-backoff",
				What:        fmt.Sprintf("JetStream consumer %q has a BackOff, and the server adds what its entry exceeds the first one of %v by to the delay of a message that is given back.", info.Name, first),
				Consequence: fmt.Sprintf("One that fails again is tried up to %v later, or %v earlier, than consumers.Backoff or idem.RetryAfter say.", later, earlier),
				Cure:        "Set AckWait, and no BackOff.",
			})
		}
	}
	if cc.InactiveThreshold > 0 {
		found = append(found, idem.Finding{
			ID:          "nats-inactive-threshold",
			What:        fmt.Sprintf("The server deletes JetStream consumer %q when nobody has pulled from it for %v (InactiveThreshold).", info.Name, cc.InactiveThreshold),
			Consequence: forgotten,
			Cure:        "Set InactiveThreshold to zero, and that of the stream's ConsumerLimits.",
		})
	}
	if cc.MemoryStorage {
		found = append(found, idem.Finding{
			ID:          "nats-consumer-memory",
			What:        fmt.Sprintf("The state of JetStream consumer %q is kept in memory.", info.Name),
			Consequence: "A restart of its servers deletes it. " + forgotten,
			Cure:        "Create it with MemoryStorage false.",
		})
	}
	return found
}

// forgotten is what becomes of a JetStream consumer that is deleted behind its users' backs.
const forgotten = "Created anew it delivers all that the stream has again, or, by its DeliverPolicy, passes over what came meanwhile."

// streamFindings looks at the dead-letter destination, and at the stream, where the
// publisher can be asked. A mistake in the destination is an error.
func (c *Consumer) streamFindings(ctx context.Context, info *jetstream.ConsumerInfo) ([]idem.Finding, error) {
	if c.conf.letters == nil {
		return nil, nil
	}
	js, ok := c.conf.letters.js.(streams)
	if !ok {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	subject := c.conf.letters.subject
	letters, err := js.StreamNameBySubject(ctx, subject)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return nil, refuse("DeadLetter: no stream stores subject %q: create one first", subject)
	case err != nil && isMute(ctx, err):
		return nil, fmt.Errorf("DeadLetter: asking for the stream of subject %q: %w", subject, err)
	case err != nil:
		return []idem.Finding{{
			ID:          "nats-letters-unknown",
			What:        fmt.Sprintf("Whether a stream stores the dead-letter subject %q could not be found out (%v).", subject, err),
			Consequence: "If none does, the first message that fails for good ends Run.",
			Cure:        "Allow the user to ask for stream names ($JS.API.STREAM.NAMES).",
		}}, nil
	}
	// A stream of this name on another server, or in another domain, is not ours.
	same, err := js.Consumer(ctx, info.Stream, info.Name)
	switch {
	case isMissing(err):
		return nil, nil
	case err != nil:
		return []idem.Finding{unknownStream(info.Stream, err)}, nil
	case same.CachedInfo() == nil || !same.CachedInfo().Created.Equal(info.Created):
		return nil, nil
	}
	if letters == info.Stream && receives(info.Config, subject) {
		return nil, refuse("DeadLetter: subject %q would come back to the JetStream consumer %q itself: choose one that it does not receive", subject, info.Name)
	}
	source, err := js.Stream(ctx, info.Stream)
	if err != nil {
		return []idem.Finding{unknownStream(info.Stream, err)}, nil
	}
	found := append(c.ageFindings(source.CachedInfo().Config), reconnectFindings(js.Conn().Opts)...)
	dead, err := js.Stream(ctx, letters)
	if err != nil {
		return append(found, unknownStream(letters, err)), nil
	}
	return append(found, letterFindings(source.CachedInfo().Config, dead.CachedInfo().Config)...), nil
}

// reconnectFindings looks at the connection that DeadLetter was given, which is mostly that
// of the JetStream consumer too.
func reconnectFindings(o nats.Options) []idem.Finding {
	what := natsconn.GivesUp(&o)
	if what == "" {
		return nil
	}
	return []idem.Finding{{
		ID:          "nats-reconnects",
		What:        what,
		Consequence: "After an outage that is longer Run ends, and nothing is handled until the process is started again.",
		Cure:        natsconn.ReconnectsForEver,
	}}
}

func unknownStream(name string, err error) idem.Finding {
	return idem.Finding{
		ID:          "nats-stream-unknown",
		What:        fmt.Sprintf("The settings of stream %q could not be read (%v).", name, err),
		Consequence: "Whether it keeps messages for longer than the guard remembers them, or dead letters less safely than messages, is not known.",
		Cure:        "Allow the user to ask for them ($JS.API.STREAM.INFO, $JS.API.CONSUMER.INFO).",
	}
}

// letterFindings compares how safe messages are, and their dead letters.
func letterFindings(source, dead jetstream.StreamConfig) (found []idem.Finding) {
	if dead.Storage == jetstream.MemoryStorage && source.Storage != jetstream.MemoryStorage {
		found = append(found, idem.Finding{
			ID:          "nats-letters-memory",
			What:        fmt.Sprintf("The dead-letter stream %q is kept in memory, stream %q in files.", dead.Name, source.Name),
			Consequence: "A restart of the server loses dead letters whose messages were settled.",
			Cure:        "Create the dead-letter stream with FileStorage.",
		})
	}
	if dead.Replicas < source.Replicas {
		found = append(found, idem.Finding{
			ID:          "nats-letters-replicas",
			What:        fmt.Sprintf("The dead-letter stream %q has fewer replicas (%d) than stream %q (%d).", dead.Name, dead.Replicas, source.Name, source.Replicas),
			Consequence: "A server that loses its disk loses dead letters whose messages were settled.",
			Cure:        fmt.Sprintf("Give the dead-letter stream %d replicas.", source.Replicas),
		})
	}
	return found
}

// isMute reports whether err says only that there was no answer in time.
func isMute(ctx context.Context, err error) bool {
	return ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrNoResponders) || errors.Is(err, jetstream.ErrJetStreamNotEnabled)
}

// ageFindings compares how long the stream and the guard remember.
func (c *Consumer) ageFindings(sc jetstream.StreamConfig) []idem.Finding {
	keep := c.guard.Settings().Retention
	age := "for " + sc.MaxAge.Round(time.Second).String()
	switch {
	case sc.MaxAge == 0 && sc.Retention == jetstream.LimitsPolicy:
		age = "without an age limit"
	case sc.MaxAge <= keep:
		return nil
	}
	return []idem.Finding{{
		ID:          "nats-retention",
		What:        fmt.Sprintf("Stream %q keeps messages %s, the guard remembers them for %v.", sc.Name, age, keep),
		Consequence: "One that is delivered again later is handled again.",
		Cure:        "Set MaxAge of the stream, and WithRetention to more than that.",
	}}
}

// receives reports whether the JetStream consumer would be delivered a message on
// subject, if its stream stored it.
func receives(cc jetstream.ConsumerConfig, subject string) bool {
	filters := cc.FilterSubjects
	if cc.FilterSubject != "" {
		filters = append([]string{cc.FilterSubject}, filters...)
	}
	for _, f := range filters {
		if matches(f, subject) {
			return true
		}
	}
	return len(filters) == 0
}

// matches reports whether a literal subject matches a filter.
func matches(filter, subject string) bool {
	f, s := strings.Split(filter, "."), strings.Split(subject, ".")
	for i, token := range f {
		switch {
		case token == ">":
			return len(s) > i
		case i >= len(s), token != "*" && token != s[i]:
			return false
		}
	}
	return len(f) == len(s)
}
