package kafkatest

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"
)

// StartFake runs a fake broker inside the test process: it starts at once, speaks the
// group protocol, and proves nothing about Kafka. Kill, Restart, Pause and Resume end
// the test.
func StartFake(tb testing.TB) *Server {
	tb.Helper()
	c, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		tb.Fatalf("starting the fake Kafka: %v", err)
	}
	tb.Cleanup(c.Close)
	return &Server{tb: tb, addr: c.ListenAddrs()[0]}
}
