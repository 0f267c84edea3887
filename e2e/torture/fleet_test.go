package torture

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/idemq/idemq/e2e/history"
	"github.com/idemq/idemq/e2e/torture/role"
	"github.com/idemq/idemq/internal/testenv"
)

// script makes a program that stands in for a consumer.
func script(t *testing.T, body string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "consumer")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// obeys says what it is told, and ends when it is told to.
const obeys = `
trap 'exit 0' TERM
echo started "$` + role.Env + `"
while :; do
	if read -r line; then echo "told $line"; else sleep 0.05; fi
done
`

// notes are the events that a fleet recorded.
type notes struct {
	mu  sync.Mutex
	all []history.Event
}

func (n *notes) add(e history.Event) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.all = append(n.all, e)
}

func (n *notes) of(k Kind) (processes []uint16) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, e := range n.all {
		if e.Op == uint8(k) {
			if e.Until < e.At {
				processes = append(processes, 0)
				continue
			}
			processes = append(processes, e.Process)
		}
	}
	slices.Sort(processes)
	return processes
}

func (f *fleet) wrote(number int) string {
	text, _ := os.ReadFile(filepath.Join(f.dir, fmt.Sprintf("consumer-%04d.log", number)))
	return string(text)
}

func TestFleet(t *testing.T) {
	var n notes
	ctx := t.Context()
	f, err := newFleet(script(t, obeys), t.TempDir(), 2, true, role.Config{Run: "x"}, n.add)
	if err != nil {
		t.Fatal(err)
	}
	defer f.abandon()
	says := func(number int, what string) {
		t.Helper()
		testenv.Await(t, fmt.Sprintf("process %d to say %s", number, what), func() bool { return strings.Contains(f.wrote(number), what) })
	}
	says(1, `"Instance":"consumer-0"`)
	says(2, `"Number":2`)

	f.slots[0].command(role.Slow, time.Second)
	says(1, "told slow 1s")
	f.kill(ctx, f.slots[0], time.Millisecond)
	says(3, `"Instance":"consumer-0"`)
	f.pause(ctx, f.slots[1], time.Millisecond)
	f.deploy(ctx, time.Millisecond)
	says(4, "started")
	says(5, "started")
	joined, leave := context.WithCancel(ctx)
	left := make(chan struct{})
	go func() {
		defer close(left)
		f.join(joined, time.Hour)
	}()
	says(6, "started")
	leave()
	<-left
	f.stop()

	if failed := f.failed(); len(failed) > 0 {
		t.Errorf("failures: %q", failed)
	}
	for kind, want := range map[Kind][]uint16{Kill: {1}, Pause: {2}, Deploy: {2, 3, 4, 5}, Rebalance: {6}} {
		if got := n.of(kind); !slices.Equal(got, want) {
			t.Errorf("%s: of processes %v, want %v", kind, got, want)
		}
	}
}

// proxied is a site of which there is the way to it.
type proxied struct {
	Broker
	proxy *Proxy
}

func (p proxied) Proxy() *Proxy { return p.proxy }

// The end of a round cuts short what lasts, which is not counted then; a pause that was begun
// lasts, or it would be shorter than a lease.
func TestFaultsAtTheEndOfARound(t *testing.T) {
	var n notes
	fl, err := newFleet(script(t, obeys), t.TempDir(), 2, false, role.Config{}, n.add)
	if err != nil {
		t.Fatal(err)
	}
	defer fl.abandon()
	e := startEcho(t, "e")
	p := proxied{proxy: NewProxy(t, e.addr)}
	f := &faults{site: Site{Broker: p}, fleet: fl, record: n.add, done: map[Kind]int{}}
	ctx, end := context.WithCancel(t.Context())
	const pauseFor = 300 * time.Millisecond
	var wg sync.WaitGroup
	wg.Go(func() { f.carryOut(ctx, Fault{Kind: Pause, Slot: 1, For: pauseFor}) })
	testenv.Await(t, "the process to stand still", func() bool {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", fl.slots[1].now.cmd.Process.Pid))
		return strings.Contains(string(text), ") T ")
	})
	wg.Go(func() { f.carryOut(ctx, Fault{Kind: BrokerBlackHole, For: time.Hour}) })
	wg.Go(func() { f.carryOut(ctx, Fault{Kind: Slow, For: time.Hour}) })
	end()
	wg.Wait()
	f.carryOut(ctx, Fault{Kind: Pause, For: time.Hour})
	f.carryOut(t.Context(), Fault{Kind: BrokerLatency, For: time.Millisecond})
	f.carryOut(t.Context(), Fault{Kind: BrokerReset})
	f.carryOut(t.Context(), Fault{Kind: Kill})
	for _, k := range []Kind{Kill, Pause, Slow, Clock} {
		f.carryOut(t.Context(), Fault{Kind: k, Slot: 2}) // which has no process
	}
	if want := map[Kind]int{Pause: 1, BrokerLatency: 1, BrokerReset: 1, Kill: 1}; !maps.Equal(f.done, want) {
		t.Errorf("counted are %v, want %v", f.done, want)
	}
	for _, e := range n.all {
		if e.Op == uint8(Pause) && time.Duration(e.Until-e.At) < pauseFor {
			t.Errorf("a pause of %v lasted %v", pauseFor, time.Duration(e.Until-e.At))
		}
	}
}

func TestFleetTellsOfProcessesThatEnd(t *testing.T) {
	for _, test := range []struct{ name, body, want string }{
		{"by itself", "echo cannot go on >&2\nexit 3\n", "consumer 1 ended by itself: exit status 3: cannot go on"},
		{"when told to stop", "trap 'echo not done >&2; exit 1' TERM\necho ready\nwhile :; do sleep 0.05; done\n", "consumer 1 was told to stop, and ended with exit status 1: ready\nnot done"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var n notes
			f, err := newFleet(script(t, test.body), t.TempDir(), 1, false, role.Config{}, n.add)
			if err != nil {
				t.Fatal(err)
			}
			defer f.abandon()
			if test.name == "by itself" {
				testenv.Await(t, "the fleet to give up", func() bool { return len(f.failed()) > maxFailures })
				if got := n.of(Kill); len(got) <= maxFailures {
					t.Errorf("%d ends are recorded", len(got))
				}
			} else {
				testenv.Await(t, "the shell to set its trap", func() bool { return strings.Contains(f.wrote(1), "ready") })
			}
			f.stop()
			if failed := f.failed(); len(failed) == 0 || failed[0] != test.want {
				t.Errorf("failures: %q, want first %q", failed, test.want)
			}
		})
	}
}
