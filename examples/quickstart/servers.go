package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
	"github.com/redis/go-redis/v9"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/memstore"
	"github.com/idemq/idemq/idem/store/redisstore"
)

const (
	connectTimeout = 3 * time.Second
	drainTimeout   = 30 * time.Second

	// duplicates is the stream's own window, the shortest that NATS allows: a
	// message that is published again within it is not stored again.
	duplicates = 100 * time.Millisecond
)

// servers is the broker and the store.
type servers struct {
	name    string // of everything that is made there
	natsURL string
	conn    *nats.Conn
	js      jetstream.JetStream
	store   store.Store
	setnx   func(ctx context.Context, token string) (bool, error)
	closers []func()
}

// open connects to the servers, or starts what has no URL.
func open(ctx context.Context, natsURL, redisURL string) (_ *servers, err error) {
	s := &servers{name: "idem_quickstart_" + nuid.Next(), natsURL: natsURL}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if err := s.openStore(ctx, redisURL); err != nil {
		return nil, err
	}
	if natsURL == "" {
		if err := s.startNATS(); err != nil {
			return nil, err
		}
	}
	if s.conn, err = s.connect(); err != nil {
		return nil, err
	}
	s.closers = append(s.closers, s.conn.Close)
	if s.js, err = jetstream.New(s.conn); err != nil {
		return nil, err
	}
	ask, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	if _, err := s.js.AccountInfo(ask); err != nil {
		return nil, fmt.Errorf("-nats: the server has no JetStream for us: %w", err)
	}
	return s, nil
}

func (s *servers) close() {
	for _, c := range slices.Backward(s.closers) {
		c()
	}
}

func (s *servers) connect() (*nats.Conn, error) {
	conn, err := nats.Connect(s.natsURL, nats.Name("idem quickstart"), nats.Timeout(connectTimeout))
	if err != nil {
		return nil, fmt.Errorf("-nats: no connection to the server: %w", err)
	}
	return conn, nil
}

func (s *servers) startNATS() error {
	dir, err := os.MkdirTemp("", "idem-quickstart-")
	if err != nil {
		return err
	}
	s.closers = append(s.closers, func() { _ = os.RemoveAll(dir) })
	srv, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: dir, NoLog: true, NoSigs: true,
	})
	if err != nil {
		return err
	}
	srv.Start()
	s.closers = append(s.closers, func() {
		srv.Shutdown()
		srv.WaitForShutdown()
	})
	if !srv.ReadyForConnections(connectTimeout) {
		return errors.New("the NATS server inside this program did not start")
	}
	s.natsURL = srv.ClientURL()
	return nil
}

func (s *servers) openStore(ctx context.Context, url string) error {
	if url == "" {
		var marks sync.Map
		s.store = memstore.New()
		s.setnx = func(_ context.Context, token string) (bool, error) {
			_, there := marks.LoadOrStore(token, true)
			return !there, nil
		}
		return nil
	}
	opts, err := redis.ParseURL(url)
	if err != nil {
		return fmt.Errorf("-redis: %w: write it as redis://host:port/0", err)
	}
	opts.ContextTimeoutEnabled = true
	opts.DialTimeout = connectTimeout
	redis.SetLogger(quiet{}) // errors are returned, and said once
	client := redis.NewClient(opts)
	s.closers = append(s.closers, func() { _ = client.Close() })
	ask, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	if err := client.Ping(ask).Err(); err != nil {
		return fmt.Errorf("-redis: the server does not answer: %w", err)
	}
	s.closers = append(s.closers, func() { removeKeys(client, s.name) })
	s.store = redisstore.New(client)
	s.setnx = func(ctx context.Context, token string) (bool, error) {
		return client.SetNX(ctx, s.name+":setnx:"+token, 1, time.Hour).Result()
	}
	return nil
}

// removeKeys deletes the keys of a prefix.
func removeKeys(client *redis.Client, prefix string) {
	ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
	defer cancel()
	keys := client.Scan(ctx, 0, prefix+":*", 1000).Iterator()
	for keys.Next(ctx) {
		_ = client.Unlink(ctx, keys.Val()).Err() // at worst they expire
	}
}

// quiet is a go-redis logger that says nothing.
type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}

// stream is a stream with its durable consumer.
type stream struct {
	js       jetstream.JetStream
	name     string
	subject  string
	consumer jetstream.Consumer
}

const durable = "billing"

func (s *servers) newStream(ctx context.Context) (*stream, error) {
	name := s.name + "_" + nuid.Next()
	st := &stream{js: s.js, name: name, subject: name + ".orders"}
	made, err := s.js.CreateStream(ctx, jetstream.StreamConfig{
		Name: name, Subjects: []string{st.subject}, Storage: jetstream.MemoryStorage, Duplicates: duplicates,
	})
	if err != nil {
		return nil, err
	}
	st.consumer, err = made.CreateConsumer(ctx, jetstream.ConsumerConfig{
		Durable: durable, AckPolicy: jetstream.AckExplicitPolicy, AckWait: ackWait, MaxDeliver: -1,
	})
	if err != nil {
		st.remove()
		return nil, err
	}
	return st, nil
}

func (st *stream) remove() {
	ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
	defer cancel()
	_ = st.js.DeleteStream(ctx, st.name)
}

// drained waits until every message of the stream was acked, and returns how many
// deliveries the server has made.
func (st *stream) drained(ctx context.Context, bar *progress, failed <-chan error) (int, error) {
	timeout := time.After(drainTimeout)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		info, err := st.consumer.Info(ctx)
		if err != nil {
			return 0, err
		}
		left := int(info.NumPending) + info.NumAckPending
		bar.left(left)
		if left == 0 {
			return int(info.Delivered.Consumer), nil
		}
		select {
		case <-tick.C:
		case <-timeout:
			return 0, fmt.Errorf("%d messages are not acked after %v", left, drainTimeout)
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		case err := <-failed:
			return 0, fmt.Errorf("a consumer ended before its time: %w", err)
		}
	}
}

func (s *servers) newReplica(ctx context.Context, st *stream, t *trouble, dieAt int64) (*replica, error) {
	r := &replica{
		prefix: s.name, trouble: t, dieAt: dieAt, atWork: make(chan struct{}), gone: make(chan struct{}),
		unacked: make(map[int]struct{}), setnx: s.setnx,
	}
	r.acked = sync.NewCond(&r.mu)
	conn, err := s.connect()
	if err != nil {
		return nil, err
	}
	r.cut = conn.Close
	js, err := jetstream.New(conn)
	if err != nil {
		conn.Close()
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	source, err := js.Consumer(ctx, st.name, durable)
	if err != nil {
		conn.Close()
		return nil, err
	}
	r.source = lossyConsumer{source, r}
	r.store = mortalStore{s.store, &r.dead}
	return r, nil
}

// close ends what is left of a replica.
func (r *replica) close() {
	close(r.gone)
	r.cut()
}
