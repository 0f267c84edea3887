package natstest

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/idemq/idemq/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestRestart: what was published is there after a restart, on the same port.
func TestRestart(t *testing.T) {
	s := Start(t)
	js := s.JetStream(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}, Storage: jetstream.FileStorage}); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(ctx, "s.1", []byte("a")); err != nil {
		t.Fatal(err)
	}
	url := s.URL()
	s.Restart()
	if s.URL() != url {
		t.Errorf("%s after a restart, %s before", s.URL(), url)
	}
	st, err := s.JetStream(t).Stream(ctx, "S")
	if err != nil {
		t.Fatal(err)
	}
	if n := st.CachedInfo().State.Msgs; n != 1 {
		t.Errorf("%d messages after a restart, want 1", n)
	}
}

// TestSave: what was published since is forgotten, and no more.
func TestSave(t *testing.T) {
	s := Start(t)
	js := s.JetStream(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(ctx, "s.1", []byte("a")); err != nil {
		t.Fatal(err)
	}
	rollback := s.Save()
	if _, err := s.JetStream(t).Publish(ctx, "s.2", []byte("b")); err != nil {
		t.Fatal(err)
	}
	rollback()
	st, err := s.JetStream(t).Stream(ctx, "S")
	if err != nil {
		t.Fatal(err)
	}
	if n := st.CachedInfo().State.Msgs; n != 1 {
		t.Errorf("%d messages, want 1", n)
	}
}

// TestCluster: a stream of three replicas goes on when its leader is stopped, and the
// leader comes back.
func TestCluster(t *testing.T) {
	c := StartCluster(t, 3)
	js := c.JetStream(t)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}, Replicas: 3}); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(ctx, "s.1", []byte("a")); err != nil {
		t.Fatal(err)
	}
	leader := c.Leader("S")
	if leader == nil {
		t.Fatal("the stream has no leader")
	}
	leader.Stop()
	testenv.Await(t, "another leader", func() bool { return c.Leader("S") != nil })
	testenv.Await(t, "a write", func() bool {
		_, err := js.Publish(ctx, "s.2", []byte("b"))
		return err == nil
	})
	leader.Restart()
	c.Await()
	st, err := js.Stream(ctx, "S")
	if err != nil {
		t.Fatal(err)
	}
	if n := st.CachedInfo().State.Msgs; n < 2 {
		t.Errorf("%d messages, want 2", n)
	}
}
