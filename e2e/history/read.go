package history

import (
	"cmp"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"unsafe"
)

// Suffix is how the names of files with events end.
const Suffix = ".hist"

// Read yields the events of a file in the order of their slots, which is about that of
// their times. Slots that were never finished are passed over.
func Read(path string) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		file, err := os.Open(path)
		if err != nil {
			yield(Event{}, err)
			return
		}
		defer file.Close()
		buf := make([]slot, segmentSlots)
		raw := unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(buf))), segmentSize)
		for {
			n, err := io.ReadFull(file, raw)
			for i := range buf[:n/slotSize] {
				if e, ok := buf[i].event(); ok && !yield(e, nil) {
					return
				}
			}
			switch err {
			case nil:
			case io.EOF, io.ErrUnexpectedEOF:
				return
			default:
				yield(Event{}, fmt.Errorf("%s: %w", path, err))
				return
			}
		}
	}
}

// ReadDir returns the events of all files of a folder, in the order of their times.
func ReadDir(dir string) ([]Event, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*"+Suffix))
	if err != nil {
		return nil, err
	}
	var all []Event
	for _, f := range files {
		for e, err := range Read(f) {
			if err != nil {
				return nil, err
			}
			all = append(all, e)
		}
	}
	slices.SortStableFunc(all, func(a, b Event) int { return cmp.Compare(a.At, b.At) })
	return all, nil
}
