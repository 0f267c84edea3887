package checker_test

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/idemq/idemq/e2e/checker"
	"github.com/idemq/idemq/e2e/history"
	"github.com/idemq/idemq/idem/store"
)

// Runs of a library and a store that keep the promise are let pass, whatever happens to
// the network and the processes.
func TestSimulated(t *testing.T) {
	windows := map[checker.Window]int{}
	for seed := range uint64(40) {
		for _, forgets := range []bool{false, true} {
			s := simulate(t, seed, none, forgets)
			v := s.check()
			if len(v.Violations) > 0 || v.Messages != simTokens || v.Undecided > 0 {
				x := v.Violations
				v.Violations = nil
				t.Fatalf("seed %d, forgets: %v: %+v, %v", seed, forgets, v, x)
			}
			for w, n := range v.InWindow {
				windows[w] += n
			}
		}
	}
	if len(windows) != 3 {
		t.Errorf("not every window was passed through: %v", windows)
	}
}

// Runs with a bug planted are caught, by a rule that names it.
func TestSimulatedBugs(t *testing.T) {
	for _, tt := range []struct {
		name  string
		bug   bug
		rules []checker.Rule // any of them
	}{
		{"acks before the completion is recorded", ackBeforeCommit, []checker.Rule{checker.AckedWithoutCause}},
		{"acks what is in progress elsewhere", ackInProgress, []checker.Rule{checker.AckedWithoutCause}},
		{"takes a lost reply for a duplicate", ackAfterLostReply, []checker.Rule{checker.AckedWithoutCause}},
		{"handles what is in progress elsewhere", runInProgress, []checker.Rule{checker.StartedUnclaimed}},
		{"handles what is done", runAfterDone, []checker.Rule{checker.StartedAfterCompletion}},
		{"handles twice under one claim", runTwice, []checker.Rule{checker.ClaimRanTwice}},
		{"handles what it gave back", runGivenBack, []checker.Rule{checker.StartedUnclaimed}},
		{"gives back what it handles", releaseWhileRunning, []checker.Rule{checker.ReleasedWhileRunning}},
		{"gives back what it handled", releaseAfterEffect, []checker.Rule{checker.Doubled}},
		{"records what failed as done", dropMessage, []checker.Rule{checker.Lost}},
		{"a store that takes claims over early", storeHalvesLeases, []checker.Rule{checker.NotLinearizable}},
		{"a store that lets anybody release", storeFencesNoRelease, []checker.Rule{checker.NotLinearizable}},
		{"a store that lets anybody complete", storeFencesNoCommit, []checker.Rule{checker.NotLinearizable}},
		{"a store that counts badly", storeRepeatsAttempts, []checker.Rule{checker.AttemptRepeated}},
		{"a store that forgets", storeForgets, []checker.Rule{checker.NotLinearizable}},
		{"a store that completes what is complete", storeCommitsTwice, []checker.Rule{checker.NotLinearizable}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for seed := range uint64(300) {
				v := simulate(t, seed, tt.bug, false).check()
				for _, r := range tt.rules {
					if v.Total[r] > 0 {
						t.Logf("seed %d: %s", seed, v.Violations[0])
						return
					}
				}
				if len(v.Violations) > 0 {
					t.Logf("seed %d: only %v", seed, v.Total)
				}
			}
			t.Error("not found")
		})
	}
}

// One falsehood in the history of one token of a run is caught.
func TestMutations(t *testing.T) {
	is := func(kind store.Kind, status store.Status) func(history.Event) bool {
		return func(e history.Event) bool {
			return e.Kind == history.Answered && e.Op == uint8(kind) && e.Status == uint8(status)
		}
	}
	granted, completed := is(store.Begin, store.Claimed), is(store.Commit, store.OK)
	kind := func(k history.Kind) func(history.Event) bool {
		return func(e history.Event) bool { return e.Kind == k }
	}
	const stranger = 60_000
	for _, tt := range []struct {
		name   string
		rule   checker.Rule
		mutate func([]history.Event) []history.Event // of a token; nil: there is no place for it
		or     checker.Rule
	}{
		{"its effects are missing", checker.Lost, func(all []history.Event) []history.Event {
			return slices.DeleteFunc(all, func(e history.Event) bool { return e.Kind == history.Effect || e.Kind == history.DeadLettered })
		}, ""},
		{"its completion was refused", checker.NotLinearizable, func(all []history.Event) []history.Event {
			all[slices.IndexFunc(all, completed)].Status = uint8(store.Lost)
			return all
		}, checker.AckedWithoutCause},
		{"no completion was recorded", checker.AckedWithoutCause, func(all []history.Event) []history.Event {
			ack := slices.IndexFunc(all, kind(history.Acked))
			all = append(slices.DeleteFunc(all[:ack:ack], func(e history.Event) bool {
				return e.Kind == history.Asked && e.Op == uint8(store.Commit) || completed(e) || is(store.Begin, store.Duplicate)(e)
			}), all[ack:]...)
			return all
		}, ""},
		{"somebody acks who knows nothing of it", checker.AckedWithoutCause, func(all []history.Event) []history.Event {
			return append(all, history.Event{Kind: history.Acked, Token: all[0].Token, Process: stranger, At: all[len(all)-1].At})
		}, ""},
		{"it is handled again", checker.StartedAfterCompletion, func(all []history.Event) []history.Event {
			e := all[slices.IndexFunc(all, kind(history.Started))]
			e.At = all[slices.IndexFunc(all, completed)].At + 1
			return append(all, e)
		}, checker.ClaimRanTwice},
		{"a claim is granted beside another", checker.NotLinearizable, func(all []history.Event) []history.Event {
			i := slices.IndexFunc(all, granted)
			a := all[i]
			a.At++
			a.Store++
			a.Process, a.Claim, a.Attempt = stranger, 1<<40, a.Attempt+1
			q := history.Event{Kind: history.Asked, Op: a.Op, Token: a.Token, Process: a.Process, Claim: a.Claim, At: a.At}
			return slices.Insert(all, i+1, q, a)
		}, ""},
		{"it is called done before it is", checker.NotLinearizable, func(all []history.Event) []history.Event {
			a := all[slices.IndexFunc(all, granted)]
			a.At = all[0].At
			a.Store = a.At + epoch
			a.Process, a.Claim, a.Status = stranger, 1<<40, uint8(store.Duplicate)
			q := history.Event{Kind: history.Asked, Op: a.Op, Token: a.Token, Process: a.Process, Claim: a.Claim, At: a.At}
			return slices.Insert(all, 1, q, a)
		}, ""},
		{"an attempt is passed over", checker.NotLinearizable, func(all []history.Event) []history.Event {
			all[slices.IndexFunc(all, granted)].Attempt++
			return all
		}, checker.StartedUnclaimed},
		{"an attempt is given again", checker.AttemptRepeated, func(all []history.Event) []history.Event {
			first := slices.IndexFunc(all, granted)
			for i := first + 1; i < len(all); i++ {
				if granted(all[i]) && all[i].Claim != all[first].Claim {
					all[i].Attempt = all[first].Attempt
					return all
				}
			}
			return nil
		}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			planted := 0
			for seed := range uint64(10) {
				s := simulate(t, seed, none, false)
				r := rand.New(rand.NewPCG(seed, 2))
				for _, n := range r.Perm(simTokens) {
					var its, others []history.Event
					for _, e := range s.events {
						if e.Token == uint32(n+1) && e.Kind != history.Fault {
							its = append(its, e)
						} else {
							others = append(others, e)
						}
					}
					if !slices.ContainsFunc(its, completed) || slices.ContainsFunc(its, func(e history.Event) bool { return e.Kind == history.Answered && e.Has(history.Failed) }) {
						continue // what is not answered may explain much
					}
					if its = tt.mutate(its); its == nil {
						continue
					}
					planted++
					s.events = slices.Concat(others, its)
					v := s.check()
					if v.Total[tt.rule] == 0 && v.Total[tt.or] == 0 {
						t.Errorf("seed %d, token %d: found %v of %v", seed, n+1, v.Total, its)
					}
					for _, x := range v.Violations {
						if x.Token != uint32(n+1) {
							t.Errorf("seed %d, token %d: an innocent one: %s", seed, n+1, x)
						}
					}
					break
				}
			}
			if planted < 5 {
				t.Errorf("planted %d times only", planted)
			}
		})
	}
}
