package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// distant is a connection to a server that is further away: each answer can be read that
// much later. It is for one request at a time, or one pipeline, as go-redis's are.
type distant struct {
	net.Conn
	away  time.Duration
	asked atomic.Bool
}

func (c *distant) Write(b []byte) (int, error) {
	c.asked.Store(true)
	return c.Conn.Write(b)
}

func (c *distant) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 && c.asked.Swap(false) {
		<-time.After(c.away)
	}
	return n, err
}

// moveAway has the connections of a client to be as distant.
func moveAway(o *redis.Options, away time.Duration) {
	if away == 0 {
		return
	}
	o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &distant{Conn: c, away: away}, nil
	}
}

// Distance is what is done beside each other where Redis is so far away.
type Distance struct {
	Away  float64  `json:"away"` // how much later each answer is read, seconds
	Ping  float64  `json:"ping"` // the median time of a PING, seconds
	Pairs []Beside `json:"pairs"`
}

// Beside is the same done by hand and by the library.
type Beside struct {
	What string `json:"what"`
	Hand Side   `json:"hand"`
	Ours Side   `json:"ours"`
}

// Side is one of them. The times are of a call, seconds; zero where a consumer was measured.
type Side struct {
	Rate float64 `json:"rate"` // a second
	P50  float64 `json:"p50"`
	P99  float64 `json:"p99"`
}

// distances are how much later answers are read.
var distances = []time.Duration{0, 500 * time.Microsecond, 2 * time.Millisecond, 10 * time.Millisecond}

const pings = 200

// measureNetwork runs the part: Do, and the consumer of Kafka, beside two phases by hand.
func (res *Result) measureNetwork(t *testing.T, length time.Duration, messages int) {
	t.Helper()
	kafka := Brokers()[slices.IndexFunc(Brokers(), func(b Broker) bool { return b.Name == "Kafka" })]
	l := res.lab(t, kafka)
	res.Network = nil
	for _, away := range distances {
		b := bedOn(t, l.redis, away)
		d := Distance{Away: away.Seconds()}
		var err error
		if d.Ping, err = pinged(t.Context(), b.client); err != nil {
			t.Fatal(err)
		}
		for _, n := range []int{1, workers, mostCallers} {
			pair, err := besideDo(t, b, n, length)
			if err != nil {
				t.Fatal(err)
			}
			d.Pairs = append(d.Pairs, pair)
			t.Logf("%v away, %+v", away, pair)
		}
		l.away = away
		pairs, err := l.besideKafka(t, messages)
		if err != nil {
			t.Fatal(err)
		}
		d.Pairs = append(d.Pairs, pairs...)
		t.Logf("%v away, %+v", away, pairs)
		res.Network = append(res.Network, d)
	}
}

// pinged is the median time of a PING.
func pinged(ctx context.Context, c redis.UniversalClient) (float64, error) {
	var all []float64
	for range pings {
		at := time.Now()
		if err := c.Ping(ctx).Err(); err != nil {
			return 0, err
		}
		all = append(all, time.Since(at).Seconds())
	}
	return median(all), nil
}

// besideDo calls both from so many goroutines, one after the other.
func besideDo(tb testing.TB, b *bed, n int, length time.Duration) (Beside, error) {
	tb.Helper()
	pair := Beside{What: "`Do`, " + goroutines(n)}
	for _, side := range []struct {
		of   *Side
		call func(context.Context, int) (int, error)
	}{
		{&pair.Hand, leasing(b.client)},
		{&pair.Ours, doing(b.guard(layouts()[0]))},
	} {
		b.empty(tb)
		l, err := b.run(tb.Context(), calling{name: pair.What, goroutines: n, length: length, warm: min(warmed, length), call: side.call})
		if err != nil {
			return pair, err
		}
		*side.of = Side{Rate: l.Rate(), P50: l.Latency.P50, P99: l.Latency.P99}
	}
	return pair, nil
}

// besideKafka has our row and two by hand consume the same work, one after the other: the usual
// one, and the fastest.
func (l *lab) besideKafka(tb testing.TB, messages int) ([]Beside, error) {
	tb.Helper()
	w, err := NewWork(messages, 1)
	if err != nil {
		return nil, err
	}
	rate := func(name string) (float64, error) {
		row := l.broker.Rows[slices.IndexFunc(l.broker.Rows, func(r Row) bool { return r.Name == name })]
		rec := l.measure(tb, row, w, 1)
		switch {
		case rec.Failed != "":
			return 0, errors.New(rec.Failed)
		case rec.Missing > 0:
			return 0, fmt.Errorf("%s: %d messages had no effect", name, rec.Missing)
		}
		return float64(messages) / rec.Seconds, nil
	}
	ours, err := rate(groupRecords)
	if err != nil {
		return nil, err
	}
	var pairs []Beside
	for _, name := range []string{leaseMany, leasePipelines} {
		hand, err := rate(name)
		if err != nil {
			return nil, err
		}
		pairs = append(pairs, Beside{What: "Kafka, by hand " + name + "; ours in order", Hand: Side{Rate: hand}, Ours: Side{Rate: ours}})
	}
	return pairs, nil
}

const networkAbout = "Two phases by hand, and this library with records, where each answer of Redis is read so much later; *ping* is what a `PING` then takes, half of them less. " +
	"Rates of `Do` and of the consumer, a second; times of a call of `Do`. What surrounds the trips is the same in all: the further Redis is, the more a call is its two trips, by hand and here, and the more a consumer gains by making few, which pipelines by hand do as well. " + closedLoop

func networkSection(all []Distance) string {
	rows := [][]string{{"away", "ping", "", "rate by hand", "rate ours", "ours/by hand", "p50 by hand", "p50 ours", "p99 by hand", "p99 ours"}}
	for _, d := range all {
		for _, p := range d.Pairs {
			cells := []string{
				milliseconds(d.Away), milliseconds(d.Ping), p.What,
				grouped(int(p.Hand.Rate)), grouped(int(p.Ours.Rate)), short(p.Ours.Rate / p.Hand.Rate),
			}
			for _, q := range []float64{p.Hand.P50, p.Ours.P50, p.Hand.P99, p.Ours.P99} {
				text := ""
				if q > 0 {
					text = milliseconds(q)
				}
				cells = append(cells, text)
			}
			rows = append(rows, cells)
		}
	}
	return networkAbout + "\n\n" + markdown(rows)
}
