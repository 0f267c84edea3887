package e2e_test

import (
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
	os.Exit(m.Run())
}
