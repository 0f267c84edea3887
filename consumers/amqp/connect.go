package idemamqp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/idemq/idemq/idem"
)

// setupTimeout bounds the opening of a connection, and of what is opened in it.
const setupTimeout = 30 * time.Second

// broker opens connections.
type broker struct {
	url    string
	uri    amqp.URI
	name   string // of the connection, for the broker's operators
	client amqp.Config
	dial   func(context.Context) (*amqp.Connection, error) // nil: url and client
}

func newBroker(url, queue string, conf config) (*broker, error) {
	b := &broker{url: url, name: "idemq, queue " + queue, dial: conf.dial}
	if conf.client != nil {
		b.client = *conf.client
	}
	if b.dial != nil {
		return b, nil
	}
	uri, err := amqp.ParseURI(url)
	if err != nil {
		return b, errors.New("the url cannot be read: write it as amqp://user:password@host:5672/vhost, percent-encoded") // err may repeat the password
	}
	b.uri = uri
	return b, nil
}

// String says where the broker is, without the password.
func (b *broker) String() string {
	if b.dial != nil {
		return "the broker that Dial dials"
	}
	return fmt.Sprintf("the broker at %s:%d (user %q, vhost %q)", b.uri.Host, b.uri.Port, b.uri.Username, b.uri.Vhost)
}

// connect opens a connection. It ends with ctx.
func (b *broker) connect(ctx context.Context) (*amqp.Connection, error) {
	ctx, cancel := context.WithTimeout(ctx, setupTimeout)
	defer cancel()
	conn, err := b.open(ctx)
	switch {
	case err != nil:
		return nil, fmt.Errorf("connecting to %s: %w", b, err)
	case conn.IsRecoveryEnabled():
		_ = conn.CloseDeadline(time.Now().Add(closeTimeout))
		return nil, &refusal{errors.New("Dial: the connection has Config.Recovery: leave that nil: the consumer opens its connection again by itself, and the client's recovery would let an ack reach another message")}
	}
	return conn, nil
}

func (b *broker) open(ctx context.Context) (*amqp.Connection, error) {
	if b.dial != nil {
		conn, err := b.dial(ctx)
		if err == nil && conn == nil {
			err = errors.New("Dial returned neither a connection nor an error")
		}
		return conn, err
	}
	client := b.client
	client.SASL = slices.Clone(client.SASL) // the client changes what it is given
	client.TLSClientConfig = client.TLSClientConfig.Clone()
	if client.Properties = maps.Clone(client.Properties); client.Properties == nil {
		client.Properties = amqp.NewConnectionProperties()
	}
	if client.Properties["connection_name"] == nil {
		client.Properties.SetClientConnectionName(b.name)
	}
	var socket net.Conn
	stop := func() bool { return true }
	dial := b.client.Dial
	if dial == nil {
		dial = func(network, addr string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, network, addr)
		}
	}
	client.Dial = func(network, addr string) (net.Conn, error) {
		conn, err := dial(network, addr)
		if err == nil {
			socket = conn
			stop = context.AfterFunc(ctx, func() { _ = conn.Close() }) // the handshake knows no context
		}
		return conn, err
	}
	conn, err := amqp.DialConfig(b.url, client)
	stopped := stop()
	switch {
	case err != nil && socket != nil:
		_ = socket.Close() // a failed handshake leaves it open
		fallthrough
	case err != nil:
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, err
	case !stopped:
		_ = conn.CloseDeadline(time.Now())
		return nil, context.Cause(ctx)
	}
	return conn, nil
}

// within calls setup on a connection, whose calls know no context: when ctx ends, the
// connection is closed.
func within(ctx context.Context, conn *amqp.Connection, setup func() error) error {
	ctx, cancel := context.WithTimeout(ctx, setupTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = conn.CloseDeadline(time.Now()) })
	err := setup()
	if !stop() {
		return context.Cause(ctx)
	}
	return err
}

// refusal is a fault that waiting does not mend.
type refusal struct{ err error }

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

// isRefused reports whether the broker, or the consumer itself, will not have it so.
func isRefused(err error) bool {
	if _, ok := errors.AsType[*refusal](err); ok {
		return true
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return true
	}
	e, ok := errors.AsType[*amqp.Error](err)
	if !ok {
		return false
	}
	switch e.Code {
	case amqp.AccessRefused, amqp.NotFound, amqp.ResourceLocked, amqp.PreconditionFailed, amqp.NotAllowed, amqp.NotImplemented:
		return true
	}
	return false
}

// openSession opens a connection and a channel on it, looks whether the queue is there,
// asks check, if that is not nil, and subscribes: from then on a failure costs what was
// delivered a return.
func (c *Consumer) openSession(ctx context.Context, prefetch int, check func(*amqp.Connection) error) (*session, error) {
	conn, err := c.broker.connect(ctx)
	if err != nil {
		return nil, err
	}
	var s *session
	err = within(ctx, conn, func() error {
		ch, err := conn.Channel()
		if err != nil {
			return fmt.Errorf("opening a channel at %s: %w", c.broker, err)
		}
		s = newSession(ctx, ch)
		s.conn, s.queue, s.tag = conn, c.queue, "idemq-"+idem.NewToken()
		if err := ch.Qos(prefetch, 0, false); err != nil {
			return fmt.Errorf("setting the prefetch at %s: %w", c.broker, err)
		}
		if err := c.checkQueue(ch); err != nil {
			return err
		}
		if check != nil {
			if err := check(conn); err != nil {
				return err
			}
		}
		s.deliveries, err = ch.Consume(c.queue, s.tag, false, false, false, false, nil)
		if err != nil {
			return fmt.Errorf("subscribing at %s: %w", c.broker, err)
		}
		return nil
	})
	if err != nil {
		if s != nil {
			s.end(err)
		}
		_ = conn.CloseDeadline(time.Now().Add(closeTimeout))
		return nil, explain(err)
	}
	return s, nil
}
