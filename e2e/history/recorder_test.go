package history

import (
	"errors"
	"path/filepath"
	"testing"
)

// Who is killed does not come to Close: a recorder that fails says so at once.
func TestFailed(t *testing.T) {
	r, err := Create(filepath.Join(t.TempDir(), "x"+Suffix))
	if err != nil {
		t.Fatal(err)
	}
	var told []error
	r.Failed = func(err error) { told = append(told, err) }
	if err := r.file.Close(); err != nil { // it cannot grow
		t.Fatal(err)
	}
	for range segmentSlots {
		r.Add(Event{Kind: Started})
	}
	if len(told) > 0 {
		t.Fatalf("there was room, and it failed: %v", told)
	}
	for range 3 {
		r.Add(Event{Kind: Started})
	}
	if len(told) != 1 || told[0] == nil {
		t.Fatalf("told of %v", told)
	}
	if err := r.Close(); !errors.Is(err, told[0]) {
		t.Errorf("closed with %v", err)
	}
}
