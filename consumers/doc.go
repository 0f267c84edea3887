// Package consumers holds what the adapters of all brokers share: where a message's
// token is found, the policies, and the engine that turns a delivery into a
// settlement. Programs use an adapter; this package is for its options, and for
// writing an adapter for another broker (see package consumertest).
//
// # Settlement
//
// What the engine does with a delivery, by what it learns:
//
//	handled now                     record the completion, then Ack
//	duplicate                       Ack
//	dead before                     Terminate
//	in progress elsewhere           hold it, extend it, ask again within a second
//	handler error, budget left      retry in place after a backoff, or Redeliver
//	idem.RetryAfter                 the same, spending no budget
//	idem.Permanent, budget spent    DeadLetter, confirmed; record it; Terminate
//	the same, no destination        stop with an error; nothing is skipped
//	unknown token, conflict,        DeadLetter and Terminate, or stop
//	  bad token, unreadable record
//	store away                      settle nothing, wait; FailOpen by option
//	lease lost                      cancel the handler; commit if it returns nil,
//	                                else give back and ask again
//
// Nothing is acked before its completion is recorded, or its dead-letter copy
// confirmed.
//
// # Options
//
// For failures [Budget], [Backoff], [HandlerTimeout] and [DeadLetterStale]; for the promise
// [AtMostOnce], [FailOpen], [Fingerprints], [Shadow] and [Strict]; for tokens [TokenFrom] and
// [TrustMessageID]; for running [DrainTimeout] and [WorkAhead]. Each adapter has more, of its
// broker. Everything else here is for adapters.
package consumers
