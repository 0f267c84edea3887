package idemamqp

import (
	"context"

	amqp "github.com/rabbitmq/amqp091-go"
)

// Letters is a dead-letter destination by itself.
type Letters struct{ l *letters }

func NewLetters(queue string, dial func(context.Context) (*amqp.Connection, error)) Letters {
	l := newLetters("", queue)
	l.dial = dial
	return Letters{l}
}

func (l Letters) Publish(ctx context.Context, msg amqp.Publishing) error {
	return l.l.publish(ctx, msg)
}

func (l Letters) Close() { l.l.close() }
