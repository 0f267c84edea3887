package torture

import (
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/idemq/idemq/e2e/torture/role"
)

// setting is a feature of the library that the consumers of a round have on or off. What it
// says in one place is all that a new one needs, besides the consumer that does it.
type setting struct {
	name  string // of the flag, and in results
	what  string
	usual bool // where nothing is said: what rounds had before there was the choice
	apply func(c *role.Config, on bool)
	fits  func(p place) bool // false: it is always off there; nil: it fits everywhere
}

// nearCache is how many tokens a process remembers: fewer than a round has, so that some
// are crowded out.
const nearCache = 1000

// maxBatch is how many messages a handler is given at most (with an SQL store, fewer; see
// the consumer): several such batches wait in a round's backlog.
const maxBatch = 32

// work is how long a handler takes in some rounds, and workRate how many messages a second
// these have: so that a process that is paused, or cut off, has messages in its handlers.
const (
	work     = 20 * time.Millisecond
	workRate = 100
)

var settings = []setting{
	{"ahead", "working ahead", true, func(c *role.Config, on bool) {
		if !on {
			c.Ahead = role.NoneAhead
		}
	}, nil},
	{"near", "near cache", false, func(c *role.Config, on bool) {
		c.NearCache = 0
		if on {
			c.NearCache = nearCache
		}
	}, nil},
	{"batch", "batches", false, func(c *role.Config, on bool) {
		c.Batch = 0
		if on {
			c.Batch = maxBatch
		}
	}, fitsBatches},
	{"work", "handlers that take 20 ms", false, func(c *role.Config, on bool) {
		if on {
			c.Work = work
		}
	}, nil},
	{"pgx", "pgxstore", false, func(c *role.Config, on bool) { c.PGX = on }, func(p place) bool { return p.store.kind == "postgres" }},
}

// fitsBatches is false where a batch cannot be had. In an SQL store the effect of each of
// its messages is in a transaction of its own, which stays open, with its connection, until
// the handler returns: SQLite has one at a time, and for the handlers of Kafka, one or four
// a partition, there are not enough, so that each would wait for the others' with claims
// that run out.
func fitsBatches(p place) bool {
	switch p.store.kind {
	case "sqlite":
		return false
	case "postgres", "mariadb":
		return !strings.HasPrefix(p.broker.kind, "kafka-")
	}
	return true
}

// Settings are those of a round, by name; what is missing is as usual.
type Settings map[string]bool

func (s Settings) on(of *setting) bool {
	if on, is := s[of.name]; is {
		return on
	}
	return of.usual
}

func (s Settings) apply(c *role.Config) {
	for i := range settings {
		if on, is := s[settings[i].name]; is {
			settings[i].apply(c, on)
		}
	}
}

// String is all settings, for people.
func (s Settings) String() string {
	var all []string
	for i := range settings {
		all = append(all, settings[i].what+" "+onOff(s.on(&settings[i])))
	}
	return strings.Join(all, ", ")
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

// Choice is how the rounds of a run come by a setting.
type Choice int

// The choices.
const (
	Usual Choice = iota
	Drawn        // from the round's seed
	On
	Off
)

func parseChoice(text string) (Choice, error) {
	switch text {
	case "on":
		return On, nil
	case "off":
		return Off, nil
	case "drawn":
		return Drawn, nil
	}
	return Usual, fmt.Errorf("%q: must be on, off or drawn", text)
}

// Choices are those of a run, by the names of the settings.
type Choices map[string]Choice

// draw returns the settings of a round at a place. Each is drawn apart: a seed gives those
// of today next year too, when there are more.
func (c Choices) draw(seed uint64, p place) Settings {
	s := Settings{}
	for i := range settings {
		of := &settings[i]
		choice := c[of.name]
		if choice != Usual && of.fits != nil && !of.fits(p) {
			choice = Off
		}
		switch choice {
		case Drawn:
			h := fnv.New64a()
			_, _ = h.Write([]byte(of.name))
			s[of.name] = rand.New(rand.NewPCG(seed, h.Sum64())).IntN(2) == 0
		case On, Off:
			s[of.name] = choice == On
		}
	}
	return s
}

// String is what make torture needs to be told, for a round to have the same settings.
func (c Choices) String() string {
	var b strings.Builder
	for i := range settings {
		if of := &settings[i]; c[of.name] == On || c[of.name] == Off {
			fmt.Fprintf(&b, " %s=%s", strings.ToUpper(of.name), onOff(c[of.name] == On))
		}
	}
	return b.String()
}

// settingsTable is the results by setting, by what a Redis keeps and by the driver of PostgreSQL.
func settingsTable(all []Result) string {
	var rows [][]string
	add := func(name string, has func(*Result) bool) {
		var some []Result
		for i := range all {
			if has(&all[i]) {
				some = append(some, all[i])
			}
		}
		t := totals(some)
		row := []string{name}
		for _, n := range []int{t.rounds, t.Messages, t.faults(), t.Lost, t.windows(), t.Elsewhere} {
			row = append(row, grouped(n))
		}
		rows = append(rows, row)
	}
	for i := range settings {
		for _, on := range []bool{true, false} {
			if settings[i].name == "pgx" {
				break // below
			}
			add(settings[i].what+" "+onOff(on), func(r *Result) bool { return r.Settings.on(&settings[i]) == on })
		}
	}
	for _, layout := range []struct{ name, kind string }{{"Redis with records", "redis"}, {"Redis, compact layout", "redis-compact"}} {
		add(layout.name, func(r *Result) bool { return strings.HasSuffix(r.Site, "/"+layout.kind) })
	}
	for _, driver := range []struct {
		name string
		pgx  bool
	}{{"PostgreSQL, by sqlstore", false}, {"PostgreSQL, by pgxstore", true}} {
		add(driver.name, func(r *Result) bool { return strings.HasSuffix(r.Site, "/postgres") && r.Settings["pgx"] == driver.pgx })
	}
	text := markdown([]string{"setting", "rounds", "messages", "faults", "lost", "doubled in a window", "doubled elsewhere"}, rows)
	if t := totals(all); t.Together > 0 {
		text += fmt.Sprintf("\nWith batches on, handlers were given up to %d messages at a time, and %s in all together with others; where nothing is claimed ahead, each comes alone. Where each effect of a batch would hold a transaction, and there are too few of these, batches are off: with SQLite, and from Kafka with an SQL store.\n", maxBatch, grouped(t.Together))
	}
	return text
}
