package checker_test

import (
	"testing"

	"github.com/idemq/idemq/e2e/checker"
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
			for seed := range uint64(100) {
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
