package bench

import (
	"context"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/redis/go-redis/v9"

	"github.com/idemq/idemq/idem"
)

// Row is one way to consume, as the report lists it.
type Row struct {
	Name string
	Kind Kind
	// Late says that offsets are committed by a timer, or when the row is closed: then the
	// clock stops at the last effect, which is in the row's favour.
	Late bool
	// Repeats says that copies are handled again.
	Repeats bool

	// flood is how many messages its maximum is measured with, for latencies at a share of
	// it; zero: the row has none.
	flood int

	consume consume
	// warm, in its place, makes ready what is measured afterwards, over an emptied Redis.
	warm func(tb testing.TB, s *Site, w *Work) (consume, error)
}

// consume handles what is in a site's source, by the handler of the run.
type consume = func(ctx context.Context, s *Site, r *Run) error

// Kind is what a row is compared as.
type Kind string

// The kinds, as the plot colours them.
const (
	Baseline Kind = "baseline" // ratios of the rows behind it are to this one
	ByHand   Kind = "by hand"
	Peer     Kind = "peer"
	Ours     Kind = "ours"
)

// Site is where a row consumes: servers, and a source of the row's own for one run.
type Site struct {
	Addr   string // of the broker, as its client takes it
	Source string // topic, stream or queue
	Group  string // or durable consumer
	Redis  *redis.Client

	Messages   int // that the source was given
	Partitions int // of the source, where it has any
}

// guard is one with defaults, but for what a row is about.
func (s *Site) guard(opts ...idem.Option) *idem.Guard {
	return idem.New(append([]idem.Option{idem.WithRedis(s.Redis)}, opts...)...)
}

// Broker is a broker with the rows that consume from it.
type Broker struct {
	Name string
	Rows []Row
	// open starts a server, which is gone when the test ends.
	open func(tb testing.TB) server
}

// server is a broker that runs. Its methods end the test when it does not do what it is
// told, but for owed.
type server interface {
	version() string
	// pid is the broker's process, or the one that started it.
	pid() int
	// create makes a source, of so many partitions where it has any, and returns where
	// clients connect to.
	create(tb testing.TB, source string, partitions int) (addr string)
	// producer publishes into a source that was created.
	producer(tb testing.TB, source string) producer
	// owed is how many messages of the source the broker has to deliver, or has delivered
	// and not seen settled.
	owed(ctx context.Context, s *Site) (int, error)
	// discard deletes the source.
	discard(tb testing.TB, source string)
}

// producer publishes into one source. It is not safe for concurrent use.
type producer interface {
	// send may return before the broker has the messages.
	send(ctx context.Context, some ...message) error
	// flush returns when the broker has confirmed all that were sent.
	flush(ctx context.Context) error
	close()
}

// Brokers are all of them, in the order of the report.
func Brokers() []Broker {
	return []Broker{
		{Name: "Kafka", Rows: kafkaRows(), open: openKafka},
		{Name: "NATS JetStream", Rows: natsRows(), open: openNATS},
		{Name: "RabbitMQ, classic queue", Rows: amqpRows(), open: openAMQP(amqp.QueueTypeClassic)},
		{Name: "RabbitMQ, quorum queue", Rows: amqpRows(), open: openAMQP(amqp.QueueTypeQuorum)},
	}
}
