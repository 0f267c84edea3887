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
		pair, err := l.besideKafka(t, messages)
		if err != nil {
			t.Fatal(err)
		}
		d.Pairs = append(d.Pairs, pair)
		t.Logf("%v away, %+v", away, pair)
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

// besideKafka has two rows consume the same work, one after the other.
func (l *lab) besideKafka(tb testing.TB, messages int) (Beside, error) {
	tb.Helper()
	pair := Beside{What: fmt.Sprintf("Kafka, by hand %d goroutines, ours in order", workers)}
	w, err := NewWork(messages, 1)
	if err != nil {
		return pair, err
	}
	for _, side := range []struct {
		of  *Side
		row string
	}{
		{&pair.Hand, leaseMany},
		{&pair.Ours, groupRecords},
	} {
		row := l.broker.Rows[slices.IndexFunc(l.broker.Rows, func(r Row) bool { return r.Name == side.row })]
		rec := l.measure(tb, row, w, 1)
		if rec.Failed != "" {
			return pair, errors.New(rec.Failed)
		}
		if rec.Missing > 0 {
			return pair, fmt.Errorf("%s: %d messages had no effect", side.row, rec.Missing)
		}
		side.of.Rate = float64(messages) / rec.Seconds
	}
	return pair, nil
}

const networkAbout = "Two phases by hand, and this library with records, where each answer of Redis is read so much later; *ping* is what a `PING` then takes, half of them less. " +
	"Rates of `Do` and of the consumer, a second; times of a call of `Do`. What surrounds the trips is the same in all: the further Redis is, the more a call is its two trips, by hand and here, and the more a consumer gains by making few."

func networkSection(all []Distance) string {
	rows := [][]string{{"away", "ping", "", "by hand", "ours", "ours/by hand", "p50 by hand", "ours", "p99 by hand", "ours"}}
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
