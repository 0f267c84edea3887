package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"

	natsd "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	idemnats "github.com/idemq/idemq/consumers/nats"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/internal/child"
	"github.com/idemq/idemq/internal/testenv"
)

const (
	// natsFolder, in the environment of this program, has it be a NATS server with its data
	// there: in a process of its own the server's CPU time is not the client's.
	natsFolder = "IDEM_BENCH_NATS"
	// natsAddress is the file in that folder where the server says where it listens.
	natsAddress = "address"

	publishAhead = 4000 // messages that are not confirmed yet
)

// ServeNATS is the whole program where natsFolder is set. It never returns then.
func ServeNATS() {
	dir := os.Getenv(natsFolder)
	if dir == "" {
		return
	}
	if err := serveNATS(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	select {}
}

func serveNATS(dir string) error {
	s, err := natsd.NewServer(&natsd.Options{
		Host: "127.0.0.1", Port: natsd.RANDOM_PORT, JetStream: true, StoreDir: dir, NoLog: true, NoSigs: true,
	})
	if err != nil {
		return err
	}
	s.Start()
	if !s.ReadyForConnections(runLimit) {
		return errors.New("nats-server: not ready")
	}
	// Whole or not at all: whoever waits for the file reads it at once.
	file := dir + "/" + natsAddress
	if err := os.WriteFile(file+"~", []byte(s.ClientURL()), 0o600); err != nil {
		return err
	}
	return os.Rename(file+"~", file)
}

type natsServer struct {
	proc *child.Process
	addr string
	nc   *nats.Conn
	js   jetstream.JetStream
}

func openNATS(tb testing.TB) server {
	tb.Helper()
	dir := tb.TempDir()
	self, err := os.Executable()
	if err != nil {
		tb.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), natsFolder+"="+dir)
	cmd.Stdout, cmd.Stderr = io.Discard, os.Stderr
	proc, err := child.Start(cmd)
	if err != nil {
		tb.Fatalf("starting nats-server: %v", err)
	}
	tb.Cleanup(proc.Kill)
	n := &natsServer{proc: proc}
	testenv.Await(tb, "nats-server to listen", func() bool {
		text, _ := os.ReadFile(dir + "/" + natsAddress)
		n.addr = string(text)
		return n.addr != ""
	})
	if n.nc, err = nats.Connect(n.addr); err != nil {
		tb.Fatalf("connecting to nats-server: %v", err)
	}
	tb.Cleanup(n.nc.Close)
	if n.js, err = jetstream.New(n.nc, jetstream.WithPublishAsyncMaxPending(publishAhead)); err != nil {
		tb.Fatal(err)
	}
	return n
}

func (n *natsServer) pid() int { return n.proc.Pid() }

func (n *natsServer) version() string { return "NATS " + n.nc.ConnectedServerVersion() }

func (n *natsServer) create(tb testing.TB, source string, _ int) string {
	tb.Helper()
	_, err := n.js.CreateStream(context.Background(), jetstream.StreamConfig{Name: source, Subjects: []string{source}, Storage: jetstream.FileStorage})
	if err != nil {
		tb.Fatalf("creating stream %s: %v", source, err)
	}
	return n.addr
}

func (n *natsServer) producer(_ testing.TB, source string) producer {
	return &natsProducer{js: n.js, source: source}
}

type natsProducer struct {
	js       jetstream.JetStream
	source   string
	confirms []jetstream.PubAckFuture // not looked at yet, the oldest first
}

// send looks at the oldest confirmations, so that flush has few to look at: a time that is
// measured until after it would else have hundreds of thousands in it.
func (p *natsProducer) send(ctx context.Context, some ...message) error {
	for _, m := range some {
		msg := nats.NewMsg(p.source)
		msg.Data = m.payload
		msg.Header.Set(idem.Header, m.token)
		confirm, err := p.js.PublishMsgAsync(msg)
		if err != nil {
			return err
		}
		if p.confirms = append(p.confirms, confirm); len(p.confirms) > publishAhead {
			if err := taken(ctx, p.confirms[0]); err != nil {
				return err
			}
			p.confirms = p.confirms[1:]
		}
	}
	return nil
}

func taken(ctx context.Context, c jetstream.PubAckFuture) error {
	select {
	case <-c.Ok():
		return nil
	case err := <-c.Err():
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *natsProducer) flush(ctx context.Context) error {
	for _, c := range p.confirms {
		if err := taken(ctx, c); err != nil {
			return err
		}
	}
	p.confirms = nil
	return nil
}

func (*natsProducer) close() {}

func (n *natsServer) owed(ctx context.Context, s *Site) (int, error) {
	c, err := n.js.Consumer(ctx, s.Source, s.Group)
	if err != nil {
		return 0, fmt.Errorf("what is pending of stream %s: %w", s.Source, err)
	}
	info := c.CachedInfo()
	return int(info.NumPending) + info.NumAckPending, nil
}

func (n *natsServer) discard(tb testing.TB, source string) {
	tb.Helper()
	if err := n.js.DeleteStream(context.Background(), source); err != nil {
		tb.Fatalf("deleting stream %s: %v", source, err)
	}
}

// pull connects a client, and makes a durable consumer for it.
func (s *Site) pull(ctx context.Context) (*nats.Conn, jetstream.Consumer, error) {
	nc, err := nats.Connect(s.Addr)
	if err != nil {
		return nil, nil, err
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return nc, nil, err
	}
	c, err := js.CreateOrUpdateConsumer(ctx, s.Source, jetstream.ConsumerConfig{
		Durable: s.Group, AckPolicy: jetstream.AckExplicitPolicy, MaxDeliver: -1,
	})
	return nc, c, err
}

// natsRow is a row that consumes from a durable pull consumer.
func natsRow(name string, kind Kind, consume func(ctx context.Context, c jetstream.Consumer, s *Site, r *Run) error) Row {
	return Row{Name: name, Kind: kind, Repeats: kind == Baseline, consume: func(ctx context.Context, s *Site, r *Run) error {
		nc, c, err := s.pull(ctx)
		if nc != nil {
			defer nc.Close()
		}
		if err != nil {
			return err
		}
		return consume(ctx, c, s, r)
	}}
}

func natsRows() []Row {
	return []Row{
		natsRow("no deduplication, Consume and Ack", Baseline, func(ctx context.Context, c jetstream.Consumer, _ *Site, r *Run) error {
			var failed error
			ctx, stop := r.Until(ctx)
			defer stop()
			handling, err := c.Consume(func(m jetstream.Msg) {
				r.Begin()
				err := r.Handle(m.Data())
				if err == nil {
					err = m.Ack()
				}
				if err != nil {
					failed = err
					stop()
				}
			})
			if err != nil {
				return err
			}
			<-ctx.Done()
			handling.Drain()
			<-handling.Closed()
			return failed
		}),
		ourNATS("idemnats.NewConsumer, records"),
	}
}

// ourNATS is this library's consumer, in order and with its defaults.
func ourNATS(name string, guard ...idem.Option) Row {
	row := natsRow(name, Ours, func(ctx context.Context, source jetstream.Consumer, s *Site, r *Run) error {
		c, err := idemnats.NewConsumer(source, s.guard(guard...), func(_ context.Context, m jetstream.Msg) error {
			r.Begin()
			return r.Handle(m.Data())
		})
		if err != nil {
			return err
		}
		ctx, stop := r.Until(ctx)
		defer stop()
		return c.Run(ctx)
	})
	row.flood = 100_000
	return row
}
