package e2e_test

import (
	"flag"
	"fmt"
	"os"
	"testing"
)

// The tests start this binary again as consumers of their own, to be killed.
func TestMain(m *testing.M) {
	if role := os.Getenv(roleEnv); role != "" {
		os.Exit(consume(role))
	}
	if role := os.Getenv(kafkaRoleEnv); role != "" {
		os.Exit(consumeKafka(role))
	}
	if role := os.Getenv(amqpRoleEnv); role != "" {
		os.Exit(consumeAMQP(role))
	}
	if role := os.Getenv(inboxRoleEnv); role != "" {
		os.Exit(consumeInbox(role))
	}
	// They mostly wait, for leases and sessions to end and servers to come.
	if err := flag.Set("test.parallel", "3"); err != nil { // the command line's comes later, and wins
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	os.Exit(m.Run())
}
