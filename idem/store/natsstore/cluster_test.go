package natsstore_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/natsstore"
	"github.com/idemq/idemq/idem/store/storetest"
	"github.com/idemq/idemq/internal/natstest"
	"github.com/idemq/idemq/internal/testenv"
)

// TestCluster runs what needs three servers on one cluster: starting one takes seconds.
func TestCluster(t *testing.T) {
	t.Parallel()
	c := natstest.StartCluster(t, 3, withUsers(&server.User{Username: "u", Password: "p", Permissions: least(true, "*")}))
	js := c.JetStream(t, admin)
	s := natsstore.New(js, bucket, natsstore.WithReplicas(3))

	t.Run("suite", func(t *testing.T) {
		apply(t, s, batch("p")) // creates the bucket
		h := harness(js, unit)
		h.Open = func(testing.TB) store.Store {
			return natsstore.New(c.JetStream(t, asU), bucket, natsstore.WithReplicas(3))
		}
		storetest.Run(t, h)
	})
	t.Run("proof", func(t *testing.T) {
		// What is answered without a write is confirmed by one; "ask again" is not.
		// The leader is asked: KeyValue.Get may be answered by a replica that lags.
		proofs := func() (seq uint64) {
			t.Helper()
			reply, err := js.Conn().Request("$JS.API.STREAM.MSG.GET.KV_"+bucket, []byte(`{"last_by_subj":"$KV.`+bucket+`.p.proof"}`), 10*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			var answer struct {
				Message struct {
					Seq uint64 `json:"seq"`
				} `json:"message"`
			}
			if err := json.Unmarshal(reply.Data, &answer); err != nil {
				t.Fatal(err)
			}
			return answer.Message.Seq
		}
		want(t, s, "p", store.Claimed, op(store.Begin, "t", "c1"))
		last := proofs()
		for _, tt := range []struct {
			op     store.Op
			status store.Status
			proved bool
		}{
			{op(store.Begin, "t", "c2"), store.InProgress, false},
			{op(store.Renew, "t", "c2"), store.Lost, true},
			{op(store.Commit, "t", "c2"), store.Lost, true},
			{op(store.Commit, "t", "c1"), store.OK, false},
			{op(store.Begin, "t", "c2"), store.Duplicate, true},
			{op(store.Check, "t", "k1"), store.Lost, true},
			{op(store.Inspect, "none", ""), store.OK, true},
			{op(store.Forget, "none", "f"), store.OK, true},
		} {
			want(t, s, "p", tt.status, tt.op)
			now := proofs()
			if (now > last) != tt.proved {
				t.Errorf("kind %d, answered %d: proved is %v", tt.op.Kind, tt.status, now > last)
			}
			last = now
		}
	})
	t.Run("findings", func(t *testing.T) {
		// A replica may lag for a moment after so many writes, and is then found.
		testenv.Await(t, "nothing is found on a well-made bucket", func() bool {
			f, err := s.Verify(context.Background(), "p")
			if err != nil || slices.ContainsFunc(f, func(f store.Finding) bool { return f.ID != "nats-kv-replica-lag" }) {
				t.Fatalf("a well-made bucket: %v, %v", f, err)
			}
			return len(f) == 0
		})
		one := natsstore.New(js, "one")
		apply(t, one, batch("p"))
		for _, s := range []*natsstore.Store{one, natsstore.New(js, "one", natsstore.WithReplicas(3))} {
			if f, err := s.Verify(context.Background(), "p"); err != nil || len(f) != 1 || f[0].ID != "nats-kv-replicas" {
				t.Errorf("one replica: %v, %v", f, err)
			}
		}
	})
	t.Run("too few servers", func(t *testing.T) { // it may be that some are away
		refused(t, natsstore.New(js, "five", natsstore.WithReplicas(5)).Apply(brief(t), batch("p")), true, "no suitable peers")
	})
	t.Run("failover", func(t *testing.T) { failover(t, c) })
}

// failover moves the lead of the bucket, and kills its leader, while messages are
// claimed and completed: of what was acknowledged nothing is lost, and nothing is
// claimed twice.
func failover(t *testing.T, c *natstest.Cluster) {
	js := c.JetStream(t, admin)
	var done, claims [4]map[string]int
	var completed atomic.Int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for w := range done {
		done[w], claims[w] = map[string]int{}, map[string]int{}
		s := natsstore.New(c.JetStream(t, admin), bucket)
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				// Two workers meet on each token.
				token := fmt.Sprintf("%d-%d", w/2, i)
				claim := fmt.Sprintf("w%d-%d", w, i)
				r, err := persist(s, op(store.Begin, token, claim))
				if err != nil {
					t.Errorf("Begin %s: %v", token, err)
					return
				}
				if r.Status != store.Claimed {
					continue
				}
				claims[w][token] = r.Attempt
				if r, err = persist(s, op(store.Commit, token, claim)); err != nil || r.Status != store.OK {
					t.Errorf("Commit %s: %+v, %v", token, r, err)
					return
				}
				done[w][token] = 1
				completed.Add(1)
			}
		})
	}
	progress := func(what string) {
		t.Helper()
		from := completed.Load()
		testenv.Await(t, "completions "+what, func() bool { return t.Failed() || completed.Load() > from+200 })
	}
	progress("before")
	for range 2 {
		if _, err := js.Conn().Request("$JS.API.STREAM.LEADER.STEPDOWN.KV_"+bucket, nil, 10*time.Second); err != nil {
			t.Error(err)
		}
		progress("after the leader stepped down")
	}
	leader := c.Leader("KV_" + bucket)
	testenv.Await(t, "a leader", func() bool { leader = c.Leader("KV_" + bucket); return leader != nil })
	leader.Stop()
	progress("after the leader was killed")
	leader.Restart()
	c.Await()
	progress("after it came back")
	close(stop)
	wg.Wait()

	s := natsstore.New(js, bucket)
	lost, twice, total := 0, 0, 0
	for w := range done {
		for token := range done[w] {
			total++
			r, err := persist(s, op(store.Inspect, token, ""))
			if err != nil {
				t.Fatal(err)
			}
			if r.Record.State != store.Done || r.Record.Attempt != 1 {
				t.Logf("%s is %+v", token, *r.Record)
				lost++
			}
			if other := w ^ 1; claims[other][token] > 0 {
				twice++
			}
		}
	}
	t.Logf("%d completed, %d lost, %d claimed twice", total, lost, twice)
	if lost > 0 || twice > 0 {
		t.Errorf("of %d completed tokens %d were lost, and %d were claimed by two", total, lost, twice)
	}
}

// persist has an operation answered, as the guard does: under the same claim id, for as
// long as the store is away.
func persist(s store.Store, o store.Op) (store.Reply, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		b := batch("failover", o)
		b.Lease = 10 * time.Minute
		try, end := context.WithTimeout(ctx, 3*time.Second)
		err := s.Apply(try, b)
		end()
		switch {
		case err == nil && b.Notice != "":
			return store.Reply{}, errors.New(b.Notice)
		case err == nil:
			return b.Replies[0], b.Replies[0].Err
		case ctx.Err() != nil || !errors.Is(err, store.ErrUnavailable):
			return store.Reply{}, err
		}
	}
}
