// Package idemkafka handles the messages of a Kafka consumer group once each, over
// kafka-go: an offset is committed only when everything before it is recorded as done,
// or confirmed in the dead-letter topic.
//
// # What becomes of the offset
//
//	handled now, duplicate, dead before   marked: committed when all before it is
//	in progress elsewhere, store away     not marked; the partition waits (with
//	                                      Concurrency, the messages of its line)
//	handler error, budget left            not marked; tried again in place after a
//	                                      backoff, before what comes behind it
//	idem.RetryAfter                       the same, spending no budget
//	idem.Permanent, budget spent,         copy written and confirmed, then marked
//	  unknown token, conflict, bad token
//	the same, no DeadLetter               not marked: Run ends with an error
//	shutdown, rebalance                   what is done is committed; what is not is
//	                                      fetched again, and spends no budget
//	lease lost                            not marked; given back, asked for again
//
// Offsets are committed as the prefix, in order of fetch, of what is done, in batches:
// see CommitEvery. Whatever was done and not committed when a process died is fetched
// again, and dropped as a duplicate. A commit that fails is reported
// (idem.EventSettleFailed), and made up for by the next.
//
// # Two constructors
//
// NewGroupConsumer joins the group itself and reads each partition with a reader of its
// own. One that stands still holds up no other. When partitions are given out anew, claims
// that were not started are given back, handlers that have started get a moment (a quarter
// of the shorter of session and rebalance timeout, five seconds at most) and are
// cancelled then, with cause kafka.ErrGenerationEnded; the offsets of what is done are
// committed in the generation that is about to end. The whole group waits for that; a
// handler that does not return is not waited for longer than twice the moment, and keeps
// its claim: the next owner of the partition waits for that message.
//
// NewConsumer takes a kafka.Reader of yours, a new one for each consumer: one that was
// used does not fetch again what was not handled, and that would be lost. It cannot know
// when partitions go and come, so messages of one that has gone are still handled: claims
// keep that from happening twice. Its offset is committed by this consumer, in the Reader's
// new generation, unless the brokers say that the group has committed as much. Where the new
// owner commits between that question and the commit, the offset is moved back: nothing is
// lost, and after the next rebalance what lies between is fetched again, and dropped. And
// a Reader has one channel for all partitions: see Buffer.
//
// # Settings of the Reader
//
// GroupID is required. StartOffset has to be FirstOffset, the default, if the group is to
// handle what was there before it; with LastOffset NewGroupConsumer commits where each
// partition ends as soon as it has it, NewConsumer only when its first message arrives.
// MaxBytes has to be larger than the largest message. Partitions that are added to a topic are
// read from the group's next rebalance on: WatchPartitionChanges, which is off by default, has
// there be one soon.
//
// Of transactions kafka-go v0.4.51 knows little: with IsolationLevel ReadCommitted the
// messages of open ones do not come, but those of aborted ones do, and so do the markers,
// as messages of their own that the handler is given (see SkipTransactionMarkers). If your
// producers abort transactions, that client is not for you.
//
// kafka-go keeps a member in the group by heartbeats in the background: the broker never
// notices a handler that hangs. consumers.HandlerTimeout does.
//
// # Groups
//
// Where the guard has no group, each topic has one, "<GroupID>/<topic>": a message that
// is forwarded to another topic of the same consumer is handled there too. A message
// without a token is known by topic, partition, offset and timestamp: its redeliveries are
// found, a second write of the producer is not.
//
// # Dead letters
//
// A copy keeps key, value and headers; one that is empty is null in it, for kafka-go does not
// tell these apart. It has the token, the reason
// (consumers.HeaderReason and its neighbours), where the message was (HeaderTopic,
// HeaderPartition, HeaderOffset), and idem.RedriveHeader. To have it handled again, write
// it to its topic with key, value and headers, by whatever means. It has a budget of its
// own then, and is handled once, however often it is moved. A stray redelivery of the
// original is still dropped.
//
// Retry topics, which let others overtake a failed message, are out of scope for now:
// messages are retried in place, in order, and with Concurrency hold up their line only.
package idemkafka
