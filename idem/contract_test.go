package idem_test

import (
	"context"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
)

// The names and shapes that programs outside this repository are compiled against. A
// line that does not compile any more breaks them.
var (
	_ string                                                                                             = idem.Header
	_ func(...idem.Option) *idem.Guard                                                                   = idem.New
	_ *idem.Idempotent                                                                                   = (*idem.Guard)(nil)
	_ func(*idem.Options)                                                                                = idem.Option(nil)
	_ func(redis.UniversalClient) idem.Option                                                            = idem.WithRedis
	_ func(store.Store) idem.Option                                                                      = idem.WithStore
	_ func(string) idem.Option                                                                           = idem.WithPrefix
	_ func(int) idem.Option                                                                              = idem.WithExpire
	_ func(time.Duration) idem.Option                                                                    = idem.WithRetention
	_ func(time.Duration) idem.Option                                                                    = idem.WithLease
	_ func(string) idem.Option                                                                           = idem.WithInstance
	_ func() idem.Option                                                                                 = idem.WithIssuedOnly
	_ func(*idem.Guard) error                                                                            = (*idem.Guard).Err
	_ func(*idem.Guard, string) *idem.Guard                                                              = (*idem.Guard).Group
	_ func(*idem.Guard, context.Context) (string, error)                                                 = (*idem.Guard).Token
	_ func(*idem.Guard, context.Context, string) (bool, error)                                           = (*idem.Guard).Check
	_ func(*idem.Guard, context.Context, string, func(context.Context) error, ...idem.ClaimOption) error = (*idem.Guard).Do
	_ func(*idem.Guard, context.Context, string, ...idem.ClaimOption) (*idem.Claim, error)               = (*idem.Guard).Begin
	_ func(*idem.Guard, context.Context, string) (idem.Record, error)                                    = (*idem.Guard).Inspect
	_ func(*idem.Guard, context.Context, string) error                                                   = (*idem.Guard).Forget
	_ func(*idem.Guard, context.Context, ...string) error                                                = (*idem.Guard).Issue
	_ func(*idem.Guard, context.Context) error                                                           = (*idem.Guard).Verify
	_ func(*idem.Claim) string                                                                           = (*idem.Claim).Token
	_ func(*idem.Claim) int                                                                              = (*idem.Claim).Attempt
	_ func(*idem.Claim) context.Context                                                                  = (*idem.Claim).Context
	_ func(*idem.Claim, []byte)                                                                          = (*idem.Claim).SetResult
	_ func(*idem.Claim, context.Context) error                                                           = (*idem.Claim).Commit
	_ func(*idem.Claim, context.Context) error                                                           = (*idem.Claim).Release
	_ func(*idem.Claim, string) string                                                                   = (*idem.Claim).Derive
	_ func(context.Context) (*idem.Claim, bool)                                                          = idem.FromContext
	_ func() string                                                                                      = idem.NewToken
	_ func(...string) string                                                                             = idem.TokenFor
	_ func(error) error                                                                                  = idem.Permanent
	_ func(error, time.Duration) error                                                                   = idem.RetryAfter
	_ func(error) bool                                                                                   = idem.Done

	_ = []error{
		idem.ErrDuplicate, idem.ErrInProgress, idem.ErrLeaseLost, idem.ErrUnknownToken,
		idem.ErrConflict, idem.ErrSuperseded, idem.ErrNoGroup, idem.ErrRedisNotEnabled,
	}
	_ error = (*idem.DuplicateError)(nil)
	_ error = (*idem.InProgressError)(nil)
)
