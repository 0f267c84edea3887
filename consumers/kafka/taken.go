package idemkafka

import (
	"errors"
	"reflect"
	"runtime"
	"sync"
	"weak"
)

// taken are the Readers of this process that a consumer fetches from, or has fetched
// from. It belongs to no consumer, because two of them have nothing in common but the
// Reader.
var taken readers

// errTaken: a tracker begins at the first message that it sees, so that what a Reader
// brought to somebody else would be within the prefix that is committed.
var errTaken = errors.New("idemkafka: the Reader was run by another consumer: it does not fetch again what that one fetched and did not handle, and a commit behind it would lose it: close the Reader after that Run, and make a new consumer over a new kafka.Reader")

// readers is a set of Readers that does not hold on to them. It is safe for concurrent use.
type readers struct {
	mu  sync.Mutex
	all map[weak.Pointer[byte]]runtime.Cleanup
}

// take adds a Reader, and reports whether it was not in the set.
func (s *readers) take(r Reader) bool {
	at := address(r)
	if at == nil {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	key := weak.Make(at)
	if _, found := s.all[key]; found {
		return false
	}
	if s.all == nil {
		s.all = make(map[weak.Pointer[byte]]runtime.Cleanup)
	}
	s.all[key] = runtime.AddCleanup(at, s.forget, key)
	return true
}

// giveBack removes a Reader that nothing was fetched from.
func (s *readers) giveBack(r Reader) {
	at := address(r)
	if at == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	key := weak.Make(at)
	s.all[key].Stop()
	delete(s.all, key)
}

// forget is called when nobody has the Reader any more.
func (s *readers) forget(key weak.Pointer[byte]) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, key)
}

// address is what a Reader is known by; nil if it is no pointer, or to nothing: those
// are all alike.
func address(r Reader) *byte {
	v := reflect.ValueOf(r)
	if v.Kind() != reflect.Pointer || v.Type().Elem().Size() == 0 {
		return nil
	}
	return (*byte)(v.UnsafePointer())
}
