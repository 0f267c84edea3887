package idemkafka

import (
	"context"
	"errors"
	"net"
	"sync"

	"github.com/segmentio/kafka-go"
)

// lines are the connections of a membership to its brokers. kafka-go offers no other
// way to end a request to join a group, which lasts as long as the rebalance.
type lines struct {
	dialer *kafka.Dialer

	mu    sync.Mutex
	conns map[net.Conn]struct{}
	over  bool
}

var errCut = errors.New("the consumer has ended")

// through returns a dialer that connects as the user's does.
func (l *lines) through() *kafka.Dialer {
	d := *l.dialer
	dial := d.DialFunc
	if dial == nil {
		plain := net.Dialer{LocalAddr: d.LocalAddr, KeepAlive: d.KeepAlive, FallbackDelay: d.FallbackDelay}
		dial = plain.DialContext
	}
	l.conns = make(map[net.Conn]struct{})
	d.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		l.mu.Lock()
		over := l.over
		l.mu.Unlock()
		if over {
			return nil, errCut
		}
		c, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return l.add(c)
	}
	return &d
}

func (l *lines) add(c net.Conn) (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		_ = c.Close()
		return nil, errCut
	}
	l.conns[c] = struct{}{}
	return line{c, l}, nil
}

// cut ends all connections, and lets none be made.
func (l *lines) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = true
	for c := range l.conns {
		_ = c.Close()
	}
}

// line is one connection.
type line struct {
	net.Conn
	l *lines
}

func (c line) Close() error {
	c.l.mu.Lock()
	delete(c.l.conns, c.Conn)
	c.l.mu.Unlock()
	return c.Conn.Close()
}
