package consumers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
)

// How long the store is asked at the start of Run before Run goes on without its answer,
// or ends because it refuses; and how long one question may take at least.
const (
	storePatience = 5 * time.Second
	storeQuestion = time.Second
)

// Strict makes findings fatal: Run ends, before the first message is fetched, with an
// error that lists every finding whose ID is not among except; docs/preflight.md has the
// IDs. One in except that is not found, or not known, changes nothing. A store or a
// broker that does not answer is waited for as long as Run's context lasts: a check that
// was not made is not passed; idem.WithLogger shows the waiting. What comes to light while messages are handled is told, as
// without Strict, and does not end Run. A consumer's Preflight returns the same error.
// Not for Wrap.
func Strict(except ...string) Option {
	return Option{name: "Strict", policy: func(p *Policy) error {
		p.strict, p.accepted = true, slices.Clone(except)
		return nil
	}}
}

// CheckWrap is for an adapter's Wrap: the error names an option that needs a Run.
func (p Policy) CheckWrap() error {
	if p.strict {
		return errors.New("Strict: Wrap has no start to fail at: call Guard.Preflight before the loop, and look at what it finds")
	}
	return nil
}

// strictError lists findings that were not accepted.
type strictError []idem.Finding

func (e strictError) Error() string {
	var b strings.Builder
	b.WriteString("consumer: Strict: what follows weakens the promise: mend it, or accept it:")
	ids := make([]string, 0, len(e))
	for _, f := range e {
		b.WriteString("\n\t" + f.String())
		if id := strconv.Quote(f.ID); !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return b.String() + "\n\tAccepted by Strict(" + strings.Join(ids, ", ") + ")."
}

// refuses is an error if Strict does not let found pass.
func (p Policy) refuses(found []idem.Finding) error {
	var list strictError
	for _, f := range found {
		if p.strict && !slices.Contains(p.accepted, f.ID) {
			list = append(list, f)
		}
	}
	if len(list) == 0 {
		return nil
	}
	return list
}

// Preflight is for an adapter's Consumer.Preflight: it asks the store and, by ask, the
// broker, once each, and returns what both find, the store's first. The error is what
// would end Run, a server that does not answer, or what Strict does not let pass.
func Preflight(ctx context.Context, g *idem.Guard, p Policy, ask func(context.Context) ([]idem.Finding, error)) ([]idem.Finding, error) {
	found, storeErr := askStore(ctx, g, storePatience)
	more, brokerErr := ask(ctx)
	found = append(found, more...)
	return found, errors.Join(storeErr, brokerErr, p.refuses(found))
}

// AwaitPreflight is for the beginning of an adapter's Run, before anything is fetched. It
// asks the store, then calls ask, with pauses, until that returns nil, ctx ends, or final
// says that waiting does not mend its error. ask gives pass what it found; an error of
// pass ends Run and is to be returned. Each finding is told once (idem.EventFinding).
//
// A store that gives no answer for about five seconds is not waited for, but by Strict:
// claims are patient, and of what was not asked the finding "store-silent" tells. One that
// refuses for as long ends Run: it would refuse every claim as well, so nothing would be
// handled, and while nothing is fetched there is nothing to lose.
func AwaitPreflight(ctx context.Context, g *idem.Guard, p Policy, ask func(ctx context.Context, pass func([]idem.Finding) error) error, final func(error) bool) error {
	s := &start{guard: g, policy: p}
	if err := s.awaitStore(ctx); err != nil {
		return err
	}
	var pause Pause
	for {
		err := ask(ctx, s.pass)
		var refused strictError
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.As(err, &refused), final(err):
			return err
		}
		pause.Wait(ctx, g, err)
	}
}

// start is the beginning of one Run.
type start struct {
	guard  *idem.Guard
	policy Policy
	found  []idem.Finding
}

// pass tells of what the broker's adapter found, and lets it pass or not, together with
// what the store did.
func (s *start) pass(found []idem.Finding) error {
	s.tell(found...)
	return s.policy.refuses(s.found)
}

func (s *start) tell(found ...idem.Finding) {
	for _, f := range found {
		if !slices.Contains(s.found, f) {
			s.found = append(s.found, f)
			EmitFinding(s.guard, f)
		}
	}
}

// EmitFinding tells the guard's observers of a finding.
func EmitFinding(g *idem.Guard, f idem.Finding) {
	g.Emit(idem.Event{Kind: idem.EventFinding, Finding: &f, Text: f.String()})
}

func (s *start) awaitStore(ctx context.Context) error {
	until := time.Now().Add(storePatience)
	var pause Pause
	for {
		within := max(time.Until(until), storeQuestion)
		if s.policy.strict { // a store that is slow to answer has to pass too
			within = storePatience
		}
		found, err := askStore(ctx, s.guard, within)
		switch {
		case err == nil:
			s.tell(found...)
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case time.Now().Before(until): // it may be about to come, or to become the primary
		case !errors.Is(err, store.ErrUnavailable):
			return err
		case !s.policy.strict:
			s.tell(idem.Finding{
				ID:          "store-silent",
				What:        fmt.Sprintf("The store did not answer at the start (%v).", err),
				Consequence: "Messages wait until it does, and whether it may forget tokens is not known.",
				Cure:        "See to the store, and call Guard.Preflight when it is back.",
			})
			return nil
		}
		pause.WaitAtMost(ctx, s.guard, err, storeQuestion)
	}
}

// askStore asks the store once. A driver whose client does not mind the end of the
// context is left to its own timeouts.
func askStore(ctx context.Context, g *idem.Guard, within time.Duration) ([]idem.Finding, error) {
	asking, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	type answer struct {
		found []idem.Finding
		err   error
	}
	answered := make(chan answer, 1)
	go func() {
		found, err := g.Preflight(asking)
		answered <- answer{found, err}
	}()
	var a answer
	select {
	case a = <-answered:
	case <-asking.Done():
		a.err = context.Cause(asking)
	}
	if a.err != nil && asking.Err() != nil && !errors.Is(a.err, store.ErrUnavailable) {
		a.err = fmt.Errorf("idem: preflight: no answer within %v: %w: %w", within.Round(time.Millisecond), store.ErrUnavailable, a.err)
	}
	return a.found, a.err
}
