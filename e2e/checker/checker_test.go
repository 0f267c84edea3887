package checker_test

import (
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/idemq/idemq/e2e/checker"
	"github.com/idemq/idemq/e2e/history"
	"github.com/idemq/idemq/idem/store"
)

func (w *world) check(edit ...func(*checker.Run)) checker.Verdict {
	r := checker.Run{Events: slices.Clone(w.events), Lease: lease, Budget: 1, Faults: effects, Ordered: true}
	for _, f := range edit {
		f(&r)
	}
	return checker.Check(r)
}

// Histories that keep the promise are let pass, each by itself and all together.
func TestAccepted(t *testing.T) {
	all := newWorld()
	token := uint32(0)
	for _, name := range slices.Sorted(maps.Keys(stories)) {
		w := newWorld()
		w.publish(1, 1)
		stories[name](w, 1)
		if v := w.check(); len(v.Violations) > 0 || v.Messages != 1 {
			t.Errorf("%s: %d messages, %v", name, v.Messages, v.Violations)
		}
		token++
		all.publish(token, token%3)
		stories[name](all, token)
	}
	v := all.check()
	if len(v.Violations) > 0 {
		t.Error(v.Violations)
	}
	want := map[checker.Window]int{checker.Died: 1, checker.LeaseLost: 1}
	if !maps.Equal(v.InWindow, want) || v.Messages != len(stories) || v.DeadLetters != 1 || v.Effects != len(stories)-1+2 || v.Lost != 0 || v.Together != 1 {
		t.Errorf("%+v", v)
	}
}

// A store that knows of a done token only that it is done takes anybody's completion for
// the one that it has, and that of a token which somebody else has in work for none.
func TestNoDoneDetails(t *testing.T) {
	late := func(w *world, status store.Status, done bool) {
		c, _ := w.begin(1, 1)
		c.start()
		w.pause(1, lease)
		other, _ := w.begin(2, 1)
		c.effect()
		c.event(history.Returned, 0)
		other.run()
		if done {
			other.commit(arrives)
		}
		c.commit(arrives)
		w.events[len(w.events)-1].Status = uint8(status)
		if !done {
			other.commit(arrives)
		}
	}
	for _, tt := range []struct {
		name          string
		status        store.Status
		done, without bool
		want          int // violations
	}{
		{"whose completion it was is known", store.Lost, true, false, 0},
		{"and if it is known, it is not said to be another's", store.OK, true, false, 1},
		{"it is not known", store.OK, true, true, 0},
		{"what is in work is not done", store.OK, false, true, 1},
		{"what is done does not get lost", store.Lost, true, true, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld()
			w.publish(1, 1)
			late(w, tt.status, tt.done)
			v := w.check(func(r *checker.Run) { r.NoDoneDetails = tt.without })
			if v.Total[checker.NotLinearizable] != tt.want || v.InWindow[checker.LeaseLost] != 1 {
				t.Errorf("%v, in windows %v", v.Violations, v.InWindow)
			}
		})
	}
}

// A Commit that is refused where the token is released again has learned that the handler's
// transaction is not there. Without transactions it would have completed the token.
func TestRollbackIsLearned(t *testing.T) {
	for _, transactional := range []bool{true, false} {
		w := newWorld()
		w.publish(1, 1)
		c, _ := w.begin(1, 1)
		c.start()
		w.pause(1, lease)
		other, _ := w.begin(2, 1)
		other.release(false)
		if !transactional {
			c.effect()
		}
		c.event(history.Returned, 0)
		c.commit(requestLost)
		w.events[len(w.events)-1].Flags &^= history.Failed
		w.events[len(w.events)-1].Status = uint8(store.Lost)
		last, _ := w.begin(2, 1)
		last.run()
		last.commit(arrives)
		w.add(history.Event{Kind: history.Stored, Token: 1, Attempt: 3, Process: 2})
		v := w.check(func(r *checker.Run) { r.Transactional = transactional })
		if got := v.Total[checker.NotLinearizable] == 0; got != transactional {
			t.Errorf("transactional %t: %v", transactional, v.Violations)
		}
	}
}

// What a database refuses to commit spends budget, though the handler has not failed; an answer
// that got lost may have said so.
func TestRefusedCommitIsAFailure(t *testing.T) {
	w := newWorld()
	w.publish(1, 1)
	c, _ := w.begin(1, 1)
	c.run()
	c.commit(requestLost)
	c.bury()
	c.ack()
	w.add(history.Event{Kind: history.DeadLettered, Token: 1})
	v := w.check(func(r *checker.Run) { r.Transactional = true })
	if len(v.Violations) > 0 {
		t.Error(v.Violations)
	}
	if v = w.check(); v.Total[checker.DeadLetteredEarly] != 1 {
		t.Errorf("without a transaction there is nothing to refuse: %v", v.Violations)
	}
}

// A lease may be lost where its holder, or the store, could not help it.
func TestLeaseLost(t *testing.T) {
	for name, fault := range map[string]func(w *world, c *claim){
		"the holder stood still": func(w *world, c *claim) { w.pause(9, lease) },
		"the store was away":     func(w *world, c *claim) { w.fault(storeAway, 0) },
		"a renewal was not answered": func(w *world, c *claim) {
			w.ask(9, store.Op{Kind: store.Renew}, 1, c.id, requestLost)
		},
		"a renewal was answered late": func(w *world, c *claim) {
			w.ask(9, store.Op{Kind: store.Renew}, 1, c.id, arrives)
			w.now += lease / 2
			w.events[len(w.events)-1].At = int64(w.now)
		},
	} {
		w := newWorld()
		w.publish(1, 1)
		c, _ := w.begin(9, 1)
		c.run()
		fault(w, &c)
		w.now += lease
		stories["handled"](w, 1)
		if v := w.check(); len(v.Violations) > 0 || v.InWindow[checker.LeaseLost] != 1 {
			t.Errorf("%s: in windows %v, %v", name, v.InWindow, v.Violations)
		}
	}
}

// Each planted fault is caught by its rule.
func TestPlanted(t *testing.T) {
	for _, tt := range []struct {
		name  string
		rule  checker.Rule
		plant func(w *world)
		edit  func(*checker.Run)
	}{
		{"no effect, no dead letter", checker.Lost, func(w *world) {
			c, _ := w.begin(1, 1)
			c.start()
			c.event(history.Returned, 0)
			c.commit(arrives)
			c.ack()
		}, nil},
		{"never seen", checker.Lost, func(*world) {}, nil},
		{"handled again after it was done", checker.StartedAfterCompletion, func(w *world) {
			stories["handled"](w, 1)
			c, _ := w.begin(2, 1)
			c.run()
		}, nil},
		{"handled again after it was buried", checker.StartedAfterCompletion, func(w *world) {
			stories["dead-lettered"](w, 1)
			c, _ := w.begin(2, 1)
			c.run()
		}, nil},
		{"a process that was stopped forgot to record it", checker.Doubled, func(w *world) {
			c, _ := w.begin(9, 1)
			c.run()
			w.fault(stop, 9)
			w.now += lease
			stories["handled"](w, 1)
		}, nil},
		{"a lease that nobody renewed", checker.Doubled, func(w *world) {
			c, _ := w.begin(9, 1)
			c.run()
			w.now += lease
			stories["handled"](w, 1)
		}, nil},
		{"a lease that nobody renewed while the broker was away", checker.Doubled, func(w *world) {
			c, _ := w.begin(9, 1)
			c.run()
			w.fault(brokerAway, 0)
			w.now += lease
			stories["handled"](w, 1)
		}, nil},
		{"a lease that nobody renewed long after the store was away", checker.Doubled, func(w *world) {
			w.fault(storeAway, 0)
			w.now += 6 * time.Second
			c, _ := w.begin(9, 1)
			c.run()
			w.now += lease
			stories["handled"](w, 1)
		}, nil},
		{"a lease that nobody renewed after a pause", checker.Doubled, func(w *world) {
			w.pause(9, lease)
			w.now += time.Second
			c, _ := w.begin(9, 1)
			c.run()
			w.now += lease
			stories["handled"](w, 1)
		}, nil},
		{"a lease that nobody renewed while somebody else stood still", checker.Doubled, func(w *world) {
			c, _ := w.begin(9, 1)
			c.run()
			w.pause(8, lease)
			stories["handled"](w, 1)
		}, nil},
		{"stopped without recording it, while the broker was away", checker.Doubled, func(w *world) {
			c, _ := w.begin(9, 1)
			c.run()
			w.fault(brokerAway, 0)
			w.fault(stop, 9)
			w.now += lease
			stories["handled"](w, 1)
		}, nil},
		{"given up before its budget was spent", checker.DeadLetteredEarly, func(w *world) {
			stories["dead-lettered"](w, 1)
		}, func(r *checker.Run) { r.Budget = 2 }},
		{"given up for an error that spends no budget", checker.DeadLetteredEarly, func(w *world) {
			c, _ := w.begin(1, 1)
			c.start()
			c.event(history.Returned, history.Failed|history.Unspent)
			c.bury()
			c.ack()
			w.add(history.Event{Kind: history.DeadLettered, Token: 1})
		}, nil},
		{"given up untried", checker.DeadLetteredEarly, func(w *world) {
			c, _ := w.begin(1, 1)
			c.bury()
			c.ack()
			w.add(history.Event{Kind: history.DeadLettered, Token: 1})
		}, nil},
		{"given up unclaimed", checker.DeadLetteredEarly, func(w *world) {
			c := claim{w: w, process: 1, token: 1}
			c.ack()
			w.add(history.Event{Kind: history.DeadLettered, Token: 1})
		}, nil},
		{"acked for a dead letter that nobody recorded", checker.AckedWithoutCause, func(w *world) {
			c, _ := w.begin(1, 1)
			c.start()
			c.fail()
			c.ack()
			w.add(history.Event{Kind: history.DeadLettered, Token: 1})
		}, nil},
		{"given up before its budget was spent, in a database", checker.DeadLetteredEarly, func(w *world) {
			stories["dead-lettered"](w, 1)
		}, func(r *checker.Run) { r.Budget, r.Transactional = 2, true }},
		{"given up with what the database had not refused", checker.DeadLetteredEarly, func(w *world) {
			c, _ := w.begin(1, 1)
			c.run()
			c.commit(arrives)
			w.add(history.Event{Kind: history.Stored, Token: 1, Attempt: 1, Process: 1})
			w.add(history.Event{Kind: history.DeadLettered, Token: 1})
		}, func(r *checker.Run) { r.Transactional = true }},
		{"an effect whose claim was given back", checker.Doubled, func(w *world) {
			c, _ := w.begin(1, 1)
			c.run()
			c.release(false)
			c, _ = w.begin(2, 1)
			c.run()
			c.commit(arrives)
		}, nil},
		{"a claim that is given back while its handler runs", checker.ReleasedWhileRunning, func(w *world) {
			c, _ := w.begin(1, 1)
			c.start()
			c.release(false)
			c.effect()
			c.event(history.Returned, 0)
		}, nil},
		{"a run under a claim that was given back", checker.StartedUnclaimed, func(w *world) {
			c, _ := w.begin(1, 1)
			c.release(false)
			c.run()
		}, nil},
		{"handled again after it was done, long after a pause", checker.StartedAfterCompletion, func(w *world) {
			resumed(w, time.Second)
		}, nil},
		{"one claim, two runs", checker.ClaimRanTwice, func(w *world) {
			c, _ := w.begin(1, 1)
			c.run()
			c.run()
			c.commit(arrives)
		}, nil},
		{"a run without a claim", checker.StartedUnclaimed, func(w *world) {
			w.begin(1, 1)
			other, _ := w.begin(2, 1) // in progress
			other.run()
		}, nil},
		{"a run beside another in one process", checker.OverlapInProcess, func(w *world) {
			c, _ := w.begin(1, 1)
			c.start()
			w.now += lease
			again, _ := w.begin(1, 1)
			again.run()
			again.commit(arrives)
			c.event(history.Returned, history.Failed)
		}, nil},
		{"acked before it was recorded", checker.AckedWithoutCause, func(w *world) {
			c, _ := w.begin(1, 1)
			c.run()
			c.ack()
			c.commit(arrives)
		}, nil},
		{"acked while in progress elsewhere", checker.AckedWithoutCause, func(w *world) {
			c, _ := w.begin(1, 1)
			c.start()
			other, _ := w.begin(2, 1)
			other.ack()
			c.effect()
			c.event(history.Returned, 0)
			c.commit(arrives)
		}, nil},
		{"an attempt that is given twice", checker.AttemptRepeated, func(w *world) {
			c, _ := w.begin(1, 1)
			w.now += lease
			w.records[1].Attempt-- // a store that forgets the count
			w.begin(2, 1)
			c.run()
		}, nil},
		{"two live claims", checker.NotLinearizable, func(w *world) {
			w.begin(1, 1)
			w.records[1].Lease = 0 // a store that takes leases for run out
			c, _ := w.begin(2, 1)
			c.run()
			c.commit(arrives)
		}, nil},
		{"a lease that ran out a little later than it was taken over", checker.NotLinearizable, func(w *world) {
			w.begin(1, 1)
			w.now += lease - 50*time.Millisecond
			w.records[1].Lease = 0
			c, _ := w.begin(2, 1)
			c.run()
			c.commit(arrives)
		}, nil},
		{"a release that is not fenced", checker.NotLinearizable, func(w *world) {
			c, _ := w.begin(1, 1)
			w.now += lease
			other, _ := w.begin(2, 1)
			w.records[1].Claim = string(rune(c.id))
			c.release(false)
			third, _ := w.begin(3, 1)
			third.run()
			third.commit(arrives)
			other.start()
		}, nil},
		{"a completion that is not fenced", checker.NotLinearizable, func(w *world) {
			c, _ := w.begin(1, 1)
			c.run()
			w.now += lease
			w.begin(2, 1)
			w.records[1].Claim = string(rune(c.id))
			c.commit(arrives)
		}, nil},
		{"said to be done when it is not", checker.NotLinearizable, func(w *world) {
			c, _ := w.begin(1, 1)
			c.run()
			w.records[1].State = store.Done
			again, _ := w.begin(2, 1)
			again.ack()
		}, nil},
		{"a lost reply that is taken for a duplicate", checker.NotLinearizable, func(w *world) {
			c := claim{w: w, process: 1, token: 1, id: 99}
			c.begin(replyLost)
			r := w.records[1].State
			w.records[1].State = store.Done
			c.begin(arrives)
			w.records[1].State = r
			c.ack()
		}, nil},
		{"a first attempt that is called the second", checker.NotLinearizable, func(w *world) {
			w.ask(1, store.Op{Kind: store.Inspect}, 1, 0, arrives)
			w.records[1].Attempt = 1
			c, _ := w.begin(1, 1)
			c.run()
			c.commit(arrives)
		}, nil},
		{"out of order", checker.OutOfOrder, func(w *world) {
			w.publish(2, 1)
			stories["handled"](w, 2)
			stories["handled"](w, 1)
		}, nil},
		{"out of order: what took effect first was rolled back", checker.OutOfOrder, func(w *world) {
			w.publish(2, 1)
			c, _ := w.begin(1, 1)
			c.run()
			c.release(false)
			stories["handled"](w, 2)
			stories["handled"](w, 1)
			w.add(history.Event{Kind: history.Stored, Token: 1, Attempt: 2, Process: 1})
			w.add(history.Event{Kind: history.Stored, Token: 2, Attempt: 1, Process: 1})
		}, func(r *checker.Run) { r.Transactional = true }},
		{"two rows", checker.Doubled, func(w *world) {
			w.add(history.Event{Kind: history.Stored, Token: 1, Attempt: 1})
			w.add(history.Event{Kind: history.Stored, Token: 1, Attempt: 2})
		}, func(r *checker.Run) { r.Transactional = true }},
		{"effects that were rolled back", checker.Lost, func(w *world) {
			stories["handled"](w, 1)
		}, func(r *checker.Run) { r.Transactional = true }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld()
			w.publish(1, 1)
			tt.plant(w)
			if tt.edit == nil {
				tt.edit = func(*checker.Run) {}
			}
			v := w.check(tt.edit)
			at := slices.IndexFunc(v.Violations, func(x checker.Violation) bool { return x.Rule == tt.rule })
			if at < 0 {
				t.Fatalf("not found; found %v", v.Violations)
			}
			if text := v.Violations[at].String(); !strings.Contains(text, string(tt.rule)+": token ") || !strings.Contains(text, "published, key 1, number ") {
				t.Errorf("its words: %s", text)
			}
		})
	}
}

// resumed is a process that is stopped when it is about to call the handler, until
// somebody else is done with the message; it calls it some time after it goes on.
func resumed(w *world, after time.Duration) {
	c, _ := w.begin(1, 1)
	stopped := int64(w.now)
	w.now += lease
	other, _ := w.begin(2, 1)
	other.run()
	other.commit(arrives)
	other.ack()
	w.now += time.Second
	w.events = append(w.events, history.Event{Kind: history.Fault, Op: pause, Process: 1, At: stopped, Until: int64(w.now)})
	w.now += after
	c.run()
	c.commit(arrives) // lost
	c.begin(arrives)  // a duplicate
	c.ack()
}

// Between the last look at the clock and the call of the handler a process may be stopped:
// that is a lost lease like any other.
func TestStoppedBeforeStart(t *testing.T) {
	w := newWorld()
	w.publish(1, 1)
	resumed(w, 0)
	if v := w.check(); len(v.Violations) > 0 || v.InWindow[checker.LeaseLost] != 1 {
		t.Errorf("%v in windows, %v", v.InWindow, v.Violations)
	}
}

// At most once: a token that was spent is handled once, and acked whatever comes of it.
func TestSpent(t *testing.T) {
	w := newWorld()
	w.publish(1, 1)
	c, again := claim{w: w, process: 1, token: 1, id: 1}, claim{w: w, process: 2, token: 1, id: 2}
	c.attempt = w.ask(1, store.Op{Kind: store.Spend}, 1, c.id, arrives).Attempt
	c.run()
	c.ack()
	w.ask(2, store.Op{Kind: store.Spend}, 1, again.id, arrives)
	again.ack()
	if v := w.check(); len(v.Violations) > 0 || v.Effects != 1 {
		t.Errorf("%d effects, %v", v.Effects, v.Violations)
	}
}

// The words are for people who do not know the checker.
func TestWords(t *testing.T) {
	w := newWorld()
	w.publish(1, 1)
	c, _ := w.begin(3, 1)
	c.start()
	w.records[1].Lease = 0
	other, _ := w.begin(4, 1)
	other.run()
	w.kill(3)
	other.commit(arrives)
	other.ack()
	v := w.check(func(r *checker.Run) {
		r.FaultName = func(op uint8) string { return map[uint8]string{1: "kill"}[op] }
	})
	if len(v.Violations) != 1 {
		t.Fatal(v.Violations)
	}
	const want = `the store's answers fit no order of its operations: token 1: claim B was granted to process 4 at 0.005000 s, as attempt 2, while claim A of process 3 was in progress, live until 1.996000 s at least: it had to be "in progress elsewhere"
	    0.000000 s  published, key 1, number 1
	    0.001000 s  process 3 asks: Begin, claim A
	    0.002000 s  process 3 is answered: Begin, claim A: claimed, attempt 1
	    0.003000 s  process 3: handler started, attempt 1
	    0.004000 s  process 4 asks: Begin, claim B
	    0.005000 s  process 4 is answered: Begin, claim B: claimed, attempt 2
	    0.006000 s  process 4: handler started, attempt 2
	    0.007000 s  process 4: handler effect, attempt 2
	    0.008000 s  process 4: handler returned, attempt 2
	    0.009000 s  -- kill of process 3, which ends it, until 0.009000 s
	    0.010000 s  process 4 asks: Commit, claim B
	    0.011000 s  process 4 is answered: Commit, claim B: ok
	    0.012000 s  process 4 acks`
	if got := v.Violations[0].String(); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

// What a store forgot may happen again, and only that.
func TestForgot(t *testing.T) {
	w := newWorld()
	w.publish(1, 1)
	stories["handled"](w, 1)
	done := int64(w.now)
	w.now += time.Second
	delete(w.records, 1)
	gone := int64(w.now)
	w.now += time.Second
	stories["handled"](w, 1)
	for _, tt := range []struct {
		name   string
		forgot checker.Forgot
		want   int
	}{
		{"everything", checker.Forgot{At: gone, Until: gone + 1}, 0},
		{"what came after a moment before", checker.Forgot{Since: 1, At: gone, Until: gone + 1}, 0},
		{"what came later", checker.Forgot{Since: done + 1, At: gone, Until: gone + 1}, 3}, // started after, doubled, attempt
		{"before it was done", checker.Forgot{At: 1, Until: 2}, 3},
	} {
		v := w.check(func(r *checker.Run) { r.Forgot = []checker.Forgot{tt.forgot} })
		rules := map[checker.Rule]bool{}
		for _, x := range v.Violations {
			rules[x.Rule] = true
		}
		delete(rules, checker.NotLinearizable)
		if len(rules) != tt.want || (tt.want == 0) != (v.InWindow[checker.Forgotten] == 1) || (tt.want == 0 && len(v.Violations) > 0) {
			t.Errorf("%s: %v in windows, %v", tt.name, v.InWindow, v.Violations)
		}
	}
}

// Many tokens side by side, their events interleaved: a random one of them is spoilt.
func TestNeedle(t *testing.T) {
	names := slices.Sorted(maps.Keys(stories))
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 0))
		w := newWorld()
		needle := 1 + r.Uint32N(300)
		for token := uint32(1); token <= 300; token++ {
			w.now = time.Second + time.Duration(r.Int64N(int64(10*time.Second)))
			w.publish(token, token) // keys of their own: there is no order among them
			stories[names[r.IntN(len(names))]](w, token)
		}
		together := 0
		for i := range w.events {
			if w.events[i].Has(history.Together) {
				together++
			}
		}
		if v := w.check(); len(v.Violations) > 0 || v.Together != together {
			t.Fatalf("seed %d: %d of %d together with others, %v", seed, v.Together, together, v.Violations)
		}
		w.events = slices.DeleteFunc(w.events, func(e history.Event) bool {
			return e.Token == needle && (e.Kind == history.Effect || e.Kind == history.DeadLettered)
		})
		v := w.check()
		if v.Lost != 1 || len(v.Violations) == 0 || v.Violations[0].Token != needle {
			t.Errorf("seed %d: token %d: %+v", seed, needle, v)
		}
	}
}

// Of a rule that is broken without end some are kept, and all are counted.
func TestManyViolations(t *testing.T) {
	w := newWorld()
	for token := range uint32(100) {
		w.publish(token+1, 1)
	}
	if v := w.check(); v.Lost != 100 || v.Total[checker.Lost] != 100 || len(v.Violations) != checker.MaxViolations {
		t.Errorf("%d lost, %d counted, %d kept", v.Lost, v.Total[checker.Lost], len(v.Violations))
	}
}

func BenchmarkCheck(b *testing.B) {
	w := newWorld()
	names := slices.Sorted(maps.Keys(stories))
	for token := range uint32(50_000) {
		w.publish(token, token%64)
		name := "handled"
		if token%10 == 0 {
			name = names[int(token/10)%len(names)]
		}
		stories[name](w, token)
	}
	for b.Loop() {
		w.check()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/50_000, "ns/message")
}
