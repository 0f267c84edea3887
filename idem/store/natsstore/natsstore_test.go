package natsstore_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/natsstore"
	"github.com/idemq/idemq/internal/natstest"
	"github.com/idemq/idemq/internal/testenv"
)

const group = "g"

func batch(prefix string, ops ...store.Op) *store.Batch {
	return &store.Batch{
		Prefix: prefix, Lease: time.Minute, Retention: time.Hour, CheckWithin: time.Minute, Ops: ops,
	}
}

func op(k store.Kind, token, claim string) store.Op {
	return store.Op{Kind: k, Group: group, Token: token, Claim: claim, Attempt: 1}
}

// apply executes operations and returns the replies.
func apply(t testing.TB, s store.Store, b *store.Batch) []store.Reply {
	t.Helper()
	if err := s.Apply(context.Background(), b); err != nil {
		t.Fatal(err)
	}
	return b.Replies
}

// want executes one operation.
func want(t testing.TB, s store.Store, prefix string, status store.Status, o store.Op) store.Reply {
	t.Helper()
	r := apply(t, s, batch(prefix, o))[0]
	if r.Err != nil || r.Status != status {
		t.Fatalf("kind %d of %q was answered %d, %v; want %d", o.Kind, o.Token, r.Status, r.Err, status)
	}
	return r
}

// brief is a context that a call without an answer ends with.
func brief(t testing.TB) context.Context { return within(t, 500*time.Millisecond) }

// patient is where an answer is to come.
func patient(t testing.TB) context.Context { return within(t, 10*time.Second) }

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func keyValue(t testing.TB, js jetstream.JetStream) jetstream.KeyValue {
	t.Helper()
	kv, err := js.KeyValue(context.Background(), bucket)
	if err != nil {
		t.Fatal(err)
	}
	return kv
}

func TestSettings(t *testing.T) {
	js := natstest.Start(t).JetStream(t)
	typed := reflect.Zero(reflect.TypeOf(js)).Interface().(jetstream.JetStream)
	for _, tt := range []struct {
		s    *natsstore.Store
		word string
	}{
		{natsstore.New(nil, bucket), "js is nil"},
		{natsstore.New(typed, bucket), "js is nil"},
		{natsstore.New(js, "a.b"), `"a.b"`},
		{natsstore.New(js, ""), `""`},
		{natsstore.New(js, bucket, natsstore.WithReplicas(0)), "WithReplicas(0)"},
		{natsstore.New(js, bucket, natsstore.WithReplicas(6)), "WithReplicas(6)"},
		{natsstore.New(js, bucket, natsstore.WithMaxBytes(-1)), "WithMaxBytes(-1)"},
		{natsstore.New(js, bucket, natsstore.WithStorage(7)), "WithStorage"},
		{natsstore.New(js, "a b", natsstore.WithReplicas(6)), "WithReplicas(6)"},
	} {
		_, incarnation := tt.s.Incarnation(context.Background(), "p", "n")
		_, verify := tt.s.Verify(context.Background(), "p")
		for call, err := range map[string]error{"Apply": tt.s.Apply(context.Background(), batch("p")), "Incarnation": incarnation, "Verify": verify} {
			if err == nil || !strings.Contains(err.Error(), tt.word) || errors.Is(err, store.ErrUnavailable) {
				t.Errorf("%s with %s: %v", call, tt.word, err)
			}
		}
	}
}

func TestUnknownKind(t *testing.T) {
	js := natstest.Start(t).JetStream(t)
	err := natsstore.New(js, bucket).Apply(context.Background(), batch("p", op(99, "t", "c")))
	if err == nil || !strings.Contains(err.Error(), "kind 99") {
		t.Errorf("%v", err)
	}
}

// What a person sees with the nats tool, and that nothing of it depends on a clock but
// the server's.
func TestReadable(t *testing.T) {
	js := natstest.Start(t).JetStream(t)
	s := natsstore.New(js, bucket)
	token := "0b9c7e5e-8f0e-4c1b-9f43-0d3c2f6f7a11"
	b := batch("my_app", store.Op{Kind: store.Begin, Group: "orders", Token: token, Claim: "c1"})
	b.Owner, b.Incarnation = "pod 1", 7
	apply(t, s, b)
	e, err := keyValue(t, js).Get(context.Background(), "my_app.record.orders."+token)
	if err != nil {
		t.Fatal(err)
	}
	const running = `{"v":1,"state":"in progress","claim":"c1","attempt":1,"lease":"1m0s","owner":"pod%201","incarnation":7,"keep":"1h1m0s"}`
	if string(e.Value()) != running {
		t.Errorf("the record is\n\t%s, want\n\t%s", e.Value(), running)
	}
	want(t, s, "my_app", store.OK, store.Op{Kind: store.Issue, Token: "a.b", Group: "x"})
	e, err = keyValue(t, js).Get(context.Background(), "my_app.issued.a=2Eb")
	if err != nil {
		t.Fatal(err)
	}
	if issued := `{"v":1,"state":"issued","check_within":"1m0s","keep":"1m0s"}`; string(e.Value()) != issued {
		t.Errorf("the registration is\n\t%s, want\n\t%s", e.Value(), issued)
	}
}

// What the server keeps goes by itself, not before its time and not much later.
func TestExpiry(t *testing.T) {
	js := natstest.Start(t).JetStream(t)
	s := natsstore.New(js, bucket)
	b := batch("p", op(store.Begin, "t", "c"))
	b.Retention, b.Lease = 90*time.Minute, 500*time.Millisecond
	apply(t, s, b)
	st, err := js.Stream(context.Background(), "KV_"+bucket)
	if err != nil {
		t.Fatal(err)
	}
	m, err := st.GetLastMsgForSubject(context.Background(), "$KV."+bucket+"."+natsstore.RecordKey("p", group, "t"))
	if err != nil {
		t.Fatal(err)
	}
	// 5,400.5 s, rounded up, and five seconds for clocks that differ.
	if ttl := m.Header.Get("Nats-TTL"); ttl != "5406" {
		t.Errorf("the record's TTL is %q", ttl)
	}
	if id := m.Header.Get("Nats-Msg-Id"); id != "" {
		t.Errorf("the write has the message id %q, which the server takes for a duplicate when it is repeated", id)
	}
	b.Retention = 1<<63 - 1 // an expiry for ever is no overflow
	b.Ops = []store.Op{op(store.Begin, "u", "c"), op(store.Commit, "u", "c")}
	apply(t, s, b)
	want(t, s, "p", store.Duplicate, op(store.Begin, "u", "d"))
}

// A key that was deleted by hand, with its marker, is as if it had never been.
func TestDeletedByHand(t *testing.T) {
	js := natstest.Start(t).JetStream(t)
	ctx := context.Background()
	s, other := natsstore.New(js, bucket), natsstore.New(js, bucket)
	want(t, s, "p", store.Claimed, op(store.Begin, "t", "c1"))
	for _, remove := range []func(context.Context, string, ...jetstream.KVDeleteOpt) error{keyValue(t, js).Delete, keyValue(t, js).Purge} {
		if err := remove(ctx, natsstore.RecordKey("p", group, "t")); err != nil {
			t.Fatal(err)
		}
		if r := want(t, other, "p", store.OK, op(store.Inspect, "t", "")); r.Record.State != store.Absent {
			t.Errorf("%+v", r.Record)
		}
		want(t, other, "p", store.Claimed, op(store.Begin, "t", "c2"))
		want(t, s, "p", store.InProgress, op(store.Begin, "t", "c3"))
	}
}

// In a bucket of the client's own making the server leaves a marker where a key has
// expired: that is as if the key had never been.
func TestMarkers(t *testing.T) {
	t.Parallel()
	js := natstest.Start(t).JetStream(t)
	ctx := context.Background()
	if _, err := js.CreateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: bucket, LimitMarkerTTL: time.Hour}); err != nil {
		t.Fatal(err)
	}
	s := natsstore.New(js, bucket, natsstore.WithoutCreate())
	b := batch("p", op(store.Begin, "t", "c1"), op(store.Commit, "t", "c1"))
	b.Retention = time.Millisecond
	apply(t, s, b)
	st, err := js.Stream(ctx, "KV_"+bucket)
	if err != nil {
		t.Fatal(err)
	}
	testenv.Await(t, "the marker", func() bool {
		m, err := st.GetLastMsgForSubject(ctx, "$KV."+bucket+"."+natsstore.RecordKey("p", group, "t"))
		return err == nil && m.Header.Get(jetstream.MarkerReasonHeader) != ""
	})
	if r := want(t, s, "p", store.OK, op(store.Inspect, "t", "")).Record; r.State != store.Absent {
		t.Errorf("%+v", r)
	}
	if r := want(t, s, "p", store.Claimed, op(store.Begin, "t", "c2")); r.Attempt != 1 {
		t.Errorf("%+v", r)
	}
}

// From a leaf node with a JetStream of its own, to the hub's domain: keys are published
// through the domain's mapping, or they would end in the leaf.
func TestDomain(t *testing.T) {
	hub := natstest.Start(t, func(o *server.Options) {
		o.JetStreamDomain = "hub"
		o.LeafNode.Host, o.LeafNode.Port = "127.0.0.1", server.RANDOM_PORT
	})
	v, err := hub.Server().Varz(nil)
	if err != nil {
		t.Fatal(err)
	}
	at, err := url.Parse(fmt.Sprintf("nats://127.0.0.1:%d", v.LeafNode.Port))
	if err != nil {
		t.Fatal(err)
	}
	leaf := natstest.Start(t, func(o *server.Options) {
		o.JetStreamDomain = "leaf"
		o.LeafNode.Remotes = []*server.RemoteLeafOpts{{URLs: []*url.URL{at}}}
	})
	testenv.Await(t, "the leaf's connection", func() bool { return leaf.Server().NumLeafNodes() == 1 })
	nc := leaf.Connect(t)
	for name, open := range map[string]func() (jetstream.JetStream, error){
		"domain": func() (jetstream.JetStream, error) { return jetstream.NewWithDomain(nc, "hub") },
		"prefix": func() (jetstream.JetStream, error) { return jetstream.NewWithAPIPrefix(nc, "$JS.hub.API") },
	} {
		js, err := open()
		if err != nil {
			t.Fatal(err)
		}
		s := natsstore.New(js, bucket)
		want(t, s, name, store.Claimed, op(store.Begin, "t", "c1"))
		want(t, s, name, store.OK, op(store.Commit, "t", "c1"))
		want(t, s, name, store.Duplicate, op(store.Begin, "t", "c2"))
		want(t, natsstore.New(hub.JetStream(t), bucket), name, store.Duplicate, op(store.Begin, "t", "c2"))
		if _, err := s.Verify(context.Background(), name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// spy counts what a client sends, by what it asks.
func spy(t *testing.T, srv *natstest.Server) (counts func() map[string]int) {
	t.Helper()
	nc := srv.Connect(t)
	sub, err := nc.SubscribeSync(">")
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	return func() map[string]int {
		if err := nc.Flush(); err != nil {
			t.Fatal(err)
		}
		n := map[string]int{}
		for {
			m, err := sub.NextMsg(20 * time.Millisecond)
			if errors.Is(err, nats.ErrTimeout) {
				return n
			}
			if err != nil {
				t.Fatal(err)
			}
			switch s := m.Subject; {
			case strings.HasPrefix(s, "$KV."):
				n["put"]++
			case strings.HasPrefix(s, "$JS.API.STREAM.INFO."):
				n["info"]++
			case strings.HasPrefix(s, "$JS.API.STREAM.MSG.GET."):
				n["get"]++
			case strings.HasPrefix(s, "$JS.API."):
				n["other"]++
			}
		}
	}
}

// How many requests a batch is. Those of a line are sent together.
func TestRequests(t *testing.T) {
	srv := natstest.Start(t)
	js := srv.JetStream(t)
	s, other := natsstore.New(js, bucket), natsstore.New(js, bucket)
	const n = 100
	each := func(k store.Kind, claim string) *store.Batch {
		b := batch("p")
		for i := range n {
			b.Ops = append(b.Ops, op(k, fmt.Sprint("token", i), claim))
		}
		return b
	}
	apply(t, s, batch("p"))
	apply(t, other, batch("p"))
	counts := spy(t, srv)
	for _, tt := range []struct {
		what           string
		s              store.Store
		b              *store.Batch
		status         store.Status
		put, get, info int
	}{
		{"fresh claims", s, each(store.Begin, "c1"), store.Claimed, n, 0, 1},
		{"renewals of own claims", s, each(store.Renew, "c1"), store.OK, n, 0, 1},
		{"releases of own claims", s, each(store.Release, "c1"), store.OK, n, 0, 1},
		{"claims of what was released here", s, each(store.Begin, "c2"), store.Claimed, n, 0, 1},
		{"claims of what is claimed elsewhere", other, each(store.Begin, "d1"), store.InProgress, n, n, 2}, // write, read
		{"completions of own claims", s, each(store.Commit, "c2"), store.OK, n, 0, 1},
		{"completed elsewhere", other, each(store.Begin, "d2"), store.Duplicate, n, n, 2}, // write, read
		{"inspections", other, each(store.Inspect, ""), store.OK, 0, 2 * n, 1},            // and the registrations
		{"nothing", s, batch("p"), store.OK, 0, 0, 1},
	} {
		for i, r := range apply(t, tt.s, tt.b) {
			if r.Status != tt.status || r.Err != nil {
				t.Fatalf("%s: reply %d: %+v", tt.what, i, r)
			}
		}
		got := counts()
		if got["put"] != tt.put || got["get"] != tt.get || got["info"] != tt.info || got["other"] != 0 {
			t.Errorf("%s: %v, want %d writes, %d reads and %d questions for the time", tt.what, got, tt.put, tt.get, tt.info)
		}
	}
}

// Two processes that change the same records all the time: nothing is counted twice, or
// not at all.
func TestRaces(t *testing.T) {
	js := natstest.Start(t).JetStream(t)
	const rounds, tokens = 60, 4
	done := make(chan error)
	for p := range 2 {
		s := natsstore.New(js, bucket)
		go func() {
			for i := range rounds {
				b := batch("p")
				for token := range tokens {
					claim := fmt.Sprintf("p%dr%d", p, i)
					b.Ops = append(b.Ops, op(store.Begin, fmt.Sprint(token), claim), op(store.Release, fmt.Sprint(token), claim))
				}
				if err := s.Apply(context.Background(), b); err != nil {
					done <- err
					return
				}
				for j, r := range b.Replies {
					if r.Err != nil || r.Status != store.Claimed && r.Status != store.OK {
						done <- fmt.Errorf("reply %d: %+v", j, r)
						return
					}
				}
			}
			done <- nil
		}()
	}
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	s := natsstore.New(js, bucket)
	for token := range tokens {
		r := want(t, s, "p", store.OK, op(store.Inspect, fmt.Sprint(token), ""))
		if r.Record.Attempt != 2*rounds {
			t.Errorf("token %d was started %d times, want %d", token, r.Record.Attempt, 2*rounds)
		}
	}
}

// The claim of another process under one's own memory: what is remembered decides
// nothing.
func TestStaleMemory(t *testing.T) {
	js := natstest.Start(t).JetStream(t)
	s, other := natsstore.New(js, bucket), natsstore.New(js, bucket)
	b := batch("p", op(store.Begin, "t", "c1"))
	b.Lease = time.Millisecond
	apply(t, s, b)
	waitFor(t, js, 2*time.Millisecond)
	if r := want(t, other, "p", store.Claimed, op(store.Begin, "t", "d1")); r.Attempt != 2 || r.Expiries != 1 {
		t.Fatalf("%+v", r)
	}
	for _, k := range []store.Kind{store.Renew, store.Release, store.Commit, store.Bury} {
		want(t, s, "p", store.Lost, op(k, "t", "c1"))
	}
	want(t, other, "p", store.OK, op(store.Commit, "t", "d1"))
	want(t, s, "p", store.Duplicate, op(store.Begin, "t", "c1"))

	// An answer that changes nothing, and would be right by what is remembered.
	want(t, s, "p", store.Claimed, op(store.Begin, "u", "c1"))
	want(t, s, "p", store.OK, op(store.Release, "u", "c1"))
	want(t, other, "p", store.Claimed, op(store.Begin, "u", "d1"))
	want(t, s, "p", store.Lost, op(store.Release, "u", "c1"))
	want(t, s, "p", store.Claimed, op(store.Begin, "v", "c1"))
	if err := keyValue(t, js).Delete(context.Background(), natsstore.RecordKey("p", group, "v")); err != nil {
		t.Fatal(err)
	}
	want(t, s, "p", store.OK, op(store.Commit, "v", "c0"))
}

func TestIncarnationAfterLoss(t *testing.T) {
	js := natstest.Start(t).JetStream(t)
	ctx := context.Background()
	s := natsstore.New(js, bucket)
	first, err := s.Incarnation(ctx, "p", "pod")
	if err != nil {
		t.Fatal(err)
	}
	if err := js.DeleteKeyValue(ctx, bucket); err != nil {
		t.Fatal(err)
	}
	second, err := s.Incarnation(ctx, "p", "pod")
	if err != nil || second <= first {
		t.Fatalf("%d after %d, %v", second, first, err)
	}
	key := "p.incarnation." + rand.Text()
	if _, err := keyValue(t, js).PutString(ctx, key, "garbage"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Incarnation(ctx, "p", strings.TrimPrefix(key, "p.incarnation.")); !errors.Is(err, store.ErrUnreadable) || errors.Is(err, store.ErrUnavailable) {
		t.Errorf("%v", err)
	}
}
