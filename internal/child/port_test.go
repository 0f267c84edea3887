package child

import (
	"fmt"
	"net"
	"testing"
)

func TestFreePort(t *testing.T) {
	t.Parallel()
	seen := make(map[int]bool)
	for range 1000 {
		port := FreePort(t)
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
