package bench

import (
	"fmt"
	"slices"
	"strings"
)

// markdown is a table; the first row is its head.
func markdown(rows [][]string) string {
	var b strings.Builder
	line := func(cells []string) { fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | ")) }
	for i, cells := range rows {
		line(cells)
		if i == 0 {
			line(append([]string{"---"}, slices.Repeat([]string{"---:"}, len(cells)-1)...))
		}
	}
	return b.String()
}

// milliseconds writes seconds so.
func milliseconds(seconds float64) string { return short(seconds*1e3) + " ms" }

func percent(share float64) string { return short(100*share) + " %" }

// strong marks our rows.
func strong(name string, ours bool) string {
	if ours {
		return "**" + name + "**"
	}
	return name
}

const latencyAbout = `From the moment at which a message was due to be published until its handler had returned. Messages are due at a constant rate, whatever became of those before them, and the time counts from then also where the producer was late: latencies that are measured from the actual sending leave out the waiting that a slow moment causes (coordinated omission, Gil Tene, "How NOT to Measure Latency", https://www.infoq.com/presentations/latency-response-time/). The rates are shares of each row's own maximum, measured just before with a producer that publishes as fast as it can beside it. *behind*: how long after the last message was due all were handled.`

func latencySection(all []Latency) string {
	rows := [][]string{{"", "rate", "messages/s", "p50", "p99", "p99.9", "longest", "behind"}}
	for i := range all {
		l := &all[i]
		name := strong(l.Broker+", "+l.Row, strings.HasPrefix(l.Row, "idem"))
		if l.Failed != "" {
			rows = append(rows, []string{name, "not measured: " + oneLine(l.Failed), "", "", "", "", "", ""})
			continue
		}
		for _, leg := range l.Legs {
			q := leg.Latency
			rows = append(rows, []string{
				name, fmt.Sprintf("%.0f %% of %s", 100*leg.Share, grouped(int(l.Most))), grouped(int(leg.Rate)),
				milliseconds(q.P50), milliseconds(q.P99), milliseconds(q.P999), milliseconds(q.Max), milliseconds(leg.Behind),
			})
		}
	}
	return latencyAbout + "\n\n" + markdown(rows)
}

// closedLoop says what the times of calls leave out.
const closedLoop = "Each goroutine calls again when its call has returned: a stall delays calls that are then not counted."

const doAbout = `%s with fresh tokens and a handler that does nothing, for %.0f s each on an emptied Redis, without a broker. The limits are what Redis alone does with the same commands, pipelined: *Redis' core* is operations for each second of its CPU time, as many as one core could do that it has to itself. *of the limit* is a row's rate beside the limit of its kind: of the commands by hand, or of the layout's script. Here client and Redis share %d threads, so none can reach it. `

func doSection(all []Load, cpus int) string {
	rows := [][]string{{"", "a second", "Redis' core", "of the limit", "p50", "p99", "p99.9", "trips", "client CPU", "Redis CPU"}}
	limit, seconds := 0.0, 0.0
	for i := range all {
		l := &all[i]
		seconds = l.Seconds
		per100k := func(cpu float64) string { return fmt.Sprintf("%.2f", cpu/float64(l.Done)*per) }
		cells := []string{l.Name, grouped(int(l.Rate())), grouped(int(l.Limit()))}
		if strings.HasPrefix(l.Name, "limit") {
			limit = l.Limit()
			cells = append(cells, "", "", "", "")
		} else {
			cells[0] = strong(l.Name, strings.Contains(l.Name, "Guard"))
			cells = append(cells, percent(l.Rate()/limit), milliseconds(l.Latency.P50), milliseconds(l.Latency.P99), milliseconds(l.Latency.P999))
		}
		rows = append(rows, append(cells, short(float64(l.Trips)/float64(l.Done)), per100k(l.ClientCPU), per100k(l.RedisCPU)))
	}
	return fmt.Sprintf(doAbout, "`Guard.Do`, and two phases by hand,", seconds, cpus) + closedLoop + "\n\n" + markdown(rows)
}

const tripsAbout = `Round trips to Redis for a message: many fresh ones published at once, the same once more, and one at a time, the next when the one before is settled.`

func tripsSection(all []Trips) string {
	rows := [][]string{{"", "full load", "duplicates only, full load", "idle, fresh", "idle, duplicate"}}
	for _, tr := range all {
		name := strong(tr.Broker+", "+tr.Row, true)
		if tr.Failed != "" {
			rows = append(rows, []string{name, "not measured: " + oneLine(tr.Failed), "", "", ""})
			continue
		}
		rows = append(rows, []string{name, short(tr.Load), short(tr.Repeats), short(tr.Idle), short(tr.IdleRepeat)})
	}
	return tripsAbout + "\n\n" + markdown(rows)
}
