package torture

import (
	"maps"
	"slices"
	"testing"

	"github.com/idemq/idemq/e2e/torture/role"
)

// all is the choice of every setting.
func all(c Choice) Choices {
	choices := Choices{}
	for i := range settings {
		choices[settings[i].name] = c
	}
	return choices
}

// A seed gives the same settings each time, and each is on in about half of the seeds,
// whatever the others are.
func TestSettingsAreDrawn(t *testing.T) {
	const seeds = 1000
	drawn := all(Drawn)
	on := map[string]int{}
	for seed := range uint64(seeds) {
		s := drawn.draw(seed, natsPostgres(t))
		if again := drawn.draw(seed, natsPostgres(t)); !maps.Equal(s, again) {
			t.Fatalf("seed %d gives %v, and then %v", seed, s, again)
		}
		for i := range settings {
			name := settings[i].name
			if s[name] {
				on[name]++
			}
			if alone := (Choices{name: Drawn}).draw(seed, natsPostgres(t)); len(alone) != 1 || alone[name] != s[name] {
				t.Errorf("seed %d: %s is %t beside the others, and alone %v", seed, name, s[name], alone)
			}
		}
	}
	for i := range settings {
		if n := on[settings[i].name]; n < seeds*4/10 || n > seeds*6/10 {
			t.Errorf("%s is on for %d of %d seeds", settings[i].name, n, seeds)
		}
	}
	// A seed that somebody noted down has to give the same settings next year.
	for name, want := range map[string]string{"ahead": "on on on on off on off off", "batch": "off on off on off on off on", "work": "off off off off on off on off", "pgx": "on on off on off on on on"} {
		got := ""
		for seed := range uint64(8) {
			got += " " + onOff(drawn.draw(seed, natsPostgres(t))[name])
		}
		if got[1:] != want {
			t.Errorf("seeds 0 to 7 have %s %s, want %s", name, got[1:], want)
		}
	}
}

// What is forced is so for every seed, and the command that repeats a round says it.
func TestSettingsAreForced(t *testing.T) {
	for _, tt := range []struct {
		choice Choice
		on     bool
		again  string // of working ahead
	}{{On, true, " AHEAD=on"}, {Off, false, " AHEAD=off"}} {
		for seed := range uint64(20) {
			s := all(tt.choice).draw(seed, natsPostgres(t))
			for i := range settings {
				if on, is := s[settings[i].name]; !is || on != tt.on {
					t.Errorf("seed %d: %s is %t, %t; want %t", seed, settings[i].name, on, is, tt.on)
				}
			}
		}
		if got := (Choices{"ahead": tt.choice}).String(); got != tt.again {
			t.Errorf("the command is told %q, want %q", got, tt.again)
		}
	}
	if again := all(Drawn).String(); again != "" {
		t.Errorf("the command is told %q of what the seed decides", again)
	}
	if s := all(Usual).draw(1, natsPostgres(t)); len(s) != 0 {
		t.Errorf("nothing is asked for, and set is %v", s)
	}
	if c, err := parseChoice("of"); err == nil {
		t.Errorf(`"of" is choice %d`, c)
	}
}

// natsPostgres is a place where every setting fits.
func natsPostgres(t *testing.T) place {
	t.Helper()
	all, err := places("nats/postgres")
	if err != nil {
		t.Fatal(err)
	}
	return all[0]
}

// Where batches, or pgxstore, cannot be, they are off whatever is asked for, and nothing else is.
func TestSettingsOfPlaces(t *testing.T) {
	everywhere, err := places("")
	if err != nil {
		t.Fatal(err)
	}
	off := []string{
		"kafka-group/postgres", "kafka-group/mariadb", "kafka-group/sqlite", "kafka-reader/postgres", "kafka-reader/mariadb", "kafka-reader/sqlite",
		"nats/sqlite", "amqp-classic/sqlite", "amqp-quorum/sqlite",
	}
	for _, p := range everywhere {
		for _, c := range []Choice{Drawn, On, Off} {
			on := map[string]bool{}
			for seed := range uint64(20) {
				for name, is := range all(c).draw(seed, p) {
					on[name] = on[name] || is
				}
			}
			for i := range settings {
				name := settings[i].name
				if want := c != Off && (name != "batch" || !slices.Contains(off, p.String())) && (name != "pgx" || p.store.kind == "postgres"); on[name] != want {
					t.Errorf("%s, choice %d: %s is on: %t, want %t", p, c, name, on[name], want)
				}
			}
		}
	}
}

// The round's settings reach its consumers, its schedule and its result.
func TestSettingsReachConsumers(t *testing.T) {
	for _, tt := range []struct {
		name     string
		settings Settings
		ahead    int
		near     int
		batch    int
		pgx      bool
		words    string
	}{
		{"nothing said", nil, 0, 0, 0, false, "working ahead on, near cache off, batches off, handlers that take 20 ms off, pgxstore off"},
		{"off", Settings{"ahead": false}, role.NoneAhead, 0, 0, false, "working ahead off, near cache off, batches off, handlers that take 20 ms off, pgxstore off"},
		{"on is the default", Settings{"ahead": true}, 0, 0, 0, false, "working ahead on, near cache off, batches off, handlers that take 20 ms off, pgxstore off"},
		{"a near cache", Settings{"near": true}, 0, nearCache, 0, false, "working ahead on, near cache on, batches off, handlers that take 20 ms off, pgxstore off"},
		{"batches", Settings{"batch": true}, 0, 0, maxBatch, false, "working ahead on, near cache off, batches on, handlers that take 20 ms off, pgxstore off"},
		{"handlers that take their time", Settings{"work": true}, 0, 0, 0, false, "working ahead on, near cache off, batches off, handlers that take 20 ms on, pgxstore off"},
		{"pgxstore", Settings{"pgx": true}, 0, 0, 0, true, "working ahead on, near cache off, batches off, handlers that take 20 ms off, pgxstore on"},
	} {
		r := Round{Seed: 1, Settings: tt.settings}
		r.withDefaults()
		if takes := r.Config.Work == work; takes != tt.settings["work"] || takes != (r.Rate == workRate) {
			t.Errorf("%s: handlers take %v, at %d messages a second", tt.name, r.Config.Work, r.Rate)
		}
		if c := r.Config; c.Ahead != tt.ahead || c.NearCache != tt.near || c.Batch != tt.batch || c.PGX != tt.pgx {
			t.Errorf("%s: consumers are told %d ahead, a near cache of %d and batches of %d, pgxstore: %t; want %d, %d, %d, %t", tt.name, c.Ahead, c.NearCache, c.Batch, c.PGX, tt.ahead, tt.near, tt.batch, tt.pgx)
		}
		if got := r.Settings.String(); got != tt.words {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.words)
		}
	}
}
