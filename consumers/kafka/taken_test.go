package idemkafka

import (
	"runtime"
	"testing"

	"github.com/segmentio/kafka-go"

	"github.com/idemq/idemq/internal/testenv"
)

// wrapped is a Reader of a user's, around the client's.
type wrapped struct {
	*kafka.Reader
	_ int
}

type byValue struct{ *kafka.Reader }

func TestReaders(t *testing.T) {
	var s readers
	a, b, around := new(kafka.Reader), new(kafka.Reader), &wrapped{}
	for _, r := range []Reader{a, b, around} {
		if !s.take(r) {
			t.Errorf("%T is new, and refused", r)
		}
		if s.take(r) {
			t.Errorf("%T is taken twice", r)
		}
	}
	s.giveBack(a)
	s.giveBack(a)
	if !s.take(a) || s.take(a) || s.take(b) {
		t.Error("what was given back can be taken once, and nothing else")
	}
	for range 2 {
		if r := (byValue{a}); !s.take(r) {
			t.Error("a Reader that is no pointer has no address, and is refused")
		}
	}
	runtime.KeepAlive(a)
	runtime.KeepAlive(b)
	runtime.KeepAlive(around)
}

// The set does not hold on to Readers, and does not grow with those that are gone.
func TestReadersAreForgotten(t *testing.T) {
	var s readers
	kept := new(kafka.Reader)
	s.take(kept)
	for range 100 {
		s.take(new(kafka.Reader))
		again := &wrapped{}
		s.take(again)
		s.giveBack(again)
		s.take(again)
	}
	testenv.Await(t, "the Readers to be forgotten", func() bool {
		runtime.GC()
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.all) == 1
	})
	if s.take(kept) {
		t.Error("a Reader that is there is forgotten")
	}
	runtime.KeepAlive(kept)
}
