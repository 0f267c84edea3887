// Package idemamqp handles the messages of a RabbitMQ queue (AMQP 0-9-1) once each: a
// message is acked only after its effect is recorded as done, or its copy confirmed to be
// in the dead-letter queue.
//
// # What the broker is told
//
//	handled now, duplicate                Ack, of this delivery alone
//	dead before                           Ack (RejectToDLX: Reject again)
//	in progress elsewhere, store away     nothing: the delivery is held, and asked for
//	                                      again; Nack with requeue after HoldLimit
//	handler error, budget left            nothing: tried again in place after a backoff
//	idem.RetryAfter                       the same, spending no budget
//	idem.Permanent, budget spent,         copy published as mandatory and confirmed,
//	  unknown token, conflict, bad token  then Ack (RejectToDLX: Reject, not confirmed)
//	the same, no DeadLetter               nothing: Run ends with an error
//	channel or connection lost            nothing, ever: its tags are worth nothing; the
//	                                      handler goes on, its completion is recorded,
//	                                      and the next delivery is a duplicate
//	shutdown, not handled                 Nack with requeue
//
// An ack is fire and forget: one that gets lost with its connection costs a delivery,
// which is dropped as a duplicate. What is recorded in one trip is acked together: by
// NewQueueConsumer with one ack, as far as nothing before it is outstanding.
//
// # Prefetch, and who has the connection
//
// NewQueueConsumer opens its own connection, sets the prefetch, and opens all again when
// it is lost: use it unless something else stands in the way. NewConsumer and Wrap work on
// a channel of the caller's. There Channel.Qos has to be called before Consume, because
// the client keeps whatever the broker sends, and autoAck has to be false: with autoAck
// the broker forgets each message as it sends it, so what is delivered and not handled is
// lost with the process, whatever this package does. It is found out at the first ack,
// which the broker answers by closing the channel; then Run ends with an error.
//
// Over a connection with Config.Recovery the client opens the same channel again, and
// delivery tags start anew at 1. Run ends at the first close it is told of, and settles
// nothing more. A small window stays: an ack that was decided on before the close, and is
// written after the channel was opened again, acks another message, which is lost then;
// so does one of a message that was delivered, and not received by Run, before the
// channel was closed for the first time. Leave Recovery nil, or use NewQueueConsumer,
// which has no such window.
//
// # Settings of the queue and the broker
//
// The consumer timeout of the broker (consumer_timeout, 30 minutes by default) runs from
// the delivery of a message: its wait in the prefetch and its handling together have to fit
// into it; see Prefetch. After that the broker closes the channel: a handler goes on, and
// counts, but everything in the prefetch is delivered again. HoldLimit has to stay below
// it.
//
// A delivery limit (quorum queues; RabbitMQ 4 sets 20 by itself) without a dead-letter
// exchange loses messages after that many returns, whatever we do. Each process that dies,
// and each connection that is lost, counts for every message that was delivered. Up to
// RabbitMQ 4.2 so does each that goes back: what waits when Run ends, with an error, which a
// supervisor starts again and again, or without; and what was held for HoldLimit, so that
// a store that is away for five hours spends 20 returns of each message in the prefetch. So
// switch it off (the policy delivery-limit, -1 on RabbitMQ 4), or give the queue a
// dead-letter exchange and tell of the limit with DeliveryLimit. Failed attempts do not
// count: they are made in memory. How often a message is tried is consumers.Budget's to
// say.
//
// The retention of the guard has to be longer than a message can stay in the queue: a
// message time-to-live (x-message-ttl) below it makes sure of that. Neither the TTL nor
// the limits of a queue can be read by AMQP, so Run does not compare them (see
// Consumer.Preflight for what it asks).
//
// Streams (x-queue-type stream) are not supported: they keep no account of acks. Run, and
// the function of Wrap, end with an error at the first message that has a stream's header,
// x-stream-offset.
//
// A message with more than 8192 headers, or with headers nested more than 32 deep, cannot
// be read by the client, which closes its connection when one is delivered. A consumer of
// NewQueueConsumer connects again, with a prefetch of Concurrency while that lasts, so that
// what is before it in the queue is handled; what is behind it may wait until the message
// is taken out, with the broker's management UI, or by purging the queue. Each attempt
// counts as a return of what was delivered.
//
// Two virtual hosts that share a store and its prefix need guards with groups of their own:
// the group that NewQueueConsumer chooses is the queue's name, without the virtual host's.
//
// Order is the queue's as far as one consumer goes: with several consumers, and after a
// requeue, it is not. For strict order use a queue with x-single-active-consumer, and
// leave Concurrency at one.
//
// # Dead letters
//
// A copy keeps body, properties and headers, and is persistent. It loses Expiration,
// which would delete it, UserId, which would have it refused, CC and BCC, which would
// route it elsewhere, and what brokers wrote on their way (x-death and its like). It has
// the token, the reason (consumers.HeaderReason and its neighbours), and
// idem.RedriveHeader. The headers of a message fit into one frame (131072 bytes by
// default): one that filled it has no room for these, and ends Run.
//
// To have a copy handled again, publish it to its queue with its headers kept, by whatever
// means: a program, or the shovel plugin. It has a budget of its own then, and is handled
// once, however often it is moved. A stray redelivery of the original is still dropped.
package idemamqp
