package redisstore_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/redisstore"
	"github.com/idemq/idemq/internal/child"
	"github.com/idemq/idemq/internal/redistest"
	"github.com/idemq/idemq/internal/testenv"
)

// trouble is something that a server says instead of working.
type trouble struct {
	name   string
	cause  func(t *testing.T, admin *redis.Client) (end func())
	outage bool
	words  []string // of the error: what Redis said, and what to do

	reads bool // only what reads is answered so: a script that may write is answered READONLY
}

var troubles = []trouble{
	{"MASTERDOWN", func(t *testing.T, admin *redis.Client) func() {
		set(t, admin, "replica-serve-stale-data", "no")
		do(t, admin, "REPLICAOF", "127.0.0.1", child.FreePort(t))
		return func() { do(t, admin, "REPLICAOF", "NO", "ONE") }
	}, true, []string{"MASTERDOWN", "connect to the primary"}, true},

	{"READONLY", func(t *testing.T, admin *redis.Client) func() {
		do(t, admin, "REPLICAOF", "127.0.0.1", child.FreePort(t))
		return func() { do(t, admin, "REPLICAOF", "NO", "ONE") }
	}, false, []string{"replica", "connect to the primary"}, false},

	{"LOADING", func(t *testing.T, admin *redis.Client) func() {
		for i := range 2000 {
			if err := admin.Set(context.Background(), fmt.Sprint("filler", i), strings.Repeat("x", 64), 0).Err(); err != nil {
				t.Fatal(err)
			}
		}
		set(t, admin, "loading-process-events-interval-bytes", "1024")
		set(t, admin, "key-load-delay", "1000") // microseconds
		return background(t, admin, "DEBUG", "RELOAD")
	}, true, []string{"LOADING", "see its log"}, false},

	{"BUSY", func(t *testing.T, admin *redis.Client) func() {
		set(t, admin, "busy-reply-threshold", "1")
		end := background(t, admin, "EVAL", "while true do end", "0")
		return func() {
			testenv.Await(t, "the script to be killed", func() bool { return admin.ScriptKill(context.Background()).Err() == nil })
			end()
		}
	}, true, []string{"BUSY", "SCRIPT KILL"}, false},

	// Redis says so and closes; whether that is read before the write fails is luck.
	{"maxclients", func(t *testing.T, admin *redis.Client) func() {
		set(t, admin, "maxclients", "1")
		return func() { set(t, admin, "maxclients", "100") }
	}, true, []string{"store unavailable"}, false},

	{"NOREPLICAS", func(t *testing.T, admin *redis.Client) func() {
		set(t, admin, "min-replicas-to-write", "1")
		return func() { set(t, admin, "min-replicas-to-write", "0") }
	}, false, []string{"NOREPLICAS", "see to the replicas"}, false},

	{"snapshots fail", func(t *testing.T, admin *redis.Client) func() {
		set(t, admin, "save", "900 1")
		dir := admin.ConfigGet(context.Background(), "dir").Val()["dir"]
		rotten(t, admin)
		_ = admin.BgSave(context.Background())
		testenv.Await(t, "the snapshot to fail", func() bool { return infoOf(t, admin, "rdb_last_bgsave_status") == "err" })
		return func() {
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			set(t, admin, "dir", dir)                    // what it stood in is gone
			testenv.Await(t, "a snapshot", func() bool { // and that none is being written: its process would outlive the server
				if infoOf(t, admin, "rdb_bgsave_in_progress") != "0" {
					return false
				}
				if infoOf(t, admin, "rdb_last_bgsave_status") == "ok" {
					return true
				}
				_ = admin.BgSave(context.Background())
				return false
			})
		}
	}, false, []string{"MISCONF", "whether its disk is full"}, false},

	{"NOAUTH", func(t *testing.T, admin *redis.Client) func() {
		do(t, admin, "ACL", "SETUSER", "admin", "on", ">admin", "~*", "+@all")
		set(t, admin, "requirepass", "secret")
		return func() { set(t, admin, "requirepass", "") }
	}, false, []string{"a username and a password"}, false},
}

func do(t *testing.T, c *redis.Client, args ...any) {
	t.Helper()
	if err := c.Do(context.Background(), args...).Err(); err != nil {
		t.Fatalf("%v: %v", args, err)
	}
}

// background sends a command that takes long, and returns what waits for its end.
func background(t *testing.T, admin *redis.Client, args ...any) (end func()) {
	t.Helper()
	o := *admin.Options()
	o.ReadTimeout = time.Minute
	c := redis.NewClient(&o)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = c.Do(context.Background(), args...).Err()
	}()
	return func() { <-done; _ = c.Close() }
}

// Each trouble that a server can have: the error says what to do, and whether it passes
// by itself; nothing is lost, and the store works again when the cause is gone.
func TestTroubles(t *testing.T) {
	t.Parallel()
	for _, tt := range troubles {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t, "--enable-debug-command", "yes", "--enable-protected-configs", "yes")
			admin := server.Client(t)
			do(t, admin, "PING")
			o := server.Options()
			o.MaxRetries = -1
			o.ConnMaxIdleTime = time.Nanosecond // each call connects anew
			c := redis.NewClient(o)
			t.Cleanup(func() { _ = c.Close() })
			s := redisstore.New(c)
			want(t, s, "p", store.Claimed, op(store.Begin, "held", "a"))
			want(t, s, "p", store.Claimed, op(store.Begin, "done", "a"))
			want(t, s, "p", store.OK, op(store.Commit, "done", "a"))

			end := tt.cause(t, admin)
			said := func(what string, call func(context.Context) error) {
				t.Helper()
				var err error
				testenv.Await(t, what+" to fail", func() bool {
					ctx, cancel := context.WithTimeout(context.Background(), time.Second)
					defer cancel()
					err = call(ctx)
					return err != nil
				})
				if errors.Is(err, store.ErrUnavailable) != tt.outage {
					t.Errorf("%s: an outage is %v: %v", what, !tt.outage, err)
				}
				for _, w := range tt.words {
					if !strings.Contains(err.Error(), w) {
						t.Errorf("%s: no %q in: %v", what, w, err)
					}
				}
			}
			if !tt.reads {
				said("Apply", func(ctx context.Context) error {
					return s.Apply(ctx, batch("p", op(store.Commit, "held", "a"), op(store.Begin, "new", "b")))
				})
				said("Incarnation", func(ctx context.Context) error {
					_, err := s.Incarnation(ctx, "p", "n")
					return err
				})
			}
			said("Verify", func(ctx context.Context) error {
				_, err := s.Verify(ctx, "p")
				return err
			})
			end()
			b := batch("p", op(store.Commit, "held", "a"), op(store.Begin, "done", "b"), op(store.Begin, "new", "b"))
			testenv.Await(t, "the store to work again", func() bool { return s.Apply(context.Background(), b) == nil })
			for i, st := range []store.Status{store.OK, store.Duplicate, store.Claimed} {
				if r := b.Replies[i]; r.Status != st || st == store.Claimed && r.Attempt != 1 {
					t.Errorf("afterwards, operation %d: %+v", i, r)
				}
			}
			if b.Notice != "" {
				t.Error(b.Notice)
			}
		})
	}
}

// WRONGPASS: a user that this server does not know is told so.
func TestWrongPassword(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, private...)
	o := server.Options()
	o.Username, o.Password = "nobody", "x"
	c := redis.NewClient(o)
	t.Cleanup(func() { _ = c.Close() })
	s := redisstore.New(c)
	_, verr := s.Verify(context.Background(), "p")
	for _, err := range []error{s.Apply(context.Background(), batch("p")), verr} {
		if err == nil || errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "is not right") {
			t.Errorf("%v", err)
		}
	}
}
