// Command consumer is a consumer process of the torture runs: see package role for what it
// is told. It ends with status 0 after a SIGTERM, and with 1 and a line on its standard
// error when something else ends it.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/e2e/history"
	"github.com/idemq/idemq/e2e/torture/role"
	"github.com/idemq/idemq/idem"
)

// nearTTL is shorter than a round: entries run out in it.
const nearTTL = 5 * time.Second

// Backoffs are short, so that what failed is settled within a round.
const (
	firstBackoff = 10 * time.Millisecond
	lastBackoff  = 200 * time.Millisecond
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	err := run(ctx, os.Getenv(role.Env), os.Stdin)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// runner is what Run of every adapter's consumer is.
type runner interface {
	Run(ctx context.Context) error
}

func run(ctx context.Context, config string, commands io.Reader) (err error) {
	var c role.Config
	if err := json.Unmarshal([]byte(config), &c); err != nil {
		return fmt.Errorf("%s: %w", role.Env, err)
	}
	rec, err := history.Create(c.History)
	if err != nil {
		return err
	}
	rec.Process = c.Number
	rec.Failed = func(err error) { // what it does from now on would not be known
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	defer func() { err = errors.Join(err, rec.Close()) }()

	st, effect, closeStore, err := openStore(c)
	if err != nil {
		return err
	}
	defer closeStore()
	if effect != nil {
		c.Batch = min(c.Batch, sqlBatch)
	}
	h := &handler{config: c, rec: rec, effect: effect}
	options := []idem.Option{
		idem.WithStore(history.Store(st, rec, c.Run)), idem.WithPrefix(c.Store.Prefix), idem.WithLease(c.Lease),
		idem.WithObserver(idem.ObserverFunc(tell)),
	}
	if c.Store.Kind == redisCompact {
		c.Retention = compactRetention
	}
	if c.Retention > 0 {
		options = append(options, idem.WithRetention(c.Retention))
	}
	if c.NearCache > 0 {
		options = append(options, idem.WithNearCache(c.NearCache, nearTTL))
	}
	if c.Instance != "" {
		options = append(options, idem.WithInstance(c.Instance))
	}
	policies := []consumers.Option{consumers.Backoff(firstBackoff, lastBackoff), consumers.Budget(c.Budget)}
	if c.Ahead != 0 {
		policies = append(policies, consumers.WorkAhead(max(c.Ahead, 0)))
	}
	consuming, cancel := context.WithCancel(ctx)
	defer cancel()
	wrong := make(chan error, 1)
	go func() {
		if err := obey(commands, h); err != nil {
			wrong <- err
			cancel()
		}
	}()
	if c.StatsEvery > 0 {
		var told sync.WaitGroup
		told.Go(func() {
			if err := report(consuming, c); err != nil {
				select {
				case wrong <- err:
				default: // one reason is enough
				}
				cancel()
			}
		})
		defer told.Wait()
		defer cancel()
	}
	consumer, closeBroker, err := openBroker(consuming, c, idem.New(options...), h, policies)
	if err != nil {
		return err
	}
	defer closeBroker()
	if consumer != nil {
		err = consumer.Run(consuming)
	}
	select {
	case w := <-wrong:
		return errors.Join(err, w)
	default:
		return err
	}
}

// obey executes commands until there are no more, or one that is wrong.
func obey(commands io.Reader, h *handler) error {
	lines := bufio.NewScanner(commands)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		d, err := time.ParseDuration(value)
		if err != nil {
			return fmt.Errorf("command %q: %w", lines.Text(), err)
		}
		switch name {
		case role.Slow:
			h.slow.Store(int64(d))
		case role.Clock:
			if err := stepClock(d); err != nil {
				return err
			}
		default:
			return fmt.Errorf("command %q is not known", lines.Text())
		}
	}
	return lines.Err()
}

// tell prints what somebody who looks into a run that failed would want to know.
func tell(e idem.Event) {
	switch e.Kind {
	case idem.EventRefused, idem.EventStuck, idem.EventStoreDown, idem.EventStoreUp, idem.EventStoreNotice, idem.EventWaiting,
		idem.EventUnrecorded, idem.EventDropped, idem.EventUnguarded, idem.EventSettleFailed:
		fmt.Fprintf(os.Stderr, "%s %v: token %q, attempt %d, wait %v: %s%v\n", time.Now().Format(time.StampMilli), e.Kind, e.Token, e.Attempt, e.Wait, e.Text, e.Err)
	}
}
