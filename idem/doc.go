// Package idem remembers, per consumer group, which messages have been handled,
// so that a message that is delivered again is not handled again.
//
// A [Guard] gives out claims on tokens. A token is the identity of one logical
// message; producers stamp it into the header [Header]. The shortest way to use
// a guard is [Guard.Do]:
//
//	guard := idem.New(idem.WithRedis(client)).Group("billing")
//	err := guard.Do(ctx, token, func(ctx context.Context) error {
//		return charge(ctx, order)
//	})
//	if idem.Done(err) {
//		ack()
//	}
//
// Consumers of Kafka, NATS JetStream and RabbitMQ need less: package consumers
// and its adapters call the guard and settle the delivery.
//
// # What is promised
//
// No message is lost, and a completed message is not handed to the handler again
// within the retention. What stays open: a process that dies after the effect
// and before its completion is recorded, a handler that runs on after its lease
// was lost, and a store that forgets what it acknowledged. In each of these the
// handler runs again, with the same token and a higher attempt.
//
// # Budget
//
// A claim knows how many attempts at its token failed before it (Claim.Spent): those that were
// released, and those whose process died. Consumers dead-letter a message when that many have
// spent its budget (consumers.Budget); Do only counts.
//
// # One and two phases
//
// [Guard.Begin] and [Claim.Commit] are the two phases around an effect, and Do
// calls both. [Guard.Check] is the one-phase form of the component that this
// library descends from: it spends a token that [Guard.Token] issued, and what
// happens after that is nobody's business. [Guard.Spend] is the one-phase form
// for messages: at most once.
package idem
