package torture

import (
	"context"
	"fmt"
	"path"
	"strings"
	"sync"
	"testing"
)

// brokers and stores are all there are, in the order of the report.
var (
	brokers = []maker[Broker]{
		{"kafka-group", func(tb testing.TB) Broker { return NewKafka(tb, true) }},
		{"kafka-reader", func(tb testing.TB) Broker { return NewKafka(tb, false) }},
		{"nats", NewNATS},
		{"amqp-classic", func(tb testing.TB) Broker { return NewAMQP(tb, false) }},
		{"amqp-quorum", func(tb testing.TB) Broker { return NewAMQP(tb, true) }},
	}
	stores = []maker[Store]{
		{"redis", NewRedis},
		{"redis-compact", NewCompactRedis},
		{"nats", NewNATSKV},
		{"postgres", func(tb testing.TB) Store { return NewPostgres(tb, "18") }},
		{"mariadb", NewMariaDB},
		{"sqlite", NewSQLite},
	}
)

// maker starts a broker or a store of a kind.
type maker[T any] struct {
	kind string
	make func(testing.TB) T
}

// place names a site, before its servers run.
type place struct {
	broker maker[Broker]
	store  maker[Store]
}

func (p place) String() string { return p.broker.kind + "/" + p.store.kind }

// places lists the sites that match one of some patterns, as in "kafka-*/redis,nats/*";
// empty for all.
func places(patterns string) ([]place, error) {
	var found []place
	for _, b := range brokers {
		for _, s := range stores {
			p := place{b, s}
			for pattern := range strings.SplitSeq(patterns, ",") {
				matches, err := path.Match(strings.TrimSpace(pattern), p.String())
				if err != nil {
					return nil, fmt.Errorf("site %q: %w", pattern, err)
				}
				if patterns == "" || matches {
					found = append(found, p)
					break
				}
			}
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("no site matches %q: a site is a broker of %s and a store of %s, as in nats/redis", patterns, kinds(brokers), kinds(stores))
	}
	return found, nil
}

func kinds[T any](all []maker[T]) string {
	names := make([]string, len(all))
	for i, m := range all {
		names[i] = m.kind
	}
	return strings.Join(names, ", ")
}

// lab has the servers: each is started when it is first needed, and lent to one round at
// a time.
type lab struct {
	tb testing.TB // lives as long as the servers

	mu      sync.Mutex
	changed *sync.Cond
	lent    map[string]bool // by server
	brokers map[string]*tenant[Broker]
	stores  map[string]*tenant[Store]
}

func newLab(tb testing.TB) *lab {
	l := &lab{tb: tb, lent: map[string]bool{}, brokers: map[string]*tenant[Broker]{}, stores: map[string]*tenant[Store]{}}
	l.changed = sync.NewCond(&l.mu)
	return l
}

// reserve waits until the servers of one of the places that next offers are free, and
// returns that place; next is called with what has changed, until it has no more.
func (l *lab) reserve(next func(free func(place) bool) (p place, found, more bool)) (place, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		p, found, more := next(func(p place) bool { return !l.lent[brokerOf(p)] && !l.lent[storeOf(p)] })
		switch {
		case found:
			l.lent[brokerOf(p)], l.lent[storeOf(p)] = true, true
			return p, true
		case !more:
			return place{}, false
		}
		l.changed.Wait()
	}
}

func (l *lab) giveBack(p place) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lent[brokerOf(p)], l.lent[storeOf(p)] = false, false
	l.changed.Broadcast()
}

// The names of the servers of a place.
func brokerOf(p place) string { return "broker " + p.broker.kind }
func storeOf(p place) string  { return "store " + p.store.kind }

// site returns the site of a reserved place, whose servers speak to tb from now on.
func (l *lab) site(tb testing.TB, p place) Site {
	return Site{obtain(l, l.brokers, p.broker, tb), obtain(l, l.stores, p.store, tb)}
}

// drop has the servers of a place started anew when they are needed: something is wrong
// with them.
func (l *lab) drop(p place) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.brokers, p.broker.kind)
	delete(l.stores, p.store.kind)
}

func obtain[T any](l *lab, had map[string]*tenant[T], m maker[T], tb testing.TB) T {
	l.mu.Lock()
	t := had[m.kind]
	l.mu.Unlock()
	if t != nil {
		t.setTenant(tb)
		return t.it
	}
	t = &tenant[T]{host: host{TB: l.tb}}
	t.setTenant(tb)
	t.it = m.make(t)
	l.mu.Lock()
	defer l.mu.Unlock()
	had[m.kind] = t
	return t.it
}

// tenant is a server, and the tests that it belongs to.
type tenant[T any] struct {
	host
	it T
}

// host is a testing.TB whose clean-ups and folders are those of the test that has all
// rounds, while what fails or is skipped is the round that has the server now.
type host struct {
	testing.TB
	mu  sync.Mutex
	now testing.TB
}

func (h *host) setTenant(tb testing.TB) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.now = tb
}

func (h *host) round() testing.TB {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.now
}

func (h *host) Error(args ...any)            { h.round().Error(args...) }
func (h *host) Errorf(f string, args ...any) { h.round().Errorf(f, args...) }
func (h *host) Fail()                        { h.round().Fail() }
func (h *host) FailNow()                     { h.round().FailNow() }
func (h *host) Failed() bool                 { return h.round().Failed() }
func (h *host) Fatal(args ...any)            { h.round().Fatal(args...) }
func (h *host) Fatalf(f string, args ...any) { h.round().Fatalf(f, args...) }
func (h *host) Log(args ...any)              { h.round().Log(args...) }
func (h *host) Logf(f string, args ...any)   { h.round().Logf(f, args...) }
func (h *host) Skip(args ...any)             { h.round().Skip(args...) }
func (h *host) SkipNow()                     { h.round().SkipNow() }
func (h *host) Skipf(f string, args ...any)  { h.round().Skipf(f, args...) }
func (h *host) Context() context.Context     { return h.TB.Context() }
