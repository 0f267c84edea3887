package e2e_test

import (
	"context"
	"database/sql"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/redis/go-redis/v9"
	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/sasl/plain"

	"github.com/idemq/idemq/consumers"
	idemamqp "github.com/idemq/idemq/consumers/amqp"
	idemkafka "github.com/idemq/idemq/consumers/kafka"
	idemnats "github.com/idemq/idemq/consumers/nats"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/memstore"
	"github.com/idemq/idemq/idem/store/natsstore"
	"github.com/idemq/idemq/idem/store/sqlstore"
	"github.com/idemq/idemq/internal/natstest"
	"github.com/idemq/idemq/internal/redistest"
	"github.com/idemq/idemq/internal/sqltest"
	"github.com/idemq/idemq/internal/testenv"
)

// The canaries: what nothing that is logged, told or returned may hold.
var canaries = map[string]string{
	"the password":  "canary-of-the-password",
	"the payload":   "canary-of-the-payload",
	"a header":      "canary-of-a-header",
	"the result":    "canary-of-the-result",
	"the token key": "canary-of-the-token-key, 32 bytes",
	"another key":   "canary-of-the-other-key, 32 bytes",
}

// cage keeps everything that the library lets out.
type cage struct {
	mu  sync.Mutex
	out strings.Builder
}

func (c *cage) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.Write(p)
}

func (c *cage) see(v ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, x := range v {
		fmt.Fprintf(&c.out, "%v %+v\n", x, x)
		if err, ok := x.(error); ok {
			for ; err != nil; err = errors.Unwrap(err) {
				fmt.Fprintf(&c.out, "%T: %v\n", err, err)
			}
			continue
		}
		fmt.Fprintf(&c.out, "%#v\n", x)
	}
}

func (c *cage) options() []idem.Option {
	return []idem.Option{
		idem.WithLogger(slog.New(slog.NewJSONHandler(c, &slog.HandlerOptions{Level: slog.LevelDebug}))),
		idem.WithLogger(slog.New(slog.NewTextHandler(c, &slog.HandlerOptions{Level: slog.LevelDebug}))),
		idem.WithObserver(idem.ObserverFunc(func(e idem.Event) { c.see(e, e.Err, e.Text, e.Finding) })),
	}
}

// opened fails the test if a secret got out, or if none of wants did: then nothing was seen.
func (c *cage) opened(t *testing.T, secrets map[string]string, wants ...string) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.out.String()
	for _, want := range wants {
		if !strings.Contains(out, want) {
			t.Errorf("nothing was seen of %q: the test looked at nothing", want)
		}
	}
	for name, secret := range secrets {
		for _, form := range []string{secret, url.QueryEscape(secret), hex.EncodeToString([]byte(secret)), base64.StdEncoding.EncodeToString([]byte(secret)), strings.Trim(fmt.Sprintf("%d", []byte(secret)), "[]")} {
			if i := strings.Index(out, form); i >= 0 {
				t.Errorf("%s got out: …%s", name, out[max(i-200, 0):min(i+len(form)+50, len(out))])
				break
			}
		}
	}
}

// Payloads, headers, results, keys and signatures stay out of what is logged, told and
// returned, whatever becomes of a message.
func TestSecretsOfMessages(t *testing.T) {
	t.Parallel()
	var c cage
	s := newSite(t, 30*time.Second)
	g := s.guard(s.redis.Addr(), append(c.options(), idem.WithTokenKeys([]byte(canaries["the token key"]), []byte(canaries["another key"])))...)
	stranger := idem.New(idem.WithTokenKeys([]byte("a key that this guard does not have")))
	secrets := map[string]string{}
	sign := func(g *idem.Guard, token string) string {
		signed, err := g.Sign(token)
		if err != nil {
			t.Fatal(err)
		}
		secrets["the signature of "+token] = signed[len(token)+1:]
		return signed
	}
	maps.Copy(secrets, canaries)
	send := func(token, payload string, headers ...string) {
		msg := nats.NewMsg(subject)
		msg.Data = []byte(payload + canaries["the payload"])
		msg.Header.Set("Authorization", canaries["a header"])
		idemnats.SetToken(msg, token)
		for i := 0; i < len(headers); i += 2 {
			msg.Header.Add(headers[i], headers[i+1])
		}
		if _, err := s.js.PublishMsg(t.Context(), msg); err != nil {
			t.Fatal(err)
		}
	}
	send(sign(g, "fine"), "")
	send(sign(g, "fine"), "")
	send(sign(g, "fine"), "another payload")
	send(sign(g, "fails"), "")
	send(sign(g, "permanent"), "")
	send(sign(g, "late"), "")
	send("unsigned", "")
	send(sign(stranger, "strange"), "")
	send(sign(g, "two"), "", idem.Header, "two tokens")
	send(sign(g, "redriven"), "", idem.RedriveHeader, "no number")
	send(strings.Repeat("long", 100), "")
	const letters = 8 // fine's other payload, and all that follow but late
	first := true
	stop := s.consume(g, func(ctx context.Context, _ jetstream.Msg) error {
		claim, _ := idem.FromContext(ctx)
		claim.SetResult([]byte(canaries["the result"]))
		switch claim.Token() {
		case "fails":
			return errors.New("the handler's own")
		case "permanent":
			return idem.Permanent(errors.New("the handler's own"))
		case "late":
			if first {
				first = false
				return idem.RetryAfter(errors.New("the handler's own"), time.Millisecond)
			}
		}
		return nil
	}, consumers.Fingerprints(), consumers.Budget(2))
	testenv.Await(t, "all messages to be settled", func() bool { return s.owed() == 0 })
	stop()
	if n := len(s.letters()); n != letters {
		t.Errorf("%d messages were dead-lettered, want %d", n, letters)
	}
	// A record that cannot be read, a store that is away, and the answers to calls.
	keys, err := s.rdb.Keys(t.Context(), "*").Result()
	if err != nil || len(keys) == 0 {
		t.Fatalf("the store's keys: %v, %v", keys, err)
	}
	group := g.Group(group)
	handle := func(context.Context) error { return nil }
	c.see(group.Do(t.Context(), sign(g, "fine"), handle))
	c.see(group.Do(t.Context(), sign(g, "fine"), handle, idem.WithPayload([]byte(canaries["the payload"]))))
	_, err = group.Inspect(t.Context(), "x"+strings.Repeat("long", 100))
	c.see(err, group.Forget(t.Context(), sign(g, "never")))
	s.redis.Kill()
	c.see(group.Do(t.Context(), sign(g, "away"), handle))
	c.see(group.Verify(t.Context()))
	c.opened(t, secrets, `"fine"`, "conflict", "budget spent", "permanent error", "unknown token", "bad token", "store down")
}

// Passwords in URLs and DSNs stay out of what is logged, told and returned by those whom the
// servers refuse, or who find none. RabbitMQ that refuses is among the tests of consumers/amqp.
func TestSecretsOfConnections(t *testing.T) {
	t.Parallel()
	var c cage
	secret := canaries["the password"]
	nobody := "127.0.0.1:1"
	soon := func() context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
		t.Cleanup(cancel)
		return ctx
	}
	try := func(s store.Store) {
		g := idem.New(append(c.options(), idem.WithStore(s), idem.WithLease(300*time.Millisecond))...)
		c.see(g, g.Settings(), g.Verify(soon()))
		c.see(g.Do(soon(), "t", func(context.Context) error { t.Error("a message was handled"); return nil }))
	}

	rs := redistest.Start(t)
	if err := rs.Client(t).ConfigSet(t.Context(), "requirepass", "the right one").Err(); err != nil {
		t.Fatal(err)
	}
	for _, addr := range []string{rs.Addr(), nobody} {
		client := redis.NewClient(&redis.Options{Addr: addr, Password: secret, MaxRetries: -1})
		t.Cleanup(func() { _ = client.Close() })
		g := idem.New(append(c.options(), idem.WithRedis(client))...)
		c.see(g.Verify(soon()), g.Do(soon(), "t", nil))
	}

	ms := sqltest.StartMariaDB(t)
	for _, db := range []struct {
		driver, dsn string
		dialect     sqlstore.Dialect
	}{
		{"mysql", "root:" + secret + "@tcp(" + ms.Addr() + ")/test", sqlstore.MySQL},
		{"mysql", "root:" + secret + "@tcp(" + nobody + ")/test", sqlstore.MySQL},
		{"pgx", "postgres://nobody-known:" + secret + "@" + sqltest.StartPostgres(t, "").Addr() + "/postgres?sslmode=disable", sqlstore.Postgres},
		{"pgx", "postgres://postgres:" + secret + "@" + nobody + "/postgres?sslmode=disable", sqlstore.Postgres},
	} {
		pool, err := sql.Open(db.driver, db.dsn)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = pool.Close() })
		try(sqlstore.New(pool, db.dialect, sqlstore.WithCreate()))
	}

	ns := natstest.Start(t, func(o *server.Options) { o.Username, o.Password = "user", secret })
	nc, err := nats.Connect(strings.Replace(ns.URL(), "://", "://user:"+url.QueryEscape(secret)+"@", 1), nats.MaxReconnects(-1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	ns.Stop()
	try(natsstore.New(js, "claims"))

	g := idem.New(append(c.options(), idem.WithStore(memstore.New()))...).Group("g")
	for _, u := range []string{
		"amqp://guest:" + secret + "@" + nobody + "/",
		"amqp://guest:" + secret + "%zz@" + nobody, "http://guest:" + secret + "@" + nobody, "amqp://guest:" + secret + "@host:port:1",
	} {
		consumer, err := idemamqp.NewQueueConsumer(u, "q", g, func(context.Context, amqp.Delivery) error { return nil })
		c.see(err)
		if consumer != nil {
			c.see(consumer.Run(soon()))
		}
	}

	consumer, err := idemkafka.NewGroupConsumer(kafka.ReaderConfig{
		Brokers: []string{nobody}, GroupID: "g", Topic: "t",
		Dialer: &kafka.Dialer{SASLMechanism: plain.Mechanism{Username: "user", Password: secret}},
	}, g, func(context.Context, kafka.Message) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	c.see(consumer.Run(soon()))
	_, err = consumer.Preflight(soon())
	c.see(err)

	c.opened(t, map[string]string{"the password": secret},
		"WRONGPASS", "Access denied for user", `role \"nobody-known\" does not exist`, "connection refused", "the url cannot be read")
}
