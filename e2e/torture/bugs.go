package torture

import (
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/idemq/idemq/e2e/checker"
	"github.com/idemq/idemq/e2e/torture/role"
)

// Bug is a mistake that is planted in the library, to see that a run finds it.
type Bug struct {
	Name    string
	What    string
	Replace []Replacement
	Trial   Trial
	Rules   []checker.Rule // one of which it breaks: another broken one is no catch
	// Chance says that a round finds it only where a process stands still at the right moment.
	Chance bool
}

// Trial is the round that has to find a bug, and has to pass without it. Its seed and
// its faults fit the bug, so that one short round is enough.
type Trial struct {
	Site   string
	Seed   uint64
	Length time.Duration
	Every  time.Duration
	Rate   int
	Only   []Kind
	Config role.Config
}

var (
	storeGoes = Trial{
		Site: "nats/redis", Seed: 11, Length: 5 * time.Second, Every: 700 * time.Millisecond, Rate: 1500,
		Only: []Kind{StoreReset, StoreBlackHole, StoreSwallow},
	}
	// Handlers take their time, so that somebody else has the message in work when they are
	// back.
	pauses = Trial{
		Site: "nats/redis", Seed: 12, Length: 12 * time.Second, Every: 800 * time.Millisecond, Rate: 60,
		Only: []Kind{Pause}, Config: role.Config{Concurrency: 12, Work: time.Second},
	}
	kills = Trial{
		Site: "amqp-classic/redis", Seed: 13, Length: 5 * time.Second, Every: 700 * time.Millisecond, Rate: 800,
		Only: []Kind{Kill}, Config: role.Config{Concurrency: 4, Work: 2 * time.Millisecond},
	}
	kafkaKills = Trial{
		Site: "kafka-group/redis", Seed: 14, Length: 6 * time.Second, Every: 700 * time.Millisecond, Rate: 1500,
		Only: []Kind{Kill}, Config: role.Config{Concurrency: 4, Work: 2 * time.Millisecond},
	}
)

// inBatches is a trial whose handlers take several messages at a time.
func inBatches(t Trial) Trial {
	t.Config.Batch = maxBatch
	return t
}

// Bugs lists the bugs that are planted.
func Bugs() []Bug {
	return []Bug{
		{
			Name: "ack before the completion",
			What: "a message is acked as soon as its handler has returned, before that is recorded",
			Replace: []Replacement{{
				File: "consumers/record.go",
				Old:  "	errs := e.guard.CommitAll(l.ph.final, claims)\n",
				New: `	for _, en := range batch {
		_ = en.d.Ack(l.ph.final)
	}
	errs := e.guard.CommitAll(l.ph.final, claims)
`,
			}},
			Trial: storeGoes,
			Rules: []checker.Rule{checker.AckedWithoutCause},
		},
		{
			Name: "offset n+1 over n",
			What: "Kafka's offset goes to the last message that is done, over those in work before it",
			Replace: []Replacement{{
				File: "consumers/kafka/tracker.go",
				Old:  "		freed, m.size = m.size, isDone\n",
				New: `		freed, m.size = m.size, isDone
		t.next = max(t.next, m.offset+1)
`,
			}},
			Trial: kafkaKills,
			Rules: []checker.Rule{checker.Lost},
		},
		{
			Name: "release without its fence",
			What: "a claim is given back by whoever had one before",
			Replace: []Replacement{{
				File: "idem/store/redisstore/records.lua",
				Old:  "    elseif not r or not owns(r, claim) then\n      return 'l'\n    elseif r.st == 'r' then\n",
				New:  "    elseif not r then\n      return 'l'\n    elseif r.st == 'r' then\n",
			}},
			Trial: pauses, Chance: true,
			Rules: []checker.Rule{checker.NotLinearizable, checker.Doubled},
		},
		{
			Name: "completion without its fence",
			What: "a handler whose lease was lost completes the message while somebody else has it",
			Replace: []Replacement{{
				File: "idem/store/redisstore/records.lua",
				Old:  "  elseif not (own and st == 'p') and st ~= 'r'",
				New:  "  elseif st ~= 'p' and st ~= 'r'",
			}},
			Trial: pauses, Chance: true,
			Rules: []checker.Rule{checker.NotLinearizable, checker.StartedAfterCompletion},
		},
		{
			Name: "lost reply taken for a duplicate",
			What: "a request for a claim whose reply was lost counts as refused: somebody must have had the message before",
			Replace: []Replacement{{
				File: "idem/batcher.go",
				Old:  "		b.stall(o, c)\n",
				New: `		if c.op.Kind == store.Begin {
			c.reply, c.finished = store.Reply{Status: store.Duplicate, Attempt: 1}, true
			l.given = append(l.given, c)
		} else {
			b.stall(o, c)
		}
`,
			}},
			Trial: storeGoes,
			Rules: []checker.Rule{checker.Lost, checker.AckedWithoutCause},
		},
		{
			Name: "in progress taken for done",
			What: "a message that somebody else has in work is acked like one that is done",
			Replace: []Replacement{{
				File: "consumers/life.go",
				Old:  "	case errors.As(err, &dup), errors.As(err, &busy):\n",
				New: `	case errors.As(err, &dup), errors.As(err, &busy):
		if dup == nil {
			dup = &idem.DuplicateError{}
		}
`,
			}},
			Trial: kills,
			Rules: []checker.Rule{checker.Lost},
		},
		{
			Name: "attempts not counted",
			What: "who takes a claim over gets the attempt's number as well",
			Replace: []Replacement{{
				File: "idem/store/redisstore/records.lua",
				Old:  "    r.claim, r.attempt = claim, r.attempt + 1\n",
				New:  "    r.claim = claim\n",
			}},
			Trial: kills,
			Rules: []checker.Rule{checker.NotLinearizable, checker.AttemptRepeated},
		},
		{
			Name: "a batch done as one",
			What: "all messages of a batch are completed, those that failed as well",
			Replace: []Replacement{{
				File: "consumers/batch.go",
				Old:  "		case errs[i] == nil && !en.claim.Joined():\n",
				New:  "		case !en.claim.Joined():\n",
			}},
			Trial: inBatches(kills),
			Rules: []checker.Rule{checker.Lost},
		},
		{
			Name: "a batch acked before its completions",
			What: "the messages of a batch are acked as soon as their handler has returned, before that is recorded",
			Replace: []Replacement{{
				File: "consumers/batch.go",
				Old:  "	l.complete(done...)\n",
				New: `	for _, en := range done {
		_ = en.d.Ack(l.ph.final)
	}
	l.complete(done...)
`,
			}},
			Trial: inBatches(storeGoes),
			Rules: []checker.Rule{checker.AckedWithoutCause},
		},
	}
}

// Caught is a planted bug that a round found.
type Caught struct {
	Bug     string  `json:"bug"`
	What    string  `json:"what"`
	Site    string  `json:"site"`
	Seed    uint64  `json:"seed"`
	Tries   int     `json:"tries"` // rounds, each with another seed
	Words   string  `json:"words"` // the checker's
	Seconds float64 `json:"seconds"`
}

// CaughtFile is the name of the file of the planted bugs that were caught.
const CaughtFile = "caught.json"

// ReadCaught reads that file; nil if there is none.
func ReadCaught(path string) (all []Caught, err error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return all, json.Unmarshal(text, &all)
}

// WriteCaught writes it.
func WriteCaught(path string, all []Caught) error {
	slices.SortFunc(all, func(a, b Caught) int { return strings.Compare(a.Bug, b.Bug) })
	text, err := json.MarshalIndent(all, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

// finding is what the checker says shortest of a breach of one of some rules; empty if there
// is none.
func (r *Result) finding(rules []checker.Rule) (words string) {
	for i := range r.found {
		x := &r.found[i]
		if text := x.String(); slices.Contains(rules, x.Rule) && (words == "" || len(text) < len(words)) {
			words = text
		}
	}
	return words
}
