package idem

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/idemq/idemq/idem/store"
)

// Answers about a token. None of them is a failure of the store.
var (
	// ErrDuplicate: the message was handled, or dead-lettered, before. It is safe
	// to ack. The error is a [*DuplicateError].
	ErrDuplicate = errors.New("duplicate")
	// ErrInProgress: somebody else holds the token now. Do not ack: ask again
	// later. The error is an [*InProgressError].
	ErrInProgress = errors.New("in progress elsewhere")
	// ErrUnknownToken: the guard admits issued tokens only, and this one was not
	// issued, or its registration has expired. That is never taken for a duplicate.
	ErrUnknownToken = errors.New("unknown token")
	// ErrConflict: the token was used for another payload: a producer's bug that
	// would otherwise drop a message.
	ErrConflict = errors.New("token used for another payload")
	// ErrInvalidToken: a token has 1 to 255 bytes.
	ErrInvalidToken = errors.New("invalid token")
	// ErrUnsigned: the guard was made WithTokenKeys, and the token was not signed with one
	// of them for its prefix. It is an ErrUnknownToken.
	ErrUnsigned = fmt.Errorf("%w: it is not signed with a key of this guard for its prefix (stamp with a guard that has both, or sign by Guard.Sign what TokenFor made)", ErrUnknownToken)
)

// Answers about a claim or a process.
var (
	// ErrLeaseLost: the claim's lease ran out, or somebody took it over. As the
	// cause of a handler's context it asks the handler to stop. From Commit it
	// says that the completion was refused: another process handles the message,
	// or has handled it.
	ErrLeaseLost = errors.New("lease lost")
	// ErrSuperseded: a newer process with the same instance name is at work. This
	// one should end. Give each replica a name of its own.
	ErrSuperseded = errors.New("superseded by a newer process of the same instance name")
	// ErrRolledBack: the database rolled the handler's transaction back, for a reason
	// that is not the message's: a deadlock, a serialization failure, a lost
	// connection. Neither effect nor completion happened; the handler has to run again.
	ErrRolledBack = store.ErrRolledBack
	// ErrDataLoss: the store said that it lost records, and the guard was made
	// WithHaltOnDataLoss. A message was not claimed that may have been completed before.
	ErrDataLoss = errors.New("the store lost records that it had acknowledged, so nothing new is claimed: find out what it lost, then start this process again")
	// ErrNeedAlone answers a claim made ahead: earlier processes that claimed this
	// token died, so it is claimed with nothing else beside it.
	ErrNeedAlone = errors.New("token must be claimed alone")
	// ErrClaimEnded: the claim has been ended, or its end is under way: committed, released,
	// buried, abandoned.
	ErrClaimEnded = errors.New("claim has ended")
	errEnding     = fmt.Errorf("its end is under way: %w", ErrClaimEnded)
	// ErrClaimBorrowed: a handler does not end the claim that it runs under.
	ErrClaimBorrowed = errors.New("the claim is ended by what the handler returns")
)

// Mistakes in how a guard was made.
var (
	// ErrRedisNotEnabled: the guard has no store. Give New a client by WithRedis,
	// or a driver by WithStore.
	ErrRedisNotEnabled = errors.New("redis not enabled: give idem.New a client with WithRedis, or a store with WithStore")
	// ErrNoFingerprints: payload fingerprints are asked for, by WithPayload, a Request's
	// Payload or the consumers' Fingerprints, of a store that keeps none.
	ErrNoFingerprints = errors.New("the store keeps no payload fingerprints (Redis' compact layout does not): ask for none, or keep the records in a store or a layout that does")
	// ErrNoGroup: a consumer needs a group, so that two services never eat each
	// other's messages. Name it with Guard.Group.
	ErrNoGroup = errors.New("no consumer group: name one with guard.Group")
)

// DuplicateError says what is known of a token that was completed before. Some
// stores keep less: see the driver's capabilities.
type DuplicateError struct {
	Token   string
	At      time.Time // when it was completed or dead-lettered, by the store's clock; zero if unknown
	Attempt int       // that completed it; zero if unknown
	Dead    bool      // dead-lettered, not handled
	Redrive int       // the record's redrive number
	Result  []byte    // as given to Claim.SetResult
}

// Error implements error.
func (e *DuplicateError) Error() string {
	what := "handled"
	if e.Dead {
		what = "dead-lettered"
	}
	if e.At.IsZero() {
		return fmt.Sprintf("idem: token %q: duplicate: already %s", e.Token, what)
	}
	return fmt.Sprintf("idem: token %q: duplicate: already %s at %s on attempt %d", e.Token, what, e.At.UTC().Format(time.RFC3339), e.Attempt)
}

// Is makes errors.Is(err, ErrDuplicate) true.
func (e *DuplicateError) Is(target error) bool { return target == ErrDuplicate }

// InProgressError says until when somebody else holds a token, as far as is
// known now: the holder may finish sooner, or renew.
type InProgressError struct {
	Token      string
	RetryAfter time.Duration // at least a millisecond
}

func inProgress(token string, after time.Duration) *InProgressError {
	return &InProgressError{Token: token, RetryAfter: max(after, time.Millisecond)}
}

// Error implements error.
func (e *InProgressError) Error() string {
	return fmt.Sprintf("idem: token %q: in progress elsewhere: ask again within %s", e.Token, e.RetryAfter)
}

// Is makes errors.Is(err, ErrInProgress) true.
func (e *InProgressError) Is(target error) bool { return target == ErrInProgress }

// Done reports whether a message may be acked after Do or Begin returned err: it
// was handled now, or before.
func Done(err error) bool { return err == nil || errors.Is(err, ErrDuplicate) }

// Permanent marks a handler's error as one that no retry will mend: a consumer
// dead-letters the message at once. Permanent(nil) is nil.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return &permanentError{err}
}

// IsPermanent reports whether err was marked by Permanent.
func IsPermanent(err error) bool {
	_, ok := errors.AsType[*permanentError](err)
	return ok
}

// RetryAfter marks a handler's error as not the message's fault (a service that
// it needs is away): a consumer tries again after d and spends none of the
// message's budget. A nil err is an error all the same: the message is not done.
func RetryAfter(err error, d time.Duration) error {
	if err == nil {
		err = errors.New("not now")
	}
	return &retryAfterError{err, max(d, 0)}
}

// RetryDelay returns the duration that RetryAfter marked err with.
func RetryDelay(err error) (time.Duration, bool) {
	if r, ok := errors.AsType[*retryAfterError](err); ok {
		return r.after, true
	}
	return 0, false
}

type permanentError struct{ err error }

func (e *permanentError) Error() string { return "permanent: " + e.err.Error() }
func (e *permanentError) Unwrap() error { return e.err }

type retryAfterError struct {
	err   error
	after time.Duration
}

func (e *retryAfterError) Error() string {
	return fmt.Sprintf("retry after %s: %v", e.after, e.err)
}
func (e *retryAfterError) Unwrap() error { return e.err }

// answers are what is said of one token or claim, and of no other.
var answers = [...]error{
	ErrDuplicate, ErrInProgress, ErrUnknownToken, ErrUnsigned, ErrConflict, ErrInvalidToken, ErrLeaseLost, ErrRolledBack, ErrNeedAlone,
	ErrClaimEnded, ErrClaimBorrowed, store.ErrUnreadable, store.ErrNewer,
}

func isAnswer(err error) bool {
	return slices.ContainsFunc(answers[:], func(answer error) bool { return errors.Is(err, answer) })
}

// handlerError hides, from errors.Is and errors.As, that a handler's error is
// itself an answer of a guard: only the outer claim's own answer may settle a
// message.
type handlerError struct{ err error }

func (e *handlerError) Error() string { return e.err.Error() }

func (e *handlerError) Is(target error) bool {
	return !slices.Contains(answers[:], target) && errors.Is(e.err, target)
}

func (e *handlerError) As(target any) bool {
	switch target.(type) {
	case **DuplicateError, **InProgressError:
		return false
	}
	return errors.As(e.err, target)
}

func ofHandler(err error) error {
	if isAnswer(err) {
		return &handlerError{err}
	}
	return err
}

// causeOf is why ctx ended; nil if it did not. A cause may be what was said of another token:
// an errgroup's context ends with the first error of its functions. That is only told, so
// that nobody takes it for what is said of this one.
func causeOf(ctx context.Context) error {
	cause := context.Cause(ctx)
	if cause == nil {
		return nil
	}
	if _, delays := RetryDelay(cause); delays || IsPermanent(cause) || isAnswer(cause) {
		return fmt.Errorf("%w: %v", ctx.Err(), cause) //nolint:errorlint // see above
	}
	return cause
}
