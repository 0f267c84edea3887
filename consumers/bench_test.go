package consumers_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/idemq/idemq/consumers"
	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store/memstore"
)

// quick is a delivery that costs nothing beside the engine.
type quick struct {
	token   string
	settled *sink
}

// sink counts what is settled.
type sink struct {
	left chan struct{}
}

func (q *quick) Header(name string) []string {
	if name == idem.Header {
		return []string{q.token}
	}
	return nil
}

func (q *quick) Body() []byte                 { return nil }
func (q *quick) Coordinates() []string        { return nil }
func (q *quick) ID() string                   { return "" }
func (q *quick) Time() time.Time              { return time.Time{} }
func (q *quick) String() string               { return q.token }
func (q *quick) Final() bool                  { return false }
func (q *quick) Handle(context.Context) error { return nil }
func (q *quick) Ack(context.Context) error {
	q.settled.left <- struct{}{}
	return nil
}
func (q *quick) Terminate(context.Context) error                    { return nil }
func (q *quick) Redeliver(context.Context, time.Duration) error     { return nil }
func (q *quick) DeadLetter(context.Context, consumers.Letter) error { return nil }
func (q *quick) Extend(context.Context) error                       { return nil }

// BenchmarkRun is what the engine takes of a message that stands in a backlog, with an
// empty handler and a store in memory. An operation is a message.
func BenchmarkRun(b *testing.B) {
	for _, lanes := range []int{1, 4} {
		b.Run(fmt.Sprintf("lanes=%d", lanes), func(b *testing.B) {
			g := idem.New(idem.WithStore(memstore.New())).Group("billing")
			e, err := consumers.New(g, consumers.Broker{}, consumers.Policy{})
			if err != nil {
				b.Fatal(err)
			}
			s := &sink{left: make(chan struct{}, 1024)}
			tokens := make([]string, b.N)
			for i := range tokens {
				tokens[i] = fmt.Sprintf("%036d", i)
			}
			ctx, cancel := context.WithCancel(b.Context())
			done := make(chan error, 1)
			b.ReportAllocs()
			b.ResetTimer()
			go func() {
				done <- e.Run(ctx, func(ctx context.Context) error {
					for l := range lanes {
						go func() {
							lane := e.Lane(context.WithoutCancel(ctx))
							next := l
							for next < b.N {
								n, err := lane.Room(ctx)
								if err != nil {
									return
								}
								for ; n > 0 && next < b.N; n, next = n-1, next+lanes {
									lane.Add(&quick{tokens[next], s})
								}
							}
						}()
					}
					<-ctx.Done()
					return ctx.Err()
				})
			}()
			for range b.N {
				<-s.left
			}
			b.StopTimer()
			cancel()
			if err := <-done; err != nil {
				b.Error(err)
			}
		})
	}
}
