package bench

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/dustin/go-humanize"
)

// The page of a comparison, and its picture.
const (
	PageFile = "performance.md"
	PlotFile = "performance.svg"
)

// unavailable are peers that have no row.
var unavailable = []string{
	"Redpanda Connect: the Go module proxy refuses github.com/redpanda-data/benthos/v4, on which it is built (403, tried in November 2026)",
}

// Page writes the page, from the result alone.
func Page(res *Result) string {
	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, format, args...) }
	say("# Performance\n\n<!-- Written by the program, from its records: %s -->\n\n", res.Command)
	if len(res.Records) > 0 {
		say("%s messages of %d bytes, one in ten with a token that was there before, for each row and round; the handler counts, and does nothing else. ",
			grouped(res.Messages), payloadSize)
		say("All rows run on the same servers, one after another, in %s. Rates are medians; ratios are medians of the ratios within a round, which a busy machine changes less. [bench/README.md](../bench/README.md) says what each row stands for, and what it loses.\n\n", rounds(res.Rounds))
		say("![Messages a second of each row](%s)\n\n", PlotFile)
	}

	unmeasured, wrong := slices.Clone(unavailable), []string(nil)
	for _, broker := range Brokers() {
		rows := res.Summaries(broker)
		if len(rows) == 0 {
			continue
		}
		say("## %s\n\n%s\n", broker.Name, table(rows))
		for i := range rows {
			s := &rows[i]
			if s.Failed != "" {
				unmeasured = append(unmeasured, fmt.Sprintf("%s, %s (%d of %d rounds measured): %s", broker.Name, s.Row.Name, s.Runs, res.Rounds, oneLine(s.Failed)))
			}
			if expected := res.Messages - res.Distinct; s.Runs > 0 && (s.Missing > 0 || !s.Row.Repeats && s.Doubled > 0 || s.Row.Repeats && s.Doubled != expected) {
				wrong = append(wrong, fmt.Sprintf("%s, %s: %s tokens without an effect, %s effects too many", broker.Name, s.Row.Name, grouped(s.Missing), grouped(s.Doubled)))
			}
		}
	}
	section := func(head string, measured bool, text func() string) {
		if measured {
			say("## %s\n\n%s\n", head, text())
		}
	}
	section("Latency", len(res.Latency) > 0, func() string { return latencySection(res.Latency) })
	section("Do", len(res.Do) > 0, func() string { return doSection(res.Do, res.cpusOf(partDo)) })
	section("Round trips", len(res.Trips) > 0, func() string { return tripsSection(res.Trips) })
	section("The slowest second", len(res.Seconds) > 0, func() string { return secondsSection(res.Seconds) })
	section("Redis behind a network", len(res.Network) > 0, func() string { return networkSection(res.Network) })
	section("Memory of a consumer", res.Soak != nil, func() string { return soakSection(res.Soak) })

	list := func(head string, lines []string) {
		if len(lines) > 0 {
			say("## %s\n\n- %s\n\n", head, strings.Join(lines, "\n- "))
		}
	}
	list("Not measured", unmeasured)
	list("Did not handle what they should", wrong)

	say("## What the columns say\n\n%s\n\n", legend)
	say("## Again\n\n%s\n", again(res))
	return b.String()
}

// again says how each part is measured, and what on.
func again(res *Result) string {
	parts := res.on(res.Ran, append(slices.Clone(Parts), partSoak))
	return fmt.Sprintf("%s\n%s %s.\n", parts, res.machine(), strings.Join(res.Clients, ", "))
}

// hardware is what it ran on, but for servers and Go.
func (res *Result) hardware() string {
	return fmt.Sprintf("%s, %d CPUs, %.0f GB of memory, %s", cmp.Or(res.CPU, "CPU unknown"), res.CPUs, float64(res.Memory)/1e9, res.System)
}

// machine is what it ran on.
func (res *Result) machine() string {
	return fmt.Sprintf("%s; client and servers on the one machine, over loopback. %s, %s.", res.hardware(), strings.Join(res.Servers, ", "), res.Go)
}

const legend = `- *messages/s*: from the first message that the row has (ours: that its handler gets, a batch of claims later) until the broker has seen everything settled, [lowest-highest] round. Rows marked * settle by a timer or when they are closed: their clock stops at the last effect, in their favour. *until handled*: the same for every row until the last token's effect. Ours of Kafka commit what is left once 0.1 s have passed, which is in the first and not in the second.
- *of raw*: the rate beside that of the nearest row above which deduplicates nothing; of RabbitMQ, of the one with an ack each. Ours ack many messages at once: how that compares with the raw row that does so too is in its *ours/this*, which is how many times as fast the first of our rows below a row is.
- *again*: effects beyond a token's first.
- *trips* and *commands*: round trips to Redis, and commands that Redis executed, those inside scripts included, for each message.
- *client CPU*, *Redis CPU*, *broker CPU*: seconds per 100,000 messages. *busy*: what the three are of the CPU time that the machine had meanwhile. *allocations*: objects on the client's heap for each message, those of the broker's client and of Redis's included.
- Redis has no persistence, and is empty at the start of a run.`

var columns = []string{"", "messages/s", "until handled", "of raw", "ours/this", "again", "trips", "commands", "client CPU", "Redis CPU", "broker CPU", "busy", "allocations"}

func table(rows []Summary) string {
	all := [][]string{columns}
	for i := range rows {
		s := &rows[i]
		name := s.Row.Name
		if s.Row.Late {
			name += " *"
		}
		name = strong(name, s.Row.Kind == Ours)
		if s.Runs == 0 {
			all = append(all, append([]string{name, "not measured"}, make([]string, len(columns)-2)...))
			continue
		}
		handled := ""
		if s.UntilHandled > 0 {
			handled = grouped(int(s.UntilHandled))
		}
		allocations := short(s.Mallocs)
		if s.Mallocs == 0 {
			allocations = "" // not a process of Go
		}
		broker, busy := fmt.Sprintf("%.2f", s.BrokerCPU), percent(s.Busy)
		if s.BrokerCPU == 0 {
			broker, busy = "", "" // of a record that does not have it
		}
		all = append(all, []string{
			name, fmt.Sprintf("%s [%s-%s]", grouped(int(s.Rate)), grouped(int(s.Least)), grouped(int(s.Most))),
			handled, percent(s.OfBaseline), short(s.OurTimes), grouped(s.Doubled),
			short(s.Trips), short(s.Commands),
			fmt.Sprintf("%.2f", s.ClientCPU), fmt.Sprintf("%.2f", s.RedisCPU), broker, busy, allocations,
		})
	}
	return markdown(all)
}

func grouped(n int) string { return humanize.Comma(int64(n)) }

// short writes a number with the digits that say something.
func short(v float64) string {
	if v >= 100 {
		return strconv.Itoa(int(v + 0.5))
	}
	return strconv.FormatFloat(v, 'g', 2, 64)
}

func rounds(n int) string {
	if n == 1 {
		return "one round"
	}
	return fmt.Sprintf("%d rounds", n)
}

func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }
