// Package natstest runs real NATS servers with JetStream inside the test process.
// Nothing of them is left after a test, so goleak needs no exceptions.
package natstest

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/idemq/idemq/internal/child"
)

const (
	startTimeout   = 30 * time.Second
	connectTimeout = 5 * time.Second
)

// Server is a NATS server with JetStream, of one test. Its methods are called from
// the test's own goroutine; they end the test when the server does not do what it is
// told.
type Server struct {
	tb   testing.TB
	dir  string
	port int
	edit []func(*server.Options)
	srv  *server.Server
}

// Start runs a server on a free port of 127.0.0.1, with file storage in a folder of
// its own. It is gone, its goroutines included, when the test ends. Each edit may
// change the server's options before it starts, and before each Restart.
func Start(tb testing.TB, edit ...func(*server.Options)) *Server {
	tb.Helper()
	// Not tb.TempDir: the folder goes only after the server has let go of it.
	dir, err := os.MkdirTemp("", "natstest")
	if err != nil {
		tb.Fatal(err)
	}
	s := &Server{tb: tb, dir: dir, port: child.FreePort(tb), edit: edit}
	tb.Cleanup(func() {
		s.Stop()
		_ = os.RemoveAll(dir)
	})
	s.run()
	return s
}

func (s *Server) run() {
	s.tb.Helper()
	o := &server.Options{
		Host: "127.0.0.1", Port: s.port, JetStream: true, StoreDir: filepath.Join(s.dir, "js"),
		NoLog: true, NoSigs: true,
	}
	for _, e := range s.edit {
		e(o)
	}
	srv, err := server.NewServer(o)
	if err != nil {
		s.tb.Fatalf("nats-server: %v", err)
	}
	go srv.Start()
	if !srv.ReadyForConnections(startTimeout) {
		srv.Shutdown()
		s.tb.Fatalf("nats-server: not ready within %v", startTimeout)
	}
	s.srv = srv
}

// URL is where clients connect.
func (s *Server) URL() string { return fmt.Sprintf("nats://127.0.0.1:%d", s.port) }

// Server is the server itself, nil after Stop.
func (s *Server) Server() *server.Server { return s.srv }

// Stop ends the server and waits until it has gone. Its data stay for Restart.
func (s *Server) Stop() {
	if s.srv != nil {
		s.srv.Shutdown()
		s.srv.WaitForShutdown()
		s.srv = nil
	}
}

// Restart stops the server, if it runs, and starts it again with the same port and
// data.
func (s *Server) Restart() {
	s.tb.Helper()
	s.Stop()
	s.run()
}

// Save restarts the server, and returns what takes it back to where it was then: it
// forgets what it acknowledged since, as after a crash of its machine.
func (s *Server) Save() (rollback func()) {
	s.tb.Helper()
	live, saved := filepath.Join(s.dir, "js"), filepath.Join(s.dir, "saved")
	s.Stop()
	if err := os.CopyFS(saved, os.DirFS(live)); err != nil {
		s.tb.Fatal(err)
	}
	s.run()
	return func() {
		s.tb.Helper()
		s.Stop()
		if err := os.RemoveAll(live); err != nil {
			s.tb.Fatal(err)
		}
		if err := os.Rename(saved, live); err != nil {
			s.tb.Fatal(err)
		}
		s.run()
	}
}

// Connect connects a client, which is closed when the test ends. It reconnects
// quickly and for ever, unless opts say otherwise.
func (s *Server) Connect(tb testing.TB, opts ...nats.Option) *nats.Conn {
	tb.Helper()
	return connect(tb, s.URL(), opts...)
}

func connect(tb testing.TB, url string, opts ...nats.Option) *nats.Conn {
	tb.Helper()
	closed := make(chan struct{})
	all := append([]nats.Option{
		nats.MaxReconnects(-1), nats.ReconnectWait(20 * time.Millisecond), nats.ReconnectJitter(0, 0),
		nats.Timeout(connectTimeout),
	}, opts...)
	all = append(all, nats.ClosedHandler(func(*nats.Conn) { close(closed) }))
	nc, err := nats.Connect(url, all...)
	if err != nil {
		tb.Fatalf("connecting to %s: %v", url, err)
	}
	tb.Cleanup(func() {
		nc.Close()
		<-closed
	})
	return nc
}

// JetStream connects a client and returns its JetStream context.
func (s *Server) JetStream(tb testing.TB, opts ...nats.Option) jetstream.JetStream {
	tb.Helper()
	return newJetStream(tb, s.Connect(tb, opts...))
}

func newJetStream(tb testing.TB, nc *nats.Conn) jetstream.JetStream {
	tb.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		tb.Fatal(err)
	}
	return js
}
