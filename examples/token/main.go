// Command token makes a token, checks it, and checks it again: the one-phase form.
// The first check passes, the second does not.
//
//	go run ./examples/token -redis redis://localhost:6379/0
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/idemq/idemq/idem"
)

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}

// run returns the exit status: 0, or 2 where the program could not do its work.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("token", flag.ContinueOnError)
	flags.SetOutput(stderr)
	url := flags.String("redis", "redis://localhost:6379/0", "`URL` of the Redis server")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := checkTwice(ctx, *url, stdout); err != nil {
		fmt.Fprintf(stderr, "token: %v\n", err)
		return 2
	}
	return 0
}

func checkTwice(ctx context.Context, url string, out io.Writer) error {
	client, err := connect(ctx, url)
	if err != nil {
		return err
	}
	defer client.Close()

	guard := idem.New(
		idem.WithRedis(client),
		idem.WithPrefix("example"),
		idem.WithExpire(30), // minutes that the token may wait for its check
	)
	token, err := guard.Token(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "token %s\n", token)
	for _, which := range []string{"first", "second"} {
		pass, err := guard.Check(ctx, token)
		if err != nil {
			return err
		}
		if pass {
			fmt.Fprintf(out, "%s check: passed, do the work\n", which)
		} else {
			fmt.Fprintf(out, "%s check: not passed (used, expired or unknown), do nothing\n", which)
		}
	}
	return nil
}

func connect(ctx context.Context, url string) (*redis.Client, error) {
	opts, err := redis.ParseURL(url)
	if err != nil {
		return nil, fmt.Errorf("-redis: %w: write it as redis://host:port/0", err)
	}
	opts.ContextTimeoutEnabled = true
	opts.MaxRetries = -1 // an example should fail at once
	opts.DialTimeout = 2 * time.Second
	opts.DialerRetries = 1
	redis.SetLogger(quiet{}) // errors are returned, and said once
	client := redis.NewClient(opts)
	if err := client.Ping(ctx).Err(); err != nil {
		client.Close()
		return nil, fmt.Errorf("redis at %s does not answer: %w: start one there, or name another with -redis", opts.Addr, err)
	}
	return client, nil
}

// quiet is a go-redis logger that says nothing.
type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}
