package torture

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/idemq/idemq/e2e/history"
	"github.com/idemq/idemq/internal/testenv"
)

// shelf is a broker that keeps what is published.
type shelf struct {
	Broker
	mu     sync.Mutex
	copies map[uint32]int
	all    int
	fail   error
}

func (s *shelf) Publish(_ context.Context, msgs []Message) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return s.fail
	}
	for _, m := range msgs {
		s.copies[m.Token]++
		s.all++
	}
	return nil
}

func (s *shelf) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all
}

func TestPublisher(t *testing.T) {
	s := &shelf{copies: map[uint32]int{}}
	var n notes
	p := newPublisher(s, 1, 1_000_000, n.add)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.run(ctx, t.Context()) }()
	testenv.Await(t, "the backlog to fill", func() bool { return p.backlog() >= minBacklog })
	if all := s.count(); all > minBacklog+batchSize {
		t.Errorf("%d copies were published while none is settled, and the backlog is to be %d", all, minBacklog)
	}
	for i := int64(1); i <= 20; i++ {
		p.settled.Store(i * batchSize)
		testenv.Await(t, "more to be published", func() bool { return p.backlog() >= minBacklog })
	}
	stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	twice := 0
	for _, copies := range s.copies {
		if copies > 1 {
			twice++
		}
	}
	if messages := len(s.copies); twice < messages/20 || twice > messages/5 {
		t.Errorf("%d of %d messages were published again, want about a tenth", twice, messages)
	}
	if len(n.all) != s.all || s.copies[p.next] == 0 || s.copies[p.next+1] != 0 {
		t.Errorf("%d copies are recorded, of tokens up to %d; the broker has %d", len(n.all), p.next, s.all)
	}
	seqs := map[uint32]uint32{}
	for _, e := range n.all {
		if e.Kind != history.Published || e.Seq != seqs[e.Key]+1 {
			t.Fatalf("%+v follows number %d of its key", e, seqs[e.Key])
		}
		seqs[e.Key] = e.Seq
	}
}

func TestPublisherRecordsWhatIsConfirmed(t *testing.T) {
	want := errors.New("away")
	s := &shelf{copies: map[uint32]int{}, fail: want}
	var n notes
	p := newPublisher(s, 1, 1000, n.add)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := p.run(ctx, ctx); !errors.Is(err, want) {
		t.Errorf("got %v", err)
	}
	if len(n.all) > 0 {
		t.Errorf("%d copies are recorded that the broker did not confirm", len(n.all))
	}
}
