package torture

import (
	"fmt"
	"strings"
	"time"

	"github.com/idemq/idemq/e2e/checker"
)

// The page of a soak, and its picture.
const (
	SoakPageFile = "soak.md"
	SoakPlotFile = "soak.svg"
)

// SoakPage writes the page, from the result alone.
func SoakPage(r *SoakResult) string {
	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, format, args...) }
	sum := totals(r.Sites)

	say("# Soak\n\n")
	say("<!-- Written by the program, from its records: make soak DURATION=1h REPORT=1 -->\n\n")
	say("%s, with one Redis, for %s: %s messages, published %s times, %s a second and %s copies of them, under %s faults, one a site each %s. **%s lost, %s doubled outside the named windows**, %s doubled in them. %s\n\n",
		brokersAtOnce(len(r.Sites)), words(r.Duration), grouped(sum.Messages), grouped(sum.Copies),
		grouped(int(float64(sum.Messages)/r.Duration.Seconds())), grouped(int(float64(sum.Copies)/r.Duration.Seconds())),
		grouped(sum.faults()), strings.TrimPrefix(words(r.FaultsAt), "one "), grouped(sum.Lost), grouped(sum.Elsewhere), grouped(sum.windows()), r.flatness())

	say("![Resident memory, live heap, goroutines and file descriptors of consumers; keys and memory of Redis](%s)\n\n", SoakPlotFile)
	say("Blue is the consumer process of each site that lives from the beginning to the end, grey are those that come and go. Red ticks are faults, and from the dashed line on it is judged.\n\n")

	say("## What grows\n\nJudged from %s on, %s samples of each series at most. *Trend* is the growth of the straight line whose slope is the median of the slopes between all pairs of samples; *thirds* is the median of the last third less that of the first. A series is flat if neither is more than is allowed.\n\n",
		words(r.Judged), grouped(int((r.Duration-r.Judged)/max(r.Sampled, 1))))
	say("%s\n", r.trendTable())
	say("The process that lives throughout is the one that is judged: a leak has to survive faults to be seen, and not the restarts that cure it. It is stopped and slowed, its connections fail, its clock jumps; what ends processes hits the others.\n\n")
	if words := r.sensitivity(); words != "" {
		say("%s\n\n", words)
	}

	say("## What was handled\n\n%s\n", r.siteTable())
	say("Every site's history is held to the promise by the checker, as in [the runs of faults](faults.md); what is *lost* or *doubled*, and in which window, is said there.\n\n")
	say("Faults: %s.\n\n", strings.Join(r.faultCounts(), ", "))

	say("## Again\n\n    %s REPORT=1\n\n", r.Command)
	say("%s UTC. %d CPUs, %.0f GB of memory, all servers and consumers on the one machine. %s", r.Time.Format(time.DateTime), r.CPUs, float64(r.Memory)/1e9, r.Redis)
	for _, s := range r.Sites {
		say(", %s", s.Broker)
	}
	say(", %s", r.Go)
	if r.Library != "" {
		say("; the library is %s", r.Library)
	}
	say(". %d consumer processes a site, leases of %s, records kept for %s, a copy of one message in %d.\n", Slots, words(soakLease), words(r.Retention), againEvery)
	if len(r.Failures) > 0 {
		say("\n## What failed\n\n")
		for _, f := range r.Failures {
			say("- %s\n", firstLine(f))
		}
	}
	return b.String()
}

func brokersAtOnce(n int) string {
	if n == 1 {
		return "one broker"
	}
	return fmt.Sprintf("%d brokers at once", n)
}

// words writes a duration for people.
func words(d time.Duration) string {
	for _, unit := range []struct {
		of   time.Duration
		name string
	}{{time.Hour, "hour"}, {time.Minute, "minute"}, {time.Second, "second"}} {
		if d >= unit.of && d%unit.of == 0 {
			if d == unit.of {
				return "one " + unit.name
			}
			return fmt.Sprintf("%d %ss", d/unit.of, unit.name)
		}
	}
	return d.String()
}

// flatness is the verdict on the trends in a sentence.
func (r *SoakResult) flatness() string {
	var grow []string
	for i := range r.Trends {
		if !r.Trends[i].Flat() {
			grow = append(grow, r.Trends[i].name())
		}
	}
	if len(grow) == 0 {
		return fmt.Sprintf("Memory, goroutines, file descriptors, and the keys and memory of Redis are flat from %s on.", words(r.Judged))
	}
	return fmt.Sprintf("**Not flat: %s.**", strings.Join(grow, ", "))
}

func (r *SoakResult) trendTable() string {
	var rows [][]string
	for i := range r.Trends {
		t := &r.Trends[i]
		m := measureOf(t.Series)
		show := func(v float64) string {
			if m.scale == 1 {
				return fmt.Sprintf("%.0f", v)
			}
			return fmt.Sprintf("%.1f", v/m.scale)
		}
		signed := func(v float64) string { return strings.Replace("+"+show(v), "+-", "-", 1) }
		verdict := "flat"
		if !t.Flat() {
			verdict = "**grows**"
		}
		name := t.name()
		if m.unit != "" {
			name += ", " + m.unit
		}
		rows = append(rows, []string{
			name, show(t.Least), show(t.Median), show(t.Most), show(t.First), show(t.Last),
			signed(t.Growth), signed(t.Last - t.First), show(t.Allowed), verdict,
		})
	}
	return markdown([]string{"series", "least", "median", "most", "first third", "last third", "trend", "thirds", "allowed", ""}, rows)
}

// sensitivity says which leak would have been seen.
func (r *SoakResult) sensitivity() string {
	bytes, goroutines := 0.0, 0.0 // a message
	for _, t := range r.Trends {
		n := float64(r.Handled[t.Site])
		switch {
		case t.Site == "":
		case n == 0:
			return ""
		case t.Series == "live heap":
			bytes = max(bytes, t.Allowed/n)
		case t.Series == "goroutines":
			goroutines = max(goroutines, t.Allowed/n)
		}
	}
	if bytes == 0 || goroutines == 0 {
		return ""
	}
	return fmt.Sprintf("How small a leak is seen: from what that process handled while it was judged, one of %.1f bytes of heap a message, or of a goroutine in %s messages, is more than is allowed, on every site.",
		bytes, grouped(int(1/goroutines)))
}

func (r *SoakResult) siteTable() string {
	var rows [][]string
	for _, s := range r.Sites {
		rows = append(rows, soakRow(s.Site, totals([]Result{s})))
	}
	return markdown(
		[]string{"site", "messages", "copies", "faults", "kills", "takeovers", "dead letters", "lost", "doubled: died", "doubled: lease", "doubled elsewhere"},
		append(rows, soakRow("all", totals(r.Sites))))
}

func soakRow(name string, t total) []string {
	row := []string{name}
	for _, n := range []int{
		t.Messages, t.Copies, t.faults(), t.Faults[Kill.String()], t.Takeovers, t.DeadLetters, t.Lost,
		t.InWindow[checker.Died.String()], t.InWindow[checker.LeaseLost.String()], t.Elsewhere,
	} {
		row = append(row, grouped(n))
	}
	return row
}

// faultCounts are how many there were of each kind.
func (r *SoakResult) faultCounts() (all []string) {
	sum := totals(r.Sites)
	for _, k := range Kinds() {
		if n := sum.Faults[k.String()]; n > 0 {
			all = append(all, fmt.Sprintf("%s %d", k, n))
		}
	}
	return all
}
