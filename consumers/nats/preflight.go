package idemnats

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/idemq/idemq/idem"
)

// streams is what a dead-letter publisher can be asked if it is a whole
// jetstream.JetStream.
type streams interface {
	StreamNameBySubject(ctx context.Context, subject string) (string, error)
	Stream(ctx context.Context, name string) (jetstream.Stream, error)
	Consumer(ctx context.Context, stream, name string) (jetstream.Consumer, error)
}

// preflight reads the settings anew, waiting for the server as long as ctx does. What
// would lose messages is an error; what weakens the promise is an EventStoreNotice.
func (c *Consumer) preflight(ctx context.Context) (*jetstream.ConsumerInfo, error) {
	var p pause
	for {
		info, err := c.settings(ctx)
		if err == nil {
			if err = errors.Join(c.conf.check(info.Config)...); err != nil {
				return nil, err
			}
			c.notices(info)
			if err = c.checkLetters(ctx, info); err == nil {
				return info, nil
			}
		}
		var refused *refusal
		switch {
		case errors.As(err, &refused), isMissing(err), isClosed(err):
			return nil, err
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		}
		p.wait(ctx, c.guard, err, lastPause)
	}
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

func (c *Consumer) notice(format string, args ...any) {
	c.guard.Emit(idem.Event{Kind: idem.EventStoreNotice, Text: fmt.Sprintf(format, args...)})
}

// notices tells of settings that work and may surprise.
func (c *Consumer) notices(info *jetstream.ConsumerInfo) {
	cc := info.Config
	if budget := c.policy.MaxAttempts(); cc.MaxDeliver > 0 && cc.MaxDeliver <= budget {
		c.notice("MaxDeliver of JetStream consumer %q is %d, within the budget of %d: messages whose processes die are dead-lettered, or lost, before it is spent: set MaxDeliver to -1", info.Name, cc.MaxDeliver, budget)
	}
	if n := max(c.conf.concurrency, 1); cc.MaxAckPending > 0 && cc.MaxAckPending < n {
		c.notice("MaxAckPending of JetStream consumer %q is %d, less than the Concurrency of %d: raise it, or so many handlers never run", info.Name, cc.MaxAckPending, n)
	}
	if lease, wait := c.guard.Settings().Lease, shortestWait(cc); wait < lease/3 {
		c.notice("AckWait (or BackOff) of JetStream consumer %q is %v, less than the %v after which a lease of %v is renewed: a pause of the process brings each message to another consumer, which holds it until the lease ends: raise AckWait, or shorten the lease with WithLease", info.Name, wait, lease/3, lease)
	}
}

// checkLetters looks for mistakes in the dead-letter destination, and at the age that
// messages of the stream reach, where the publisher can be asked.
func (c *Consumer) checkLetters(ctx context.Context, info *jetstream.ConsumerInfo) error {
	if c.conf.letters == nil {
		return nil
	}
	js, ok := c.conf.letters.js.(streams)
	if !ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	subject := c.conf.letters.subject
	stream, err := js.StreamNameBySubject(ctx, subject)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return refuse("DeadLetter: no stream stores subject %q: create one first", subject)
	case err != nil && isMute(ctx, err):
		return fmt.Errorf("DeadLetter: asking for the stream of subject %q: %w", subject, err)
	case err != nil:
		c.notice("DeadLetter: whether a stream stores subject %q could not be found out: %v", subject, err)
		return nil
	}
	// A stream of this name on another server, or in another domain, is not ours.
	same, err := js.Consumer(ctx, info.Stream, info.Name)
	if err != nil || same.CachedInfo() == nil || !same.CachedInfo().Created.Equal(info.Created) {
		return nil
	}
	if stream == info.Stream && receives(info.Config, subject) {
		return refuse("DeadLetter: subject %q would come back to the JetStream consumer %q itself: choose one that it does not receive", subject, info.Name)
	}
	if st, err := js.Stream(ctx, info.Stream); err == nil {
		c.noticeAge(st.CachedInfo().Config)
	}
	return nil
}

// isMute reports whether err says only that there was no answer in time.
func isMute(ctx context.Context, err error) bool {
	return ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrNoResponders) || errors.Is(err, jetstream.ErrJetStreamNotEnabled)
}

func (c *Consumer) noticeAge(sc jetstream.StreamConfig) {
	retention := c.guard.Settings().Retention
	switch {
	case sc.MaxAge == 0 && sc.Retention == jetstream.LimitsPolicy:
		c.notice("stream %q keeps messages without an age limit, the guard remembers them for %v: one that is delivered again later is handled again: set MaxAge, or a longer WithRetention", sc.Name, retention)
	case sc.MaxAge > retention:
		c.notice("stream %q keeps messages for %v, the guard remembers them for %v: one that is delivered again later is handled again: set WithRetention to more than %v", sc.Name, sc.MaxAge, retention, sc.MaxAge.Round(time.Second))
	}
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
