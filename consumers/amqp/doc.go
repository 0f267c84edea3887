// Package idemamqp handles the messages of a RabbitMQ queue once each.
package idemamqp
