// Package idemnats handles the messages of a NATS JetStream consumer once each: a
// message is acked only after its effect is recorded as done, or its copy confirmed
// by the dead-letter stream.
//
// # What the server is told
//
//	handled now, duplicate                Ack (DoubleAck by option)
//	dead before                           Term
//	in progress elsewhere, store away     InProgress, until that has changed
//	handler error, budget left            in order: InProgress through the backoff, then
//	                                      tried again in place; with Concurrency:
//	                                      NakWithDelay
//	idem.RetryAfter                       the same, spending no budget
//	idem.Permanent, budget spent,         copy published and confirmed, then Term
//	  unknown token, conflict, bad token
//	the same, no DeadLetter               nothing: Run ends with an error
//	shutdown, not handled                 Nak
//
// An ack is fire and forget: one that gets lost costs a delivery, which is dropped
// as a duplicate.
//
// # Settings of the JetStream consumer
//
// It is a pull consumer with a durable name and AckPolicy explicit. AckWait is how
// long the messages of a process that was killed wait for their next delivery; while
// a message is held InProgress goes out each third of it, so handlers may take
// longer. Some seconds serve well. Where BackOff is set, its shortest entry counts, and
// the server adds its later entries, less the first, to the delay of a message that is
// given back again: leave it out.
//
// MaxDeliver has to be unlimited (-1): after that many deliveries the server gives a
// message up, handled or not, and tells no consumer. How often a message is tried is
// consumers.Budget's to say. See AllowMaxDeliver for streams where it is not yours to
// change.
//
// The retention of the guard has to be longer than the stream can redeliver (its
// MaxAge). Where DeadLetter is given a whole jetstream.JetStream, Run compares them.
//
// A message without a payload whose headers have Status is taken for a message of
// the server's by nats.go: it never reaches this package, and comes again and again.
//
// # Dead letters
//
// A copy keeps data and headers, but for those that begin with Nats-. It has the
// token, the reason (consumers.HeaderReason and its neighbours), and
// idem.RedriveHeader. To have it handled again, publish it to its original subject
// with its headers kept, by whatever means: a program, the nats command, a stream
// that sources the dead-letter stream with a subject transform. It has a budget of
// its own then, and is handled once, however often it is moved. A stray redelivery of
// the original is still dropped.
package idemnats
