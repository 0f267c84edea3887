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

// handler is the handler of every broker.
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
	n, ok := history.Number(h.config.Run, claim.Token())
	if !ok {
		return idem.Permanent(fmt.Errorf("token %q is not of the run %s", claim.Token(), h.config.Run))
	}
	e := history.Event{Kind: history.Started, Token: n, Attempt: uint16(claim.Attempt())}
	h.rec.Add(e)
	err := h.work(ctx, n, claim.Attempt())
	e.Kind = history.Returned
	if err != nil {
		e.Flags |= history.Failed
	}
	h.rec.Add(e)
	return err
}

func (h *handler) work(ctx context.Context, token uint32, attempt int) error {
	if d := h.config.Work + time.Duration(h.slow.Load()); d > 0 {
		select {
		case <-time.After(d):
		case <-ctx.Done():
		}
	}
	switch {
	case drawn("poison", token, h.config.PoisonEvery):
		return errors.New("this message always fails")
	case attempt == 1 && drawn("fail", token, h.config.FailEvery):
		return errors.New("this message fails once")
	}
	if err := context.Cause(ctx); err != nil {
		return err // the claim is not ours any more
	}
	if h.effect != nil {
		if err := h.effect(ctx, token, attempt); err != nil {
			return err
		}
	}
	h.rec.Add(history.Event{Kind: history.Effect, Token: token, Attempt: uint16(attempt)})
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
