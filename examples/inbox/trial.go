package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	idemnats "github.com/idemq/idemq/consumers/nats"
	"github.com/idemq/idemq/idem"
)

// trial publishes the payments, runs the consumers, and kills them.
type trial struct {
	settings
	payments, kills, replicas int
	seed                      uint64
	keep                      bool

	stderr io.Writer
	killed int
}

// patience is how long nothing may happen.
const patience = time.Minute

// run returns what the audit found.
func (t *trial) run(ctx context.Context, stdout io.Writer) (r result, err error) {
	dir, err := os.MkdirTemp("", "inbox")
	if err != nil {
		return r, err
	}
	defer os.RemoveAll(dir)
	if t.db == "" {
		t.db = filepath.Join(dir, "bank.db")
	}
	b, err := open(t.settings)
	if err != nil {
		return r, err
	}
	defer b.db.Close()
	if err := b.create(ctx); err != nil {
		return r, err
	}
	if !t.keep {
		defer func() { err = errors.Join(err, b.remove(context.WithoutCancel(ctx))) }()
	}
	if t.nats == "" {
		broker, err := startNATS(dir)
		if err != nil {
			return r, err
		}
		defer func() {
			broker.Shutdown()
			broker.WaitForShutdown()
		}()
		t.nats = broker.ClientURL()
	}
	conn, err := nats.Connect(t.nats, nats.Timeout(2*time.Second))
	if err != nil {
		return r, fmt.Errorf("-nats: %s does not answer: %w", t.nats, err)
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		return r, err
	}
	source, err := t.createStream(ctx, js)
	if err != nil {
		return r, err
	}
	if !t.keep {
		defer func() { err = errors.Join(err, js.DeleteStream(context.WithoutCancel(ctx), t.name)) }()
	}
	if err := b.owe(ctx, t.payments); err != nil {
		return r, err
	}
	if err := t.publish(ctx, js); err != nil {
		return r, err
	}
	if err := t.consume(ctx, source, stdout); err != nil {
		return r, err
	}
	return b.audit(ctx)
}

func startNATS(dir string) (*server.Server, error) {
	broker, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: filepath.Join(dir, "nats"), NoLog: true, NoSigs: true,
	})
	if err != nil {
		return nil, err
	}
	go broker.Start()
	if !broker.ReadyForConnections(10 * time.Second) {
		broker.Shutdown()
		return nil, errors.New("the NATS server inside this program did not start within 10 s")
	}
	return broker, nil
}

func (t *trial) createStream(ctx context.Context, js jetstream.JetStream) (jetstream.Consumer, error) {
	_, err := js.CreateStream(ctx, jetstream.StreamConfig{
		Name: t.name, Subjects: []string{t.name}, MaxAge: time.Hour, Duplicates: 100 * time.Millisecond,
	})
	if err != nil {
		return nil, fmt.Errorf("-nats: creating a stream: %w: start the server with JetStream (nats-server -js)", err)
	}
	return js.CreateConsumer(ctx, t.name, jetstream.ConsumerConfig{
		Durable: "bank", AckPolicy: jetstream.AckExplicitPolicy, AckWait: ackWait, MaxDeliver: -1,
	})
}

// publish publishes each payment, and then the same messages again, as a producer does
// that did not see the answers.
func (t *trial) publish(ctx context.Context, js jetstream.JetStream) error {
	guard := idem.New() // to stamp takes no store
	messages := make([]*nats.Msg, t.payments)
	for id := range messages {
		body, err := json.Marshal(newPayment(id))
		if err != nil {
			return err
		}
		messages[id] = &nats.Msg{Subject: t.name, Data: body, Header: nats.Header{}}
		if err := idemnats.Stamp(ctx, guard, messages[id]); err != nil {
			return err
		}
		messages[id].Header.Del(nats.MsgIdHdr) // or the server itself would drop the second one
	}
	for range 2 {
		for _, msg := range messages {
			if _, err := js.PublishMsg(ctx, msg); err != nil {
				return fmt.Errorf("publish: %w", err)
			}
		}
	}
	return nil
}

// replica is a running consumer.
type replica struct {
	name  string
	cmd   *exec.Cmd
	stdin io.Closer
	ended chan error
}

func (t *trial) start(name string) (*replica, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, "-replica", name, "-name", t.name, "-db", t.db, "-nats", t.nats)
	cmd.Stderr = t.stderr
	stdin, err := cmd.StdinPipe() // its end tells the consumer that this process has died
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	r := &replica{name: name, cmd: cmd, stdin: stdin, ended: make(chan error, 1)}
	go func() { r.ended <- cmd.Wait() }()
	return r, nil
}

// consume runs the consumers until the stream has nothing left that is not acked, and
// kills one of them every now and then.
func (t *trial) consume(ctx context.Context, source jetstream.Consumer, stdout io.Writer) (err error) {
	random := rand.New(rand.NewPCG(t.seed, 0))
	bar := newProgress(stdout, 2*t.payments)
	defer bar.end()
	all := make([]*replica, t.replicas)
	defer func() {
		for _, r := range all {
			if r != nil {
				_ = r.stdin.Close() // it ends as after a SIGTERM
				err = errors.Join(err, <-r.ended)
			}
		}
	}()
	for i := range all {
		if all[i], err = t.start("consumer-" + strconv.Itoa(i)); err != nil {
			return err
		}
	}

	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	kill := time.NewTimer(t.pause(random))
	defer kill.Stop()
	left, moved := 2*t.payments, time.Now()
	for left > 0 {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-kill.C:
			if t.killed == t.kills {
				continue
			}
			i := random.IntN(len(all))
			if err := all[i].die(); err != nil {
				all[i] = nil
				return err
			}
			t.killed++
			if all[i], err = t.start(all[i].name); err != nil {
				return err
			}
			kill.Reset(t.pause(random))
		case <-poll.C:
			info, err := source.Info(ctx)
			if err != nil {
				return fmt.Errorf("asking for the stream: %w", err)
			}
			now := int(info.NumPending) + info.NumAckPending
			if now != left {
				left, moved = now, time.Now()
			}
			if time.Since(moved) > patience {
				return fmt.Errorf("%d messages are left, and for %v none was settled", left, patience)
			}
			bar.left(left)
		}
	}
	return nil
}

// pause is the time to the next kill. A consumer needs some to start.
func (*trial) pause(random *rand.Rand) time.Duration {
	return 50*time.Millisecond + time.Duration(random.Int64N(int64(200*time.Millisecond)))
}

// die kills a consumer, at whatever it is. The error says that it had ended before.
func (r *replica) die() error {
	select {
	case err := <-r.ended:
		return fmt.Errorf("%s ended by itself: %w", r.name, err)
	default:
	}
	if err := r.cmd.Process.Kill(); err != nil {
		return fmt.Errorf("killing %s: %w", r.name, err)
	}
	<-r.ended //nolint:errcheck // it was killed
	return nil
}

// progress shows how many messages are settled, where the output is a terminal.
type progress struct {
	bar   *progressbar.ProgressBar // nil: no terminal
	total int
}

func newProgress(w io.Writer, total int) *progress {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return &progress{}
	}
	return &progress{total: total, bar: progressbar.NewOptions(total,
		progressbar.OptionSetWriter(w), progressbar.OptionSetDescription("settled"),
		progressbar.OptionSetWidth(30), progressbar.OptionSetPredictTime(false), progressbar.OptionClearOnFinish())}
}

func (p *progress) left(n int) {
	if p.bar != nil {
		_ = p.bar.Set(max(p.total-n, 0))
	}
}

func (p *progress) end() {
	if p.bar != nil {
		_ = p.bar.Finish()
	}
}
