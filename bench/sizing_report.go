package bench

import (
	"cmp"
	_ "embed"
	"fmt"
	"strings"
	"text/template"
)

// The page of a sizing, and its picture.
const (
	SizingPageFile = "sizing.md"
	SizingPlotFile = "sizing.svg"
)

//go:embed sizing.md.tmpl
var sizingText string

var sizingTemplate = template.Must(template.New(SizingPageFile).Parse(sizingText))

// Page writes the page, from the records alone. Parts that were not measured are not told.
func (z *Sizing) Page() (string, error) {
	usual := usualPlan(0)
	data := map[string]any{
		"CPUs": z.Machine.CPUs, "Redis": z.redis(), "Goroutines": loadGoroutines, "Handling": handling, "ClosedLoop": closedLoop,
		"Allocator": z.Allocator, "Tokens": z.tokensTable(), "Servers": z.serversTable(), "Cliffs": z.cliffsTable(),
		"Partitions": sizedTable(z.Partitions, "partitions", nil),
		"Handlers": sizedTable(z.Handlers, "goroutines", &column{"at most", func(s *Sized) string {
			return grouped(int(s.Value / handling.Seconds()))
		}}),
		"Duplicates": sizedTable(z.Duplicates, "duplicates, %", nil),
		"Masters": sizedTable(z.Masters, "masters", &column{"CPU of a master", func(s *Sized) string {
			return fmt.Sprintf("%.2f s", s.RedisCPU/float64(s.Done)*per/s.Value)
		}}),
		"PerCore": z.perCore(), "Budget": z.budgetTable(), "Inputs": z.inputs(),
		"Tags": fillTags, "Peak": usual.peak, "Headroom": percent(usual.headroom), "MasterMemory": fmt.Sprintf("%.0f GB", usual.memory/1e9),
		"Retention": fmt.Sprintf("%.0f h", usual.retention.Hours()), "Again": z.Machine.on(z.Ran, SizingParts), "Machine": z.Machine.machine(),
	}
	if len(z.Partitions) > 0 {
		data["KafkaMessages"] = grouped(int(z.Partitions[0].Done))
	}
	var b strings.Builder
	err := sizingTemplate.Execute(&b, data)
	return b.String(), err
}

func (z *Sizing) redis() string {
	for _, s := range z.Machine.Servers {
		if v, is := strings.CutPrefix(s, "Redis "); is {
			return v
		}
	}
	return ""
}

func (z *Sizing) tokensTable() string {
	if len(z.Tokens) == 0 {
		return ""
	}
	rows := [][]string{{"layout", "tokens", "older", "used_memory", "RSS", "bytes a token", "Do, a second", "Redis' core", "p99"}}
	for i := range z.Tokens {
		r := &z.Tokens[i]
		cells := []string{
			r.Layout, grouped(r.Tokens), grouped(r.Older), gigabytes(r.Used), gigabytes(r.RSS), fmt.Sprintf("%.1f", r.Bytes()), "", "", "",
		}
		if r.AtOnce {
			cells[4] += " *"
		}
		if l := r.Load; l != nil {
			cells[6], cells[7], cells[8] = grouped(int(l.Rate())), grouped(int(l.Limit())), milliseconds(l.Latency.P99)
		}
		rows = append(rows, cells)
	}
	return markdown(rows)
}

func (z *Sizing) serversTable() string {
	if len(z.Servers) == 0 {
		return ""
	}
	rows := [][]string{{"server", "allocator", "layout", "tokens", "older", "used_memory", "RSS", "bytes a token", "Do, a second", "Redis' core"}}
	for i := range z.Servers {
		r := &z.Servers[i]
		rows = append(rows, []string{
			r.Server, r.Allocator, r.Layout, grouped(r.Tokens), grouped(r.Older), gigabytes(r.Used), gigabytes(r.RSS), fmt.Sprintf("%.1f", r.Bytes()),
			grouped(int(r.Load.Rate())), grouped(int(r.Load.Limit())),
		})
	}
	return markdown(rows)
}

func gigabytes(n int64) string { return fmt.Sprintf("%.2f GB", float64(n)/1e9) }

func (z *Sizing) cliffsTable() string {
	if len(z.Cliffs) == 0 {
		return ""
	}
	rows := [][]string{{"keys", "longest answer around", "median answer of the whole", "slowest 100 ms around, of the median"}}
	for _, c := range z.Cliffs {
		rows = append(rows, []string{grouped(int(c.Keys)), milliseconds(c.Longest), milliseconds(c.Usual), percent(c.Slowest)})
	}
	return markdown(rows)
}

// column is one that a table has besides the usual ones.
type column struct {
	head string
	of   func(*Sized) string
}

func sizedTable(all []Sized, value string, more *column) string {
	if len(all) == 0 {
		return ""
	}
	head := []string{"layout", value, "a second", "Redis' core", "trips", "Redis CPU", "client CPU", "p50", "p99"}
	if more != nil {
		head = append(head, more.head)
	}
	rows := [][]string{head}
	for i := range all {
		s := &all[i]
		cells := []string{s.Layout, short0(s.Value)}
		if s.Failed != "" {
			cells = append(cells, "not measured: "+oneLine(s.Failed))
			rows = append(rows, append(cells, make([]string, len(head)-len(cells))...))
			continue
		}
		n := float64(s.Done)
		cells = append(cells, grouped(int(s.Rate())), grouped(int(s.Limit())), short(float64(s.Trips)/n),
			fmt.Sprintf("%.2f", s.RedisCPU/n*per), fmt.Sprintf("%.2f", s.ClientCPU/n*per))
		if s.Latency.N > 0 {
			cells = append(cells, milliseconds(s.Latency.P50), milliseconds(s.Latency.P99))
		} else {
			cells = append(cells, "", "")
		}
		if more != nil {
			cells = append(cells, more.of(s))
		}
		rows = append(rows, cells)
	}
	return markdown(rows)
}

func short0(v float64) string { return fmt.Sprintf("%.0f", v) }

// costTokens is the number of remembered tokens whose costs the arithmetic takes.
const costTokens = 10_000_000

func (z *Sizing) perCore() string {
	var all []string
	for _, l := range layouts() {
		if c, at, ok := z.costs(l.name, costTokens); ok {
			all = append(all, fmt.Sprintf("%s messages a second with %s at %s tokens", grouped(int(c.perCore)), l.name, grouped(at)))
		}
	}
	return cmp.Or(strings.Join(all, ", "), "what was not measured here")
}

func (z *Sizing) inputs() string {
	var all []string
	for _, l := range layouts() {
		if c, at, ok := z.costs(l.name, costTokens); ok {
			text := fmt.Sprintf("%s: %.1f bytes a token and %s messages a second of a core, measured at %s tokens",
				strings.ToUpper(l.name[:1])+l.name[1:], c.bytes, grouped(int(c.perCore)), grouped(at))
			if c.perCoreOfSeveral > 0 {
				text += fmt.Sprintf("; %s where there are several masters", grouped(int(c.perCoreOfSeveral)))
			}
			all = append(all, text+".")
		}
	}
	return strings.Join(all, " ")
}

func (z *Sizing) budgetTable() string {
	rows := [][]string{{"messages a day", "mean", "busiest second", "layout", "memory", "masters by speed", "masters by memory", "masters"}}
	for _, perDay := range []float64{1e6, 1e7, 1e8, 1e9} {
		for _, l := range layouts() {
			c, _, ok := z.costs(l.name, costTokens)
			if !ok {
				continue
			}
			b := usualPlan(perDay).budget(c)
			rows = append(rows, []string{
				grouped(int(perDay)), grouped(int(b.Mean)) + "/s", grouped(int(b.Busiest)) + "/s", l.name, fmt.Sprintf("%.2f GB", b.Memory/1e9),
				fmt.Sprint(b.BySpeed), fmt.Sprint(b.ByMemory), fmt.Sprint(b.Masters),
			})
		}
	}
	if len(rows) == 1 {
		return ""
	}
	return markdown(rows)
}
