package history

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A file is a sequence of slots of seven 8-byte words, in the byte order of the machine:
//
//	0  Attempt, Process, Flags, Status, Op, Kind, from the high end; written last
//	1  At
//	2  Store
//	3  Until
//	4  Claim
//	5  Token, Key
//	6  Seq
//
// A slot whose word 0 is zero was not used, or its writer was killed meanwhile.
const (
	slotWords    = 7
	slotSize     = slotWords * 8
	segmentSlots = 1 << 15
	segmentSize  = segmentSlots * slotSize // a multiple of every page size up to 256 KiB
)

type slot [slotWords]uint64

// Recorder adds events to a file. It is safe for concurrent use.
type Recorder struct {
	// Process is filled in where an event has none. It is set before the first Add, as is
	// Failed, which is called once, with why nothing more is recorded. It does not call the
	// recorder.
	Process uint16
	Failed  func(error)

	file  *os.File
	mu    sync.RWMutex // held for reading by who writes a slot
	now   *segment
	size  int64 // of the file
	ended error
}

// segment is the part of the file that is written now, and the only one that is mapped.
type segment struct {
	mapped []byte
	slots  []slot
	next   atomic.Int64
}

// ErrClosed is why an event was not recorded.
var ErrClosed = errors.New("history: recorder is closed")

// Create makes a file, which must not exist, for the events of a process.
func Create(path string) (*Recorder, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, err
	}
	r := &Recorder{file: file}
	if err := r.grow(nil); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return r, nil
}

// grow maps the next part of the file, unless somebody else did.
func (r *Recorder) grow(full *segment) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended != nil || r.now != full {
		return r.ended
	}
	err := reserve(r.file, r.size, segmentSize)
	var mapped []byte
	if err == nil {
		mapped, err = unix.Mmap(int(r.file.Fd()), r.size, segmentSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}
	if err == nil && full != nil {
		err = unix.Munmap(full.mapped)
	}
	if err != nil {
		r.ended = fmt.Errorf("history: %s: %w", r.file.Name(), err)
		if r.Failed != nil {
			r.Failed(r.ended)
		}
		return r.ended
	}
	r.size += segmentSize
	r.now = &segment{mapped: mapped, slots: unsafe.Slice((*slot)(unsafe.Pointer(unsafe.SliceData(mapped))), segmentSlots)}
	return nil
}

// Add records an event; At and Process are filled in where they are zero. It makes no
// system call, but for one now and then to make room. When it has returned, the event
// outlives the process, though not the machine. A recorder that cannot go on says so by
// Failed, and in Close.
func (r *Recorder) Add(e Event) {
	if e.At == 0 {
		e.At = Now()
	}
	if e.Process == 0 {
		e.Process = r.Process
	}
	for {
		r.mu.RLock()
		if r.ended != nil {
			r.mu.RUnlock()
			return
		}
		s := r.now
		if n := s.next.Add(1) - 1; n < segmentSlots {
			s.slots[n].put(&e)
			r.mu.RUnlock()
			return
		}
		r.mu.RUnlock()
		if r.grow(s) != nil {
			return
		}
	}
}

// Close returns the error because of which events are missing, if any are.
func (r *Recorder) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if errors.Is(r.ended, ErrClosed) {
		return nil
	}
	err := errors.Join(r.ended, unix.Munmap(r.now.mapped), r.file.Close())
	r.ended, r.now = ErrClosed, nil
	return err
}

func (s *slot) put(e *Event) {
	s[1], s[2], s[3], s[4] = uint64(e.At), uint64(e.Store), uint64(e.Until), e.Claim
	s[5], s[6] = uint64(e.Token)<<32|uint64(e.Key), uint64(e.Seq)
	atomic.StoreUint64(&s[0], uint64(e.Attempt)<<48|uint64(e.Process)<<32|
		uint64(e.Flags)<<24|uint64(e.Status)<<16|uint64(e.Op)<<8|uint64(e.Kind))
}

func (s *slot) event() (e Event, ok bool) {
	w := s[0]
	return Event{
		At: int64(s[1]), Store: int64(s[2]), Until: int64(s[3]), Claim: s[4],
		Token: uint32(s[5] >> 32), Key: uint32(s[5]), Seq: uint32(s[6]),
		Process: uint16(w >> 32), Attempt: uint16(w >> 48),
		Kind: Kind(w), Op: uint8(w >> 8), Status: uint8(w >> 16), Flags: Flags(w >> 24),
	}, w != 0
}
