package consumers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/idemq/idemq/idem"
)

// Where the handler takes several messages at a time (Broker.HandleAll), a worker takes
// what is next and was claimed ahead, up to Broker.MaxBatch, and calls it once. Nothing is
// waited for to fill a batch: while a handler works, the claims of the next are made.
//
// A message that is not as most are (tried before, its broker's last delivery, older than
// the retention) is handled alone. So is each that failed, in the order of the batch, when
// the others are on their way to the store: the one that is at fault fails alone.

// DefaultMaxBatch is how many messages a handler of several is given at most, where the user
// does not say.
const DefaultMaxBatch = 100

// HandleAll makes a Broker's HandleAll of a handler that takes several messages, where there
// is one. What the handler is given of a delivery message says.
func HandleAll[M any](h func(context.Context, []M) []error, message func(Delivery) M) func(context.Context, []Delivery) []error {
	if h == nil {
		return nil
	}
	return func(ctx context.Context, all []Delivery) []error {
		msgs := make([]M, len(all))
		for i, d := range all {
			msgs[i] = message(d)
		}
		return h(ctx, msgs)
	}
}

// CheckHandler is for an adapter's constructor: it says whether there are handlers of one
// message and of several, and the error that there has to be one of them.
func CheckHandler(one, several bool) error {
	switch {
	case one && several:
		return errors.New("HandleBatches: the constructor has a handler as well, and one of the two would never be called: give the constructor nil")
	case !one && !several:
		return errors.New("the handler is nil")
	}
	return nil
}

// CheckBatches is for an adapter's HandleBatches: it returns MaxBatch, where zero is the
// default, or what is wrong with the option.
func CheckBatches(most int, hasHandler bool) (maxBatch int, err error) {
	switch {
	case most < 0:
		return 0, fmt.Errorf("HandleBatches: %d: must not be negative: it is how many messages the handler is given at most", most)
	case !hasHandler:
		return 0, errors.New("HandleBatches: the handler is nil")
	}
	return cmp.Or(most, DefaultMaxBatch), nil
}

// takeBatch appends what is to be handled together with the entry in run, with mu held.
func (l *Lane) takeBatch(run []*entry) []*entry {
	if l.e.broker.HandleAll == nil || !run[0].joins() {
		return run
	}
	for len(run) < l.e.broker.MaxBatch && len(l.queue) > 0 && l.queue[0].joins() {
		run = append(run, l.queue[0])
		l.queue = l.queue[1:]
	}
	return run
}

// joins reports, with the lane's mu held, whether an entry may be handled together with
// others.
func (en *entry) joins() bool {
	if en.claim == nil || en.asking || en.claim.Spent() > 0 || en.d.Final() || en.heldLong() {
		return false
	}
	_, old := en.isOld()
	return !old
}

// processBatch sees several entries through, whose claims are held. Where one of these
// cannot be started any more it handles none, and reports that: all but the first are next
// again then, so that none is held while that one is asked for anew.
func (l *Lane) processBatch(run []*entry) (isHandled bool) {
	claims := make([]*idem.Claim, len(run))
	for i, en := range run {
		claims[i] = en.claim
	}
	ctx, end, err := idem.StartAll(l.handling, claims)
	if err != nil {
		l.putBackAhead(run[1:])
		if l.ending() {
			l.giveBackAhead() // claimAhead may have ended
		}
		return false
	}
	defer end()
	errs := make([]error, len(run))
	l.run(ctx, run, errs)
	var done []*entry
	var rest, dead []int
	for i, en := range run {
		switch {
		case errs[i] == nil && !en.claim.Joined():
			done = append(done, en)
		case idem.IsPermanent(errs[i]):
			dead = append(dead, i)
		default:
			rest = append(rest, i)
		}
	}
	l.complete(done...)
	again := make([]bool, len(run))
	// Those last that may wait for their destination: none of them starts anything any more.
	for _, i := range dead {
		run[i].leaveGate()
	}
	for _, i := range append(rest, dead...) {
		again[i] = run[i].endTogether(ctx, errs[i])
	}
	for i, en := range run {
		if again[i] {
			en.process()
		}
	}
	return true
}

// endTogether ends an attempt that was made together with others. It reports whether there
// is to be another, for which no claim is held.
func (en *entry) endTogether(ctx context.Context, err error) (again bool) {
	defer en.begin()()
	en.together = true
	defer func() { en.together = false }()
	return en.end(ctx, err)
}

// putBackAhead makes entries that were not started the next ones again, claims included.
func (l *Lane) putBackAhead(run []*entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.working -= len(run)
	l.queue = append(slices.Clone(run), l.queue...)
	l.cond.Broadcast()
}

// start makes the context of the handler, whatever it takes.
func (e *Engine) start(parent context.Context, c *idem.Claim) (_ context.Context, end func(), _ error) {
	if e.broker.HandleAll != nil {
		return idem.StartAll(parent, []*idem.Claim{c})
	}
	ctx, err := c.Start(parent)
	return ctx, func() {}, err
}

// handle calls the handler for all of run, and sets the errors in their places.
func (e *Engine) handle(ctx context.Context, run []*entry, errs []error) {
	if e.broker.HandleAll == nil {
		errs[0] = run[0].d.Handle(ctx)
		return
	}
	all := make([]Delivery, len(run))
	for i, en := range run {
		all[i] = en.d
	}
	switch answers := e.broker.HandleAll(ctx, all); len(answers) {
	case 0:
	case len(errs):
		copy(errs, answers)
	default:
		for i := range errs {
			errs[i] = fmt.Errorf("the handler returned %d errors for %d messages: it has to return none, or one in the place of each message", len(answers), len(errs))
		}
	}
}
