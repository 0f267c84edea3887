package torture

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/idemq/idemq/e2e/checker"
)

// ReadResults reads a results file.
func ReadResults(path string) ([]Result, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []Result
	for d := json.NewDecoder(bufio.NewReader(f)); ; {
		var r Result
		switch err := d.Decode(&r); {
		case errors.Is(err, io.EOF):
			return all, nil
		case err != nil:
			return nil, fmt.Errorf("%s: result %d: %w", path, len(all)+1, err)
		}
		all = append(all, r)
	}
}

// total is the sum of results.
type total struct {
	Result
	rounds, failed int
}

func totals(all []Result) (sum total) {
	sum.Faults, sum.InWindow = map[string]int{}, map[string]int{}
	for _, r := range all {
		sum.rounds++
		if !r.Passed() {
			sum.failed++
		}
		sum.Messages += r.Messages
		sum.Copies += r.Copies
		sum.Processes += r.Processes
		sum.Effects += r.Effects
		sum.DeadLetters += r.DeadLetters
		sum.Claims += r.Claims
		sum.Takeovers += r.Takeovers
		sum.Duplicates += r.Duplicates
		sum.Together += r.Together
		sum.Lost += r.Lost
		sum.Nudges += r.Nudges
		sum.Elsewhere += r.Elsewhere
		sum.Seconds += r.Seconds
		for k, n := range r.Faults {
			sum.Faults[k] += n
		}
		for w, n := range r.InWindow {
			sum.InWindow[w] += n
		}
	}
	return sum
}

func (t *total) faults() (n int) {
	for _, of := range t.Faults {
		n += of
	}
	return n
}

func (t *total) windows() (n int) {
	for _, in := range t.InWindow {
		n += in
	}
	return n
}

// bySite groups results.
func bySite(all []Result) map[string][]Result {
	sites := map[string][]Result{}
	for _, r := range all {
		sites[r.Site] = append(sites[r.Site], r)
	}
	return sites
}

// sitesInOrder lists the sites in the order of brokers and stores.
func sitesInOrder(sites map[string][]Result) (names []string) {
	for _, b := range brokers {
		for _, s := range stores {
			if name := (place{b, s}).String(); sites[name] != nil {
				names = append(names, name)
			}
		}
	}
	return names
}

var columns = []string{"site", "rounds", "messages", "copies", "faults", "kills", "takeovers", "dead letters", "lost", "doubled: died", "doubled: lease", "doubled: forgotten", "doubled elsewhere"}

func (t *total) row(name string) []string {
	row := []string{name}
	for _, n := range []int{
		t.rounds, t.Messages, t.Copies, t.faults(), t.Faults[Kill.String()], t.Takeovers, t.DeadLetters, t.Lost,
		t.InWindow[checker.Died.String()], t.InWindow[checker.LeaseLost.String()], t.InWindow[checker.Forgotten.String()], t.Elsewhere,
	} {
		row = append(row, grouped(n))
	}
	return row
}

// table is the results by site, for people.
func table(all []Result) string {
	sites := bySite(all)
	var rows [][]string
	for _, name := range sitesInOrder(sites) {
		t := totals(sites[name])
		rows = append(rows, t.row(name))
	}
	t := totals(all)
	return markdown(columns, append(rows, t.row("all")))
}

// grouped writes a number with commas.
func grouped(n int) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// markdown is a table, its columns aligned; all but the first to the right.
func markdown(head []string, rows [][]string) string {
	width := make([]int, len(head))
	for _, row := range append([][]string{head}, rows...) {
		for i, cell := range row {
			width[i] = max(width[i], len([]rune(cell)))
		}
	}
	var b strings.Builder
	line := func(row []string) {
		for i, cell := range row {
			pad := strings.Repeat(" ", width[i]-len([]rune(cell)))
			if i == 0 {
				b.WriteString("| " + cell + pad + " |")
			} else {
				b.WriteString(" " + pad + cell + " |")
			}
		}
		b.WriteString("\n")
	}
	line(head)
	rule := make([]string, len(head))
	for i := range head {
		rule[i] = strings.Repeat("-", width[i])
		if i > 0 {
			rule[i] = rule[i][1:] + ":"
		}
	}
	line(rule)
	for _, row := range rows {
		line(row)
	}
	return b.String()
}

// Report writes the page of what was run and found, from the results alone. Caught are
// the results of the planted bugs.
func Report(all []Result, caught []Caught) string {
	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, format, args...) }
	sum := totals(all)
	first, last := slices.MinFunc(all, byTime), slices.MaxFunc(all, byTime)

	say("# Faults\n\n")
	say("<!-- Written by the program, from its records: make torture REPORT=1 -->\n\n")
	say("Consumer processes of every broker with every store handle messages while processes, connections and servers fail, as a seed decides. Everything that they ask, are answered and do is recorded, and held to the promise afterwards. This page is made from the records of the runs that it names.\n\n")
	say("%s messages, published %s times, %s faults, %s of them SIGKILLs of a consumer: **%s lost, %s doubled outside the named windows**, and %s doubled in them.\n\n",
		grouped(sum.Messages), grouped(sum.Copies), grouped(sum.faults()), grouped(sum.Faults[Kill.String()]), grouped(sum.Lost), grouped(sum.Elsewhere), grouped(sum.windows()))
	if sum.failed > 0 {
		say("**%d of %d rounds failed.** What they found is [below](#rounds-that-failed).\n\n", sum.failed, sum.rounds)
	}

	say("## What was run\n\n")
	say("%d rounds of %d seeds between %s and %s UTC, %.1f hours of running in all. A round is one broker, one store, %d consumer processes and one seed; it begins with messages, goes on with faults, about one a second, and ends with a calm in which everything has to be settled.\n\n",
		sum.rounds, seeds(all), first.Time.Format(time.DateTime), last.Time.Format(time.DateTime), sum.Seconds/3600, Slots)
	if revisions := distinct(all, func(r Result) string { return r.Library }); len(revisions) > 0 {
		say("The library: %s.\n\n", strings.Join(revisions, ", "))
	}
	say("%s\n", markdown([]string{"server", "versions"}, versions(all)))
	say("Again, for a time of your own, and with other seeds:\n\n    make torture DURATION=1h REPORT=1\n\nOne round of those below, the same faults in the same order at the same times:\n\n    %s\n\n", last.Again)

	say("## What was found\n\n")
	say("%s\n", table(all))
	say(`A token is *lost* if it was published, and has neither an effect nor a dead letter. It is *doubled* by a second effect. There are three windows in which that may happen, and nothing else excuses it:

- **process died**: the effect landed, and its process was killed before the store had acknowledged the completion. One that was told to stop counts only where it had asked the store, its handler had not returned, or the store or the way to it was at fault meanwhile.
- **lease lost**: a lease ran out, or was taken over, while its handler ran, and the effect landed all the same; only where the holder had been stopped (a pause), the store or the way to it was at fault at most five seconds before, or the store had not answered the holder, or not within a third of the lease. That the broker was at fault, or the holder's handler slow, excuses nothing.
- **store forgot**: the store forgot what it had acknowledged: a restart with nothing, a failover to a replica that lagged.

With an SQL store the effect is a row in the transaction of the completion: no window is open there, and a second row fails the round.

`)
	say("Every round is held to this as well: nothing is acked before its completion, or its dead letter, was acknowledged (where acks can be seen: see below); nothing is dead-lettered before its budget was spent; no handler starts after the completion was acknowledged; one live claim at most, by [porcupine](https://github.com/anishathalye/porcupine) against the rules that the drivers execute; no attempt's number is given to two claims; messages of a key take effect in the order of their publishing, where the broker keeps one; everything is settled in the end; and no process ends unasked.\n\n")

	say("%d times a round over a kafka.Reader needed one more deploy at its end (see below).\n\n", sum.Nudges)
	say("By what the consumers were told, as the seed of a round decides, by what Redis keeps and by the driver of PostgreSQL (rounds from before there was a choice count with what they had):\n\n%s\n", settingsTable(all))

	say("## The faults\n\nThose are counted that lasted as long as they were drawn: the end of a round cuts some short.\n\n%s\n", markdown(append([]string{"fault", "in all"}, append(kindsOf(brokers, "broker "), kindsOf(stores, "store ")...)...), faultRows(all)))
	for _, k := range Kinds() {
		if sum.Faults[k.String()] > 0 {
			say("- **%s**: %s.\n", k, k.What())
		}
	}

	say(`
## What this does not see

- Over a kafka.Reader (kafka-reader), a consumer may move the offset of a partition back that has gone to another one, if that one commits between its question how far the group is and its commit, until the next rebalance: what lies between is fetched again then, and dropped. A round that ends like this, all its messages done, is given a deploy more, so that everything is settled (see above how often).
- A quorum queue is five seconds old, at least, when its server is killed: of younger ones RabbitMQ 3.10 finds no leader afterwards.
- The servers are single processes on one machine, but for the replica that a failover goes to: no quorum loses its majority here, and no disk lies about what it wrote.
- Kafka refuses what is an hour ahead of its clock: a consumer whose clock is cannot dead-letter, and ends. The dead-letter topics here take any time.
- Stores that were not under these faults: Redis Cluster, Sentinel and Ring, memstore, MySQL and other versions than those of the table. They have the suite of all drivers, and tests of their own.
- All clocks are one machine's. Consumers' wall clocks are stepped; the stores' are not.
- What a seed repeats is the faults and their times. How the processes run between them is up to the machine, so a failure that hangs on a race may need several tries.
- Handlers record their effect at the end of what they do: an effect is one instant. A handler that does several things can be stopped between them.
- Histories are written to memory that outlives a killed process. They say what the processes did, not what a machine without power would remember.
- Consumers are those of the constructors with their default policies, a backoff, a budget, and the settings of the table above: at most once, FailOpen, fingerprints, issued and signed tokens, redrives, Forget, Wrap and Do are left to the model and to the tests beside the code.
- Where the client offers no place to look (RabbitMQ's queue consumers, kafka-group), acks are not recorded: there an early ack is found by the loss that it leads to, and not by itself.
- The effects of the stores without transactions are records in the history. What a real effect costs, and what fails in it, is not part of this.
`)

	if sum.Together > 0 {
		say("- The effects of a batch are one for each message, one after another over the time that the handler takes, so that a fault can come between two: a bulk effect, all or nothing, is not tried. Where Kafka keeps an order, the handler leaves the messages of a key that are behind one that failed to their next attempt: the library does not do that for it.\n")
	} else {
		say("- Handlers were given one message at a time: there were no batches in these rounds.\n")
	}

	if len(caught) > 0 {
		say("\n## Planted bugs\n\nWhether the harness would see a mistake is tested by making some: each of these is built into a copy of the library, and has to be found by a round of faults, which passes without it. Where a fault has to come at the right moment, and does not, the next seed is tried.\n\n")
		for _, c := range caught {
			say("- **%s** (%s; %s, seed %d, round %d, caught in %.0f s): %s\n", c.Bug, c.What, c.Site, c.Seed, max(c.Tries, 1), c.Seconds, firstLine(c.Words))
		}
	}
	if sum.failed > 0 {
		say("\n## Rounds that failed\n\n")
		for _, r := range all {
			if !r.Passed() {
				say("- %s: `%s`: %s\n", r.Site, r.Again, firstLine(r.Failures[0]))
			}
		}
	}
	return b.String()
}

func byTime(a, b Result) int { return cmp.Or(a.Time.Compare(b.Time), cmp.Compare(a.Seed, b.Seed)) }

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

func seeds(all []Result) int {
	different := map[uint64]bool{}
	for _, r := range all {
		different[r.Seed] = true
	}
	return len(different)
}

func distinct(all []Result, of func(Result) string) []string {
	different := map[string]bool{}
	for _, r := range all {
		if s := of(r); s != "" {
			different[s] = true
		}
	}
	return slices.Sorted(maps.Keys(different))
}

// versions are rows of the servers' versions.
func versions(all []Result) (rows [][]string) {
	for _, b := range brokers {
		if v := distinct(all, func(r Result) string {
			if !strings.HasPrefix(r.Site, b.kind+"/") {
				return ""
			}
			return r.Broker
		}); len(v) > 0 {
			rows = append(rows, []string{"broker " + b.kind, strings.Join(v, ", ")})
		}
	}
	for _, s := range stores {
		if v := distinct(all, func(r Result) string {
			if !strings.HasSuffix(r.Site, "/"+s.kind) {
				return ""
			}
			return r.Store
		}); len(v) > 0 {
			rows = append(rows, []string{"store " + s.kind, strings.Join(v, ", ")})
		}
	}
	return rows
}

func kindsOf[T any](all []maker[T], prefix string) (names []string) {
	for _, m := range all {
		names = append(names, prefix+m.kind)
	}
	return names
}

// faultRows are the faults by kind, of every broker and of every store.
func faultRows(all []Result) (rows [][]string) {
	count := func(k Kind, of func(site string) bool) (n int) {
		for _, r := range all {
			if of(r.Site) {
				n += r.Faults[k.String()]
			}
		}
		return n
	}
	for _, k := range Kinds() {
		row := []string{k.String(), grouped(count(k, func(string) bool { return true }))}
		for _, b := range brokers {
			row = append(row, grouped(count(k, func(site string) bool { return strings.HasPrefix(site, b.kind+"/") })))
		}
		for _, s := range stores {
			row = append(row, grouped(count(k, func(site string) bool { return strings.HasSuffix(site, "/"+s.kind) })))
		}
		rows = append(rows, row)
	}
	return rows
}
