package main

import (
	"context"
	"fmt"

	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/wait"
)

const (
	// The release that Debian 12 packages, so that the tests meet the same
	// server with and without an engine.
	redisImage = "redis:7.0.15"
	redisPort  = "6379/tcp"
)

// startRedis runs Redis without persistence in a container of its own.
func startRedis(ctx context.Context) (server, error) {
	c, err := testcontainers.Run(ctx, redisImage,
		testcontainers.WithExposedPorts(redisPort),
		testcontainers.WithCmd("redis-server", "--save", "", "--appendonly", "no"),
		testcontainers.WithWaitStrategy(wait.ForLog("Ready to accept connections"), wait.ForListeningPort(redisPort)),
	)
	stop := func(ctx context.Context) error {
		return testcontainers.TerminateContainer(c, testcontainers.StopContext(ctx))
	}
	if err != nil {
		return server{}, abandon(ctx, err, stop)
	}
	addr, err := c.PortEndpoint(ctx, redisPort, "")
	if err != nil {
		return server{}, abandon(ctx, err, stop)
	}
	return server{env: "IDEM_REDIS_ADDR=" + addr, stop: stop}, nil
}

// abandon removes a container that did not come up, and returns why.
func abandon(ctx context.Context, cause error, stop func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	if err := stop(ctx); err != nil {
		return fmt.Errorf("%w (and removing the container: %w)", cause, err)
	}
	return cause
}
