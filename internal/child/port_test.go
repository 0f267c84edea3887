package child

import (
	"fmt"
	"net"
	"os"
	"testing"
)

func TestFreePort(t *testing.T) {
	t.Parallel()
	seen := make(map[int]bool)
	from, n := shareOf(os.Getpid(), ephemeralFrom())
	fresh := true // nobody took many of the share's ports before
	handedOut.Range(func(any, any) bool { fresh = false; return fresh })
	for i := range 1000 {
		port := FreePort(t)
		if fresh && i < n/2 && (port < from || port >= from+n) {
			t.Fatalf("port %d is not of this process's share, from %d to %d", port, from, from+n-1)
		}
		if port < lowestPort || port >= ephemeralFrom() {
			t.Fatalf("port %d: the system may give it to a connection while its server is down", port)
		}
		if seen[port] {
			t.Fatalf("port %d: given twice", port)
		}
		seen[port] = true
	}
	port := FreePort(t)
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatalf("port %d is not free: %v", port, err)
	}
	l.Close()
}

// Processes with numbers near each other, as those have that run side by side, share no port.
func TestSharesOfPorts(t *testing.T) {
	t.Parallel()
	const end = 32_768
	owners := make(map[int]int)
	for pid := 5000; pid < 5000+shares; pid++ {
		from, n := shareOf(pid, end)
		for port := from; port < from+n; port++ {
			if other, taken := owners[port]; taken || port < lowestPort || port >= end {
				t.Fatalf("port %d is of %d, and of %d", port, pid, other)
			}
			owners[port] = pid
		}
	}
	if len(owners) < (end-lowestPort)*9/10 {
		t.Errorf("%d of %d ports are anybody's", len(owners), end-lowestPort)
	}
}
