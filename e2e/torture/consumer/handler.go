package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"sync/atomic"
	"time"

	"github.com/idemq/idemq/e2e/history"
	"github.com/idemq/idemq/e2e/torture/role"
	"github.com/idemq/idemq/idem"
)

// handler is the handler of every broker, of one message and of several.
type handler struct {
	config role.Config
	rec    *history.Recorder
	slow   atomic.Int64
	// effect writes the effect where it is more than an event; nil: it is not.
	effect func(ctx context.Context, token uint32, attempt int) error
}

// handle is one run of the handler, in which everything is recorded.
func (h *handler) handle(ctx context.Context) error {
	claim, ok := idem.FromContext(ctx)
	if !ok {
		return idem.Permanent(errors.New("a handler without a claim"))
	}
	run, err := h.enter(claim, 0)
	if err != nil {
		return err
	}
	return h.leave(run, h.work(ctx, run, h.takes()))
}

var errBehind = errors.New("a message before it, of the same key, failed")

// handleAll is a run of the handler of several messages, each of which is recorded as its
// own. Where the broker keeps messages of a key in order, keys are theirs, in order: of a
// key, those behind one that failed are not handled. What the handler takes is spread over
// its messages, so that faults come between two effects as well.
func (h *handler) handleAll(ctx context.Context, n int, keys []string) []error {
	errs := make([]error, n)
	claims, _ := idem.ClaimsFromContext(ctx)
	if len(claims) != n {
		for i := range errs {
			errs[i] = idem.Permanent(fmt.Errorf("a handler of %d messages with %d claims", n, len(claims)))
		}
		return errs
	}
	var how history.Flags
	if n > 1 {
		how = history.Together
	}
	runs := make([]history.Event, n)
	for i, claim := range claims {
		runs[i], errs[i] = h.enter(claim, how)
	}
	failed := map[string]bool{} // keys
	for i, claim := range claims {
		switch {
		case errs[i] != nil:
		case keys != nil && failed[keys[i]]:
			errs[i] = idem.RetryAfter(errBehind, 0)
		default:
			errs[i] = h.work(claim.Context(), runs[i], h.takes()/time.Duration(n))
		}
		if keys != nil && errs[i] != nil {
			failed[keys[i]] = true
		}
	}
	anyFailed := false
	for i, run := range runs {
		if run.Kind != 0 {
			errs[i] = h.leave(run, errs[i])
		}
		anyFailed = anyFailed || errs[i] != nil
	}
	if !anyFailed {
		return nil
	}
	return errs
}

// enter records that a handler was entered for the message of a claim.
func (h *handler) enter(claim *idem.Claim, how history.Flags) (run history.Event, err error) {
	n, ok := history.Number(h.config.Run, claim.Token())
	if !ok {
		return run, idem.Permanent(fmt.Errorf("token %q is not of the run %s", claim.Token(), h.config.Run))
	}
	run = history.Event{Kind: history.Started, Token: n, Attempt: uint16(claim.Attempt()), Flags: how}
	h.rec.Add(run)
	return run, nil
}

// leave records that it returns err, and returns that.
func (h *handler) leave(run history.Event, err error) error {
	run.Kind, run.Flags = history.Returned, 0
	if err != nil {
		run.Flags = history.Failed
	}
	if _, later := idem.RetryDelay(err); later {
		run.Flags |= history.Unspent
	}
	h.rec.Add(run)
	return err
}

// takes is how long a call of the handler takes.
func (h *handler) takes() time.Duration { return h.config.Work + time.Duration(h.slow.Load()) }

// work handles one message, which takes d.
func (h *handler) work(ctx context.Context, run history.Event, d time.Duration) error {
	if d > 0 {
		select {
		case <-time.After(d):
		case <-ctx.Done():
		}
	}
	attempt := int(run.Attempt)
	switch {
	case drawn("poison", run.Token, h.config.PoisonEvery):
		return errors.New("this message always fails")
	case attempt == 1 && drawn("fail", run.Token, h.config.FailEvery):
		return errors.New("this message fails once")
	}
	if err := context.Cause(ctx); err != nil {
		return err // the claim is not ours any more
	}
	if h.effect != nil {
		if err := h.effect(ctx, run.Token, attempt); err != nil {
			return err
		}
	}
	h.rec.Add(history.Event{Kind: history.Effect, Token: run.Token, Attempt: run.Attempt})
	return nil
}

// drawn tells whether a token is the one in so many, the same in each process.
func drawn(what string, token uint32, every int) bool {
	if every <= 0 {
		return false
	}
	h := fnv.New64a()
	_, _ = h.Write(binary.BigEndian.AppendUint32([]byte(what), token))
	x := h.Sum64()
	x ^= x >> 32 // FNV's low bits alone follow the last byte's
	return x%uint64(every) == 0
}
