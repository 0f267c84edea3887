package e2e_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/segmentio/kafka-go"

	"github.com/idemq/idemq/consumers"
	idemkafka "github.com/idemq/idemq/consumers/kafka"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/internal/kafkatest"
	"github.com/idemq/idemq/internal/redistest"
	"github.com/idemq/idemq/internal/testenv"
)

// shortSession is after what a dead member of a group is missed, where a test waits for it.
const shortSession = 1500 * time.Millisecond

// isFull asks for the full size of the tests that are cut short otherwise.
func isFull() bool { return os.Getenv("IDEM_E2E_FULL") == "1" }

// constructors are the two ways to a consumer of Kafka.
var constructors = []struct {
	name string
	owns bool
}{{"Reader", false}, {"group", true}}

// kafkaSite is a real broker and a real Redis, and a topic, a group and records for one
// test or subtest.
type kafkaSite struct {
	t      *testing.T
	kafka  *kafkatest.Server
	redis  *redistest.Server
	rdb    *redis.Client
	topic  string
	group  string
	dead   string
	prefix string
}

func newKafkaSite(t *testing.T, props ...string) *kafkaSite {
	t.Helper()
	props = append([]string{"group.min.session.timeout.ms=500"}, props...)
	s := &kafkaSite{t: t, redis: redistest.Start(t), kafka: kafkatest.Start(t, props...)}
	s.rdb = s.redis.Client(t)
	return s
}

// with gives a subtest its own topic, dead-letter topic, group and records on the
// same servers.
func (s *kafkaSite) with(t *testing.T, name string, partitions int, configs ...string) *kafkaSite {
	t.Helper()
	own := *s
	own.t = t
	own.topic, own.group, own.dead, own.prefix = name, name+"-group", name+"-dead", name+"-records"
	s.kafka.CreateTopic(t, own.topic, partitions, configs...)
	s.kafka.CreateTopic(t, own.dead, 1)
	return &own
}

// role is a consumer process of this site.
func (s *kafkaSite) role(owns bool) kafkaRole {
	return kafkaRole{
		Kafka: s.kafka.Addr(), Redis: s.redis.Addr(), Topic: s.topic, Group: s.group, Owns: owns, Prefix: s.prefix,
		DeadTo: s.dead, Session: shortSession, Lease: time.Second, Budget: 10,
	}
}

// writer writes without delay, and puts messages of one key into one partition; messages
// without a key go round.
func (s *kafkaSite) writer() *kafka.Writer {
	s.t.Helper()
	w := &kafka.Writer{
		Addr: kafka.TCP(s.kafka.Addr()), RequiredAcks: kafka.RequireAll, Balancer: &kafka.Hash{}, BatchTimeout: time.Millisecond,
		BatchSize: 1000, Transport: &kafka.Transport{},
	}
	s.t.Cleanup(func() {
		_ = w.Close()
		w.Transport.(*kafka.Transport).CloseIdleConnections()
	})
	return w
}

// order is a message with a token, with the token for its key too.
func (s *kafkaSite) order(token string) kafka.Message {
	msg := kafka.Message{Topic: s.topic, Key: []byte(token), Value: []byte("order " + token)}
	idemkafka.SetToken(&msg, token)
	return msg
}

func (s *kafkaSite) publish(tokens ...string) {
	s.t.Helper()
	msgs := make([]kafka.Message, len(tokens))
	for i, token := range tokens {
		msgs[i] = s.order(token)
	}
	s.write(msgs...)
}

func (s *kafkaSite) write(msgs ...kafka.Message) {
	s.t.Helper()
	if err := s.writer().WriteMessages(s.t.Context(), msgs...); err != nil {
		s.t.Fatal(err)
	}
}

// owed is how many offsets the group has not committed.
func (s *kafkaSite) owed() (n int64) {
	s.t.Helper()
	n, _ = s.owing()
	return n
}

// owing is owed, and says where.
func (s *kafkaSite) owing() (n int64, text string) {
	s.t.Helper()
	committed, ends := s.kafka.Committed(s.t, s.group, s.topic), s.kafka.Ends(s.t, s.topic)
	for _, p := range slices.Sorted(maps.Keys(ends)) {
		if left := ends[p] - committed[p]; left != 0 {
			n += left
			text += fmt.Sprintf("partition %d: committed %d of %d; ", p, committed[p], ends[p])
		}
	}
	return n, text
}

func (s *kafkaSite) awaitSettled() {
	s.t.Helper()
	var n int64
	var text string
	defer func() {
		if n != 0 { // Await has ended the test
			s.t.Logf("%d offsets are not committed: %s", n, text)
		}
	}()
	testenv.Await(s.t, "all offsets are committed", seldom(func() bool { n, text = s.owing(); return n == 0 }))
}

// seldom is a condition for Await that asks servers: each time takes connections of its
// own, and at Await's pace a machine would run out of ports for them.
func seldom(cond func() bool) func() bool {
	var last time.Time
	return func() bool {
		if time.Since(last) < 25*time.Millisecond {
			return false
		}
		last = time.Now()
		return cond()
	}
}

// journal returns what the processes have noted.
func (s *kafkaSite) journal() []note {
	s.t.Helper()
	lines, err := s.rdb.LRange(context.Background(), journalKey(s.prefix), 0, -1).Result()
	if err != nil {
		s.t.Fatal(err)
	}
	notes := make([]note, len(lines))
	for i, line := range lines {
		if err := json.Unmarshal([]byte(line), &notes[i]); err != nil {
			s.t.Fatal(err)
		}
	}
	return notes
}

// noted returns the notes of one kind about one token.
func (s *kafkaSite) noted(what, token string) (found []note) {
	s.t.Helper()
	for _, n := range s.journal() {
		if n.What == what && n.Token == token {
			found = append(found, n)
		}
	}
	return found
}

// once is how many tokens took effect where an effect may be repeated.
func (s *kafkaSite) once() int {
	s.t.Helper()
	n, err := s.rdb.HLen(context.Background(), onceKey(s.prefix)).Result()
	if err != nil {
		s.t.Fatal(err)
	}
	return int(n)
}

func (s *kafkaSite) guard(opts ...idem.Option) *idem.Guard {
	s.t.Helper()
	return idem.New(append([]idem.Option{idem.WithRedis(s.redis.Client(s.t)), idem.WithPrefix(s.prefix), idem.WithLease(2 * time.Second)}, opts...)...)
}

// config is that of a consumer in this process.
func (s *kafkaSite) config() kafka.ReaderConfig {
	return readerConfig(s.kafka.Addr(), s.group, s.topic, shortSession)
}

// consume runs a consumer in this process until stop is called. It is an error when Run
// ends by itself, or with an error.
func (s *kafkaSite) consume(owns bool, config kafka.ReaderConfig, g *idem.Guard, h idemkafka.Handler, opts ...idemkafka.Option) (stop func()) {
	s.t.Helper()
	letters := s.writer()
	opts = append([]idemkafka.Option{idemkafka.DeadLetter(letters, s.dead), consumers.Backoff(time.Millisecond, 20*time.Millisecond)}, opts...)
	c, done, err := kafkaConsumer(owns, config, g, h, opts...)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		err := c.Run(ctx)
		if err != nil || ctx.Err() == nil {
			s.t.Errorf("Run: %v", err)
		}
		done()
	}()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			<-ended
		})
	}
	s.t.Cleanup(stop)
	return stop
}

// scripts counts the script calls that Redis has executed.
func (s *kafkaSite) scripts() int { return (&site{t: s.t, rdb: s.rdb}).scripts() }

// kafka is handler for a message of Kafka's.
func (l *ledger) kafka(ctx context.Context, _ kafka.Message) error {
	c, _ := idem.FromContext(ctx)
	l.add(c.Token())
	return nil
}

func (l *ledger) len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.n)
}

// Kinds of requests, by the protocol's numbers.
const (
	apiFetch        = 1
	apiOffsetCommit = 8
)

// requestCounter counts what a client asks of the broker.
type requestCounter struct {
	mu sync.Mutex
	n  map[int16]int
}

func (r *requestCounter) of(api int16) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.n[api]
}

// dialer makes connections that are counted.
func (r *requestCounter) dialer() *kafka.Dialer {
	return &kafka.Dialer{Timeout: 10 * time.Second, DialFunc: func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		in, out := io.Pipe()
		go r.read(in)
		return countedConn{conn, out}, nil
	}}
}

// read counts the requests of one connection: each is its size, its kind, and the rest.
func (r *requestCounter) read(in *io.PipeReader) {
	var head [6]byte
	for {
		if _, err := io.ReadFull(in, head[:]); err != nil {
			return
		}
		r.mu.Lock()
		if r.n == nil {
			r.n = map[int16]int{}
		}
		r.n[int16(binary.BigEndian.Uint16(head[4:]))]++
		r.mu.Unlock()
		if _, err := io.CopyN(io.Discard, in, int64(binary.BigEndian.Uint32(head[:]))-2); err != nil {
			return
		}
	}
}

type countedConn struct {
	net.Conn
	tee *io.PipeWriter
}

func (c countedConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	_, _ = c.tee.Write(b[:n])
	return n, err
}

func (c countedConn) Close() error {
	_ = c.tee.Close()
	return c.Conn.Close()
}

// per is a quotient for a log.
func per(n, of int) string { return fmt.Sprintf("%.4f", float64(n)/float64(of)) }
