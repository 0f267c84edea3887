package torture

import (
	"context"
	"database/sql"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/redis/go-redis/v9"

	"github.com/idemq/idemq/e2e/history"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/natsstore"
	"github.com/idemq/idemq/idem/store/redisstore"
	"github.com/idemq/idemq/idem/store/sqlstore"
	"github.com/idemq/idemq/internal/testenv"
)

// client is a store by way of its proxy, as consumers have it.
func client(t *testing.T, s Store) store.Store {
	t.Helper()
	r := s.Role()
	switch r.Kind {
	case "redis", "redis-compact":
		c := redis.NewClient(&redis.Options{Addr: r.Addr, ContextTimeoutEnabled: true})
		t.Cleanup(func() { _ = c.Close() })
		if r.Kind == "redis-compact" {
			return redisstore.New(c, redisstore.WithCompact(redisstore.Compact{}))
		}
		return redisstore.New(c)
	case "nats":
		nc, err := nats.Connect(r.Addr, nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		js, err := jetstream.New(nc)
		if err != nil {
			t.Fatal(err)
		}
		return natsstore.New(js, r.Bucket)
	}
	db, err := sql.Open("pgx", r.Addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return sqlstore.New(db, sqlstore.Postgres)
}

// apply executes one operation, and is false where it was not answered.
func apply(st store.Store, prefix string, op store.Op) (store.Reply, bool) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	op.Claim, op.Attempt = "claim", 1
	if op.Kind == store.Inspect {
		op.Claim, op.Attempt = "", 0
	}
	b := store.Batch{Prefix: prefix, Lease: time.Minute, Retention: time.Hour, Ops: []store.Op{op}}
	if err := st.Apply(ctx, &b); err != nil || b.Replies[0].Err != nil {
		return store.Reply{}, false
	}
	return b.Replies[0], true
}

// complete claims and completes a token.
func complete(st store.Store, prefix, token string) bool {
	if _, ok := apply(st, prefix, store.Op{Kind: store.Begin, Token: token}); !ok {
		return false
	}
	r, ok := apply(st, prefix, store.Op{Kind: store.Commit, Token: token})
	return ok && r.Status == store.OK
}

func stateOf(t *testing.T, st store.Store, prefix, token string) (state store.State) {
	t.Helper()
	testenv.Await(t, "the store to answer", func() bool {
		r, ok := apply(st, prefix, store.Op{Kind: store.Inspect, Token: token})
		if ok {
			state = r.Record.State
		}
		return ok
	})
	return state
}

// A failover forgets what was acknowledged since the moment that it names, and nothing
// before; a restart forgets nothing, and one with nothing all.
func TestForgetters(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(testing.TB) Store{"redis": NewRedis, "redis-compact": NewCompactRedis, "nats": NewNATSKV} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t)
			s.Round("forgets")
			prefix := s.Role().Prefix
			st := client(t, s)
			for failover := range 2 {
				type span struct{ began, acked int64 }
				acked := map[string]span{}
				stop := make(chan struct{})
				var wg sync.WaitGroup
				wg.Go(func() {
					for i := 0; ; i++ {
						select {
						case <-stop:
							return
						default:
						}
						began := history.Now()
						if token := fmt.Sprintf("%d-%d", failover, i); complete(st, prefix, token) {
							acked[token] = span{began, history.Now()}
						}
					}
				})
				since := s.(Forgetter).FailOver()
				over := history.Now()
				close(stop)
				wg.Wait()
				forgotten := 0
				for token, at := range acked {
					switch is := stateOf(t, st, prefix, token); {
					case is == store.Done:
					case at.acked < since:
						t.Errorf("%s was acknowledged %v before what is forgotten, and is %v", token, time.Duration(since-at.acked), is)
					case at.began > over: // one of before may have its answer from before, however late that is read
						t.Errorf("%s was completed after the failover, and is %v", token, is)
					default:
						forgotten++
					}
				}
				if forgotten == 0 {
					t.Errorf("of %d completions none was forgotten", len(acked))
				}
				t.Logf("%d of %d completions were forgotten", forgotten, len(acked))
			}
			testenv.Await(t, "a completion", func() bool { return complete(st, prefix, "kept") })
			s.Restart()
			if is := stateOf(t, st, prefix, "kept"); is != store.Done {
				t.Errorf("after a restart it is %v", is)
			}
			s.(Forgetter).RestartEmpty()
			if is := stateOf(t, st, prefix, "kept"); is != store.Absent {
				t.Errorf("after a restart with nothing it is %v", is)
			}
			testenv.Await(t, "a completion", func() bool { return complete(st, prefix, "again") })
			s.Round("another")
			if is := stateOf(t, st, s.Role().Prefix, "again"); is != store.Absent {
				t.Errorf("in a new round it is %v", is)
			}
		})
	}
}

// What is full takes no claims, and does again when there is room.
func TestFillers(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(testing.TB) Store{
		"redis":    NewRedis,
		"postgres": func(tb testing.TB) Store { return NewPostgres(tb, "") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t)
			filler, is := s.(Filler)
			if !is {
				t.Skip("NOT TESTED: no small disk could be mounted")
			}
			s.Round("fills")
			prefix := s.Role().Prefix
			st := client(t, s)
			if !complete(st, prefix, "before") {
				t.Fatal("the store does not work")
			}
			filler.Fill()
			n := 0
			testenv.Await(t, "a claim to find no room", func() bool {
				n++
				_, ok := apply(st, prefix, store.Op{Kind: store.Begin, Token: fmt.Sprintf("full-%d-%0200d", n, n)})
				return !ok
			})
			filler.Empty()
			testenv.Await(t, "room", func() bool { return complete(st, prefix, "after") })
			if is := stateOf(t, st, prefix, "before"); is != store.Done {
				t.Errorf("what was done before is %v", is)
			}
		})
	}
}
