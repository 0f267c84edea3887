package child

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
	"testing"
)

// From lowestPort on there are few servers that anybody runs; below a range of the system's
// there have to be some thousand ports for tests that run side by side.
const (
	lowestPort = 11_000
	fewest     = 5_000
	shares     = 16 // of processes whose tests run side by side
)

var handedOut sync.Map // the ports that FreePort returned in this process

// FreePort returns a TCP port of 127.0.0.1 that is free now, and that this process was not
// given before. It is below the ports that the system gives out by itself, where it leaves
// room there: a server that is restarted would otherwise find, now and then, that its port is
// meanwhile the near end of somebody's connection. Another process may still take it; each
// looks in a share of its own first, so that clients of a server that is down do not meet
// another one: what NATS greets with, kafka-go goes on decoding past its deadline.
func FreePort(tb testing.TB) int {
	tb.Helper()
	end := ephemeralFrom()
	from, n := shareOf(os.Getpid(), end)
	for _, ports := range [...]struct{ from, n int }{{from, n}, {lowestPort, end - lowestPort}} {
		for range 1000 {
			port := ports.from + rand.IntN(ports.n)
			if _, given := handedOut.LoadOrStore(port, true); given {
				continue
			}
			l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
			if err != nil {
				continue
			}
			l.Close()
			return port
		}
	}
	tb.Fatalf("no port of 127.0.0.1 from %d to %d is free", lowestPort, end-1)
	return 0
}

// shareOf is which of the ports up to end a process takes first.
func shareOf(pid, end int) (from, n int) {
	n = (end - lowestPort) / shares
	return lowestPort + pid%shares*n, n
}

// FreeAddr is 127.0.0.1 with a port as [FreePort] returns it: where nobody listens yet.
func FreeAddr(tb testing.TB) string {
	tb.Helper()
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(FreePort(tb)))
}

// ephemeralFrom is the first port that the system gives to outgoing connections and to
// listeners that ask for any: Linux says, 49152 is IANA's (RFC 6335).
func ephemeralFrom() int {
	const usual = 49_152
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return usual
	}
	var from int
	if _, err := fmt.Sscan(string(text), &from); err != nil || from < lowestPort+fewest {
		return usual
	}
	return from
}
