package torture

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/idemq/idemq/e2e/checker"
)

// Result is what became of a round: a line of the results file.
type Result struct {
	Time     time.Time `json:"time"`
	Site     string    `json:"site"`
	Seed     uint64    `json:"seed"`
	Length   string    `json:"length"`
	Seconds  float64   `json:"seconds"`
	Phases   []Phase   `json:"phases"`
	Broker   string    `json:"broker"` // version
	Store    string    `json:"store"`  // version
	Library  string    `json:"library,omitempty"`
	Again    string    `json:"again,omitempty"`    // the command
	Settings Settings  `json:"settings,omitempty"` // what is missing was as usual

	Messages  int            `json:"messages"`
	Copies    int            `json:"copies"`
	Faults    map[string]int `json:"faults"`
	Processes int            `json:"processes"`

	Effects     int            `json:"effects"`
	DeadLetters int            `json:"dead_letters"`
	Claims      int            `json:"claims"`
	Takeovers   int            `json:"takeovers"`
	Duplicates  int            `json:"duplicates"`
	Together    int            `json:"together,omitempty"`
	Lost        int            `json:"lost"`
	Nudges      int            `json:"nudges,omitempty"` // see watcher
	InWindow    map[string]int `json:"in_window,omitempty"`
	Elsewhere   int            `json:"elsewhere"`

	Failures []string `json:"failures,omitempty"` // a round without any has passed
	found    []checker.Violation
}

// Phase is a part of a round and how long it took.
type Phase struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"`
}

// Passed reports whether the round kept the promise.
func (r *Result) Passed() bool { return len(r.Failures) == 0 }

func (r *Round) result(s Site, v *checker.Verdict) *Result {
	res := &Result{
		Phases: r.phases,
		Site:   s.String(), Seed: r.Seed, Length: r.Length.String(), Settings: r.Settings,
		Broker: s.Broker.Version(), Store: s.Store.Version(),
		Messages: v.Messages, Copies: v.Published, Faults: map[string]int{}, Processes: int(r.faults.fleet.started),
		Effects: v.Effects, DeadLetters: v.DeadLetters, Claims: v.Claims, Takeovers: v.Takeovers, Duplicates: v.Duplicates, Together: v.Together,
		Lost: v.Lost, Nudges: r.nudges, InWindow: map[string]int{}, Elsewhere: v.DoubledElsewhere,
	}
	for k, n := range r.faults.done {
		res.Faults[k.String()] = n
	}
	for w, n := range v.InWindow {
		res.InWindow[w.String()] = n
	}
	for _, violation := range v.Violations {
		res.Failures = append(res.Failures, violation.String())
	}
	res.found = v.Violations
	for _, rule := range slices.Sorted(maps.Keys(v.Total)) {
		if n := v.Total[rule]; n > checker.MaxViolations {
			res.Failures = append(res.Failures, fmt.Sprintf("%s: %d in all", rule, n))
		}
	}
	if v.Undecided > 0 {
		res.Failures = append(res.Failures, fmt.Sprintf("undecided: of %d messages it was not found out whether the store's answers fit", v.Undecided))
	}
	return res
}

// writeVerdict leaves what a failed round was found to have done.
func (r *Round) writeVerdict(res *Result) error {
	text := strings.Join(slices.Concat([]string{"again: " + res.Again}, res.Failures), "\n\n")
	return os.WriteFile(filepath.Join(r.Dir, "verdict.txt"), []byte(text+"\n"), 0o644)
}
