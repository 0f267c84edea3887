package bench

import "slices"

// Summary is what the runs of a row come to: medians of its rounds.
type Summary struct {
	Row    Row
	Broker string

	Rate, Least, Most   float64 // messages a second
	UntilHandled        float64 // likewise, by the clock that stops at the last effect
	OfBaseline          float64 // the median of the ratios of the same rounds
	OurTimes            float64 // how many times as fast the first row of ours with this baseline is, likewise
	ClientCPU, RedisCPU float64 // seconds per 100,000 messages
	BrokerCPU           float64 // likewise
	Busy                float64 // the CPU time of the three of what the machine had
	Commands, Trips     float64 // a message
	Mallocs             float64 // a message
	Missing, Doubled    int     // the most of any round

	Runs   int
	Failed string // the first reason, where a round has none
}

// per is what CPU time is told for.
const per = 100_000

// Summaries are those of a broker's rows that were run, in their order.
func (res *Result) Summaries(b Broker) (all []Summary) {
	for _, rows := range b.compared() {
		baseline, ours := rates{}, rates{}
		for _, row := range rows {
			switch {
			case row.Kind == Baseline:
				baseline = res.rates(b, row)
			case row.Kind == Ours && len(ours) == 0:
				ours = res.rates(b, row)
			}
		}
		for _, row := range rows {
			if s, ran := res.summary(b, row); ran {
				own := res.rates(b, row)
				s.OfBaseline, s.OurTimes = own.over(baseline), ours.over(own)
				all = append(all, s)
			}
		}
	}
	return all
}

// compared are the rows that ratios are between: each baseline with those behind it.
func (b Broker) compared() (parts [][]Row) {
	for i, row := range b.Rows {
		if i == 0 || row.Kind == Baseline {
			parts = append(parts, nil)
		}
		parts[len(parts)-1] = append(parts[len(parts)-1], row)
	}
	return parts
}

func (res *Result) summary(b Broker, row Row) (s Summary, ran bool) {
	s = Summary{Row: row, Broker: b.Name}
	var rates, handled, client, redis, broker, busy, commands, trips, mallocs []float64
	n := float64(res.Messages)
	for i := range res.Records {
		rec := &res.Records[i]
		if rec.Broker != b.Name || rec.Row != row.Name {
			continue
		}
		ran = true
		if rec.Failed != "" {
			if s.Failed == "" {
				s.Failed = rec.Failed
			}
			continue
		}
		s.Runs++
		rates = append(rates, n/rec.Seconds)
		if rec.Handled > 0 {
			handled = append(handled, n/rec.Handled)
		}
		client = append(client, rec.ClientCPU/n*per)
		redis = append(redis, rec.RedisCPU/n*per)
		broker = append(broker, rec.BrokerCPU/n*per)
		busy = append(busy, (rec.ClientCPU+rec.RedisCPU+rec.BrokerCPU)/rec.Seconds/float64(res.cpusOf(partRows)))
		commands = append(commands, float64(rec.Commands)/n)
		trips = append(trips, float64(rec.Trips)/n)
		mallocs = append(mallocs, float64(rec.Mallocs)/n)
		s.Missing, s.Doubled = max(s.Missing, rec.Missing), max(s.Doubled, rec.Doubled)
	}
	if s.Runs > 0 {
		s.Rate, s.Least, s.Most = median(rates), slices.Min(rates), slices.Max(rates)
		s.UntilHandled = median(handled)
		s.ClientCPU, s.RedisCPU, s.BrokerCPU, s.Busy = median(client), median(redis), median(broker), median(busy)
		s.Commands, s.Trips, s.Mallocs = median(commands), median(trips), median(mallocs)
	}
	return s, ran
}

// rates are a row's, by round.
type rates map[int]float64

func (res *Result) rates(b Broker, row Row) rates {
	all := rates{}
	for i := range res.Records {
		if rec := &res.Records[i]; rec.Broker == b.Name && rec.Row == row.Name && rec.Failed == "" {
			all[rec.Round] = float64(res.Messages) / rec.Seconds
		}
	}
	return all
}

// over is the median of the ratios of the rounds that both have, zero where there is none.
func (r rates) over(other rates) float64 {
	var ratios []float64
	for round, rate := range r {
		if o := other[round]; o > 0 {
			ratios = append(ratios, rate/o)
		}
	}
	return median(ratios)
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	switch n := len(sorted); {
	case n == 0:
		return 0
	case n%2 == 1:
		return sorted[n/2]
	default:
		return (sorted[n/2-1] + sorted[n/2]) / 2
	}
}
