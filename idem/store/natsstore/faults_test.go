package natsstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/natsstore"
	"github.com/idemq/idemq/idem/store/storetest"
	"github.com/idemq/idemq/internal/natstest"
	"github.com/idemq/idemq/internal/testenv"
)

// refused wants an error that is a refusal, or one that may pass, and says a word.
func refused(t *testing.T, err error, unavailable bool, words ...string) {
	t.Helper()
	if err == nil || errors.Is(err, store.ErrUnavailable) != unavailable {
		t.Fatalf("%v: unavailable is %v, want %v", err, !unavailable, unavailable)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%v\n\tsays nothing of %q", err, w)
		}
	}
}

// A server that is away is told by the end of the context, and the store goes on when
// it is back.
func TestServerAway(t *testing.T) {
	srv := natstest.Start(t)
	js := srv.JetStream(t)
	s := natsstore.New(js, bucket)
	want(t, s, "p", store.Claimed, op(store.Begin, "t", "c1"))
	srv.Stop()
	testenv.Await(t, "the client to notice", func() bool { return !js.Conn().IsConnected() })
	refused(t, s.Apply(brief(t), batch("p", op(store.Commit, "t", "c1"))), true, "not connected", "1 of 1")
	_, err := s.Incarnation(brief(t), "p", "n")
	refused(t, err, true)
	_, err = s.Verify(brief(t), "p")
	refused(t, err, true, "not connected")
	refused(t, natsstore.New(js, bucket).Apply(brief(t), batch("p")), true, "not connected")
	srv.Restart()
	b := batch("p", op(store.Commit, "t", "c1"))
	if r := apply(t, s, b)[0]; r.Status != store.OK || b.Notice != "" {
		t.Errorf("%+v, notice %q", r, b.Notice)
	}
	want(t, s, "p", store.Duplicate, op(store.Begin, "t", "c2"))
}

func TestClosed(t *testing.T) {
	srv := natstest.Start(t)
	js := srv.JetStream(t)
	s := natsstore.New(js, bucket)
	want(t, s, "p", store.Claimed, op(store.Begin, "t", "c1"))
	js.Conn().Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	start := time.Now()
	words := []string{"closed for good", "start the process again", "nats.MaxReconnects(-1)"}
	refused(t, s.Apply(ctx, batch("p", op(store.Commit, "t", "c1"))), false, words...)
	refused(t, natsstore.New(js, bucket).Apply(ctx, batch("p")), false, words...)
	_, err := s.Verify(ctx, "p")
	refused(t, err, false, words...)
	_, err = s.Incarnation(ctx, "p", "n")
	refused(t, err, false, words...)
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("a closed connection was waited for %v", d)
	}
}

// A client that gives up reconnecting is found, also before there is a bucket, and what
// it meets when it has given up is said.
func TestGivesUpReconnecting(t *testing.T) {
	srv := natstest.Start(t)
	ctx := context.Background()
	js := srv.JetStream(t, nats.MaxReconnects(3))
	s := natsstore.New(js, bucket)
	for range 2 {
		f, err := s.Verify(ctx, "p")
		if err != nil || len(f) != 1 || f[0].ID != "nats-kv-reconnects" || !strings.Contains(f[0].Cure, "nats.MaxReconnects(-1)") {
			t.Errorf("%v, %v", f, err)
		}
		want(t, s, "p", store.Claimed, op(store.Begin, "t", "c1"))
	}
	if f, err := natsstore.New(srv.JetStream(t, nats.NoReconnect()), bucket).Verify(ctx, "p"); err != nil || len(f) != 1 || f[0].ID != "nats-kv-reconnects" {
		t.Errorf("%v, %v", f, err)
	}
	if f, err := natsstore.New(srv.JetStream(t), bucket).Verify(ctx, "p"); err != nil || len(f) != 0 {
		t.Errorf("for ever: %v, %v", f, err)
	}
	srv.Stop()
	ctx, cancel := context.WithTimeout(ctx, time.Minute) // a call that is under way is told
	defer cancel()
	refused(t, s.Apply(ctx, batch("p", op(store.Commit, "t", "c1"))), false, "closed for good")
}

// deaf is a connection that hears nothing any more, on demand.
type deaf struct {
	net.Conn
	on *atomic.Bool
}

func (c *deaf) Read(p []byte) (int, error) {
	for {
		if n, err := c.Conn.Read(p); err != nil || !c.on.Load() {
			return n, err
		}
	}
}

type deafDialer struct{ on *atomic.Bool }

func (d deafDialer) Dial(network, address string) (net.Conn, error) {
	c, err := net.Dial(network, address)
	return &deaf{Conn: c, on: d.on}, err
}

// What the server forbade earlier is not why it gives no answer now.
func TestForbiddenEarlier(t *testing.T) {
	rights := least(true, "p")
	rights.Subscribe.Deny = []string{"_INBOX.denied.>"}
	srv := natstest.Start(t, withUsers(&server.User{Username: "u", Password: "p", Permissions: rights}))
	var on atomic.Bool
	js := srv.JetStream(t, asU, nats.SetCustomDialer(deafDialer{&on}), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	s := natsstore.New(js, bucket)
	want(t, s, "p", store.Claimed, op(store.Begin, "t", "c1"))
	nc := js.Conn()
	if _, err := nc.SubscribeSync("_INBOX.denied.x"); err != nil {
		t.Fatal(err)
	}
	testenv.Await(t, "the server to forbid it", func() bool { return errors.Is(nc.LastError(), nats.ErrPermissionViolation) })
	on.Store(true)
	refused(t, s.Apply(brief(t), batch("p", op(store.Commit, "t", "c1"))), true)
	on.Store(false)
	want(t, s, "p", store.OK, op(store.Commit, "t", "c1"))
}

// The same of what a user may publish: rights that were given since.
func TestAllowedSince(t *testing.T) {
	rights := least(true, "p")
	rights.Publish.Deny = []string{"$JS.API.STREAM.INFO.KV_" + bucket}
	srv := natstest.Start(t, withUsers(&server.User{Username: "u", Password: "p", Permissions: rights}))
	var on atomic.Bool
	js := srv.JetStream(t, asU, nats.SetCustomDialer(deafDialer{&on}), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	s := natsstore.New(js, bucket)
	refused(t, s.Apply(patient(t), batch("p")), false, "allow the user")
	on.Store(true) // as if allowed: nothing is heard of what is sent now
	refused(t, s.Apply(brief(t), batch("p")), true)
}

// thief is a connection that loses what the server answers, on demand, with the
// connection.
type thief struct {
	net.Conn
	armed *atomic.Bool
	seen  []byte
}

func (c *thief) Read(p []byte) (int, error) {
	for {
		n, err := c.Conn.Read(p)
		if err != nil || !c.armed.Load() {
			return n, err
		}
		if c.seen = append(c.seen, p[:n]...); bytes.Contains(c.seen, []byte(`"seq":`)) {
			c.armed.Store(false)
			_ = c.Close()
			return 0, io.EOF
		}
	}
}

type thiefDialer struct{ armed *atomic.Bool }

func (d thiefDialer) Dial(network, address string) (net.Conn, error) {
	c, err := net.Dial(network, address)
	return &thief{Conn: c, armed: d.armed}, err
}

// A write whose acknowledgement is lost is found by what it wrote: its operations are
// answered as they were executed, not as if they had been executed twice.
func TestLostAcknowledgement(t *testing.T) {
	var armed atomic.Bool
	js := natstest.Start(t).JetStream(t, nats.SetCustomDialer(thiefDialer{&armed}))
	s := natsstore.New(js, bucket)
	want(t, s, "p", store.Claimed, op(store.Begin, "t", "c1"))
	release := op(store.Release, "t", "c1")
	release.Counted = true
	for _, b := range []*store.Batch{
		batch("p", release, op(store.Begin, "t", "c2")),
		batch("p", op(store.Commit, "t", "c2"), op(store.Begin, "u", "d1"), op(store.Release, "u", "d1"), op(store.Begin, "u", "d2")),
	} {
		armed.Store(true)
		for i, r := range apply(t, s, b) {
			if r.Err != nil || r.Status != store.OK && r.Status != store.Claimed {
				t.Errorf("operation %d, kind %d: %+v", i, b.Ops[i].Kind, r)
			}
		}
		if armed.Load() {
			t.Error("nothing was lost")
		}
		if b.Notice != "" {
			t.Error(b.Notice)
		}
	}
	if r := want(t, s, "p", store.Duplicate, op(store.Begin, "t", "c3")); r.Attempt != 2 {
		t.Errorf("%+v", r)
	}
	if r := want(t, s, "p", store.OK, op(store.Inspect, "u", "")).Record; r.Attempt != 2 || r.Claim != "d2" {
		t.Errorf("%+v", r)
	}
}

// A bucket that was deleted is made anew, and told once; what was in flight goes on.
func TestBucketDeleted(t *testing.T) {
	js := natstest.Start(t).JetStream(t)
	s := natsstore.New(js, bucket)
	for i, op1 := range []store.Op{op(store.Commit, "t", "c1"), op(store.Begin, "t", "c1"), op(store.Inspect, "t", "")} {
		want(t, s, "p", store.Claimed, op(store.Begin, "t", "c1"))
		if err := js.DeleteKeyValue(context.Background(), bucket); err != nil {
			t.Fatal(err)
		}
		b := batch("p", op1, op(store.Begin, "u", "c1"))
		r := apply(t, s, b)
		if r[0].Err != nil || r[0].Status == store.Lost || r[1].Status != store.Claimed {
			t.Errorf("%d: %+v", i, r)
		}
		losses := 2*i + 1 // another is at the end of each round
		if !strings.Contains(b.Notice, bucket) || !strings.Contains(b.Notice, "handled again") || b.Losses != losses {
			t.Errorf("%d: %d losses, the notice is %q", i, b.Losses, b.Notice)
		}
		b = batch("p", op(store.Renew, "u", "c1"))
		if r := apply(t, s, b); r[0].Status != store.OK || b.Notice == "" || b.Losses != losses {
			t.Errorf("%d: %+v, %d losses, notice %q", i, r, b.Losses, b.Notice)
		}
		want(t, s, "p", store.OK, op(store.Commit, "u", "c1"))
		if err := js.DeleteKeyValue(context.Background(), bucket); err != nil {
			t.Fatal(err)
		}
		apply(t, s, batch("p"))
	}
	if err := js.DeleteKeyValue(context.Background(), bucket); err != nil {
		t.Fatal(err)
	}
	refused(t, natsstore.New(js, bucket, natsstore.WithoutCreate()).Apply(patient(t), batch("p")), false, "does not exist", "WithoutCreate")
}

// A bucket that others deleted and filled again: what was remembered of the old one is
// not taken for the new one's.
func TestBucketReplaced(t *testing.T) {
	js := natstest.Start(t).JetStream(t)
	s := natsstore.New(js, bucket)
	want(t, s, "p", store.Claimed, op(store.Begin, "t", "c1"))
	if err := js.DeleteKeyValue(context.Background(), bucket); err != nil {
		t.Fatal(err)
	}
	want(t, natsstore.New(js, bucket), "p", store.Claimed, op(store.Begin, "t", "d1"))
	b := batch("p", op(store.Commit, "t", "c1"))
	if r := apply(t, s, b); r[0].Status != store.Lost || b.Notice == "" {
		t.Errorf("%+v, notice %q", r, b.Notice)
	}
	want(t, natsstore.New(js, bucket), "p", store.InProgress, op(store.Begin, "t", "d2"))
}

// What was remembered of a bucket goes when it is found to be another, whoever finds it.
func TestMemoryOfAnother(t *testing.T) {
	js := natstest.Start(t).JetStream(t)
	ctx := context.Background()
	s := natsstore.New(js, bucket)
	want(t, s, "p", store.Claimed, op(store.Begin, "t", "c1"))
	if err := js.DeleteKeyValue(ctx, bucket); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Incarnation(ctx, "p", "n"); err != nil {
		t.Fatal(err)
	}
	if n := natsstore.Remembered(s); n != 0 {
		t.Errorf("%d records of the old bucket are remembered", n)
	}
	b := batch("p", op(store.Begin, "t", "c2"))
	if r := apply(t, s, b)[0]; r.Status != store.Claimed || r.Attempt != 1 || b.Losses != 1 {
		t.Errorf("%+v, %d losses", r, b.Losses)
	}
}

// What was written while the bucket was found to be another is answered as it is found.
func TestWrittenToAnother(t *testing.T) {
	js := natstest.Start(t).JetStream(t)
	ctx := context.Background()
	s := natsstore.New(js, bucket)
	want(t, s, "p", store.Claimed, op(store.Begin, "t", "c1"))
	if err := js.DeleteKeyValue(ctx, bucket); err != nil {
		t.Fatal(err)
	}
	apply(t, natsstore.New(js, bucket), batch("p"))
	b := batch("p", op(store.Begin, "u", "c1"), op(store.Release, "u", "c1"), op(store.Begin, "u", "c2"), op(store.Begin, "v", "c1"))
	for i, r := range apply(t, s, b) {
		if r.Err != nil || r.Status != store.OK && r.Status != store.Claimed {
			t.Errorf("operation %d: %+v", i, r)
		}
	}
	if b.Losses != 1 {
		t.Errorf("%d losses", b.Losses)
	}
	r := want(t, natsstore.New(js, bucket), "p", store.OK, op(store.Inspect, "u", "")).Record
	if r.State != store.Running || r.Claim != "c2" || r.Attempt != 2 {
		t.Errorf("%+v", r)
	}
}

// A purge by hand, and a bucket in memory whose server restarts.
func TestForgets(t *testing.T) {
	ctx := context.Background()
	for name, lose := range map[string]func(*natstest.Server, jetstream.JetStream){
		"purged": func(_ *natstest.Server, js jetstream.JetStream) {
			st, err := js.Stream(ctx, "KV_"+bucket)
			if err == nil {
				err = st.Purge(ctx)
			}
			if err != nil {
				t.Fatal(err)
			}
		},
		"restarted": func(srv *natstest.Server, _ jetstream.JetStream) { srv.Restart() },
	} {
		srv := natstest.Start(t)
		js := srv.JetStream(t)
		s := natsstore.New(js, bucket, natsstore.WithStorage(jetstream.MemoryStorage))
		other := natsstore.New(js, bucket)
		want(t, s, "p", store.Claimed, op(store.Begin, "t", "c1"))
		want(t, other, "p", store.InProgress, op(store.Begin, "t", "d1"))
		lose(srv, js)
		for i, s := range []*natsstore.Store{s, other} {
			b := batch("p", op(store.Begin, fmt.Sprint("u", i), "c1"))
			if r := apply(t, s, b); r[0].Status != store.Claimed || b.Notice == "" {
				t.Errorf("%s: %+v, notice %q", name, r, b.Notice)
			}
			if n := natsstore.Remembered(s); n > 1 {
				t.Errorf("%s: %d records are remembered, among them the lost one", name, n)
			}
			apply(t, s, b)
			if b.Losses != 1 || b.Notice == "" {
				t.Errorf("%s: %d losses, notice %q", name, b.Losses, b.Notice)
			}
			b.Prefix = "q" // which has lost nothing
			apply(t, s, b)
			if b.Losses != 0 || b.Notice != "" {
				t.Errorf("%s: %d losses, notice %q", name, b.Losses, b.Notice)
			}
		}
	}
}

// Each guard on a store is told of a loss, and once.
func TestEachGuardIsTold(t *testing.T) {
	js := natstest.Start(t).JetStream(t)
	s := natsstore.New(js, bucket)
	var guards []*idem.Guard
	var told [2]atomic.Int32
	do := func(i int, g *idem.Guard) error { // tokens of their own: what is claimed by mistake is given back later
		return g.Group(group).Do(t.Context(), fmt.Sprint("t", i), func(context.Context) error { return nil })
	}
	for i := range told {
		g := idem.New(idem.WithStore(s), idem.WithPrefix("p"), idem.WithHaltOnDataLoss(),
			idem.WithObserver(idem.ObserverFunc(func(e idem.Event) {
				if e.Kind == idem.EventStoreNotice {
					told[i].Add(1)
				}
			})))
		guards = append(guards, g)
		if err := do(i, g); err != nil {
			t.Fatal(err)
		}
	}
	if err := js.DeleteKeyValue(t.Context(), bucket); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		for i, g := range guards {
			if err := do(i, g); !errors.Is(err, idem.ErrDataLoss) {
				t.Errorf("guard %d: %v", i, err)
			}
		}
	}
	for i := range told {
		if n := told[i].Load(); n != 1 {
			t.Errorf("guard %d was told %d times", i, n)
		}
	}
}

// A machine that crashed, and lost the last writes: the bucket is there, and is told to
// have forgotten.
func TestForgetsTheLast(t *testing.T) {
	srv := natstest.Start(t)
	js := srv.JetStream(t)
	s := natsstore.New(js, bucket)
	want(t, s, "p", store.Claimed, op(store.Begin, "t", "c1"))
	rollback := srv.Save()
	want(t, s, "p", store.OK, op(store.Commit, "t", "c1"))
	want(t, s, "p", store.Claimed, op(store.Begin, "u", "c1"))
	rollback()
	b := batch("p", op(store.Renew, "t", "c1"))
	if r := apply(t, s, b)[0]; r.Status != store.OK || !strings.Contains(b.Notice, "handled again") {
		t.Errorf("%+v, notice %q", r, b.Notice)
	}
	if apply(t, s, b); b.Losses != 1 {
		t.Errorf("%d losses, notice %q", b.Losses, b.Notice)
	}
}

// replicating is a connection to a server that says of each bucket that it has three
// replicas: the clocks and the counts of a server that went back are then not taken for
// those of all.
type replicating struct{ net.Conn }

func (c replicating) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	copy(p, bytes.ReplaceAll(p[:n], []byte(`"num_replicas":1`), []byte(`"num_replicas":3`)))
	return n, err
}

type replicatingDialer struct{}

func (replicatingDialer) Dial(network, address string) (net.Conn, error) {
	c, err := net.Dial(network, address)
	return replicating{c}, err
}

// Of a bucket with several replicas the acknowledgement of a write tells it, and that of a proof.
func TestReplicasForgetTheLast(t *testing.T) {
	for claim, status := range map[string]store.Status{"c1": store.OK, "c2": store.Lost} {
		srv := natstest.Start(t)
		s := natsstore.New(srv.JetStream(t, nats.SetCustomDialer(replicatingDialer{})), bucket)
		want(t, s, "p", store.Claimed, op(store.Begin, "t", "c1"))
		rollback := srv.Save()
		for i := range 5 {
			want(t, s, "p", store.Claimed, op(store.Begin, fmt.Sprint("u", i), "c1"))
		}
		rollback()
		b := batch("p", op(store.Renew, "t", claim))
		if r := apply(t, s, b)[0]; r.Status != status || b.Losses != 1 || !strings.Contains(b.Notice, "handled again") {
			t.Errorf("%+v, %d losses, notice %q", r, b.Losses, b.Notice)
		}
		want(t, s, "p", store.Claimed, op(store.Begin, "u4", "c1"))
		if apply(t, s, b); b.Losses != 1 {
			t.Errorf("%d losses, notice %q", b.Losses, b.Notice)
		}
	}
}

// Replicas that can never be are refused; those that await a server are waited for.
func TestReplicasWithoutCluster(t *testing.T) {
	js := natstest.Start(t).JetStream(t)
	refused(t, natsstore.New(js, bucket, natsstore.WithReplicas(3)).Apply(patient(t), batch("p")), false, "cluster", "WithReplicas")
}

// Claims are refused before the bucket is full, so that completions go through; and
// what fills it all the same makes completions wait, each by itself.
func TestFull(t *testing.T) {
	js := natstest.Start(t).JetStream(t)
	ctx := context.Background()
	const limit = 64 << 10
	s := natsstore.New(js, bucket, natsstore.WithMaxBytes(limit))
	var held []string
	for i := 0; ; i++ {
		token := fmt.Sprint("token", i)
		r := apply(t, s, batch("p", op(store.Begin, token, "c1")))[0]
		if r.Err != nil {
			if !errors.Is(r.Err, store.ErrFull) || !strings.Contains(r.Err.Error(), "MaxBytes") {
				t.Fatal(r.Err)
			}
			break
		}
		if held = append(held, token); i > 1000 {
			t.Fatal("the bucket is never full")
		}
	}
	st, err := js.Stream(ctx, "KV_"+bucket)
	if err != nil {
		t.Fatal(err)
	}
	if used := st.CachedInfo().State.Bytes; used < limit/2 || used > limit-limit/32 {
		t.Errorf("claims are refused at %d of %d bytes", used, limit)
	}
	if f, err := s.Verify(ctx, "p"); err != nil || len(f) != 1 || f[0].ID != "nats-kv-full" {
		t.Errorf("%v, %v", f, err)
	}
	if r := apply(t, s, batch("p", op(store.Issue, "i", "")))[0]; !errors.Is(r.Err, store.ErrFull) {
		t.Errorf("%+v", r)
	}
	// The repeat of a Begin whose reply was lost is none.
	for _, s := range []*natsstore.Store{s, natsstore.New(js, bucket)} {
		apply(t, s, batch("p")) // sees that there is no room
		want(t, s, "p", store.Claimed, op(store.Begin, held[0], "c1"))
	}
	// Among them a Release and a Begin of one token: the one is done, the other refused.
	b := batch("p", op(store.Release, held[0], "c1"), op(store.Begin, held[0], "c2"))
	if r := apply(t, s, b); r[0].Status != store.OK || !errors.Is(r[1].Err, store.ErrFull) {
		t.Errorf("%+v", r)
	}
	want(t, s, "p", store.Lost, op(store.Renew, held[0], "c1"))
	for _, token := range held[1:] {
		want(t, s, "p", store.OK, op(store.Commit, token, "c1"))
	}
	for _, k := range []store.Kind{store.Begin, store.Spend} {
		want(t, s, "p", store.Duplicate, op(k, held[1], "c2"))
	}

	// To the brim, by somebody else.
	kv := keyValue(t, js)
	for i, size := 0, 2048; size > 0; i++ {
		if _, err := kv.Put(ctx, fmt.Sprint("other", i), make([]byte, size)); err != nil {
			size /= 2
		}
	}
	large := op(store.Commit, held[0], "c1")
	large.Result = make([]byte, 4096)
	r := apply(t, s, batch("p", large, op(store.Inspect, held[1], "")))
	if !errors.Is(r[0].Err, store.ErrFull) || r[1].Record == nil || r[1].Record.State != store.Done {
		t.Errorf("%+v", r)
	}
	// A smaller value takes the place of a larger one.
	if r := apply(t, s, batch("p", op(store.Forget, held[1], "f1")))[0]; r.Err != nil && !errors.Is(r.Err, store.ErrFull) {
		t.Errorf("%+v", r)
	}
	names, err := kv.Keys(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range names {
		if strings.HasPrefix(k, "other") {
			if err := kv.Purge(ctx, k); err != nil && !strings.Contains(err.Error(), "maximum") {
				t.Fatal(err)
			}
		}
	}
	cfg := st.CachedInfo().Config
	cfg.MaxBytes = 2 * limit
	if _, err := js.UpdateStream(ctx, cfg); err != nil {
		t.Fatal(err)
	}
	want(t, s, "p", store.OK, large)
	apply(t, s, batch("p")) // sees the room
	want(t, s, "p", store.Claimed, op(store.Begin, "new", "c1"))
}

func TestTooLarge(t *testing.T) {
	srv := natstest.Start(t, func(o *server.Options) { o.MaxPayload = 32 << 10 })
	s := natsstore.New(srv.JetStream(t), bucket)
	want(t, s, "p", store.Claimed, op(store.Begin, "t", "c1"))
	large := op(store.Commit, "t", "c1")
	large.Result = make([]byte, 40<<10)
	r := apply(t, s, batch("p", large, op(store.Begin, "u", "c1")))
	tooLarge(t, r[0].Err, "max_payload", "32768", "40960")
	if r[1].Status != store.Claimed {
		t.Errorf("%+v", r)
	}
	want(t, s, "p", store.OK, op(store.Renew, "t", "c1"))
	// What is small is done, beside it and before it, with the token as well.
	b := batch("p", op(store.Inspect, "t", ""), large, op(store.Release, "t", "c1"), op(store.Begin, "t", "c2"))
	r = apply(t, s, b)
	tooLarge(t, r[1].Err, "max_payload")
	if r[0].Record == nil || r[2].Status != store.OK || r[3].Status != store.Claimed {
		t.Errorf("%+v", r)
	}
	large.Claim, large.Result = "c2", make([]byte, 16<<10)
	want(t, s, "p", store.OK, large)
}

// tooLarge wants an error that is final, and says some words.
func tooLarge(t *testing.T, err error, words ...string) {
	t.Helper()
	if errors.Is(err, store.ErrFull) {
		t.Fatalf("%v: this is waited for", err)
	}
	refused(t, err, false, append(words, "larger", "smaller")...)
}

// The bucket's own limit, also for names; and a bucket that is too small as a whole.
func TestTooLargeForTheBucket(t *testing.T) {
	js := natstest.Start(t).JetStream(t)
	if _, err := js.CreateStream(context.Background(), jetstream.StreamConfig{
		Name: "KV_" + bucket, Subjects: []string{"$KV." + bucket + ".>"}, MaxMsgsPerSubject: 1, MaxMsgSize: 8 << 10,
		Discard: jetstream.DiscardNew, AllowMsgTTL: true, AllowRollup: true, AllowDirect: true,
	}); err != nil {
		t.Fatal(err)
	}
	s := natsstore.New(js, bucket)
	b := batch("p", op(store.Begin, "t", "c1"), op(store.Begin, "u", "c1"))
	b.Owner = strings.Repeat("pod", 3000)
	for _, r := range apply(t, s, b) {
		tooLarge(t, r.Err, "--max-value-size", "8192", "names")
	}
	want(t, s, "p", store.Claimed, op(store.Begin, "t", "c1"))
	large := op(store.Commit, "t", "c1")
	large.Result = make([]byte, 8000)
	for range 2 { // as remembered, and as read
		tooLarge(t, apply(t, s, batch("p", large))[0].Err, "--max-value-size", "8192", "8000")
	}
	want(t, s, "p", store.OK, op(store.Commit, "t", "c1"))

	small := natsstore.New(js, "small", natsstore.WithMaxBytes(8<<10))
	want(t, small, "p", store.Claimed, op(store.Begin, "t", "c1"))
	tooLarge(t, apply(t, small, batch("p", large))[0].Err, "MaxBytes", "8192")
}

func TestWithoutJetStream(t *testing.T) {
	srv := natstest.Start(t, func(o *server.Options) { o.JetStream = false })
	s := natsstore.New(srv.JetStream(t), bucket)
	refused(t, s.Apply(within(t, 3*time.Second), batch("p")), true, "JetStream is not enabled")
	_, err := s.Verify(within(t, 3*time.Second), "p")
	refused(t, err, true, "JetStream is not enabled")

	// Enabled, but not for the account.
	acc := server.NewAccount("A")
	srv = natstest.Start(t, func(o *server.Options) {
		o.Accounts = []*server.Account{acc}
		o.Users = []*server.User{{Username: "u", Password: "p", Account: acc}}
	})
	s = natsstore.New(srv.JetStream(t, nats.UserInfo("u", "p")), bucket)
	err = s.Apply(within(t, 3*time.Second), batch("p"))
	if err == nil || !strings.Contains(err.Error(), "JetStream") && !strings.Contains(err.Error(), "jetstream") {
		t.Errorf("%v", err)
	}
}

// least is what the package's documentation lists, for one prefix pattern.
func least(create bool, prefix string) *server.Permissions {
	p := &server.Permissions{
		Publish: &server.SubjectPermission{Allow: []string{
			"$JS.API.STREAM.INFO.KV_" + bucket, "$JS.API.STREAM.MSG.GET.KV_" + bucket, "$KV." + bucket + "." + prefix + ".>",
		}},
		Subscribe: &server.SubjectPermission{Allow: []string{"_INBOX.>"}},
	}
	if create {
		p.Publish.Allow = append(p.Publish.Allow, "$JS.API.STREAM.CREATE.KV_"+bucket)
	}
	return p
}

// The users of a server or a cluster with rights.
var (
	admin = nats.UserInfo("admin", "p")
	asU   = nats.UserInfo("u", "p")
)

func withUsers(users ...*server.User) func(*server.Options) {
	return func(o *server.Options) {
		o.Users = append([]*server.User{{Username: "admin", Password: "p"}}, users...)
	}
}

// The suite with a user who may do what the documentation lists, and no more.
func TestLeastRights(t *testing.T) {
	t.Parallel()
	srv := natstest.Start(t, withUsers(&server.User{Username: "u", Password: "p", Permissions: least(true, "*")}))
	h := harness(srv.JetStream(t, admin), unit) // corrupts, and waits
	h.Open = func(testing.TB) store.Store { return natsstore.New(srv.JetStream(t, asU), bucket) }
	storetest.Run(t, h)
}

// Each right that is missing is named, by Apply and by Verify.
func TestMissingRights(t *testing.T) {
	without := func(subject string) *server.Permissions {
		p := least(true, "p")
		kept := p.Publish.Allow[:0:0]
		for _, s := range p.Publish.Allow {
			if s != subject {
				kept = append(kept, s)
			}
		}
		p.Publish.Allow = kept
		return p
	}
	subjects := map[string]string{
		"info":   "$JS.API.STREAM.INFO.KV_" + bucket,
		"get":    "$JS.API.STREAM.MSG.GET.KV_" + bucket,
		"put":    "$KV." + bucket + ".p.>",
		"create": "$JS.API.STREAM.CREATE.KV_" + bucket,
	}
	var users []*server.User
	for name, s := range subjects {
		users = append(users, &server.User{Username: name, Password: "p", Permissions: without(s)})
	}
	noInbox := least(true, "p")
	noInbox.Subscribe.Allow = []string{"elsewhere.>"}
	users = append(users, &server.User{Username: "inbox", Password: "p", Permissions: noInbox})
	srv := natstest.Start(t, withUsers(users...))
	quiet := nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {})
	tryAs := func(name, word string) {
		t.Helper()
		js := srv.JetStream(t, nats.UserInfo(name, "p"), quiet)
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		refused(t, natsstore.New(js, bucket).Apply(ctx, batch("p", op(store.Begin, "t", "c1"))), false, word, "allow the user")
		if name == "create" {
			return
		}
		ctx, cancel = context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err := natsstore.New(js, bucket).Verify(ctx, "p")
		refused(t, err, false, word, "allow the user")
	}
	tryAs("create", "STREAM.CREATE")
	want(t, natsstore.New(srv.JetStream(t, admin), bucket), "p", store.Claimed, op(store.Begin, "x", "c"))
	tryAs("info", "STREAM.INFO")
	tryAs("get", "STREAM.MSG.GET")
	tryAs("put", "$KV."+bucket+".p.")
	tryAs("inbox", "Subscription")
}

// Settings that would lose records, or admit none, are refused with the cure; others
// are findings.
func TestBucketSettings(t *testing.T) {
	js := natstest.Start(t).JetStream(t)
	ctx := context.Background()
	usual := func() jetstream.StreamConfig {
		return jetstream.StreamConfig{
			Name: "KV_" + bucket, Subjects: []string{"$KV." + bucket + ".>"}, MaxMsgsPerSubject: 1,
			Discard: jetstream.DiscardNew, AllowMsgTTL: true, AllowRollup: true, AllowDirect: true,
		}
	}
	for word, change := range map[string]func(*jetstream.StreamConfig){
		"--allow-msg-ttl":            func(c *jetstream.StreamConfig) { c.AllowMsgTTL = false },
		"--max-msgs-per-subject=1":   func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 5 },
		"--max-age=0":                func(c *jetstream.StreamConfig) { c.MaxAge = time.Hour },
		"--discard=new":              func(c *jetstream.StreamConfig) { c.Discard = jetstream.DiscardOld },
		"--no-discard-per-subject":   func(c *jetstream.StreamConfig) { c.DiscardNewPerSubject = true },
		"--ack":                      func(c *jetstream.StreamConfig) { c.NoAck = true },
		"retention policy":           func(c *jetstream.StreamConfig) { c.Retention = jetstream.InterestPolicy },
		"is a stream of the subject": func(c *jetstream.StreamConfig) { c.Subjects = []string{"$KV." + bucket + ".p.>"} },
		"is a mirror":                func(c *jetstream.StreamConfig) { c.Subjects, c.Mirror = nil, &jetstream.StreamSource{Name: "X"} },
		"from other buckets":         func(c *jetstream.StreamConfig) { c.Sources = []*jetstream.StreamSource{{Name: "X"}} },
		"larger than 4095 bytes":     func(c *jetstream.StreamConfig) { c.MaxMsgSize = 4095 },
		"nats-kv-value-size":         func(c *jetstream.StreamConfig) { c.MaxMsgSize = 4096 },
		"nats-kv-memory":             func(c *jetstream.StreamConfig) { c.Storage = jetstream.MemoryStorage },
		"nats-kv-async":              func(c *jetstream.StreamConfig) { c.PersistMode = jetstream.AsyncPersistMode },
		"":                           func(*jetstream.StreamConfig) {},
	} {
		c := usual()
		change(&c)
		testenv.Await(t, word+": the server to have removed the bucket before", func() bool {
			_, err := js.CreateStream(ctx, c)
			return err == nil
		})
		s := natsstore.New(js, bucket)
		findings, err := s.Verify(ctx, "p")
		switch {
		case strings.HasPrefix(word, "nats-kv-"):
			if err != nil || len(findings) != 1 || findings[0].ID != word {
				t.Errorf("%s: %v, %v", word, findings, err)
			}
		case word == "":
			if err != nil || len(findings) != 0 {
				t.Errorf("a bucket as it should be: %v, %v", findings, err)
			}
		default:
			refused(t, err, false, word)
			if c.AllowMsgTTL && c.MaxMsgSize == 0 && strings.Contains(err.Error(), "stream edit") { // others may use it
				refused(t, err, false, "a bucket of its own", "if nothing else uses")
			}
			refused(t, s.Apply(ctx, batch("p")), false, word)
		}
		if err := js.DeleteStream(ctx, c.Name); err != nil {
			t.Fatal(err)
		}
	}
	if f, err := natsstore.New(js, bucket).Verify(ctx, "p"); err != nil || len(f) != 0 {
		t.Errorf("a bucket that is made at first use: %v, %v", f, err)
	}
	_, err := natsstore.New(js, bucket, natsstore.WithoutCreate()).Verify(ctx, "p")
	refused(t, err, false, "does not exist", "without WithoutCreate", "nats stream add KV_"+bucket, "--allow-msg-ttl")
	if strings.Contains(err.Error(), "marker") {
		t.Errorf("%v", err)
	}
}

// Options that were given, and that the bucket does not follow, are found.
func TestOptionsOfAnotherBucket(t *testing.T) {
	js := natstest.Start(t).JetStream(t)
	ctx := context.Background()
	apply(t, natsstore.New(js, bucket, natsstore.WithMaxBytes(1<<20)), batch("p"))
	for words, opt := range map[string]natsstore.Option{
		"":                             natsstore.WithMaxBytes(1 << 20),
		"1048576 2097152 WithMaxBytes": natsstore.WithMaxBytes(2 << 20),
		"1048576 WithMaxBytes(0)":      natsstore.WithMaxBytes(0),
		"file memory WithStorage":      natsstore.WithStorage(jetstream.MemoryStorage),
	} {
		f, err := natsstore.New(js, bucket, opt).Verify(ctx, "p")
		if words == "" {
			if err != nil || len(f) != 0 {
				t.Errorf("%v, %v", f, err)
			}
			continue
		}
		if err != nil || len(f) != 1 || f[0].ID != "nats-kv-options" {
			t.Errorf("%s: %v, %v", words, f, err)
			continue
		}
		for w := range strings.FieldsSeq(words) {
			if !strings.Contains(strings.ToLower(f[0].String()), strings.ToLower(w)) {
				t.Errorf("%s\n\tsays nothing of %s", f[0], w)
			}
		}
	}
	if f, err := natsstore.New(js, bucket).Verify(ctx, "p"); err != nil || len(f) != 0 {
		t.Errorf("no options: %v, %v", f, err)
	}
}

// A server that takes small messages only.
func TestSmallPayload(t *testing.T) {
	for size, id := range map[int32]string{64 << 10: "", 32 << 10: "nats-kv-value-size", 2 << 10: "error"} {
		srv := natstest.Start(t, func(o *server.Options) { o.MaxPayload = size })
		f, err := natsstore.New(srv.JetStream(t), bucket).Verify(context.Background(), "p")
		switch id {
		case "error":
			refused(t, err, false, "max_payload", "2048")
		case "":
			if err != nil || len(f) != 0 {
				t.Errorf("%v, %v", f, err)
			}
		default:
			if err != nil || len(f) != 1 || f[0].ID != id || !strings.Contains(f[0].Cure, "max_payload") {
				t.Errorf("%v, %v", f, err)
			}
		}
	}
}

// The descriptor of a newer version, or of something else, stops the store.
func TestDescriptor(t *testing.T) {
	js := natstest.Start(t).JetStream(t)
	ctx := context.Background()
	apply(t, natsstore.New(js, bucket), batch("p"))
	for value, sentinel := range map[string]error{
		`{"v":2,"layout":"records"}`: store.ErrNewer,
		`{"v":1,"layout":"other"}`:   store.ErrNewer,
		`garbage`:                    store.ErrUnreadable,
		`{"v":0,"layout":"records"}`: store.ErrUnreadable,
	} {
		if _, err := keyValue(t, js).PutString(ctx, "p.descriptor", value); err != nil {
			t.Fatal(err)
		}
		err := natsstore.New(js, bucket).Apply(ctx, batch("p"))
		_, verify := natsstore.New(js, bucket).Verify(ctx, "p")
		for _, err := range []error{err, verify} {
			if !errors.Is(err, sentinel) || errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "p.descriptor") {
				t.Errorf("%s: %v", value, err)
			}
		}
	}
}

// What is remembered of a record says nothing of the time: a lease that has run out
// meanwhile admits a redrive of another payload, also where the batch goes on with an
// operation that takes effect whatever the time.
func TestRememberedRecordIsNoClock(t *testing.T) {
	js := natstest.Start(t).JetStream(t)
	s := natsstore.New(js, bucket)
	first := batch("p", store.Op{Kind: store.Begin, Group: group, Token: "t", Claim: "c1", Fingerprint: "x"})
	first.Lease = unit
	apply(t, s, first)
	waitFor(t, js, 2*unit)
	second := batch("p",
		store.Op{Kind: store.Begin, Group: group, Token: "t", Claim: "c2", Fingerprint: "y", Redrive: 3},
		store.Op{Kind: store.Commit, Group: group, Token: "t", Claim: "c1", Attempt: 1})
	apply(t, s, second)
	if first, last := second.Replies[0].Status, second.Replies[1].Status; first != store.Claimed || last != store.Lost {
		t.Errorf("answered %v and %v, want Claimed and Lost", first, last)
	}
}
